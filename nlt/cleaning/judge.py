"""From labelled samples to what is wrong with them: features, the detector, and what content and features show besides.

N samples.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache as once
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from nlt.backbones import AnyBackbone
from nlt.cleaning.trained import judge_by_training
from nlt.data.checks import Issue, check_labelled, encoded_copies, near_duplicates
from nlt.data.labelled import Labelled
from nlt.data.numbers import Numbers
from nlt.detect import LabelErrors, find_label_errors, ranking_quality
from nlt.events import Progress, silent
from nlt.features import Maker, extract, seconds_for
from nlt.spec import Experiment


@dataclass(frozen=True)
class Judged:
    """What was found in a data set."""

    data: Labelled
    errors: LabelErrors
    issues: list[Issue]
    """Certain errors first."""
    outside_weights: str
    """Where the weights of the features come from, "" if none were used."""

    def by_training(self, detector: Experiment | Literal["o2u"], name: str, **how: Any) -> "Judged":
        """Return the findings as a trained method ranks them, see `judge_by_training`."""
        outside = self.outside_weights
        if detector != "o2u":
            outside = "; ".join(dict.fromkeys(filter(None, (outside, detector.outside_weights()))))
        errors = judge_by_training(self.errors, self.data, detector, name, **how)
        return replace(self, errors=errors, outside_weights=outside)

    def quality(self, threshold: float) -> dict[str, float]:
        """Return how good the findings are, where clean labels are known; nothing where none is.

        `auroc`, `average_precision`, `precision` and `recall` of what is flagged, p_wrong above the threshold; all in
        [0, 1]; and `rate_error`, the estimated rate less the true one.
        """
        clean_N = self.data.clean_N
        if clean_N is None or not (known_N := clean_N >= 0).any():
            return {}
        wrong_M = (clean_N != self.data.labels_N)[known_N]
        quality = ranking_quality(self.errors.scores[self.errors.ranking][known_N], wrong_M)
        flagged_M = (self.errors.p_wrong_N > threshold)[known_N]
        if flagged_M.any():
            quality["precision"] = float(wrong_M[flagged_M].mean())
        if wrong_M.any():
            quality["recall"] = float(flagged_M[wrong_M].mean())
        if known_N.all():
            quality["rate_error"] = self.errors.rate.point - float(wrong_M.mean())
        return quality


def judge(
    data: Labelled,
    backbones: Sequence[AnyBackbone],
    *,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    maker: Maker | None = None,
    seed: int = 0,
    progress: Progress = silent,
    note: Callable[[str], None] = lambda sentence: None,
) -> Judged:
    """Make features of the images, find wrong labels by them, and whatever else is wrong with the data set.

    Args:
        data: images and their labels.
        backbones: one or more; the one whose leave-one-out predictions have the smallest cross-entropy is taken.
        cache: folder that keeps features.
        device: where the network runs.
        maker: makes features on other machines, which see the images' files under the same path.
        seed: of what is drawn at random.
        progress: told what is done, how many are, of how many.
        note: told how long it will take, and what went wrong with the cache.

    Raises:
        BadInput: a file has changed since `data` was read, or weights cannot be had.
    """
    # On another machine the working directory is another one, and what else is known of the images is of no use.
    seen = (
        data if maker is None else replace(data, source=Path(os.path.abspath(data.source)), rows=None, small_NCHW=None)
    )
    read = {b.name: partial(seen.read, size=b.side()) for b in backbones}
    encoders = {b.name: once(partial(b.encoder, torch.device(device))) for b in backbones}
    if maker is None:
        seconds = sum(
            seconds_for(b, read[b.name], data.sums, cache, device=device, encoder=encoders[b.name]) for b in backbones
        )
        if seconds > 3:
            note(f"features of {len(data):,} images take about {_duration(seconds)}")
    features: dict[str, NDArray[np.float16]] = {
        backbone.name: extract(
            backbone, read[backbone.name], data.sums, cache, device=device, encoder=encoders[backbone.name],
            maker=maker, note=note,
            progress=lambda done, of, name=backbone.name: progress(f"features {name}", done, of),  # type: ignore[misc]
        )
        for backbone in backbones
    }  # fmt: skip
    encoders.clear()  # and the networks with them
    progress("wrong labels", 0, 1)
    errors = find_label_errors(features, data.labels_N, classes=data.classes, ids=data.names, seed=seed)
    progress("wrong labels", 1, 1)
    taken = next(b for b in backbones if b.name == errors.features)
    issues = check_labelled(data)
    if taken.name != "pixels":  # small scans are alike, pixel by pixel, without being of one thing
        copies = encoded_copies(data, progress=progress)
        known = {issue.rows for issue in copies}
        near = near_duplicates(features[taken.name], data, seed=seed, progress=progress)
        issues += [*copies, *(issue for issue in near if issue.rows not in known)]
    return Judged(data, errors, issues, taken.outside_weights or "")


def judge_numbers(numbers: Numbers, seed: int = 0) -> Judged:
    """Find wrong labels by a user's own features or out-of-sample probabilities.

    Raises:
        BadInput: as `find_label_errors`.
    """
    data = numbers.data
    errors = find_label_errors(
        numbers.features_ND, data.labels_N, probabilities_NK=numbers.probabilities_NK, classes=data.classes,
        ids=data.names, seed=seed,
    )  # fmt: skip
    return Judged(data, errors, check_labelled(data), "")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
