"""Transition matrices by hand, and labels drawn from them.

N samples, K classes. T_KK[i, j] = P(given label j | true class i).
"""

import math
from typing import Any, get_args

import pytest
import torch
from conftest import REPO
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from nlt.noise import Asymmetric, Draw, Matrix, Noise, NoNoise, PairFlip, Symmetric, corrupt, empirical_matrix
from nlt.reading import load
from nlt.settings import BadInput

CLASSES = ("cat", "dog", "deer", "truck")
# Drawn with seed 0: 0.970, 0.708, 0.459, 0.921, 0.645 ... Row 0 of T at rate 0.6 has the edges 0.4, 0.6, 0.8, 1, row 1
# 0.2, 0.6, 0.8, 1, row 2 0.2, 0.4, 0.8, 1, row 3 0.2, 0.4, 0.6, 1: so 3, 2, 2, 3, 2 ...
GOLDEN = [3, 2, 2, 3, 2, 2, 0, 1, 1, 1, 2, 0, 0, 2, 2, 2]
ROWS = ((0.5, 0.5, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.25, 0.25, 0.25, 0.25), (0.1, 0.2, 0.3, 0.4))

CASES = [
    (NoNoise(), [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    # 0.3 / 3 = 0.1 for each wrong class
    (
        Symmetric(rate=0.3),
        [[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.1, 0.1, 0.1, 0.7]],
    ),
    # 0 -> 1 -> 2 -> 3 -> 0
    (
        PairFlip(rate=0.25),
        [[0.75, 0.25, 0, 0], [0, 0.75, 0.25, 0], [0, 0, 0.75, 0.25], [0.25, 0, 0, 0.75]],
    ),
    # Both ways between cat and dog, each from the true label: none of the flipped flips back. deer stays clean.
    (
        Asymmetric(rate=0.4, flips={"cat": "dog", "dog": "cat", "truck": "deer"}),
        [[0.6, 0.4, 0, 0], [0.4, 0.6, 0, 0], [0, 0, 1, 0], [0, 0, 0.4, 0.6]],
    ),
    (Matrix(rows=ROWS), [list(row) for row in ROWS]),
]
every_kind = pytest.mark.parametrize(("noise", "by_hand"), CASES, ids=[noise.name for noise, _ in CASES])


def balanced(N: int, K: int = 4) -> Tensor:
    return torch.arange(N) % K


@every_kind
def test_matrix_by_hand(noise: Any, by_hand: list[list[float]]) -> None:
    T_KK = noise.matrix(CLASSES)
    assert T_KK.dtype == torch.float64
    for row, row_by_hand in zip(T_KK.tolist(), by_hand, strict=True):
        assert row == pytest.approx(row_by_hand, abs=1e-12)


def test_symmetric_with_two_classes() -> None:
    """With K = 2 the one other class gets it all."""
    assert Symmetric(rate=0.2).matrix(("a", "b")).tolist() == [[0.8, 0.2], [0.2, 0.8]]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(rate=st.floats(0, 1), K=st.integers(2, 12))
def test_rows_sum_to_1_and_the_diagonal_is_1_minus_rate(rate: float, K: int) -> None:
    classes = tuple(f"c{i}" for i in range(K))
    for noise in (Symmetric(rate=rate), PairFlip(rate=rate)):
        T_KK = noise.matrix(classes)
        assert T_KK.sum(1).tolist() == pytest.approx([1] * K, abs=1e-12)
        assert T_KK.diag().tolist() == [1 - rate] * K
        assert (T_KK >= 0).all()


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (Asymmetric(rate=0.4, flips={"tiger": "dog"}), "'tiger'.*not in the data set.*cat, dog, deer, truck"),
        (Asymmetric(rate=0.4, flips={"dog": "tiger"}), "'tiger'.*not in the data set"),
        (Asymmetric(rate=0.4, flips={"dog": "cat", "deer": "deer"}), "'deer' to itself"),
        (Matrix(rows=((1.0, 0.0), (0.0, 1.0))), r"2 rows of \[2\] numbers.*4 rows of 4"),
        (Matrix(rows=(*ROWS[:3], (0.5, 0.5))), r"4 rows of \[2, 4\] numbers"),
        (Matrix(rows=(*ROWS[:3], (0.1, 0.2, 0.3, 0.3))), "row 3 sums to 0.9:"),
        (Matrix(rows=(*ROWS[:3], (0.1, 0.2, 0.3, 0.40001))), "row 3 sums to 1.00001:"),
    ],
)
def test_matrix_that_does_not_fit_is_an_error_that_names_it(noise: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        noise.matrix(CLASSES)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "symmetric"}',
        '{"name": "symmetric", "rate": 1.5}',
        '{"name": "pair_flip", "rate": -0.1}',
        '{"name": "symmetric", "rate": 0.2, "seed": -1}',
        '{"name": "asymmetric", "rate": 0.2, "flips": {}}',
        '{"name": "matrix", "rows": [[1.5, -0.5], [0, 1]]}',
        '{"name": "none", "rate": 0.2}',
    ],
)
def test_settings_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Noise).validate_json(text)


