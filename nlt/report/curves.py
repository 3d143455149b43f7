"""What the figures draw, as numbers: means over seeds by epoch, losses of kept and removed samples, losses by truth.

N training samples, E epochs, D of them epochs that detect wrong labels, S seeds. Epochs count
from 1 through all stages.
"""

import tempfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.entities import Run as MlflowRun
from numpy.typing import NDArray

from nlt.events import Progress, silent
from nlt.report.collect import Cell
from nlt.tracking import Store

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
HISTOGRAM_EPOCHS = 5


@dataclass(frozen=True)
class Curve:
    """One quantity by epoch, over seeds."""

    steps_E: Ints
    mean_E: Floats
    sd_E: Floats | None
    """Sample standard deviation; None for one seed."""
    n: int
    """Seeds."""


@dataclass(frozen=True)
class Detection:
    """How a method told samples apart, over the epochs that detect."""

    labels: list[str]
    """The cells that did it alike: their masks are equal, seed by seed."""
    lr: Curve
    kept: Curve
    """Mean loss of the samples that the last mask keeps."""
    removed: Curve
    remaining: Curve | None
    """Wrong labels among the kept ones; None where nobody knows which are wrong."""
    drawn_rate: float | None
    """Wrong labels among all."""


@dataclass(frozen=True)
class Losses:
    """Per-sample losses of one run in a few epochs, by truth."""

    label: str
    seed: int
    steps: list[int]
    stages: list[int]
    """Which of the method's stages each epoch is of, from 0."""
    clean: list[Floats]
    """Epoch -> losses of the samples trained on whose labels are right."""
    wrong: list[Floats]


@dataclass(frozen=True)
class Accuracy:
    """Test accuracy by epoch."""

    label: str
    curve: Curve
    last_stage: int
    """First epoch of the last stage."""


@dataclass(frozen=True)
class Panel:
    """All that is drawn of one noise."""

    noise: str
    accuracies: list[Accuracy]
    detections: list[Detection]
    losses: list[Losses]


def curve(histories: Sequence[Mapping[int, float]]) -> Curve | None:
    """Return mean and deviation in the epochs that all seeds have, or None if there are none.

    Args:
        histories: for each of S seeds epoch -> value; empty ones are of runs that did not measure it.
    """
    histories = [history for history in histories if history]
    steps = sorted(set.intersection(*(set(history) for history in histories))) if histories else []
    if not steps:
        return None
    values_SE = np.array([[history[step] for step in steps] for history in histories])
    sd_E = values_SE.std(0, ddof=1) if len(histories) > 1 else None
    return Curve(np.array(steps), values_SE.mean(0), sd_E, len(histories))


def stage_starts(epochs: str) -> list[int]:
    """Return the first epoch of each stage, from the parameter `epochs`: 1, 16, 36 for 15+20+25."""
    lengths = [int(stage) for stage in epochs.split("+")]
    return [sum(lengths[:i]) + 1 for i in range(len(lengths))]


def mean_losses(losses_EN: Floats, keep_N: NDArray[np.bool_], steps_D: Ints) -> tuple[Floats, Floats]:
    """Return the mean loss of the kept and of the removed samples in the given epochs.

    NaN where an epoch has no loss of any such sample, as when nothing is removed.
    """
    losses_DN = losses_EN[steps_D - 1]
    kept_D, removed_D = (_row_means(losses_DN[:, chosen_N]) for chosen_N in (keep_N, ~keep_N))
    return kept_D, removed_D


def histogram_steps(epochs: int) -> list[int]:
    """Return a few epochs evenly spread from the first to the last."""
    return sorted({round(step) for step in np.linspace(1, epochs, HISTOGRAM_EPOCHS)})


def by_truth(
    losses_EN: Floats, given_N: Ints, clean_N: Ints, steps: Sequence[int]
) -> tuple[list[Floats], list[Floats]]:
    """Return the losses of truly right and of truly wrong labels in the given epochs; left-out samples are dropped."""
    wrong_N = given_N != clean_N
    rows = [(row_N, np.isfinite(row_N)) for row_N in (losses_EN[step - 1] for step in steps)]
    return [row[seen & ~wrong_N] for row, seen in rows], [row[seen & wrong_N] for row, seen in rows]


