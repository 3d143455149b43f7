"""From a spec to a tracked run. Everything that can be wrong with the input is found before the run is created."""

import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from nlt.data import Samples, hold_out
from nlt.noise import corrupt, empirical_matrix
from nlt.run import Epoch, Run
from nlt.settings import BadInput
from nlt.spec import Experiment
from nlt.tracking import Facts, Store, Tracker, open_store
from nlt.train import Diverged, find_device, find_precision


@dataclass(frozen=True)
class Result:
    """A finished run."""

    run_id: str
    experiment_id: str
    name: str
    seed: int
    metrics: dict[str, float]
    """The final metrics, by their MLflow names."""
    epochs: list[Epoch]
    """All epochs, with losses, masks and scores."""


class RunFailed(Exception):
    """A run stopped on its own account; it is marked FAILED in MLflow."""


@dataclass(frozen=True)
class Prepared:
    """A spec's data with its noise drawn, split and ready for a run."""

    facts: Facts
    val: Samples | None
    steps: int
    """Epochs of all stages together."""


def launch(
    spec: Experiment,
    *,
    seed: int = 0,
    device: str = "auto",
    data_root: str | Path = "data",
    tracking_uri: str | None = None,
    log_model: bool = False,
    sweep: str | None = None,
    on_start: Callable[[str, Prepared], None] = lambda run_id, prepared: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Result:
    """Run one experiment with one seed and track it in MLflow.

    Args:
        spec: from `nlt.load`.
        seed: of the initial weights, dropout and the order of the samples, at least 0.
        device: `auto`, `cpu`, `cuda` or `cuda:i`.
        data_root: folder of downloaded data sets and caches.
        tracking_uri: of the MLflow store; by default MLFLOW_TRACKING_URI, else SQLite under `mlruns/`.
        log_model: log an MLflow model with signature besides the weights.
        sweep: what runs that belong together share as their tag `nlt.sweep`; by default one from `new_sweep`.
        on_start: called with the run's id and what it is about to train on.
        on_epoch: called after each epoch.

    Raises:
        BadInput: the spec, the data, the device or the store cannot be used; no run was created.
        RunFailed: a loss was not finite or the memory did not suffice; the run is marked FAILED.
    """
    prepared = prepare(spec, seed, device, data_root)
    return _track(spec, prepared, open_store(tracking_uri), log_model, sweep or new_sweep(), on_start, on_epoch)


def new_sweep() -> str:
    """Return a name for runs that are launched together: the time, and four digits against coincidence."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {secrets.token_hex(2)}"


def prepare(spec: Experiment, seed: int, device: str, data_root: str | Path) -> Prepared:
    """Load the data, draw the noise, split off validation samples, and try the network's shapes.

    Raises:
        BadInput: any of it cannot be done.
    """
    if not 0 <= seed < 2**63:
        raise BadInput(f"--seed {seed}: a seed is a whole number from 0 to 2^63 - 1.")
    on = find_device(device)
    dataset = spec.data.load(Path(data_root).expanduser())
    K = len(dataset.classes)
    T_KK = spec.noise.matrix(dataset.classes)
    train = dataset.train
    if spec.noise.name != "none":
        if train.clean_N is not None and bool((train.clean_N != train.labels_N).any()):
            raise BadInput(
                "noise: the data set brings wrong labels of its own (train_clean_labels differ from train_labels): "
                'use {"name": "none"} with it.'
            )
        # The labels that are corrupted are taken for true ones.
        train = Samples(
            images_NCHW=train.images_NCHW,
            ids_N=train.ids_N,
            labels_N=corrupt(train.labels_N, T_KK, spec.noise.seed),
            clean_N=train.labels_N,
            files=train.files,
        )
    empirical_T_KK = None if train.clean_N is None else empirical_matrix(train.clean_N, train.labels_N, K)
    train, val = hold_out(train, spec.data.val_fraction, spec.data.seed)
    _, C, H, W = train.images_NCHW.shape
    with torch.device("meta"):  # shapes without arithmetic: a network that cannot take these images fails here
        spec.model.build(C, H, W, K).eval()(torch.empty(2, C, H, W))
    facts = Facts(seed, on, find_precision(spec.precision, on), dataset, train, T_KK, empirical_T_KK)
    return Prepared(facts, val, sum(stage.epochs for stage in spec.stages().values()))


def _track(
    spec: Experiment,
    prepared: Prepared,
    store: Store,
    log_model: bool,
    sweep: str,
    on_start: Callable[[str, Prepared], None],
    on_epoch: Callable[[Epoch], None],
) -> Result:
    facts = prepared.facts
    with _terminate_as_interrupt():
        tracker = Tracker(store, spec, facts, sweep)
        try:
            on_start(tracker.run_id, prepared)

            def tell(epoch: Epoch) -> None:
                tracker.log_epoch(epoch)
                on_epoch(epoch)

            run = Run(
                train=facts.train,
                val=prepared.val,
                test=facts.dataset.test,
                K=len(facts.dataset.classes),
                model=spec.model,
                optimizer=spec.optimizer,
                seed=facts.seed,
                device=facts.device,
                precision=facts.precision,
                evaluate_before=spec.evaluate == "before",
                on_epoch=tell,
                steps=prepared.steps,
            )
            spec.method.train(run)
            final = tracker.finish(run.net, log_model)
        except KeyboardInterrupt:
            tracker.stop("KILLED", "interrupted")
            raise
        except BaseException as error:
            why = _hint(error, len(run.history) + 1 if "run" in locals() else 0)
            tracker.stop("FAILED", why or f"{type(error).__name__}: {error}")
            if why:
                raise RunFailed(f"run {tracker.run_id} ({spec.name}, seed {facts.seed}) failed: {why}") from error
            raise
    return Result(tracker.run_id, tracker.experiment_id, spec.name, facts.seed, final, run.history)


def _hint(error: BaseException, step: int) -> str | None:
    """Say what went wrong and what may help, for the errors a user can do something about."""
    if isinstance(error, Diverged):
        return (
            f"in epoch {step} {error}: lower the learning rate of the stage's schedule, raise its batch_size, or set "
            '"precision": "fp32".'
        )
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"the device ran out of memory in epoch {step}: lower batch_size or model.width, or set "
            '"precision": "bf16".'
        )
    return None


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM (schedulers, `docker stop`) end a run as Ctrl-C does, so that it is marked KILLED."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # signals can be set there only
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
