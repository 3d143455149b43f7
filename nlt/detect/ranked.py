"""Another ranking under the same rate: scores of a method that was trained take the place of the posterior's order.

N samples, K classes.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from nlt.detect.errors import LabelErrors
from nlt.detect.masks import MOST, smallest

LEAST = 0.501  # of a label that is taken for wrong: above 1/2 in half floats and in print, too


def ranked_by(
    errors: LabelErrors,
    name: str,
    scores_N: NDArray[np.float64],
    wrong_N: NDArray[np.bool_] | None = None,
    labels_N: NDArray[np.int64] | None = None,
) -> LabelErrors:
    """Return the findings in the order of another score; T, the rate and its interval stay.

    Flagged are the samples of `wrong_N` and those whose label a method has changed; of neither the share that `rate`
    says, those with the largest scores. Scores are no probabilities, so the old ones are dealt out anew: of the
    flagged and then the others, the k-th most suspicious gets the k-th largest p_wrong there was, but above 1/2 where
    flagged and at most 1/2 where not. A changed label is the suggested one; else what is not the given label's is
    divided among the other classes as before.

    Args:
        errors: of `find_label_errors`.
        name: of the score.
        scores_N: the higher, the more suspicious; NaN (a sample that was not scored) counts as the lowest.
        wrong_N: True where a label is taken for wrong.
        labels_N: labels that are believed, the given ones where nothing was changed.
    """
    N, rows = len(scores_N), np.arange(len(scores_N))
    finite_N = np.isfinite(scores_N)
    lowest = scores_N[finite_N].min() if finite_N.any() else 0.0
    scores_N = np.where(np.isnan(scores_N), lowest, np.nan_to_num(scores_N.astype(np.float64)))
    changed_N = np.zeros(N, bool) if labels_N is None else labels_N != errors.given_N
    if wrong_N is None and labels_N is None:
        wrong_N = ~smallest(torch.from_numpy(scores_N), min(errors.rate.point, MOST)).numpy()
    wrong_N = changed_N | (np.zeros(N, bool) if wrong_N is None else wrong_N)
    p_wrong_N = np.empty(N)
    p_wrong_N[np.lexsort((-scores_N, ~wrong_N))] = np.sort(errors.p_wrong_N)[::-1]
    p_wrong_N = np.where(wrong_N, p_wrong_N.clip(LEAST, 1), p_wrong_N.clip(0, 0.5))

    others_NK = errors.p_true_NK.astype(np.float64)
    if labels_N is not None:
        others_NK[changed_N] = np.eye(others_NK.shape[1])[labels_N[changed_N]]
    others_NK[rows, errors.given_N] = 0
    others_NK[others_NK.sum(1) == 0] = 1  # the posterior was sure of the given label
    others_NK[rows, errors.given_N] = 0
    p_true_NK = p_wrong_N[:, None] * others_NK / others_NK.sum(1, keepdims=True)
    p_true_NK[rows, errors.given_N] = 1 - p_wrong_N
    return replace(
        errors,
        suggested_N=p_true_NK.argmax(1).astype(np.int64),
        p_wrong_N=p_wrong_N,
        scores=errors.scores | {name: scores_N},
        p_true_NK=p_true_NK.astype(np.float32),
        ranking=name,
    )
