"""How many labels disagree with a confident prediction: an upper bound, for it counts the classifier's own errors.

N samples, K classes. joint_KK[i, j]: share of all samples with given label i that are confidently predicted as j.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

PART = 16_384


def confident_joint(p_NK: NDArray[Any], labels_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Estimate the joint distribution of given label (rows) and true class (columns).

    A sample counts as class j if p_j is at least the mean p_j of the samples labelled j, as the most probable of
    several such classes; rows are then scaled to the given labels' counts (Northcutt, Jiang and Chuang 2021,
    "Confident Learning", equations 1 to 3).

    Args:
        p_NK: P(given | x) from models that have not seen the sample.
        labels_N: given labels.

    Returns:
        joint_KK, float64, sums to 1. A row none of whose samples is confident counts as right.
    """
    K = p_NK.shape[1]
    counts_K = np.bincount(labels_N, minlength=K)
    thresholds_K = np.full(K, np.inf)
    for k in np.flatnonzero(counts_K):
        thresholds_K[k] = p_NK[labels_N == k, k].mean(dtype=np.float64)
    joint_KK = np.zeros((K, K))
    for first in range(0, len(p_NK), PART):
        p_BK, labels_B = p_NK[first : first + PART].astype(np.float64), labels_N[first : first + PART]
        p_BK = np.where(p_BK >= thresholds_K - 1e-9, p_BK, -1)  # rounding: all p equal to their mean
        sure_B = p_BK.max(1) >= 0
        np.add.at(joint_KK, (labels_B[sure_B], p_BK.argmax(1)[sure_B]), 1)
    none_K = joint_KK.sum(1) == 0
    joint_KK[none_K, none_K] = 1
    return np.asarray(joint_KK / joint_KK.sum(1, keepdims=True) * (counts_K / len(labels_N))[:, None])
