"""From a spec to a tracked run, and on again after an interruption.

Everything that can be wrong with the input is found before the run is created.
"""

import errno
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mlflow.exceptions import MlflowException

from nlt import checkpoint
from nlt.checkpoint import State
from nlt.data import Dataset
from nlt.hardware import hold_memory
from nlt.prepare import environment, fingerprint, prepare
from nlt.reading import check
from nlt.run import EpochRecord, Prepared, Run
from nlt.settings import BadInput
from nlt.spec import Experiment
from nlt.stopping import Stop, stop_signals
from nlt.tracking import (
    PATIENCE_S,
    Busy,
    RunFolder,
    Store,
    Tracker,
    find_prefix,
    leave_prefix,
    open_store,
    opened,
    reopen_store,
    start_run,
)
from nlt.train import Diverged

FULL_DISK_PATIENCE_S = 3.0


@dataclass(frozen=True)
class Result:
    """A finished run."""

    run_id: str
    experiment_id: str
    name: str
    seed: int
    metrics: dict[str, float]
    """The final metrics, by their MLflow names."""
    epochs: list[EpochRecord]
    """All epochs, with losses, masks and scores."""
    undelivered: str
    """A sentence on what has not reached MLflow yet, or ""."""
    stop_asked: bool
    """Whether Ctrl-C or SIGTERM came when all epochs were done."""


class RunFailed(Exception):
    """A run stopped on its own account; it is marked FAILED in MLflow."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped a run; it is marked KILLED in MLflow and can go on."""

    def __init__(self, run_id: str, epochs: int, steps: int, undelivered: str):
        super().__init__(f"interrupted after {epochs} of {steps} epochs; run {run_id} is marked KILLED")
        self.run_id, self.undelivered = run_id, undelivered


@dataclass(frozen=True)
class Unfinished:
    """A run that was interrupted and can go on."""

    path: Path
    run_id: str
    spec: Experiment
    seed: int
    epochs: int
    steps: int
    """Epochs of all stages together."""


@dataclass(frozen=True)
class Options:
    """What `launch` and `resume` can be told of where and how; a whole sweep has one, and it travels to its workers."""

    device: str | None = None
    """`auto`, `cpu`, `cuda` or `cuda:i`; None: `auto`, or where an unfinished run began."""
    data_root: str | Path | None = None
    """Folder of downloaded data sets and caches; None: `data`, or as an unfinished run was launched."""
    tracking_uri: str | None = None
    """Of the MLflow store; None: MLFLOW_TRACKING_URI, else SQLite under `mlruns/`."""
    runs: Path | None = None
    """`Store.runs` of a store that another process has opened already; None: the store's own."""
    sweep: str | None = None
    """What runs that belong together share as their tag `nlt.sweep`; None: the spec's name."""
    log_model: bool = False
    """Log an MLflow model with signature besides the weights."""
    leave: frozenset[str] = frozenset()
    """Hashes of `Experiment.prefix` that several runs have in common: the first to train these stages leaves them for
    the others, until `forget_prefixes`."""
    threads: int | None = None
    """At most so many CPU threads, where several runs share the machine; a resumed run takes as many as it began with.
    """

    def open_store(self) -> Store:
        """Open the store.

        Raises:
            BadInput: it cannot be used.
        """
        if self.runs is not None and self.tracking_uri is not None:
            return reopen_store(self.tracking_uri, self.runs)
        return open_store(self.tracking_uri)


@dataclass(frozen=True)
class Listener:
    """Who is told what happens to a run."""

    warn: Callable[[str], None] = lambda sentence: None
    """A sentence for each thing that may change a run's numbers, or that makes it wait."""
    on_start: Callable[[str, Prepared, int], None] = lambda run_id, prepared, done: None
    """The run's id, what it is about to train on, and how many epochs it has behind it."""
    on_epoch: Callable[[EpochRecord], None] = lambda epoch: None
    """Each epoch, also one that is repeated because it was not in a checkpoint."""


