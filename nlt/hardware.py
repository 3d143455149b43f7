"""What the machine can do, found once per launch: device, precision, and memory that is kept."""

import ctypes
import re
import sys
from typing import Literal

import torch

from nlt.settings import BadInput

Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "on", "off"]


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


def hold_memory() -> None:
    """Keep what a step frees for the next step instead of handing it back to the system.

    CNN9 asks for the same tensors at every step, and glibc gives those of megabytes back at once, to fetch them again
    page by page: on two cores that takes 6 to 11 % of a step (docs/performance.md). The process then keeps what its
    largest step needs. A launch asks for that; importing nlt changes nothing.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # glibc's; musl has none
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most it takes
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