@every_kind
def test_union_picks_by_name_and_survives_a_round_trip(noise: Any, by_hand: list[list[float]]) -> None:
    assert TypeAdapter(Noise).validate_json(noise.model_dump_json()) == noise


# ---- corrupt


@pytest.mark.parametrize(
    "noise",
    [NoNoise(), Symmetric(rate=0), PairFlip(rate=0), Asymmetric(rate=0, flips={"cat": "dog"})],
    ids=lambda noise: noise.name,
)
def test_rate_0_changes_no_label(noise: Any) -> None:
    clean_N = balanced(5000)
    given_N = corrupt(clean_N, noise.matrix(CLASSES), seed=3)
    assert given_N.dtype == torch.int64
    assert torch.equal(given_N, clean_N)


def test_rate_1_leaves_no_label_right() -> None:
    clean_N = balanced(5000)
    given_N = corrupt(clean_N, Symmetric(rate=1).matrix(CLASSES), seed=3)
    assert not (given_N == clean_N).any()
    assert empirical_matrix(clean_N, given_N, 4).fill_diagonal_(1).min() > 0.25  # every wrong class is drawn


def test_certain_transitions_are_exact() -> None:
    clean_N = balanced(5000)
    given_N = corrupt(clean_N, PairFlip(rate=1).matrix(CLASSES), seed=3)
    assert torch.equal(given_N, (clean_N + 1) % 4)
    T_KK = torch.tensor([[0, 0, 1, 0], [0.5, 0, 0, 0.5], [1, 0, 0, 0], [0, 0.5, 0.5, 0]], dtype=torch.float64)
    given_N = corrupt(clean_N, T_KK, seed=3)
    assert [sorted(set(given_N[clean_N == k].tolist())) for k in range(4)] == [[2], [0, 3], [0], [1, 2]]


@every_kind
def test_every_transition_comes_as_often_as_asked(noise: Any, by_hand: list[list[float]]) -> None:
    """Within 4 standard deviations, sqrt(T (1 - T) / n) with n = 25,000 samples of each class."""
    n = 25_000
    clean_N = balanced(4 * n)
    given_N = corrupt(clean_N, noise.matrix(CLASSES), seed=1)
    drawn_KK = empirical_matrix(clean_N, given_N, 4)
    for i in range(4):
        for j in range(4):
            p = by_hand[i][j]
            assert abs(drawn_KK[i, j].item() - p) <= 4 * math.sqrt(p * (1 - p) / n), (i, j)


@pytest.mark.parametrize("rate", [0.2, 0.6])
def test_symmetric_rate_is_the_share_of_wrong_labels(rate: float) -> None:
    """Redrawing among all 10 classes would reach only 0.9 * rate: at 0.2 that is 16 standard deviations off."""
    N = 100_000
    classes = tuple("0123456789")
    clean_N = balanced(N, 10)
    given_N = corrupt(clean_N, Symmetric(rate=rate).matrix(classes), seed=5)
    share = (given_N != clean_N).double().mean().item()
    assert abs(share - rate) <= 4 * math.sqrt(rate * (1 - rate) / N)


