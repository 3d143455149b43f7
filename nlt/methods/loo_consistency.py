"""Ours: one network and its average; leave-one-out predictions say which labels to trust, by features of the pixels
before any training, then by the average's own.

A closed-form classifier predicts each label from all other samples: it cannot have memorized the label that it judges,
as far as the features have not. So no network is trained on a label that was not judged before. N samples, B of them in
a batch, D features, K classes.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from nlt.augment import Augmentation, StrongView, mixup
from nlt.backbones import Backbone, Pixels
from nlt.detect import LabelErrors, find_label_errors
from nlt.optim import Constant, Cosine
from nlt.run import Run
from nlt.settings import Settings
from nlt.train import Batch, Epoch, Learner, Stage, equally_often

STEPS = 100
"""Of expectation maximization in the detector: its default of ten leaves P nearly flat where most labels are wrong."""


class LeaveOneOutConsistency(Settings):
    """Two stages of one network; its exponential moving average judges, teaches, and is what is measured.

    The labels are judged by `nlt.detect.find_label_errors`: P = P(true class | features, given label), and a label of
    P > 1/2 is trusted. A trusted label is its sample's target.

    1. Warm-up. P comes from the backbone's features, before any training; it is the target of all other samples.
    2. Training. Every `refresh` epochs P comes from the average's features of all images as they are. The target of all
       other samples is (P + q) / 2, with q the average's prediction for the weak view, which is the experiment's
       augmentation; no gradient goes through q. Most probable classes are drawn equally often: where labels are wrong
       at random rare classes hardly have trusted ones.

    The loss is cross-entropy with mixup (Zhang et al. 2018, eq. 1). Every other trusted sample is learned in its weak
    view, all others in the strong one: without a trusted label both views have to agree (Sohn et al. 2020, eq. 4,
    without its threshold). DivideMix (Li et al. 2020) divides by losses of two networks that were warmed up on all
    labels, this by leave-one-out predictions and T. Scores are the log odds of 1 - P_y.

    With the backbones `lite0` and `timm` the result rests on weights of outside origin (ImageNet), `pixels` has none.
    """

    title: ClassVar = "Leave-one-out consistency"

    name: Literal["loo_consistency"] = "loo_consistency"
    backbone: Backbone = Pixels()
    """What makes the features by which labels are judged before any training."""
    strong: Augmentation = StrongView()
    """The strong view."""
    mixing: float = Field(1.0, gt=0, le=100)
    """alpha of mixup's Beta(alpha, alpha): 1, as Zhang et al. 2018 on CIFAR-10 (section 3.2)."""
    memory: float = Field(0.99, ge=0, lt=1)
    """The average's memory, per step, in [0, 1); in epoch t of the warm-up at most 1 - 1 / t."""
    refresh: int = Field(2, ge=1)
    """Epochs that a judgement of the labels lasts."""
    warmup: Stage = Stage(epochs=50, batch_size=64, schedule=Constant(lr=0.03))
    """Stage 1: half of all epochs. The loss of both stages is cross-entropy."""
    training: Stage = Stage(epochs=50, batch_size=64, schedule=Cosine(lr=0.03))
    """Stage 2."""

    def train(self, run: Run) -> None:
        """Train one network, its average following."""
        y_NK, views = F.one_hot(run.labels_N, run.K).float(), (run.augmentation, self.strong)
        found = _judge(run, run.features(self.backbone))
        P_NK = run.buffer("P_NK", torch.from_numpy(found.p_true_NK))
        keep_N = run.buffer("keep_N", (P_NK * y_NK).sum(1) > 0.5)

        net, average = run.learner("net"), run.learner("average")
        for epoch in run.epochs("warmup", self.warmup, average):
            for batch in epoch.batches(views=views):
                trusted_B = keep_N[batch.rows_B]
                targets_BK = torch.where(trusted_B[:, None], y_NK[batch.rows_B], P_NK[batch.rows_B])
                self._learn(run, epoch, net, batch, targets_BK, trusted_B)
                average.follow(net, min(self.memory, 1 - 1 / epoch.t))

        for epoch in run.epochs("training", self.training, average):
            if (epoch.t - 1) % self.refresh == 0:
                found = _judge(run, run.embed(average).cpu().numpy())
                P_NK.copy_(torch.from_numpy(found.p_true_NK))
                keep_N.copy_((P_NK * y_NK).sum(1) > 0.5)
                scores_N = torch.from_numpy(found.scores["posterior"])
                epoch.report(scores_N=scores_N, keep_N=keep_N, estimated_rate=found.rate.point)
            most_N = P_NK.argmax(1)
            times_N = equally_often(F.one_hot(most_N, run.K).float(), torch.ones_like(keep_N), run.generator)
            average.network.eval()
            for batch in epoch.batches(times_N=times_N, views=views):
                with torch.no_grad():
                    q_BK = average(batch.images_BCHW).softmax(1)
                trusted_B = keep_N[batch.rows_B]
                rest_BK = (P_NK[batch.rows_B] + q_BK) / 2
                targets_BK = torch.where(trusted_B[:, None], y_NK[batch.rows_B], rest_BK)
                self._learn(run, epoch, net, batch, targets_BK, trusted_B)
                average.follow(net, self.memory)

    def _learn(self, run: Run, epoch: Epoch, net: Learner, batch: Batch, targets_BK: Tensor, trusted_B: Tensor) -> None:
        """Take one step; a mixed image counts as that of its larger part."""
        weak_BCHW, strong_BCHW = batch.views
        weak_B = trusted_B & (torch.arange(len(trusted_B), device=trusted_B.device) % 2 == 0)
        images_BCHW = torch.where(weak_B[:, None, None, None], weak_BCHW, strong_BCHW)
        mixed_BCHW, mixed_BK = mixup(images_BCHW, targets_BK, self.mixing, run.generator, larger_first=True)
        logits_BK = net(mixed_BCHW)
        losses_B = -(mixed_BK * logits_BK.log_softmax(1)).sum(1)
        net.step(losses_B.mean())
        epoch.saw(batch, logits_BK, losses_B)


def _judge(run: Run, features_ND: NDArray[np.floating]) -> LabelErrors:
    return find_label_errors(features_ND, run.labels_N.cpu().numpy(), classes=run.classes, steps=STEPS)
