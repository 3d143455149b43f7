"""What becomes of labels that are taken for wrong, by hand; and the methods that act on them."""

import pytest
import torch
import torch.nn.functional as F
from conftest import make_run, samples
from test_methods import clear_samples

from nlt.backbones import Pixels
from nlt.detect import act_on
from nlt.losses import CE
from nlt.methods.cleaned import Cleaned
from nlt.methods.o2u import O2U
from nlt.optim import Constant
from nlt.reading import load
from nlt.spec import Experiment
from nlt.train import Stage

LABELS = torch.tensor([0, 1, 2, 0, 1])
WRONG = torch.tensor([False, True, True, True, False])
P = torch.tensor(
    [
        [0.2, 0.8, 0.0],  # not taken for wrong, whatever is more probable
        [0.6, 0.3, 0.1],  # class 0, surely
        [0.5, 0.3, 0.2],  # no class is more probable than all others together
        [0.7, 0.2, 0.1],  # the given one is the most probable
        [0.1, 0.9, 0.0],
    ]
)


@pytest.mark.parametrize(
    ("act", "labels", "keep", "weights"),
    [
        ("remove", [0, 1, 2, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]),
        ("relabel", [0, 0, 2, 0, 1], [1, 1, 0, 0, 1], [1, 1, 1, 1, 1]),
        ("reweight", [0, 1, 2, 0, 1], [1, 1, 1, 1, 1], [0.2, 0.3, 0.2, 0.7, 0.9]),
        ("soften", P.tolist(), [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    ],
)
def test_act_by_hand(act, labels, keep, weights):
    given_N = LABELS.clone()
    acted = act_on(act, given_N, WRONG, P)
    assert acted.labels_N.tolist() == labels
    assert acted.keep_N.tolist() == [bool(k) for k in keep]
    assert acted.weights_N.tolist() == pytest.approx(weights)
    assert given_N.equal(LABELS)


def test_of_two_classes_a_wrong_label_is_the_other_one_however_sure_the_prediction_is():
    labels_N, wrong_N = torch.tensor([0, 1, 1]), torch.tensor([True, True, False])
    acted = act_on("relabel", labels_N, wrong_N, torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.9, 0.1]]))
    assert acted.labels_N.tolist() == [1, 0, 1] and acted.keep_N.all()


def test_at_random_as_many_are_left_out_as_by_removal_any_of_them_and_by_the_generator():
    wrong_N = torch.arange(1000) < 300
    draws = []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        acted = act_on("remove_at_random", torch.zeros(1000, dtype=torch.int64), wrong_N, P.repeat(200, 1), generator)
        assert int((~acted.keep_N).sum()) == 300
        draws.append(acted.keep_N)
    assert draws[0].equal(draws[1]) and not draws[0].equal(draws[2])
    assert 60 < int((~draws[0])[:300].sum()) < 120  # 90 +- 4 standard deviations of 7


# ---- the methods ----


def stage(epochs, lr=0.05, batch_size=8):
    return Stage(epochs=epochs, batch_size=batch_size, loss=CE(), schedule=Constant(lr=lr))


def test_cleaned_leaves_out_as_many_at_random_and_says_which():
    train = clear_samples(40)
    left_out = {}
    for act in ("remove", "remove_at_random"):
        run, told = make_run(train)
        Cleaned(backbone=Pixels(), act=act, training=stage(1)).train(run)
        (record,) = told
        left_out[act] = ~record.losses_N.isfinite()
        assert torch.equal(left_out[act], ~record.keep_N)
    assert left_out["remove"].sum() == left_out["remove_at_random"].sum() == 40
    assert not torch.equal(*left_out.values())


def trained(act, train=None, **changes):
    """Two cyclical epochs, and one of the last stage in a single batch of all samples, which changes next to nothing."""
    settings = {"pretraining": stage(1), "cyclical": stage(2), "training": stage(1, lr=1e-30, batch_size=256)} | changes
    run, told = make_run(train or samples(wrong=12))
    O2U(forget_rate=0.25, act=act, **settings).train(run)
    return run, told


def test_o2u_knows_each_samples_mean_probabilities_over_the_cyclical_epochs():
    """With cross-entropy, the one of the given label is e^-loss, which each epoch reported."""
    run, told = trained("relabel")
    by_hand = sum((-record.losses_N).exp() for record in told[1:3]) / 2
    p_N = run.buffers["p_NK"].gather(1, run.labels_N[:, None])[:, 0]
    assert p_N.tolist() == pytest.approx(by_hand.tolist(), rel=1e-4)
    assert run.buffers["p_NK"].sum(1).tolist() == pytest.approx([1.0] * 40, rel=1e-4)


