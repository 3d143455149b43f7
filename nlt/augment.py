"""Augmentation: a whole batch at once on the training device, drawn for a whole epoch at once on the CPU.

M samples in an epoch, B of them in a batch, images of H x W pixels and C channels as uint8. What is drawn comes from
the generator of the samples' order, which every checkpoint holds, and is the same on every device.
"""

from typing import Literal

import torch
from pydantic import Field
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
        if self.pad >= min(H, W):
            raise BadInput(f"augmentation.pad: images of {H} x {W} pixels have no {self.pad} to reflect: lower it.")

    def draw(self, M: int, H: int, W: int, generator: torch.Generator) -> Tensor:
        """Return draws_M5, int64 on the CPU: shift down, shift right, flip (0 or 1), row and column of the cutout."""
        ranges = ((-self.pad, self.pad + 1), (-self.pad, self.pad + 1), (0, 1 + self.flip), (0, H), (0, W))
        return torch.stack([torch.randint(low, high, (M,), generator=generator) for low, high in ranges], 1)

    def take(self, images_NHWC: Tensor, rows_B: Tensor, draws_B5: Tensor) -> Tensor:
        """Return images_BHWC: the images of rows_B, changed as draws_B5 says; all three on one device."""
        _, H, W, _ = images_NHWC.shape
        down_B, right_B, flip_B, row_B, column_B = draws_B5[:, :, None].unbind(1)
        y_H, x_W = torch.arange(H, device=rows_B.device), torch.arange(W, device=rows_B.device)
        x_BW = torch.where(flip_B > 0, W - 1 - x_W, x_W)
        from_BH, from_BW = _reflect(y_H + down_B, H), _reflect(x_BW + right_B, W)
        images_BHWC = images_NHWC[rows_B[:, None, None], from_BH[:, :, None], from_BW[:, None, :]]
        if self.cutout:
            cut_BH, cut_BW = _within(y_H - row_B, self.cutout), _within(x_W - column_B, self.cutout)
            images_BHWC.masked_fill_((cut_BH[:, :, None] & cut_BW[:, None, :])[..., None], GREY)
        return images_BHWC


def _reflect(index: Tensor, size: int) -> Tensor:
    """Map -1 to 1 and `size` to size - 2, as reflection without repeated borders does."""
    last = size - 1
    return last - (last - index.abs()).abs()


def _within(offset: Tensor, side: int) -> Tensor:
    """Return whether an offset from a square's centre lies in the square."""
    return (offset >= -(side // 2)) & (offset < side - side // 2)
