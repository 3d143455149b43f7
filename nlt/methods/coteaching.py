"""Co-teaching (Han et al., NeurIPS 2018): two networks, each learns from what the other takes for clean.

Networks learn right labels before wrong ones, so samples of small loss are mostly right. A network that selects for
itself adds up its own mistakes; another one, with other initial weights, makes other mistakes.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from nlt.forget_rate import BackboneForRate, ForgetRate, rate_to_forget
from nlt.run import Run
from nlt.settings import Settings
from nlt.train import Stage


class CoTeaching(Settings):
    """Han et al. 2018, Algorithm 1.

    In every batch each network picks the R(t) share of samples with the smallest loss, and its peer learns from them.
    R(t) = 1 - f min((t - 1) / ramp, 1) in epoch t, f being the forget rate: Algorithm 1 updates R at the end of an
    epoch. What is judged is the mean prediction of both networks; the paper reports each.

    Differences from the authors' code (`loss.py`, `main.py`): the mean over the picked samples is taken once (the code
    divides the mean by their number again, which shrinks its gradients some 100 times under an optimizer other than its
    Adam); the ramp ends after `ramp` epochs (the code's `linspace` one earlier); the optimizer is the experiment's.
    """

    added_later = frozenset({"backbone"})
    title: ClassVar = "Co-teaching"

    name: Literal["co_teaching"] = "co_teaching"
    forget_rate: ForgetRate
    """f, the share of each batch that nobody learns from in the end, in [0, 1): the noise rate (section 4). Nobody
    knows that of real data: `estimate` takes what `nlt.detect` makes of it by the features of `backbone`."""
    ramp: int = Field(10, ge=1)
    """T_k, epochs until that share is reached: 10 (section 4)."""
    training: Stage = Stage()
    """The one stage; its loss selects and trains. The paper's is cross-entropy."""
    backbone: BackboneForRate = None
    """What makes the features by which the noise rate is estimated; with `forget_rate: "estimate"` only."""

    def train(self, run: Run) -> None:
        """Train both networks."""
        forget_rate, measures = rate_to_forget(run, self.forget_rate, self.backbone)

        f, g = run.learner("f"), run.learner("g")
        keep_N = run.buffer("keep_N", torch.zeros(run.N, dtype=torch.bool))
        for epoch in run.epochs("training", self.training, f, g):
            R = 1 - float(forget_rate) * min((epoch.t - 1) / self.ramp, 1)
            keep_N.zero_()
            for batch in epoch.batches():
                logits_f, logits_g = f(batch.images_BCHW), g(batch.images_BCHW)
                losses_f, losses_g = (self.training.loss(x, batch.labels_B) for x in (logits_f, logits_g))
                n = max(1, int(R * len(batch.rows_B) + 1e-9))  # 1 - 0.8, of 50, is 9.999999999999998
                by_f, by_g = losses_f.detach().argsort(stable=True)[:n], losses_g.detach().argsort(stable=True)[:n]
                f.step(losses_f[by_g].mean())
                g.step(losses_g[by_f].mean())
                keep_N.index_fill_(0, batch.rows_B[by_f], True)
                keep_N.index_fill_(0, batch.rows_B[by_g], True)
                epoch.saw(batch, logits_f + logits_g, (losses_f + losses_g) / 2)
            epoch.report(scores_N=epoch.losses_N, keep_N=keep_N, remember_rate=R, **measures)