def launch(
    spec: Experiment,
    *,
    seed: int = 0,
    options: Options = Options(),
    listener: Listener = Listener(),
    store: Store | None = None,
    dataset: Dataset | None = None,
    patient: bool = False,
) -> Result:
    """Run one experiment with one seed and track it in MLflow.

    Args:
        spec: from `nlt.load`.
        seed: of the initial weights, dropout and the order of the samples, at least 0.
        options: where and how.
        listener: told what happens.
        store: an open one, instead of the one that `options` names.
        dataset: what `spec.data` names, loaded already.
        patient: whether a server that is away when the run begins is waited for.

    Raises:
        BadInput: the spec, the data, the device or the store cannot be used; no run was created.
        RunFailed: a loss was not finite, or memory or disk did not suffice; the run is marked FAILED.
        Interrupted: Ctrl-C or SIGTERM; the run is marked KILLED and `resume` goes on with it.
    """
    data_root = options.data_root or "data"
    prepared = prepare(spec, seed, options.device or "auto", data_root, dataset)
    store = store or options.open_store()
    launched = {
        "seed": seed,
        "data_root": str(Path(os.path.expanduser(data_root)).absolute()),
        "log_model": options.log_model,
        "same": fingerprint(spec, prepared),  # without which it cannot go on
        "alike": environment(prepared),  # without which it may end with other numbers
    }
    prefix = find_prefix(store.runs, spec.prefix(seed), launched)
    warn = listener.warn if patient else None
    folder = start_run(store, spec, prepared, options.sweep or spec.name, launched, warn, prefix)
    return _train(spec, prepared, store, folder, None if prefix is None else prefix.saved, options.leave, listener)


def resume(
    unfinished: Unfinished,
    *,
    options: Options = Options(),
    listener: Listener = Listener(),
    store: Store | None = None,
    dataset: Dataset | None = None,
    patience_s: float = 0.0,
) -> Result:
    """Go on with an interrupted run, in the same MLflow run, at the epoch after its last checkpoint.

    On a CPU the finished run equals, number by number, one that was never interrupted; on a GPU as far as its kernels
    are deterministic, which `deterministic` in the spec sees to.

    Args:
        unfinished: from `unfinished_runs`.
        options: where; the sweep and whether to log a model stay as the run was launched.
        listener: told what happens, and what may change the numbers: version, commit, device.
        store: an open one, instead of the one that `options` names.
        dataset: what `spec.data` names, loaded already.
        patience_s: how long to wait for another process to let go of the run.

    Raises:
        BadInput: the data are no longer the same, or the folder, the device or the store cannot be used.
        RunFailed: as `launch`.
        Interrupted: as `launch`.
    """
    store = store or options.open_store()
    try:
        folder = RunFolder(unfinished.path, patience_s=patience_s)
    except Busy:
        raise BadInput(f"run {unfinished.run_id} is in progress in another process.") from None
    try:
        prepared, saved = _prepare_again(unfinished, folder, options, listener.warn, dataset)
    except BadInput as error:
        folder.close()
        raise BadInput(f"run {unfinished.run_id}: {error}") from None
    except BaseException:
        folder.close()
        raise
    with _as_many_threads(_threads(folder.facts, options)):
        return _train(unfinished.spec, prepared, store, folder, saved, options.leave, listener)


def _prepare_again(
    unfinished: Unfinished, folder: RunFolder, options: Options, warn: Callable[[str], None], dataset: Dataset | None
) -> tuple[Prepared, tuple[int, State] | None]:
    """Return what an interrupted run was launched with, if it is there unchanged, and its last checkpoint."""
    known = folder.facts
    if folder.is_over():
        raise BadInput("it is over; `nlt sync` delivers what is left of it.")
    device, data_root = options.device or known["alike"]["device"], options.data_root or known["data_root"]
    prepared = prepare(unfinished.spec, unfinished.seed, device, data_root, dataset)
    for what, now in fingerprint(unfinished.spec, prepared).items():
        if now != (then := known["same"].get(what, now)):  # earlier runs noted no weights
            raise BadInput(
                f"its {what} is no longer the one it was launched with ({then[:12]}, now {now[:12]}); restore it, or "
                f"delete {folder.path} to give the run up."
            )
    for what, now in (environment(prepared) | {"number of threads": str(_threads(known, options))}).items():
        if now != (then := known["alike"].get(what, now)):
            warn(f"{what} was {then} and is {now} now, which may change numbers.")
    return prepared, checkpoint.latest(folder.path, warn)


