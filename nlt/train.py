"""The one training loop.

N training samples, B of them in a batch, M of them in an epoch; C channels, K classes. Images lie as uint8 on the
training device (rows of `images_NHWC`) and turn into float batches in [0, 1] there. Inside an epoch nothing waits for
the device: no `.item()`, no `if tensor`.
"""

import ctypes
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nlt.augment import CropFlipCutout
from nlt.checkpoint import State
from nlt.losses import CE, Loss
from nlt.optim import SGD, Schedule, Step
from nlt.settings import BadInput, Settings

Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "on", "off"]
COMPILE_S = 30.0  # CNN9 for one batch size, on two CPU cores
# What it then gains at each step. On a CPU it loses 10 to 15 % (docs/performance.md). On a GPU it was not measured, so
# `auto` leaves it off; docs/gpu_bench.sh measures it. The launches of a step of CNN9, some 300 of 5 us, make 0.0015.
COMPILE_GAIN_S = {"cpu": 0.0, "cuda": 0.0}
# Images at a time where no gradient is kept; changes no result beyond rounding. On a CPU what fits into its caches:
# CNN9 at a quarter of the width evaluates 1.5 times as many images per second as at 500.
EVALUATION_BATCH = {"cpu": 125, "cuda": 1000}


class Stage(Settings):
    """A stretch of epochs with one batch size, loss and learning-rate schedule."""

    epochs: int = Field(100, ge=1, le=100_000)
    """Number of epochs."""
    batch_size: int = Field(128, ge=1, le=1_000_000)
    """Samples per optimizer step: 128 in the authors' code (`main.py`, lines 81, 86), 16 in its stage 2 (131)."""
    loss: Loss = CE()
    """Per-sample loss; its mean over the batch is minimized."""
    schedule: Schedule = Step()
    """Learning rate of each epoch of this stage."""


class Diverged(Exception):
    """A per-sample loss was not finite: the run has failed."""


def find_device(name: str) -> torch.device:
    """Return the device `auto`, `cpu`, `cuda` or `cuda:i`; `auto` is the first GPU, else the CPU.

    Raises:
        BadInput: the name is none of these, or the GPU is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (re.fullmatch(r"[0-9]{1,3}", index) or name == "cuda"):
        raise BadInput(f"--device {name}: use auto, cpu, cuda or cuda:0, cuda:1, ...")
    if not torch.cuda.is_available():
        raise BadInput(
            f"--device {name}: torch {torch.__version__} sees no CUDA device here: use --device cpu or auto."
        )
    if int(index or 0) >= torch.cuda.device_count():
        raise BadInput(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0.")
    return torch.device("cuda", int(index or 0))


def find_precision(name: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Resolve `auto`: bf16 where the device multiplies it in hardware (GPUs since Ampere, CPUs with avx512_bf16
    or AMX).

    On a CPU without them bf16 is emulated: CNN9 ran 20 times slower than in fp32 on an AMD EPYC Milan.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def find_compile(wanted: Compile, device: torch.device, steps: dict[int, int]) -> tuple[bool, str]:
    """Decide whether to compile the network, and say why.

    Args:
        wanted: what the spec says; `auto` compiles where that pays for itself within the run.
        device: where.
        steps: batch size -> optimizer steps of the run; each size is compiled by itself.
    """
    if wanted != "auto":
        return wanted == "on", f"{wanted}, as the spec says"
    gain_s, cost_s = COMPILE_GAIN_S[device.type] * sum(steps.values()), COMPILE_S * len(steps)
    decision = gain_s > cost_s
    why = f"{sum(steps.values()):,} steps gain about {gain_s:,.0f} s on {device.type}, compiling takes {cost_s:,.0f} s"
    return decision, f"{'on' if decision else 'off'}: {why}"


def _hold_memory() -> None:
    """Keep what a step frees for the next step instead of handing it back to the system.

    CNN9 asks for the same tensors at every step, and glibc gives those of megabytes back at once, to fetch them again
    page by page: on two cores that takes 6 to 11 % of a step (docs/performance.md). The process keeps what its largest
    step needs.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # glibc's; musl has none
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most it takes
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


_hold_memory()


