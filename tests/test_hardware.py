"""Device, precision, compilation and kept memory: what is found, and what is not touched."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nlt.hardware import find_device, find_precision
from nlt.settings import BadInput

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "cpu:0", "", "mps"])
def test_unknown_device(name):
    with pytest.raises(BadInput, match="use auto, cpu, cuda"):
        find_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_asked_for_and_absent():
    with pytest.raises(BadInput, match="sees no CUDA device here: use --device cpu or auto"):
        find_device("cuda")
    assert find_device("auto") == CPU


def test_auto_precision_is_bf16_only_in_hardware():
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert find_precision("auto", CPU) == ("bf16" if native else "fp32")
    assert find_precision("bf16", CPU) == "bf16"


def test_importing_nlt_changes_nothing_in_the_process():
    """glibc's thresholds cannot be read back; that nobody sets them can be seen."""
    script = Path(__file__).with_name("importing.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert sys.platform != "linux" or done.stdout == "asked for\n"
