"""The optimizers and the learning-rate schedules.

A schedule gives the learning rate of a whole epoch: `at(t, epochs)` with t = 1 .. epochs within its stage.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from nlt.settings import Settings

LARGEST = 1e30  # so that it is a number of float32, too
Rate = Annotated[float, Field(gt=0, le=LARGEST)]


class SGD(Settings):
    """Stochastic gradient descent with momentum; the schedule of each stage sets its learning rate."""

    name: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    """0.9 (paper, section 3)."""
    weight_decay: float = Field(1e-4, ge=0, le=LARGEST)
    """1e-4 (paper, section 3); the authors' code has 5e-4 (`main.py`, lines 94 and 134)."""

    def build(self, network: torch.nn.Module) -> torch.optim.Optimizer:
        """Return an optimizer over all parameters; its learning rate is 0 until a schedule sets it."""
        return torch.optim.SGD(network.parameters(), lr=0.0, momentum=self.momentum, weight_decay=self.weight_decay)


class AdamW(Settings):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, Algorithm 2), for pretrained networks, say.

    Each step is about as long as the learning rate whatever the gradient: rates are some 50 times smaller than SGD's.
    """

    name: Literal["adamw"] = "adamw"
    weight_decay: float = Field(0.01, ge=0, le=LARGEST)
    """Share of a weight that goes in a step, per unit of the learning rate; 0.01 is torch's."""

    def build(self, network: torch.nn.Module) -> torch.optim.Optimizer:
        """Return an optimizer over all parameters; its learning rate is 0 until a schedule sets it."""
        return torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=self.weight_decay)


Optimizer = Annotated[SGD | AdamW, Field(discriminator="name")]


class Constant(Settings):
    """The same learning rate throughout."""

    name: Literal["constant"] = "constant"
    lr: Rate
    """Learning rate."""

    def at(self, t: int, epochs: int) -> float:
        """Return the learning rate of epoch t."""
        return self.lr


class Step(Settings):
    """lrs[0], then lrs[1] once the fraction fractions[0] of the stage is over, and so on."""

    name: Literal["step"] = "step"
    lrs: tuple[Rate, ...] = (0.01, 0.005, 0.001)
    """Learning rates; the default is that of the authors' code (`main.py`, lines 50-56)."""
    fractions: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.25, 0.5)
    """Ascending fractions of the stage at which the next rate begins; one fewer than `lrs`. The default is that of the
    authors' code, in which each step comes one epoch earlier, since it counts the epoch that begins as over."""

    @model_validator(mode="after")
    def _fit(self) -> "Step":
        if len(self.fractions) != len(self.lrs) - 1 or list(self.fractions) != sorted(set(self.fractions)):
            raise ValueError("fractions must ascend and be one fewer than lrs")
        return self

    def at(self, t: int, epochs: int) -> float:
        """Return the learning rate of epoch t: (t - 1) / epochs of the stage are over when it begins."""
        return self.lrs[sum((t - 1) / epochs >= fraction for fraction in self.fractions)]


class Cosine(Settings):
    """From `lr` in the first epoch along half a cosine to `final_lr`, which one epoch more would reach
    (Loshchilov & Hutter 2017, eq. 5, without restarts)."""

    name: Literal["cosine"] = "cosine"
    lr: Rate
    """Learning rate of the first epoch."""
    final_lr: float = Field(0.0, ge=0, le=LARGEST)
    """Where the cosine ends."""

    def at(self, t: int, epochs: int) -> float:
        """Return the learning rate of epoch t."""
        return self.final_lr + (self.lr - self.final_lr) * ((1 + math.cos(math.pi * (t - 1) / epochs)) / 2)


class Cyclical(Settings):
    """Linear from r1 down to r2 in every round of `period` epochs (O2U-Net, Huang et al. 2019, eq. 1 and 2; paper,
    section 2.2): s(t) = (1 + ((t - 1) mod c)) / c, r(t) = (1 - s) r1 + s r2, t from 1."""

    name: Literal["cyclical"] = "cyclical"
    r1: Rate = 0.01
    """Maximum learning rate: 0.01 (paper, section 3). By the formula the first epoch of a round is one step below."""
    r2: Rate = 0.001
    """Minimum learning rate, reached in the last epoch of each round: 0.001 (paper, section 3)."""
    period: int = Field(10, ge=1)
    """c, the epochs in a round: 10 (paper, section 3)."""
    offset: int = Field(0, ge=0)
    """Epochs into the round at which the stage begins; the authors' code has 1 (`main.py`, line 151: t mod c)."""

    def at(self, t: int, epochs: int) -> float:
        """Return the learning rate of epoch t."""
        s = (1 + (t - 1 + self.offset) % self.period) / self.period
        return (1 - s) * self.r1 + s * self.r2


Schedule = Annotated[Constant | Step | Cosine | Cyclical, Field(discriminator="name")]