def panels(store: Store, cells: list[Cell], progress: Progress = silent) -> list[Panel]:
    """Read what the figures draw out of MLflow, a panel per noise; what a run did not leave is left out."""
    result, done = list[Panel](), 0
    with tempfile.TemporaryDirectory() as folder:
        for noise in sorted({cell.noise for cell in cells}):
            at = [cell for cell in cells if cell.noise == noise]
            accuracies = []
            detections: list[tuple[_Masks, Detection]] = []
            losses = []
            for cell in at:
                found = curve([_history(store, run, "test/accuracy") for run in cell.runs.values()])
                first = next(iter(cell.runs.values()))
                starts = stage_starts(first.data.params["epochs"])
                if found:
                    accuracies.append(Accuracy(cell.label, found, starts[-1]))
                files = {seed: _Files(store, run, Path(folder)) for seed, run in cell.runs.items()}
                _add_detection(store, cell, files, detections)
                seed = next(iter(cell.runs))
                if row := _losses(cell.label, seed, files[seed], starts):
                    losses.append(row)
                done += 1
                progress("reading runs for the figures", done, len(cells))
            result.append(Panel(noise, accuracies, [detection for _, detection in detections], losses))
    return result


_Masks = dict[int, NDArray[np.uint8]]
"""Seed -> packed masks, one row per detecting epoch."""


class _Files:
    """A run's arrays, fetched when they are asked for, by address: by its id MLflow looks the run up each time."""

    def __init__(self, store: Store, run: MlflowRun, folder: Path):
        self._store, self._uri = store.uri, str(run.info.artifact_uri)
        self._folder = folder / run.info.run_id
        listed = list_artifacts(artifact_uri=self._uri, tracking_uri=self._store)
        self._names = {PurePosixPath(file.path).name for file in listed}

    def read(self, name: str) -> dict[str, NDArray[np.generic]] | None:
        """Return the arrays of an npz file, or None if the run left none."""
        if name not in self._names:
            return None
        uri, folder = f"{self._uri.rstrip('/')}/{name}", str(self._folder)
        with np.load(download_artifacts(artifact_uri=uri, dst_path=folder, tracking_uri=self._store)) as arrays:
            return {key: arrays[key] for key in arrays.files}


def _add_detection(store: Store, cell: Cell, files: dict[int, _Files], known: list[tuple[_Masks, Detection]]) -> None:
    """Append what a cell detected, or its label to the cell that has detected the same."""
    kept, removed, masks = [], [], {}
    for seed, run_files in files.items():
        mask, losses = run_files.read("masks.npz"), run_files.read("losses.npz")
        if mask is None or losses is None:
            return
        steps_D = mask["steps"].astype(np.int64)
        keep_N = np.unpackbits(mask["keep"][-1].astype(np.uint8), count=len(mask["ids"])).astype(bool)
        kept_D, removed_D = mean_losses(losses["losses"].astype(np.float64), keep_N, steps_D)
        kept.append(dict(zip(steps_D.tolist(), kept_D.tolist(), strict=True)))
        removed.append(dict(zip(steps_D.tolist(), removed_D.tolist(), strict=True)))
        masks[seed] = mask["keep"].astype(np.uint8)
    for other, detection in known:
        if other.keys() == masks.keys() and all(np.array_equal(other[seed], masks[seed]) for seed in masks):
            detection.labels.append(cell.label)
            return
    runs = list(cell.runs.values())
    within = kept[0].keys()
    rates = [{s: v for s, v in _history(store, run, "optim/lr").items() if s in within} for run in runs]
    lr, mean_kept, mean_removed = curve(rates), curve(kept), curve(removed)
    assert mean_kept and mean_removed
    if lr is None:
        return
    remaining = curve([_history(store, run, "noise/remaining") for run in runs])
    drawn = runs[0].data.metrics.get("noise/drawn_rate")
    known.append((masks, Detection([cell.label], lr, mean_kept, mean_removed, remaining, drawn)))


def _losses(label: str, seed: int, files: _Files, starts: list[int]) -> Losses | None:
    labels = files.read("labels.npz")
    losses = files.read("losses.npz") if labels and "clean" in labels else None
    if labels is None or losses is None:
        return None
    losses_EN = losses["losses"].astype(np.float64)
    steps = histogram_steps(len(losses_EN))
    clean, wrong = by_truth(losses_EN, labels["given"].astype(np.int64), labels["clean"].astype(np.int64), steps)
    stages = [bisect_right(starts, step) - 1 for step in steps]
    return Losses(label, seed, steps, stages, clean, wrong)


def _history(store: Store, run: MlflowRun, key: str) -> dict[int, float]:
    """Return epoch -> value of a metric."""
    if key not in run.data.metrics:
        return {}
    return {point.step: point.value for point in store.client.get_metric_history(run.info.run_id, key)}


def _row_means(losses_DM: Floats) -> Floats:
    seen_DM = np.isfinite(losses_DM)
    counts_D = seen_DM.sum(1)
    sums_D = np.where(seen_DM, losses_DM, 0.0).sum(1)
    means_D = np.full(len(losses_DM), np.nan)
    np.divide(sums_D, counts_D, out=means_D, where=counts_D > 0)
    return means_D
