"""DivideMix (Li, Socher & Hoi, ICLR 2020): of what one network finds mislabelled the other learns images alone."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from nlt.augment import Augmentation, mixup
from nlt.detect import p_small
from nlt.optim import Constant, Step
from nlt.run import Run
from nlt.settings import Settings
from nlt.train import Batch, Epoch, Learner, Stage


class DivideMix(Settings):
    """Li et al. 2020, Algorithm 1: a warm-up, then each network learns, as in MixMatch, from what the other divides.

    w = P(component of smaller mean) of two Gaussians fitted to one network's losses. For the other one, samples of
    w > tau are labelled (x, B in a step), the rest not (u, U); a part that would be empty is made of all. Targets of x
    are w y + (1 - w) p, p the learner's mean prediction of two views, of u both networks'; sharpened, mixed up. Loss:
    cross-entropy on x + lambda_u squared error on u + KL(uniform || mean prediction). Both networks' mean is judged.
    As in the authors' code (`Train_CIFAR.py`) the squared error is divided by K (paper: not), the learner guesses in
    training mode, the other in evaluation mode, and u begins again when it ends before x. Differences: guesses for x
    and u are one pass (code: each view, for its batch norm); lambda_u rises once an epoch (each step), one for all
    noises (paper: 0 to 50); losses are never averaged over epochs (at 90 % noise); networks by probability (logits).
    """

    title: ClassVar = "DivideMix"

    name: Literal["dividemix"] = "dividemix"
    p_threshold: float = Field(0.5, ge=0, lt=1)
    """tau, the probability of a right label above which it is believed: 0.5 (section 4.1, as what names no source)."""
    temperature: float = Field(0.5, gt=0)
    """T: sharpened targets are proportional to p^(1 / T); 0.5."""
    alpha: float = Field(4.0, gt=0)
    """Of mixup's Beta(alpha, alpha): 4."""
    lambda_u: float = Field(25.0, ge=0)
    """Weight of the squared error, reached after 16 epochs of the second stage: 25 (both the code's)."""
    confidence_penalty: float = Field(0.0, ge=0)
    """Weight of the negative entropy in the warm-up (section 3.1): there 1 for asymmetric noise, 0 for symmetric."""
    strong: Augmentation | None = None
    """Views that are learned from (AugDesc-WS, Nishi et al. 2021); by default those that targets come from."""
    warmup: Stage = Stage(epochs=10, schedule=Constant(lr=0.02))
    """10 epochs at batch 128."""
    training: Stage = Stage(epochs=290, batch_size=64, schedule=Step(lrs=(0.02, 0.002), fractions=(140 / 290,)))
    """To epoch 300, a tenth of the rate after 150; batch 64 beside as many unlabelled (the code). Its loss divides."""

    def train(self, run: Run) -> None:
        """Warm both networks up, then train each on what the other one divides."""
        f, g = run.learner("f"), run.learner("g")
        for epoch in run.epochs("warmup", self.warmup, f, g):
            for net in (f, g):
                for batch in epoch.batches():
                    log_p_BK = net(batch.images_BCHW).log_softmax(1)
                    losses_B = self.warmup.loss(log_p_BK, batch.labels_B)
                    net.step((losses_B + self.confidence_penalty * (log_p_BK.exp() * log_p_BK).sum(1)).mean())
                    epoch.saw(batch, log_p_BK, losses_B)
        views = (run.augmentation,) * 2 + (() if self.strong is None else (self.strong,) * 2)
        for epoch in run.epochs("training", self.training, f, g):
            log_p_2NK = torch.stack([run.predict(f), run.predict(g)])
            losses_2N = torch.stack([self.training.loss(log_p_NK, run.labels_N) for log_p_NK in log_p_2NK])
            w_2N = torch.stack([p_small(losses_N) for losses_N in losses_2N.cpu()])  # waits for the device, once
            keep_2N, w_2N = w_2N > self.p_threshold, w_2N.to(run.device)
            for net, other, by in ((f, g, 1), (g, f, 0)):  # by whose losses
                for x, u in epoch.pairs(keep_2N[by], views=views):
                    self.learn(run, epoch, net, other, x, u, w_2N[by, x.rows_B, None])
            keep_N = w_2N.mean(0) > self.p_threshold
            labels_N = torch.where(keep_N, run.labels_N, log_p_2NK.exp().sum(0).argmax(1))
            epoch.report(scores_N=losses_2N.mean(0), keep_N=keep_N, labels_N=labels_N, labelled=keep_N.float().mean())

    def learn(self, run: Run, epoch: Epoch, net: Learner, other: Learner, x: Batch, u: Batch, w_B1: Tensor) -> None:
        """Make targets of the first two views, with the labels of x, and take a step on the last two."""
        n = 2 * len(x.rows_B)
        with torch.no_grad():
            p = net(torch.cat([*x.views[:2], *u.views[:2]])).softmax(1)
        p_u = (p[n:] + other.judge(torch.cat(u.views[:2])).softmax(1)) / 2
        p_x_BK, p_u_UK = p[:n].unflatten(0, (2, -1)).mean(0), p_u.unflatten(0, (2, -1)).mean(0)
        refined_BK = w_B1 * one_hot(x.labels_B, run.K) + (1 - w_B1) * p_x_BK
        targets = (torch.cat([refined_BK, refined_BK, p_u_UK, p_u_UK]).log() / self.temperature).softmax(1)
        images, targets = mixup(torch.cat([*x.views[-2:], *u.views[-2:]]), targets, self.alpha, run.generator, True)
        log_q = net(images).log_softmax(1)
        loss_x = -(targets[:n] * log_q[:n]).sum(1).mean()
        loss_u = (targets[n:] - log_q[n:].exp()).square().mean()
        divergence = -log_q.logsumexp(0).mean()  # but for a constant
        net.step(loss_x + self.lambda_u * min((epoch.t - 1) / 16, 1) * loss_u + divergence)
        for batch, p_BK in ((x, p_x_BK), (u, p_u_UK)):
            epoch.saw(batch, p_BK, self.training.loss(p_BK.clamp(min=1e-30).log(), batch.labels_B))
