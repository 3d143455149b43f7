"""Leave-one-out predictions against N models that are really refitted, one per sample left out.

N samples, D features, K classes.
"""

import importlib
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from nlt.detect import choose_features, leave_one_out
from nlt.settings import BadInput

module = importlib.import_module("nlt.detect.leave_one_out")


def problem(N: int, D: int, K: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Classes that lie apart, of different sizes, features with a mean and of different spread."""
    generator = np.random.default_rng(seed)
    labels_N = np.concatenate([np.arange(K), generator.integers(0, K, N - K) * generator.integers(0, 2, N - K)])
    features_ND = generator.normal(size=(N, D)) * generator.uniform(0.1, 3, D) + 1
    return features_ND + generator.normal(size=(K, D))[labels_N], labels_N


def refitted(features_ND: NDArray[Any], labels_N: NDArray[np.int64], K: int, penalty: float) -> NDArray[np.float64]:
    """Outputs of N models, each fitted by scikit-learn to the other N - 1 samples, with an intercept of its own."""
    features_ND = features_ND.astype(np.float64)
    rows_ND = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)
    rows_ND = (rows_ND - rows_ND.mean(0)) / rows_ND.std(0)
    N = len(labels_N)
    out_NK = np.empty((N, K))
    for i in range(N):
        others = np.arange(N) != i
        model = Ridge(alpha=penalty * N).fit(rows_ND[others], np.eye(K)[labels_N[others]])
        out_NK[i] = model.predict(rows_ND[[i]])[0]
    return out_NK


def softmax(logits_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    p_NK = np.exp(logits_NK)
    return p_NK / p_NK.sum(1, keepdims=True)


@pytest.mark.parametrize(("N", "D", "K"), [(40, 6, 3), (41, 41, 2), (20, 60, 4), (20, 1280, 2)])
@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_as_exact_as_N_refitted_models(N: int, D: int, K: int, penalty: float) -> None:
    """Also where there are more features than samples."""
    features_ND, labels_N = problem(N, D, K)
    found = leave_one_out(features_ND, labels_N, K, penalties=(penalty,), temperatures=(3.0,))
    by_hand_NK = softmax(3.0 * refitted(features_ND, labels_N, K, penalty))
    np.testing.assert_allclose(found.p_NK, by_hand_NK, atol=1e-6)
    assert found.cross_entropy == pytest.approx(-np.log(by_hand_NK[np.arange(N), labels_N]).mean(), abs=1e-8)
    assert (found.penalty, found.temperature) == (penalty, 3.0)
    assert found.p_NK.dtype == np.float32


def test_the_pair_with_the_smallest_cross_entropy_is_taken() -> None:
    features_ND, labels_N = problem(60, 5, 3, seed=1)
    penalties, temperatures = (0.001, 0.1, 10.0), (0.5, 4.0, 40.0)
    best = min(
        (-np.log(softmax(t * refitted(features_ND, labels_N, 3, p))[np.arange(60), labels_N]).mean(), p, t)
        for p in penalties
        for t in temperatures
    )
    found = leave_one_out(features_ND, labels_N, 3, penalties=penalties, temperatures=temperatures)
    assert (found.penalty, found.temperature) == best[1:]
    assert found.cross_entropy == pytest.approx(best[0], abs=1e-8)


@pytest.mark.parametrize(("N", "D"), [(50, 7), (30, 64)])
@pytest.mark.parametrize("part", [1, 7, 50])
def test_parts_change_nothing(N: int, D: int, part: int) -> None:
    features_ND, labels_N = problem(N, D, 3)
    whole, parts = (leave_one_out(features_ND, labels_N, 3, part=p) for p in (4096, part))
    np.testing.assert_allclose(parts.p_NK, whole.p_NK, atol=1e-6)
    assert (parts.penalty, parts.temperature) == (whole.penalty, whole.temperature)


def test_many_samples_in_single_precision_are_right_too(monkeypatch: pytest.MonkeyPatch) -> None:
    features_ND, labels_N = problem(3000, 20, 4)
    exact = leave_one_out(features_ND.astype(np.float16), labels_N, 4)
    monkeypatch.setattr(module, "EXACT_BELOW", 100)
    single = leave_one_out(features_ND.astype(np.float16), labels_N, 4, part=256)
    assert abs(single.p_NK - exact.p_NK).max() < 2e-4
    assert single.cross_entropy == pytest.approx(exact.cross_entropy, abs=1e-5)


def test_no_own_label_in_a_prediction() -> None:
    """With labels drawn at random no model that has not seen them is better than guessing."""
    generator = np.random.default_rng(0)
    features_ND, labels_N = generator.normal(size=(400, 300)), generator.integers(0, 2, 400)
    found = leave_one_out(features_ND, labels_N, 2)
    assert abs((found.p_NK.argmax(1) == labels_N).mean() - 0.5) < 0.08
    assert found.cross_entropy > math.log(2) - 0.01


def test_a_label_changes_no_prediction_of_its_own_sample() -> None:
    features_ND, labels_N = problem(40, 10, 3)
    changed_N = labels_N.copy()
    changed_N[5] = (labels_N[5] + 1) % 3
    before, after = (
        leave_one_out(features_ND, y, 3, penalties=(0.1,), temperatures=(4.0,)) for y in (labels_N, changed_N)
    )
    np.testing.assert_allclose(before.p_NK[5], after.p_NK[5], atol=1e-7)
    assert abs(before.p_NK[6] - after.p_NK[6]).max() > 1e-4


def test_constant_features_rows_of_zeros_and_large_half_floats() -> None:
    features_ND, labels_N = problem(30, 4, 2)
    plain = leave_one_out(features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True), labels_N, 2)
    unscaled = leave_one_out((features_ND * 5000).astype(np.float16), labels_N, 2)  # squares exceed half floats
    np.testing.assert_allclose(unscaled.p_NK, plain.p_NK, atol=0.02)
    with_zeros_ND = features_ND.copy()
    with_zeros_ND[3] = 0
    assert np.isfinite(leave_one_out(with_zeros_ND, labels_N, 2).p_NK).all()
    constant = leave_one_out(np.ones((30, 4)), labels_N, 2)
    assert np.isfinite(constant.p_NK).all()
    assert (constant.p_NK.argmax(1) == np.bincount(labels_N).argmax()).all()


def test_the_input_is_left_alone_and_twice_the_same_bytes() -> None:
    features_ND, labels_N = problem(50, 9, 3)
    features_ND = features_ND.astype(np.float32)
    before = features_ND.tobytes()
    first, second = (leave_one_out(features_ND, labels_N, 3) for _ in range(2))
    assert features_ND.tobytes() == before
    assert first.p_NK.tobytes() == second.p_NK.tobytes()


def test_the_features_that_know_more_are_chosen() -> None:
    features_ND, labels_N = problem(80, 6, 3)
    noise_ND = np.random.default_rng(1).normal(size=(80, 6))
    name, found, cross_entropies = choose_features(
        {"noise": noise_ND, "good": features_ND, "again": features_ND}, labels_N, 3
    )
    assert name == "good"
    assert list(cross_entropies) == ["noise", "good", "again"]
    assert found.cross_entropy == cross_entropies["good"] < cross_entropies["noise"]


def test_too_many_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_DIRECTIONS", 20)
    features_ND, labels_N = problem(21, 30, 2)
    with pytest.raises(BadInput, match="30 columns for 21 samples"):
        leave_one_out(features_ND, labels_N, 2)
    features_ND, labels_N = problem(30, 21, 2)
    with pytest.raises(BadInput, match="21 columns for 30 samples"):
        leave_one_out(features_ND, labels_N, 2)


@pytest.mark.parametrize(("N", "D"), [(60, 8), (40, 90)])
def test_folds_are_predicted_by_models_refitted_to_the_others(N: int, D: int) -> None:
    features_ND, labels_N = problem(N, D, 3)
    found = leave_one_out(features_ND, labels_N, 3, penalties=(0.2,), temperatures=(3.0,), part=16, seed=4)
    assert sorted(np.bincount(found.fold_N)) == [N // 5] * 5
    rows_ND = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)
    rows_ND = (rows_ND - rows_ND.mean(0)) / rows_ND.std(0)
    for f in range(5):
        train, held = found.fold_N != f, found.fold_N == f
        model = Ridge(alpha=0.2 * train.sum()).fit(rows_ND[train], np.eye(3)[labels_N[train]])
        np.testing.assert_allclose(found.held_out_NK[held], softmax(3 * model.predict(rows_ND[held])), atol=1e-6)


def test_no_label_of_a_fold_has_a_part_in_its_predictions() -> None:
    features_ND, labels_N = problem(60, 8, 3)
    changed_N = labels_N.copy()
    changed_N[5] = (labels_N[5] + 1) % 3
    before, after = (
        leave_one_out(features_ND, y, 3, penalties=(0.1,), temperatures=(4.0,)) for y in (labels_N, changed_N)
    )
    same = before.fold_N == before.fold_N[5]
    np.testing.assert_allclose(before.held_out_NK[same], after.held_out_NK[same], atol=1e-7)
    assert abs(before.held_out_NK[~same] - after.held_out_NK[~same]).max() > 1e-4
    assert (leave_one_out(features_ND, labels_N, 3, seed=1).fold_N != before.fold_N).any()
