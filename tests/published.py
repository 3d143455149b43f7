"""What other implementations compute, as formulas of our own, for tests of how nlt's numbers relate to theirs.

B samples, K classes; p_BK = softmax(logits_BK), p_y the probability of the given label. The losses are those of the APL
paper's code (HanxunH's Active-Passive-Losses), the rest that of Lanson & David 2023 (adam-dvd's DNN_noisy_labels).
"""

import math

import torch
from torch import Tensor

LOG_OF_CLAMPED = -math.log(1e-4)  # 9.21, what the clamp of the one-hot labels at 1e-4 makes of -log 0


def p_and_p_y(logits_BK: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    p_BK = logits_BK.softmax(1)
    return p_BK, p_BK.gather(1, labels_B[:, None]).squeeze(1)


def mae(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    return 1 - p_and_p_y(logits_BK, labels_B)[1]


def nmae(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    return mae(logits_BK, labels_B) / (2 * (logits_BK.shape[1] - 1))


def rce(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    p_BK = logits_BK.softmax(1).clamp(min=1e-7)
    wrong_BK = 1 - torch.nn.functional.one_hot(labels_B, logits_BK.shape[1])
    return LOG_OF_CLAMPED * (p_BK * wrong_BK).sum(1)


def nrce(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    return rce(logits_BK, labels_B) * (logits_BK.shape[1] - 1) / 4


def sce(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    _, p_y_B = p_and_p_y(logits_BK, labels_B)
    return -0.1 * p_y_B.log() + rce(logits_BK, labels_B)


def focal(logits_BK: Tensor, labels_B: Tensor, gamma: float = 0.5) -> Tensor:
    _, p_y_B = p_and_p_y(logits_BK, labels_B)
    return -((1 - p_y_B.detach()) ** gamma) * p_y_B.log()


def nfl(logits_BK: Tensor, labels_B: Tensor, gamma: float = 0.5) -> Tensor:
    p_BK = logits_BK.softmax(1)
    focal_BK = -((1 - p_BK.detach()) ** gamma) * p_BK.log()
    return focal_BK.gather(1, labels_B[:, None]).squeeze(1) / focal_BK.sum(1)


def gce(logits_BK: Tensor, labels_B: Tensor, q: float = 0.7) -> Tensor:
    return (1 - p_and_p_y(logits_BK, labels_B)[1] ** q) / q


def ngce(logits_BK: Tensor, labels_B: Tensor, q: float = 0.1) -> Tensor:
    p_BK, p_y_B = (p.clamp(min=1e-7) for p in p_and_p_y(logits_BK, labels_B))
    return (1 - p_y_B**q) / (logits_BK.shape[1] - (p_BK**q).sum(1))


def gce_and_mae(logits_BK: Tensor, labels_B: Tensor, alpha: float, beta: float) -> Tensor:
    """`alpha` is passed and never used."""
    return gce(logits_BK, labels_B) + beta * mae(logits_BK, labels_B)


def step_lr(epoch: int, n: int) -> float:
    """Learning rate of `epoch`, 1 .. n - 1."""
    return 0.01 if epoch < 0.25 * n else 0.005 if epoch < 0.5 * n else 0.001


def cyclical_lr(epoch: int) -> float:
    """Learning rate of `epoch`, from 1."""
    s = (epoch % 10 + 1) / 10
    return (1 - s) * 0.01 + s * 0.001


def number_removed(N: int, forget_rate: float) -> int:
    return N - int((1 - forget_rate) * N)
