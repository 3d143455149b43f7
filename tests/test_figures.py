"""Pictures, read pixel by pixel. Where a histogram's bars may stand is read off its axis and its highest grid line."""

import numpy as np
import pytest
import torch

from nlt.figures import BINS, GRID, INK, RIGHT, WRONG, Picture, image_grid, loss_histogram

NAN = float("nan")


def is_colour(picture: Picture, colour: tuple[int, int, int]) -> np.ndarray:
    red, green, blue = np.moveaxis(picture, 2, 0)  # .all(2) would take ten times as long
    mask: np.ndarray = (red == colour[0]) & (green == colour[1]) & (blue == colour[2])
    return mask


def plot_area(picture: Picture) -> tuple[int, int, int, int]:
    """Return (left, top, width, height): the axis lies just below it, the grid line of the highest count at its top."""
    axis = int(is_colour(picture, INK).sum(1).argmax())
    columns = np.flatnonzero(is_colour(picture, INK)[axis])
    top = int(np.flatnonzero(is_colour(picture, GRID).sum(1) > 100)[0])
    return int(columns[0]), top, int(columns[-1] - columns[0]), axis - top


def in_plot(picture: Picture, colour: tuple[int, int, int]) -> np.ndarray:
    left, top, width, height = plot_area(picture)
    return is_colour(picture, colour)[top : top + height, left : left + width]


def bars(picture: Picture, colour: tuple[int, int, int]) -> dict[int, float]:
    """The bins with a bar of this colour, and its height as a share of the plot's.

    A blue bar is looked up in the left quarter of its bin, an orange one, which is half as wide, in the right quarter.
    """
    heights = in_plot(picture, colour).mean(0)
    quarter = 1 / 4 if colour == RIGHT else 3 / 4
    columns = [int(len(heights) * (i + quarter) / BINS) for i in range(BINS)]
    return {i: float(heights[x]) for i, x in enumerate(columns) if heights[x]}


def losses_in(counts: dict[int, int]) -> list[float]:
    """Losses for a histogram that ends at 6.0: bin i is from i / 10 to (i + 1) / 10."""
    return [(i + 0.5) / 10 for i, count in counts.items() for _ in range(count)]


def test_bars_are_as_high_as_their_counts() -> None:
    """Right labels: 4 in bin 10, 2 in bin 30; wrong: 3 in bin 20, 1 in bin 30, 2 in bin 59. 4 fill the plot."""
    right, wrong = losses_in({10: 4, 30: 2}), losses_in({20: 3, 30: 1, 59: 2})
    wrong_N = torch.tensor([False] * len(right) + [True] * len(wrong))
    picture = loss_histogram(torch.tensor(right + wrong), wrong_N, 6.0, "")
    assert picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8
    assert bars(picture, RIGHT) == pytest.approx({10: 1, 30: 0.5}, abs=0.01)
    assert bars(picture, WRONG) == pytest.approx({20: 0.75, 30: 0.25, 59: 0.5}, abs=0.01)


def test_the_highest_bar_may_be_one_of_wrong_labels() -> None:
    losses_N = torch.tensor(losses_in({5: 1, 50: 4}))
    picture = loss_histogram(losses_N, losses_N > 3, 6.0, "")
    assert bars(picture, RIGHT) == pytest.approx({5: 0.25}, abs=0.01)
    assert bars(picture, WRONG) == pytest.approx({50: 1}, abs=0.01)


def test_bars_stand_on_the_axis_and_inside_their_bin() -> None:
    picture = loss_histogram(torch.tensor(losses_in({12: 5})), None, 6.0, "")
    mask = in_plot(picture, RIGHT)
    width = mask.shape[1]
    columns = np.flatnonzero(mask.any(0))
    assert columns[0] >= width * 12 / BINS - 1 and columns[-1] <= width * 13 / BINS
    assert mask[:, columns].all()


def test_left_out_samples_are_not_drawn() -> None:
    """NaN clipped or cast would land in the first or the last bin."""
    losses_N = torch.tensor([NAN, NAN, *losses_in({7: 1}), NAN])
    picture = loss_histogram(losses_N, torch.tensor([False, True, False, True]), 6.0, "")
    assert list(bars(picture, RIGHT)) == [7]
    assert bars(picture, WRONG) == {}


def test_an_epoch_without_samples_has_no_bars() -> None:
    picture = loss_histogram(torch.full((4,), NAN), None, 6.0, "")
    assert not in_plot(picture, RIGHT).any()


def test_losses_beyond_the_top_are_counted_in_the_last_bin() -> None:
    """Dropped, they would make a run that goes wrong look fine. 6.0 itself is the end of the last bin."""
    losses_N = torch.tensor([6.0, 6.1, 1e6, *losses_in({20: 6, 59: 1})])
    picture = loss_histogram(losses_N, None, 6.0, "")
    assert bars(picture, RIGHT) == pytest.approx({20: 1, 59: 4 / 6}, abs=0.01)


@pytest.mark.parametrize("top", [0.1, 1.4, 2.3, 1 / 3, 6.0, 7.7])
def test_the_last_bin_takes_what_lies_beyond_whatever_the_top(top: float) -> None:
    """`top` in float32 may lie above `top` in float64."""
    picture = loss_histogram(torch.tensor([0.0, top, 2 * top]), None, top, "")
    assert bars(picture, RIGHT) == pytest.approx({0: 0.5, 59: 1}, abs=0.01)


def test_the_first_bin_takes_0() -> None:
    assert list(bars(loss_histogram(torch.zeros(3), None, 6.0, ""), RIGHT)) == [0]


