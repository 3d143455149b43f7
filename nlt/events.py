"""Events of a launch's runs, from the process that trains them to the one that shows them, and progress of other work.

This file imports neither torch nor mlflow.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Started:
    """A run begins to train; `done` of its `steps` epochs are trained already."""

    run_id: str
    about: str
    """Data set, sizes, share of wrong labels, device and precision, for people."""
    done: int
    steps: int
    shared: bool = False
    """Whether another run has trained the `done` epochs."""

    @property
    def after(self) -> str:
        """Return a phrase on the `done` epochs; "" if there are none."""
        if not self.done:
            return ""
        if self.shared:
            return f"begins after {self.done} of {self.steps} epochs, which another run has trained"
        return f"goes on after {self.done} of {self.steps} epochs"


@dataclass(frozen=True)
class Progressed:
    """An epoch is over."""

    step: int
    steps: int
    stage: str
    t: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Noted:
    """Something a person should know."""

    sentence: str


@dataclass(frozen=True)
class Finished:
    """A run is finished, in this launch or an earlier one."""

    name: str
    seed: int
    run_id: str
    metrics: dict[str, float]
    undelivered: str = ""
    stop_asked: bool = False


@dataclass(frozen=True)
class Failed:
    """A run ended unfinished, or did not begin."""

    kind: Literal["bad input", "failed", "interrupted", "died"]
    sentence: str
    run_id: str = ""
    undelivered: str = ""


Progress = Callable[[str, int, int], None]
"""Called with what is done, how many are, of how many."""


def silent(what: str, done: int, of: int) -> None:
    """A `Progress` that shows nothing."""


Event = Started | Progressed | Noted | Finished | Failed
Emit = Callable[[int, Event], None]
"""Called with a job's index and what happens to it; the last event of a job is Finished or Failed."""


class Incomplete(Exception):
    """A command has done what it could, and something failed on its own account; "" if it was said already."""


class Stopped(Exception):
    """The user stopped a command before it had done all."""
