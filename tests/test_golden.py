"""Golden losses: 20 seeded steps of each kind of stage, as commit 3bc5bb9 computed them. A change that is meant to
change no result changes none of these.

Recorded in fp64 by `python tests/test_golden.py`: in fp32 an AMD processor and an Intel one part after a few steps.
"""

from typing import Literal

import pytest
import torch
from conftest import samples

from nlt.data import Samples
from nlt.losses import APL, CE, NCE, RCE, Loss
from nlt.models import CNN9
from nlt.optim import SGD
from nlt.run import Split
from nlt.train import Epoch, Learner, train_epoch

STEPS, K, SIDE = 20, 4, 12
# Kind of stage -> batch size, loss, learning rate.
STAGES: dict[str, tuple[int, Loss, float]] = {
    "batch 128": (128, CE(), 0.01),
    "cyclical": (16, CE(), 0.0091),
    "robust": (32, APL(active=NCE(), passive=RCE()), 0.01),
}
GOLDEN: dict[str, list[float]] = {
    "batch 128": [
        1.44438384, 1.37685695, 1.36938943, 1.36900845, 1.28165146, 1.23315464, 1.19269482, 1.16487357,
        1.12569948, 1.17342663, 1.0905842, 1.11031569, 1.08866162, 1.07031493, 1.12484741, 1.01918127,
        1.04116436, 1.00752811, 1.01513338, 1.00224443,
    ],
    "cyclical": [
        1.47960769, 1.35610665, 1.4641353, 1.35010573, 1.20375439, 1.50022981, 1.18568741, 1.33261537,
        1.19120153, 0.950612806, 1.14399233, 1.22632485, 1.17216835, 1.10235553, 1.20575554, 1.13291882,
        1.09494987, 1.32927767, 1.20132122, 1.09427192,
    ],
    "robust": [
        6.96272254, 7.09847623, 6.66767302, 6.71500052, 6.44066829, 5.5983601, 6.26664318, 5.82503599,
        5.87232712, 6.070518, 5.84775518, 5.87489444, 5.06282845, 5.46836562, 5.31481939, 5.71340131,
        5.32174465, 4.4013077, 4.50590528, 3.95633323,
    ],
}  # fmt: skip


class Double(torch.nn.Module):
    """A network that computes in fp64."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.network(images_BCHW.double())


def losses_of(stage: str, precision: Literal["fp64", "fp32", "bf16"]) -> list[float]:
    """Return the mean loss of each step; cnn9 at an eighth of the width, random images with a class's brightness."""
    size, loss, lr = STAGES[stage]
    plain = samples(STEPS * size, K, SIDE)
    labels_N = plain.labels_N
    images = (plain.images_NCHW * (0.4 + 0.2 * labels_N[:, None, None, None] / (K - 1))).to(torch.uint8)
    split = Split(Samples(images, plain.ids_N, labels_N, labels_N), torch.device("cpu"))
    torch.manual_seed(7)
    network = CNN9(width=0.125).build(1, SIDE, SIDE, K)
    if precision == "fp64":
        network, precision = Double(network), "fp32"
    net = Learner(network, SGD(), torch.device("cpu"), precision)
    net.set_lr(lr)
    epoch = Epoch(split.images_NHWC, split.labels_N, size, torch.Generator().manual_seed(1))
    losses_N = train_epoch(net, epoch, loss)
    rows_M = torch.randperm(STEPS * size, generator=torch.Generator().manual_seed(1))  # the order they came in
    return losses_N[rows_M].reshape(STEPS, size).double().mean(1).tolist()


# Rounding grows from step to step, in fp32 to half a percent after 20 of them, and differs between processors and numbers
# of threads. In fp64 nine digits stay.


@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_those_recorded(stage):
    assert losses_of(stage, "fp64") == pytest.approx(GOLDEN[stage], rel=1e-7)


@pytest.mark.parametrize("stage", STAGES)
def test_losses_in_fp32_are_those_recorded_within_its_error(stage):
    losses = losses_of(stage, "fp32")
    assert losses[:3] == pytest.approx(GOLDEN[stage][:3], rel=2e-4)
    assert losses == pytest.approx(GOLDEN[stage], rel=0.02)


@pytest.mark.parametrize("stage", STAGES)
def test_losses_in_bf16_are_those_recorded_within_its_error(stage):
    assert losses_of(stage, "bf16") == pytest.approx(GOLDEN[stage], rel=0.06)


if __name__ == "__main__":
    for name in STAGES:
        print(f'    "{name}": {[float(f"{loss:.9g}") for loss in losses_of(name, "fp64")]},')
