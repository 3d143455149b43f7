"""The vote of the nearest neighbours, by hand: N samples, D features, K classes."""

import math

import pytest
import torch
from torch import Tensor

from nlt.detect import neighbors
from nlt.detect.neighbors import neighbor_votes

# Directions in degrees, and how long the vectors are; by inner products alone the longest would be near to all.
ANGLES, LENGTHS, LABELS = (0, 10, 25, 45, 90), (1.0, 0.1, 9.0, 2.0, 30.0), (0, 1, 1, 0, 2)


def fan() -> Tensor:
    return torch.tensor([[r * math.cos(math.radians(a)), r * math.sin(math.radians(a))]
                         for a, r in zip(ANGLES, LENGTHS, strict=True)])  # fmt: skip


@pytest.mark.parametrize("at_once", [2**25, 10, 15, 1])  # all five rows, two, three, and one that is more than allowed
def test_votes_by_hand_in_parts_of_any_size(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nearest of 0: 10, 25; of 10: 0, 25; of 25: 10, 45; of 45: 25, 10; of 90: 45, 25 degrees."""
    monkeypatch.setattr(neighbors, "SIMILARITIES", at_once)
    votes_NK = neighbor_votes(fan(), torch.tensor(LABELS), 4, 2)
    assert votes_NK.tolist() == [[0, 2, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 2, 0, 0], [1, 1, 0, 0]]


def test_all_the_others_vote_at_most_and_never_a_sample_for_itself() -> None:
    votes_NK = neighbor_votes(fan(), torch.tensor(LABELS), 3, 4)
    assert votes_NK.tolist() == [[1, 2, 1], [2, 1, 1], [2, 1, 1], [1, 2, 1], [2, 2, 0]]


def test_a_copy_of_a_sample_is_its_neighbour() -> None:
    """Two equal images: each is the other's, not its own, nearest."""
    z_ND = fan()[[0, 0, 4]]
    assert neighbor_votes(z_ND, torch.tensor([0, 1, 1]), 2, 1).tolist()[:2] == [[0, 1], [1, 0]]


def test_features_of_zero_have_neighbours_too() -> None:
    assert neighbor_votes(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), 2, 3).tolist() == [[3, 0]] * 4


def test_similarities_of_all_pairs_never_lie_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products seen while 300 samples are compared with 600 at once allowed: 2 x 300, never 300 x 300."""
    monkeypatch.setattr(neighbors, "SIMILARITIES", 600)
    shapes = set[tuple[int, ...]]()
    topk = Tensor.topk

    def seen(similarity_BN: Tensor, *args: object, **more: object) -> object:
        shapes.add(tuple(similarity_BN.shape))
        return topk(similarity_BN, *args, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Tensor, "topk", seen)
    z_ND = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    votes_NK = neighbor_votes(z_ND, torch.arange(300) % 3, 3, 7)
    assert shapes == {(2, 300)}
    assert torch.equal(votes_NK.sum(1), torch.full((300,), 7.0))
