"""Masks and their measures against numbers worked out by hand and against plain counting.

N samples; keep_N is True where kept, wrong_N where the given label is wrong.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlt.detect import auc, mask_quality, number_kept, smallest

T, F = True, False


# ---- smallest


@pytest.mark.parametrize(
    ("scores", "forget_rate", "by_hand"),
    [
        ([3.0, 1.0, 4.0, 2.0], 0.25, [T, T, F, T]),
        ([3.0, 1.0, 4.0, 2.0], 0.5, [F, T, F, T]),
        ([3.0, 1.0, 4.0, 2.0], 0.49, [T, T, F, T]),  # floor(1.96) = 1
        ([-1.0, -3.0, 0.0, -2.0], 0.5, [F, T, F, T]),
        ([5.0, 5.0, 5.0, 5.0], 0.5, [T, T, F, F]),  # ties: the first are kept
        ([1.0, 2.0, 2.0, 2.0, 0.0], 0.4, [T, T, F, F, T]),
        ([1.0, 9.0], 0.0, [T, T]),
        ([1.0, 0.0, math.inf], 0.4, [T, T, F]),
    ],
)
def test_smallest_by_hand(scores: list[float], forget_rate: float, by_hand: list[bool]) -> None:
    keep_N = smallest(torch.tensor(scores), forget_rate)
    assert keep_N.dtype == torch.bool
    assert keep_N.tolist() == by_hand


def test_smallest_keeps_the_first_among_many_ties() -> None:
    """An unstable sort keeps any of them; it shows from some thousand samples on."""
    assert smallest(torch.zeros(20_000), 0.25).tolist() == [True] * 15_000 + [False] * 5_000


@pytest.mark.parametrize(
    ("forget_rate", "N", "removed"),
    [
        (0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996
        (0.57, 100, 57),  # 0.57 * 100 is 56.99999999999999
        (0.0, 10, 0),
        (0.09, 10, 0),
        (0.9999, 10, 9),  # 9.999: one stays
        (0.99999, 50_000, 49_999),
    ],
)
def test_number_removed_by_hand(forget_rate: float, N: int, removed: int) -> None:
    assert int((~smallest(torch.arange(N).float(), forget_rate)).sum()) == removed


@pytest.mark.parametrize(
    ("forget_rate", "N", "removed"),
    [
        (0.2, 20_000, 4_000),  # the paper's cells: int(0.8 * 20000) = 16000, int(0.4 * 20000) = 8000, none differs
        (0.6, 20_000, 12_000),
        (0.25, 10, 3),  # 10 - int(7.5); floor(2.5) is 2
        (0.1, 1_400, 140),  # int(0.9 * 1400) = 1260
        (0.1, 1_397, 140),  # 1397 - int(1257.3); floor(139.7) is 139
        (0.9, 10, 9),  # (1 - 0.9) * 10 is 0.9999999999999998, of which int leaves nothing: one stays
        (0.0, 10, 0),
    ],
)
def test_number_removed_by_the_published_codes_rounding(forget_rate: float, N: int, removed: int) -> None:
    assert int((~smallest(torch.arange(N).float(), forget_rate, "as_code")).sum()) == removed


def test_the_published_codes_rounding_removes_one_more_in_most_cases() -> None:
    """The claim of `number_kept`, over rates of two digits and 1,000 to 1,199 samples."""
    more = [
        number_kept(N, f / 100) - number_kept(N, f / 100, "as_code") for f in range(1, 100) for N in range(1000, 1200)
    ]
    assert set(more) == {0, 1} and sum(more) / len(more) > 0.9


def test_smallest_keeps_one_however_near_1_the_rate() -> None:
    assert int(smallest(torch.arange(10.0), 1 - 1e-11).sum()) == 1


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    scores=st.lists(st.integers(-5, 5), min_size=1, max_size=60),
    thousandths=st.integers(0, 999),
)
def test_smallest_removes_the_floor_and_no_score_below_a_kept_one(scores: list[int], thousandths: int) -> None:
    scores_N = torch.tensor(scores, dtype=torch.float32)
    keep_N = smallest(scores_N, thousandths / 1000)
    assert int((~keep_N).sum()) == math.floor(Fraction(thousandths, 1000) * len(scores))
    assert keep_N.any()
    if not keep_N.all():
        assert scores_N[keep_N].max() <= scores_N[~keep_N].min()


# ---- mask_quality


@pytest.mark.parametrize(
    ("keep", "wrong", "by_hand"),
    [
        # Removed 2, 3, 4; wrong 1, 2, 4, 5; both 2, 4. Kept 5, of them wrong 1, 5.
        (
            [T, T, F, F, F, T, T, T],
            [F, T, T, F, T, T, F, F],
            {"noise/precision": 2 / 3, "noise/recall": 2 / 4, "noise/remaining": 2 / 5},
        ),
        ([T, F], [F, T], {"noise/precision": 1, "noise/recall": 1, "noise/remaining": 0}),
        ([T, F], [T, F], {"noise/precision": 0, "noise/recall": 0, "noise/remaining": 1}),
        # Nothing removed: no precision. No label wrong: no recall. Nothing kept: no remaining.
        ([T, T, T, T], [F, T, F, F], {"noise/recall": 0, "noise/remaining": 0.25}),
        ([T, F, T, T], [F, F, F, F], {"noise/precision": 0, "noise/remaining": 0}),
        ([F, F], [T, F], {"noise/precision": 0.5, "noise/recall": 1}),
        ([T, T], [F, F], {"noise/remaining": 0}),
    ],
)
def test_mask_quality_by_hand(keep: list[bool], wrong: list[bool], by_hand: dict[str, float]) -> None:
    assert mask_quality(torch.tensor(keep), torch.tensor(wrong)) == pytest.approx(by_hand)


# ---- auc


@pytest.mark.parametrize(
    ("scores", "wrong", "by_hand"),
    [
        ([1.0, 2.0, 3.0, 4.0], [F, F, T, T], 1),
        ([4.0, 3.0, 2.0, 1.0], [F, F, T, T], 0),
        # wrong 2 beats right 1, not right 3; wrong 4 beats both: 3 of 4 pairs
        ([1.0, 2.0, 3.0, 4.0], [F, T, F, T], 0.75),
        ([7.0, 7.0], [F, T], 0.5),
        # right 1, 2, 2; wrong 2, 3: 1 + 1/2 + 1/2, and 3 of 3: 5 of 6 pairs
        ([1.0, 2.0, 2.0, 2.0, 3.0], [F, F, F, T, T], 5 / 6),
        ([-1.0, -2.0, 0.0], [T, F, F], 0.5),
        ([1.0, 2.0], [F, F], None),
        ([1.0, 2.0], [T, T], None),
    ],
)
def test_auc_by_hand(scores: list[float], wrong: list[bool], by_hand: float | None) -> None:
    area = auc(torch.tensor(scores), torch.tensor(wrong))
    assert area is None if by_hand is None else area == pytest.approx(by_hand)


def test_auc_leaves_out_samples_without_a_score() -> None:
    """Of the scored ones the wrong label lies above one of two right ones."""
    scores_N = torch.tensor([2.0, float("nan"), 1.0, 3.0, float("nan")])
    assert auc(scores_N, torch.tensor([True, True, False, False, False])) == 0.5
    assert auc(torch.full((3,), float("nan")), torch.tensor([True, False, False])) is None


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs(samples: list[tuple[int, bool]]) -> None:
    rights = [score for score, wrong in samples if not wrong]
    wrongs = [score for score, wrong in samples if wrong]
    area = auc(torch.tensor([float(s) for s, _ in samples]), torch.tensor([w for _, w in samples]))
    if not rights or not wrongs:
        assert area is None
        return
    won = sum(1.0 if w > r else 0.5 if w == r else 0.0 for w in wrongs for r in rights)
    assert area == pytest.approx(won / (len(wrongs) * len(rights)))


@pytest.mark.parametrize("digits", [2, 7])
def test_auc_of_200_000_samples_is_exact(digits: int) -> None:
    """The sum of 200,000 ranks does not fit float32, and most scores are tied with two digits."""
    generator = np.random.default_rng(0)
    N = 200_000
    wrong = generator.random(N) < 0.4
    scores = (generator.normal(size=N) + 0.7 * wrong).round(digits).astype(np.float32)
    rights = np.sort(scores[~wrong])
    below = np.searchsorted(rights, scores[wrong], "left").astype(np.float64)
    not_above = np.searchsorted(rights, scores[wrong], "right").astype(np.float64)
    exact = (below + not_above).sum() / 2 / (len(rights) * wrong.sum())
    area = auc(torch.from_numpy(scores), torch.from_numpy(wrong))
    assert area == pytest.approx(exact, abs=1e-12)
