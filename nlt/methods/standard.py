"""Ordinary training on all samples with any loss: the paper's base model (CE) and its APL (NCE + RCE), section 3."""

from typing import ClassVar, Literal

from nlt.run import Run
from nlt.settings import Settings
from nlt.train import Stage, train_epoch


class Standard(Settings):
    """One stage of ordinary training; the labels are believed, the loss may be a robust one.

    Differences from the authors' code (`main.py`): the accuracy of an epoch is measured after it (the code measures
    before, and so never scores the last epoch), and `epochs` are run in full (`range(1, n)` runs n - 1).
    """

    title: ClassVar = "Standard"
    told_by: ClassVar = ("loss",)  # cross-entropy and a robust loss are two methods to whoever compares them
    reports_scores: ClassVar = False

    name: Literal["standard"] = "standard"
    training: Stage = Stage()
    """100 epochs, batch 128, learning rate 0.01 / 0.005 / 0.001 (paper, section 3; batch and steps from the code)."""

    def train(self, run: Run) -> None:
        """Train one network."""
        net = run.learner("net")
        for epoch in run.epochs("training", self.training, net):
            train_epoch(net, epoch, self.training.loss)
