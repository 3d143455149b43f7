"""Imports nlt in a process that may not change its own memory settings, then shows that asking for that is noticed.

A script of its own (see test_hardware.py), because what is looked at happens once in the life of a process.
"""

import ctypes
import importlib
from typing import Any


class Refuses(ctypes.CDLL):
    """A C library without `mallopt`."""

    def __getattr__(self, name: str) -> Any:
        assert name != "mallopt", "memory settings are changed"
        return super().__getattr__(name)


ctypes.CDLL = Refuses  # type: ignore[misc]

for module in ("nlt.launcher", "nlt.train", "nlt.bench"):
    importlib.import_module(module)
hardware = importlib.import_module("nlt.hardware")
try:
    hardware.hold_memory()
except AssertionError:
    print("asked for")
