"""Transition matrix, posterior and confident joint against numbers worked out by hand.

N samples, K classes. T_KK[i, j] = P(given label j | true class i).
"""

import numpy as np
import pytest
from numpy.typing import NDArray

from nlt.detect import (
    confident_counts,
    confident_joint,
    estimate_transition,
    knowing_the_label,
    log_odds_wrong,
    shrunk,
    true_class,
)


def two_classes(p_0: list[float]) -> NDArray[np.float64]:
    return np.array([[p, 1 - p] for p in p_0])


# ---- confident samples


def test_the_most_confident_sixty_then_the_next_hundred_and_twenty() -> None:
    p_NK = two_classes([0.99 - 0.001 * i for i in range(300)])  # all predicted as class 0, in falling confidence
    labels_N = np.array([0] * 52 + [1] * 8 + [0] * 70 + [1] * 170)
    assert confident_counts(p_NK, labels_N).tolist() == [[52, 8], [0, 0]]
    assert confident_counts(p_NK, labels_N, behind=True).tolist() == [[70, 50], [0, 0]]
    turned = np.random.default_rng(0).permutation(300)
    assert confident_counts(p_NK[turned], labels_N[turned]).tolist() == [[52, 8], [0, 0]]


def test_a_tenth_of_many_and_half_of_few() -> None:
    p_NK = two_classes([0.9] * 700 + [0.2] * 7)  # equally confident: the first ones
    labels_N = np.array([0] * 69 + [1] * 631 + [1, 1, 1, 0, 0, 0, 0])
    assert confident_counts(p_NK, labels_N).tolist() == [[69, 1], [1, 3]]
    assert confident_counts(p_NK, labels_N, behind=True).tolist() == [[0, 140], [3, 0]]


def test_each_fold_gives_its_part_in_its_own_order() -> None:
    """Eight of 80 in the second fold are the most sure by far; each fold still gives its better half, 40 and 4."""
    p_NK = two_classes([0.8 - 0.001 * i for i in range(80)] + [0.99 - 0.001 * i for i in range(8)])
    labels_N = np.array([0] * 40 + [1] * 40 + [1] * 6 + [0] * 2)
    fold_N = np.array([0] * 80 + [1] * 8)
    assert confident_counts(p_NK, labels_N, fold_N).tolist() == [[40, 4], [0, 0]]
    assert confident_counts(p_NK, labels_N, fold_N, behind=True).tolist() == [[2, 42], [0, 0]]
    assert confident_counts(p_NK, labels_N).tolist() == [[38, 6], [0, 0]]  # 36 of the first fold, 8 of the second


# ---- T


def test_cells_shrink_to_their_means_by_hand() -> None:
    """Half a count of error to each row of 20: 20.5. Only the last row has unequal cells, 4.25 / 20.5 and 0.25 / 20.5.

    Spread 2 * 0.097561^2 = 0.019036; explained by sampling (0.114515 + 0.024093 + 0.176383) / 20.5 * 1/2 = 0.0076827:
    B = 0.403581.
    The errors are 2.5, 0.5 and 4.5 / 20.5: mean 0.121951, spread 0.019036 by chance the same; explained
    3 * 0.121951 * 0.878049 / 20.5 * 2/3 = 0.0104467, of it 0.548781, squared 0.301161.
    """
    T_KK = shrunk(np.array([[18, 1, 1], [0, 20, 0], [4, 0, 16]]))
    errors = [0.1219512, 0.0537717, 0.1901307]
    by_hand = [
        [1 - errors[0], errors[0] / 2, errors[0] / 2],
        [errors[1] / 2, 1 - errors[1], errors[1] / 2],
        [0.7650744 * errors[2], 0.2349256 * errors[2], 1 - errors[2]],  # 0.1679433 and 0.0515689 of 4.5 / 20.5
    ]
    np.testing.assert_allclose(T_KK, by_hand, atol=1e-6)


def test_cells_that_sampling_explains_become_equal() -> None:
    T_KK = shrunk(np.array([[16, 2, 1, 1], [1, 17, 1, 1], [0, 1, 18, 1], [1, 0, 2, 17]]))
    assert T_KK[0, 1] == pytest.approx(14 / 82 / 3)  # the errors of all rows, too: 4.5, 3.5, 2.5 and 3.5 of 20.5
    assert T_KK[0, 1] == T_KK[0, 2] == T_KK[0, 3]
    np.testing.assert_allclose(T_KK[~np.eye(4, dtype=bool)], 14 / 82 / 3)


