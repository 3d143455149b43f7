"""From a spec to a tracked run, and on again after an interruption.

Everything that can be wrong with the input is found before the run is created.
"""

import errno
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from nlt import checkpoint
from nlt.checkpoint import State
from nlt.data import Dataset
from nlt.hardware import find_compile, hold_memory
from nlt.prepare import Prepared, environment, fingerprint, prepare
from nlt.reading import check
from nlt.run import EpochRecord, Run
from nlt.settings import BadInput
from nlt.spec import Experiment
from nlt.tracking import (
    Busy,
    RunFolder,
    Store,
    Tracker,
    find_prefix,
    leave_prefix,
    open_store,
    opened,
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


Start = Callable[[str, Prepared, int], None]
"""Called with the run's id, what it is about to train on, and how many epochs it has behind it."""


def launch(
    spec: Experiment,
    *,
    seed: int = 0,
    device: str = "auto",
    data_root: str | Path = "data",
    tracking_uri: str | None = None,
    log_model: bool = False,
    sweep: str | None = None,
    store: Store | None = None,
    dataset: Dataset | None = None,
    leave: Collection[str] = (),
    warn: Callable[[str], None] | None = None,
    on_start: Start = lambda run_id, prepared, done: None,
    on_epoch: Callable[[EpochRecord], None] = lambda epoch: None,
) -> Result:
    """Run one experiment with one seed and track it in MLflow.

    Args:
        spec: from `nlt.load`.
        seed: of the initial weights, dropout and the order of the samples, at least 0.
        device: `auto`, `cpu`, `cuda` or `cuda:i`.
        data_root: folder of downloaded data sets and caches.
        tracking_uri: of the MLflow store; by default MLFLOW_TRACKING_URI, else SQLite under `mlruns/`.
        log_model: log an MLflow model with signature besides the weights.
        sweep: what runs that belong together share as their tag `nlt.sweep`; by default the spec's name.
        store: an open one, instead of `tracking_uri`.
        dataset: what `spec.data` names, loaded already.
        leave: of `spec.prefixes(seed)`, those to be left for other runs, which begin there; until
            `nlt.tracking.forget_prefixes`.
        warn: if given, a server that is away when the run begins is waited for, and this is told.
        on_start: called with the run's id, what it is about to train on, and how many epochs another run has left it.
        on_epoch: called after each epoch.

    Raises:
        BadInput: the spec, the data, the device or the store cannot be used; no run was created.
        RunFailed: a loss was not finite, or memory or disk did not suffice; the run is marked FAILED.
        Interrupted: Ctrl-C or SIGTERM; the run is marked KILLED and `resume` goes on with it.
    """
    prepared = prepare(spec, seed, device, data_root, dataset)
    store = store or open_store(tracking_uri)
    launched = {
        "seed": seed,
        "data_root": str(Path(os.path.expanduser(data_root)).absolute()),
        "log_model": log_model,
        "same": fingerprint(spec, prepared),
        "alike": environment(prepared),
    }
    prefix = find_prefix(store.runs, spec.prefixes(seed), launched)
    folder = start_run(store, spec, prepared.facts, sweep or spec.name, launched, warn, prefix)
    saved = None if prefix is None else prefix.saved
    return _track(spec, prepared, store, folder, saved, leave, on_start, on_epoch)


def resume(
    unfinished: Unfinished,
    *,
    device: str | None = None,
    data_root: str | Path | None = None,
    tracking_uri: str | None = None,
    store: Store | None = None,
    dataset: Dataset | None = None,
    patience_s: float = 0.0,
    leave: Collection[str] = (),
    warn: Callable[[str], None] = lambda sentence: None,
    on_start: Start = lambda run_id, prepared, done: None,
    on_epoch: Callable[[EpochRecord], None] = lambda epoch: None,
) -> Result:
    """Go on with an interrupted run, in the same MLflow run, at the epoch after its last checkpoint.

    On a CPU the finished run equals, number by number, one that was never interrupted; on a GPU as far as its kernels
    are deterministic, which `deterministic` in the spec sees to.

    Args:
        unfinished: from `unfinished_runs`.
        device: by default the one it was launched on.
        data_root: by default the one it was launched with.
        tracking_uri: of the MLflow store it was launched in.
        store: the same, open already, instead.
        dataset: what `spec.data` names, loaded already.
        patience_s: how long to wait for another process to let go of the run.
        leave: as `launch`.
        warn: called with a sentence for each thing that may change its numbers: version, commit, device.
        on_start: called with the run's id, what it goes on training on, and how many epochs are behind it.
        on_epoch: called after each epoch, also one that is repeated because it was not in a checkpoint.

    Raises:
        BadInput: the data are no longer the same, or the folder, the device or the store cannot be used.
        RunFailed: as `launch`.
        Interrupted: as `launch`.
    """
    store = store or open_store(tracking_uri)
    try:
        folder = RunFolder(unfinished.path, patience_s=patience_s)
    except Busy:
        raise BadInput(f"run {unfinished.run_id} is in progress in another process.") from None
    try:
        known = folder.facts
        if folder.is_over():
            raise BadInput("it is over; `nlt sync` delivers what is left of it.")
        wanted = device or known["alike"]["device"]
        prepared = prepare(unfinished.spec, unfinished.seed, wanted, data_root or known["data_root"], dataset)
        for what, now in fingerprint(unfinished.spec, prepared).items():
            if now != known["same"][what]:
                raise BadInput(
                    f"its {what} is no longer the one it was launched with ({known['same'][what][:12]}, now "
                    f"{now[:12]}); restore it, or delete {folder.path} to give the run up."
                )
        for what, now in environment(prepared).items():
            if what == "number of threads":  # restored below
                continue
            if now != (then := known["alike"].get(what, now)):
                warn(f"{what} was {then} and is {now} now, which may change numbers.")
        saved = checkpoint.latest(folder.path, warn)
    except BadInput as error:
        folder.close()
        raise BadInput(f"run {unfinished.run_id}: {error}") from None
    except BaseException:
        folder.close()
        raise
    with _as_many_threads(known["alike"].get("number of threads")):
        return _track(unfinished.spec, prepared, store, folder, saved, leave, on_start, on_epoch)


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


def _track(
    spec: Experiment,
    prepared: Prepared,
    store: Store,
    folder: RunFolder,
    saved: tuple[int, State] | None,
    leave: Collection[str],
    on_start: Start,
    on_epoch: Callable[[EpochRecord], None],
) -> Result:
    facts = prepared.facts
    hold_memory()
    # What was trained in part elsewhere, or by other code, is of no use to others.
    alike = folder.facts["alike"] == environment(prepared)
    leaving = {step: key for step, key in spec.prefixes(facts.seed).items() if alike and key in leave}
    with stop_signals() as stop, _determinism(spec.deterministic):
        tracker, writer = Tracker(store, folder, facts), checkpoint.Writer(folder.path)

        def tell(epoch: EpochRecord) -> None:
            writer.wait()  # written beside this epoch; a run that is killed repeats no more than if it had waited then
            tracker.log_epoch(epoch)
            on_epoch(epoch)

        def after_epoch(step: int, state: Callable[[], State]) -> None:
            last = step == prepared.steps or stop.asked
            if step % spec.checkpoint_every == 0 or last or step in leaving:
                writer.save(step, state())
            if last or step in leaving:
                writer.wait()
            if step in leaving:
                leave_prefix(folder, step, leaving[step])
            if stop.asked and step < prepared.steps:
                raise KeyboardInterrupt

        try:
            try:
                if saved or tracker.epochs or folder.has_ended():
                    tracker.log_resumption()
                on_start(folder.run_id, prepared, saved[0] if saved else 0)
                run = Run(
                    train=facts.train,
                    val=prepared.val,
                    test=facts.test,
                    K=len(facts.dataset.classes),
                    model=spec.model,
                    optimizer=spec.optimizer,
                    seed=facts.seed,
                    device=facts.device,
                    precision=facts.precision,
                    evaluate_before=spec.evaluate == "before",
                    on_epoch=tell,
                    after_epoch=after_epoch,
                    augmentation=spec.augmentation,
                    compiled=find_compile(spec.compile, facts.device, spec.optimizer_steps(len(facts.train)))[0],
                    resume=saved[1] if saved else None,
                    steps=prepared.steps,
                )
                with writer:
                    spec.method.train(run)
                if run.step != prepared.steps:  # a checkpoint of a stage that the method no longer has
                    never = "" if run.pending is None else f": it has no stage {run.pending['stage']!r} to go on with"
                    raise RuntimeError(f"the method ran {run.step} of {prepared.steps} epochs{never}")
                final = tracker.finish(run, folder.facts["log_model"])
            except KeyboardInterrupt:
                tracker.stop("KILLED", "interrupted", over=False)
                raise
            except BaseException as error:
                why = _hint(error, len(tracker.epochs) + 1)
                tracker.stop("FAILED", why or f"{type(error).__name__}: {error}", over=isinstance(error, Diverged))
                if why:
                    raise RunFailed(f"run {folder.run_id} ({spec.name}, seed {facts.seed}) failed: {why}") from error
                raise
        except BaseException as error:
            full = isinstance(error.__cause__, OSError)  # of the disk that MLflow's database is on, perhaps
            undelivered = tracker.close(FULL_DISK_PATIENCE_S) if full else tracker.close()
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(folder.run_id, len(tracker.epochs), prepared.steps, undelivered) from None
            if isinstance(error, RunFailed) and undelivered:
                raise RunFailed(f"{error} {undelivered}") from error
            raise
        undelivered = tracker.close()
    experiment = folder.facts["experiment_id"]
    return Result(folder.run_id, experiment, spec.name, facts.seed, final, tracker.epochs, undelivered, stop.asked)


def _hint(error: BaseException, step: int) -> str | None:
    """Say what went wrong and what may help, for the errors a user can do something about."""
    if isinstance(error, Diverged):
        return (
            f"in epoch {step} {error}: lower the learning rate of the stage's schedule, raise its batch_size, or set "
            '"precision": "fp32".'
        )
    # On a CPU it is a plain RuntimeError.
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error):
        return (
            f"the device ran out of memory in epoch {step}: lower batch_size or model.width, or set "
            '"precision": "bf16".'
        )
    if isinstance(error, OSError):  # the data are in memory: it is what the run writes
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return (
            f"the disk {'is full' if full else 'fails'} ({error.strerror}): {'make room' if full else 'mend it'}, then "
            "`nlt resume` goes on after the last epoch that was saved."
        )
    return None


class Stop:
    """Whether Ctrl-C or SIGTERM has come."""

    asked = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Let the first Ctrl-C or SIGTERM (schedulers, `docker stop`) stop a run after its epoch, the second at once."""
    stop = Stop()

    def ask(signum: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        os.write(2, b"\nstopping after this epoch; Ctrl-C again stops at once\n")  # print may be under way

    if threading.current_thread() is not threading.main_thread():  # signals can be set there only
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _as_many_threads(wanted: str | None) -> Iterator[None]:
    """Use as many CPU threads as the run began with: on them depends in which order numbers are added up."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(wanted or before))
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
