"""The benchmark: every method on every row of a data set, one line of docs/benchmark.jsonl for each finished run.

    python docs/benchmark.py run digits --seeds 0-4
    python docs/benchmark.py run digits --only 'ssr, *' --seeds 0-2 --jobs 2
    python docs/benchmark.py run cifar4-reduced --only '*, symmetric 60' --data '{"name": "npz", "path": "cifar4.npz"}'
    python docs/benchmark.py page
    python docs/benchmark.py choose digits apl method.training.loss.alpha=1,2,5,10

A method is a file, experiments/benchmark/DATA/METHOD.json, which `nlt launch` runs as it is; a row (`rows` below) is
what `--set` would change in it: the noise, and for the long tail the data. In DATA-augmented all methods of DATA learn
from one and the same view of the images, in DATA all learn from the images as they are. A `forget_rate` that is a
number in the file is replaced by the share of labels that the row really makes wrong: such a method is told what nobody
knows.

What stands in --results is not run again, nor what MLflow knows as finished, and what was interrupted goes on: `run`
may be stopped at any time and repeated, elsewhere too, where only the results are. A cell is known by its data set,
method, row, seed and `recipe`, the hash of the experiment file with the row set in it; remove lines to measure
anew, after a change of a method's code, say. `page` writes docs/benchmark.md and its figures from the results alone.
"""

import argparse
import fnmatch
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from benchmark_page import FILES, FOLDERS, viewed, write_page
from detection import FLIPS, read_results
from mlflow.entities import Run as MlflowRun

from nlt.events import Event, Finished, Incomplete, Stopped
from nlt.launcher import Options
from nlt.prepare import prepare
from nlt.settings import BadInput
from nlt.spec import Experiment
from nlt.sweep import Job, in_turn, plan, side_by_side
from nlt.terminal import Board, Ledger, run_all, warn
from nlt.tracking import Store, forget_prefixes, open_store

HERE = Path(__file__).parent
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HUMAN = "human worst"
CHOICE_ROWS, CHOICE_SEEDS = ("symmetric 60", "pair flip 40"), (100, 101, 102)
METRICS = {
    "accuracy": "final/test_accuracy_last",
    "at_best_val": "final/test_accuracy_at_best_val",
    "val_accuracy": "val/accuracy",
    "auc": "final/noise_auc",
    "average_precision": "final/noise_average_precision",
    "precision": "final/noise_precision",
    "recall": "final/noise_recall",
    "wrong": "noise/drawn_rate",
    "estimated_rate": "method/estimated_rate",
    "seconds": "final/train_seconds",
    "images_seen": "final/images_seen",
}
"""Key of a line -> metric in MLflow."""


