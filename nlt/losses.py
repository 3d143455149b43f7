"""Losses: one number per sample. Averaging happens once, in `train.py`.

B samples, K classes; logits_BK are the network's raw outputs, labels_B int64 in [0, K). Every loss returns losses_B,
float32 whatever the precision of the logits. p = softmax(logits), p_y the probability of the given label,
q the one-hot label. "Active" and "passive" are Ma et al. 2020's terms (paper, section 2.3, definitions 1 and 2).
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from nlt.settings import Settings

# Keeps (1 - p)^gamma differentiable at p = 1, where its slope is infinite for gamma < 1.
TINY = 1e-7


def _log_p(logits_BK: Tensor) -> Tensor:
    return logits_BK.float().log_softmax(1)


def _of(values_BK: Tensor, labels_B: Tensor) -> Tensor:
    return values_BK.gather(1, labels_B[:, None]).squeeze(1)


def _p_y(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    return _of(_log_p(logits_BK), labels_B).exp()


class CE(Settings):
    """Cross-entropy, -log p_y. Active; not robust."""

    name: Literal["ce"] = "ce"

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return -_of(_log_p(logits_BK), labels_B)

    def __str__(self) -> str:
        return "CE"


class NCE(Settings):
    """Normalized cross-entropy, log p_y / sum_k log p_k, in [0, 1] (Ma et al. 2020, eq. 6). Active, robust."""

    name: Literal["nce"] = "nce"

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        log_p_BK = _log_p(logits_BK)
        return _of(log_p_BK, labels_B) / log_p_BK.sum(1)

    def __str__(self) -> str:
        return "NCE"


class RCE(Settings):
    """Reverse cross-entropy, -sum_k p_k log q_k with log 0 := A, that is -A (1 - p_y), in [0, -A] (Wang et al. 2019,
    section 3.2). Passive, robust.

    The APL code also clamps p to at least 1e-7, which changes the value by less than 1e-5 * K.
    """

    name: Literal["rce"] = "rce"
    A: float = Field(math.log(1e-4), lt=0)
    """What log 0 stands for. The APL code clamps q at 1e-4, so A = log 1e-4 = -9.21, though its text discusses -4."""

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return -self.A * (1 - _p_y(logits_BK, labels_B))

    def __str__(self) -> str:
        return "RCE"


class MAE(Settings):
    """Mean absolute error, sum_k |p_k - q_k| = 2 (1 - p_y), in [0, 2] (Ghosh et al. 2017). Passive, robust.

    HanxunH's code leaves out the factor 2: half of this value.
    """

    name: Literal["mae"] = "mae"

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return 2 * (1 - _p_y(logits_BK, labels_B))

    def __str__(self) -> str:
        return "MAE"


class GCE(Settings):
    """Generalized cross-entropy, (1 - p_y^q) / q: MAE at q = 1, CE as q -> 0 (Zhang & Sabuncu 2018, eq. 6). Active.

    HanxunH's pairs of GCE with MAE, RCE or NCE ignore the weight alpha of GCE (GCE with NCE also beta); here `apl`
    weights any loss.
    """

    name: Literal["gce"] = "gce"
    q: float = Field(0.7, gt=0, le=1)
    """0.7 in the paper's experiments (section 4)."""

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return -(self.q * _of(_log_p(logits_BK), labels_B)).expm1() / self.q  # expm1: 1 - exp cancels at small q

    def __str__(self) -> str:
        return "GCE"


class SCE(Settings):
    """Symmetric cross-entropy, alpha CE + beta RCE (Wang et al. 2019, eq. 7)."""

    name: Literal["sce"] = "sce"
    alpha: float = Field(0.1, gt=0)
    """Weight of CE; 0.1 for CIFAR-10 (section 4.3)."""
    beta: float = Field(1.0, gt=0)
    """Weight of RCE; 1.0 for CIFAR-10 (section 4.3)."""
    A: float = Field(-4.0, lt=0)
    """What log 0 stands for; -4 in the paper (section 4.1). HanxunH's code clamps q at 1e-4: -9.21."""

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        log_p_y_B = _of(_log_p(logits_BK), labels_B)
        return -self.alpha * log_p_y_B - self.beta * self.A * (1 - log_p_y_B.exp())

    def __str__(self) -> str:
        return "SCE"


class Focal(Settings):
    """Focal loss, -(1 - p_y)^gamma log p_y (Lin et al. 2017, eq. 4). Active.

    HanxunH's code takes (1 - p_y)^gamma for a constant in the gradient: this gradient is
    1 - gamma p_y log p_y / (1 - p_y) times as large, 1 to 1 + gamma.
    """

    name: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0, le=100)
    """2 in the focal-loss paper (section 5.1); the APL code takes 0.5."""

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return _of(_focal(logits_BK, self.gamma), labels_B)

    def __str__(self) -> str:
        return "focal"