@pytest.mark.parametrize("act", ["relabel", "reweight"])
def test_o2u_acts_in_its_last_stage(act):
    """The mask is the paper's whatever the act, and the last stage's losses are those of the labels acted on."""
    train = clear_samples(40)
    run, told = trained(act, train, pretraining=stage(10, lr=0.1))
    mask_N, p_NK, given_N = told[-2].keep_N, run.buffers["p_NK"], run.labels_N
    assert int((~mask_N).sum()) == 50
    acted, losses_N = act_on(act, given_N, ~mask_N, p_NK), told[-1].losses_N
    assert torch.equal(losses_N.isfinite(), acted.keep_N)
    assert torch.equal(told[-1].labels_N, acted.labels_N)
    changed_N = acted.labels_N != given_N
    assert int(changed_N.sum()) >= 20 if act == "relabel" else not changed_N.any()
    assert torch.equal(acted.labels_N[changed_N], train.clean_N[changed_N])
    # The network of the last stage stands still: the loss in training mode, one batch of the kept samples.
    start = run.learners["start"]
    start.network.train()
    rows_M = torch.arange(200)[acted.keep_N]
    logits_MK = start(run._train.images_NHWC[rows_M].permute(0, 3, 1, 2).float() / 255).detach()
    by_hand = F.cross_entropy(logits_MK, acted.labels_N[rows_M], reduction="none")
    assert losses_N[rows_M].tolist() == pytest.approx(by_hand.tolist(), rel=1e-3, abs=1e-6)


def test_o2u_weighs_losses_in_the_step_it_takes():
    """One step from the weights of stage 1, by hand: down the gradient of the weighted mean."""
    run, _ = trained("reweight", training=stage(1, lr=0.5, batch_size=64))
    start, net = run.learners["start"], run.learners["net"]
    weights_N = run.buffers["p_NK"].gather(1, run.labels_N[:, None])[:, 0]
    start.network.train()
    logits_NK = start(run._train.images_NHWC.permute(0, 3, 1, 2).float() / 255)
    loss = (weights_N * F.cross_entropy(logits_NK, run.labels_N, reduction="none")).mean()
    assert_one_step(start, loss, net)


def assert_one_step(start, loss, net):
    """From `start` to `net` it is one step of 0.5 down the gradient of `loss`; SGD's first with momentum is plain."""
    grads = torch.autograd.grad(loss, list(start.network.parameters()))
    decay = 1e-4
    for before, grad, after in zip(start.network.parameters(), grads, net.network.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.5 * (grad + decay * before), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("act", ["remove", "relabel", "reweight", "soften"])
def test_cleaned_learns_what_it_has_made_of_the_labels(act):
    """One step over all samples, by hand: labels, weights and left out samples are those of the act."""
    train = clear_samples(40)
    run, _ = make_run(train)
    Cleaned(backbone=Pixels(), act=act, training=stage(1, lr=0.5, batch_size=200)).train(run)
    before = make_run(train)[0].learner("net")
    before.network.train()
    keep_N, weights_N = run.buffers["keep_N"], run.buffers["weights_N"]
    targets_NK = run.buffers["labels_N"]
    if act != "soften":
        targets_NK = F.one_hot(targets_NK, run.K).float()
    changed = {"remove": 0, "relabel": 40, "reweight": 0, "soften": 200}[act]
    assert int((targets_NK != F.one_hot(train.labels_N, run.K)).any(1).sum()) == changed
    logits_MK = before(run._train.images_NHWC[keep_N].permute(0, 3, 1, 2).float() / 255)
    losses_M = -(targets_NK[keep_N] * logits_MK.log_softmax(1)).sum(1)
    assert_one_step(before, (weights_N[keep_N] * losses_M).mean(), run.learners["net"])


def test_removal_keeps_its_hash_and_its_state():
    """A spec of before `act`, and the checkpoints of O2U as published."""
    spec = load("experiments/o2u_20.json")
    assert "act" not in spec.deciding()["method"]
    data = spec.resolved()
    data["method"]["act"] = "relabel"
    assert Experiment.model_validate(data, strict=False).sha256() != spec.sha256()
    run, _ = trained("remove")
    assert set(run.buffers) == {"scores_N", "keep_N"}
