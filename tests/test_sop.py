"""SOP: one batch by hand, and what u and v do to right and wrong labels."""

import pytest
import torch
from conftest import OnePixel, make_run, samples

from nlt.data import Samples
from nlt.losses import CE
from nlt.methods import sop
from nlt.methods.sop import SOP
from nlt.optim import Constant
from nlt.run import Run
from nlt.train import Stage


def stage(epochs: int, lr: float, batch_size: int = 8) -> Stage:
    return Stage(epochs=epochs, batch_size=batch_size, loss=CE(), schedule=Constant(lr=lr))


def started(run: Run, monkeypatch: pytest.MonkeyPatch, u_N: list[float], v_NK: list[list[float]]) -> None:
    """Let u and v begin there."""
    before = run.buffer
    begin = {"u_N": torch.tensor(u_N), "v_NK": torch.tensor(v_NK)}
    monkeypatch.setattr(run, "buffer", lambda name, tensor: before(name, begin[name]))


def test_one_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Label 1 of p = (3/4, 1/4), so h = (1, 0); u = 1/2, v = (1/2, 0.3), of which y hides the second.

    p + s = (3/4 - 1/4, 1/4 + 1/4) = (1/2, 1/2): the loss is ln 2. h + s - y = (1 - 1/4, 1/4 - 1): its square is 9/8.
    u: the derivative of -ln(a1 / (a0 + a1)) by a1 is 1/1 - 1/(1/2) = -1, times 2u: -1; with lr_u 1/4: 1/2 + 1/4.
    v_0: 2 (3/4) (-2 v_0) = -3/2; with lr_v 1/8: 1/2 + 3/16. It has no gradient of the first loss, u none of the second.
    Logits: the derivative by p is (1, -1), and p0 p1 = 3/16: (3/8, -3/8). Weight decay adds 1e-4 * 1.0986123 to the
    first; with a learning rate of 1 the biases go to 1.0986123 - 0.3751099 and 0.375.
    """
    white = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    one = torch.tensor([1])
    run, told = make_run(Samples(white, torch.tensor([0]), one, one), K=2, model=OnePixel())
    started(run, monkeypatch, [0.5], [[0.5, 0.3]])
    SOP(lr_u=0.25, lr_v=0.125, training=stage(1, lr=1.0)).train(run)
    assert told[0].losses_N.tolist() == pytest.approx([0.6931472 + 1.125], abs=1e-6)
    assert run.buffers["u_N"].tolist() == pytest.approx([0.75])
    assert run.buffers["v_NK"].flatten().tolist() == pytest.approx([0.6875, 0.3])
    linear = run.learners["net"].network.linear
    assert linear.bias.tolist() == pytest.approx([0.7235024, 0.375], abs=1e-6)
    assert linear.weight.flatten().tolist() == pytest.approx([-0.375, 0.375], abs=1e-6)
    assert told[0].scores_N.tolist() == pytest.approx([0.5625])


def test_the_batch_shares_the_learning_rates_and_each_row_gets_its_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two such samples, of the labels 1 and 0: half the step for each.

    The second has u = 1/2 and v = (0.2, 0.4), of which y hides the first: p + s = (1, 0.09). u: 2u (1/1.09 - 1/1) =
    -0.0825688. h is y there: v_1 has 2 (-0.16) (-2 * 0.4) = 0.256.
    """
    images = torch.full((2, 1, 1, 1), 255, dtype=torch.uint8)
    labels_N = torch.tensor([1, 0])
    run, _ = make_run(Samples(images, torch.arange(2), labels_N, labels_N), K=2, model=OnePixel())
    started(run, monkeypatch, [0.5, 0.5], [[0.5, 0.3], [0.2, 0.4]])
    SOP(lr_u=0.25, lr_v=0.125, training=stage(1, lr=1e-30)).train(run)
    assert run.buffers["u_N"].tolist() == pytest.approx([0.625, 0.5103211])
    assert run.buffers["v_NK"].flatten().tolist() == pytest.approx([0.59375, 0.3, 0.2, 0.384])


def test_u_and_v_stay_in_their_range() -> None:
    run, _ = make_run(samples(8), seed=1)
    SOP(lr_u=1e4, lr_v=1e4, training=stage(6, lr=0.1)).train(run)
    for name in ("u_N", "v_NK"):
        assert run.buffers[name].isfinite().all()
        assert float(run.buffers[name].abs().max()) == 1.0


def test_what_is_less_likely_than_nothing_still_has_a_finite_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """v = 1 takes more than all of p away: the entry counts as 1e-4."""
    white = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    zero = torch.tensor([0])
    run, told = make_run(Samples(white, torch.tensor([0]), zero, zero), K=2, model=OnePixel())
    started(run, monkeypatch, [0.0], [[0.0, 1.0]])
    SOP(training=stage(1, lr=1e-30)).train(run)
    first = torch.tensor(0.7501 / 0.75).log()  # -ln(0.75 / (0.75 + 1e-4))
    assert told[0].losses_N.tolist() == pytest.approx([float(first) + 1.0], abs=1e-6)  # h + s - y = (0, -1)


def test_u_and_v_begin_near_zero_and_are_drawn_from_the_runs_generator() -> None:
    begun = []
    for seed in (0, 0, 1):
        run, _ = make_run(samples(200), seed=seed)
        SOP(lr_u=0.0, lr_v=0.0, training=stage(1, lr=1e-30)).train(run)
        begun.append(torch.cat([run.buffers["u_N"], run.buffers["v_NK"].flatten()]))
    assert torch.equal(begun[0], begun[1])
    assert not torch.equal(begun[0], begun[2])
    assert float(begun[0].std()) == pytest.approx(sop.START, rel=0.1)
    assert abs(float(begun[0].mean())) < 0.2 * sop.START


def test_it_takes_wrong_labels_for_noise() -> None:
    """Class = brightest pixel, a quarter of the labels wrong: u^2 tells them apart."""
    generator = torch.Generator().manual_seed(0)
    clean_N = torch.randint(0, 4, (200,), generator=generator)
    images = torch.randint(0, 60, (200, 1, 2, 2), generator=generator, dtype=torch.uint8)
    images.flatten(1)[torch.arange(200), clean_N] = 250
    given_N = torch.where(torch.arange(200) < 50, (clean_N + 1) % 4, clean_N)
    run, told = make_run(Samples(images, torch.arange(200), given_N, clean_N))
    SOP(training=stage(30, lr=0.1)).train(run)
    assert told[-1].metrics["noise/auc"] > 0.99
    u2_N = run.buffers["u_N"].square()
    assert float(u2_N[:50].median()) > 0.5 > 0.1 > float(u2_N[50:].median())