class NFL(Settings):
    """Normalized focal loss: the label's focal loss over the sum of all classes', in [0, 1] (Ma et al. 2020, eq. 8).
    Active, robust.

    HanxunH's code takes (1 - p_k)^gamma for constants in the gradient, see `focal`.
    """

    name: Literal["nfl"] = "nfl"
    gamma: float = Field(0.5, ge=0, le=100)
    """0.5 in the APL paper's experiments (section 4)."""

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        focal_BK = _focal(logits_BK, self.gamma)
        return _of(focal_BK, labels_B) / focal_BK.sum(1)

    def __str__(self) -> str:
        return "NFL"


class NMAE(Settings):
    """Normalized MAE, (1 - p_y) / (K - 1), in [0, 1 / (K - 1)] (Ma et al. 2020, eq. 7). Passive, robust.

    HanxunH's code divides by 2 (K - 1), having left out MAE's factor 2: half of this value.
    """

    name: Literal["nmae"] = "nmae"

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return (1 - _p_y(logits_BK, labels_B)) / (logits_BK.shape[1] - 1)

    def __str__(self) -> str:
        return "NMAE"


class NRCE(Settings):
    """Normalized RCE. A cancels: -A (1 - p_y) / (-A (K - 1)), the same as normalized MAE (Ma et al. 2020, section 3.1).
    Passive, robust.

    In HanxunH's code A does not cancel: 9.21 (1 - p_y) (K - 1) / 4, which is 9.21 (K - 1)^2 / 4 times this value.
    """

    name: Literal["nrce"] = "nrce"

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return (1 - _p_y(logits_BK, labels_B)) / (logits_BK.shape[1] - 1)

    def __str__(self) -> str:
        return "NRCE"


class NGCE(Settings):
    """Normalized GCE, (1 - p_y^q) / (K - sum_k p_k^q), in [0, 1] (Ma et al. 2020, section 3.1). Active, robust.

    HanxunH's code clamps p at 1e-7, where p^q is still 0.2 at the q = 0.1 of its CIFAR-10 configurations: less likely
    classes weigh less in the denominator, the loss is up to 1.25 times this, and a p_y below 1e-7 gets no gradient.
    """

    name: Literal["ngce"] = "ngce"
    q: float = Field(0.7, gt=0, le=1)
    """0.7 as in GCE; 0.1 in HanxunH's CIFAR-10 configurations."""

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        gce_BK = -(self.q * _log_p(logits_BK)).expm1()
        return _of(gce_BK, labels_B) / gce_BK.sum(1)

    def __str__(self) -> str:
        return "NGCE"


class APL(Settings):
    """Active-Passive Loss, alpha * active + beta * passive (Ma et al. 2020, eq. 12; paper, section 2.3)."""

    name: Literal["apl"] = "apl"
    active: "Loss"
    """The active term, e.g. NCE. Any loss is admitted."""
    passive: "Loss"
    """The passive term, e.g. RCE. Any loss is admitted."""
    alpha: float = Field(1.0, gt=0)
    """Weight of the active term; 1 for CIFAR-10 (paper, section 3)."""
    beta: float = Field(1.0, gt=0)
    """Weight of the passive term; 1 for CIFAR-10 (paper, section 3)."""

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return self.alpha * self.active(logits_BK, labels_B) + self.beta * self.passive(logits_BK, labels_B)

    def __str__(self) -> str:
        weights = ["" if weight == 1 else f"{weight:g}*" for weight in (self.alpha, self.beta)]
        return f"{weights[0]}{self.active}+{weights[1]}{self.passive}"


def _focal(logits_BK: Tensor, gamma: float) -> Tensor:
    log_p_BK = _log_p(logits_BK)
    return -((1 - log_p_BK.exp()).clamp(min=TINY) ** gamma) * log_p_BK


Loss = Annotated[CE | NCE | RCE | MAE | GCE | SCE | Focal | NFL | NMAE | NRCE | NGCE | APL, Field(discriminator="name")]
APL.model_rebuild()


def expected(loss: Loss, logits_BK: Tensor, p_BK: Tensor) -> Tensor:
    """Return losses_B, the mean of the loss over labels drawn from p_BK, whose rows sum to 1.

    Of cross-entropy it is that of p relative to softmax(logits), whose least is the entropy of p.
    """
    labels_BK = torch.arange(p_BK.shape[1], device=p_BK.device).expand_as(p_BK)
    by_class_BK = torch.stack([loss(logits_BK, labels_B) for labels_B in labels_BK.unbind(1)], 1)
    return (p_BK * by_class_BK).sum(1)
