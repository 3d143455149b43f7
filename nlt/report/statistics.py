"""The arithmetic of a comparison: a number per seed in, mean, deviation and paired difference out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from scipy.special import stdtrit  # type: ignore[import-untyped]

LEVEL = 0.95  # of confidence intervals


@dataclass(frozen=True)
class Summary:
    """What n seeds gave."""

    n: int
    mean: float
    sd: float | None
    """Sample standard deviation (divided by n - 1); None for one seed."""


@dataclass(frozen=True)
class Difference:
    """A cell less its baseline, seed by seed; in the unit of the values."""

    n: int
    """Seeds that both have."""
    mean: float
    half: float | None
    """Half the width of the confidence interval, mean - half to mean + half; None with fewer than two seeds."""


def summary(values: Sequence[float]) -> Summary | None:
    """Return mean and deviation, or None of no values."""
    if not values:
        return None
    return Summary(len(values), mean(values), stdev(values) if len(values) > 1 else None)


def ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Return each name's place among the values, the highest being 1; equal ones share the mean of their places."""
    return {
        name: 1 + sum(other > value for other in values.values())
        + (sum(other == value for other in values.values()) - 1) / 2
        for name, value in values.items()
    }  # fmt: skip


def paired_difference(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Return the mean difference over the seeds that both have, with Student's interval, or None if they share none.

    The differences of n seeds with sample deviation s give mean ± t s / sqrt(n), where t is the quantile of Student's
    distribution with n - 1 degrees of freedom that leaves (1 - LEVEL) / 2 on each side: 12.71 for two seeds, 4.30 for
    three.

    Args:
        ours: seed -> value.
        baseline: seed -> value.
    """
    differences = [ours[seed] - baseline[seed] for seed in sorted(ours.keys() & baseline.keys())]
    found = summary(differences)
    if found is None:
        return None
    if found.sd is None:
        return Difference(found.n, found.mean, None)
    t = float(stdtrit(found.n - 1, (1 + LEVEL) / 2))
    return Difference(found.n, found.mean, t * found.sd / sqrt(found.n))