def unfinished_runs(store: Store, warn: Callable[[str], None] = lambda sentence: None) -> list[Unfinished]:
    """Return the runs of this store that were interrupted and can go on, the oldest first.

    `warn` is called with a sentence for each folder that is damaged.
    """
    found = []
    for folder in opened(store.runs, warn):
        known = folder.facts
        if known["store"] != store.name or folder.is_over():
            continue
        try:
            spec = check(known["spec"], str(folder.path / "run.json"))
        except BadInput as error:
            warn(str(error))
            continue
        done = folder.epochs_journaled()
        found.append(Unfinished(folder.path, folder.run_id, spec, known["seed"], done, spec.steps()))
    return found


def was_deleted(store: Store, run_id: str) -> bool:
    """Return whether MLflow says that a run was deleted; of a server that is away nobody knows."""
    try:
        return bool(store.client.get_run(run_id).info.lifecycle_stage == "deleted")
    except MlflowException as error:
        return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")


class _Keeper:
    """Keeps what a run tells: its epochs in the record, its state in checkpoints, its first stages for other runs."""

    def __init__(self, spec: Experiment, tracker: Tracker, folder: RunFolder, prefix: tuple[int, str] | None):
        self._spec, self._tracker, self._folder, self._prefix = spec, tracker, folder, prefix
        self.writer = checkpoint.Writer(folder.path)

    def log(self, epoch: EpochRecord) -> None:
        """Log an epoch."""
        self.writer.wait()  # written beside this epoch; a run that is killed repeats no more than if it had waited then
        self._tracker.log_epoch(epoch)

    def save(self, step: int, state: Callable[[], State], last: bool, whole: bool) -> None:
        """Save the state after `step` epochs where the spec wants it; `last`: in any case, and before going on.

        `whole`: no stage has ended early, so that the step says which stage it is of.
        """
        leaving = self._prefix is not None and step == self._prefix[0] and whole
        if step % self._spec.checkpoint_every == 0 or last or leaving:
            self.writer.save(step, state())
        if last or leaving:
            self.writer.wait()
        if self._prefix is not None and leaving:
            leave_prefix(self._folder, *self._prefix)


def _train(
    spec: Experiment,
    prepared: Prepared,
    store: Store,
    folder: RunFolder,
    saved: tuple[int, State] | None,
    leave: Collection[str],
    listener: Listener,
) -> Result:
    hold_memory()
    prefix = spec.prefix(prepared.seed)
    # What was trained in part elsewhere, or by other code, is of no use to others.
    if prefix is not None and (prefix[1] not in leave or folder.facts["alike"] != environment(prepared)):
        prefix = None
    with stop_signals() as stop, _determinism(spec.deterministic):
        tracker = Tracker(store, folder, prepared)
        keeper = _Keeper(spec, tracker, folder, prefix)

        def on_epoch(epoch: EpochRecord) -> None:
            keeper.log(epoch)
            listener.on_epoch(epoch)

        def after_epoch(step: int, state: Callable[[], State]) -> None:
            over = step == run.steps
            keeper.save(step, state, last=over or stop.asked, whole=not run.skipped)
            if stop.asked and not over:
                raise KeyboardInterrupt

        with _ending(tracker, f"run {folder.run_id} ({spec.name}, seed {prepared.seed})", prepared.steps, stop) as end:
            if saved or tracker.epochs or folder.has_ended():
                tracker.log_resumption()
            listener.on_start(folder.run_id, prepared, saved[0] if saved else 0)
            run = Run(prepared, on_epoch, after_epoch, resume=saved[1] if saved else None)
            with keeper.writer:
                spec.method.train(run)
            if run.step != run.steps:  # a checkpoint of a stage that the method no longer has
                never = "" if run.pending is None else f": it has no stage {run.pending['stage']!r} to go on with"
                raise RuntimeError(f"the method ran {run.step} of {run.steps} epochs{never}")
            metrics = tracker.finish(run, folder.facts["log_model"])
    experiment, seed = folder.facts["experiment_id"], prepared.seed
    return Result(folder.run_id, experiment, spec.name, seed, metrics, tracker.epochs, end.undelivered, stop.asked)


