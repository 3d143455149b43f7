"""Methods against their papers, stage by stage, with one batch worked by hand."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import OnePixel, make_run, samples
from pydantic import ValidationError

from nlt.backbones import Pixels
from nlt.data import Samples
from nlt.detect import find_label_errors, number_kept
from nlt.losses import CE, MAE
from nlt.methods.cleaned import Cleaned
from nlt.methods.coteaching import CoTeaching
from nlt.methods.elr import ELR
from nlt.methods.o2u import O2U
from nlt.methods.standard import Standard
from nlt.optim import Constant, Cyclical
from nlt.run import Run
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


# ---- co-teaching ----


def co_taught(peers: bool) -> list[torch.Tensor]:
    """Two epochs of one batch of 8 written out; with `peers` false each network selects for itself."""
    run, _ = make_run(samples(8))
    networks = [run.learner(name).network for name in "fg"]
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-4) for n in networks]
    data = samples(8)
    x, y = data.images_NCHW.float() / 255, data.labels_N
    for n in (8, 4):  # R = 1, then 1/2
        picked = [F.cross_entropy(network(x), y, reduction="none").argsort()[:n] for network in networks]
        for network, optimizer, rows in zip(networks, optimizers, reversed(picked) if peers else picked, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return [parameter.detach() for network in networks for parameter in network.parameters()]


def test_co_teaching_each_network_learns_from_what_the_other_picks():
    run, told = make_run(samples(8))
    CoTeaching(forget_rate=0.5, ramp=1, training=stage(2, lr=0.5)).train(run)
    weights = [parameter.detach() for name in "fg" for parameter in run.learners[name].network.parameters()]
    for ours, by_hand in zip(weights, co_taught(peers=True), strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=1e-5, atol=1e-6)
    selfish = co_taught(peers=False)
    assert not all(torch.allclose(ours, own, rtol=1e-3) for ours, own in zip(weights, selfish, strict=True))
    assert [epoch.metrics["method/remember_rate"] for epoch in told] == [1.0, 0.5]
    assert int(told[0].keep_N.sum()) == 8
    assert 4 <= int(told[1].keep_N.sum()) <= 8  # picked by either


def test_co_teaching_remembers_less_and_less_until_the_ramp_is_over():
    run, told = make_run()
    CoTeaching(forget_rate=0.4, ramp=4, training=stage(6)).train(run)
    rates = [epoch.metrics["method/remember_rate"] for epoch in told]
    assert rates == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.6])


def test_co_teaching_learns_from_all_of_its_share():
    """1 - 0.8 is 0.19999999999999996: of 50 that makes 9.999999999999998, and 10 are meant."""
    run, told = make_run(samples(50, K=2), K=2, model=OnePixel())  # two equal networks pick the same samples
    CoTeaching(forget_rate=0.8, ramp=1, training=stage(2, batch_size=50)).train(run)
    assert int(told[1].keep_N.sum()) == 10


# ---- ELR ----


def test_elr_one_step_by_hand():
    """Label 1. t = 0.3 p = (0.225, 0.075), <p, t> = 0.1875: the loss is ln 4 + 3 ln 0.8125 = 1.3862944 - 0.6229178.

    Its gradient by the logits: of CE (0.75, -0.75); of the rest -3 / 0.8125 p_j (t_j - 0.1875) = (-0.1038462, 0.1038462).
    With lr 0.1 and weight decay 1e-4 the first bias goes from 1.0986123 to that less 0.1 (0.6461538 + 0.0001099).
    """
    white = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    one = torch.tensor([1])
    run, told = make_run(Samples(white, torch.tensor([0]), one, one), K=2, model=OnePixel())
    ELR(training=stage(1, lr=0.1)).train(run)
    assert told[0].metrics["train/loss"] == pytest.approx(0.7633766, abs=1e-6)
    assert run.buffers["targets_NK"][0].tolist() == pytest.approx([0.225, 0.075])
    assert told[0].scores_N.tolist() == pytest.approx([0.925])
    assert run.learners["net"].network.linear.bias.tolist() == pytest.approx([1.0339859, 0.0646154], abs=1e-6)


def test_elr_without_its_term_is_the_standard_method():
    weights = []
    for method in (ELR(lam=0.0, training=stage(2)), Standard(training=stage(2))):
        run, _ = make_run()
        method.train(run)
        weights.append(run.learners["net"].network.linear.weight)
    torch.testing.assert_close(*weights)


def test_elr_averages_what_it_predicted():
    """Two epochs at a learning rate of nearly 0: t = (0.3 + 0.7 * 0.3) p = 0.51 p."""
    run, _ = make_run()
    ELR(training=stage(2, lr=1e-30)).train(run)
    p_NK = run.predict(run.learners["net"]).exp()
    torch.testing.assert_close(run.buffers["targets_NK"], 0.51 * p_NK)


def clear_samples(wrong: int) -> Samples:
    """200 images of 6 x 6 pixels whose class can be seen; the first `wrong` are labelled as the next class."""
    generator = torch.Generator().manual_seed(0)
    clean_N = torch.arange(200) % 4
    patterns_KHW = torch.randint(0, 200, (4, 6, 6), generator=generator)
    images_NHW = patterns_KHW[clean_N] + torch.randint(0, 55, (200, 6, 6), generator=generator)
    labels_N = torch.where(torch.arange(200) < wrong, (clean_N + 1) % 4, clean_N)
    return Samples(images_NHW[:, None].to(torch.uint8), torch.arange(200), labels_N, clean_N)


def test_o2u_removes_the_share_that_it_estimates():
    method = o2u(forget_rate="estimate", backbone=Pixels(), pretraining=stage(1), cyclical=stage(1), training=stage(1))
    run, told = make_run(clear_samples(40))
    method.train(run)
    rate = find_label_errors(run.features(Pixels()), run.labels_N.numpy()).rate.point
    assert rate == pytest.approx(0.2, abs=0.03)
    assert told[1].metrics["method/estimated_rate"] == rate
    assert int((~told[1].keep_N).sum()) == 200 - number_kept(200, rate)


@pytest.mark.parametrize("method", [CoTeaching, O2U])
def test_an_estimated_rate_is_kept_when_a_run_goes_on(method, monkeypatch: pytest.MonkeyPatch):
    """Elsewhere the backbone's features, and with them the estimate, may be a little different."""
    estimates = iter([0.3, 0.5])
    monkeypatch.setattr(Run, "label_errors", lambda *_: SimpleNamespace(rate=SimpleNamespace(point=next(estimates))))
    settings = {"pretraining": stage(1), "cyclical": stage(2)} if method is O2U else {"ramp": 1}
    settings |= {"forget_rate": "estimate", "backbone": Pixels(), "training": stage(2)}
    states = {}
    run, told = make_run(after_epoch=lambda step, state: states.update({step: copy.deepcopy(state())}))
    method(**settings).train(run)
    again, told_again = make_run(resume=states[2 if method is O2U else 1])
    method(**settings).train(again)
    assert [e.metrics["method/estimated_rate"] for e in told_again if e.detects] == [pytest.approx(0.3)]
    assert torch.equal(told_again[0].keep_N, told[-len(told_again)].keep_N)


