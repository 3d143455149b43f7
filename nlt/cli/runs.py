"""Commands that train: launch, resume, sync."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nlt.cli.options import (
    FILE,
    Number,
    data_root_option,
    device_option,
    friendly,
    jobs_option,
    main,
    needs_ray,
    ray_option,
    set_option,
    specs_argument,
    tracking_option,
)
from nlt.events import Incomplete
from nlt.settings import BadInput, brief
from nlt.terminal import Bars, Board, Ledger, Lines, run_all, warn

if TYPE_CHECKING:
    from nlt.launcher import Options, Unfinished
    from nlt.tracking import Store

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
@friendly
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

    A run that is finished already, same spec, data and seed, is not run again, and one that was interrupted goes on: a
    launch may be stopped and repeated.

    \b
    nlt launch experiments/o2u_20.json
    nlt launch experiments/quickstart/*.json --seed 0 --seed 1 --jobs 2
    nlt launch experiments/*.json --seed 0 --seed 1 --seed 2 --ray auto --gpus-per-run 0.25
    nlt launch experiments/o2u_20.json --set noise.rate=0.2,0.4 --set data='{"name":"npz","path":"mine.npz"}'
    """
    from nlt.reading import load_all

    if sweep is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,99}", sweep):
        raise BadInput(f"--sweep {brief(sweep)}: use up to 100 letters, digits, blanks and . _ + -")
    if address is None and gpus_per_run:
        raise BadInput("--gpus-per-run goes with --ray; on this machine runs with --jobs share the GPUs.")
    if gpus_per_run != round(gpus_per_run, 4 if gpus_per_run < 1 else 0):
        raise BadInput(
            f"--gpus-per-run {gpus_per_run:g}: Ray deals out whole GPUs, or shares of one of at least 0.0001: use 1 or "
            "0.25, say."
        )
    if address is not None and jobs is not None:
        raise BadInput("--jobs and --ray: the Ray cluster decides how many runs it takes at a time; leave out --jobs.")
    run_on_ray = _on_ray() if address is not None else None
    # All files are checked before the first run starts.
    experiments = [experiment for path in specs for experiment in load_all(path, overrides)]
    from nlt.launcher import Options
    from nlt.sweep import plan
    from nlt.tracking import forget_prefixes, open_store

    store = open_store(tracking_uri)
    todo = plan(store, experiments, seeds or (0,), sweep, rerun, warn, data_root)
    if todo.finished:
        known = len(todo.finished)
        warn(f"{known} of {known + len(todo.jobs)} runs are finished already and are not run again (--rerun does).")
    options = Options(device, data_root, store.uri, store.runs, todo.sweep, log_model, todo.prefixes)
    ledger = Ledger(todo.jobs, todo.finished)
    if run_on_ray is None:
        _run(ledger, options, store, jobs)
    elif todo.jobs:
        run_all(
            ledger, lambda emit: run_on_ray(todo.jobs, options, emit, store, address, gpus_per_run, warn), Board(ledger)
        )
    if not ledger.interrupted:
        forget_prefixes(store.runs, todo.prefixes)
        if len(ledger.finished) > 1:
            _sum_up(store, todo.sweep)
    ledger.conclude()


def _sum_up(store: "Store", sweep: str) -> None:
    from nlt.report.summary import log_summary

    try:
        with Bars() as progress:
            run_id = log_summary(store, sweep, progress)
    except Exception as error:  # whatever it is, the runs themselves are safe, and their table is still to come
        reason = str(error).strip().partition("\n")[0]
        warn(f"the sweep {sweep} has no summary ({type(error).__name__}: {reason}): the same command writes it.")
    else:
        click.echo(f"sweep {sweep}: tables and figures in run {run_id}, report.html among its artifacts")


