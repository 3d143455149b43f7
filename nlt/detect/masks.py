"""From per-sample scores (the higher, the more suspicious) to a mask, and how good that mask is.

N samples. keep_N is True where a sample is kept; wrong_N is True where its given label is wrong, which only the
measures here may know.
"""

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rounding = Literal["down", "as_code"]
MOST = 0.99  # of the samples that may be flagged, whatever the estimate of the rate


def smallest(scores_N: Tensor, forget_rate: float, rounding: Rounding = "down") -> Tensor:
    """Keep the samples with the smallest scores and remove the `forget_rate` share with the largest.

    Among equal scores those that come first are kept.

    Args:
        scores_N: float, no NaN.
        forget_rate: the share to remove, in [0, 1); at least one sample stays.
        rounding: of the number removed, see `number_kept`.

    Returns:
        keep_N, bool.
    """
    keep_N = torch.zeros_like(scores_N, dtype=torch.bool)
    keep_N[scores_N.argsort(stable=True)[: number_kept(len(scores_N), forget_rate, rounding)]] = True
    return keep_N


def number_kept(N: int, forget_rate: float, rounding: Rounding = "down") -> int:
    """Return how many of N samples `smallest` keeps: at least one.

    Args:
        N: the number of samples.
        forget_rate: the share f to remove, in [0, 1).
        rounding: `down` removes floor(f N); `as_code` keeps int((1 - f) N), which removes one more in most (N, f): the
            published code.
    """
    if rounding == "as_code":
        return max(1, int((1 - forget_rate) * N))  # in floating point, as there: 0.9 of 10 would leave none
    return N - min(math.floor(forget_rate * N + 1e-9), N - 1)  # 1e-9: 0.29 * 100 is 28.999999999999996


def mask_quality(keep_N: Tensor, wrong_N: Tensor) -> dict[str, float]:
    """Compare the removed samples with the truly wrong labels.

    Returns:
        `noise/precision`: wrong labels among the removed samples (the paper's "noise accuracy", Table 1),
        `noise/recall`: removed samples among the wrong labels,
        `noise/remaining`: wrong labels among the kept samples; each a share in [0, 1], and left out where it would
        be a share of nothing.
    """
    removed, wrong, both = int((~keep_N).sum()), int(wrong_N.sum()), int((~keep_N & wrong_N).sum())
    kept = len(keep_N) - removed
    shares = {
        "noise/precision": (both, removed),
        "noise/recall": (both, wrong),
        "noise/remaining": (wrong - both, kept),
    }
    return {name: part / whole for name, (part, whole) in shares.items() if whole}


def auc(scores_N: Tensor, wrong_N: Tensor) -> float | None:
    """Return the area under the ROC curve: how often a wrong label scores above a right one, ties counting half.

    Samples whose score is not finite do not count: NaN is that of one without a score. None where all labels are
    right or all are wrong.
    """
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]  # a second to import

    scored_N = scores_N.isfinite()
    wrong = wrong_N[scored_N].numpy()
    if wrong.all() or not wrong.any():  # also where nothing is scored
        return None
    return float(roc_auc_score(wrong, scores_N[scored_N].double().numpy()))


def ranking_quality(scores_N: NDArray[np.float64], wrong_N: NDArray[np.bool_]) -> dict[str, float]:
    """Return how well scores rank wrong labels before right ones, whatever the threshold.

    Args:
        scores_N: the higher, the more suspicious; samples whose score is not finite do not count, as in `auc`.
        wrong_N: True where the given label is wrong.

    Returns:
        `auroc` as `auc`, `average_precision` the mean precision over the ranks of the wrong labels, both in [0, 1];
        nothing where all labels are right or all are wrong.
    """
    from sklearn.metrics import average_precision_score

    area = auc(torch.from_numpy(scores_N), torch.from_numpy(wrong_N))
    if area is None:
        return {}
    scored_N = np.isfinite(scores_N)
    return {
        "auroc": area,
        "average_precision": float(average_precision_score(wrong_N[scored_N], scores_N[scored_N])),
    }
