"""What makes features of images: the pixels themselves, or a network with pretrained weights.

N images, B of them in a batch, S x S pixels, D features, P = 3 S S pixels in a row. Images come as uint8, features are
half floats.
"""

import math
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from nlt.pretrained import (
    LITE0,
    LITE0_ARCHITECTURE,
    fold_batch_norm,
    load_backbone,
    origin,
    preparation,
    weights_digest,
)  # fmt: skip
from nlt.settings import BadInput, Seed, Settings, brief

AT_ONCE = 1024  # images whose Fourier features are computed at a time
LARGEST_BYTES = 10**9  # of the frequencies W_PD
SIDE = Annotated[int, Field(ge=1, le=4096)]


Encoder = Callable[[NDArray[np.uint8]], NDArray[np.float16]]
"""images_B3SS to what is kept of them, (B, D)."""


class Pixels(Settings):
    """The pixels themselves, of images shrunk to a small side, through random Fourier features of an RBF kernel
    (Rahimi & Recht 2007, Algorithm 1); for small scans, digits say, without a network."""

    name: Literal["pixels"] = "pixels"
    image_size: SIDE = 8
    """Side in pixels to which images are resized; at most 144 at 2,000 features: more would take a gigabyte."""
    features: int = Field(2000, ge=1, le=100_000)
    """D, the number of random features."""
    bandwidth: float = Field(0.5, gt=0)
    """Standard deviation of the kernel, as a factor on the median distance between two images."""
    seed: Seed = 0
    """Of the random frequencies and phases."""

    @model_validator(mode="after")
    def _frequencies_fit_into_memory(self) -> "Pixels":
        if self.image_size > (largest := largest_side(self.features)):
            raise ValueError(
                f"image_size {self.image_size} is too large for {self.features} features: set it to {largest} or less"
            )
        return self

    def __str__(self) -> str:
        return self.name

    def side(self) -> int:
        """Return the side in pixels at which images are decoded."""
        return self.image_size

    @property
    def outside_weights(self) -> str | None:
        """Where weights of outside origin come from: there are none."""
        return None

    def identity(self) -> dict[str, Any]:
        """Return what decides the numbers that are kept of an image: not what `finish` makes of all together."""
        return {"name": self.name, "side": self.side(), "numpy": np.__version__}

    def encoder(self, device: torch.device) -> Encoder:
        """Return the pixels of each image in a row, (B, 3 S S) in 0 .. 255, exact in half floats."""
        return lambda images_B3SS: images_B3SS.reshape(len(images_B3SS), -1).astype(np.float16)

    def finish(self, pixels_NP: NDArray[np.float16]) -> NDArray[np.float16]:
        """Return sqrt(2 / D) cos(pixels W + b): two images' products are about exp(-distance^2 / (2 sigma^2)).

        W is drawn from N(0, 1 / sigma^2), b from U(0, 2 pi); sigma is `bandwidth` times the median distance.
        """
        generator = np.random.default_rng(self.seed)
        sigma = self.bandwidth * median_distance(pixels_NP)
        W_PD = generator.standard_normal((pixels_NP.shape[1], self.features)) / sigma
        b_D = generator.uniform(0, 2 * np.pi, self.features)
        features_ND = np.empty((len(pixels_NP), self.features), np.float16)
        for first in range(0, len(pixels_NP), AT_ONCE):
            angles_BD = pixels_NP[first : first + AT_ONCE].astype(np.float64) @ W_PD + b_D
            features_ND[first : first + AT_ONCE] = np.sqrt(2 / self.features) * np.cos(angles_BD)
        return features_ND


class Lite0(Settings):
    """EfficientNet-Lite0 with the ImageNet weights that come with nlt; 1,280 features, for photographs."""

    name: Literal["lite0"] = "lite0"
    image_size: SIDE = 160
    """Side in pixels at which the network sees images; it was trained at 224. Of 4,000 CIFAR-10 images with a fifth of
    the labels wrong, leave-one-out predictions met 60.2 % of the given ones at 160 and 59.0 % at 128, which takes 0.6
    of the time."""

    def __str__(self) -> str:
        return self.name

    def side(self) -> int:
        """Return the side in pixels at which images are decoded."""
        return self.image_size

    @property
    def outside_weights(self) -> str | None:
        """Where the weights come from, in words."""
        return origin(LITE0, None)

    def identity(self) -> dict[str, Any]:
        """Return what decides the features of an image."""
        return _identity(self, LITE0, None)

    def encoder(self, device: torch.device) -> Encoder:
        """Return the network, ready to be applied to images_B3SS."""
        return _encoder(LITE0, None, self.side(), device)

    def finish(self, features_ND: NDArray[np.float16]) -> NDArray[np.float16]:
        """Return the features as they are."""
        return features_ND


