"""Augmentation: a whole batch at once on the training device, drawn for a whole epoch at once on the CPU.

M samples in an epoch, B of them in a batch, images of H x W pixels and C channels as uint8, K classes. What is drawn
comes from the generator of the samples' order, which every checkpoint holds, and is the same on every device.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from scipy.special import betaincinv  # type: ignore[import-untyped]
from torch import Tensor

from nlt.settings import BadInput, Settings

GREY = (
    128  # what cutout leaves: zero after the usual normalization (DeVries & Taylor 2017, section 3), which is not done
)


class CropFlipCutout(Settings):
    """Random crop of the image grown by its own reflection, random horizontal flip, and cutout."""

    name: Literal["crop_flip_cutout"] = "crop_flip_cutout"
    pad: int = Field(4, ge=0)
    """Pixels of reflection on each side before the crop to size; 4 (of zeros) in He et al. 2016, section 4.2."""
    flip: bool = True
    """Mirror every other image on average."""
    cutout: int = Field(0, ge=0)
    """Side of the square that is greyed out, in pixels, its centre anywhere in the image: 16 for CIFAR-10 in DeVries &
    Taylor 2017, section 4.1; 0 for none."""

    def check(self, H: int, W: int) -> None:
        """Raise BadInput if images of H x W pixels are too small."""
        _check_pad(self.pad, H, W)

    def draw(self, M: int, H: int, W: int, generator: torch.Generator) -> Tensor:
        """Return draws_M5, int64 on the CPU: shift down, shift right, flip (0 or 1), row and column of the cutout."""
        return _draw_places(M, H, W, self.pad, self.flip, generator)

    def take(self, images_NHWC: Tensor, rows_B: Tensor, draws_B5: Tensor) -> Tensor:
        """Return images_BHWC: the images of rows_B, changed as draws_B5 says; all three on one device."""
        _, H, W, _ = images_NHWC.shape
        down_B, right_B, flip_B, row_B, column_B = draws_B5[:, :, None].unbind(1)
        y_H, x_W = torch.arange(H, device=rows_B.device), torch.arange(W, device=rows_B.device)
        x_BW = torch.where(flip_B > 0, W - 1 - x_W, x_W)
        from_BH, from_BW = _reflect(y_H + down_B, H), _reflect(x_BW + right_B, W)
        images_BHWC = images_NHWC[rows_B[:, None, None], from_BH[:, :, None], from_BW[:, None, :]]
        return _cut_out(images_BHWC, row_B, column_B, self.cutout)


# The operations of RandAugment (Cubuk et al. 2020, section 3) with the ranges of FixMatch's (Sohn et al. 2020,
# appendix D). Geometric ones first. At a magnitude of 1 and either sign:
OPERATIONS = (
    "rotate",  # by 30 degrees about the centre
    "shear x",  # by 0.3 about the centre
    "shear y",
    "translate x",  # by 0.3 of the side
    "translate y",
    "brightness",  # times 1 +- 0.9, as the others of this group: away from, or towards, black
    "contrast",  # ... the mean grey
    "colour",  # ... the grey image
    "sharpness",  # ... the smoothed image
    "autocontrast",  # of any magnitude
    "equalize",  # of any magnitude; of images under 256 pixels Pillow's changes nothing
    "posterize",  # to 4 bits
    "solarize",  # all values
    "identity",
)
(
    ROTATE, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, BRIGHTNESS, CONTRAST, COLOUR, SHARPNESS, AUTOCONTRAST, EQUALIZE,
    POSTERIZE, SOLARIZE, IDENTITY,
) = range(len(OPERATIONS))  # fmt: skip


class StrongView(Settings):
    """Crop and flip, then operations drawn at random for each image, then cutout: RandAugment, as in FixMatch.

    Cubuk et al. 2020, section 3; Sohn et al. 2020, appendix D. Differences: the geometric operations of an image are
    one map, done before the others, without cutting off between them what the next one would bring back; they turn and
    shear about the centre; what comes from beyond the border is grey. Sizes go with the images', so that 8 x 8 digits
    are changed as much as photographs.
    """

    name: Literal["strong"] = "strong"
    pad: int | None = Field(None, ge=0)
    """Pixels of reflection on each side before the crop to size; by default an eighth of the shorter side, 4 of 32."""
    flip: bool = True
    """Mirror every other image on average."""
    operations: int = Field(2, ge=0, le=10)
    """Operations drawn for each image, with replacement; 2 in Sohn et al. 2020, appendix D."""
    magnitude: float = Field(1.0, ge=0, le=1)
    """Largest magnitude of an operation; each is drawn uniformly up to it."""
    cutout: int | None = Field(None, ge=0)
    """Side of the square that is greyed out, in pixels, its centre anywhere in the image; by default half the shorter
    side, 16 of 32 (DeVries & Taylor 2017, section 4.1); 0 for none."""

    def check(self, H: int, W: int) -> None:
        """Raise BadInput if images of H x W pixels are too small."""
        _check_pad(self.pad or 0, H, W)

    def draw(self, M: int, H: int, W: int, generator: torch.Generator) -> Tensor:
        """Return draws_MD, float32 on the CPU: CropFlipCutout's five, then of each operation which, and its magnitude.

        The magnitude has a sign: in [-magnitude, magnitude].
        """
        pad = min(H, W) // 8 if self.pad is None else self.pad
        draws = [_draw_places(M, H, W, pad, self.flip, generator).float()]
        for _ in range(self.operations):
            operation_M1 = torch.randint(len(OPERATIONS), (M, 1), generator=generator).float()
            signed_M1 = (torch.rand(M, 1, generator=generator) * 2 - 1) * self.magnitude
            draws += [operation_M1, signed_M1]
        return torch.cat(draws, 1)

    def take(self, images_NHWC: Tensor, rows_B: Tensor, draws_BD: Tensor) -> Tensor:
        """Return images_BHWC: the images of rows_B, changed as draws_BD says; all three on one device."""
        _, H, W, _ = images_NHWC.shape
        B = len(rows_B)
        places_B5, operations = draws_BD[:, :5].long(), draws_BD[:, 5:].reshape(B, -1, 2).unbind(1)
        down_B, right_B, flip_B, _, _ = places_B5[:, :, None, None].unbind(1)
        x_BHW, y_BHW = _moved(H, W, operations, draws_BD)
        inside_BHW = (x_BHW >= 0) & (x_BHW < W) & (y_BHW >= 0) & (y_BHW < H)
        x_BHW = torch.where(flip_B > 0, W - 1 - x_BHW, x_BHW)
        # Clamped last: what is outside is greyed out below, but has to be read from somewhere.
        from_BHW = _reflect(y_BHW + down_B, H).clamp(0, H - 1) * W + _reflect(x_BHW + right_B, W).clamp(0, W - 1)
        images_BHWC = images_NHWC.flatten(1, 2)[rows_B[:, None, None], from_BHW]
        images_BHWC.masked_fill_(~inside_BHW[..., None], GREY)
        for operation_B2 in operations:
            images_BHWC = _toned(images_BHWC, operation_B2)
        _, _, _, row_B, column_B = places_B5[:, :, None].unbind(1)
        return _cut_out(images_BHWC, row_B, column_B, min(H, W) // 2 if self.cutout is None else self.cutout)


AnyAugmentation = CropFlipCutout | StrongView
Augmentation = Annotated[AnyAugmentation, Field(discriminator="name")]


def mixup(
    images_BCHW: Tensor, targets_BK: Tensor, alpha: float, generator: torch.Generator, larger_first: bool = False
) -> tuple[Tensor, Tensor]:
    """Mix a batch with itself in another order: lambda * sample + (1 - lambda) * another, images and targets alike.

    Zhang et al. 2018, equation 1; one lambda ~ Beta(alpha, alpha) and one permutation a batch, as in their code.

    Args:
        images_BCHW: floats.
        targets_BK: class probabilities; one-hot rows for labels.
        alpha: above 0; the larger, the nearer lambda is to 1/2.
        generator: on the CPU; `run.generator`.
        larger_first: take lambda in [1/2, 1], so that each row stays closer to its own sample (MixMatch, Berthelot et
            al. 2019, equation 9).
    """
    # The inverse of the distribution function at one uniform number: torch draws no Beta from a generator.
    lam = float(betaincinv(alpha, alpha, torch.rand((), generator=generator, dtype=torch.float64).item()))
    lam = max(lam, 1 - lam) if larger_first else lam
    other_B = torch.randperm(len(images_BCHW), generator=generator).to(images_BCHW.device, non_blocking=True)
    return (
        lam * images_BCHW + (1 - lam) * images_BCHW[other_B],
        lam * targets_BK + (1 - lam) * targets_BK[other_B],
    )


def _check_pad(pad: int, H: int, W: int) -> None:
    if pad >= min(H, W):
        raise BadInput(f"augmentation.pad: images of {H} x {W} pixels have no {pad} to reflect: lower it.")


def _draw_places(M: int, H: int, W: int, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return draws_M5: shift down, shift right, flip (0 or 1), row and column of the cutout."""
    ranges = ((-pad, pad + 1), (-pad, pad + 1), (0, 1 + flip), (0, H), (0, W))
    return torch.stack([torch.randint(low, high, (M,), generator=generator) for low, high in ranges], 1)


