"""The strong view, held against Pillow's operations and worked by hand; and mixup by hand."""

import numpy as np
import pytest
import torch
from conftest import tiny
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from nlt import augment
from nlt.augment import GREY, IDENTITY, OPERATIONS, CropFlipCutout, StrongView, mixup
from nlt.reading import check
from nlt.settings import BadInput
from nlt.train import Epoch, to_float

RANDOM = np.random.default_rng(0)
# Values between 40 and 200, so that there is something to stretch.
COLOURED_NHWC = torch.from_numpy(RANDOM.integers(40, 200, (3, 24, 20, 3), dtype=np.uint8))
SMALL_NHWC = torch.from_numpy(RANDOM.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8))
PLAIN = StrongView(pad=0, flip=False, cutout=0, operations=1)
STILL = (0, 0, 0, 0, 0)


def draws(*operations: tuple[int, float], places: tuple[int, ...] = STILL) -> list[float]:
    return [*map(float, places), *(number for operation in operations for number in operation)]


def one(images_NHWC: Tensor, row: int, *operations: tuple[int, float], view: StrongView = PLAIN) -> Tensor:
    return view.take(images_NHWC, torch.tensor([row]), torch.tensor([draws(*operations)]))[0]


PILLOW = {
    "identity": lambda image, m: image,
    "brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(1 + 0.9 * m),
    "contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(1 + 0.9 * m),
    "colour": lambda image, m: ImageEnhance.Color(image).enhance(1 + 0.9 * m),
    "sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * m),
    "autocontrast": lambda image, m: ImageOps.autocontrast(image),
    "equalize": lambda image, m: ImageOps.equalize(image),
    "posterize": lambda image, m: ImageOps.posterize(image, 8 - round(4 * abs(m))),
    "solarize": lambda image, m: ImageOps.solarize(image, 256 * (1 - abs(m))),
}


@pytest.mark.parametrize("magnitude", [0.6, -0.3, 1.0])
@pytest.mark.parametrize("name", PILLOW)
def test_what_changes_values_is_pillows(name: str, magnitude: float) -> None:
    """Up to the rounding: Pillow cuts off, and rounds the mean and the smoothed image before it blends them."""
    image = Image.fromarray(COLOURED_NHWC[1].numpy())
    wanted = np.asarray(PILLOW[name](image, magnitude)).astype(int)
    found = one(COLOURED_NHWC, 1, (OPERATIONS.index(name), magnitude)).numpy().astype(int)
    exact = name in ("identity", "equalize", "posterize", "solarize")
    assert abs(wanted - found).max() <= (0 if exact else 1)
    assert (name == "identity") == np.array_equal(found, COLOURED_NHWC[1].numpy())


@pytest.mark.parametrize(
    ("name", "magnitude", "matrix"),
    [
        # Row by row of the map back, from a pixel of the result to one of the image, about the centre.
        ("rotate", 1.0, [[0.8660254, 0.5, 0], [-0.5, 0.8660254, 0]]),
        ("rotate", -0.5, [[0.9659258, -0.2588190, 0], [0.2588190, 0.9659258, 0]]),
        ("shear x", 0.8, [[1, 0.24, 0], [0, 1, 0]]),
        ("shear y", -0.8, [[1, 0, 0], [-0.24, 1, 0]]),
        ("translate x", 0.7, [[1, 0, 0.21 * 20], [0, 1, 0]]),
        ("translate y", -0.7, [[1, 0, 0], [0, 1, -0.21 * 24]]),
    ],
)
def test_what_moves_pixels_is_pillows_affine_map(name: str, magnitude: float, matrix: list[list[float]]) -> None:
    (a, b, c), (d, e, f) = matrix
    H, W = 24, 20
    centre_x, centre_y = W / 2, H / 2  # Pillow's pixels have their middle at a half
    about = (a, b, c + centre_x - a * centre_x - b * centre_y, d, e, f + centre_y - d * centre_x - e * centre_y)
    image = Image.fromarray(COLOURED_NHWC[2].numpy())
    wanted = np.asarray(image.transform((W, H), Image.Transform.AFFINE, about, fillcolor=(GREY, GREY, GREY)))
    found = one(COLOURED_NHWC, 2, (OPERATIONS.index(name), magnitude)).numpy()
    assert (wanted != found).any(2).mean() < 0.01  # where a pixel lies between two, rounding decides
    assert (found != COLOURED_NHWC[2].numpy()).any(2).mean() > 0.2


