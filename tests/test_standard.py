"""Options of the standard method: one batch with each worked by hand, and what becomes of them in hashes and labels.

Early stopping has a file of its own, tests/test_early_stopping.py.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import REPO, Net, make_run, samples, tiny
from pydantic import ValidationError
from test_every_method import equal, known, state_by_step
from test_report import Made, add

from nlt.data import Samples
from nlt.losses import MAE
from nlt.methods import standard
from nlt.methods.standard import Standard
from nlt.optim import Constant
from nlt.prepare import prepare
from nlt.reading import check, load
from nlt.report.collect import compare
from nlt.tracking import Store, params
from nlt.train import Stage


def stage(epochs: int, lr: float = 0.05, batch_size: int = 8) -> Stage:
    return Stage(epochs=epochs, batch_size=batch_size, schedule=Constant(lr=lr))


class Zero:
    """A linear model whose weights are 0."""

    def build(self, C: int, H: int, W: int, K: int) -> torch.nn.Module:
        network = Net(C * H * W, K)
        torch.nn.init.zeros_(network.linear.weight)
        network.linear.bias.data = torch.tensor([1.0986123, 0.0])  # ln 3: p = (3/4, 1/4)
        return network


def white(N: int, labels: list[int]) -> Samples:
    images = torch.zeros(N, 1, 1, 1, dtype=torch.uint8)
    images[0] = 255
    labels_N = torch.tensor(labels)
    return Samples(images, torch.arange(N), labels_N, labels_N)


# ---- label smoothing ----


def test_label_smoothing_one_step_by_hand() -> None:
    """One white pixel, label 1, epsilon 0.2: targets (0.1, 0.9), loss 0.1 ln(4/3) + 0.9 ln 4 = 0.0287682 + 1.2476649.

    The gradient by the logits is p - t = (0.65, -0.65); weight decay adds 1e-4 * 1.0986123 to the first bias's. With a
    learning rate of 0.1 the biases go to 1.0986123 - 0.0650110 and 0.065, the weights, whose pixel is 1, to -0.065 and
    0.065.
    """
    run, told = make_run(white(1, [1]), K=2, model=Zero())
    Standard(label_smoothing=0.2, training=stage(1, lr=0.1)).train(run)
    assert told[0].losses_N.tolist() == pytest.approx([1.2764331], abs=1e-6)
    linear = run.learners["net"].network.linear
    assert linear.bias.tolist() == pytest.approx([1.0336013, 0.065], abs=1e-6)
    assert linear.weight.flatten().tolist() == pytest.approx([-0.065, 0.065], abs=1e-6)


# ---- mixup ----


def test_mixup_one_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A white pixel of class 1 and a black one of class 0, lambda 3/4, exchanged: pixels 3/4, 1/4, targets alike.

    Targets (1/4, 3/4) of the first and (3/4, 1/4) of the second: losses 1/4 ln(4/3) + 3/4 ln 4 = 1.1116412 and
    3/4 ln(4/3) + 1/4 ln 4 = 0.5623351. Gradients by the logits (1/2, -1/2) and (0, 0), halved by the mean: with a
    learning rate of 1 the weights, whose pixel is 3/4, go to -+ 3/16.
    """

    def exchanged(images, targets, alpha, generator, larger_first=False):  # type: ignore[no-untyped-def]
        assert (alpha, larger_first) == (0.4, False)
        assert generator is run.generator
        return 0.75 * images + 0.25 * images.flip(0), 0.75 * targets + 0.25 * targets.flip(0)

    monkeypatch.setattr(standard, "mixup", exchanged)
    run, told = make_run(white(2, [1, 0]), K=2, model=Zero())
    Standard(mixup_alpha=0.4, training=stage(1, lr=1.0)).train(run)
    assert told[0].losses_N.tolist() == pytest.approx([1.1116412, 0.5623351], abs=1e-6)
    weights = run.learners["net"].network.linear.weight.flatten().tolist()
    assert weights == pytest.approx([-0.1875, 0.1875], abs=1e-6)


