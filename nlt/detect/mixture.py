"""Two Gaussians, fitted to losses: those of right labels lie low (Li et al. 2020, section 3.1). N samples."""

import torch
from torch import Tensor

# Of the authors' code (`Train_CIFAR.py`, eval_train), for losses in [0, 1]: the least variance of a component, and the
# gain in mean log likelihood below which the fit is over. The code stops at 10 iterations at the latest, this at 100.
LEAST_VARIANCE, LEAST_GAIN = 5e-4, 1e-2


def p_small(losses_N: Tensor) -> Tensor:
    """Fit a mixture of two Gaussians to losses, and tell how probably each comes from the one of smaller mean.

    The losses are scaled to [0, 1] first. No random number decides: the fit begins at two clusters, always the same.

    Args:
        losses_N: float, on the CPU. All equal, they set no sample apart; not finite, they set none apart either.

    Returns:
        w_N, float32 in [0, 1].
    """
    from sklearn.mixture import GaussianMixture  # type: ignore[import-untyped]  # a second to import

    least, most = losses_N.double().aminmax()
    if not 0 < most - least < torch.inf:
        return torch.ones(len(losses_N))
    scaled_N1 = ((losses_N.double() - least) / (most - least))[:, None].numpy()
    mixture = GaussianMixture(2, tol=LEAST_GAIN, reg_covar=LEAST_VARIANCE, random_state=0).fit(scaled_N1)
    return torch.from_numpy(mixture.predict_proba(scaled_N1)[:, mixture.means_.argmin()]).float()
