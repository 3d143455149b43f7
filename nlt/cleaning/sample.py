"""The rate of wrong labels from a few human answers on a random sample: unbiased, whatever the noise.

Legend: N samples, H strata of N_h samples each, n_h of them answered.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EDGES = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9)  # of the strata, in p_wrong: the detector's right and wrong labels lie apart
LEAST = 4  # of each stratum, so that its share of wrong labels can be told
SURE = 1.959963984540054  # the standard normal's quantile at 97.5 %: intervals of 95 %


@dataclass(frozen=True)
class Sample:
    """Rows to look at, in the order to look at them; every beginning of it is itself a stratified random sample."""

    rows: tuple[int, ...]
    strata: tuple[int, ...]
    """Of each row of the sample: the number of its stratum."""
    sizes: tuple[int, ...]
    """N_h of every stratum; they sum to N."""


@dataclass(frozen=True)
class Estimate:
    """A share of wrong labels in [0, 1] with an interval of 95 %, and what it rests on."""

    point: float
    low: float
    high: float
    decided: int
    """Answers that count: the beginning of the sample without a gap, less those where nobody could tell."""
    reading: str


def draw_sample(p_wrong_N: NDArray[np.float64], size: int, seed: int) -> Sample:
    """Draw `size` of N samples at random, without replacement, stratified by their probability of being wrong.

    n_h is proportional to N_h sqrt(q_h (1 - q_h)) (Neyman's allocation: Cochran, Sampling Techniques, 3rd edition,
    eq. 5.26), at least `LEAST`. q_h is the stratum's mean p_wrong, drawn towards a half, since human errors hide where
    the detector sees none. The strata are interleaved, so that one may stop early.
    """
    stratum_N = np.searchsorted(np.array(EDGES), p_wrong_N, side="right")
    members = [np.flatnonzero(stratum_N == h) for h in range(len(EDGES) + 1)]
    members = [rows for rows in members if len(rows)]
    sizes = tuple(len(rows) for rows in members)
    expected = np.array([(p_wrong_N[rows].mean() + 0.1) / 1.2 for rows in members])
    taken = _allocate(np.array(sizes), np.sqrt(expected * (1 - expected)), min(size, len(p_wrong_N)))
    rng = np.random.RandomState(seed)  # frozen stream (NEP 19)
    places = []
    for h, (rows, n) in enumerate(zip(members, taken, strict=True)):
        shuffled = rows[rng.permutation(len(rows))[:n]]
        places += [((i + 0.5) / n, h, int(row)) for i, row in enumerate(shuffled)]
    places.sort()
    return Sample(tuple(row for _, _, row in places), tuple(h for _, h, _ in places), sizes)


def _allocate(sizes: NDArray[np.int64], spread: NDArray[np.float64], total: int) -> list[int]:
    """Share `total` out by sizes x spread: at least `LEAST` each as far as that goes, at most all of a stratum."""
    taken = np.minimum(sizes, LEAST if total >= LEAST * len(sizes) else max(1, total // len(sizes)))
    while taken.sum() < total:
        short = np.where(taken < sizes, sizes * spread / (taken + 0.5), -1)  # the next goes where most is lacking
        taken[int(np.argmax(short))] += 1
    return [int(n) for n in taken]


def estimate_rate(sample: Sample, answers: Mapping[int, bool | None], counted: int | None = None) -> Estimate | None:
    """Estimate the share of wrong labels from answers on the beginning of a sample; None if they do not suffice yet.

    Horvitz and Thompson (JASA 47, 1952): with y_i = 1 where a label is wrong and pi_i = n_h / N_h the probability that
    sample i of stratum h was drawn,

        rate = (1 / N) sum_i y_i / pi_i = sum_h W_h y_h,    W_h = N_h / N,   y_h = mean of y in stratum h,
        variance = sum_h W_h^2 (1 - n_h / N_h) y_h (1 - y_h) / (n_h - 1)    (Cochran, eq. 5.8 and 3.8).

    The rate is unbiased whatever made the labels wrong. Its variance says 0 for a stratum whose answers are all the
    same, so the interval is put together from one Wilson interval [l_h, u_h] per stratum, with n_h / (1 - n_h / N_h)
    for n_h, by Zou and Donner's rule (Statistics in Medicine 27, 2008):

        low = rate - sqrt(sum_h W_h^2 (y_h - l_h)^2),    high = rate + sqrt(sum_h W_h^2 (u_h - y_h)^2).

    Where nobody can tell (None), the point takes the others of the stratum for it, and the bounds take it once for
    right and once for wrong.

    Args:
        sample: as drawn.
        answers: row -> True where the given label is wrong, False where right, None where nobody can tell.
        counted: how much of the sample's beginning may count; it also ends where the first answer is missing.
    """
    answered = next((i for i, row in enumerate(sample.rows) if row not in answers), len(sample.rows))
    length = answered if counted is None else min(answered, counted)
    told: list[list[bool | None]] = [[] for _ in sample.sizes]
    for row, h in zip(sample.rows[:length], sample.strata[:length], strict=True):
        told[h].append(answers[row])
    known = [[y for y in stratum if y is not None] for stratum in told]
    if not all(known):
        return None
    N = sum(sample.sizes)
    weights = [size / N for size in sample.sizes]
    point = sum(W * sum(y) / len(y) for W, y in zip(weights, known, strict=True))
    low = _interval(weights, sample.sizes, [[bool(y) for y in stratum] for stratum in told])[0]
    high = _interval(weights, sample.sizes, [[y is not False for y in stratum] for stratum in told])[1]
    decided, open_ = sum(map(len, known)), sum(map(len, told)) - sum(map(len, known))
    reading = (
        f"From {decided} answers on a stratified random sample of {N:,} (Horvitz-Thompson): it assumes nothing about "
        "the noise, only that the answers are right"
        + (f"; {open_} that nobody could tell widen the interval." if open_ else ".")
    )
    return Estimate(point, min(low, point), max(high, point), decided, reading)


def variance(sample_sizes: Sequence[int], wrong: Sequence[int], answered: Sequence[int]) -> float:
    """Return the variance of the estimated rate, by `estimate_rate`'s formula.

    Args:
        sample_sizes: N_h of every stratum.
        wrong: how many of its answers say "wrong".
        answered: n_h, at least 2.
    """
    N = sum(sample_sizes)
    return sum(
        (size / N) ** 2 * (1 - n / size) * (y / n) * (1 - y / n) / (n - 1)
        for size, y, n in zip(sample_sizes, wrong, answered, strict=True)
    )


def _interval(weights: Sequence[float], sizes: Sequence[int], told: Sequence[Sequence[bool]]) -> tuple[float, float]:
    rate = below = above = 0.0
    for W, size, answers in zip(weights, sizes, told, strict=True):
        n, share = len(answers), sum(answers) / len(answers)
        low, high = (share, share) if n == size else _wilson(share, n / (1 - n / size))
        rate += W * share
        below += (W * (share - low)) ** 2
        above += (W * (high - share)) ** 2
    return max(0.0, rate - math.sqrt(below)), min(1.0, rate + math.sqrt(above))


def _wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share seen in n draws (JASA 22, 1927)."""
    z2 = SURE**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = SURE / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
