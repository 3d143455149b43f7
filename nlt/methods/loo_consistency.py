"""Ours: one network and its average; leave-one-out predictions say which labels to trust. None is learned unjudged.

A closed-form classifier predicts a label from all other samples: it cannot have memorized the label that it judges, as
far as the features have not. N samples, B of them in a batch, D features, K classes.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from nlt.augment import Augmentation, StrongView, mixup
from nlt.backbones import Backbone, Pixels
from nlt.optim import Constant, Cosine
from nlt.run import Run
from nlt.settings import Settings
from nlt.train import Batch, CrossEntropyStage, Epoch, Learner, Stage, equally_often

STEPS = 100  # of expectation maximization: the detector's ten leave P nearly flat where most labels are wrong


class LeaveOneOutConsistency(Settings):
    """Two stages of one network; its exponential moving average judges, teaches, and is what is measured.

    P = P(true class | features, given label) of `nlt.detect.find_label_errors`: in the warm-up by the backbone's
    features, then, anew every `refresh` epochs, by the average's, of all images as they are. A label of P > 1/2 is
    trusted. It is its sample's target; all others' is P in the warm-up, then (P + q) / 2, with q the average's
    prediction for the weak view, which is the experiment's augmentation; no gradient goes through q. In the second
    stage classes argmax P come equally often: of a rare class few labels are trusted.

    The loss is cross-entropy with mixup (Zhang et al. 2018, eq. 1). Every other trusted sample is learned in its weak
    view, all others in the strong one: without a trusted label both views have to agree (Sohn et al. 2020, eq. 4,
    without its threshold). Scores are the log odds of 1 - P_y. `lite0` and `timm` bring outside weights (ImageNet).
    """

    title: ClassVar = "Leave-one-out consistency"

    name: Literal["loo_consistency"] = "loo_consistency"
    backbone: Backbone = Pixels()
    """What makes the features by which labels are judged before any training."""
    strong: Augmentation | None = StrongView()
    """The strong view; null for the weak one."""
    mixing: float = Field(1.0, gt=0, le=100)
    """alpha of mixup's Beta(alpha, alpha): 1, as Zhang et al. 2018 on CIFAR-10 (section 3.2)."""
    memory: float = Field(0.99, ge=0, lt=1)
    """The average's memory, per step, in [0, 1); in epoch t of the warm-up at most 1 - 1 / t."""
    refresh: int = Field(2, ge=1)
    """Epochs that a judgement of the labels lasts."""
    warmup: CrossEntropyStage = Stage(epochs=50, batch_size=64, schedule=Constant(lr=0.03))
    """Stage 1: half of all epochs."""
    training: CrossEntropyStage = Stage(epochs=50, batch_size=64, schedule=Cosine(lr=0.03))
    """Stage 2."""

    def train(self, run: Run) -> None:
        """Train one network, its average following."""
        net, average, weak = run.learner("net"), run.learner("average"), run.augmentation
        views = (weak, weak if self.strong is None else self.strong)
        P_NK = run.buffer("P_NK", torch.from_numpy(run.label_errors(self.backbone, STEPS).p_true_NK))
        for epoch in run.epochs("warmup", self.warmup, average):
            for batch in epoch.batches(views=views):
                self._learn(run, epoch, net, batch, P_NK[batch.rows_B], P_NK[batch.rows_B])
                average.follow(net, min(self.memory, 1 - 1 / epoch.t))
        for epoch in run.epochs("training", self.training, average):
            if (epoch.t - 1) % self.refresh == 0:
                found = run.label_errors(average, STEPS)
                P_NK.copy_(torch.from_numpy(found.p_true_NK))
                scores_N, keep_N = map(torch.from_numpy, (found.scores["posterior"], found.p_wrong_N < 0.5))
                epoch.report(scores_N=scores_N, keep_N=keep_N, estimated_rate=found.rate.point)
            average.network.eval()
            for batch in epoch.batches(times_N=equally_often(P_NK.argmax(1), run.K, run.generator), views=views):
                P_BK = P_NK[batch.rows_B]
                with torch.no_grad():
                    q_BK = average(batch.images_BCHW).softmax(1)
                self._learn(run, epoch, net, batch, P_BK, (P_BK + q_BK) / 2)
                average.follow(net, self.memory)

    def _learn(self, run: Run, epoch: Epoch, net: Learner, batch: Batch, P_BK: Tensor, others_BK: Tensor) -> None:
        """Take one step; a mixed image counts as that of its larger part."""
        y_BK = F.one_hot(batch.labels_B, run.K)
        trusted_B1 = (P_BK * y_BK).sum(1, keepdim=True) > 0.5
        is_even_B1 = torch.arange(len(P_BK), device=P_BK.device)[:, None] % 2 == 0
        (weak_BCHW, strong_BCHW), targets_BK = batch.views, torch.where(trusted_B1, y_BK, others_BK)
        images_BCHW = torch.where((trusted_B1 & is_even_B1)[..., None, None], weak_BCHW, strong_BCHW)
        mixed_BCHW, mixed_BK = mixup(images_BCHW, targets_BK, self.mixing, run.generator, larger_first=True)
        logits_BK = net(mixed_BCHW)
        losses_B = -(mixed_BK * logits_BK.log_softmax(1)).sum(1)
        net.step(losses_B.mean())
        epoch.saw(batch, logits_BK, losses_B)
