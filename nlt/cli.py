"""The command line: parse, call, print. torch and mlflow are imported inside the commands, so `nlt --help` is quick."""

import os
import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nlt.settings import BadInput
from nlt.terminal import Progress, console, failure, run_all, warn

if TYPE_CHECKING:
    from nlt.launcher import Result
    from nlt.spec import Experiment
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


specs_argument = click.argument("specs", nargs=-1, required=True, type=click.Path(), metavar="SPEC...")
set_option = click.option(
    "overrides", "--set", metavar="KEY=VALUE", multiple=True, help="Change a key, e.g. --set method.training.epochs=10."
)
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


@main.command()
@specs_argument
@click.option("seeds", "--seed", type=click.IntRange(0), multiple=True, help="Training seed; may be given many times.")
@device_option
@data_root_option
@set_option
@tracking_option
@click.option("--log-model", is_flag=True, help="Also log an MLflow model with signature (some seconds, some MB).")
@_friendly
def launch(
    specs: tuple[str, ...],
    seeds: tuple[int, ...],
    device: str,
    data_root: Path,
    overrides: tuple[str, ...],
    tracking_uri: str | None,
    log_model: bool,
) -> None:
    """Run experiment files, each with each seed (default 0), and track every run in MLflow.

    \b
    nlt launch experiments/o2u_20.json
    nlt launch experiments/quickstart/*.json --seed 0 --seed 1
    nlt launch experiments/o2u_20.json --set data='{"name":"npz","path":"mine.npz"}' --set method.forget_rate=0.1
    """
    from nlt.spec import load

    experiments = [load(path, overrides) for path in specs]  # all files are checked before the first run starts
    from nlt.launcher import launch as run_one
    from nlt.launcher import new_sweep, unfinished_runs
    from nlt.tracking import open_store

    store = open_store(tracking_uri)
    waiting = {(run.spec.sha256(), run.seed): run for run in unfinished_runs(store, warn)}
    sweep, first = new_sweep(), True

    def start(spec: "Experiment", seed: int) -> "Result":
        if run := waiting.get((spec.sha256(), seed)):
            warn(
                f"{spec.name}, seed {seed}, has an unfinished run {run.run_id} ({run.epochs} of {run.steps} epochs): "
                f"`nlt resume {run.run_id}` goes on with it; this launch begins another."
            )
        nonlocal first
        # That an address is wrong shows in the first run, at once; later a server is only away, and is waited for.
        patient, first = None if first else warn, False
        progress = Progress(spec.name)
        return run_one(
            spec,
            seed=seed,
            device=device,
            data_root=data_root,
            log_model=log_model,
            sweep=sweep,
            store=store,
            warn=patient,
            on_start=progress.start,
            on_epoch=progress.epoch,
        )

    run_all([partial(start, spec, seed) for spec in experiments for seed in seeds or (0,)])


@main.command()
@click.argument("run_ids", nargs=-1, metavar="[RUN_ID...]")
@click.option("--device", default=None, help="auto, cpu, cuda or cuda:0, ...; by default where the run began.")
@click.option(
    "--data-root", envvar="NLT_DATA_ROOT", default=None, type=click.Path(path_type=Path),
    help="Folder of data sets and caches (NLT_DATA_ROOT); by default as the run was launched.",
)  # fmt: skip
@tracking_option
@_friendly
def resume(run_ids: tuple[str, ...], device: str | None, data_root: Path | None, tracking_uri: str | None) -> None:
    """Go on with interrupted runs, each in its own MLflow run; without RUN_ID with all of this store.

    A run goes on after its last checkpoint. On a CPU it ends with the numbers of one never interrupted.
    Its experiment file is not read again: the run keeps the spec it was launched with.

    \b
    nlt resume
    nlt resume 0123456789abcdef0123456789abcdef
    """
    from nlt.launcher import resume as run_one
    from nlt.launcher import unfinished_runs
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

    def start(run_id: str) -> "Result":
        progress = Progress(found[run_id].spec.name)
        return run_one(
            found[run_id],
            device=device,
            data_root=data_root,
            store=store,
            warn=warn,
            on_start=progress.start,
            on_epoch=progress.epoch,
        )

    run_all([partial(start, run_id) for run_id in wanted])


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
    from nlt.spec import load

    errors = []
    for path in specs:
        try:
            load(path, overrides)
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
@tracking_option
@_friendly
def compare(experiment: str | None, tracking_uri: str | None) -> None:
    """Print method x noise: last-epoch test accuracy and noise precision, mean and deviation over seeds.

    EXPERIMENT is an MLflow experiment (by default a spec's runs are in the one named like its data set).

    \b
    nlt compare
    nlt compare quickstart
    """
    from nlt.report import cells, table
    from nlt.tracking import open_store

    out = console()
    for name, group in cells(open_store(tracking_uri), experiment).items():
        out.print(table(name, group))


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
    "widths", "--width", type=click.FloatRange(0, 8, min_open=True), multiple=True, help="Of cnn9; 0.25 and 1."
)
@click.option("--images", type=click.IntRange(32), default=None, help="In an epoch; 5,120 on a CPU, 20,000 on a GPU.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of which medians are taken.")
@click.option("--smoke", is_flag=True, help="Only see that it runs: tiny, its numbers mean nothing.")
@_friendly
def bench(device: str, widths: tuple[float, ...], images: int | None, rounds: int, smoke: bool) -> None:
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
    size = Size(widths or (0.25, 1.0), images or epoch, sampled, rounds, matrix)
    if smoke:
        size = Size((0.03,), 160, 32, 1, 64)
    measured = measure(device, size, lambda note: click.echo(note, err=True))
    console().print(measured.table())
    click.echo(json.dumps(measured.json()))


if __name__ == "__main__":
    main(prog_name="nlt")