class Learner:
    """A network, its optimizer, and the learning rate in force, on one device at one precision."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: SGD,
        device: torch.device,
        precision: Literal["fp32", "bf16"],
        compiled: bool = False,
    ):
        # Channels-last: 1.2 to 1.8 times the images per second of the default format for CNN9 on CPUs and GPUs.
        self.network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.lr = 0.0
        self.train_accuracy = torch.zeros((), device=device)  # share of the last epoch's samples that met their label
        self._settings = optimizer
        self._autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
        # Dropout draws what it draws without compilation. On a GPU forward and backward are a CUDA graph each.
        options: dict[str, str | int | bool | Callable[..., object]] = {
            "fallback_random": True,
            "triton.cudagraphs": device.type == "cuda",
        }
        self._compiled = torch.compile(self.network, dynamic=False, options=options) if compiled else None
        self.new_optimizer()

    def new_optimizer(self) -> None:
        """Forget the momentum, as the authors' code does at the beginning of each stage."""
        self.optimizer = self._settings.build(self.network)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the steps to come."""
        self.lr = lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def copy_weights(self, other: "Learner") -> None:
        """Take over another learner's parameters and batch-norm statistics."""
        self.network.load_state_dict(other.network.state_dict())

    def state(self) -> State:
        """Return all that training changes, for a checkpoint."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "lr": self.lr}

    def load(self, state: State) -> None:
        """Take over what `state` returned once."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr = state["lr"]

    def logits(self, images_BCHW: Tensor, size: int | None = None) -> Tensor:
        """Return logits_BK.

        Batches of just `size` images, as all but the last of a stage are, take the compiled network if there is one:
        for others it would have to be compiled again.
        """
        network = self.network if self._compiled is None or len(images_BCHW) != size else self._compiled
        with self._autocast:
            logits_BK: Tensor = network(images_BCHW)
        return logits_BK


@dataclass(frozen=True)
class Batches:
    """An epoch's batches: the samples `rows_M`, in that order, `size` at a time."""

    images_NHWC: Tensor
    """uint8, on the training device."""
    labels_N: Tensor
    """int64, on the training device."""
    rows_M: Tensor
    """Which samples, in which order: int64, on the training device."""
    size: int
    """Samples in a batch."""
    augmentation: CropFlipCutout | None = None
    draws_M5: Tensor | None = None
    """What `augmentation` drew for these samples, on the training device."""

    def augmented(self, augmentation: CropFlipCutout, generator: torch.Generator) -> "Batches":
        """Return the same batches, each image changed at random."""
        _, H, W, _ = self.images_NHWC.shape
        draws_M5 = augmentation.draw(len(self.rows_M), H, W, generator).to(self.rows_M.device)
        return replace(self, augmentation=augmentation, draws_M5=draws_M5)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (rows_B, images_BCHW, labels_B)."""
        parts = list(self.rows_M.split(self.size))
        if len(parts) > 1 and len(parts[-1]) == 1:
            # Batch norm cannot take a single sample where the last feature map is 1 x 1: it joins the batch before.
            parts[-2:] = [torch.cat(parts[-2:])]
        begin = 0
        for rows_B in parts:
            if self.augmentation is None or self.draws_M5 is None:
                images_BHWC = self.images_NHWC[rows_B]
            else:
                draws_B5 = self.draws_M5[begin : begin + len(rows_B)]
                images_BHWC = self.augmentation.take(self.images_NHWC, rows_B, draws_B5)
            begin += len(rows_B)
            yield rows_B, to_float(images_BHWC), self.labels_N[rows_B]


def to_float(images_BHWC: Tensor) -> Tensor:
    """Turn uint8 images into float32 in [0, 1], (B, C, H, W) in channels-last memory order."""
    return images_BHWC.permute(0, 3, 1, 2).float().div_(255)


def train_epoch(net: Learner, batches: Batches, loss: Loss) -> Tensor:
    """Train on each batch once, with the mean of its per-sample losses.

    Returns:
        losses_N, float32: each sample's loss just before its batch's step, NaN for samples in no batch.

    Raises:
        Diverged: some loss was NaN or infinite.
    """
    net.network.train()
    losses_N = torch.full_like(batches.labels_N, torch.nan, dtype=torch.float32)
    hits = torch.zeros_like(net.train_accuracy)
    for rows_B, images_BCHW, labels_B in batches:
        logits_BK = net.logits(images_BCHW, batches.size)
        losses_B = loss(logits_BK, labels_B)
        net.optimizer.zero_grad(set_to_none=True)
        losses_B.mean().backward()
        net.optimizer.step()
        losses_N[rows_B] = losses_B.detach()
        hits += (logits_BK.argmax(1) == labels_B).sum()
    M = len(batches.rows_M)
    net.train_accuracy = hits / M
    bad = M - int(losses_N.isfinite().sum())  # the epoch's one wait for the device
    if bad:
        raise Diverged(f"the loss of {bad} of {M} samples is not finite")
    return losses_N


@torch.no_grad()
def evaluate(net: Learner, images_NHWC: Tensor, labels_N: Tensor) -> float:
    """Return the share of samples whose most probable class is their label, in [0, 1]."""
    net.network.eval()
    hits = torch.zeros((), dtype=torch.int64, device=labels_N.device)
    B = EVALUATION_BATCH[labels_N.device.type]
    for images_BHWC, labels_B in zip(images_NHWC.split(B), labels_N.split(B), strict=True):
        hits += (net.logits(to_float(images_BHWC)).argmax(1) == labels_B).sum()
    return int(hits) / len(labels_N)
