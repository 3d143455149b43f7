"""Runs on a Ray cluster: Ray places them, begins again those whose node died, and brings them their data."""

import json
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # under `uv run` it would build an environment per worker
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a run that was given no GPU sees none

import ray
import torch
from mlflow.exceptions import MlflowException
from ray.exceptions import GetTimeoutError, RayError, TaskCancelledError

from nlt.data import Dataset
from nlt.events import Emit, Event, Failed, Finished, Noted, Started
from nlt.launcher import Options, Unfinished, unfinished_runs
from nlt.reading import check
from nlt.settings import BadInput, brief
from nlt.stopping import stop_signals
from nlt.sweep.job import Job, run_job
from nlt.sweep.plan import finished_before, key_of
from nlt.tracking import Store, folders, sync

RETRIES = 3  # of a run whose node or process died
POLL_S = 0.5
CONNECT_S = 10.0
CLIENT_TRIES = 3  # the head of a cluster begins a process for each ray:// client and gives it up after 30 s
LET_GO_S = 60.0  # how long a process may outlive its node


def on_ray(
    jobs: list[Job],
    options: Options,
    emit: Emit,
    store: Store,
    address: str,
    gpus_per_run: float,
    warn: Callable[[str], None],
) -> None:
    """Run each job as a Ray task in a process of its own, as many at a time as the cluster has room for.

    A run gets one CPU and trains with one thread. The data are loaded here and put into Ray's object store, so that no
    node needs the files. A run whose node died is begun again on another one; where the nodes share the folder
    `options.runs` it goes on after its last checkpoint.

    Args:
        jobs: what runs.
        options: what it has in common with the other runs of the launch.
        emit: told of all that happens.
        store: an open one.
        address: `local` (a cluster for this launch), `auto` (the one this machine is part of), `ray://HOST:PORT`.
        gpus_per_run: share of a GPU that each run gets; 0 for the CPU.
        warn: told of what may be a mistake.

    Raises:
        BadInput: there is no such cluster, or the data cannot be loaded.
    """
    # Common first stages are left in a folder: on nodes that do not share it with this machine nobody would tidy it up.
    options = replace(options, leave=frozenset())
    root = Path(os.path.expanduser(options.data_root or "data"))
    specs = {job.spec.data_key(): job.spec for job in jobs}
    datasets = {key: spec.load_data(root) for key, spec in specs.items()}
    # Runs that are no part of this launch, though they look like it.
    ours = {job.unfinished.run_id for job in jobs if job.unfinished}
    others = frozenset(run.run_id for run in unfinished_runs(store) if run.run_id not in ours)
    others |= {found.run_id for job in jobs if (found := finished_before(store, job))}
    connect(address)
    try:
        _check_room(address, gpus_per_run, warn)
        placed = {key: ray.put(datasets.pop(key)) for key in list(datasets)}  # the store's copy is enough
        _run_all(jobs, options, emit, store, placed, gpus_per_run, others)
    finally:
        ray.shutdown()


def connect(address: str) -> None:
    """Make this process the driver of a cluster.

    Args:
        address: as for `on_ray`.

    Raises:
        BadInput: there is no such cluster.
    """
    try:
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        if colon:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        for left in reversed(range(CLIENT_TRIES)):
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
                break
            except ConnectionAbortedError:
                if not left:
                    raise
    except (ConnectionError, ValueError, RuntimeError, OSError, OverflowError) as error:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        reason = " ".join(dict.fromkeys((lines[0], lines[-1]))).rstrip(".")  # between them may stand a traceback
        raise BadInput(
            f"--ray {brief(address)}: no Ray cluster can be reached there ({reason}): start one with `ray start "
            "--head`, or use --ray local."
        ) from None


def _check_room(address: str, gpus_per_run: float, warn: Callable[[str], None]) -> None:
    gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    if gpus and not gpus_per_run:
        warn(f"the cluster has {gpus:g} GPUs and the runs will use none: --gpus-per-run 0.25 puts four on each.")
    if gpus_per_run > gpus:
        if address == "local":
            raise BadInput(f"--gpus-per-run {gpus_per_run:g}: this machine has {gpus:g} GPUs.")
        warn(f"--gpus-per-run {gpus_per_run:g}: the cluster has {gpus:g} GPUs at the moment; the runs wait for more.")


