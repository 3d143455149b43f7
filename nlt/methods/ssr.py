"""SSR (Feng, Tzimiropoulos & Patras, BMVC 2022): a sample is learned from where its neighbours vote for its label.

One network, two classifiers: its own output is trusted to relabel, a vote of nearest neighbours among its features to
select. Neither knows the noise rate. N samples, D features, K classes, B rows of a batch, two views of each.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from nlt.augment import Augmentation, StrongView, mixup
from nlt.detect.neighbors import neighbor_votes
from nlt.models import last_linear
from nlt.optim import Cosine
from nlt.run import Run
from nlt.settings import Settings
from nlt.train import CrossEntropyStage, Stage, equally_often


class SSR(Settings):
    """Feng et al. 2022, section 3, without the feature consistency of SSR+. Before each epoch, from the given labels:

    1. Relabelling: l = the network's most probable class where its p > theta_r, else the given label.
    2. Selection: q = the labels l of the k nearest neighbours (cosine), counted, and divided by how often each class
       occurs among all l. Kept are samples of c = q_l / max q >= theta_s.
    3. Training on the kept, classes equally often: mixup of two strong views of each sample, cross-entropy.

    Reported as right are given labels that are kept and unchanged. Scores are 1 - q_y / sum q, y the given label.

    Differences from the authors' code (`main_cifar.py`, `utils/funcs.py`): a sample is none of its own neighbours (in
    the code it is the nearest of them and votes for its own label), features and p are those of the images as they are
    (code: of a random crop and flip), k is at most half the samples of an average class (code: k as given, also where
    no class has as many), an epoch is N samples (code: the last incomplete batch is left out), the two halves of the
    mixed views pass through the network one after the other (code: together, one batch norm of both), a selection of
    nothing keeps everything (the code fails), and lambda_fc is 0: SSR+ trains two more heads, 0.4 to 0.6 points of
    accuracy on CIFAR-10 in the authors' table.
    """

    title: ClassVar = "SSR"

    name: Literal["ssr"] = "ssr"
    theta_r: float = Field(0.9, gt=0, le=1)
    """Confidence above which the network relabels: 0.9 for CIFAR-10, 0.8 for CIFAR-100 from 50 % noise on (the code and
    its README); 1 never."""
    theta_s: float = Field(1.0, ge=0, le=1)
    """Least vote for a sample's label as a share of the largest vote: 1, the label is the neighbours' (the code)."""
    neighbors: int = Field(200, ge=1)
    """k, at most half of N / K: 200 (the code)."""
    alpha: float = Field(4.0, gt=0)
    """Of mixup's Beta(alpha, alpha): 4 (the code)."""
    strong: Augmentation | None = StrongView()
    """The views that are learned from; null for the experiment's augmentation."""
    training: CrossEntropyStage = Stage(epochs=300, schedule=Cosine(lr=0.02, final_lr=0.0004))
    """The one stage: 300 epochs at batch 128, cosine from 0.02 to a fiftieth of it (the code)."""

    def train(self, run: Run) -> None:
        """Relabel, select and train one network, epoch by epoch."""
        net = run.learner("net")
        one_hot_KK = torch.eye(run.K, device=run.device)
        k = max(1, min(self.neighbors, run.N // (2 * run.K)))
        view = run.augmentation if self.strong is None else self.strong
        for epoch in run.epochs("training", self.training, net):
            z_ND = run.embed(net)
            p_N, most_N = last_linear(net.network)(z_ND).detach().softmax(1).max(1)
            labels_N = torch.where(p_N > self.theta_r, most_N, run.labels_N)
            votes_NK = neighbor_votes(z_ND, labels_N, run.K, k)
            q_NK = votes_NK / one_hot_KK[labels_N].mean(0).clamp(min=1 / run.N)
            q_l_N = q_NK.gather(1, labels_N[:, None])[:, 0]
            keep_N = q_l_N >= self.theta_s * q_NK.amax(1)
            times_N = equally_often(labels_N, run.K, run.generator, keep_N)
            for batch in epoch.batches(times_N=times_N, views=(view, view)):
                targets_BK = one_hot_KK[labels_N[batch.rows_B]]
                images, targets = mixup(
                    torch.cat(batch.views), targets_BK.repeat(2, 1), self.alpha, run.generator, larger_first=True
                )
                logits = torch.stack([net(half) for half in images.chunk(2)])
                losses_B = -(targets.view_as(logits) * logits.log_softmax(2)).sum(2).mean(0)
                net.step(losses_B.mean())
                epoch.saw(batch, logits.sum(0), losses_B)
            scores_N, kept = 1 - q_NK.gather(1, run.labels_N[:, None])[:, 0] / q_NK.sum(1), keep_N.float().mean()
            keep_N &= labels_N == run.labels_N
            epoch.report(scores_N=scores_N, keep_N=keep_N, labels_N=labels_N, selected=kept)