def test_co_teaching_forgets_the_share_that_it_estimates():
    run, told = make_run(clear_samples(40))
    CoTeaching(forget_rate="estimate", backbone=Pixels(), ramp=1, training=stage(2)).train(run)
    rate = find_label_errors(run.features(Pixels()), run.labels_N.numpy()).rate.point
    assert told[1].metrics["method/remember_rate"] == pytest.approx(1 - rate)
    assert told[1].metrics["method/estimated_rate"] == rate == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("method", [O2U, CoTeaching])
@pytest.mark.parametrize(
    "settings", [{"forget_rate": "estimate"}, {"forget_rate": 0.2, "backbone": {"name": "pixels"}}]
)
def test_a_rate_is_estimated_by_a_backbone_and_a_told_one_has_no_use_for_it(method, settings):
    with pytest.raises(ValidationError, match="go together"):
        method.model_validate(settings)


@pytest.mark.parametrize(
    ("act", "kept", "relabelled"), [("remove", 160, 0), ("relabel", 200, 40), ("reweight", 200, 0), ("soften", 200, 0)]
)
def test_cleaned_by_hand(act, kept, relabelled):
    """Classes that can be seen: all 40 wrong labels are found, and no other."""
    train = clear_samples(40)
    run, told = make_run(train)
    Cleaned(backbone=Pixels(), act=act, training=stage(1)).train(run)
    (record,) = told
    assert torch.equal(~record.keep_N, train.wrong_N)
    assert int(record.losses_N.isfinite().sum()) == kept
    if act == "soften":
        assert record.labels_N is None
        p_NK = run.buffers["labels_N"]
        assert p_NK.gather(1, train.clean_N[:, None]).min() > 0.5 and torch.allclose(p_NK.sum(1), torch.ones(200))
    else:
        assert int((record.labels_N != train.labels_N).sum()) == relabelled
    if act == "relabel":
        assert torch.equal(record.labels_N, train.clean_N)
    if act == "reweight":  # a wrong label weighs next to nothing, a right one nearly 1
        weights_N = run.buffers["weights_N"]
        assert weights_N[train.wrong_N].max() < 0.3 < 0.7 < weights_N[~train.wrong_N].min()
    assert record.metrics["noise/auc"] == 1
    assert record.metrics["method/estimated_rate"] == pytest.approx(0.2, abs=0.03)
