"""Any method of an experiment file as a detector: trained on the data that are judged, its scores rank the labels.

N samples. Nothing is tracked here: the run that `nlt detect` logs holds what was found.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from nlt import checkpoint
from nlt.checkpoint import State
from nlt.data import Dataset, Npz, Samples
from nlt.data.labelled import Labelled
from nlt.detect import LabelErrors, ranked_by
from nlt.events import Progress, silent
from nlt.forget_rate import MOST
from nlt.methods.o2u import O2U
from nlt.models import CNN9
from nlt.noise import NoNoise
from nlt.optim import Constant
from nlt.prepare import environment, fingerprint, prepare
from nlt.run import EpochRecord, Prepared, Run
from nlt.settings import BadInput
from nlt.spec import Experiment
from nlt.train import Diverged, Stage

SIDE = 32  # pixels, CIFAR's, for which O2U-Net's network was made
GLANCE = 125  # images on which a run measures its accuracy, against the given labels: of no use here
PAPERS_N = 20_000  # images of CIFAR-4, for which the paper sets O2U-Net's epochs
REPORTED = ("scores_N", "keep_N", "labels_N")


def o2u(N: int, rate: float) -> Experiment:
    """Return O2U-Net with settings for N images: the paper's first two stages, and one epoch of the third.

    Above the paper's 20,000 images the first stage sees as many images as there (at least 5 epochs) and the second has
    one round of the learning rate instead of two. CNN9 has a quarter of its width: the paper's takes 12 times as long.
    """
    defaults = O2U(forget_rate=0)
    pretraining, cyclical = defaults.pretraining, defaults.cyclical
    if N > PAPERS_N:
        epochs = max(5, round(pretraining.epochs * PAPERS_N / N))
        pretraining = pretraining.model_copy(update={"epochs": epochs})
        cyclical = cyclical.model_copy(update={"epochs": cyclical.epochs // 2})
    method = O2U(
        forget_rate=min(rate, MOST),
        pretraining=pretraining,
        cyclical=cyclical,
        training=Stage(epochs=1, schedule=Constant(lr=0.01)),
    )
    return Experiment(
        name="o2u", about="nlt detect --detector o2u", data=Npz(path="."), model=CNN9(width=0.25), method=method
    )


def check_reports(spec: Experiment, name: str) -> None:
    """Raise BadInput if the method gives samples no scores."""
    if not getattr(spec.method, "reports_scores", True):
        raise BadInput(
            f"--detector {name}: the method {spec.method.name} gives samples no scores: use one that does, o2u say."
        )


def judge_by_training(
    errors: LabelErrors,
    data: Labelled,
    detector: Experiment | Literal["o2u"],
    name: str,
    *,
    side: int | None,
    data_root: Path,
    device: torch.device | str,
    seed: int,
    progress: Progress = silent,
    note: Callable[[str], None] = lambda sentence: None,
) -> LabelErrors:
    """Return the findings as a trained method ranks them, with its decisions and labels; the rate stays.

    Args:
        errors: of the default detector; O2U-Net removes the share that its rate says.
        data: images and their labels; the method never sees clean ones.
        detector: an experiment, of which data and noise are left aside, or `o2u`.
        name: of the detector, for error messages.
        side: in pixels, of the squares that are trained on; by default `SIDE`, of an npz its images' if that is less.
        data_root: folder of caches; training that was interrupted goes on from there, and what was trained is kept.
        device: where the network runs.
        seed: of the training.
        progress: told what is done, how many are, of how many.
        note: told what went wrong with the cache.

    Raises:
        BadInput: the method gives no scores, cannot take these images, or diverges.
    """
    spec = o2u(len(data), errors.rate.point) if detector == "o2u" else detector
    check_reports(spec, name)
    spec = spec.model_copy(update={"data": Npz(path="."), "noise": NoNoise()})
    if side is None:
        side = SIDE if data.pixels_NCHW is None else min(SIDE, *data.pixels_NCHW.shape[2:])
    try:
        prepared = prepare(spec, seed, str(device), data_root, _dataset(data, side))
        reported = _train(spec, prepared, data_root / "trained", progress, note)
    except BadInput as error:
        raise BadInput(f"--detector {name}: {error}") from error
    except Diverged as error:
        raise BadInput(f"--detector {name}: {error}: lower the learning rate of its stages.") from error
    if "scores_N" not in reported:
        raise BadInput(f"--detector {name}: the method {spec.method.name} gave samples no scores: use another one.")
    scores_N, keep_N, labels_N = (reported.get(key) for key in REPORTED)
    assert scores_N is not None
    return ranked_by(
        errors,
        spec.method.name,
        scores_N.double().numpy(),
        None if keep_N is None else ~keep_N.numpy(),
        None if labels_N is None else labels_N.numpy(),
    )


def _dataset(data: Labelled, side: int) -> Dataset:
    """The samples with their given labels; what a run is measured on is of no use here, and a few of them do."""
    images_NCHW = torch.from_numpy(data.read(0, len(data), side))
    train = Samples(images_NCHW, torch.arange(len(data)), torch.from_numpy(data.labels_N), None)
    told = json.dumps([side, list(data.classes), data.labels_N.tolist(), [content.hex() for content in data.sums]])
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    return Dataset(data.source.name, data.classes, train, train.take(torch.arange(min(GLANCE, len(data)))), digest)


def _train(
    spec: Experiment, prepared: Prepared, cache: Path, progress: Progress, note: Callable[[str], None]
) -> Mapping[str, Tensor]:
    """Train, or go on, or take what was trained before; the last scores, mask and labels that the method reported."""
    known = [fingerprint(spec, prepared), environment(prepared), prepared.seed]
    folder = cache / hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]
    keeping = _make(folder, note)
    step, saved = (checkpoint.latest(folder, note) if keeping else None) or (0, None)
    reported: dict[str, Tensor] = {} if saved is None else saved["reported"]
    what, steps = f"training {spec.method.title}", prepared.steps
    progress(what, step, steps)
    if saved is not None and step == steps:
        return reported

    def on_epoch(epoch: EpochRecord) -> None:
        values = {key: getattr(epoch, key) for key in REPORTED}
        reported.update({key: value for key, value in values.items() if value is not None})
        progress(what, epoch.step, steps)

    def after_epoch(step: int, state: Callable[[], State]) -> None:
        nonlocal keeping
        if not keeping:
            return
        try:
            checkpoint.save(folder, step, {"reported": reported} | ({"run": state()} if step < steps else {}))
            if step == steps:  # nobody goes on from the states before
                checkpoint.file(folder, step - 1).unlink(missing_ok=True)
        except OSError as error:
            note(f"training is not kept in {folder} ({error.strerror or error}): an interrupt would lose it.")
            keeping = False

    run = Run(prepared, on_epoch, after_epoch, resume=None if saved is None else saved["run"])
    spec.method.train(run)
    return reported


def _make(folder: Path, note: Callable[[str], None]) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        note(f"training is not kept in {folder} ({error.strerror or error}): an interrupt would lose it.")
        return False
    return True
