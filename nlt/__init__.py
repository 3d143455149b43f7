"""Train image classifiers on noisy labels. `from nlt import load, launch` is the library; `nlt --help` the command."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlt.launch import launch
    from nlt.settings import BadInput
    from nlt.spec import load

__all__ = ["BadInput", "launch", "load"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `nlt --help` does not wait for torch and mlflow.
    if name == "launch":
        from nlt.launch import launch as value
    elif name == "load":
        from nlt.spec import load as value
    elif name == "BadInput":
        from nlt.settings import BadInput as value
    else:
        raise AttributeError(f"module 'nlt' has no attribute {name!r}")
    globals()[name] = value  # `from nlt import launch` gives the function even after nlt.launch was imported
    return value