def test_two_classes_have_one_cell_a_row_and_their_errors_shrink() -> None:
    """5.5 and 2.5 of 20.5: mean 4 / 20.5, spread 0.0107079, explained 2 * 0.195122 * 0.804878 / 20.5 / 2 = 0.0076609:
    of it 0.715446, squared 0.511863."""
    T_KK = shrunk(np.array([[15, 5], [2, 18]]))
    np.testing.assert_allclose(T_KK, [[0.7691606, 0.2308394], [0.1594045, 0.8405955]], atol=1e-6)


def test_errors_of_rows_that_differ_are_kept() -> None:
    """Of 2,000 samples 10 % and 40 %: sampling explains 0.2 % of the spread."""
    T_KK = shrunk(np.array([[1800, 100, 100], [400, 1200, 400], [100, 100, 1800]]))
    np.testing.assert_allclose(1 - T_KK.diagonal(), [0.1, 0.4, 0.1], atol=1e-3)


def test_a_class_that_nobody_predicts_takes_the_error_of_all() -> None:
    """Errors 6 of 40, as 5 samples' worth in its row; half a count in each row makes 8.25 of 46.5."""
    T_KK = shrunk(np.array([[16, 2, 2], [1, 18, 1], [0, 0, 0]]))
    np.testing.assert_allclose(1 - T_KK.diagonal(), 8.25 / 46.5)  # sampling explains all that they differ by
    assert T_KK[2, 0] == pytest.approx(T_KK[2, 1])
    assert (T_KK > 0).all()
    np.testing.assert_allclose(T_KK.sum(1), 1)


@pytest.mark.parametrize("counts", [np.zeros((3, 3), int), 20 * np.roll(np.eye(3, dtype=int), 1, axis=1)])
def test_no_cell_is_0_without_a_single_right_label(counts: NDArray[np.int64]) -> None:
    T_KK = shrunk(counts)
    assert (T_KK > 0).all() and np.allclose(T_KK.sum(1), 1)


def spread(q_KK: NDArray[np.float64]) -> float:
    """How far cells off the diagonal lie from the mean of their row's."""
    rows_KC = q_KK[~np.eye(len(q_KK), dtype=bool)].reshape(len(q_KK), -1)
    return float(np.linalg.norm(rows_KC - rows_KC.mean(1, keepdims=True)))


@pytest.mark.parametrize("kind", ["symmetric", "pair", "lopsided"])
def test_a_known_matrix_is_recovered(kind: str) -> None:
    """A classifier that knows P(true | x), mostly sure, and labels drawn from T; rows and columns are not mixed up."""
    generator = np.random.default_rng(3)
    K, N = 4, 40_000
    T_KK = {
        "symmetric": np.full((4, 4), 0.1) + 0.6 * np.eye(4),
        "pair": 0.7 * np.eye(4) + 0.3 * np.roll(np.eye(4), 1, axis=1),
        "lopsided": np.array([[0.9, 0.1, 0, 0], [0, 1, 0, 0], [0.3, 0, 0.6, 0.1], [0.05, 0.05, 0.2, 0.7]]),
    }[kind]
    true_NK = softmax(generator.normal(size=(N, K)) * 3)
    true_N = (true_NK.cumsum(1) > generator.random((N, 1))).argmax(1)
    labels_N = (T_KK[true_N].cumsum(1) > generator.random((N, 1))).argmax(1)
    found = estimate_transition(true_NK @ T_KK, labels_N)
    assert abs(found.T_KK - T_KK).max() < 0.04
    counted, drawn = spread(found.counts_KK / found.counts_KK.sum(1, keepdims=True)), spread(found.T_KK)
    assert drawn < 0.5 * counted if kind == "symmetric" else drawn > 0.9 * counted
    np.testing.assert_allclose(
        true_class(true_NK[:50] @ T_KK, T_KK + 1e-6, steps=3000), true_NK[:50], atol=0.02
    )  # undone