def _run_all(
    jobs: list[Job],
    options: Options,
    emit: Emit,
    store: Store,
    placed: "dict[str, ray.ObjectRef[Dataset]]",
    gpus_per_run: float,
    others: frozenset[str],
) -> None:
    # Begun again elsewhere if its node dies; events that it held are lost then, results are not: tasks return them.
    mailbox: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Mailbox).remote()
    # A process per run, so that none sees what another has left behind in its process.
    task = ray.remote(num_cpus=1, num_gpus=gpus_per_run, max_retries=RETRIES, max_calls=1)(_run)
    environment = {key: value for key, value in os.environ.items() if key.startswith("MLFLOW_")}  # the password too
    pending = {
        task.remote(
            index, job, options, placed[job.spec.data_key()], mailbox, others, environment, version("nlt")
        ): index
        for index, job in enumerate(jobs)
    }
    run_ids: dict[int, str] = {}

    def show(index: int, event: Event) -> None:
        if isinstance(event, Started):
            if (before := run_ids.get(index, event.run_id)) != event.run_id:
                # The node that died had its folders to itself, so nobody goes on with this run.
                with suppress(MlflowException):
                    store.client.set_tag(before, "nlt.stopped", "its node died; the run was begun again")
                    store.client.set_terminated(before, "KILLED")
            run_ids[index] = event.run_id
        emit(index, event)

    def fetch() -> None:
        with suppress(GetTimeoutError, RayError):
            for index, event in ray.get(mailbox.take.remote(), timeout=5):
                if index in pending.values():
                    show(index, event)

    asked = 0
    with stop_signals() as stop:
        while pending:
            try:
                if stop.asked and not asked:
                    asked = 1
                    for ref in pending:
                        ray.cancel(ref, force=False)  # Ctrl-C in its process: it stops after the epoch
                done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=POLL_S)
                fetch()
                for ref in done:
                    index = pending.pop(ref)
                    emit(index, _end(ref, run_ids.get(index, "")))
            except KeyboardInterrupt:  # the second
                for ref in pending:
                    ray.cancel(ref, force=True)


def _end(ref: "ray.ObjectRef[Finished | Failed]", run_id: str) -> Finished | Failed:
    try:
        return ray.get(ref)
    except TaskCancelledError:
        return Failed("interrupted", f"interrupted; run {run_id} is marked KILLED" if run_id else "interrupted", run_id)
    except RayError as error:
        text = str(error).strip()
        return Failed("died", f"Ray gave it up ({type(error).__name__}): {text}", run_id)


class _Mailbox:
    """What runs tell of themselves, until it is fetched."""

    def __init__(self) -> None:
        self._events: list[tuple[int, Event]] = []

    def put(self, index: int, event: Event) -> None:
        self._events.append((index, event))

    def take(self) -> list[tuple[int, Event]]:
        events, self._events = self._events, []
        return events


def _run(
    index: int,
    job: Job,
    options: Options,
    dataset: Dataset,
    mailbox: Any,
    others: frozenset[str],
    environment: dict[str, str],
    launched_by: str,
) -> Finished | Failed:
    """Run a job on the node where Ray has put it; after the death of a node go on with what that has left."""
    if version("nlt") != launched_by:
        return Failed(
            "bad input", f"node {os.uname().nodename} has nlt {version('nlt')}, the launching one {launched_by}: align."
        )
    os.environ.update(environment)
    torch.set_num_threads(1)
    options = replace(options, threads=1)

    def emit(event: Event) -> None:
        if not isinstance(event, Finished | Failed):  # these are returned
            mailbox.put.remote(index, event)

    try:
        store = options.open_store()
        left = _left_behind(job, store, others)
        if left is not None:
            sync(store)  # had it been finished and not delivered, it would be trained twice
            left = _left_behind(job, store, others)
        if (found := finished_before(store, job, dataset.digest)) and found.run_id not in others:
            return found
    except (BadInput, MlflowException) as error:
        return Failed("bad input", f"node {os.uname().nodename}: {error}")
    if job.unfinished and left is None:
        emit(Noted(f"{job.spec.name}, seed {job.seed}: its checkpoint is not on this node, so it begins again."))
    return run_job(replace(job, unfinished=left), options, emit, store=store, dataset=dataset, patience_s=LET_GO_S)


def _left_behind(job: Job, store: Store, others: frozenset[str]) -> Unfinished | None:
    """Return the run that this job has begun on a node that is gone, or before this launch."""
    wanted = key_of(job.spec, job.seed)
    for path in folders(store.runs):
        if path.name in others:
            continue
        # Not opened: a process may outlive its node for some seconds, and holds the lock until then.
        with suppress(OSError, ValueError, KeyError, BadInput):
            facts = json.loads((path / "run.json").read_text())
            if facts["store"] == store.name and key_of(check(facts["spec"], str(path)), facts["seed"]) == wanted:
                return Unfinished(path, path.name, job.spec, job.seed, 0, job.spec.steps())
    return None
