"""O2U-Net: overfitting to underfitting (Huang et al., ICCV 2019; paper, section 2.2).

A network that swings between underfitting and overfitting, driven by a cyclical learning rate, meets a wrong label with
a large loss in every round, a right one only while it underfits. The losses of each sample, added up, tell them apart.
"""

from typing import ClassVar, Literal

import torch

from nlt.detect import Rounding, act_on, number_kept, smallest
from nlt.forget_rate import MOST, BackboneForRate, ForgetRate, rate_to_forget
from nlt.optim import Constant, Cyclical
from nlt.run import Run
from nlt.settings import Settings
from nlt.train import Stage, train_epoch


class O2U(Settings):
    """Three stages (Huang et al. 2019, Algorithm 1), each with a new optimizer; differences: `docs/fidelity.md`."""

    added_later = frozenset({"forget_rounding", "backbone", "act"})
    read_by_last_stage_alone: ClassVar = frozenset({"training"})
    title: ClassVar = "O2U"

    name: Literal["o2u"] = "o2u"
    forget_rate: ForgetRate
    """Share of the samples that is removed, in [0, 1): 1 would leave nothing. The paper sets it to the noise rate;
    nobody knows that of real data: `estimate` takes what `nlt.detect` makes of it by the features of `backbone`."""
    forget_rounding: Rounding = "down"
    """How many that is of N: `down`, floor(f N); `as_code`, N - int((1 - f) N), the authors' code."""
    pretraining: Stage = Stage(epochs=30, schedule=Constant(lr=0.01))
    """Stage 1, on all samples: 30 epochs at batch 128 and a constant learning rate of 0.01 (paper, sections 2.2, 3)."""
    cyclical: Stage = Stage(epochs=20, batch_size=16, schedule=Cyclical())
    """Stage 2, on all samples: 20 epochs at batch 16, two rounds of the cyclical learning rate. After each epoch the
    per-sample losses, less their mean, are added to the scores; the `forget_rate` share with the largest is marked."""
    training: Stage = Stage(epochs=50)
    """Stage 3, on what is left: 50 epochs at batch 128, any loss (NCE + RCE: the paper's "O2U-Net & APLoss")."""
    restart: Literal["pretrained", "fresh"] = "pretrained"
    """Where stage 3 starts: at the weights that stage 1 ended with (the authors' code), or at new ones."""
    backbone: BackboneForRate = None
    """What makes the features by which the noise rate is estimated; with `forget_rate: "estimate"` only."""
    act: Literal["remove", "relabel", "reweight"] = "remove"
    """What becomes of marked samples in stage 3: `remove` is the paper's. The others are ours and go by each class's
    mean probability in the forward passes of stage 2: `relabel` gives the most probable class where that is another
    one of more than 1/2 (of two: the other one), else removes; `reweight` weighs losses by that of the given label."""

    def fewest_samples(self, N: int) -> int:
        """Return how many of N samples the last stage trains on."""
        return number_kept(N, MOST if self.forget_rate == "estimate" else self.forget_rate, self.forget_rounding)

    def train(self, run: Run) -> None:
        """Train through the three stages."""
        forget_rate, measures = rate_to_forget(run, self.forget_rate, self.backbone)

        net = run.learner("net")
        for epoch in run.epochs("pretraining", self.pretraining, net):
            train_epoch(net, epoch, self.pretraining.loss)

        start = run.learner("start")
        if self.restart == "pretrained":
            start.copy_weights(net)

        net.new_optimizer()
        scores_N = run.buffer("scores_N", torch.zeros(run.N))
        keep_N = run.buffer("keep_N", torch.ones(run.N, dtype=torch.bool))
        p_NK = None if self.act == "remove" else run.buffer("p_NK", torch.zeros(run.N, run.K))
        for epoch in run.epochs("cyclical", self.cyclical, net):
            for batch in epoch.batches():
                logits_BK = net(batch.images_BCHW)
                losses_B = self.cyclical.loss(logits_BK, batch.labels_B)
                net.step(losses_B.mean())
                epoch.saw(batch, logits_BK, losses_B)
                if p_NK is not None:
                    p_NK[batch.rows_B] += logits_BK.detach().softmax(1) / self.cyclical.epochs
            scores_N += epoch.losses_N - epoch.losses_N.mean()
            keep_N.copy_(smallest(scores_N, float(forget_rate), self.forget_rounding))
            epoch.report(scores_N=scores_N, keep_N=keep_N, **measures)

        net.copy_weights(start)
        net.new_optimizer()
        learned = {"keep_N": keep_N}
        if p_NK is not None:
            acted = act_on(self.act, run.labels_N, ~keep_N, p_NK)._asdict()
            learned = {key: run.buffer(f"acted_{key}", value) for key, value in acted.items()}
        for epoch in run.epochs("training", self.training, net):
            train_epoch(net, epoch, self.training.loss, **learned)
            if epoch.t == 1:
                epoch.report(labels_N=learned.get("labels_N"))
