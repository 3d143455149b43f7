"""Early-learning regularization (Liu et al., NeurIPS 2020): what the network believed early keeps it from memorizing.

Before it memorizes wrong labels a network predicts the right ones. A running average of its predictions remembers that,
and a term in the loss pulls towards it, against the gradient of a wrong label.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from nlt.run import Run
from nlt.settings import Settings
from nlt.train import Stage


class ELR(Settings):
    """Liu et al. 2020, sections 4.2 and 4.3.

    Targets t = beta t + (1 - beta) p after each prediction p of a sample (eq. 9), from 0; loss CE + lambda
    log(1 - <p, t>) (eq. 6), the gradient through p alone. Scores are 1 - t_y: how little the targets believe a label.

    As in the authors' code (`loss.py`) p is clamped to [1e-4, 1 - 1e-4], so that the logarithm stays finite, and
    divided by its sum where it enters t. Differences: the optimizer and its schedule are the experiment's.
    """

    title: ClassVar = "ELR"

    name: Literal["elr"] = "elr"
    lam: float = Field(3.0, ge=0, le=1000)
    """lambda, the weight of the regularization: 3 for CIFAR-10, 1 there with asymmetric noise (the authors'
    `config_cifar10.json`, `config_cifar10_asym.json`), 0 for none."""
    beta: float = Field(0.7, ge=0, lt=1)
    """The targets' memory, in [0, 1): 0.7 for CIFAR-10, 0.9 there with asymmetric noise (same files)."""
    training: Stage = Stage()
    """The one stage. Its loss stands for the paper's cross-entropy."""

    def train(self, run: Run) -> None:
        """Train one network."""
        net = run.learner("net")
        targets_NK = run.buffer("targets_NK", torch.zeros(run.N, run.K))
        for epoch in run.epochs("training", self.training, net):
            for batch in epoch.batches():
                logits_BK = net(batch.images_BCHW)
                p_BK = logits_BK.softmax(1).clamp(1e-4, 1 - 1e-4)
                believed_BK = p_BK.detach() / p_BK.detach().sum(1, keepdim=True)
                targets_NK[batch.rows_B] = self.beta * targets_NK[batch.rows_B] + (1 - self.beta) * believed_BK
                agreement_B = (p_BK * targets_NK[batch.rows_B]).sum(1)
                losses_B = self.training.loss(logits_BK, batch.labels_B) + self.lam * (1 - agreement_B).log()
                net.step(losses_B.mean())
                epoch.saw(batch, logits_BK, losses_B)
            epoch.report(scores_N=1 - targets_NK[torch.arange(run.N, device=run.device), run.labels_N])