def test_translation_by_hand() -> None:
    """0.25 of 0.3 of 8 pixels is 0.6, rounded to one: each pixel shows its right neighbour, the last column grey."""
    moved_HW = one(SMALL_NHWC, 3, (OPERATIONS.index("translate x"), 0.25))[..., 0]
    assert torch.equal(moved_HW[:, :7], SMALL_NHWC[3, :, 1:, 0])
    assert (moved_HW[:, 7] == GREY).all()


def test_two_operations_are_done_in_their_order() -> None:
    """Translated by 0.3 of 20 pixels = 6, then turned by 30 degrees: each pixel of the result is looked for by turning
    it back first and moving it back then. The other order shows another image; so do tones in another order."""
    view = StrongView(pad=0, flip=False, cutout=0)
    translate, rotate = (OPERATIONS.index("translate x"), 1.0), (OPERATIONS.index("rotate"), 1.0)
    moved_HWC = one(COLOURED_NHWC, 0, translate, rotate, view=view)
    x, y = 13 - 9.5, 4 - 11.5  # the pixel of row 4, column 13, from the centre
    from_x, from_y = 0.8660254 * x + 0.5 * y + 6, 0.8660254 * y - 0.5 * x
    assert moved_HWC[4, 13].tolist() == COLOURED_NHWC[0, round(from_y + 11.5), round(from_x + 9.5)].tolist()
    assert not torch.equal(moved_HWC, one(COLOURED_NHWC, 0, rotate, translate, view=view))
    solarize, posterize = (OPERATIONS.index("solarize"), 1.0), (OPERATIONS.index("posterize"), 1.0)
    flat = torch.full((1, 1, 1, 1), 130, dtype=torch.uint8)
    assert one(flat, 0, solarize, posterize, view=view).item() == 112  # 255 - 130 = 125, to 16s
    assert one(flat, 0, posterize, solarize, view=view).item() == 127  # 128, 255 - 128