def rows(data: str, human: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return row -> key -> value, as `--set` takes them; the wrong labels are those of noise seed 0 in all of them."""

    def noise(name: str, **more: Any) -> dict[str, Any]:
        return {"noise": {"name": name, **more, "seed": 0}}

    is_digits = data.startswith("digits")
    flips = FLIPS["digits" if is_digits else "CIFAR-10" if data == "cifar10" else "CIFAR-4"]
    found = {
        "clean": {"noise": {"name": "none"}},
        "symmetric 20": noise("symmetric", rate=0.2),
        "symmetric 60": noise("symmetric", rate=0.6),
        "symmetric 80": noise("symmetric", rate=0.8),
        "pair flip 40": noise("pair_flip", rate=0.4),
        "asymmetric 40": noise("asymmetric", rate=0.4, flips=flips),
        "instance 40": noise("instance_dependent", rate=0.4),
        HUMAN: {"noise": {"name": "human", "path": str(human), "key": "worse_label", "class_names": CIFAR10}},
        "imbalance 10, symmetric 40": {**noise("symmetric", rate=0.4), "data.imbalance": 10.0},
    }
    if is_digits or human is None:  # people have labelled CIFAR alone
        del found[HUMAN]
    return found


@dataclass(frozen=True)
class Cell:
    """One run of the benchmark."""

    data: str
    method: str
    row: str
    seed: int
    recipe: str
    spec: Experiment

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """What a line of the results is known by."""
        return self.data, self.method, self.row, self.seed, self.recipe


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """Return the `Cell.key` that a line of the results is of."""
    return tuple(line[key] for key in ("data", "method", "row", "seed", "recipe"))


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """Yield what is asked for: all of one seed before the next one, so that what is there is comparable."""
    found = rows(arguments.data_set, arguments.human)
    files = sorted((FILES / FOLDERS[arguments.data_set]).glob("*.json"))
    specs = {
        (file.stem, row): read(arguments.data_set, file, row, sets)
        for row, sets in found.items()
        for file in files
        if any(fnmatch.fnmatch(f"{file.stem}, {row}", only) for only in arguments.only or ["*"])
    }
    if not specs:
        names = ", ".join(file.stem for file in files)
        raise BadInput(f"--only: no 'METHOD, ROW' is like that; methods are {names}, rows {'; '.join(found)}.")
    for seed in arguments.seeds:
        for (method, row), spec in specs.items():
            yield Cell(arguments.data_set, method, row, seed, _recipe(spec), spec)


def read(data: str, file: Path, row: str, sets: dict[str, Any], more: dict[str, Any] | None = None) -> Experiment:
    """Return a file's experiment in a row; its name says both."""
    own = {"data": json.loads(file.read_text())["data"] | {"name": data}} if FOLDERS[data] == "cifar" else {}
    experiment = {"name": f"{file.stem} {row}".replace(",", ""), "experiment": f"benchmark-{data}"}
    values = own | sets | experiment | (more or {})
    return viewed(data, file, values)


def _recipe(spec: Experiment) -> str:
    """The spec's hash, wherever the file of human labels lies."""
    if spec.noise.name == "human":
        spec = spec.model_copy(update={"noise": spec.noise.model_copy(update={"path": "human"})})
    return spec.sha256()[:12]


def _here(cell: Cell, given: dict[str, Any] | None, drawn: Callable[[Experiment], float]) -> Cell:
    """Return a cell as it runs here: its data from where they lie, its method told what its paper tells it."""
    spec = cell.spec
    if given is not None:  # the same images, in a file
        more = {
            key: getattr(spec.data, key) for key in ("limit", "val_fraction", "imbalance") if hasattr(spec.data, key)
        }
        kept = {key: value for key, value in more.items() if value not in (None, 1.0)}
        spec = spec.model_copy(update={"data": _data(given | kept)})
    if isinstance(getattr(spec.method, "forget_rate", None), float):
        told = round(drawn(spec), 4)
        spec = spec.model_copy(update={"method": spec.method.model_copy(update={"forget_rate": told})})
    return replace(cell, spec=Experiment.model_validate_json(json.dumps(spec.resolved())))


def _data(given: dict[str, Any]) -> Any:
    about = {"name": "x", "about": "x", "method": {"name": "standard"}, "data": given}
    return Experiment.model_validate_json(json.dumps(about)).data


def line_of(cell: Cell, run: MlflowRun) -> dict[str, Any]:
    """Return what the results keep of a finished run; what was not measured is left out."""
    tags, metrics = run.data.tags, run.data.metrics
    told = getattr(cell.spec.method, "forget_rate", None)
    return {
        "data": cell.data, "method": cell.method, "row": cell.row, "seed": cell.seed, "recipe": cell.recipe,
        "told": isinstance(told, float), "outside_weights": cell.spec.outside_weights(),
        **{key: metrics[name] for key, name in METRICS.items() if name in metrics},
        "epochs": run.data.params["epochs"], "run_id": run.info.run_id, "spec_sha256": tags["nlt.spec_sha256"],
        "version": tags["nlt.version"], "commit": tags["nlt.git_commit"], "device": tags["nlt.device"],
        "threads": tags["nlt.threads"],
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime(run.info.end_time / 1000)),
    }  # fmt: skip


def run_cells(wanted: list[Cell], arguments: argparse.Namespace, take: Callable[[Cell, MlflowRun], None]) -> None:
    """Run what is not finished in MLflow; `take` is handed each run that is, once."""
    store = open_store(arguments.tracking_uri)

    @cache
    def drawn(labels: str) -> float:
        spec = Experiment.model_validate_json(labels)
        wrong_N = prepare(spec, 0, "cpu", arguments.data_root).train.wrong_N
        if wrong_N is None:
            raise BadInput("data: without clean labels a method cannot be told the rate: leave it out by --only.")
        return float(wrong_N.double().mean())

    def drawn_rate(spec: Experiment) -> float:
        labels = {"name": "x", "about": "x", "method": {"name": "standard"}}
        return drawn(json.dumps(labels | {key: spec.resolved()[key] for key in ("data", "noise")}))

    here = [_here(cell, arguments.data, drawn_rate) for cell in wanted]
    by_spec = {(cell.spec.sha256(), cell.seed): cell for cell in here}
    jobs: list[Job] = []
    prefixes: frozenset[str] = frozenset()
    sweep = f"benchmark {arguments.data_set}"
    for seed in dict.fromkeys(cell.seed for cell in here):
        specs = [cell.spec for cell in here if cell.seed == seed]
        todo = plan(store, specs, (seed,), sweep, False, warn, arguments.data_root)
        jobs, prefixes = [*jobs, *todo.jobs], prefixes | todo.prefixes
        for finished in todo.finished:
            _take(store, finished, by_spec, take)
    print(f"{len(here)} cells are not in the results, {len(here) - len(jobs)} of them finished in MLflow", flush=True)
    options = Options(arguments.device, arguments.data_root, store.uri, store.runs, sweep, leave=prefixes)
    ledger = Ledger(jobs, [])

    def work(emit: Callable[[int, Event], None]) -> None:
        def tell(index: int, event: Event) -> None:
            emit(index, event)
            if isinstance(event, Finished):
                _take(store, event, by_spec, take)

        if arguments.ray is not None:
            from nlt.sweep.cluster import on_ray

            on_ray(jobs, options, tell, store, arguments.ray, arguments.gpus_per_run, warn)
        elif arguments.jobs is not None:
            side_by_side(jobs, options, tell, arguments.jobs)
        else:
            in_turn(jobs, options, tell, store)

    if jobs:
        run_all(ledger, work, Board(ledger))
    if not ledger.interrupted:
        forget_prefixes(store.runs, prefixes)
    ledger.conclude()