def softmax(logits_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    p_NK = np.exp(logits_NK)
    return p_NK / p_NK.sum(1, keepdims=True)


# ---- posterior

T = np.array([[0.9, 0.1], [0.2, 0.8]])


def test_one_step_by_hand() -> None:
    """From (1/2, 1/2): pi T = (0.55, 0.45), pi_0 = 1/2 (0.9 * 0.76 / 0.55 + 0.1 * 0.24 / 0.45)."""
    np.testing.assert_allclose(true_class(np.array([[0.76, 0.24]]), T, steps=1), [[0.6484848, 0.3515152]], atol=1e-6)


def test_many_steps_solve_the_equation_or_end_at_a_corner() -> None:
    """0.8 * 0.9 + 0.2 * 0.2 = 0.76; no mixture of the rows gives 0.95 for the first label: the nearest is (1, 0)."""
    solved = true_class(np.array([[0.76, 0.24], [0.55, 0.45], [0.95, 0.05]]), T, steps=3000)
    np.testing.assert_allclose(solved, [[0.8, 0.2], [0.5, 0.5], [1, 0]], atol=1e-4)


def test_bayes_by_hand() -> None:
    """Given 1: 0.8 * 0.1 against 0.2 * 0.8. Given 0: 0.8 * 0.9 against 0.2 * 0.2."""
    true_NK, labels_N = np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([1, 0])
    posterior_NK = knowing_the_label(true_NK, T, labels_N)
    np.testing.assert_allclose(posterior_NK, [[1 / 3, 2 / 3], [0.72 / 0.76, 0.04 / 0.76]], atol=1e-6)
    np.testing.assert_allclose(log_odds_wrong(posterior_NK, labels_N), np.log([0.08 / 0.16, 0.04 / 0.72]), atol=1e-6)


def test_log_odds_keep_apart_what_rounds_to_one() -> None:
    posterior_NK = np.array([[1e-12, 1], [1e-20, 1], [0, 1], [1, 0]], np.float32)
    odds_N = log_odds_wrong(posterior_NK, np.array([0, 0, 0, 0]))
    assert np.isfinite(odds_N).all()
    assert odds_N[3] < odds_N[0] < odds_N[1] < odds_N[2]


def test_parts_of_rows_are_put_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    p_NK, labels_N = generator.dirichlet(np.ones(3), 100), generator.integers(0, 3, 100)
    T_KK = np.full((3, 3), 0.1) + 0.7 * np.eye(3)
    whole = true_class(p_NK, T_KK)
    posterior, joint = knowing_the_label(whole, T_KK, labels_N), confident_joint(p_NK, labels_N)
    for name in ("posterior", "joint"):
        monkeypatch.setattr(f"nlt.detect.{name}.PART", 7)
    np.testing.assert_array_equal(true_class(p_NK, T_KK), whole)
    np.testing.assert_array_equal(knowing_the_label(whole, T_KK, labels_N), posterior)
    np.testing.assert_allclose(confident_joint(p_NK, labels_N), joint, atol=1e-15)


# ---- confident joint


def test_confident_joint_by_hand() -> None:
    """Thresholds (0.9 + 0.6 + 0.3) / 3 = 0.6 and (0.8 + 0.2) / 2 = 0.5; the third is sure to be 1, the fifth to be 0."""
    joint_KK = confident_joint(two_classes([0.9, 0.6, 0.3, 0.2, 0.8]), np.array([0, 0, 0, 1, 1]))
    np.testing.assert_allclose(joint_KK, [[2 / 5, 1 / 5], [1 / 5, 1 / 5]], atol=1e-12)


def test_confident_joint_leaves_out_the_unsure_and_scales_rows() -> None:
    """Thresholds 0.7 and 0.8; sample 1 (0.5, 0.5) is sure of nothing; of three with label 0 two are counted."""
    joint_KK = confident_joint(two_classes([0.9, 0.5, 0.7, 0.2]), np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(joint_KK, [[3 / 4, 0], [0, 1 / 4]], atol=1e-12)
    with_an_empty_class = confident_joint(np.array([[0.9, 0.1, 0], [0.1, 0.9, 0]]), np.array([0, 1]))
    np.testing.assert_allclose(with_an_empty_class, np.diag([0.5, 0.5, 0]))


def test_confident_joint_is_cleanlabs() -> None:
    count = pytest.importorskip("cleanlab.count")
    generator = np.random.default_rng(0)
    true_N = generator.choice(5, 3000, p=[0.5, 0.2, 0.1, 0.1, 0.1])
    p_NK = softmax(generator.normal(size=(3000, 5)) + 2.5 * np.eye(5)[true_N])
    labels_N = np.where(generator.random(3000) < 0.3, generator.integers(0, 5, 3000), true_N)
    theirs = count.estimate_joint(labels_N, p_NK)
    np.testing.assert_allclose(confident_joint(p_NK, labels_N), theirs, atol=0.002)  # they round counts
