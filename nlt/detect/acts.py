"""From labels that are taken for wrong to what is trained on: other labels, fewer samples, or smaller weights.

N samples, K classes. Which labels are wrong, and what is probable instead, is found elsewhere: no clean label is seen.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Act = Literal["remove", "relabel", "reweight", "soften", "remove_at_random"]


class Acted(NamedTuple):
    """What is trained on."""

    labels_N: Tensor
    """int64, the given labels but for those that were changed; of `soften` float32 (N, K), each class's probability."""
    keep_N: Tensor
    """bool, False for samples that are left out."""
    weights_N: Tensor
    """float32 in [0, 1], the factor on each sample's loss."""


def act_on(
    act: Act, labels_N: Tensor, wrong_N: Tensor, p_NK: Tensor, generator: torch.Generator | None = None
) -> Acted:
    """Act on labels that are taken for wrong.

    `remove` leaves their samples out. `relabel` gives them the most probable class where that is another one and more
    probable than all others together, and leaves the rest of them out; of two classes it gives the other one.
    `reweight` keeps every sample and its label, and weighs it by the probability of that label, whether it is taken for
    wrong or not. `soften` keeps every sample too and gives it all classes, each by its probability: the label to learn
    is a distribution (`nlt.losses.expected`). `remove_at_random` leaves out as many samples as `remove`, any of all N:
    what `remove` has to beat.

    Args:
        act: which of the five.
        labels_N: the given labels, int64 in [0, K).
        wrong_N: bool, True where the label is taken for wrong.
        p_NK: probability of each class given what is known of the sample, rows sum to 1.
        generator: on the CPU; needed by `remove_at_random`, which alone draws from it.
    """
    N, K = p_NK.shape
    keep_N, weights_N = ~wrong_N, torch.ones(N, device=p_NK.device)
    if act == "relabel":
        confidence_N, suggested_N = p_NK.max(1)
        sure_N = (confidence_N > 0.5) & (suggested_N != labels_N)
        if K == 2:  # a wrong label leaves one class only
            suggested_N, sure_N = 1 - labels_N, torch.ones_like(wrong_N)
        return Acted(torch.where(wrong_N & sure_N, suggested_N, labels_N), keep_N | sure_N, weights_N)
    if act == "reweight":
        weights_N = p_NK.gather(1, labels_N[:, None])[:, 0].float()
        return Acted(labels_N, torch.ones_like(keep_N), weights_N)
    if act == "soften":
        return Acted(p_NK.float(), torch.ones_like(keep_N), weights_N)
    if act == "remove_at_random":
        keep_N = keep_N[torch.randperm(N, generator=generator).to(keep_N.device)]
    return Acted(labels_N, keep_N, weights_N)
