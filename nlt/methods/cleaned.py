"""Ours: find the wrong labels with a backbone's features before any training, act on them, then train once.

The detector is `nlt.detect.find_label_errors`: leave-one-out predictions in closed form, a noise transition matrix from
confident samples, the posterior of each label. It knows neither the noise rate nor a clean label.
"""

from typing import ClassVar, Literal

import torch

from nlt.backbones import Backbone
from nlt.detect import Act, act_on
from nlt.run import Run
from nlt.settings import Settings
from nlt.train import Stage, train_epoch


class Cleaned(Settings):
    """One stage, on labels that were judged before it.

    p = P(label is wrong | features, given label). Flagged are samples of p > 1/2, but no more than the estimated rate
    says are wrong, the most suspicious first. Acts: `remove` leaves out flagged samples; `relabel` gives them
    the most probable class where it is more probable than all others together (always, of two classes), else leaves
    them out; `reweight` multiplies each sample's loss by 1 - p; `soften` has each sample learn all classes, each by its
    probability P(true class | features, given label). Scores are the log odds of p. `remove_at_random` is the
    control: as many samples as `remove` would leave out, drawn from all; what it left out is then what is reported.

    With the backbones `lite0` and `timm` the result rests on weights of outside origin (ImageNet), `pixels` has none.
    """

    title: ClassVar = "Cleaned"
    told_by: ClassVar = ("backbone", "act")

    name: Literal["cleaned"] = "cleaned"
    backbone: Backbone
    """What makes features of the images."""
    act: Act = "remove"
    """What becomes of labels that are probably wrong."""
    training: Stage = Stage()
    """The one stage."""

    def train(self, run: Run) -> None:
        """Judge the labels, act, and train one network."""
        given_N = run.labels_N.cpu()
        found = run.label_errors(self.backbone)
        scores_N = run.buffer("scores_N", torch.from_numpy(found.scores["posterior"]))
        flagged_N = torch.from_numpy(found.flagged())
        acted = act_on(self.act, given_N, flagged_N, torch.from_numpy(found.p_true_NK), run.generator)
        # What is taken for wrong, whatever is done about it.
        right_N = run.buffer("right_N", acted.keep_N if self.act == "remove_at_random" else ~flagged_N)
        labels_N = run.buffer("labels_N", acted.labels_N)
        keep_N = run.buffer("keep_N", acted.keep_N)
        weights_N = run.buffer("weights_N", acted.weights_N)
        rate = run.buffer("rate", torch.tensor(found.rate.point))
        believed_N = labels_N if labels_N.dim() == 1 else None  # softened, a sample has no one label

        net = run.learner("net")
        for epoch in run.epochs("training", self.training, net):
            train_epoch(net, epoch, self.training.loss, keep_N, labels_N, weights_N)
            if epoch.t == 1:
                epoch.report(scores_N=scores_N, keep_N=right_N, labels_N=believed_N, estimated_rate=rate)