@dataclass
class _End:
    undelivered: str = ""
    """A sentence on what has not reached MLflow, once the run is over."""


@contextmanager
def _ending(tracker: Tracker, run: str, steps: int, stop: Stop) -> Iterator[_End]:
    """See a run to its end: what stops it is marked, KILLED or FAILED, what it holds is delivered, and it is let go.

    Args:
        tracker: the run's record.
        run: the run in words.
        steps: epochs of all stages together.
        stop: whether the user has asked to stop; asked again, nlt goes on with marking the run all the same.

    Raises:
        Interrupted: in place of KeyboardInterrupt.
        RunFailed: in place of an error that a user can do something about.
    """
    end, patience_s = _End(), PATIENCE_S
    try:
        try:
            yield end
        except KeyboardInterrupt:
            with stop.held():
                tracker.stop("KILLED", "interrupted", over=False)
            raise
        except BaseException as error:
            why = _hint(error, len(tracker.epochs) + 1)
            # Bad input that shows only after a while may have been good: weights that are gone come back.
            hopeless = isinstance(error, Diverged) or (isinstance(error, BadInput) and not tracker.epochs)
            with stop.held():
                tracker.stop("FAILED", why or f"{type(error).__name__}: {error}", over=hopeless)
            if why and isinstance(error, OSError):  # of the disk that MLflow's database is on, perhaps
                patience_s = FULL_DISK_PATIENCE_S
            if why:
                raise RunFailed(f"{run} failed: {why}") from error
            raise
    except BaseException as error:
        end.undelivered = tracker.close(patience_s)
        if isinstance(error, KeyboardInterrupt):
            steps = tracker.epochs[-1].steps if tracker.epochs else steps  # a stage may have ended early
            raise Interrupted(tracker.run_id, len(tracker.epochs), steps, end.undelivered) from None
        if isinstance(error, RunFailed) and end.undelivered:
            raise RunFailed(f"{error} {end.undelivered}") from error
        raise
    end.undelivered = tracker.close(patience_s)


def _hint(error: BaseException, step: int) -> str | None:
    """Say what went wrong and what may help, for the errors a user can do something about."""
    if isinstance(error, Diverged):
        return (
            f"in epoch {step} {error}: lower the learning rate of the stage's schedule, raise its batch_size, or set "
            '"precision": "fp32".'
        )
    # A plain RuntimeError on a CPU, and of CUDA's libraries on a GPU that others fill.
    words = ("allocate memory", "out of memory", "ALLOC_FAILED")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words):
        return (
            f"the device ran out of memory in epoch {step}: lower batch_size or model.width, or set "
            '"precision": "bf16".'
        )
    if isinstance(error, OSError):  # the data are in memory: it is what the run writes
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what, mend = ("is full", "make room") if full else ("fails", "mend it")
        return (
            f"the disk {what} ({error.strerror or error}): {mend}, then `nlt resume` goes on after the last epoch that "
            "was saved."
        )
    return None


def _threads(facts: dict[str, Any], options: Options) -> int:
    """Return how many CPU threads a run goes on with: as many as it began with, as on them depends in which order
    numbers are added up, but no more than its share of a machine that runs share."""
    began_with = int(facts["alike"].get("number of threads", torch.get_num_threads()))
    return min(began_with, options.threads or began_with)


@contextmanager
def _as_many_threads(wanted: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _determinism(wanted: bool) -> Iterator[None]:
    """Make torch take deterministic kernels only; what has none raises."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
