"""Ours: one network and its average; leave-one-out predictions from the average's features say how much a label counts.

A closed-form classifier on the network's own features predicts each label from all other samples, so that it cannot
have memorized the label that it judges, as far as the features have not. By that judgement each target lies between
the given label and what the averaged network sees in the plain image; it is learned on a distorted one.

N samples, B of them in a batch, D features, K classes.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from nlt.augment import Augmentation, StrongView, mixup
from nlt.detect import find_label_errors
from nlt.optim import Constant, Cosine
from nlt.run import Run
from nlt.settings import Settings
from nlt.train import Batch, Epoch, Learner, Stage


class LeaveOneOutConsistency(Settings):
    """Two stages of one network; its exponential moving average judges, teaches, and is what is measured.

    1. Warm-up on the given labels y.
    2. Training. Every `refresh` epochs `nlt.detect.find_label_errors` makes p = P(y is wrong | features, y) of the
       average's features of all N images as they are. In each batch q is the average's prediction for the weak view
       (the experiment's augmentation) and the target is t = (1 - p) y + p q, no gradient through it.

    Both learn the strong view, by cross-entropy to t (stage 1: to y) with mixup (Zhang et al. 2018, eq. 1). Soft
    bootstrapping is Reed et al. 2015's (eq. 6), a weight of its own for each sample with mixup Arazo et al. 2019's
    (section 3.2), from two beta distributions fitted to the losses; the weak view that teaches the strong one is Sohn
    et al. 2020's (eq. 4, without its threshold). New is where p comes from. Scores are the log odds of p; kept are
    p < 1/2. The method is told no rate and sees no clean label.
    """

    title: ClassVar = "Leave-one-out consistency"

    name: Literal["loo_consistency"] = "loo_consistency"
    strong: Augmentation = StrongView()
    """The strong view, which the network learns from."""
    mixing: float = Field(1.0, gt=0, le=100)
    """alpha of mixup's Beta(alpha, alpha): 1, as Zhang et al. 2018 on CIFAR-10 (section 3.2)."""
    memory: float = Field(0.99, ge=0, lt=1)
    """The average's memory, per step, in [0, 1); in epoch t of the warm-up at most 1 - 1 / t, to leave the beginning
    behind."""
    refresh: int = Field(2, ge=1)
    """Epochs that a judgement of the labels lasts."""
    warmup: Stage = Stage(epochs=10, schedule=Constant(lr=0.03))
    """Stage 1: all labels count. The loss is cross-entropy to soft targets, here and in stage 2."""
    training: Stage = Stage(epochs=90, schedule=Cosine(lr=0.03))
    """Stage 2."""

    def train(self, run: Run) -> None:
        """Train one network, its average following."""
        net, average = run.learner("net"), run.learner("average")
        given_NK = F.one_hot(run.labels_N, run.K).float()
        for epoch in run.epochs("warmup", self.warmup, average):
            for batch in epoch.batches(views=(self.strong,)):
                self._learn(run, epoch, batch, given_NK[batch.rows_B], net)
                average.follow(net, min(self.memory, 1 - 1 / epoch.t))

        p_wrong_N = run.buffer("p_wrong_N", torch.zeros(run.N))
        for epoch in run.epochs("training", self.training, average):
            if (epoch.t - 1) % self.refresh == 0:
                z_ND = run.embed(average).cpu().numpy()
                found = find_label_errors(z_ND, run.labels_N.cpu().numpy(), classes=run.classes)
                p_wrong_N.copy_(torch.from_numpy(found.p_wrong_N))
                scores_N = torch.from_numpy(found.scores["posterior"]).to(run.device)
                epoch.report(scores_N=scores_N, keep_N=p_wrong_N < 0.5, estimated_rate=found.rate.point)
            average.network.eval()
            for batch in epoch.batches(views=(self.strong, run.augmentation)):
                with torch.no_grad():
                    q_BK = average(batch.views[1]).softmax(1)
                p_B1 = p_wrong_N[batch.rows_B, None]
                self._learn(run, epoch, batch, (1 - p_B1) * given_NK[batch.rows_B] + p_B1 * q_BK, net)
                average.follow(net, self.memory)

    def _learn(self, run: Run, epoch: Epoch, batch: Batch, targets_BK: Tensor, net: Learner) -> None:
        """Take one step on the first view of a batch, mixed; the larger part of a mixed image decides whose it is."""
        mixed_BCHW, mixed_BK = mixup(batch.images_BCHW, targets_BK, self.mixing, run.generator, larger_first=True)
        logits_BK = net(mixed_BCHW)
        losses_B = -(mixed_BK * logits_BK.log_softmax(1)).sum(1)
        net.step(losses_B.mean())
        epoch.saw(batch, logits_BK, losses_B)