def test_mixup_mixes_images_and_targets_by_what_the_runs_generator_draws() -> None:
    """Two epochs against the same steps written out with Zhang et al.'s formula; and other draws give other weights."""
    run, _ = make_run(samples(8))
    Standard(mixup_alpha=1.0, training=stage(2)).train(run)
    by_hand, _ = make_run(samples(8))
    net = by_hand.learner("net")
    data = samples(8)
    for epoch in by_hand.epochs("training", stage(2), net):
        for batch in epoch.batches():
            lam = float(torch.rand((), generator=by_hand.generator, dtype=torch.float64))  # Beta(1, 1) is uniform
            other = torch.randperm(8, generator=by_hand.generator)
            x, y = data.images_NCHW[batch.rows_B].float() / 255, data.labels_N[batch.rows_B]
            logits = net(lam * x + (1 - lam) * x[other])
            losses = lam * F.cross_entropy(logits, y, reduction="none")
            losses = losses + (1 - lam) * F.cross_entropy(logits, y[other], reduction="none")
            net.step(losses.mean())
            epoch.saw(batch, logits, losses)
    torch.testing.assert_close(run.weights(), by_hand.weights())
    plain, _ = make_run(samples(8))
    Standard(training=stage(2)).train(plain)
    assert not torch.allclose(plain.weights()["linear.weight"], run.weights()["linear.weight"], rtol=1e-3)


def test_soft_targets_are_refused_for_other_losses() -> None:
    for option in ({"mixup_alpha": 1.0}, {"label_smoothing": 0.1}):
        with pytest.raises(ValidationError, match="for the loss ce alone"):
            Standard(training=Stage(loss=MAE()), **option)


OPTIONS = {"mixup_alpha": 1.0, "label_smoothing": 0.1}


@pytest.mark.parametrize("option", OPTIONS)
def test_with_an_option_it_goes_on_after_any_epoch_as_if_nothing_had_happened(option: str) -> None:
    method = Standard(training=stage(3), **{option: OPTIONS[option]})
    states, told = state_by_step(method)
    for step, state in states.items():
        resumed, told_again = state_by_step(method, resume=state)
        assert equal(resumed, {later: states[later] for later in range(step + 1, 4)})
        assert equal(list(map(known, told_again)), list(map(known, told[step:])))


# ---- hashes, params, labels ----


def test_experiments_from_before_there_were_options_keep_their_hash() -> None:
    """Computed by nlt at 3f52647."""
    hashes = {
        "quickstart/base": "f201a14332bf623647f200756bd4a0c3967651fa097b1248e7c80e18fa16c29f",
        "quickstart/apl": "8740cc01e9e468c7e7559d295abc8c510f2f1e18786a7fdad43117f1c29cce5e",
        "base_60": "cf3dc528672cd4064516b87a0152c319076d394d18357757bee28eee00cbbdfe",
    }
    assert {name: load(REPO / "experiments" / f"{name}.json").sha256() for name in hashes} == hashes
    spec = load(REPO / "experiments" / "quickstart" / "base.json").model_dump(mode="json", by_alias=True)
    for option, value in (*OPTIONS.items(), ("early_stopping", 5)):
        changed = check(spec | {"method": spec["method"] | {option: value}}, "test")
        assert changed.sha256() != hashes["quickstart/base"]


def test_an_option_is_a_param_where_it_is_set() -> None:
    plain = tiny(method={"name": "standard", "training": {"epochs": 1}})
    mixed = json.loads(json.dumps(plain))
    mixed["method"]["mixup_alpha"] = 0.5
    for experiment, expected in ((plain, None), (mixed, "0.5")):
        spec = check(experiment, "test")
        logged = params(spec, prepare(spec, 0, "cpu", "data"))
        assert logged.get("mixup_alpha") == expected
        assert not {"label_smoothing", "early_stopping"} & logged.keys()


def test_labels_tell_options_and_the_plain_one_is_the_baseline(store: Store) -> None:
    chosen = [{}, {"mixup_alpha": "1.0"}, {"mixup_alpha": "0.2", "label_smoothing": "0.1"}, {"early_stopping": "5"}]
    for n, options in enumerate(chosen):
        held_out = {"train_images": "90" if "early_stopping" in options else "100"}
        add(store, Made(name=f"run {n}", options=options | held_out))
    [comparison] = compare(store)
    labels = [
        "Standard, CE", "Standard, CE, mixup 1", "Standard, CE, mixup 0.2, label smoothing 0.1",
        "Standard, CE, early stopping 5",
    ]  # fmt: skip
    assert comparison.methods == labels
    assert comparison.baselines["symmetric 0.2"].label == "Standard, CE"
    add(store, Made(name="later", options={"early_stopping": "5", "train_images": "80"}))
    [comparison] = compare(store)
    assert [label for label in comparison.methods if "early" in label] == [
        "Standard, CE, train_images 80, early stopping 5", "Standard, CE, train_images 90, early stopping 5",
    ]  # fmt: skip
    assert comparison.methods[0] == "Standard, CE"