def test_same_seed_same_labels_other_seed_others() -> None:
    clean_N, T_KK = balanced(1000), Symmetric(rate=0.5).matrix(CLASSES)
    first_N = corrupt(clean_N, T_KK, seed=7)
    assert torch.equal(first_N, corrupt(clean_N, T_KK, seed=7))
    other_N = corrupt(clean_N, T_KK, seed=8)
    # Two independent draws agree with probability 0.5^2 + 3 (1/6)^2 = 1/3; a standard deviation is 0.015.
    assert abs((first_N == other_N).double().mean().item() - 1 / 3) < 0.06


def test_seeded_labels_stay_what_they_were() -> None:
    """A published corruption must come out the same in the next version of this project."""
    T_KK = Symmetric(rate=0.6).matrix(CLASSES)
    assert corrupt(balanced(16), T_KK, seed=0).tolist() == GOLDEN


# numpy draws a multinomial as one binomial after another, each from one uniform number U: class j, of probability p of
# what is left, is taken if U > 1 - p, or, where p > 1/2, if U <= p; the last class takes the rest. RandomState(0) gives
# .549, .715, .603, .545, .424, .646, .438, .892, .964, .383, .792, .529, .568, .926, .071, .087, .020.
# At rate 0.6, true classes 0, 1, 2, 3 in turn:
#   0: .549 > .6 no, .715 > 2/3 -> 1          1: .603 > .8 no, .545 > .5 -> 1
#   2: .424 > .8 no, .646 > .75 no, .438 <= 2/3 -> 2        3: .892 > .8 -> 0
#   0: .964 > .6 -> 0                         1: .383 > .8 no, .792 > .5 -> 1
#   2: .529 > .8 no, .568 > .75 no, .926 <= 2/3 no -> 3     3: .071 > .8 no, .087 > .75 no, .020 > 2/3 no -> 3
def test_per_sample_multinomial_by_hand() -> None:
    T_KK = Symmetric(rate=0.6).matrix(CLASSES)
    given_N = corrupt(balanced(8), T_KK, seed=0, draw="per_sample_multinomial")
    assert given_N.dtype == torch.int64
    assert given_N.tolist() == [1, 1, 2, 0, 0, 1, 3, 3]


# The true classes of CIFAR-4's first 20 training images in the official order, and what the published code makes of them.
CIFAR4_FIRST = [3, 2, 0, 3, 2, 2, 0, 3, 0, 0, 1, 3, 0, 3, 0, 2, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("rate", "given"),
    [
        (0.2, [3, 2, 0, 1, 2, 2, 0, 3, 1, 0, 1, 3, 2, 3, 0, 2, 0, 1, 1, 2]),
        (0.6, [3, 2, 1, 0, 1, 3, 3, 0, 0, 0, 0, 2, 3, 0, 3, 2, 2, 0, 0, 2]),
    ],
)
def test_as_published_draws_the_published_codes_labels(rate: float, given: list[int]) -> None:
    spec = load(REPO / "experiments" / "as_published" / f"base_{round(100 * rate)}.json")
    assert isinstance(spec.noise, Symmetric) and spec.noise.rate == rate
    T_KK = spec.noise.matrix(CLASSES)
    assert corrupt(torch.tensor(CIFAR4_FIRST), T_KK, spec.noise.seed, spec.noise.draw).tolist() == given


@pytest.mark.parametrize("draw", get_args(Draw))
def test_every_draw_has_the_frequencies_of_its_row(draw: Draw) -> None:
    """20,000 draws of a row; a standard deviation is at most 0.0035."""
    T_KK = Matrix(rows=ROWS).matrix(CLASSES)
    given_N = corrupt(torch.full((20_000,), 3), T_KK, seed=4, draw=draw)
    shares_K = torch.bincount(given_N, minlength=4) / 20_000
    assert shares_K.tolist() == pytest.approx(ROWS[3], abs=0.015)


