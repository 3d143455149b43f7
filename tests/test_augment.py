"""Augmentation, worked by hand; and that a run with it resumes and otherwise changes nothing."""

import pytest
import torch
from conftest import tiny
from crashing import spec_file, survive
from recorded import differences

from nlt.augment import GREY, CropFlipCutout
from nlt.reading import check
from nlt.settings import BadInput
from nlt.train import Epoch, to_float

# Two images of 3 x 4 pixels: 0..11, and 100..111, row by row.
IMAGES_NHWC = torch.cat([torch.arange(12), torch.arange(100, 112)]).to(torch.uint8).reshape(2, 3, 4, 1)


def take(draws: list[list[int]], rows: list[int], **settings: int) -> list[list[list[int]]]:
    images = CropFlipCutout(**settings).take(IMAGES_NHWC, torch.tensor(rows), torch.tensor(draws))
    return images.squeeze(-1).tolist()


def test_crop_with_reflection_by_hand():
    """One down and two to the right: the crop begins at row 1, column 2, and what is beyond is mirrored without
    repeating the border: rows 1, 2, then 1 again; columns 2, 3, then 2, 1."""
    assert take([[1, 2, 0, 0, 0]], [0]) == [[[6, 7, 6, 5], [10, 11, 10, 9], [6, 7, 6, 5]]]
    assert take([[-1, -1, 0, 0, 0]], [1]) == [[[105, 104, 105, 106], [101, 100, 101, 102], [105, 104, 105, 106]]]


def test_flip_by_hand_and_each_image_its_own_draw():
    plain = [[100, 101, 102, 103], [104, 105, 106, 107], [108, 109, 110, 111]]
    mirrored = [[3, 2, 1, 0], [7, 6, 5, 4], [11, 10, 9, 8]]
    assert take([[0, 0, 0, 0, 0], [0, 0, 1, 2, 2]], [1, 0]) == [plain, mirrored]


def test_flip_is_of_the_crop():
    assert take([[0, 1, 1, 0, 0]], [0])[0][0] == [2, 3, 2, 1]  # the crop is 1 2 3 2


def test_cutout_by_hand_hangs_over_the_border():
    """A square of 2 with centre (0, 3) covers rows -1, 0 and columns 2, 3; one of 3 with centre (2, 0) rows 1 to 3."""
    assert take([[0, 0, 0, 0, 3]], [0], cutout=2) == [[[0, 1, GREY, GREY], [4, 5, 6, 7], [8, 9, 10, 11]]]
    assert take([[0, 0, 0, 2, 0]], [0], cutout=3) == [[[0, 1, 2, 3], [GREY, GREY, 6, 7], [GREY, GREY, 10, 11]]]


def test_draws_cover_their_ranges_and_nothing_else():
    draws_M5 = CropFlipCutout(pad=2).draw(2000, 5, 7, torch.Generator().manual_seed(0))
    seen = [sorted(set(column.tolist())) for column in draws_M5.unbind(1)]
    assert seen == [[-2, -1, 0, 1, 2], [-2, -1, 0, 1, 2], [0, 1], list(range(5)), list(range(7))]
    still_M5 = CropFlipCutout(pad=0, flip=False).draw(2000, 5, 7, torch.Generator().manual_seed(0))
    assert still_M5[:, :3].abs().max() == 0


def test_batches_augment_each_sample_once_and_leave_the_data_alone():
    augmentation = CropFlipCutout(pad=1, cutout=2)
    before = IMAGES_NHWC.clone()
    images_NHWC, keep_N = IMAGES_NHWC.repeat(3, 1, 1, 1), torch.tensor([True, True, True, True, False, True])
    epoch = Epoch(images_NHWC, torch.arange(6), 2, torch.Generator().manual_seed(3), augmentation)
    generator = torch.Generator().manual_seed(3)
    rows_M = torch.randperm(6, generator=generator)
    rows_M = rows_M[keep_N[rows_M]]
    draws_M5 = augmentation.draw(5, 3, 4, generator)
    at = 0
    for batch in epoch.batches(keep_N):
        assert torch.equal(batch.rows_B, rows_M[at : at + len(batch.rows_B)])
        draws_B5 = draws_M5[at : at + len(batch.rows_B)]
        assert torch.equal(batch.images_BCHW, to_float(augmentation.take(images_NHWC, batch.rows_B, draws_B5)))
        assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)
        at += len(batch.rows_B)
    assert at == 5
    assert torch.equal(IMAGES_NHWC, before)


def test_views_are_drawn_each_for_itself_of_the_same_samples():
    """As they are, cropped, and cropped again; the experiment's own augmentation does not come in between."""
    crop = CropFlipCutout(pad=1)
    epoch = Epoch(IMAGES_NHWC, torch.tensor([0, 1]), 2, torch.Generator().manual_seed(5), CropFlipCutout(cutout=3))
    (batch,) = epoch.batches(views=(None, crop, crop))
    generator = torch.Generator().manual_seed(5)
    rows_M = torch.randperm(2, generator=generator)
    first, second = (crop.draw(2, 3, 4, generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(batch.images_BCHW, to_float(IMAGES_NHWC[rows_M]))
    for view, draws in zip(batch.views[1:], (first, second), strict=True):
        assert torch.equal(view, to_float(crop.take(IMAGES_NHWC, rows_M, draws)))


def test_views_that_the_images_cannot_give_are_refused():
    epoch = Epoch(IMAGES_NHWC, torch.tensor([0, 1]), 2, torch.Generator())
    with pytest.raises(BadInput, match="have no 4 to reflect"):
        epoch.batches(views=(None, CropFlipCutout()))
    with pytest.raises(RuntimeError, match="views is empty"):
        epoch.batches(views=())


def test_images_without_enough_to_reflect_are_refused():
    CropFlipCutout(pad=3).check(4, 9)
    with pytest.raises(BadInput, match=r"augmentation.pad: images of 4 x 9 pixels have no 4 to reflect: lower it"):
        CropFlipCutout(pad=4).check(4, 9)


def test_without_augmentation_a_spec_keeps_the_hash_it_had():
    plain, augmented = check(tiny(), "x"), check(tiny(augmentation={"name": "crop_flip_cutout"}), "x")
    assert plain.sha256() == HASH_AT_3BC5BB9
    assert augmented.sha256() != plain.sha256()
    assert check(plain.resolved(), "x") == plain


HASH_AT_3BC5BB9 = "ea21fa5c200d5242b415d893887635afeb048824df536de161d2365afd5c52ed"


@pytest.mark.slow
def test_a_run_that_augments_ends_after_a_kill_as_if_nothing_had_happened(killer, peaceful, place):
    augmentation = {"name": "crop_flip_cutout", "pad": 2, "cutout": 3}
    spec = spec_file(place, "standard", augmentation=augmentation)
    after, met = survive(killer, place, spec, [{"at": "mid-epoch", "n": 8}])
    assert met == 1
    expected = peaceful("standard", augmentation=augmentation)
    assert differences(expected, after) == []
    assert differences(peaceful("standard"), after) != []
