"""What a sample's nearest neighbours are labelled as. N samples, D features, K classes, B rows of one part."""

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITIES = 2**25  # at once: 128 MB of float32, whatever N is


@torch.no_grad()
def neighbor_votes(z_ND: Tensor, labels_N: Tensor, K: int, k: int) -> Tensor:
    """Return votes_NK, float32: how many of each sample's k nearest neighbours have each label; rows sum to k.

    Near is a high cosine similarity. A sample is no neighbour of its own. Similarities are made and forgotten part by
    part, on the features' device: memory is O(N (D + K)).

    Args:
        z_ND: float32 features.
        labels_N: int64 in [0, K), on the same device.
        K: number of classes.
        k: neighbours, 1 to N - 1.
    """
    N = len(z_ND)
    unit_ND = F.normalize(z_ND)
    votes_NK = torch.zeros(N, K, device=z_ND.device)
    for rows_B in torch.arange(N, device=z_ND.device).split(max(1, SIMILARITIES // N)):
        similarity_BN = unit_ND[rows_B] @ unit_ND.T
        similarity_BN.scatter_(1, rows_B[:, None], -torch.inf)
        nearest_Bk = similarity_BN.topk(k, sorted=False).indices
        voters = labels_N[nearest_Bk]
        votes_NK[rows_B] = votes_NK[rows_B].scatter_add_(1, voters, torch.ones_like(voters, dtype=torch.float32))
    return votes_NK
