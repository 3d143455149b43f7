"""How many labels are wrong: a point, an interval, and in words what they assume.

N samples, K classes. T_KK[i, j] = P(given label j | true class i); counts_KK: confident samples, rows predicted class.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlt.detect.joint import confident_joint
from nlt.detect.transition import Transition, with_pooled_rows
from nlt.settings import brief

Floats = NDArray[np.float64]

POINTS = 0.03  # by which the rate by T is out on class-dependent noise of every kind measured
CLASS_BIAS = 2  # times that of the whole: what is too much in one class is missing in another (docs/detection.md)
FEWEST_AGREE = 0.2  # agreement beyond chance (kappa): 60 % symmetric noise with good features has .22
WEAKEST = 0.6  # agreement beyond chance of all samples, of that of the confident ones


@dataclass(frozen=True)
class Rate:
    """A share of wrong labels.

    Attributes:
        point: if wrong labels depend on the true class alone.
        low: the point less what it may be out by.
        high: all confident disagreement of classifier and label, the classifier's own errors included, or the point and
            what it may be out by, whichever is more.
        reading: what that assumes, in words. Shares are in [0, 1].
        reliable: False where the predictions cannot tell wrong labels from their own errors.
    """

    point: float
    low: float
    high: float
    reading: str
    reliable: bool = True


def estimate_rates(
    p_NK: NDArray[Any],
    labels_N: NDArray[np.int64],
    transition: Transition,
    shares_K: Floats,
    classes: tuple[str, ...],
) -> tuple[Rate, tuple[Rate, ...]]:
    """Estimate the share of wrong labels of the whole and of each given class.

    Point: sum over true classes of share x (1 - T_cc), T_cc from the confident samples' counts. The predicted classes'
    shares would not do: an unclear image of a class that loses many labels to another is predicted as the other
    (CIFAR-10, asymmetric 40 %, seed 0: .137 instead of .198, and .195 by the shares of P(true | x, given)).

    Low: less what it may be out by, the root of the squared sum of two standard errors and of a bias of 3 points, or of
    as much as disagreement grows among the next confident samples: what depends on the confidence is the classifier's
    own error, or sits on ambiguous samples. High: what the confident joint (see `confident_joint`) has off its
    diagonal, or the point and what it may be out by. Wrong labels on samples that are ambiguous, as people's are, show
    in no confident sample: the truth then lies between point and high.

    The labels given as class j are wrong by 1 - P(true j, given j) / P(given j), with P(true i, given j) = share_i x
    T_ij, the errors of T scaled to the point, so that the classes together have the rate of the whole. Its standard
    error is that of multinomial rows T_i., by its derivatives, and its bias twice that of the whole.

    Args:
        p_NK: P(given | x) from models that have not seen the sample.
        labels_N: given labels.
        transition: of the same labels.
        shares_K: true classes' shares of all samples, the means of P(true | x, given).
        classes: names, for the words.

    Returns:
        The rate of all labels, and that of the labels given as each class.
    """
    K = len(classes)
    joint_KK = confident_joint(p_NK, labels_N)
    counts_KK = with_pooled_rows(transition.counts_KK)
    errors_K = _errors(counts_KK)
    point = float(shares_K @ errors_K)
    growth = max(0.0, float(shares_K @ (_errors(with_pooled_rows(transition.behind_KK)) - errors_K)))
    unreliable = _unreliable(p_NK, labels_N, 1 - point)
    bias = max(POINTS, growth)
    sampling = 2 * float(np.sqrt(shares_K**2 @ (errors_K * (1 - errors_K) / counts_KK.sum(1))))
    whole = _rate(point, bias, sampling, 1 - float(joint_KK.trace()), unreliable, "labels")

    error_K, spread_K = by_class(shares_K, _scaled(transition.T_KK, shares_K, point), counts_KK.sum(1))
    per_class = []
    for j in range(K):
        labelled = float(joint_KK[j].sum())
        if labelled == 0:
            per_class.append(Rate(0.0, 0.0, 0.0, f"no sample is labelled {brief(classes[j])}"))
            continue
        disagreement = 1 - float(joint_KK[j, j]) / labelled
        what = f"labels {brief(classes[j])}"
        per_class.append(
            _rate(float(error_K[j]), CLASS_BIAS * bias, 2 * float(spread_K[j]), disagreement, unreliable, what)
        )
    return whole, tuple(per_class)


def by_class(shares_K: Floats, T_KK: Floats, sizes_K: Floats) -> tuple[Floats, Floats]:
    """Return the share of wrong labels among those given as each class, and its standard error.

    Args:
        shares_K: of the true classes. Where a class has neither samples nor wrong labels, both numbers are 0.
        T_KK: P(given | true).
        sizes_K: of how many samples each row of T is known.
    """
    mass_KK = shares_K[:, None] * T_KK  # P(true, given)
    right_K, wrong_K = mass_KK.diagonal(), mass_KK.sum(0) - mass_KK.diagonal()
    given_K = np.where(right_K + wrong_K > 0, right_K + wrong_K, 1.0)
    slopes_KK = shares_K[:, None] * (right_K / given_K**2)  # of wrong / given, by T's cells
    np.fill_diagonal(slopes_KK, -shares_K * wrong_K / given_K**2)
    variance_K = (slopes_KK**2 * T_KK * (1 - T_KK) / sizes_K[:, None]).sum(0)
    return wrong_K / given_K, np.sqrt(variance_K)


def _scaled(T_KK: Floats, shares_K: Floats, point: float) -> Floats:
    """T with all its errors (none is 0) times one number, so that they are `point` of all labels: T has a pseudo-count
    in each row, which of many classes with few samples is all there is."""
    errors_K = 1 - T_KK.diagonal()
    scaled_K = np.minimum(errors_K * point / (shares_K @ errors_K), 1.0)
    scaled_KK = T_KK * (scaled_K / errors_K)[:, None]
    np.fill_diagonal(scaled_KK, 1 - scaled_K)
    return scaled_KK


def _errors(counts_KK: Floats) -> Floats:
    return np.asarray(1 - counts_KK.diagonal() / counts_KK.sum(1))


def _unreliable(p_NK: NDArray[Any], labels_N: NDArray[np.int64], confident_agreement: float) -> str:
    """Say in words why these predictions cannot tell noise from their own errors; "" where they can.

    Agreement is measured beyond chance (Cohen 1960): of all samples it must be well above chance, and not much less
    than that of the confident ones, which noise that depends on the class alone lowers as much.
    """
    K, N = p_NK.shape[1], len(labels_N)
    predicted_N = p_NK.argmax(1)
    agreement = float((predicted_N == labels_N).mean())
    chance = float(np.bincount(predicted_N, minlength=K) / N @ (np.bincount(labels_N, minlength=K) / N))
    beyond, error = agreement - chance, float(np.sqrt(max(chance * (1 - chance), 1 / N) / N))
    if beyond <= max(3 * error, FEWEST_AGREE * (1 - chance)):
        return f"the predictions agree with {agreement:.1%} of the given labels, chance alone with {chance:.1%}"
    if beyond < WEAKEST * (confident_agreement - chance):
        return (
            f"the predictions agree with {agreement:.1%} of the given labels, "
            f"the confident ones with {confident_agreement:.1%}"
        )
    return ""


def _rate(point: float, bias: float, sampling: float, disagreement: float, unreliable: str, what: str) -> Rate:
    out_by = float(np.hypot(bias, sampling))
    low, high = max(0.0, point - out_by), min(1.0, max(disagreement, point + out_by))
    cause = "by as much as this estimate may be out"
    if disagreement >= high:
        cause = "if every confident disagreement with the classifier were one"
    bound = f"at most {high:.1%}, {cause}"
    if unreliable:
        reading = f"unreliable: {unreliable}; better features may tell noise from errors"
        return Rate(point, 0.0, high, reading, reliable=False)
    if point < float(np.hypot(POINTS, sampling)):
        return Rate(
            point,
            low,
            high,
            f"no label noise found: {point:.1%} of the {what}, less than this estimate may be out by; {bound}",
        )
    return Rate(
        point,
        low,
        high,
        f"{point:.1%} of the {what} if wrong ones depend on the class alone, and then at least {low:.1%}; more if they "
        f"sit on ambiguous samples, as people's do; {bound}",
    )
