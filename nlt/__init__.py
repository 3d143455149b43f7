"""Train image classifiers on noisy labels. `from nlt import load, launch` is the library; `nlt --help` the command."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlt.launcher import Listener, Options, launch
    from nlt.reading import load
    from nlt.settings import BadInput

__all__ = ["BadInput", "Listener", "Options", "launch", "load"]
_HOME = {
    "BadInput": "nlt.settings",
    "Listener": "nlt.launcher",
    "Options": "nlt.launcher",
    "launch": "nlt.launcher",
    "load": "nlt.reading",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `nlt --help` does not wait for torch and mlflow.
    if name not in _HOME:
        raise AttributeError(f"module 'nlt' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