def _moved(H: int, W: int, operations: tuple[Tensor, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return x_BHW and y_BHW, int64: where each pixel comes from under the geometric operations, maybe outside."""
    middle_y, middle_x = (H - 1) / 2, (W - 1) / 2
    y_BHW = (torch.arange(H, device=like.device) - middle_y)[None, :, None].expand(len(like), H, W)
    x_BHW = (torch.arange(W, device=like.device) - middle_x)[None, None, :].expand(len(like), H, W)
    # From the result back to the image: the last operation is undone first.
    for operation_B2 in reversed(operations):
        operation_B, signed_B = operation_B2[:, :, None, None].unbind(1)

        def by(which: int, most: float, operation_B: Tensor = operation_B, signed_B: Tensor = signed_B) -> Tensor:
            return torch.where(operation_B == which, most * signed_B, 0.0)

        angle_B = by(ROTATE, math.radians(30))
        cos_B, sin_B = angle_B.cos(), angle_B.sin()
        x_BHW, y_BHW = (
            cos_B * x_BHW + (sin_B + by(SHEAR_X, 0.3)) * y_BHW + by(TRANSLATE_X, 0.3 * W),
            cos_B * y_BHW + (by(SHEAR_Y, 0.3) - sin_B) * x_BHW + by(TRANSLATE_Y, 0.3 * H),
        )
    # The nearest pixel, as Pillow takes it in the authors' code.
    return (x_BHW + middle_x).round().long(), (y_BHW + middle_y).round().long()


def _toned(images_BHWC: Tensor, operation_B2: Tensor) -> Tensor:
    """Return images_BHWC after one operation each on its values, as Pillow has them; the others leave it as it is."""
    operation_B, signed_B = operation_B2[:, :, None, None].unbind(1)
    factor_B = 1 + 0.9 * signed_B
    grey_BHW1 = _grey(images_BHWC)
    values_BPC = _blended(images_BHWC, grey_BHW1, operation_B, factor_B).long().flatten(1, 2)
    # What becomes of each of the 256 values: a table is smaller than a photograph.
    v_V1 = torch.arange(256.0, device=values_BPC.device)[:, None]
    zero_B = torch.where(operation_B == CONTRAST, grey_BHW1.mean((1, 2))[..., None], 0.0)
    is_scaled_B = (operation_B == CONTRAST) | (operation_B == BRIGHTNESS)
    table_BVC = zero_B + torch.where(is_scaled_B, factor_B, 1.0) * (v_V1 - zero_B)
    low_B1C, high_B1C = (x.float() for x in values_BPC.aminmax(dim=1, keepdim=True))
    stretched_BVC = (v_V1 - low_B1C) * (255 / (high_B1C - low_B1C).clamp(min=1))
    table_BVC = torch.where((operation_B == AUTOCONTRAST) & (high_B1C > low_B1C), stretched_BVC, table_BVC)
    table_BVC = torch.where(operation_B == EQUALIZE, _equalized(values_BPC), table_BVC)
    step_B = torch.where(operation_B == POSTERIZE, 4 * signed_B.abs(), 0.0).round().exp2()
    table_BVC = (table_BVC.round() / step_B).floor() * step_B
    threshold_B = torch.where(operation_B == SOLARIZE, 256 * (1 - signed_B.abs()), 256.0)
    table_BVC = torch.where((table_BVC >= threshold_B) & (operation_B == SOLARIZE), 255 - table_BVC, table_BVC)
    return table_BVC.clamp(0, 255).to(torch.uint8).gather(1, values_BPC).reshape(images_BHWC.shape)


def _grey(images_BHWC: Tensor) -> Tensor:
    """Return grey_BHW1, floats: ITU-R 601-2's weights, as Pillow; for other than three channels their mean."""
    C = images_BHWC.shape[3]
    weights = (0.299, 0.587, 0.114) if C == 3 else (1 / C,) * C  # as a tensor they would wait for a GPU
    parts = [weight * channel_BHW for weight, channel_BHW in zip(weights, images_BHWC.unbind(3), strict=True)]
    return torch.stack(parts).sum(0)[..., None]


def _blended(images_BHWC: Tensor, grey_BHW1: Tensor, operation_B: Tensor, factor_B: Tensor) -> Tensor:
    """Return images_BHWC, floats, moved from their grey form or their smoothed one, or towards it."""
    x_BHWC = images_BHWC.float()
    smooth_BHWC = x_BHWC.clone()  # Pillow's SMOOTH leaves the border as it is
    if min(x_BHWC.shape[1:3]) > 2:
        rows = x_BHWC[:, :-2] + x_BHWC[:, 1:-1] + x_BHWC[:, 2:]
        box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
        smooth_BHWC[:, 1:-1, 1:-1] = (box + 4 * x_BHWC[:, 1:-1, 1:-1]) / 13
    operation_B, factor_B = operation_B[..., None], factor_B[..., None]
    is_colour_B = operation_B == COLOUR
    zero_BHWC = torch.where(is_colour_B, grey_BHW1, smooth_BHWC)
    factor_B = torch.where(is_colour_B | (operation_B == SHARPNESS), factor_B, 1.0)
    return torch.lerp(zero_BHWC, x_BHWC, factor_B).round_().clamp_(0, 255)


def _equalized(values_BPC: Tensor) -> Tensor:
    """Return table_BVC: the values spread evenly, each channel by itself, as Pillow's ImageOps.equalize."""
    B, P, C = values_BPC.shape
    counts_BVC = torch.zeros(B, 256, C, dtype=torch.int32, device=values_BPC.device)
    counts_BVC.scatter_add_(1, values_BPC, torch.ones((), dtype=torch.int32, device=values_BPC.device).expand(B, P, C))
    brightest_B1C = counts_BVC.gather(1, values_BPC.amax(1, keepdim=True))
    step_B1C = (P - brightest_B1C) // 255
    below_BVC = counts_BVC.cumsum(1) - counts_BVC
    v_V1 = torch.arange(256, device=values_BPC.device)[:, None]
    return torch.where(step_B1C > 0, (below_BVC + step_B1C // 2) // step_B1C.clamp(min=1), v_V1).float()


def _cut_out(images_BHWC: Tensor, row_B: Tensor, column_B: Tensor, side: int) -> Tensor:
    """Grey out a square of each image in place, and return them."""
    if side:
        _, H, W, _ = images_BHWC.shape
        y_H, x_W = torch.arange(H, device=row_B.device), torch.arange(W, device=row_B.device)
        cut_BH, cut_BW = _within(y_H - row_B, side), _within(x_W - column_B, side)
        images_BHWC.masked_fill_((cut_BH[:, :, None] & cut_BW[:, None, :])[..., None], GREY)
    return images_BHWC


def _reflect(index: Tensor, size: int) -> Tensor:
    """Map -1 to 1 and `size` to size - 2, as reflection without repeated borders does."""
    last = size - 1
    return last - (last - index.abs()).abs()


def _within(offset: Tensor, side: int) -> Tensor:
    """Return whether an offset from a square's centre lies in the square."""
    return (offset >= -(side // 2)) & (offset < side - side // 2)
