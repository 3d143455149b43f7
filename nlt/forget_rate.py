"""The share of samples that nobody learns from: told, or estimated by a backbone's features before any training."""

from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field, ValidationInfo
from torch import Tensor

from nlt.backbones import AnyBackbone, Backbone
from nlt.run import Run

ForgetRate = Annotated[float, Field(ge=0, lt=1)] | Literal["estimate"]
MOST = 0.95  # of an estimate: somebody has to be learned from


def _go_together(backbone: AnyBackbone | None, info: ValidationInfo) -> AnyBackbone | None:
    """Raise ValueError unless there is a backbone where `forget_rate` is estimated, and none where it is told."""
    if "forget_rate" in info.data and (info.data["forget_rate"] == "estimate") != (backbone is not None):
        raise ValueError('forget_rate "estimate" and a backbone go together')
    return backbone


BackboneForRate = Annotated[Backbone | None, AfterValidator(_go_together), Field(validate_default=True)]
"""Of settings with a `forget_rate` in front of it."""


def rate_to_forget(
    run: Run, forget_rate: ForgetRate, backbone: AnyBackbone | None
) -> tuple[float | Tensor, dict[str, Tensor]]:
    """Return the share to leave out, in [0, 1), and what is to be reported of an estimate.

    An estimate is a buffer, float64: a run that goes on elsewhere keeps it. So it is to be read inside a stage.
    """
    if forget_rate == "estimate":
        assert backbone is not None, "the settings have been checked"
        estimate = min(run.label_errors(backbone).rate.point, MOST)
        estimated = run.buffer("forget_rate", torch.tensor(estimate, dtype=torch.float64))
        return estimated, {"estimated_rate": estimated}
    return forget_rate, {}