@pytest.mark.parametrize("images_NHWC", [COLOURED_NHWC, SMALL_NHWC], ids=["coloured", "grey"])
def test_without_operations_it_is_crop_flip_cutout(images_NHWC: Tensor) -> None:
    _, H, W, _ = images_NHWC.shape
    rows_B = torch.randint(3, (60,), generator=torch.Generator().manual_seed(0))
    weak = CropFlipCutout(pad=min(H, W) // 8, cutout=min(H, W) // 2)
    draws_M5 = weak.draw(60, H, W, torch.Generator().manual_seed(1))
    strong = StrongView(operations=0)
    draws_MD = strong.draw(60, H, W, torch.Generator().manual_seed(1))
    assert draws_MD.tolist() == draws_M5.tolist()
    assert torch.equal(strong.take(images_NHWC, rows_B, draws_MD), weak.take(images_NHWC, rows_B, draws_M5))
    still = StrongView(magnitude=0.0)  # autocontrast and equalize have no magnitude
    draws_MD = still.draw(60, H, W, torch.Generator().manual_seed(1))
    draws_MD[:, [5, 7]] %= OPERATIONS.index("autocontrast")
    assert torch.equal(still.take(images_NHWC, rows_B, draws_MD), weak.take(images_NHWC, rows_B, draws_M5))


def test_colour_changes_nothing_in_grey_images() -> None:
    for signed in (-1.0, 0.7):
        assert torch.equal(one(SMALL_NHWC, 1, (OPERATIONS.index("colour"), signed)), SMALL_NHWC[1])


def test_each_image_has_its_own_operations_and_keeps_clear_of_its_neighbours() -> None:
    """A batch shows what its images show one by one, and the data stay as they are."""
    before = COLOURED_NHWC.clone()
    rows_B = torch.arange(140) % 3
    view = StrongView()
    draws_BD = view.draw(140, 24, 20, torch.Generator().manual_seed(4))
    together = view.take(COLOURED_NHWC, rows_B, draws_BD)
    assert together.dtype == torch.uint8
    assert together.shape == (140, 24, 20, 3)
    for i in range(0, 140, 5):
        alone = view.take(COLOURED_NHWC, rows_B[i : i + 1], draws_BD[i : i + 1])
        assert torch.equal(together[i], alone[0])
    assert torch.equal(COLOURED_NHWC, before)


def test_draws_cover_their_ranges_and_nothing_else() -> None:
    draws_MD = StrongView(magnitude=0.5, operations=3).draw(4000, 32, 48, torch.Generator().manual_seed(0))
    assert draws_MD.shape == (4000, 5 + 3 * 2)
    assert sorted(set(draws_MD[:, 0].tolist())) == list(range(-4, 5))
    for i in (5, 7, 9):
        counts = draws_MD[:, i].long().bincount()
        assert len(counts) == len(OPERATIONS) == IDENTITY + 1
        assert counts.min() > 200  # 286 of each are expected
        assert draws_MD[:, i + 1].abs().max() <= 0.5
        assert draws_MD[:, i + 1].min() < -0.49
        assert draws_MD[:, i + 1].max() > 0.49
    assert not torch.equal(draws_MD[:, 5], draws_MD[:, 7])


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 1), (8, 8, 1), (5, 9, 4)])
def test_images_of_any_size_and_number_of_channels(shape: tuple[int, ...]) -> None:
    images_NHWC = torch.randint(256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    view = StrongView()
    view.check(*shape[:2])
    draws_MD = view.draw(300, *shape[:2], torch.Generator().manual_seed(0))
    assert view.take(images_NHWC, torch.arange(300) % 2, draws_MD).shape == (300, *shape)


def test_as_a_view_and_as_the_experiments_own_augmentation() -> None:
    strong = StrongView()
    labels_N = torch.tensor([0, 1, 0])
    (batch,) = Epoch(COLOURED_NHWC, labels_N, 3, torch.Generator().manual_seed(5)).batches(views=(None, strong))
    generator = torch.Generator().manual_seed(5)
    rows_M = torch.randperm(3, generator=generator)
    wanted = strong.take(COLOURED_NHWC, rows_M, strong.draw(3, 24, 20, generator))
    assert torch.equal(batch.views[0], to_float(COLOURED_NHWC[rows_M]))
    assert torch.equal(batch.views[1], to_float(wanted))
    (batch,) = Epoch(COLOURED_NHWC, labels_N, 3, torch.Generator().manual_seed(5), strong).batches()
    assert torch.equal(batch.images_BCHW, to_float(wanted))
    assert check(tiny(augmentation={"name": "strong", "operations": 3}), "x").augmentation == StrongView(operations=3)


def test_images_without_enough_to_reflect_are_refused() -> None:
    StrongView(pad=7).check(8, 8)
    with pytest.raises(BadInput, match=r"augmentation.pad: images of 8 x 9 pixels have no 8 to reflect: lower it"):
        StrongView(pad=8).check(8, 9)


# ---- mixup


def mixed(monkeypatch: pytest.MonkeyPatch, lam: float, larger_first: bool) -> tuple[list[float], list[list[float]]]:
    """Three images of one pixel, 1, 2 and 4, mixed with themselves in the order that the generator draws."""
    monkeypatch.setattr(augment, "betaincinv", lambda a, b, u: lam)
    images_BCHW = torch.tensor([1.0, 2.0, 4.0]).reshape(3, 1, 1, 1)
    images, targets = mixup(images_BCHW, torch.eye(3), 4.0, torch.Generator().manual_seed(0), larger_first)
    return images.flatten().tolist(), targets.tolist()


def test_mixup_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    torch.rand((), generator=generator, dtype=torch.float64)
    assert torch.randperm(3, generator=generator).tolist() == [2, 1, 0]
    # A quarter of its own: 1 / 4 + 3 * 4 / 4 = 3.25; 2; 4 / 4 + 3 * 1 / 4 = 1.75.
    assert mixed(monkeypatch, 0.25, False) == ([3.25, 2, 1.75], [[0.25, 0, 0.75], [0, 1, 0], [0.75, 0, 0.25]])
    # Three quarters of its own, as MixMatch does.
    assert mixed(monkeypatch, 0.25, True) == ([1.75, 2, 3.25], [[0.75, 0, 0.25], [0, 1, 0], [0.25, 0, 0.75]])
    assert mixed(monkeypatch, 0.75, True) == mixed(monkeypatch, 0.75, False)


@pytest.mark.parametrize("alpha", [0.2, 4.0])
def test_mixup_draws_from_the_beta_distribution(alpha: float) -> None:
    """Its mean is 1/2, its variance 1 / (4 (2 alpha + 1))."""
    generator = torch.Generator().manual_seed(7)
    images_BCHW = torch.arange(2.0).reshape(2, 1, 1, 1)
    lams = []
    while len(lams) < 600:
        images, targets = mixup(images_BCHW, torch.eye(2), alpha, generator)
        assert torch.equal(images.flatten(), targets[:, 1])
        if images[0] != 0 or images[1] != 1:  # not mixed with themselves
            lams.append(float(targets[0, 0]))
    assert np.mean(lams) == pytest.approx(0.5, abs=0.04)
    assert np.var(lams) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


def test_mixup_is_repeatable_and_leaves_its_inputs_alone() -> None:
    images_BCHW = torch.rand(4, 3, 5, 6).to(memory_format=torch.channels_last)
    before = images_BCHW.clone()
    first, second = (mixup(images_BCHW, torch.eye(4), 1.0, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(images_BCHW, before)
    assert first[0].is_contiguous(memory_format=torch.channels_last)
