"""The command line: parse, call, print. torch and mlflow are imported inside the commands, so `nlt --help` is quick."""

import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nlt.settings import BadInput, brief
from nlt.terminal import Board, Ledger, Lines, as_text, console, failure, run_all, warn

if TYPE_CHECKING:
    from nlt.sweep import How
    from nlt.tracking import Store

COMPLETION = 'Shell completion: eval "$(_NLT_COMPLETE=bash_source nlt)" (or zsh_source, fish_source).'


def _friendly(command: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except BadInput as error:
            raise failure(str(error), 2) from None

    return wrapped


class Number(click.FloatRange):
    """A number in a range; NaN, which is neither below nor above it, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or have click refuse it."""
        number = super().convert(value, param, ctx)
        if number != number:
            self.fail("nan is not a number.", param, ctx)
        return number


specs_argument = click.argument("specs", nargs=-1, required=True, type=click.Path(), metavar="SPEC...")
set_option = click.option(
    "overrides", "--set", metavar="KEY=VALUE[,VALUE...]", multiple=True,
    help="Change a key, e.g. --set method.training.epochs=10; several values make several experiments.",
)  # fmt: skip
jobs_option = click.option(
    "--jobs", type=click.IntRange(1, 256), default=None,
    help="Runs at a time, each in a process of its own; by default one after the other in this one.",
)  # fmt: skip
data_root_option = click.option(
    "--data-root", envvar="NLT_DATA_ROOT", default="data", show_default=True, type=click.Path(path_type=Path),
    help="Folder of data sets and caches (NLT_DATA_ROOT).",
)  # fmt: skip
tracking_option = click.option(
    "--tracking-uri", metavar="URI", default=None, help="MLflow store; default MLFLOW_TRACKING_URI, else mlruns/ here."
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:0, ...")


@click.group(epilog=COMPLETION, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nlt")
def main() -> None:
    """Train image classifiers on noisy labels, find the wrong ones, and compare methods in MLflow.

    \b
    nlt launch experiments/quickstart/*.json    four methods on digits, two minutes
    nlt compare                                 the table of what was run
    nlt ui                                      the MLflow UI, opened on the comparison
    """
    os.umask(os.umask(0) | 0o022)  # what runs leave is nobody else's to change


ray_option = click.option(
    "--ray", "address", metavar="ADDRESS", default=None,
    help="Run on a Ray cluster: local, auto or ray://HOST:PORT (pip install 'nlt[ray]').",
)  # fmt: skip
gpus_option = click.option(
    "--gpus-per-run",
    type=Number(0, 64),
    default=0.0,
    show_default=True,
    help="With --ray: a share, e.g. 0.25.",
)


@main.command()
@specs_argument
@click.option("seeds", "--seed", type=click.IntRange(0), multiple=True, help="Training seed; may be given many times.")
@jobs_option
@ray_option
@gpus_option
@device_option
@data_root_option
@set_option
@tracking_option
@click.option("--sweep", metavar="NAME", default=None, help="Tag nlt.sweep of the runs; by default from their specs.")
@click.option("--rerun", is_flag=True, help="Run again what is finished, and begin again what was interrupted.")
@click.option("--log-model", is_flag=True, help="Also log an MLflow model with signature (some seconds, some MB).")
@_friendly
def launch(
    specs: tuple[str, ...],
    seeds: tuple[int, ...],
    jobs: int | None,
    address: str | None,
    gpus_per_run: float,
    device: str,
    data_root: Path,
    overrides: tuple[str, ...],
    tracking_uri: str | None,
    sweep: str | None,
    rerun: bool,
    log_model: bool,
) -> None:
    """Run experiment files, each with each seed (default 0), and track every run in MLflow.

    A run that is finished already, same spec and seed, is not run again, and one that was interrupted goes on: a launch
    may be stopped and repeated.

    \b
    nlt launch experiments/o2u_20.json
    nlt launch experiments/quickstart/*.json --seed 0 --seed 1 --jobs 2
    nlt launch experiments/*.json --seed 0 --seed 1 --seed 2 --ray auto --gpus-per-run 0.25
    nlt launch experiments/o2u_20.json --set noise.rate=0.2,0.4 --set data='{"name":"npz","path":"mine.npz"}'
    """
    from nlt.spec import load_all

    if sweep is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,99}", sweep):
        raise BadInput(f"--sweep {brief(sweep)}: use up to 100 letters, digits, blanks and . _ + -")
    if address is None and gpus_per_run:
        raise BadInput("--gpus-per-run goes with --ray; on this machine runs with --jobs share the GPUs.")
    if address is not None and jobs is not None:
        raise BadInput("--jobs and --ray: the Ray cluster decides how many runs it takes at a time; leave out --jobs.")
    run_on_ray = _on_ray() if address is not None else None
    # All files are checked before the first run starts.
    experiments = [experiment for path in specs for experiment in load_all(path, overrides)]
    from nlt.sweep import How, plan
    from nlt.tracking import forget_beginnings, open_store

    store = open_store(tracking_uri)
    todo = plan(store, experiments, seeds or (0,), sweep, rerun, warn)
    if todo.finished:
        known = len(todo.finished)
        warn(f"{known} of {known + len(todo.jobs)} runs are finished already and are not run again (--rerun does).")
    how = How(device, data_root, store.uri, store.runs, todo.sweep, log_model)
    ledger = Ledger(todo.jobs, todo.finished)
    if run_on_ray is None:
        _run(ledger, how, store, jobs)
    elif todo.jobs:
        run_all(
            ledger, lambda tell: run_on_ray(todo.jobs, how, tell, store, address, gpus_per_run, warn), Board(ledger)
        )
    if not ledger.interrupted:
        forget_beginnings(store.runs, todo.beginnings)
    if len(ledger.finished) > 1 and not ledger.interrupted:
        _sum_up(store, todo.sweep)
    ledger.conclude()


def _sum_up(store: "Store", sweep: str) -> None:
    from mlflow.exceptions import MlflowException

    from nlt.report.summary import log_summary

    try:
        run_id = log_summary(store, sweep)
    except (BadInput, MlflowException, OSError) as error:  # the runs themselves are safe
        reason = str(error).strip().partition("\n")[0]
        warn(f"the sweep {sweep} has no summary ({type(error).__name__}: {reason}): the same command writes it.")
    else:
        click.echo(f"sweep {sweep}: tables and figures in run {run_id}, report.html among its artifacts")


def _run(ledger: Ledger, how: "How", store: "Store", at_once: int | None) -> None:
    from nlt.sweep import in_turn, side_by_side

    if at_once is None:
        run_all(ledger, lambda tell: in_turn(ledger.jobs, how, tell, store), Lines(ledger.jobs))
    else:
        run_all(ledger, lambda tell: side_by_side(ledger.jobs, how, tell, at_once), Board(ledger))


def _on_ray() -> "Callable[..., None]":
    try:
        from nlt.sweep.cluster import on_ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise BadInput("--ray: Ray is not installed: pip install 'nlt[ray]'.") from None
    return on_ray


@main.command()
@click.argument("run_ids", nargs=-1, metavar="[RUN_ID...]")
@click.option("--device", default=None, help="auto, cpu, cuda or cuda:0, ...; by default where the run began.")
@click.option(
    "--data-root", envvar="NLT_DATA_ROOT", default=None, type=click.Path(path_type=Path),
    help="Folder of data sets and caches (NLT_DATA_ROOT); by default as the run was launched.",
)  # fmt: skip
@jobs_option
@tracking_option
@_friendly
def resume(
    run_ids: tuple[str, ...], device: str | None, data_root: Path | None, jobs: int | None, tracking_uri: str | None
) -> None:
    """Go on with interrupted runs, each in its own MLflow run; without RUN_ID with all of this store.

    A run goes on after its last checkpoint. On a CPU it ends with the numbers of one never interrupted.
    Its experiment file is not read again: the run keeps the spec it was launched with.

    \b
    nlt resume
    nlt resume 0123456789abcdef0123456789abcdef
    """
    from nlt.launcher import unfinished_runs
    from nlt.sweep import How, Job
    from nlt.tracking import folder_of, kill_orphans, open_store

    store = open_store(tracking_uri)
    for run_id in run_ids:
        folder_of(store.runs, run_id)
    _deliver(store)  # a run that was killed when all was done needs no more
    found = {run.run_id: run for run in unfinished_runs(store, warn)}
    wanted = [run_id for run_id in run_ids if (store.runs / run_id).exists()] if run_ids else list(found)
    if missing := [run_id for run_id in wanted if run_id not in found]:
        raise BadInput(
            f"run {missing[0]} cannot go on: another process trains it, or it is over, or it is of another store than "
            f"{store.name} (--tracking-uri, MLFLOW_TRACKING_URI)."
        )
    for run_id in kill_orphans(store):
        warn(f"run {run_id} was killed before anything was computed and is marked KILLED; launch it again.")
    if not wanted:
        click.echo("nothing to resume")
        return

    ledger = Ledger([Job(found[run_id].spec, found[run_id].seed, found[run_id]) for run_id in wanted], [])
    _run(ledger, How(device, data_root, store.uri, store.runs), store, jobs)
    ledger.conclude()


@main.command()
@tracking_option
@_friendly
def sync(tracking_uri: str | None) -> None:
    """Deliver to MLflow what runs could not deliver, because its server was away.

    What has been delivered already is not doubled. Runs in progress deliver on their own.

    \b
    nlt sync
    """
    from nlt.tracking import open_store

    delivered, undelivered = _deliver(open_store(tracking_uri))
    if undelivered:
        raise failure(f"{undelivered} runs could not be delivered; what they hold stays here.", 1)
    if not delivered:
        click.echo("nothing to deliver")


def _deliver(store: "Store") -> tuple[int, int]:
    """Deliver what runs have left and say so; return how many had something, and how many have still."""
    from nlt.tracking import sync as deliver_all

    done = deliver_all(store)
    if done.runs:
        click.echo(f"delivered what {done.runs} runs had left" if not done.complaints else "delivered in part")
    for sentence in done.complaints:
        warn(sentence)
    for name, count in done.elsewhere.items():
        warn(f"{count} runs here are of the store {name}: name it by --tracking-uri or MLFLOW_TRACKING_URI for them.")
    return done.runs, len(done.complaints)


@main.command()
@specs_argument
@set_option
@_friendly
def validate(specs: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Check experiment files without running them.

    \b
    nlt validate experiments/*.json
    """
    from nlt.spec import load_all

    errors = []
    for path in specs:
        try:
            load_all(path, overrides)
        except BadInput as error:
            errors.append(str(error))
        else:
            click.echo(f"{click.format_filename(path)}: valid")
    if errors:
        raise BadInput(*errors)


@main.command()
@_friendly
def schema() -> None:
    """Print the JSON Schema of experiment files.

    \b
    nlt schema > nlt/schema.json
    """
    import json

    from nlt.spec import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@main.command()
@click.argument("experiment", required=False)
@click.option("--sweep", metavar="NAME", help="Only runs of this sweep (the tag nlt.sweep).")
@click.option(
    "tags", "--tag", metavar="KEY=VALUE", multiple=True, help="Only runs with this tag; may be given many times."
)
@click.option(
    "--baseline", metavar="NAME",
    help="Run name or method that the others are compared with; by default the standard method with CE.",
)  # fmt: skip
@click.option(
    "kind", "--format", type=click.Choice(["table", "md", "csv", "json", "html"]), default="table", show_default=True,
    help="csv and json: unrounded, a row per method and noise; html: one page with all figures.",
)  # fmt: skip
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write there instead of to the terminal."
)
@click.option(
    "--figures", type=click.Path(path_type=Path), metavar="FOLDER", help="Also write each figure there, as PNG and PDF."
)
@tracking_option
@_friendly
def compare(
    experiment: str | None,
    sweep: str | None,
    tags: tuple[str, ...],
    baseline: str | None,
    kind: str,
    output: Path | None,
    figures: Path | None,
    tracking_uri: str | None,
) -> None:
    """Compare methods over seeds: accuracies, wrong labels found, time, paired differences to a baseline.

    EXPERIMENT is an MLflow experiment (by default a spec's runs are in the one named like its data set).

    \b
    nlt compare
    nlt compare quickstart --baseline base
    nlt compare quickstart --format html --output report.html --figures figures
    """
    pairs = [tag.partition("=") for tag in tags]
    if wrong := [tag for tag, (key, equals, _) in zip(tags, pairs, strict=True) if not (key and equals)]:
        raise BadInput(f"--tag {wrong[0]}: write it as KEY=VALUE, e.g. --tag nlt.profile=corrected.")
    from nlt.report import as_csv, as_json, markdown, tables
    from nlt.report import compare as collect
    from nlt.tracking import open_store

    store = open_store(tracking_uri)
    wanted = {key: value for key, _, value in pairs}
    found = collect(store, experiment, sweep=sweep, tags=wanted, baseline=baseline)
    drawn = []
    if kind == "html" or figures:
        from nlt.report.summary import figures_of

        drawn = [figures_of(store, comparison) for comparison in found]
    if kind == "html":
        from nlt.report.html import page

        text = page(list(zip(found, drawn, strict=True)))
    elif kind == "table":
        shown = [table for comparison in found for table in tables(comparison)]
        if output is None:
            console().print(*shown, sep="\n")
        text = as_text(shown)
    else:
        text = {"md": markdown, "csv": as_csv, "json": as_json}[kind](found)
    if output is not None:
        _write(output, text.encode())
    elif kind != "table":
        click.echo(text, nl=False)
    if figures:
        from nlt.report.plots import pdf, png

        for comparison, group in zip(found, drawn, strict=True):
            folder = figures / comparison.experiment if len(found) > 1 else figures
            for drawing in group:
                _write(folder / f"{drawing.name}.png", png(drawing))
                _write(folder / f"{drawing.name}.pdf", pdf(drawing))


def _write(path: Path, content: bytes) -> None:
    """Write a file that the user has named, whole or not at all."""
    from nlt.checkpoint import write_whole

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except (OSError, ValueError) as error:  # ValueError: a name that is none, as /
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path} cannot be written ({reason}): name another file.") from None


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Port on 127.0.0.1.")
@tracking_option
@_friendly
def ui(port: int, tracking_uri: str | None) -> None:
    """Serve the MLflow UI on 127.0.0.1 and print the links of the comparison views.

    \b
    nlt ui
    nlt ui --port 5001
    """
    import contextlib
    import signal
    import socket
    import subprocess

    from nlt.tracking import open_store, without_credentials
    from nlt.view import TAG, link

    store = open_store(tracking_uri)
    base = f"http://127.0.0.1:{port}"
    if store.uri.startswith("http"):
        base = without_credentials(store.uri)  # the server shows its own UI, and the browser asks for the password
    experiments = [e for e in store.client.search_experiments() if TAG in e.tags]
    for experiment in experiments:
        click.echo(f"{experiment.name}: {link(base, experiment.experiment_id)}")
    if not experiments:
        click.echo(f"no runs yet; the UI is at {base}")
    if store.uri.startswith("http"):
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise BadInput(f"--port {port} is in use: choose another, e.g. --port {port % 65535 + 1}.") from None
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    if store.artifacts is not None:
        command += ["--default-artifact-root", str(store.artifacts)]
    click.echo("press Ctrl-C to stop")
    more = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job workers are for GenAI and cost 250 MB each
        "PYTHONWARNINGS": "ignore",  # of MLflow's own dependencies
        "MLFLOW_BACKEND_STORE_URI": store.uri,  # not an argument: a database's password would show in the process list
    }
    # A group of its own: MLflow starts further processes, and none may stay behind when this one is told to end.
    server = subprocess.Popen(command, env=os.environ | more, start_new_session=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        raise SystemExit(server.wait())
    except KeyboardInterrupt:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@main.command()
@device_option
@data_root_option
@tracking_option
@_friendly
def doctor(device: str, data_root: Path, tracking_uri: str | None) -> None:
    """Say what is usable here: versions, device, precision, data sets found, store.

    \b
    nlt doctor
    """
    import platform
    from importlib.metadata import version

    import torch

    from nlt.tracking import open_store, shown
    from nlt.train import find_device, find_precision

    rows = [("nlt", version("nlt")), ("python", platform.python_version())]
    rows += [(name, version(name)) for name in ("torch", "torchvision", "mlflow-skinny")]
    found = find_device(device)
    named = torch.cuda.get_device_name(found) if found.type == "cuda" else f"{torch.get_num_threads()} threads"
    rows += [("device", f"{found} ({named})"), ("precision auto", find_precision("auto", found))]
    rows += [("data digits", "embedded in scikit-learn")]
    cifars = [
        ("cifar10, cifar4", "cifar-10-batches-py", [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]),
        ("cifar100", "cifar-100-python", ["train", "test"]),
    ]
    for name, folder, files in cifars:
        where = Path(os.path.expanduser(data_root)).absolute() / folder
        there = all((where / file).is_file() for file in files)
        rows.append((f"data {name}", str(where) if there else f"not in {where}; downloaded when first used"))
    ok = True
    try:
        store = open_store(tracking_uri)
        rows.append(("store", f"{shown(store.uri)}, writable"))
    except BadInput as error:
        ok = False
        rows.append(("store", str(error)))
    for name, text in rows:
        click.echo(f"{name:<22} {text}")
    if not ok:
        raise SystemExit(2)


@main.command()
@device_option
@click.option(
    "widths",
    "--width",
    type=Number(0, 8, min_open=True),
    multiple=True,
    help="Of cnn9; 0.25 and 1.",
)
@click.option(
    "--images",
    type=click.IntRange(32, 1_000_000),
    default=None,
    help="In an epoch; 5,120 on a CPU, 20,000 on a GPU.",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of which medians are taken.")
@click.option(
    "--compile", "compiled", type=click.Choice(["on", "off"]), default="off", show_default=True, help="torch.compile."
)
@click.option("--smoke", is_flag=True, help="Only see that it runs: tiny, its numbers mean nothing.")
@_friendly
def bench(device: str, widths: tuple[float, ...], images: int | None, rounds: int, compiled: str, smoke: bool) -> None:
    """Measure whole epochs beside the network's bare arithmetic and a conventional loop; print a table and JSON.

    Minutes to a quarter of an hour on a CPU. Nothing else should run meanwhile.

    \b
    nlt bench
    nlt bench --device cuda --width 1
    nlt bench --smoke
    """
    import json

    from nlt.bench import Size
    from nlt.bench import bench as measure
    from nlt.train import find_device

    gpu = find_device(device).type == "cuda"
    epoch, sampled, matrix = (20_000, 4_096, 8_192) if gpu else (5_120, 512, 2_048)
    size = Size(widths or (0.25, 1.0), images or epoch, sampled, rounds, matrix, compiled == "on")
    if smoke:
        size = Size((0.03,), 160, 32, 1, 64)
    measured = measure(device, size, lambda note: click.echo(note, err=True))
    console().print(measured.table())
    click.echo(json.dumps(measured.json()))


if __name__ == "__main__":
    main(prog_name="nlt")
