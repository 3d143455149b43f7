"""Sparse over-parameterization (Liu et al., ICML 2022): a term of each sample's own can explain its label away.

A wrong label contradicts what the network has learned of the others, so the quickest way to fit it is the sample's own
term: squared and begun near 0, it grows exponentially where it is needed and stays small elsewhere.

N training samples, B in a batch, K classes.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from nlt.run import Run
from nlt.settings import Settings
from nlt.train import Stage

START = 1e-8  # standard deviation of u and v at first (Algorithm 1)
SMALLEST = 1e-4  # of a + s before it is normalized: the authors' code (`loss.py`)


class SOP(Settings):
    """Liu et al. 2022, Algorithm 1, without the two further terms of SOP+.

    s = u^2 y - v^2 (1 - y), y one-hot. The network and u descend the loss of max(p + s, eps) divided by its sum; v
    descends |h + s - y|^2, h the one-hot class that the network predicts. After each step u and v are cut to [-1, 1].
    Scores are u^2: how much of the label is taken for noise.

    As in the authors' code (`loss.py`, `train.py`) u is one number a sample, since y hides the others, its learning
    rate and v's are not scheduled and multiply the gradient of the batch's mean (Algorithm 1: times the network's
    learning rate), and h is the hard label. Differences: u has no gradient of v's loss (as in
    the paper; the code's latest version has it), u and v are cut, not their squares where they are used, and the
    prediction is not cut once more after it was normalized.
    """

    title: ClassVar = "SOP"

    name: Literal["sop"] = "sop"
    lr_u: float = Field(10.0, ge=0, le=10_000)
    """Learning rate of u at a batch size of 128: 10 for CIFAR-10 (as in the reproduction KlemenVovk/noisy-labels), 1
    for CIFAR-100, 0.1 there with asymmetric noise (the authors' README)."""
    lr_v: float = Field(10.0, ge=0, le=10_000)
    """Learning rate of v: 10 for both, 100 for CIFAR-100 with asymmetric noise (same sources)."""
    training: Stage = Stage()
    """The one stage. Its loss stands for the paper's cross-entropy."""

    def train(self, run: Run) -> None:
        """Train one network."""
        net = run.learner("net")
        u_N = run.buffer("u_N", START * torch.randn(run.N, generator=run.generator))
        v_NK = run.buffer("v_NK", START * torch.randn(run.N, run.K, generator=run.generator))
        for epoch in run.epochs("training", self.training, net):
            for batch in epoch.batches():
                rows_B, y_BK = batch.rows_B, F.one_hot(batch.labels_B, run.K).float()
                u_B, v_BK = u_N[rows_B].requires_grad_(), v_NK[rows_B].requires_grad_()
                more_BK, less_BK = u_B[:, None] ** 2 * y_BK, v_BK**2 * (1 - y_BK)
                logits_BK = net(batch.images_BCHW)
                q_BK = (logits_BK.softmax(1) + more_BK - less_BK.detach()).clamp(min=SMALLEST)
                losses_B = self.training.loss(q_BK.log(), batch.labels_B)  # its softmax divides by the sum
                h_BK = F.one_hot(logits_BK.argmax(1), run.K)
                losses_B = losses_B + (h_BK + more_BK.detach() - less_BK - y_BK).square().sum(1)
                net.step(losses_B.mean())
                with torch.no_grad():
                    assert u_B.grad is not None and v_BK.grad is not None  # `step` goes backward through both
                    u_N[rows_B] = (u_B - self.lr_u * u_B.grad).clamp(-1, 1)
                    v_NK[rows_B] = (v_BK - self.lr_v * v_BK.grad).clamp(-1, 1)
                epoch.saw(batch, logits_BK, losses_B)
            epoch.report(scores_N=u_N.square())
