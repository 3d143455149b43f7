"""Epochs in which a sample may come several times, and how often it does where classes come equally often."""

from collections import Counter

import pytest
import torch
from conftest import samples
from torch import Tensor

from nlt.run import Split
from nlt.train import Epoch, equally_often

CPU = torch.device("cpu")


def epoch_of(N: int = 10, batch_size: int = 4) -> Epoch:
    split = Split(samples(N), CPU)
    return Epoch(split.images_NHWC, split.labels_N, batch_size, torch.Generator().manual_seed(3))


def test_a_sample_comes_as_often_as_it_is_said_to_in_a_random_order() -> None:
    times_N = torch.tensor([3, 0, 1, 0, 2, 1, 1, 0, 1, 0])
    batches = list(epoch_of().batches(times_N=times_N))
    rows = [int(row) for batch in batches for row in batch.rows_B]
    assert Counter(rows) == {0: 3, 2: 1, 4: 2, 5: 1, 6: 1, 8: 1}
    assert rows != sorted(rows)
    assert [len(batch.rows_B) for batch in batches] == [4, 5]  # not 4, 4, 1
    for batch in batches:
        data = samples(10)
        assert torch.equal(batch.images_BCHW, data.images_NCHW[batch.rows_B] / 255)
        assert torch.equal(batch.labels_B, data.labels_N[batch.rows_B])


def test_each_sample_once_is_the_plain_epoch() -> None:
    rows = [[b.rows_B for b in epoch_of().batches(**more)] for more in ({}, {"times_N": torch.ones(10).long()})]
    assert all(map(torch.equal, *rows))


def test_of_a_sample_twice_in_a_batch_the_larger_loss_is_noted_and_the_later_one_of_two_batches() -> None:
    epoch = epoch_of(batch_size=3)
    times_N = torch.tensor([6, *[0] * 9])
    for batch, losses in zip(epoch.batches(times_N=times_N), ([9.0, 8.0, 7.0], [1.0, 3.0, 2.0]), strict=True):
        epoch.saw(batch, torch.zeros(3, 4), torch.tensor(losses))
    assert epoch.losses_N[0] == 3
    assert epoch.seen_N.tolist() == [True] + [False] * 9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"times_N": torch.ones(10)}, "times_N must be a tensor of int64, one for each of 10 samples"),
        ({"times_N": torch.ones(7).long()}, "times_N must be a tensor of int64"),
        ({"times_N": torch.ones(10).long(), "keep_N": torch.ones(10).bool()}, "keep_N or times_N, not both"),
    ],
)
def test_what_is_no_number_of_times_is_refused(given: dict[str, Tensor], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        epoch_of().batches(**given)


def times(labels: list[int], kept: list[bool], K: int = 3, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    times_N: Tensor = equally_often(torch.tensor(labels), K, generator, torch.tensor(kept))
    assert times_N.dtype == torch.int64
    return times_N.tolist()


def test_classes_come_equally_often_by_hand() -> None:
    """11 samples, two classes with kept ones: 5 draws each. Class 0: 5 = 2 + 2 + 1; class 2: 5 of one sample."""
    labels, kept = [0, 0, 0, 0, 1, 1, 1, 2, 2, 0, 1], [True, False, True, True, *[False] * 4, True, False, False]
    seen = [times(labels, kept, seed=seed) for seed in range(12)]
    for one in seen:
        assert sorted(one[:4], reverse=True) == [2, 2, 1, 0]
        assert one[1] == 0
        assert one[4:] == [0, 0, 0, 0, 5, 0, 0]
    assert {one[:4].index(1) for one in seen} == {0, 2, 3}  # drawn: no sample is favoured


def test_of_a_class_larger_than_its_share_some_samples_stay_out() -> None:
    """9 samples, all kept, 4 + 4 + 1: 3 draws a class."""
    one = times([0, 0, 0, 0, 1, 1, 1, 1, 2], [True] * 9)
    assert sorted(one[:4]) == sorted(one[4:8]) == [0, 1, 1, 1]
    assert one[8] == 3


def test_if_nothing_is_kept_everything_is() -> None:
    assert times([0, 0, 1, 1, 2, 2], [False] * 6) == [1] * 6
