"""Which given labels are wrong, how many, and what they should be: features or predictions in, `LabelErrors` out.

N samples, D features, K classes. The detector never sees a clean label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from nlt.data.samples import MAX_CLASSES
from nlt.detect import scores
from nlt.detect.leave_one_out import choose_features
from nlt.detect.masks import MOST, smallest
from nlt.detect.posterior import STEPS, knowing_the_label, log_odds_wrong, true_class
from nlt.detect.rate import Rate, estimate_rates
from nlt.detect.transition import estimate_transition
from nlt.settings import BadInput, brief

if TYPE_CHECKING:
    import pandas as pd

FEWEST_SAMPLES = 10
PART = 65_536  # rows looked at at once for NaN


@dataclass(frozen=True)
class LabelErrors:
    """What is known of each given label.

    Attributes:
        ids: N, of the samples, as handed in or the row's number.
        classes: K names.
        given_N, suggested_N: int64 classes; suggested is the most probable true class, which may be the given one.
        p_wrong_N: probability that the given label is wrong, float64 in [0, 1].
        scores: float64 (N,), the higher the more suspicious: "p_y" is 1 - P(given | x), "margin" the largest other
            probability less the given one's, "posterior" the log odds of `p_wrong_N`, which it ranks alike, also where
            that rounds to 1. Others by name where a method was trained.
        p_true_NK: P(true | x, given label), float32, rows sum to 1.
        T_KK: P(given | true), float64, rows: true class.
        rate: share of wrong labels, with an interval.
        per_class: the same of the labels given as each class.
        features: the candidate taken; "" if there was one.
        cross_entropies: leave-one-out cross-entropy of each candidate, in nats ("" names a single one; none with
            probabilities).
        accuracy: share of given labels that the (leave-one-out) predictions agree with.
        ranking: the score in whose order the samples are.
    """

    ids: Sequence[str | int]
    classes: tuple[str, ...]
    given_N: NDArray[np.int64]
    suggested_N: NDArray[np.int64]
    p_wrong_N: NDArray[np.float64]
    scores: dict[str, NDArray[np.float64]]
    p_true_NK: NDArray[np.float32]
    T_KK: NDArray[np.float64]
    rate: Rate
    per_class: tuple[Rate, ...]
    features: str
    cross_entropies: dict[str, float]
    accuracy: float
    ranking: str = "posterior"

    def order(self) -> NDArray[np.int64]:
        """Return the rows, most suspicious first; of equals the first one first."""
        return np.lexsort((-self.scores[self.ranking], -self.p_wrong_N))

    def flagged(self) -> NDArray[np.bool_]:
        """Return whose label is to be acted on: p_wrong above 1/2, but no more than the rate says are wrong (and at
        most 99 %), the most suspicious first."""
        most = smallest(torch.from_numpy(self.scores[self.ranking]), min(self.rate.point, MOST))
        return np.asarray((self.p_wrong_N > 0.5) & ~most.numpy())

    def table(self) -> "pd.DataFrame":
        """Return one row per sample, worst first: id, given_label, suggested_label, p_wrong, p_y, margin, posterior."""
        import pandas as pd

        order_N, names = self.order(), np.array(self.classes, dtype=object)
        columns = {
            "id": [self.ids[i] for i in order_N],
            "given_label": names[self.given_N[order_N]],
            "suggested_label": names[self.suggested_N[order_N]],
            "p_wrong": self.p_wrong_N[order_N],
        }
        return pd.DataFrame(columns | {name: score_N[order_N] for name, score_N in self.scores.items()})


def find_label_errors(
    features_ND: ArrayLike | Mapping[str, ArrayLike] | None,
    labels_N: ArrayLike,
    *,
    probabilities_NK: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    ids: Sequence[str | int] | None = None,
    seed: int = 0,
    steps: int = STEPS,
) -> LabelErrors:
    """Find wrong labels without training a network and without knowing how many there are.

    Leave-one-out ridge regression (`leave_one_out`) gives P(given | x), or the probabilities handed in do; confident
    samples give the transition matrix (`estimate_transition`); Bayes gives the true class (`true_class`,
    `knowing_the_label`) and `estimate_rates` the share of wrong labels.

    Args:
        features_ND: (N, D) floats, half floats too, or several by name: the ones with the smallest leave-one-out
            cross-entropy are taken. None with `probabilities_NK`.
        labels_N: given labels, integers 0 to K - 1.
        probabilities_NK: P(given | x) from models that have not seen the sample, instead of features.
        classes: K names; by default the numbers up to the largest label.
        ids: N names of the samples; by default 0 to N - 1.
        seed: of the folds in which confident samples are compared; nothing else is drawn.
        steps: of expectation maximization towards P(true | x), as `true_class` takes them. Few rank best where most
            labels are right; where most are wrong, P(true | x) stays nearly flat after the default's ten.

    Raises:
        BadInput: lengths differ, NaN, fewer than 10 samples, one class only, a label outside the classes, or
            probabilities that are negative or do not sum to 1.
    """
    columns = np.shape(probabilities_NK)[1:] if probabilities_NK is not None else ()
    labels_N = checked_labels(labels_N, len(classes) if classes is not None else columns[0] if columns else None)
    N = len(labels_N)
    if (features_ND is None) == (probabilities_NK is None):
        raise BadInput("give either features or probabilities, not both and not neither.")
    if ids is not None and len(ids) != N:
        raise BadInput(f"there are {len(ids)} ids for {N} labels: give one each.")
    taken, cross_entropies = "", dict[str, float]()
    if probabilities_NK is not None:
        p_NK = held_out_NK = _probabilities(probabilities_NK, N)
        fold_N = None
        K = p_NK.shape[1]
        names = _names(classes, K)
        present = np.arange(K)
    else:
        candidates = {
            name: _features(values, N, name)
            for name, values in (features_ND.items() if isinstance(features_ND, Mapping) else [("", features_ND)])
        }
        if not candidates:
            raise BadInput("there are no features: give at least one candidate.")
        names = _names(classes, len(classes) if classes is not None else int(labels_N.max()) + 1)
        K = len(names)
        present = np.unique(labels_N)  # of a class that nobody is labelled nothing can be learned
        chosen, found, cross_entropies = choose_features(
            candidates, np.searchsorted(present, labels_N), len(present), seed
        )
        taken, p_NK, held_out_NK, fold_N = chosen, found.p_NK, found.held_out_NK, found.fold_N

    given_N = np.searchsorted(present, labels_N)
    transition = estimate_transition(held_out_NK, given_N, fold_N)
    p_true_NK = knowing_the_label(true_class(p_NK, transition.T_KK, steps), transition.T_KK, given_N)
    rate, per_present = estimate_rates(
        p_NK, given_N, transition, p_true_NK.mean(0, dtype=np.float64), tuple(names[k] for k in present)
    )
    per_class = [Rate(0.0, 0.0, 0.0, f"no sample is labelled {brief(name)}") for name in names]
    for k, its_rate in zip(present, per_present, strict=True):
        per_class[k] = its_rate
    T_KK = np.eye(K)
    T_KK[np.ix_(present, present)] = transition.T_KK
    return LabelErrors(
        ids=range(N) if ids is None else ids,
        classes=names,
        given_N=labels_N,
        suggested_N=present[p_true_NK.argmax(1)].astype(np.int64),
        p_wrong_N=(1 - p_true_NK[np.arange(N), given_N].astype(np.float64)).clip(0, 1),
        scores={
            "p_y": scores.self_confidence(p_NK, given_N),
            "margin": scores.margin(p_NK, given_N),
            "posterior": log_odds_wrong(p_true_NK, given_N),
        },
        p_true_NK=_spread_out(p_true_NK, present, K),
        T_KK=T_KK,
        rate=rate,
        per_class=tuple(per_class),
        features=taken,
        cross_entropies=cross_entropies,
        accuracy=float((p_NK.argmax(1) == given_N).mean()),
    )


def _spread_out(p_NP: NDArray[np.float32], present: NDArray[np.int64], K: int) -> NDArray[np.float32]:
    """Put the columns of the classes that occur where they belong; the others are 0."""
    if len(present) == K:
        return p_NP
    p_NK = np.zeros((len(p_NP), K), np.float32)
    p_NK[:, present] = p_NP
    return p_NK


def checked_labels(labels: ArrayLike, K: int | None = None) -> NDArray[np.int64]:
    """Return labels_N, of K classes if it is known of how many.

    Raises:
        BadInput: they are no integers 0 to K - 1, fewer than 10, or all the same.
    """
    labels_N = np.asarray(labels)
    if labels_N.ndim != 1 or labels_N.dtype.kind not in "iu":
        raise BadInput(
            f"the labels have shape {labels_N.shape} and type {labels_N.dtype}: give one integer per sample, "
            "the class's number from 0."
        )
    if len(labels_N) < FEWEST_SAMPLES:
        raise BadInput(f"there are {len(labels_N)} samples: at least {FEWEST_SAMPLES} are needed to judge labels.")
    if K is None and labels_N.max() >= MAX_CLASSES:
        raise BadInput(
            f"the largest label is {labels_N.max()}, for {MAX_CLASSES:,} classes at most: number the classes from 0."
        )
    bad = np.flatnonzero((labels_N < 0) | (K is not None and labels_N >= K))
    if len(bad):
        raise BadInput(
            f"the label of sample {bad[0]} is {labels_N[bad[0]]}, outside the classes 0 to "
            f"{'K - 1' if K is None else K - 1}: number the classes from 0."
        )
    if labels_N.min() == labels_N.max():
        raise BadInput("all samples have the same label: at least two classes are needed to find wrong labels.")
    return labels_N.astype(np.int64)


def _names(classes: Sequence[str] | None, K: int) -> tuple[str, ...]:
    if classes is None:
        return tuple(str(k) for k in range(K))
    if len(classes) != K:
        raise BadInput(f"there are {len(classes)} class names for {K} columns of probabilities: name each class once.")
    return tuple(classes)


def _features(values: Any, N: int, name: str) -> NDArray[Any]:
    features_ND = np.asarray(values)
    called = f"the features {brief(name)}" if name else "the features"
    if features_ND.ndim != 2 or features_ND.shape[1] == 0 or features_ND.dtype.kind not in "fiu":
        raise BadInput(
            f"{called} have shape {features_ND.shape} and type {features_ND.dtype}: give numbers, one row per sample."
        )
    if len(features_ND) != N:
        raise BadInput(f"{called} have {len(features_ND)} rows for {N} labels: give one row per label, in its order.")
    for first in range(0, N, PART):
        bad = np.flatnonzero(~np.isfinite(features_ND[first : first + PART]).all(1))
        if len(bad):
            raise BadInput(f"{called} hold NaN or infinity in row {first + bad[0]}: leave the sample out or mend it.")
    return features_ND


def _probabilities(values: Any, N: int) -> NDArray[Any]:
    p_NK = np.asarray(values)
    if p_NK.ndim != 2 or p_NK.shape[1] < 2 or p_NK.dtype.kind != "f":
        raise BadInput(
            f"the probabilities have shape {p_NK.shape} and type {p_NK.dtype}: give one row of floats per sample, "
            "one column per class."
        )
    if len(p_NK) != N:
        raise BadInput(f"the probabilities have {len(p_NK)} rows for {N} labels: give one row per label, in its order.")
    sums_N = p_NK.sum(1, dtype=np.float64)
    for wrong_N, what in (
        (~np.isfinite(p_NK).all(1), "holds NaN or infinity"),
        ((p_NK < 0).any(1), "is negative"),
        (abs(sums_N - 1) > 0.01, "does not sum to 1"),
    ):
        if wrong_N.any():
            row = int(wrong_N.argmax())
            raise BadInput(f"row {row} of the probabilities {what}: give the softmax of the logits.")
    return np.asarray(p_NK / sums_N[:, None])
