"""What each sample's label looks like to a model trained on all the others, without training N models.

N samples, D features, K classes, P penalties, M temperatures, F folds, R <= min(N, D) directions, B rows of one part.
features_ND stay as they come (half floats, a memory map): they are read in parts, each brought to length 1 and
standardized on the fly, so that memory is the features plus O(N (K + P) + F R^2).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlt.settings import BadInput

Floats = NDArray[np.float64]

# Of the features' own spread (standardized: the diagonal of the Gram matrix is N), in steps of a factor of about 3.
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0, 32.0)
PART = 4096  # rows at once
EXACT_BELOW = 16_384  # samples from which float32 products are summed in float64: half the time, 1e-6 apart
MOST_DIRECTIONS = 8_192  # Gram matrices of that size take 4 GB
FOLDS = 5


@dataclass(frozen=True)
class LeaveOneOut:
    """Predictions for every sample by the model that has not seen it.

    Attributes:
        p_NK: float32, P(given label | x), rows sum to 1.
        cross_entropy: mean of -log p[i, given label], in nats.
        penalty: of the ridge regression, per sample and per unit of the features' variance.
        temperature: by which the regression's outputs are multiplied before the softmax.
        held_out_NK: float32, as p_NK, by the model without the sample's whole fold.
        fold_N: int64, the sample's fold, drawn from `seed`.
    """

    p_NK: NDArray[np.float32]
    held_out_NK: NDArray[np.float32]
    fold_N: NDArray[np.int64]
    cross_entropy: float
    penalty: float
    temperature: float


def leave_one_out(
    features_ND: NDArray[Any],
    labels_N: NDArray[np.int64],
    K: int,
    *,
    penalties: tuple[float, ...] = PENALTIES,
    temperatures: tuple[float, ...] = TEMPERATURES,
    part: int = PART,
    seed: int = 0,
) -> LeaveOneOut:
    """Predict each sample's given label by ridge regression on all other samples.

    One-hot labels are regressed on the features with an intercept that is not penalized. With fitted values f, one-hot
    labels t and leverages h the prediction by the model without sample i is exactly (f_i - h_i t_i) / (1 - h_i)
    (Allen 1974; Rifkin and Lippert 2007, "Notes on regularized least squares", section 4); one eigendecomposition of
    the Gram matrix serves all penalties. Of the penalties and temperatures the pair with the smallest cross-entropy
    against the given labels is taken, the first of equal ones. The features' lengths, means and variances, in which
    no label enters, are those of all N samples; the intercept is that of the N - 1.

    With the same pair five folds are predicted by the models without them. Among the samples of a fold no label has a
    part in any prediction, so their order by confidence says nothing of their labels. By leave-one-out confidence a
    wrong label ranks higher than a right one, since it lowers its neighbours' confidence and not its own.

    Args:
        features_ND: floats without NaN; half floats are fine.
        labels_N: given labels, 0 to K - 1; K > 1.
        K: number of classes.
        penalties: candidates, > 0.
        temperatures: candidates, > 0.
        part: rows read at once.
        seed: of the folds.

    Raises:
        BadInput: more than 8,192 samples with more than 8,192 features.
    """
    N = len(features_ND)
    R = min(features_ND.shape)
    if R > MOST_DIRECTIONS:
        raise BadInput(
            f"the features have {features_ND.shape[1]} columns for {N} samples; with more than {MOST_DIRECTIONS} "
            f"samples at most {MOST_DIRECTIONS} columns are possible: reduce them, e.g. by a principal component "
            "analysis."
        )
    if features_ND.shape[1] > R:  # a rotation changes no prediction: N directions hold all N samples
        rows: _Rows = _in_few_directions(features_ND, part)
    else:
        rows = _Standardized(features_ND, part)
    counts_K = np.bincount(labels_N, minlength=K).astype(np.float64)
    fold_N = np.random.default_rng(seed).permutation(N) % FOLDS
    folds = _sums(rows, R, labels_N, K, fold_N, part)
    gram_RR = folds.grams_FRR.sum(0)
    cross_RK = folds.crosses_FRK.sum(0)  # the rows' mean is 0: as good as X' (t - shares)
    values_R, vectors_RR = np.linalg.eigh(gram_RR)
    values_R, targets_RK = values_R.clip(0), vectors_RR.T @ cross_RK
    penalties_P = np.asarray(penalties) * N
    # Where the Gram matrix has no extent (fewer samples than features, a constant feature) rounding leaves it +-1e-10.
    shrunk_RP = 1 / (values_R[:, None] + penalties_P)
    leverages_NP = np.empty((N, len(penalties)))
    sums_PM = np.zeros((len(penalties), len(temperatures)))
    for span, rows_BR in _parts(rows, N, part):
        turned_BR = rows_BR @ vectors_RR.astype(rows_BR.dtype)
        leverages_NP[span] = turned_BR.astype(np.float64) ** 2 @ shrunk_RP + 1 / N
        for p in range(len(penalties)):
            fitted_BK = turned_BR @ (shrunk_RP[:, p, None] * targets_RK).astype(rows_BR.dtype) + counts_K / N
            out_BK = _without_oneself(fitted_BK, leverages_NP[span, p], labels_N[span])
            for m, temperature in enumerate(temperatures):
                sums_PM[p, m] -= _log_softmax(out_BK * temperature)[np.arange(len(out_BK)), labels_N[span]].sum()
    best_p, best_m = (int(i) for i in np.unravel_index(sums_PM.argmin(), sums_PM.shape))
    all_RK = vectors_RR @ (shrunk_RP[:, best_p, None] * targets_RK)
    models = [folds.without(f, penalties[best_p]) for f in range(FOLDS)]
    p_NK, held_out_NK = np.empty((N, K), np.float32), np.empty((N, K), np.float32)
    for span, rows_BR in _parts(rows, N, part):
        fitted_BK = rows_BR @ all_RK.astype(rows_BR.dtype) + counts_K / N
        out_BK = _without_oneself(fitted_BK, leverages_NP[span, best_p], labels_N[span])
        p_NK[span] = np.exp(_log_softmax(out_BK * temperatures[best_m]))
        for f in range(FOLDS):
            at_B = fold_N[span] == f
            weights_RK, intercept_K = models[f]
            held_BK = rows_BR[at_B] @ weights_RK.astype(rows_BR.dtype) + intercept_K
            held_out_NK[span][at_B] = np.exp(_log_softmax(held_BK * temperatures[best_m]))
    return LeaveOneOut(
        p_NK, held_out_NK, fold_N, float(sums_PM[best_p, best_m]) / N, penalties[best_p], temperatures[best_m]
    )


def choose_features(
    candidates: dict[str, NDArray[Any]], labels_N: NDArray[np.int64], K: int, seed: int = 0
) -> tuple[str, LeaveOneOut, dict[str, float]]:
    """Return the features with the smallest leave-one-out cross-entropy: name, predictions, all cross-entropies.

    Of equal ones the first is taken. No clean label is needed: what predicts the given labels of samples it has not
    seen better, however noisy they are, knows more about the classes.
    """
    taken: tuple[str, LeaveOneOut] | None = None
    cross_entropies = {}
    for name, features_ND in candidates.items():
        found = leave_one_out(features_ND, labels_N, K, seed=seed)
        cross_entropies[name] = found.cross_entropy
        if taken is None or found.cross_entropy < taken[1].cross_entropy:
            taken = name, found
    assert taken is not None, "there is a candidate"
    return *taken, cross_entropies


class _Standardized:
    """Rows of length 1, then each feature with mean 0 and variance 1 (0 where it is constant), made when asked for."""

    def __init__(self, features_ND: NDArray[Any], part: int) -> None:
        self.features_ND = features_ND
        N, D = features_ND.shape
        self.dtype = np.float64 if N < EXACT_BELOW else np.float32
        sums_D, squares_D = np.zeros(D), np.zeros(D)
        for first in range(0, N, part):
            sums_D += _of_length_one(features_ND[first : first + part]).sum(0)
        self.means_D = sums_D / N
        for first in range(0, N, part):
            squares_D += ((_of_length_one(features_ND[first : first + part]) - self.means_D) ** 2).sum(0)
        self.scales_D = _inverse_spread(squares_D / N)

    def __getitem__(self, span: slice) -> NDArray[Any]:
        rows_BD = _of_length_one(self.features_ND[span])
        rows_BD -= self.means_D
        rows_BD *= self.scales_D
        return np.asarray(rows_BD, self.dtype)


_Rows = _Standardized | Floats


def _in_few_directions(features_ND: NDArray[Any], part: int) -> Floats:
    """Turn the standardized rows into the N directions they span (N < D), reading the features by columns."""
    N, D = features_ND.shape
    lengths_N = np.zeros(N)
    for first in range(0, D, part):
        lengths_N += (features_ND[:, first : first + part].astype(np.float64) ** 2).sum(1)
    lengths_N = np.sqrt(lengths_N)
    inverse_N1 = np.divide(1, lengths_N, out=np.zeros(N), where=lengths_N > 0)[:, None]
    gram_NN = np.zeros((N, N))
    for first in range(0, D, part):
        columns_NB = features_ND[:, first : first + part].astype(np.float64) * inverse_N1
        columns_NB -= columns_NB.mean(0)
        columns_NB *= _inverse_spread((columns_NB**2).mean(0))
        gram_NN += columns_NB @ columns_NB.T
    values_N, vectors_NN = np.linalg.eigh(gram_NN)
    return np.asarray(vectors_NN * np.sqrt(values_N.clip(0)))


def _of_length_one(features_BD: NDArray[Any]) -> Floats:
    """Bring rows to length 1; a row of zeros stays one. In float64: the square of a half float may be infinite."""
    rows_BD = features_BD.astype(np.float64)
    lengths_B1 = np.sqrt(np.einsum("bd,bd->b", rows_BD, rows_BD))[:, None]
    return np.asarray(np.divide(rows_BD, lengths_B1, out=rows_BD, where=lengths_B1 > 0))


def _inverse_spread(variances_D: Floats) -> Floats:
    """1 / standard deviation; 0 for a constant feature, whose variance rounding may leave at some 1e-33."""
    return np.divide(1, np.sqrt(variances_D), out=np.zeros_like(variances_D), where=variances_D > 1e-20)


def _parts(rows: _Rows, N: int, part: int) -> Iterator[tuple[slice, NDArray[Any]]]:
    for first in range(0, N, part):
        span = slice(first, min(first + part, N))
        yield span, rows[span]


@dataclass(frozen=True)
class _Folds:
    """Per fold: Gram matrices X' X, X' t, and the sums of rows and of one-hot labels."""

    grams_FRR: Floats
    crosses_FRK: Floats
    sums_FR: Floats
    counts_FK: Floats

    def without(self, f: int, penalty: float) -> tuple[Floats, Floats]:
        """Fit the ridge regression to all folds but f: weights (R, K) and intercept (K)."""
        counts_K = self.counts_FK.sum(0) - self.counts_FK[f]
        n = counts_K.sum()
        mean_R = (self.sums_FR.sum(0) - self.sums_FR[f]) / n
        gram_RR = self.grams_FRR.sum(0) - self.grams_FRR[f] - n * np.outer(mean_R, mean_R)
        cross_RK = self.crosses_FRK.sum(0) - self.crosses_FRK[f] - np.outer(mean_R, counts_K)
        gram_RR[np.diag_indices_from(gram_RR)] += penalty * n
        weights_RK = np.linalg.solve(gram_RR, cross_RK)
        return weights_RK, counts_K / n - mean_R @ weights_RK


def _sums(rows: _Rows, R: int, labels_N: NDArray[np.int64], K: int, fold_N: NDArray[np.int64], part: int) -> _Folds:
    """Go through the rows once."""
    folds = _Folds(np.zeros((FOLDS, R, R)), np.zeros((FOLDS, R, K)), np.zeros((FOLDS, R)), np.zeros((FOLDS, K)))
    for span, rows_BR in _parts(rows, len(labels_N), part):
        for f in range(FOLDS):
            at_B = fold_N[span] == f
            rows_AR, targets_AK = rows_BR[at_B], np.eye(K, dtype=rows_BR.dtype)[labels_N[span][at_B]]
            folds.grams_FRR[f] += rows_AR.T @ rows_AR
            folds.crosses_FRK[f] += rows_AR.T @ targets_AK
            folds.sums_FR[f] += rows_AR.sum(0, dtype=np.float64)
            folds.counts_FK[f] += targets_AK.sum(0)
    return folds


def _without_oneself(fitted_BK: NDArray[Any], leverages_B: Floats, labels_B: NDArray[np.int64]) -> Floats:
    """(f - h t) / (1 - h): the prediction of the model without the sample; h < 1 as the penalty is > 0."""
    out_BK = fitted_BK.astype(np.float64)
    out_BK[np.arange(len(out_BK)), labels_B] -= leverages_B
    return np.asarray(out_BK / (1 - leverages_B)[:, None])


def _log_softmax(logits_BK: Floats) -> Floats:
    shifted_BK = logits_BK - logits_BK.max(1, keepdims=True)
    return np.asarray(shifted_BK - np.log(np.exp(shifted_BK).sum(1, keepdims=True)))
