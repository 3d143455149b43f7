"""SSR with one epoch worked by hand: N samples, K = 2 classes, D = 2 features, which are an image's two pixels."""

from typing import Any

import pytest
import torch
from conftest import Net, make_run
from pydantic import ValidationError
from scipy.stats import beta
from torch import Tensor

from nlt.augment import CropFlipCutout
from nlt.data import Samples
from nlt.losses import CE, MAE, Loss
from nlt.methods.ssr import SSR
from nlt.optim import SGD, Constant
from nlt.run import EpochRecord, Run
from nlt.train import Epoch, Stage

PIXELS = [[255, 0], [230, 26], [204, 51], [128, 102], [102, 128], [51, 204], [26, 230], [0, 255]]
GIVEN = [0, 1, 1, 0, 0, 1, 1, 0]


class Difference:
    """Logits 8 (x, y) of pixels x, y: the confidence in class 0 is the sigmoid of 8 (x - y)."""

    def build(self, C: int, H: int, W: int, K: int) -> Net:
        network = Net(C * H * W, K)
        network.linear.weight.data = 8 * torch.eye(2)
        torch.nn.init.zeros_(network.linear.bias)
        return network


def ssr(lr: float = 0.1, epochs: int = 1, loss: Loss | None = None, batch_size: int = 8, **more: Any) -> SSR:
    stage = Stage(epochs=epochs, batch_size=batch_size, loss=loss or CE(), schedule=Constant(lr=lr))
    return SSR(training=stage, **({"strong": None} | more))


def run_of(given: list[int] = GIVEN, pixels: list[list[int]] = PIXELS, **more: Any) -> tuple[Run, list[EpochRecord]]:
    images_NCHW = torch.tensor(pixels, dtype=torch.uint8)[:, None, None]
    labels_N = torch.tensor(given)
    return make_run(Samples(images_NCHW, torch.arange(len(given)), labels_N, labels_N), K=2, model=Difference(), **more)