def _run(ledger: Ledger, options: "Options", store: "Store", at_once: int | None) -> None:
    from nlt.sweep import in_turn, side_by_side

    if at_once is None:
        run_all(ledger, lambda emit: in_turn(ledger.jobs, options, emit, store), Lines(ledger.jobs))
    else:
        run_all(ledger, lambda emit: side_by_side(ledger.jobs, options, emit, at_once), Board(ledger))


def _on_ray() -> "Callable[..., None]":
    with needs_ray():
        from nlt.sweep.cluster import on_ray
    return on_ray


@main.command()
@click.argument("run_ids", nargs=-1, metavar="[RUN_ID...]")
@click.option("--device", default=None, help="auto, cpu, cuda or cuda:0, ...; by default where the run began.")
@click.option(
    "--data-root", envvar="NLT_DATA_ROOT", default=None, type=FILE,
    help="Folder of data sets and caches (NLT_DATA_ROOT); by default as the run was launched.",
)  # fmt: skip
@jobs_option
@tracking_option
@friendly
def resume(
    run_ids: tuple[str, ...], device: str | None, data_root: Path | None, jobs: int | None, tracking_uri: str | None
) -> None:
    """Go on with interrupted runs, each in its own MLflow run; without RUN_ID with all of this store, but those that
    another run of the same has finished for meanwhile.

    A run goes on after its last checkpoint. On a CPU it ends with the numbers of one never interrupted.
    Its experiment file is not read again: the run keeps the spec it was launched with.

    \b
    nlt resume
    nlt resume 0123456789abcdef0123456789abcdef
    """
    from nlt.launcher import Options, unfinished_runs, was_deleted
    from nlt.sweep import Job
    from nlt.tracking import folder_of, kill_orphans, open_store

    store = open_store(tracking_uri)
    run_ids = tuple(dict.fromkeys(run_ids))
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
    if not run_ids:
        wanted = [run_id for run_id in wanted if not _is_finished_elsewhere(store, found[run_id])]
    for run_id in [run_id for run_id in wanted if was_deleted(store, run_id)]:
        wanted.remove(run_id)
        warn(f"run {run_id} was deleted in MLflow: delete {store.runs / run_id}, too, or restore it there first.")
    if not wanted:
        click.echo("nothing to resume")
        return

    ledger = Ledger([Job(found[run_id].spec, found[run_id].seed, found[run_id]) for run_id in wanted], [])
    _run(ledger, Options(device, data_root, store.uri, store.runs), store, jobs)
    ledger.conclude()


def _is_finished_elsewhere(store: "Store", unfinished: "Unfinished") -> bool:
    """Return whether another run of the same experiment, seed, data and weights has finished since, and say so."""
    from mlflow.exceptions import MlflowException

    from nlt.sweep import Job
    from nlt.sweep.plan import finished_before
    from nlt.tracking import data_digest

    run_id, which = unfinished.run_id, f"{unfinished.spec.name}, seed {unfinished.seed}"
    try:
        twin = finished_before(store, Job(unfinished.spec, unfinished.seed))
        if twin is None:
            return False
        own, its = (store.client.get_run(run) for run in (run_id, twin.run_id))
    except MlflowException:  # its server is away, which keeps no run from going on
        return False
    alike = [(data_digest(run), run.data.tags.get("nlt.outside_weights")) for run in (own, its)]
    if alike[0] != alike[1] or its.info.end_time < own.info.start_time:  # as after --rerun
        return False
    warn(f"run {run_id} ({which}) is left, as run {twin.run_id} has finished the same: nlt resume {run_id} goes on.")
    return True


@main.command()
@tracking_option
@friendly
def sync(tracking_uri: str | None) -> None:
    """Deliver to MLflow what runs could not deliver, because its server was away.

    What has been delivered already is not doubled. Runs in progress deliver on their own.

    \b
    nlt sync
    """
    from nlt.tracking import open_store

    delivered, undelivered = _deliver(open_store(tracking_uri))
    if undelivered:
        raise Incomplete(f"{undelivered} runs could not be delivered; what they hold stays here.")
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