def test_a_draw_is_no_part_of_an_older_specs_hash_and_its_seed_has_32_bits() -> None:
    assert Symmetric(rate=0.2).deciding() == {"name": "symmetric", "rate": 0.2, "seed": 0}
    assert Symmetric(rate=0.2, draw="per_sample_multinomial").deciding()["draw"] == "per_sample_multinomial"
    with pytest.raises(ValidationError, match="less than 2\\^32"):
        Symmetric(rate=0.2, seed=2**32, draw="per_sample_multinomial")


def test_global_random_state_neither_matters_nor_moves() -> None:
    clean_N, T_KK = balanced(100), Symmetric(rate=0.5).matrix(CLASSES)
    torch.manual_seed(1)
    first_N = corrupt(clean_N, T_KK, seed=7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second_N = corrupt(clean_N, T_KK, seed=7)
    assert torch.equal(first_N, second_N)
    assert torch.equal(before, torch.get_rng_state())


def test_a_draw_depends_on_the_samples_place_alone() -> None:
    """Changing the true class of some samples leaves the labels of the others as they were."""
    T_KK = Symmetric(rate=0.5).matrix(CLASSES)
    clean_N = balanced(1000)
    changed_N = clean_N.clone()
    changed_N[::2] = 3
    given_N, changed_given_N = corrupt(clean_N, T_KK, seed=7), corrupt(changed_N, T_KK, seed=7)
    assert torch.equal(given_N[1::2], changed_given_N[1::2])


def test_input_is_left_alone() -> None:
    """The last edge is set to 1: in a copy, not in T."""
    clean_N, T_KK = balanced(100), PairFlip(rate=0.3).matrix(CLASSES)
    clean_before_N, T_before_KK = clean_N.clone(), T_KK.clone()
    corrupt(clean_N, T_KK, seed=0)
    assert torch.equal(clean_N, clean_before_N) and torch.equal(T_KK, T_before_KK)


def test_a_row_that_rounds_to_less_than_1_never_leaves_the_classes() -> None:
    """The rows sum to 0.9999993, which is admitted; number 1,678 drawn with seed 286 lies above that."""
    draws_N = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(286))
    assert draws_N.argmax() == 1678 and draws_N[1678] > 0.9999993  # else this test would test nothing
    T_KK = Matrix(rows=((0.333333, 0.333333, 0.3333333),) * 3).matrix(("a", "b", "c"))
    given_N = corrupt(torch.zeros(2000, dtype=torch.int64), T_KK, seed=286)
    assert given_N[1678] == 2
    assert given_N.max() == 2


def test_ten_times_a_tenth_stays_in_range() -> None:
    T_KK = Matrix(rows=((0.1,) * 10,) * 10).matrix(tuple("0123456789"))
    given_N = corrupt(balanced(100_000, 10), T_KK, seed=0)
    assert sorted(set(given_N.tolist())) == list(range(10))


# ---- empirical_matrix


def test_empirical_matrix_by_hand() -> None:
    """Class 0: given 0, 0, 1, 2 -> 2/4, 1/4, 1/4. Class 1: given 0 twice. Class 2: no samples, a row of zeros."""
    clean_N = torch.tensor([0, 1, 0, 0, 1, 0])
    given_N = torch.tensor([0, 0, 1, 0, 0, 2])
    matrix_KK = empirical_matrix(clean_N, given_N, 3)
    assert matrix_KK.dtype == torch.float64
    assert matrix_KK.tolist() == [[0.5, 0.25, 0.25], [1, 0, 0], [0, 0, 0]]


def test_a_row_that_rounds_to_less_than_1_gives_nothing_to_a_class_it_rules_out() -> None:
    T_KK = Matrix(rows=((0.4999995, 0.5, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))).matrix(("a", "b", "c"))
    assert T_KK[0].sum().item() == 1
    assert T_KK.cumsum(1)[0, 1].item() == 1  # the edge before the last class