@pytest.fixture(autouse=True)
def unseen_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test images of conftest have four pixels."""
    monkeypatch.setattr("nlt.run.evaluate", lambda *_: 0.5)


def test_relabelling_and_selection_by_hand() -> None:
    """8 (x - y) = 8, 6.4, 4.8, 0.8, -0.8, -4.8, -6.4, -8: p of the more probable class is above 0.99 but for the two in
    the middle, 0.69. So l = 0, 0 (was 1), 0 (was 1), 0, 0, 1, 1, 1 (was 0): 5/8 and 3/8, of the given labels half each.

    Two nearest by angle (k = 200 is cut to 8 / 4): of 0: 1, 2; of 1: 0, 2; of 2: 1, 0; of 3: 4, 2; of 4: 3, 5; of 5: 6,
    7; of 6: 7, 5; of 7: 6, 5. All vote for l, but one for 0 and one for 1 on sample 4: q = 1.6 and 2.667, not kept.
    Score of sample 4: 1 - 1.6 / 4.267 = 0.625.
    """
    _, (told,) = trained(ssr())
    assert told.labels_N.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert told.keep_N.tolist() == [True, False, False, True, False, True, True, False]
    assert told.scores_N.tolist() == pytest.approx([0, 1, 1, 0, 0.625, 0, 0, 1])
    assert told.metrics["method/selected"] == 7 / 8
    assert told.losses_N.isfinite().tolist() == [True, True, True, True, False, True, True, True]


def trained(method: SSR, **more: Any) -> tuple[Run, list[EpochRecord]]:
    run, told = run_of(**more)
    method.train(run)
    return run, told


@pytest.mark.parametrize(("seed", "smaller"), [(0, False), (1, True)])
def test_one_step_by_hand(seed: int, smaller: bool) -> None:
    """Class 0 has four kept samples, which come once, class 1 three, of which one comes twice: one batch of 8.

    `smaller`: whether the seed's Beta(4, 4) is below 1/2, so that 1 - lambda takes its place.
    """
    run, told = run_of(seed=seed)
    generator = torch.Generator()
    generator.set_state(run.generator.get_state())
    ssr().train(run)

    first = next(row for row in torch.randperm(8, generator=generator).tolist() if row in (5, 6, 7))
    rows = torch.tensor(sorted([0, 1, 2, 3, 5, 6, 7, first]))[torch.randperm(8, generator=generator)]
    u = torch.rand((), generator=generator, dtype=torch.float64).item()
    assert (u < 0.5) is smaller
    lam = max(beta.ppf(u, 4, 4), 1 - beta.ppf(u, 4, 4))
    x = (torch.tensor(PIXELS)[rows] / 255).repeat(2, 1)
    y = torch.eye(2)[torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])[rows]].repeat(2, 1)
    other = torch.randperm(16, generator=generator)
    mixed_x, mixed_y = lam * x + (1 - lam) * x[other], lam * y + (1 - lam) * y[other]
    p = (8 * mixed_x).softmax(1)
    losses = -(mixed_y * p.log()).sum(1)
    gradient_KD = (p - mixed_y).T @ mixed_x / 16
    weights_KD = 8 * torch.eye(2) - 0.1 * (gradient_KD + 1e-4 * 8 * torch.eye(2))
    torch.testing.assert_close(run.learners["net"].network.linear.weight.detach(), weights_KD)
    of_sample = {row: [] for row in rows.tolist()}
    for row, loss in zip(rows.tolist(), (losses[:8] + losses[8:]) / 2, strict=True):
        of_sample[row].append(float(loss))
    assert told[0].metrics["train/loss"] == pytest.approx(sum(map(max, of_sample.values())) / 7)


def test_labels_are_changed_above_the_threshold_and_not_at_it() -> None:
    p = float((8 * torch.tensor([128.0, 102.0]) / 255).softmax(0)[0])
    lots = {"given": [1] * 8, "pixels": [[128, 102]] * 8}
    assert trained(ssr(theta_r=p - 1e-6), **lots)[1][0].labels_N.tolist() == [0] * 8
    assert trained(ssr(theta_r=p), **lots)[1][0].labels_N.tolist() == [1] * 8


def test_changed_labels_are_judged_anew_in_each_epoch() -> None:
    """A relabelled sample takes its given label back when the network is no longer sure."""
    run, told = run_of()
    original = run.embed

    def embed(net: Any) -> Tensor:
        z_ND = original(net)
        return z_ND / 100 if told else z_ND  # p near 1/2 from the second epoch on

    run.embed = embed  # type: ignore[method-assign]
    ssr(epochs=2, lr=1e-30).train(run)
    assert told[0].labels_N.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert told[1].labels_N.tolist() == GIVEN


@pytest.mark.parametrize(("theta_s", "kept"), [(0.61, 7), (0.59, 8), (0.0, 8)])
def test_a_lower_threshold_of_the_vote_keeps_more(theta_s: float, kept: int) -> None:
    """Sample 4: c = 1.6 / 2.667 = 0.6."""
    _, (told,) = trained(ssr(theta_s=theta_s))
    assert told.metrics["method/selected"] == kept / 8


@pytest.mark.parametrize(("neighbors", "selected"), [(1, 8), (2, 7), (200, 7)])
def test_k_is_cut_to_half_an_average_class(neighbors: int, selected: int) -> None:
    """With one neighbour, 3, sample 4 is kept."""
    _, (told,) = trained(ssr(neighbors=neighbors))
    assert told.metrics["method/selected"] == selected / 8


@pytest.mark.parametrize("strong", [None, CropFlipCutout(pad=0, cutout=1)])
def test_it_learns_from_two_strong_views_or_two_of_the_experiments_augmentation(
    strong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    batches = Epoch.batches
    monkeypatch.setattr(Epoch, "batches", lambda self, **more: asked.append(more["views"]) or batches(self, **more))
    weak = CropFlipCutout(pad=0)
    trained(ssr(strong=strong), augmentation=weak)
    assert asked == [(weak, weak) if strong is None else (strong, strong)]


def test_it_judges_images_as_they_are() -> None:
    """Views of all grey images: nothing to learn from, but the labels are judged as in the test by hand."""
    _, (told,) = trained(ssr(), augmentation=CropFlipCutout(pad=0, cutout=4))
    assert told.labels_N.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_other_losses_are_refused() -> None:
    with pytest.raises(ValidationError, match="loss must be ce"):
        ssr(loss=MAE())


def test_settings_of_the_paper() -> None:
    method = SSR()
    assert (method.theta_r, method.theta_s, method.neighbors, method.alpha) == (0.9, 1, 200, 4)
    assert (method.training.epochs, method.training.batch_size) == (300, 128)
    assert method.training.schedule.at(1, 300) == 0.02
    assert SGD().momentum == 0.9
