"""Methods against their papers, stage by stage, with one batch worked by hand."""

import ast
import inspect

import pytest
import torch
from conftest import make_run, samples

import nlt.methods.o2u
from nlt.losses import CE, MAE
from nlt.methods.o2u import O2U
from nlt.methods.standard import Standard
from nlt.optim import Constant, Cyclical
from nlt.train import Stage


def stage(epochs, lr=0.05, batch_size=8, loss=None):
    return Stage(epochs=epochs, batch_size=batch_size, loss=loss or CE(), schedule=Constant(lr=lr))


def o2u(**changes):
    cyclical = Stage(epochs=4, batch_size=4, schedule=Cyclical(r1=0.1, r2=0.01, period=2))
    settings = {"forget_rate": 0.25, "pretraining": stage(2), "cyclical": cyclical, "training": stage(3)}
    return O2U(**(settings | changes))


def test_standard_follows_its_schedule_over_all_samples():
    run, told = make_run()
    Standard(training=Stage(epochs=8, batch_size=16)).train(run)
    assert [e.metrics["optim/lr"] for e in told] == [0.01, 0.01, 0.005, 0.005, 0.001, 0.001, 0.001, 0.001]
    assert all(e.losses_N.isfinite().all() and e.keep_N is None for e in told)


def test_o2u_stages_rates_and_samples():
    run, told = make_run()
    o2u().train(run)
    assert [e.stage for e in told] == ["pretraining"] * 2 + ["cyclical"] * 4 + ["training"] * 3
    # s = 1/2, 1 in each round: r = 0.055, 0.01
    assert [e.metrics["optim/lr"] for e in told] == pytest.approx([0.05] * 2 + [0.055, 0.01] * 2 + [0.05] * 3)
    assert [int(e.losses_N.isfinite().sum()) for e in told] == [40] * 6 + [30] * 3


def test_o2u_scores_are_the_summed_losses_less_their_epochs_mean():
    """Huang et al. 2019, Algorithm 1; worked out here from the losses each epoch reported."""
    run, told = make_run()
    o2u().train(run)
    cyclical = told[2:6]
    total = [0.0] * 40
    for epoch in cyclical:
        losses = epoch.losses_N.tolist()
        mean = sum(losses) / 40
        total = [so_far + loss - mean for so_far, loss in zip(total, losses, strict=True)]
        assert epoch.scores_N.tolist() == pytest.approx(total, abs=1e-4)
        removed = sorted(range(40), key=lambda i: -epoch.scores_N[i].item())[:10]
        assert sorted((~epoch.keep_N).nonzero().flatten().tolist()) == sorted(removed)
    # stage 3 trains on exactly what the last mask keeps
    for epoch in told[6:]:
        assert torch.equal(epoch.losses_N.isfinite(), cyclical[-1].keep_N)


def test_the_mask_is_made_once_per_cyclical_epoch_and_never_later():
    run, told = make_run()
    o2u().train(run)
    assert [e.keep_N is not None for e in told] == [False] * 2 + [True] * 4 + [False] * 3


def test_restart_pretrained_goes_back_to_the_weights_of_stage_1():
    """With a third stage of lr ~ 0 the last test accuracy is that of stage 1's end, and the losses show its weights."""
    run, told = make_run()
    still = stage(1, lr=1e-30)
    o2u(training=still).train(run)
    assert told[-1].metrics["test/accuracy"] == told[1].metrics["test/accuracy"]
    weights = run.learners["net"].network.linear.weight
    run, told = make_run()
    o2u(training=still, cyclical=Stage(epochs=1, batch_size=40, schedule=Constant(lr=1e-30))).train(run)
    assert torch.equal(weights, run.learners["net"].network.linear.weight)  # whatever stage 2 did in between


def test_restart_fresh_begins_anew():
    run, _ = make_run()
    o2u(training=stage(1, lr=1e-30), restart="fresh").train(run)
    pretrained, _ = make_run()
    o2u(training=stage(1, lr=1e-30), restart="pretrained").train(pretrained)
    a, b = (r.learners["net"].network.linear.weight for r in (run, pretrained))
    assert not torch.allclose(a, b)


def test_third_stage_takes_its_own_loss():
    run, told = make_run()
    o2u(training=stage(2, loss=MAE())).train(run)
    assert max(e.metrics["train/loss"] for e in told[6:]) <= 2.0  # MAE lies in [0, 2]
    kept = told[-1].losses_N[told[-1].losses_N.isfinite()]
    assert float(kept.max()) <= 2.0


def test_momentum_does_not_cross_stages():
    """Stage 2 at lr ~ 0 must leave the weights where stage 1 ended, whatever momentum stage 1 had."""
    run, told = make_run()
    still = Stage(epochs=1, batch_size=40, schedule=Constant(lr=1e-30))
    o2u(pretraining=stage(3, lr=1.0), cyclical=still, training=still).train(run)
    assert told[2].metrics["test/accuracy"] == told[3].metrics["test/accuracy"] == told[4].metrics["test/accuracy"]


def test_o2u_finds_planted_wrong_labels():
    """Class = brightest pixel, a quarter of the labels wrong: a linear model can tell, and nine of ten are found."""
    generator = torch.Generator().manual_seed(0)
    clean_N = torch.randint(0, 4, (200,), generator=generator)
    images = torch.randint(0, 60, (200, 1, 2, 2), generator=generator, dtype=torch.uint8)
    images.flatten(1)[torch.arange(200), clean_N] = 250
    given_N = clean_N.clone()
    given_N[:50] = (clean_N[:50] + 1 + torch.randint(0, 3, (50,), generator=generator)) % 4
    base = samples(200)
    train = type(base)(images, base.ids_N, given_N, clean_N)
    run, told = make_run(train)
    o2u(pretraining=stage(10, lr=0.1)).train(run)
    assert told[15 - 2].metrics["noise/precision"] >= 0.9


def test_methods_read_no_clean_label():
    """No method's text reaches for what run keeps to itself."""
    tree = ast.parse(inspect.getsource(nlt.methods.o2u))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not {n for n in names if n.startswith("_") or "clean" in n or "wrong" in n}
