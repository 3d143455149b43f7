"""Ours: find the wrong labels with a backbone's features before any training, act on them, then train once.

The detector is `nlt.detect.find_label_errors`: leave-one-out predictions in closed form, a noise transition matrix from
confident samples, the posterior of each label. It knows neither the noise rate nor a clean label.
"""

from typing import ClassVar, Literal

import torch

from nlt.backbones import Backbone
from nlt.detect import smallest
from nlt.run import Run
from nlt.settings import Settings
from nlt.train import Stage


class Cleaned(Settings):
    """One stage, on labels that were judged before it.

    p = P(label is wrong | features, given label). Flagged are samples of p > 1/2, but no more than the estimated rate
    says are wrong, the most suspicious first. Acts: `remove` leaves out flagged samples; `relabel` gives them
    the most probable class where it is more probable than all others together (always, of two classes), else leaves
    them out; `reweight` multiplies each sample's loss by 1 - p. Scores are the log odds of p.

    With the backbones `lite0` and `timm` the result rests on weights of outside origin (ImageNet), `pixels` has none.
    """

    title: ClassVar = "Cleaned"
    told_by: ClassVar = ("backbone", "act")

    name: Literal["cleaned"] = "cleaned"
    backbone: Backbone
    """What makes features of the images."""
    act: Literal["remove", "relabel", "reweight"] = "remove"
    """What becomes of labels that are probably wrong."""
    training: Stage = Stage()
    """The one stage."""

    def train(self, run: Run) -> None:
        """Judge the labels, act, and train one network."""
        found = run.label_errors(self.backbone)
        p_wrong_N, suggested_N = torch.from_numpy(found.p_wrong_N), torch.from_numpy(found.suggested_N)
        scores_N = run.buffer("scores_N", torch.from_numpy(found.scores["posterior"]))
        least_N = smallest(scores_N.cpu(), min(found.rate.point, 0.99))
        flagged_N = (p_wrong_N > 0.5) & ~least_N
        sure_N = torch.from_numpy(found.p_true_NK.max(1) > 0.5) & (suggested_N != run.labels_N.cpu())
        labels_N, keep_N, weights_N = run.labels_N.cpu(), ~flagged_N, torch.ones(run.N)
        if self.act == "relabel":
            labels_N, keep_N = torch.where(flagged_N & sure_N, suggested_N, labels_N), ~flagged_N | sure_N
        if self.act == "reweight":
            keep_N, weights_N = torch.ones_like(flagged_N), (1 - p_wrong_N).float()
        right_N = run.buffer("right_N", ~flagged_N)
        labels_N = run.buffer("labels_N", labels_N)
        keep_N = run.buffer("keep_N", keep_N)
        weights_N = run.buffer("weights_N", weights_N)
        rate = run.buffer("rate", torch.tensor(found.rate.point))

        net = run.learner("net")
        for epoch in run.epochs("training", self.training, net):
            for batch in epoch.batches(keep_N):
                logits_BK = net(batch.images_BCHW)
                losses_B = self.training.loss(logits_BK, labels_N[batch.rows_B])
                net.step((weights_N[batch.rows_B] * losses_B).mean())
                epoch.saw(batch, logits_BK, losses_B)
            if epoch.t == 1:
                # What is taken for wrong, whatever is done about it.
                epoch.report(scores_N=scores_N, keep_N=right_N, labels_N=labels_N, estimated_rate=rate)
