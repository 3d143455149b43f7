"""Scores of single samples against numbers worked out by hand.

N samples, K classes, E epochs.
"""

import numpy as np
import pytest

from nlt.detect import (
    area_under_the_margin,
    forgetting_events,
    margin,
    o2u_score,
    self_confidence,
    wrong_events,
)
from nlt.settings import BadInput


def test_self_confidence_and_margin_by_hand() -> None:
    p_NK, labels_N = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.3, 0.3, 0.4]], np.float32), np.array([0, 1, 2])
    np.testing.assert_allclose(self_confidence(p_NK, labels_N), [0.3, 0.8, 0.6], atol=1e-6)
    np.testing.assert_allclose(margin(p_NK, labels_N), [-0.5, 0.5, -0.1], atol=1e-6)
    assert p_NK[0, 0] == np.float32(0.7)  # the input is left alone


def test_margins_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    p_NK, labels_N = np.random.default_rng(0).dirichlet(np.ones(4), 50), np.arange(50) % 4
    whole = margin(p_NK, labels_N)
    monkeypatch.setattr("nlt.detect.scores.PART", 8)
    np.testing.assert_array_equal(margin(p_NK, labels_N), whole)


def test_area_under_the_margin_by_hand() -> None:
    """Sample 0, label 0: margins 2 - 1 = 1 and 5 - 6 = -1, mean 0. Sample 1, label 2: 0 - 4 = -4 and 3 - 1 = 2, mean -1."""
    logits_ENK = np.array([[[2.0, 1, 0], [4, 1, 0]], [[5, 6, 0], [1, 1, 3]]])
    assert area_under_the_margin(logits_ENK, np.array([0, 2])).tolist() == [0, 1]


def test_o2u_score_by_hand() -> None:
    """Epoch means 2 and 5: (1 - 2 + 4 - 5) / 2 = -1 and (3 - 2 + 6 - 5) / 2 = 1."""
    assert o2u_score(np.array([[1.0, 3.0], [4.0, 6.0]], np.float16)).tolist() == [-1, 1]


def test_events_by_hand() -> None:
    """Label 0 throughout; columns: learned twice and forgotten twice, never, always, learned late, forgotten once."""
    right, wrong = [0.6, 0.4], [0.4, 0.6]
    epochs = ["rwrwr", "wwrwr", "rwrwr", "wwrrw"]
    outputs_ENK = np.array([[right if c == "r" else wrong for c in epoch] for epoch in epochs])
    outputs_ENK = outputs_ENK[:, [0, 1, 2, 3, 4]]
    labels_N = np.zeros(5, int)
    assert forgetting_events(outputs_ENK, labels_N).tolist() == [2, 4, 0, 0, 1]
    assert wrong_events(outputs_ENK, labels_N).tolist() == [2, 4, 0, 3, 1]


@pytest.mark.parametrize(
    ("outputs", "labels", "sentence"),
    [
        (np.zeros((3, 4)), [0, 1, 0, 1], "has shape (3, 4), with 4 labels"),
        (np.zeros((2, 3, 2)), [0, 1, 0, 1], "has shape (2, 3, 2), with 4 labels"),
        (np.zeros((0, 4, 2)), [0, 1, 0, 1], "has shape (0, 4, 2)"),
        (np.full((2, 4, 2), np.nan), [0, 1, 0, 1], "holds NaN"),
        (np.zeros((2, 4, 2)), [0, 1, 0, 2], "a label is outside 0 to 1"),
    ],
)
def test_bad_outputs_are_named(outputs: np.ndarray, labels: list[int], sentence: str) -> None:
    for score in (area_under_the_margin, forgetting_events, wrong_events):
        with pytest.raises(BadInput) as error:
            score(outputs, np.array(labels))
        assert sentence in str(error.value)


@pytest.mark.parametrize("losses_EN", [np.zeros(3), np.zeros((0, 3)), np.array([[1.0, np.nan]])])
def test_bad_losses_are_named(losses_EN: np.ndarray) -> None:
    with pytest.raises(BadInput, match="losses_EN"):
        o2u_score(losses_EN)
