"""Forward correction (Patrini et al., CVPR 2017): a network of true labels, seen through the noise's transition matrix.

If a label is drawn from row T_i of a matrix wherever the true class is i, then p T is the distribution of the given
labels where p is that of the true ones: fitting p T to the given labels fits p to the true ones (theorem 2).

N training samples, B in a batch, K classes.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from nlt.run import Run
from nlt.settings import Settings
from nlt.train import Stage, train_epoch

SMALLEST = 1e-7  # of p T: Keras' epsilon, at which the authors' code (`loss.py`) clamps p


class ForwardCorrection(Settings):
    """Two stages (Patrini et al. 2017, sections 4.2 and 4.3).

    1. Training on the given labels; then row i of T is p(. | x) of the sample at the 97th percentile of p_i (a large
       p_i makes x a perfect example of class i, and the largest may be an outlier).
    2. A new network is trained on the loss of p T. Scores are 1 - p_y T_yy / (p T)_y, the probability that a sample's
       true class is another one than its label y; `estimated_rate` is their mean.

    Differences from the authors' code (`models.py`, `experiment.py`, `loss.py`): the percentile is rounded down to a
    sample (the code takes the largest p_i below the 97th percentile rounded up: the same one, or its neighbour), and
    rows are read from the predictions as they are (the code zeroes the largest p_i in place before it reads the rows of
    later classes); p T is clamped where its logarithm is taken (the code clamps p); stage 1 ends with its last weights
    (the code keeps those of the lowest loss on noisy validation samples, in both stages).
    """

    read_by_last_stage_alone: ClassVar = frozenset({"training", "anchor_percentile"})
    title: ClassVar = "Forward"

    name: Literal["forward_correction"] = "forward_correction"
    anchor_percentile: float = Field(97.0, gt=0, le=100)
    """Of each class's probabilities over the samples, in (0, 100]; 97 but for CIFAR-100, 100 there (the authors'
    `experiment.py`)."""
    estimation: Stage = Stage(epochs=30)
    """Stage 1, whose predictions T is read from; the longer it memorizes, the more T looks like no noise."""
    training: Stage = Stage(epochs=70)
    """Stage 2; its loss is that of p T, the paper's is cross-entropy."""

    def train(self, run: Run) -> None:
        """Train through both stages."""
        estimator = run.learner("estimator")
        for epoch in run.epochs("estimation", self.estimation, estimator):
            train_epoch(estimator, epoch, self.estimation.loss)

        T_KK = run.buffer("T_KK", anchor_matrix(run.predict(estimator).exp(), self.anchor_percentile))
        net = run.learner("net")
        for epoch in run.epochs("training", self.training, net):
            scores_N = torch.zeros(run.N, device=run.device)
            for batch in epoch.batches():
                logits_BK, y_B1 = net(batch.images_BCHW), batch.labels_B[:, None]
                p_BK = logits_BK.softmax(1)
                given_BK = (p_BK @ T_KK).clamp(min=SMALLEST)
                losses_B = self.training.loss(given_BK.log(), batch.labels_B)
                net.step(losses_B.mean())
                kept_B1 = p_BK.gather(1, y_B1) * T_KK.diagonal()[y_B1] / given_BK.gather(1, y_B1)
                scores_N[batch.rows_B] = 1 - kept_B1.detach().squeeze(1)
                epoch.saw(batch, logits_BK, losses_B)
            epoch.report(scores_N=scores_N, estimated_rate=scores_N.mean())


def anchor_matrix(p_NK: Tensor, percentile: float) -> Tensor:
    """Return T_KK, row i the prediction of the sample at a percentile, in (0, 100], of p_NK[:, i], rounded down."""
    rows_K = p_NK.argsort(dim=0, stable=True)[int(percentile * (len(p_NK) - 1) / 100)]
    return p_NK[rows_K]
