"""Suspicion per sample out of predictions or of one's own training; the higher, the more suspicious.

N samples, K classes, E epochs in order. Out-of-sample predictions: p_NK. Of a training: losses_EN, logits_ENK, or
outputs_ENK (logits or probabilities, of which only the largest counts).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlt.settings import BadInput

Floats = NDArray[np.float64]
PART = 16_384


def self_confidence(p_NK: NDArray[Any], labels_N: NDArray[np.int64]) -> Floats:
    """Return 1 - P(given label | x), in [0, 1] (Northcutt et al. 2021, section 4.1: "self-confidence")."""
    return 1 - p_NK[np.arange(len(labels_N)), labels_N].astype(np.float64)


def margin(p_NK: NDArray[Any], labels_N: NDArray[np.int64]) -> Floats:
    """Return the largest probability of another class less the given one's, in [-1, 1].

    The sign-reversed "normalized margin" (Northcutt et al. 2021, section 4.1).
    """
    return -_margins(p_NK, labels_N)


def area_under_the_margin(logits_ENK: NDArray[Any], labels_N: NDArray[np.int64]) -> Floats:
    """Return minus the mean over epochs of the given class's logit less the largest other one.

    AUM (Pleiss, Zhang, Elenberg and Weinberger 2020, equations 1 and 2), sign reversed.
    """
    _fits(logits_ENK, labels_N, "logits_ENK")
    return np.asarray(-sum(_margins(logits_NK, labels_N) for logits_NK in logits_ENK) / len(logits_ENK))


def o2u_score(losses_EN: NDArray[Any]) -> Floats:
    """Return each sample's mean over epochs of its loss less the epoch's mean loss.

    The rank of O2U-Net (Huang, Qu, Jia and Zhao 2019, section 3.2) over its cyclical stage; also usable over any
    epochs before a network has memorized its labels.
    """
    if losses_EN.ndim != 2 or losses_EN.size == 0 or not np.isfinite(losses_EN).all():
        raise BadInput(
            f"losses_EN has shape {losses_EN.shape} or holds NaN: give one finite loss per epoch (row) and sample."
        )
    losses_EN = losses_EN.astype(np.float64)
    return np.asarray((losses_EN - losses_EN.mean(1, keepdims=True)).mean(0))


def forgetting_events(outputs_ENK: NDArray[Any], labels_N: NDArray[np.int64]) -> Floats:
    """Count how often the given label is predicted in one epoch and no longer in the next; never predicted: E.

    Toneva et al. 2019, section 3.1, where a sample never learned counts as forgotten infinitely often.
    """
    correct_EN = _correct(outputs_ENK, labels_N)
    events_N = (correct_EN[:-1] & ~correct_EN[1:]).sum(0).astype(np.float64)
    return np.where(correct_EN.any(0), events_N, len(correct_EN))


def wrong_events(outputs_ENK: NDArray[Any], labels_N: NDArray[np.int64]) -> Floats:
    """Count the epochs in which another class than the given one is predicted (Zhang et al. 2025, arXiv 2505.00812)."""
    return np.asarray((~_correct(outputs_ENK, labels_N)).sum(0).astype(np.float64))


def _margins(values_NK: NDArray[Any], labels_N: NDArray[np.int64]) -> Floats:
    """The given class's value less the largest other one."""
    out_N = np.empty(len(labels_N))
    for first in range(0, len(labels_N), PART):
        values_BK = values_NK[first : first + PART].astype(np.float64)  # a copy
        rows, labels_B = np.arange(len(values_BK)), labels_N[first : first + PART]
        given_B = values_BK[rows, labels_B]
        values_BK[rows, labels_B] = -np.inf
        out_N[first : first + PART] = given_B - values_BK.max(1)
    return out_N


def _correct(outputs_ENK: NDArray[Any], labels_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    _fits(outputs_ENK, labels_N, "outputs_ENK")
    return np.asarray(np.stack([outputs_NK.argmax(1) == labels_N for outputs_NK in outputs_ENK]))


def _fits(values: NDArray[Any], labels_N: NDArray[np.int64], name: str) -> None:
    if values.ndim != 3 or len(values) == 0 or values.shape[1] != len(labels_N):
        raise BadInput(
            f"{name} has shape {values.shape}, with {len(labels_N)} labels: give (epochs, samples, classes), "
            "samples in the order of the labels."
        )
    if not np.isfinite(values).all():
        raise BadInput(f"{name} holds NaN or infinity: leave out the epochs in which the training diverged.")
    if len(labels_N) and not 0 <= labels_N.min() <= labels_N.max() < values.shape[2]:
        raise BadInput(f"a label is outside 0 to {values.shape[2] - 1}, the classes of {name}.")