class Timm(Settings):
    """Any image network of timm with its pretrained weights, or with those of a file; pooled features."""

    name: Literal["timm"] = "timm"
    architecture: str = Field(min_length=1, max_length=200)
    """timm's name for it, with the tag of its weights or without: `resnet50.a1_in1k`."""
    weights: str | None = None
    """A file: safetensors, or a pickle that holds tensors alone. By default the hub's, from its cache if they are
    there; HF_HUB_OFFLINE=1 forbids downloads."""
    image_size: SIDE | None = None
    """Side in pixels at which the network sees images; by default that of its training."""

    def __str__(self) -> str:
        return f"timm {self.architecture}"

    def side(self) -> int:
        """Return the side in pixels at which images are decoded.

        Raises:
            BadInput: timm has no such network, or it takes images of another side only.
        """
        prepared = preparation(self.architecture)
        side = self.image_size or prepared.image_size
        prepared.check_side(self.architecture, side)
        return side

    @property
    def outside_weights(self) -> str | None:
        """Where the weights come from, in words."""
        return origin(self.architecture, self.weights)

    def identity(self) -> dict[str, Any]:
        """Return what decides the features of an image.

        Raises:
            BadInput: there are no such weights.
        """
        return _identity(self, self.architecture, self.weights)

    def encoder(self, device: torch.device) -> Encoder:
        """Return the network, ready to be applied to images_B3SS.

        Raises:
            BadInput: there is no such network, or its weights cannot be had or are another network's.
        """
        return _encoder(self.architecture, self.weights, self.side(), device)

    def finish(self, features_ND: NDArray[np.float16]) -> NDArray[np.float16]:
        """Return the features as they are."""
        return features_ND


Backbone = Annotated[Pixels | Lite0 | Timm, Field(discriminator="name")]
AnyBackbone = Pixels | Lite0 | Timm


def parse(text: str, weights: str | None = None, image_size: int | None = None) -> tuple[AnyBackbone, ...]:
    """Return the backbones that a command line names: one, or for `auto` both that need no download.

    Args:
        text: `auto`, `pixels`, `lite0` or `timm:NAME`.
        weights: a file of weights, for `timm:NAME` only.
        image_size: side in pixels, 1 to 4096, of `pixels` to 144; of `auto` for `lite0` alone.

    Raises:
        BadInput: it is none of these.
    """
    check_image_size(image_size)
    kind, _, architecture = text.partition(":")
    if kind == "timm" and architecture:
        if architecture == LITE0 and weights is None:
            return parse(LITE0, None, image_size)
        if architecture == LITE0:
            raise BadInput(
                f"--backbone timm:{LITE0} brings its own weights: use timm:{LITE0_ARCHITECTURE} with --weights."
            )
        preparation(architecture)  # a name that timm does not have is known at once
        return (Timm(architecture=architecture, weights=weights, image_size=image_size),)
    if text not in ("auto", "pixels", "lite0"):
        raise BadInput(f"--backbone {brief(text)}: use auto, pixels, lite0 or timm:NAME, timm:resnet50 say.")
    if weights is not None:
        raise BadInput(f"--weights goes with --backbone timm:NAME, the network they belong to, not with {text}.")
    if text == "pixels":
        largest = largest_side(Pixels().features)
        if image_size is not None and image_size > largest:
            raise BadInput(f"--image-size {image_size}: with --backbone pixels use a side of 1 to {largest} pixels.")
        return (Pixels() if image_size is None else Pixels(image_size=image_size),)
    lite0 = Lite0() if image_size is None else Lite0(image_size=image_size)
    return (lite0,) if text == "lite0" else (Pixels(), lite0)


def check_image_size(image_size: int | None) -> None:
    """Raise BadInput if a side is not of 1 to 4096 pixels; None is any."""
    if image_size is not None and not 1 <= image_size <= 4096:
        raise BadInput(f"--image-size {image_size}: use a side of 1 to 4096 pixels.")


def largest_side(features: int) -> int:
    """Return up to which side of images the frequencies of so many random features, 3 S S doubles each, are kept within
    `LARGEST_BYTES`."""
    return math.isqrt(LARGEST_BYTES // (3 * 8 * features))


def median_distance(pixels_NP: NDArray[np.float16]) -> float:
    """Return the median Euclidean distance between two different ones of at most 1,000 rows, spread over all; 1 if
    they are all alike."""
    some_MP = pixels_NP[np.linspace(0, len(pixels_NP) - 1, min(len(pixels_NP), 1000)).astype(int)].astype(np.float64)
    squares_M = (some_MP**2).sum(1)
    squared_MM = squares_M[:, None] + squares_M[None] - 2 * some_MP @ some_MP.T
    pairs = squared_MM[np.triu_indices(len(some_MP), 1)]
    apart = pairs[pairs > 0.5]  # pixels are whole numbers: less is rounding
    return float(np.sqrt(np.median(apart))) if len(apart) else 1.0


def _identity(backbone: Lite0 | Timm, architecture: str, weights: str | None) -> dict[str, Any]:
    return {
        "name": backbone.name,
        "architecture": architecture,
        "side": backbone.side(),
        "weights": weights_digest(architecture, weights),
        "torch": torch.__version__,
        "timm": version("timm"),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
    }


def _encoder(architecture: str, weights: str | None, side: int, device: torch.device) -> Encoder:
    network = load_backbone(architecture, weights).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    prepared = preparation(architecture)
    probe_B3SS = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    fold_batch_norm(network, prepared.normalize(probe_B3SS))

    @torch.inference_mode()
    def encode(images_B3SS: NDArray[np.uint8]) -> NDArray[np.float16]:
        pixels_B3SS = torch.from_numpy(images_B3SS).to(device).to(memory_format=torch.channels_last).float() / 255
        features_BD: Tensor = network(prepared.normalize(pixels_B3SS))
        half_BD: NDArray[np.float16] = features_BD.half().cpu().numpy()
        if not np.isfinite(half_BD).all():
            raise BadInput(
                f"the network {architecture} gives features that are not finite, or above 65,504 (the largest half "
                "float): its weights are damaged, or another backbone is needed."
            )
        return half_BD

    return encode