def _take(
    store: Store, event: Finished, cells: dict[tuple[str, int], Cell], take: Callable[[Cell, MlflowRun], None]
) -> None:
    if event.undelivered:  # MLflow is away: the next call finds the run there
        return
    run = store.client.get_run(event.run_id)
    take(cells[run.data.tags["nlt.spec_sha256"], event.seed], run)


def run_benchmark(arguments: argparse.Namespace) -> None:
    """Run what is missing, a line in the results for each finished run, then write the page."""
    there = {key_of(line) for line in read_results(arguments.results)}
    wanted = [cell for cell in cells(arguments) if cell.key not in there]

    def take(cell: Cell, run: MlflowRun) -> None:
        with arguments.results.open("a") as file:
            file.write(json.dumps(line_of(cell, run)) + "\n")

    try:
        run_cells(wanted, arguments, take)
    finally:
        write_page(arguments.page, read_results(arguments.results))


def choose(arguments: argparse.Namespace) -> None:
    """Print each candidate's mean accuracy on the noisy validation samples: the rule that chooses settings."""
    key, _, values = arguments.setting.partition("=")
    file = FILES / FOLDERS[arguments.data_set] / f"{arguments.method}.json"
    found = rows(arguments.data_set, arguments.human)
    experiment = f"benchmark-{arguments.data_set}-choice"  # `nlt compare` would take its seeds for reported ones
    for value in json.loads(f"[{values}]"):
        wanted = [
            Cell(arguments.data_set, arguments.method, row, seed, _recipe(spec), spec)
            for row in CHOICE_ROWS
            for spec in [read(arguments.data_set, file, row, found[row], {key: value, "experiment": experiment})]
            for seed in CHOICE_SEEDS
        ]
        accuracies: dict[str, list[float]] = {row: [] for row in CHOICE_ROWS}

        def take(cell: Cell, run: MlflowRun, accuracies: dict[str, list[float]] = accuracies) -> None:
            accuracies[cell.row].append(run.data.metrics["val/accuracy"])

        run_cells(wanted, arguments, take)
        by_row = "  ".join(f"{row} {mean(of):.4f}" for row, of in accuracies.items())
        print(f"{key}={value}: {mean(map(mean, accuracies.values())):.4f}  {by_row}", flush=True)


def _seeds(text: str) -> list[int]:
    """Return the seeds of "0-4" or "0,2,3"."""
    first, dash, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(part) for part in text.split(",")]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "choose", "page"):
        command = commands.add_parser(name)
        command.add_argument("--results", type=Path, default=HERE / "benchmark.jsonl")
        command.add_argument("--page", type=Path, default=HERE / "benchmark.md")
        if name == "page":
            continue
        command.add_argument("data_set", choices=FOLDERS)
        if name == "choose":
            command.add_argument("method")
            command.add_argument("setting", metavar="KEY=VALUE,VALUE,...")
        else:
            command.add_argument("--only", action="append", help="'METHOD, ROW', * for anything; may be given again")
            command.add_argument("--seeds", type=_seeds, default=[0], help="0-4 or 0,1,2")
        command.add_argument("--jobs", type=int, help="runs at a time, each in a process of its own")
        command.add_argument("--ray", metavar="ADDRESS", help="local, auto or ray://HOST:PORT")
        command.add_argument("--gpus-per-run", type=float, default=0.0)
        command.add_argument("--device", default="auto")
        command.add_argument("--data", type=json.loads, help="JSON: where the same images lie, as `data` of a spec")
        command.add_argument("--human", type=Path, help="CIFAR-10N's labels, for the row 'human worst'")
        command.add_argument("--data-root", type=Path, default=Path("data"))
        command.add_argument("--tracking-uri")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    arguments = _arguments(argv)
    try:
        if arguments.command == "run":
            run_benchmark(arguments)
        elif arguments.command == "choose":
            choose(arguments)
        else:
            write_page(arguments.page, read_results(arguments.results))
    except (BadInput, Incomplete, Stopped) as error:
        sys.exit(str(error) or "some runs failed")


if __name__ == "__main__":
    main()
