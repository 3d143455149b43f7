"""Pictures of one run, drawn with Pillow: a histogram takes about 3 ms, with matplotlib it would be 170.

N samples; images come back as uint8 arrays (height, width, 3).
"""

import math
from functools import cache
from importlib.metadata import distribution

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Picture = NDArray[np.uint8]

# Okabe & Ito's blue and orange: told apart by the colour-blind, and by their brightness in grey.
RIGHT, WRONG, INK, GRID = (0, 114, 178), (230, 159, 0), (40, 40, 40), (225, 225, 225)
BINS = 60
FONT = "matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf"  # Pillow's own has neither arrows nor letters beyond ASCII


def loss_histogram(losses_N: Tensor, wrong_N: Tensor | None, top: float, title: str) -> Picture:
    """Draw a histogram of an epoch's losses_N (NaN where a sample was left out), right and wrong labels apart.

    wrong_N is True where the given label is wrong, None where that is unknown. The axis ends at `top`; the last bin
    counts what lies beyond.
    """
    width, height, left, right, upper, lower = 480, 420, 50, 14, 48, 36
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    font = _font(12)
    seen_N = losses_N.isfinite().numpy()
    values_N = losses_N.numpy().clip(0, np.nextafter(np.float32(top), np.float32(0)))
    wrong = np.zeros(len(losses_N), bool) if wrong_N is None else wrong_N.numpy()
    groups = [(RIGHT, "labels" if wrong_N is None else "right labels", seen_N & ~wrong)]
    if wrong_N is not None:
        groups.append((WRONG, "wrong labels", seen_N & wrong))
    counts = [np.histogram(values_N[chosen], bins=BINS, range=(0, top))[0] for _, _, chosen in groups]
    peak = max(1, *(int(c.max()) for c in counts))
    plot_w, plot_h = width - left - right, height - upper - lower
    for count in range(peak, 0, -math.ceil(peak / 4)):
        y = upper + plot_h * (1 - count / peak)
        draw.line((left, y, width - right, y), fill=GRID)
        draw.text((left - 6, y), str(count), fill=INK, font=font, anchor="rm")
    for (colour, _, _), heights in zip(groups, counts, strict=True):
        for i, count in enumerate(heights):
            if count:
                x0, x1 = (left + plot_w * i / BINS, left + plot_w * (i + 1) / BINS - 1)
                y = upper + plot_h * (1 - count / peak)
                if colour == RIGHT:
                    draw.rectangle((x0, y, x1, upper + plot_h), fill=colour)
                else:  # half as wide, so that the bar behind stays visible
                    middle = (x0 + x1) / 2
                    draw.rectangle((middle, y, x1, upper + plot_h), fill=colour)
    draw.line((left, upper + plot_h, width - right, upper + plot_h), fill=INK)
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        sign, anchor = ("≥ ", "ra") if fraction == 1 else ("", "ma")  # centred, the last one would be cut off
        x = left + plot_w * fraction
        draw.text((x, upper + plot_h + 5), f"{sign}{top * fraction:.2f}", fill=INK, font=font, anchor=anchor)
    draw.text((left + plot_w / 2, height - 3), "per-sample loss", fill=INK, font=font, anchor="mb")
    draw.text((left, 4), title, fill=INK, font=font)
    x = width - right
    for colour, label, chosen in reversed(groups):
        text = f"{label} ({int(chosen.sum()):,})"
        x -= int(draw.textlength(text, font=font))
        draw.text((x, 24), text, fill=INK, font=font)
        draw.rectangle((x - 15, 27, x - 5, 37), fill=colour)
        x -= 30
    return np.asarray(canvas)


def image_grid(images_NHWC: Tensor, captions: list[tuple[str, bool]], columns: int = 10) -> Picture:
    """Draw images_NHWC (uint8, one or three channels) in rows of `columns`, each above its caption of one or two lines.

    A caption that comes with True stands out; a line that is wider than its image is cut, with an ellipsis.
    """
    cell, text_h, gap = 96, 32, 8
    rows = -(-len(captions) // columns)
    canvas = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + text_h + gap) + gap), "white")
    draw = ImageDraw.Draw(canvas)
    font = _font(11)
    for i, (caption, stands_out) in enumerate(captions):
        array = images_NHWC[i].numpy()
        picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
        picture.thumbnail((cell, cell))
        scale = max(1, cell // max(picture.size))
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
        x, y = gap + (i % columns) * (cell + gap), gap + (i // columns) * (cell + text_h + gap)
        canvas.paste(picture, (x + (cell - picture.width) // 2, y + (cell - picture.height) // 2))
        caption = "\n".join(_cut(line, cell, font) for line in caption.split("\n")[:2])
        draw.multiline_text((x, y + cell + 1), caption, fill=WRONG if stands_out else INK, font=font, spacing=1)
    return np.asarray(canvas)


def _cut(line: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    line = "".join(sign if sign.isprintable() else "?" for sign in line)  # classes are called as users call them
    if font.getlength(line) <= width:
        return line
    return next(cut for end in range(len(line), -1, -1) if font.getlength(cut := f"{line[:end]}…") <= width)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Without importing matplotlib, which takes 80 ms and warns where the home folder cannot be written to.
    return ImageFont.truetype(str(distribution("matplotlib").locate_file(FONT)), size)