def test_only_what_is_known_is_coloured() -> None:
    """Without the truth no label may look wrong, not even in the legend."""
    losses_N = torch.tensor(losses_in({3: 2, 40: 1}))
    unknown = loss_histogram(losses_N, None, 6.0, "")
    known = loss_histogram(losses_N, torch.tensor([False, False, True]), 6.0, "")
    assert not is_colour(unknown, WRONG).any()
    for colour in (RIGHT, WRONG):  # both stand in the legend, which is outside the plot
        assert is_colour(known, colour).sum() - in_plot(known, colour).sum() >= 100


@pytest.mark.parametrize(("peak", "lines"), [(1, [1]), (2, [2, 1]), (3, [3, 2, 1]), (5, [5, 3, 1]), (8, [8, 6, 4, 2])])
def test_grid_lines_stand_at_whole_counts_each_once(peak: int, lines: list[int]) -> None:
    picture = loss_histogram(torch.tensor(losses_in({10: peak})), None, 6.0, "")
    _, top, _, height = plot_area(picture)
    rows = np.flatnonzero(is_colour(picture, GRID).sum(1) > 100)
    assert [peak * (1 - (row - top) / height) for row in rows] == pytest.approx(lines, abs=0.05)


@pytest.mark.parametrize("top", [0.1, 6.0, 99.99])
def test_the_last_tick_is_not_cut_off(top: float) -> None:
    picture = loss_histogram(torch.tensor([0.0]), None, top, "")
    assert (picture[:, -4:] == 255).all()


def test_input_is_left_alone() -> None:
    losses_N = torch.tensor([-1.0, 3.0, 99.0, NAN])
    loss_histogram(losses_N, None, 6.0, "")
    torch.testing.assert_close(losses_N, torch.tensor([-1.0, 3.0, 99.0, NAN]), equal_nan=True)


# ---- image_grid: cells of 96 x 96, a caption of 32 pixels below each, 8 pixels between


@pytest.mark.parametrize(
    ("n", "columns", "shape"),
    [
        (1, 10, (144, 1048, 3)),  # 1 * 136 + 8, 10 * 104 + 8
        (10, 10, (144, 1048, 3)),
        (11, 10, (280, 1048, 3)),
        (12, 5, (416, 528, 3)),
    ],
)
def test_grid_shape(n: int, columns: int, shape: tuple[int, int, int]) -> None:
    picture = image_grid(torch.zeros(n, 8, 8, 3, dtype=torch.uint8), [("", False)] * n, columns)
    assert picture.shape == shape and picture.dtype == np.uint8


@pytest.mark.parametrize("C", [1, 3])
def test_images_appear_enlarged_and_in_order(C: int) -> None:
    """8 x 8 pixels, each 12 times as large. The third of three images in 2 columns begins the second row."""
    images_NHWC = torch.randint(0, 255, (3, 8, 8, C), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = image_grid(images_NHWC, [("a", False)] * 3, columns=2)
    for image_HWC, (x, y) in zip(images_NHWC.numpy(), [(8, 8), (112, 8), (8, 144)], strict=True):
        large = image_HWC.repeat(12, axis=0).repeat(12, axis=1)
        assert (picture[y : y + 96, x : x + 96] == large).all()  # a grey image in all three channels
    assert (picture[144:240, 112:208] == 255).all()  # the empty cell


@pytest.mark.parametrize(
    ("H", "W", "x", "y", "height", "width"),
    [
        (40, 20, 36, 16, 80, 40),  # twice as large, (96 - 40) / 2 and (96 - 80) / 2 from the cell's edges
        (96, 96, 8, 8, 96, 96),
        (200, 100, 32, 8, 96, 48),  # shrunk
    ],
)
def test_images_keep_their_shape_and_stay_in_their_cell(
    H: int, W: int, x: int, y: int, height: int, width: int
) -> None:
    picture = image_grid(torch.full((1, H, W, 3), 70, dtype=torch.uint8), [("", False)], columns=1)
    rows, columns = np.nonzero(is_colour(picture, (70, 70, 70)))
    assert (columns.min(), rows.min()) == (x, y)
    assert (columns.max(), rows.max()) == (x + width - 1, y + height - 1)
    assert len(rows) == height * width


def test_a_caption_that_is_wider_than_its_image_is_cut() -> None:
    images_NHWC = torch.full((2, 8, 8, 3), 255, dtype=torch.uint8)
    picture = image_grid(images_NHWC, [("auto\rmobile → " * 9, True), ("", False)], columns=2)
    assert (picture[104:120, 8:104] < 255).any()
    assert (picture[104:120, 104:] == 255).all()


def test_captions_stand_out_where_asked_below_their_image() -> None:
    images_NHWC = torch.full((2, 8, 8, 3), 255, dtype=torch.uint8)
    picture = image_grid(images_NHWC, [("cat\n0.91", True), ("dog\n0.12", False)], columns=2)
    parts = {"stands out": picture[104:144, 8:112].astype(int), "plain": picture[104:144, 112:].astype(int)}
    for name, part in parts.items():
        red_minus_blue = part[:, :, 0] - part[:, :, 2]  # letters are blended into the white, so orange comes in shades
        marked = red_minus_blue > 60 if name == "stands out" else (part < 150).all(2)
        assert marked[:16].any() and marked[16:].any(), name  # both lines
        assert (red_minus_blue == 0).all() == (name == "plain")
    assert (picture[:104] == 255).all() and (picture[:, :8] == 255).all()  # nothing over the images
    assert is_colour(picture, WRONG).any() and is_colour(picture, INK).any()


def test_captions_have_signs_and_letters_beyond_ascii() -> None:
    """A letter that a font lacks is drawn as a box, and all boxes are alike."""
    image_NHWC = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    drawn = [image_grid(image_NHWC, [(letter, False)], columns=1).tobytes() for letter in "→≥…öŁЖ\uffff"]
    assert len(set(drawn)) == len(drawn)
