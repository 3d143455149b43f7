"""The whole detector on planted errors, and what it refuses.

N samples, D features, K classes; wrong_N is True where a planted label is wrong, which only the measures here see.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from nlt.detect import LabelErrors, Transition, auc, estimate_rates, find_label_errors, shrunk
from nlt.detect.rate import by_class
from nlt.settings import BadInput

Planted = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]


def digits(kind: str, rate: float, seed: int = 0, only: tuple[int, ...] = tuple(range(10))) -> Planted:
    """Features (random Fourier features of the pixels), given labels, and which of them are wrong."""
    generator = np.random.default_rng(seed)
    images_ND, clean_N = load_digits(return_X_y=True)
    rows = np.flatnonzero(np.isin(clean_N, only))
    images_ND, clean_N = images_ND[rows] / 16, np.searchsorted(only, clean_N[rows])
    angles = images_ND @ generator.normal(size=(64, 600)) * 0.5 + generator.uniform(0, 2 * np.pi, 600)
    wrong_N = generator.random(len(clean_N)) < rate
    shift_N = generator.integers(1, len(only), len(clean_N)) if kind == "symmetric" else 1
    return np.cos(angles).astype(np.float32), np.where(wrong_N, (clean_N + shift_N) % len(only), clean_N), wrong_N


def area(scores_N: NDArray[np.float64], wrong_N: NDArray[np.bool_]) -> float:
    area = auc(torch.from_numpy(scores_N), torch.from_numpy(wrong_N))
    assert area is not None
    return area


@pytest.mark.parametrize(
    ("kind", "rate", "at_least"),
    [("symmetric", 0.1, 0.998), ("symmetric", 0.4, 0.997), ("pair", 0.2, 0.998), ("pair", 0.4, 0.98)],
)
def test_planted_errors_in_digits_are_found(kind: str, rate: float, at_least: float) -> None:
    features_ND, labels_N, wrong_N = digits(kind, rate)
    found = find_label_errors(features_ND, labels_N)
    default = area(found.p_wrong_N, wrong_N)
    assert default >= at_least
    for name in ("p_y", "margin", "posterior"):
        assert default >= area(found.scores[name], wrong_N) - 0.005, name
    assert (found.suggested_N == load_digits().target).mean() > 0.86
    assert abs(found.rate.point - wrong_N.mean()) < 0.045  # of some 600 confident samples: two standard errors are .04
    assert found.rate.low <= wrong_N.mean() <= found.rate.high
    assert "depend on the class alone" in found.rate.reading
    inside = [r.low <= wrong_N[labels_N == k].mean() <= r.high for k, r in enumerate(found.per_class)]
    assert sum(inside) >= 9
    assert found.rate.low > 0.03


def test_clean_digits_have_no_noise() -> None:
    features_ND, labels_N, _ = digits("pair", 0)
    found = find_label_errors(features_ND, labels_N)
    assert (found.p_wrong_N > 0.5).mean() <= 0.02
    assert found.rate.low == 0 and found.rate.point < 0.02
    assert found.rate.reading.startswith("no label noise found: ")
    assert found.accuracy > 0.97


def test_two_classes() -> None:
    features_ND, labels_N, wrong_N = digits("pair", 0.25, only=(3, 8))
    found = find_label_errors(features_ND, labels_N)
    assert area(found.p_wrong_N, wrong_N) > 0.98
    flagged_N = found.p_wrong_N > 0.5
    assert (found.suggested_N[flagged_N] == 1 - labels_N[flagged_N]).all()  # the only other class
    assert found.rate.low <= wrong_N.mean() <= found.rate.high


def test_imbalance_and_a_class_that_nobody_is_labelled() -> None:
    """Of class 1 one in ten is left; class 2 of 4 does not occur."""
    features_ND, labels_N, wrong_N = digits("symmetric", 0.1, only=(0, 1, 4))
    keep_N = (labels_N != 1) | (np.arange(len(labels_N)) % 10 == 0)
    features_ND, labels_N, wrong_N = features_ND[keep_N], labels_N[keep_N], wrong_N[keep_N]
    labels_N = np.array([0, 1, 3])[labels_N]
    found = find_label_errors(features_ND, labels_N, classes=["zero", "one", "two", "four"])
    assert area(found.p_wrong_N, wrong_N) > 0.97
    assert found.p_true_NK.shape == (len(labels_N), 4) and not found.p_true_NK[:, 2].any()
    assert found.T_KK[2].tolist() == [0, 0, 1, 0]
    assert found.T_KK.shape == (4, 4) and np.allclose(found.T_KK.sum(1), 1)
    assert set(found.suggested_N) <= {0, 1, 3}
    assert [r.reading == "no sample is labelled 'two'" for r in found.per_class] == [False, False, True, False]


@pytest.mark.parametrize("N", [10, 20, 60])
def test_few_samples_give_finite_numbers(N: int) -> None:
    features_ND, labels_N, _ = digits("symmetric", 0.1)
    labels_N[:2] = 0, 1
    found = find_label_errors(features_ND[:N], labels_N[:N])
    assert np.isfinite(found.p_wrong_N).all() and np.isfinite(found.T_KK).all()
    assert all(np.isfinite(score_N).all() for score_N in found.scores.values())
    assert found.rate.low <= found.rate.point <= found.rate.high


def test_features_that_know_nothing_are_said_to_be_unreliable() -> None:
    _, labels_N, _ = digits("symmetric", 0.2)
    found = find_label_errors(np.random.default_rng(0).normal(size=(len(labels_N), 30)), labels_N)
    assert found.rate.reading.startswith("unreliable: the predictions agree with ")
    assert found.rate.low == 0 and found.rate.high > 0.8


def test_weak_features_on_clean_labels_are_said_to_be_unreliable() -> None:
    """A quarter of the labels agree with any prediction: as at 75 % noise."""
    features_ND, labels_N, _ = digits("symmetric", 0)
    found = find_label_errors(features_ND[:, :3], labels_N)
    assert 0.15 < found.accuracy < 0.3
    assert found.rate.reading.startswith("unreliable")
    assert found.rate.low == 0


def test_a_classifier_that_is_right_only_where_it_is_sure_is_said_to_be_unreliable() -> None:
    """Clean labels; the sure tenth is right, of the others six in ten are wrong: no noise that depends on the class."""
    generator = np.random.default_rng(0)
    true_N = np.arange(4000) % 4
    sure_N = generator.random(4000) < 0.12
    predicted_N = np.where(
        sure_N | (generator.random(4000) < 0.4), true_N, (true_N + generator.integers(1, 4, 4000)) % 4
    )
    top_N1 = np.where(sure_N, 0.97, generator.uniform(0.4, 0.9, 4000))[:, None]
    p_NK = top_N1 * np.eye(4)[predicted_N] + (1 - top_N1) / 3 * (1 - np.eye(4)[predicted_N])
    found = find_label_errors(None, true_N, probabilities_NK=p_NK)
    assert found.rate.reading.startswith("unreliable: the predictions agree with 4")
    assert "the confident ones with 100.0%" in found.rate.reading
    assert found.rate.low == 0


def test_probabilities_instead_of_features() -> None:
    """The same predictions, handed in."""
    p_NK = np.repeat([[0.9, 0.1], [0.1, 0.9]], 50, axis=0)
    labels_N = np.repeat([0, 1], 50)
    labels_N[[3, 60]] = 1, 0
    found = find_label_errors(None, labels_N, probabilities_NK=p_NK, classes=["cat", "dog"])
    assert sorted(np.argsort(-found.p_wrong_N)[:2]) == [3, 60]
    assert found.scores["p_y"][3] == pytest.approx(0.9)
    assert found.scores["margin"][3] == pytest.approx(0.8)
    assert (found.features, found.cross_entropies, found.accuracy) == ("", {}, 0.98)


def test_the_better_candidate_is_taken_and_alone_gives_the_same_bytes() -> None:
    features_ND, labels_N, _ = digits("symmetric", 0.2)
    noise_ND = np.random.default_rng(0).normal(size=(len(labels_N), 20))
    both = find_label_errors({"noise": noise_ND, "pixels": features_ND}, labels_N)
    alone = find_label_errors(features_ND, labels_N)
    assert both.features == "pixels" and alone.features == ""
    assert both.cross_entropies["pixels"] == alone.cross_entropies[""] < both.cross_entropies["noise"]
    for field in dataclasses.fields(LabelErrors):
        one, other = getattr(both, field.name), getattr(alone, field.name)
        if isinstance(one, np.ndarray):
            assert one.tobytes() == other.tobytes(), field.name


def test_the_table_is_sorted_worst_first() -> None:
    features_ND, labels_N, _ = digits("symmetric", 0.1)
    found = find_label_errors(features_ND, labels_N, ids=[f"{i}.png" for i in range(len(labels_N))])
    table = found.table()
    assert list(table) == ["id", "given_label", "suggested_label", "p_wrong", "p_y", "margin", "posterior"]
    assert len(table) == len(labels_N) and table["p_wrong"].is_monotonic_decreasing
    row = int(table["id"][0].removesuffix(".png"))
    assert found.p_wrong_N[row] == found.p_wrong_N.max() == table["p_wrong"][0]
    assert table["given_label"][0] == str(labels_N[row])
    assert table["suggested_label"][0] == str(found.suggested_N[row]) == str(found.p_true_NK[row].argmax())
    assert found.p_wrong_N[row] == pytest.approx(1 - found.p_true_NK[row, labels_N[row]])
    assert found.p_true_NK.dtype == np.float32 and found.p_wrong_N.dtype == np.float64
    np.testing.assert_allclose(found.p_true_NK.sum(1), 1, atol=1e-5)


# ---- the rate


def test_the_rate_by_hand() -> None:
    """Classes 0 and 1 are the true ones of 60 and 40 samples; 3 of 20 and 2 of 20 confident ones are labelled otherwise.

    0.6 * 0.15 + 0.4 * 0.1 = 0.13. Two standard errors: 2 sqrt(0.36 * 0.1275 / 20 + 0.16 * 0.09 / 20) = 0.109818.
    Of the next 40 and 20: 6 of 40 (0.15) and 3 of 20 (0.15): growth 0.4 * 0.05 = 0.02, less than 3 points.
    T's errors are 3 of 20.5 in both rows (half a count is added, and 3.5 and 2.5 differ by chance); 0.13 of all they
    are as 0.13 in both. Of the labels given as class 0 0.4 * 0.13 is wrong and 0.6 * 0.87 right; standard error by
    the slopes -0.6 * 0.052 / 0.574^2 and 0.4 * 0.522 / 0.574^2, and variances 0.13 * 0.87 / 20: 0.048186.
    """
    p_NK = np.array([[0.99 - 0.001 * i, 0.01 + 0.001 * i] for i in range(60)])
    p_NK = np.concatenate([p_NK, p_NK[:40, ::-1]])
    labels_N = np.array([1] * 3 + [0] * 17 + [1] * 6 + [0] * 34 + [0] * 2 + [1] * 18 + [0] * 3 + [1] * 17)
    counts_KK, behind_KK = np.array([[17, 3], [2, 18]]), np.array([[34, 6], [3, 17]])
    transition = Transition(shrunk(counts_KK), counts_KK, behind_KK)
    rate, (first, _) = estimate_rates(p_NK, labels_N, transition, np.array([0.6, 0.4]), ("a", "b"))
    assert rate.point == pytest.approx(0.13)
    assert rate.low == pytest.approx(0.13 - np.hypot(0.03, 0.109818), abs=1e-5)
    # Thresholds: mean p_0 of label 0 and mean p_1 of label 1; counted by the definition, not by the code.
    sure = [p_NK[:, k] >= p_NK[labels_N == k, k].mean() for k in (0, 1)]
    kept = [(sure[k] & (labels_N == k)).sum() for k in (0, 1)]
    crossed = [(sure[1 - k] & (labels_N == k)).sum() for k in (0, 1)]
    off = sum((labels_N == k).mean() * crossed[k] / (kept[k] + crossed[k]) for k in (0, 1))
    assert rate.high == pytest.approx(max(off, 0.13 + np.hypot(0.03, 0.109818)), abs=1e-5)
    assert first.point == pytest.approx(0.4 * 0.13 / (0.4 * 0.13 + 0.6 * 0.87))
    own = crossed[0] / (kept[0] + crossed[0])
    assert first.high == pytest.approx(max(own, first.point + np.hypot(0.06, 2 * 0.048186)), abs=1e-5)


def test_the_rate_of_a_class_and_its_standard_error_by_hand() -> None:
    """P(true, given) = [[.54, .06], [.08, .32]], given .62 and .38: 8 / 62 and 6 / 38 are wrong.

    By T's cells the first has the slopes -.6 * .08 / .62^2 = -.124870 and .4 * .54 / .62^2 = .561915, variances .09 / 100
    and .16 / 50: .0010244 in all; the second .6 * .32 / .38^2 = 1.329640 and -.4 * .06 / .38^2 = -.166205: .0016795.
    """
    T_KK = np.array([[0.9, 0.1], [0.2, 0.8]])
    wrong_K, errors_K = by_class(np.array([0.6, 0.4]), T_KK, np.array([100, 50]))
    np.testing.assert_allclose(wrong_K, [8 / 62, 6 / 38])
    np.testing.assert_allclose(errors_K, [0.032007, 0.040982], atol=1e-6)
    wrong_K, errors_K = by_class(np.array([0.6, 0.4, 0]), np.eye(3), np.array([9, 9, 9]))
    assert not wrong_K.any() and not errors_K.any()


def test_many_small_classes_have_the_rate_of_the_whole() -> None:
    """100 clean classes of 10: half a pseudo-count of error in each row of T would be a tenth of wrong labels."""
    labels_N = np.arange(1000) % 100
    centres_KD = np.random.default_rng(0).normal(size=(100, 30)) * 3
    found = find_label_errors(centres_KD[labels_N] + np.random.default_rng(1).normal(size=(1000, 30)), labels_N)
    assert found.rate.point < 0.005
    assert np.mean([rate.point for rate in found.per_class]) == pytest.approx(found.rate.point, abs=0.001)
    assert found.rate.reading.endswith("at most 3.4%, by as much as this estimate may be out")


def test_a_class_that_is_hardly_ever_predicted_counts_as_often_as_it_is_true() -> None:
    """A third is clearly class 0, a third clearly 1, a third 0 with .6; 40 % of class 0 are labelled 1.

    Of the unclear third .36 are labelled 0, so that 1 is predicted; 0.4 (1/3 + 0.6/3) = .213 of the labels are wrong.
    """
    generator = np.random.default_rng(0)
    true_NK = np.repeat([[1.0, 0.0], [0.0, 1.0], [0.6, 0.4]], 2000, axis=0)
    true_N = (generator.random(6000) < true_NK[:, 1]).astype(int)
    labels_N = np.where(generator.random(6000) < 0.4, 1, true_N)
    found = find_label_errors(None, labels_N, probabilities_NK=true_NK @ np.array([[0.6, 0.4], [0.0, 1.0]]))
    assert found.rate.point == pytest.approx(0.4 * (1 / 3 + 0.6 / 3), abs=0.02)


def test_disagreement_that_grows_behind_the_confident_widens_the_interval() -> None:
    """20 of the first 200 are labelled otherwise, then 80 of 400: growth 0.1, more than 3 points."""
    p_NK = np.array([[0.99 - 0.0001 * i, 0.01 + 0.0001 * i] for i in range(2000)])
    p_NK = np.concatenate([p_NK, p_NK[:, ::-1]])
    half = np.array([1] * 20 + [0] * 180 + [1] * 80 + [0] * 320 + [0] * 1300 + [1] * 100)
    labels_N = np.concatenate([half, 1 - half])
    counts_KK = np.array([[180, 20], [20, 180]])
    behind_KK = np.array([[320, 80], [80, 320]])
    transition = Transition(shrunk(counts_KK), counts_KK, behind_KK)
    rate, _ = estimate_rates(p_NK, labels_N, transition, np.array([0.5, 0.5]), ("a", "b"))
    assert rate.point == pytest.approx(0.1)
    sampling = 2 * np.sqrt(2 * 0.25 * 0.09 / 200)
    assert rate.low == pytest.approx(max(0, 0.1 - np.hypot(0.1, sampling)))
    assert "and then at least 0.0%" in rate.reading


# ---- what is refused

GOOD_ND = np.random.default_rng(0).normal(size=(12, 3))
GOOD_N = np.arange(12) % 2
GOOD_NK = np.full((12, 2), 0.5)


def but(values: NDArray[Any], row: int, new: Any) -> NDArray[Any]:
    values = values.copy()
    values[row] = new
    return values


@pytest.mark.parametrize(
    ("features", "labels", "more", "sentence"),
    [
        (GOOD_ND[:11], GOOD_N, {}, "the features have 11 rows for 12 labels"),
        ({"ok": GOOD_ND, "short": GOOD_ND[:5]}, GOOD_N, {}, "the features 'short' have 5 rows for 12 labels"),
        ({}, GOOD_N, {}, "there are no features"),
        (GOOD_ND[:, 0], GOOD_N, {}, "the features have shape (12,)"),
        (GOOD_ND[:, :0], GOOD_N, {}, "the features have shape (12, 0)"),
        (GOOD_ND.astype(str), GOOD_N, {}, "give numbers"),
        (but(GOOD_ND, 7, np.nan), GOOD_N, {}, "NaN or infinity in row 7"),
        (but(GOOD_ND, 11, np.inf), GOOD_N, {}, "NaN or infinity in row 11"),
        (GOOD_ND, np.ones(12, int), {}, "all samples have the same label"),
        (GOOD_ND[:9], GOOD_N[:9], {}, "there are 9 samples: at least 10"),
        (GOOD_ND, but(GOOD_N, 3, -1), {}, "the label of sample 3 is -1"),
        (GOOD_ND, but(GOOD_N, 4, 2), {"classes": ["a", "b"]}, "the label of sample 4 is 2, outside the classes 0 to 1"),
        (GOOD_ND, GOOD_N.astype(float), {}, "the labels have shape (12,) and type float64"),
        (GOOD_ND, GOOD_N[:, None], {}, "the labels have shape (12, 1)"),
        (GOOD_ND, GOOD_N, {"ids": ["a"]}, "there are 1 ids for 12 labels"),
        (GOOD_ND, GOOD_N, {"probabilities_NK": GOOD_NK}, "either features or probabilities"),
        (None, GOOD_N, {}, "either features or probabilities"),
        (None, GOOD_N, {"probabilities_NK": GOOD_NK[:11]}, "the probabilities have 11 rows for 12 labels"),
        (None, GOOD_N, {"probabilities_NK": GOOD_NK[:, 0]}, "the probabilities have shape (12,)"),
        (None, GOOD_N, {"probabilities_NK": but(GOOD_NK, 2, [0.5, 0.6])}, "row 2 of the probabilities does not sum"),
        (None, GOOD_N, {"probabilities_NK": but(GOOD_NK, 5, [1.5, -0.5])}, "row 5 of the probabilities is negative"),
        (None, GOOD_N, {"probabilities_NK": but(GOOD_NK, 1, np.nan)}, "row 1 of the probabilities holds NaN"),
        (None, but(GOOD_N, 6, 2), {"probabilities_NK": GOOD_NK}, "the label of sample 6 is 2, outside"),
        (None, GOOD_N, {"probabilities_NK": GOOD_NK, "classes": list("abc")}, "3 class names for 2 columns"),
    ],
)
def test_bad_input_is_one_sentence(features: Any, labels: Any, more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput) as error:
        find_label_errors(features, labels, **more)
    assert sentence in str(error.value)


def test_nan_is_found_in_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlt.detect.errors.PART", 5)
    with pytest.raises(BadInput, match="in row 11"):
        find_label_errors(but(GOOD_ND, 11, np.nan), GOOD_N)
