"""The one loop: against plain SGD, per-sample losses, batches, precision, devices."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import Net, make_learner, samples

from nlt.augment import CropFlipCutout, StrongView, mixup
from nlt.losses import CE, MAE
from nlt.models import CNN9
from nlt.optim import SGD
from nlt.pretrained import preparation
from nlt.run import Split
from nlt.train import (
    Diverged,
    Epoch,
    Learner,
    evaluate,
    predict,
    to_float,
    train_epoch,
)

CPU = torch.device("cpu")


def epoch_of(N: int = 40, size: int = 16, side: int = 2, seed: int = 3) -> Epoch:
    split = Split(samples(N, side=side), CPU)
    return Epoch(split.images_NHWC, split.labels_N, size, torch.Generator().manual_seed(seed))


def order_of(N: int, seed: int = 3) -> torch.Tensor:
    """The rows in the order in which the epoch of that seed hands them out."""
    return torch.randperm(N, generator=torch.Generator().manual_seed(seed))


def test_an_epoch_is_plain_sgd_with_torch_own_loss():
    """Same batches through torch's cross_entropy and torch.optim.SGD written out: same weights, momentum and decay."""
    data = samples(40)
    network = Net(4, 4)
    plain = copy.deepcopy(network)
    net = make_learner(network, momentum=0.9, weight_decay=0.01)
    net.set_lr(0.1)
    for _ in range(3):
        train_epoch(net, epoch_of(), CE())
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        for rows in order_of(40).split(16):
            optimizer.zero_grad()
            F.cross_entropy(plain(data.images_NCHW[rows].float() / 255), data.labels_N[rows]).backward()
            optimizer.step()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def white_and_black(lr: float) -> tuple[Net, Learner, Epoch]:
    """One batch of two one-pixel samples, white (x = 1) of class 0 and black (x = 0) of class 1, for zero weights."""
    network = Net(1, 2)
    torch.nn.init.zeros_(network.linear.weight)
    torch.nn.init.zeros_(network.linear.bias)
    net = make_learner(network, momentum=0.0, weight_decay=0.0)
    net.set_lr(lr)
    images_NHWC = torch.tensor([255, 0], dtype=torch.uint8).reshape(2, 1, 1, 1)
    return network, net, Epoch(images_NHWC, torch.tensor([0, 1]), 2, torch.Generator())


def test_one_batch_of_soft_labels_by_hand():
    """As below, white being class 0 with 3/4: p - q = (-1/4, 1/4) for it; black, class 1 for sure, learns by its bias.

    Weight gradient 1/2 * (-1/4, 1/4), bias gradient 1/2 * (-1/4 + 1/2, 1/4 - 1/2). lr 0.8: w = (0.1, -0.1) = -b.
    """
    network, net, epoch = white_and_black(lr=0.8)
    losses_N = train_epoch(net, epoch, CE(), labels_N=torch.tensor([[0.75, 0.25], [0.0, 1.0]]))
    assert losses_N.tolist() == pytest.approx([0.693147, 0.693147])
    assert network.linear.weight.flatten().tolist() == pytest.approx([0.1, -0.1])
    assert network.linear.bias.tolist() == pytest.approx([-0.1, 0.1])


def test_one_batch_worked_by_hand():
    """Two one-pixel samples, zero weights: p = (1/2, 1/2), loss ln 2 each.

    White pixel (x = 1) of class 0, black (x = 0) of class 1. d loss / d logits = p - q = (-1/2, 1/2) and (1/2, -1/2);
    mean over 2: weight gradient = 1/2 * (1 * (-1/2, 1/2) + 0) = (-1/4, 1/4); bias gradient = 0. lr 0.4: w = (0.1, -0.1).
    """
    network, net, epoch = white_and_black(lr=0.4)
    losses_N = train_epoch(net, epoch, CE())
    assert losses_N.tolist() == pytest.approx([0.693147, 0.693147])
    assert network.linear.weight.flatten().tolist() == pytest.approx([0.1, -0.1])
    assert network.linear.bias.tolist() == pytest.approx([0, 0])
    # Ties go to class 0: of the two samples, one was met.
    assert epoch.accuracy() == 0.5


KEPT_N = torch.tensor([True, False, True, False, False, True, False, True, False, False])


def test_losses_stand_at_their_samples_and_left_out_ones_are_nan():
    split = Split(samples(10), CPU)
    net = make_learner(Net(4, 4))  # learning rate 0: the network does not move
    losses_N = train_epoch(net, epoch_of(N=10, size=3), MAE(), KEPT_N)
    expected_N = MAE()(net(to_float(split.images_NHWC)), split.labels_N)
    assert losses_N.isnan().nonzero().flatten().tolist() == [1, 3, 4, 6, 8, 9]
    torch.testing.assert_close(losses_N[[0, 2, 5, 7]], expected_N[[0, 2, 5, 7]].detach())


def test_train_accuracy_counts_only_the_samples_trained_on():
    split = Split(samples(10), CPU)
    net = make_learner(Net(4, 4))
    hits_N = net(to_float(split.images_NHWC)).argmax(1) == split.labels_N
    epoch = epoch_of(N=10, size=3)
    train_epoch(net, epoch, CE(), KEPT_N)
    assert epoch.accuracy() == pytest.approx(float(hits_N[KEPT_N].float().mean()))


def test_pixels_are_scaled_to_one_and_lie_channels_last():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    floats = to_float(image.expand(2, 4, 4, 3).contiguous())
    assert floats.shape == (2, 3, 4, 4)
    assert floats[1, :, 2, 3].tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert floats.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("N", "size", "expected"), [(10, 5, [5, 5]), (11, 5, [5, 6]), (12, 5, [5, 5, 2]), (1, 5, [1])])
def test_no_batch_of_one_beside_others(N, size, expected):
    split = Split(samples(N), CPU)
    batches = list(epoch_of(N=N, size=size).batches())
    assert [len(batch.rows_B) for batch in batches] == expected
    assert torch.cat([batch.rows_B for batch in batches]).tolist() == order_of(N).tolist()
    for batch in batches:
        assert batch.labels_B.tolist() == split.labels_N[batch.rows_B].tolist()
        assert torch.equal(batch.images_BCHW, to_float(split.images_NHWC[batch.rows_B]))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_fails_the_epoch(poison):
    """One of 40, told by any method: the mean over the others would look fine."""
    net, epoch = make_learner(Net(4, 4)), epoch_of()
    for batch in epoch.batches():
        losses_B = torch.where(batch.rows_B == 17, poison, 1.0)
        epoch.saw(batch, net(batch.images_BCHW), losses_B)
    with pytest.raises(Diverged, match="the loss of 1 of 40 samples is not finite"):
        epoch.accuracy()


@pytest.mark.parametrize("unseen", [0, 2])
def test_a_batch_that_was_never_seen_is_an_error_not_a_frozen_number(unseen):
    epoch = epoch_of()
    for i, batch in enumerate(epoch.batches()):
        if i != unseen:
            epoch.saw(batch, torch.zeros(len(batch.rows_B), 4), torch.zeros(len(batch.rows_B)))
    with pytest.raises(RuntimeError, match="3 batches were handed out and 2 seen: the method must call epoch.saw"):
        epoch.accuracy()


@pytest.mark.parametrize("keep_N", [None, torch.zeros(40, dtype=torch.bool)])
def test_an_epoch_without_samples_is_an_error(keep_N):
    epoch = epoch_of()
    if keep_N is not None:
        assert list(epoch.batches(keep_N)) == []
    with pytest.raises(RuntimeError, match="no sample was trained on"):
        epoch.accuracy()


def test_a_mask_of_numbers_is_refused():
    """As an index 0 and 1 would pick two samples."""
    with pytest.raises(RuntimeError, match="keep_N must be a tensor of bool"):
        epoch_of().batches(torch.ones(40, dtype=torch.int64))


def test_one_loss_for_a_whole_batch_is_refused():
    epoch = epoch_of()
    batch = next(epoch.batches())
    with pytest.raises(RuntimeError, match="a batch of 16 samples has a loss and a row of logits for each"):
        epoch.saw(batch, torch.zeros(16, 4), torch.tensor(1.0))


def test_what_is_drawn_between_batches_does_not_change_them():
    """A method may draw from the run's generator while it goes through an epoch."""
    generator = torch.Generator().manual_seed(3)
    split = Split(samples(40), CPU)
    rows = []
    for batch in Epoch(split.images_NHWC, split.labels_N, 16, generator).batches():
        rows += batch.rows_B.tolist()
        torch.rand(5, generator=generator)
    assert rows == order_of(40).tolist()


def test_what_is_reported_stays_as_it_was():
    """`scores_N += ...` later on must not rewrite it."""
    epoch, scores_N = epoch_of(), torch.zeros(40)
    epoch.report(scores_N=scores_N)
    epoch.report(labels_N=torch.ones(40, dtype=torch.int64), lam=0.5)
    lam = torch.tensor(0.5)
    epoch.report(mu=lam)
    lam += 1
    scores_N += 1
    assert epoch.reported["scores_N"].sum() == 0
    assert sorted(epoch.reported) == ["labels_N", "scores_N"]
    assert epoch.metrics == {"lam": 0.5, "mu": 0.5}


def test_an_average_follows_by_hand():
    """0.75 of its own and 0.25 of the other's, of parameters and batch-norm statistics; counts are the other's."""
    a, b = (make_learner(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(2))) for _ in range(2))
    for net, weight, mean, seen in ((a, 1.0, 0.0, 3), (b, 5.0, 8.0, 7)):
        norm = net.network[1]
        torch.nn.init.constant_(norm.weight, weight)
        norm.running_mean.fill_(mean)
        norm.num_batches_tracked.fill_(seen)
    a.follow(b, 0.75)
    assert a.network[1].weight.tolist() == [2.0, 2.0]
    assert a.network[1].running_mean.tolist() == [2.0, 2.0]
    assert a.network[1].num_batches_tracked == 7
    assert b.network[1].weight.tolist() == [5.0, 5.0]


def test_the_prediction_of_two_is_the_mean_of_their_probabilities():
    nets = [make_learner(Net(1, 2)) for _ in range(2)]
    for net, logits in zip(nets, ([0.0, 0.0], [math.log(9), 0.0]), strict=True):
        torch.nn.init.zeros_(net.network.linear.weight)
        net.network.linear.bias.data = torch.tensor(logits)
        net.network.train()
    log_p_NK = predict(nets, torch.zeros(3, 1, 1, 1, dtype=torch.uint8))
    assert log_p_NK.exp()[2].tolist() == pytest.approx([(0.5 + 0.9) / 2, (0.5 + 0.1) / 2])
    assert all(net.network.training for net in nets)  # as they were
    assert evaluate(nets, torch.zeros(3, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1, 0])) == pytest.approx(2 / 3)


def test_evaluate_is_the_share_of_hits_with_dropout_off():
    torch.manual_seed(0)
    net = make_learner(CNN9(width=0.05).build(1, 8, 8, 4))
    split = Split(samples(701, side=8), CPU)  # more than one evaluation batch, the last one cut
    first = evaluate([net], split.images_NHWC, split.labels_N)
    assert first == evaluate([net], split.images_NHWC, split.labels_N)
    net.network.eval()
    hits = net.network(to_float(split.images_NHWC)).argmax(1) == split.labels_N
    assert first == int(hits.sum()) / 701


def test_evaluation_leaves_batch_norm_statistics_alone():
    net = make_learner(CNN9(width=0.05).build(1, 8, 8, 4))
    before = copy.deepcopy(net.network.state_dict())
    split = Split(samples(50, side=8), CPU)
    evaluate([net], split.images_NHWC, split.labels_N)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.network.state_dict().items())


def test_bf16_autocast_gives_float32_losses_near_those_of_fp32():
    torch.manual_seed(0)
    network = CNN9(width=0.1).build(1, 8, 8, 4)
    exact, rounded = make_learner(copy.deepcopy(network)), make_learner(network)
    rounded._autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    torch.manual_seed(1)
    a = train_epoch(exact, epoch_of(N=64, size=64, side=8), CE())
    torch.manual_seed(1)
    b = train_epoch(rounded, epoch_of(N=64, size=64, side=8), CE())
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, rtol=0, atol=0.1)


def test_new_optimizer_forgets_momentum_and_copy_weights_copies_statistics():
    torch.manual_seed(0)
    a = make_learner(CNN9(width=0.05).build(1, 8, 8, 4))
    b = make_learner(CNN9(width=0.05).build(1, 8, 8, 4))
    a.set_lr(0.1)
    train_epoch(a, epoch_of(side=8), CE())
    assert a.optimizer.state
    a.new_optimizer()
    assert not a.optimizer.state
    b.copy_weights(a)
    for ours, theirs in zip(a.network.state_dict().values(), b.network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()  # copies: training one must not move the other


@pytest.mark.gpu
def test_no_wait_for_the_device_inside_an_epoch():
    """torch warns of each synchronizing call in this mode; only the check at the end of the epoch may wait."""
    device = torch.device("cuda")
    split = Split(samples(256, side=8), device)
    from nlt.optim import SGD
    from nlt.train import Learner

    net = Learner(CNN9(width=0.1).build(1, 8, 8, 4), SGD(), device, "bf16")
    train_epoch(net, Epoch(split.images_NHWC, split.labels_N, 64, torch.Generator()), CE())
    epoch = Epoch(split.images_NHWC, split.labels_N, 64, torch.Generator(), CropFlipCutout(pad=1, cutout=2))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as inside:
            warnings.simplefilter("always")
            assert train_epoch(net, epoch, CE()) is epoch.losses_N
            mixup(to_float(split.images_NHWC), torch.ones(256, 4, device=device), 1.0, torch.Generator())
            for batch in Epoch(split.images_NHWC, split.labels_N, 64, torch.Generator(), StrongView()).batches():
                preparation("lite0").normalize(batch.images_BCHW.expand(-1, 3, -1, -1))
        with pytest.warns(UserWarning, match="synchronizing") as at_its_end:
            assert epoch.accuracy() >= 0
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [str(warning.message) for warning in inside if "synchronizing" in str(warning.message)] == []
    assert len(at_its_end) == 1


def test_only_whole_training_batches_take_the_compiled_network(monkeypatch):
    sizes = []

    def compiled(network, **settings):
        assert settings["options"]["fallback_random"] is True
        assert settings["options"]["triton.cudagraphs"] is False  # on a CPU

        def forward(images_BCHW):
            sizes.append(len(images_BCHW))
            return network(images_BCHW)

        return forward

    torch.manual_seed(0)
    network = Net(4, 4)
    plain = make_learner(copy.deepcopy(network))
    monkeypatch.setattr(torch, "compile", compiled)
    net = Learner(network, SGD(), CPU, "fp32", compiled=True)
    for learner in (plain, net):
        learner.set_lr(0.1)
        learner.batch_size = 16
    assert torch.equal(train_epoch(net, epoch_of(), CE()), train_epoch(plain, epoch_of(), CE()))
    split = Split(samples(16), CPU)
    evaluate([net], split.images_NHWC, split.labels_N)
    assert sizes == [16, 16]
    for images in (64, 15, 17):  # DivideMix's steps are on four batches at once
        net(torch.zeros(images, 1, 2, 2))
    assert sizes == [16, 16, 64]


@pytest.mark.slow
def test_a_compiled_network_trains_as_the_plain_one():
    """20 steps with dropout and batch norm, through the compiler itself: a minute."""
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = Learner(CNN9(width=0.05).build(1, 8, 8, 4), SGD(), CPU, "fp32", compiled=compiled)
        net.set_lr(0.01)
        net.batch_size = 8
        torch.manual_seed(1)
        losses.append(train_epoch(net, epoch_of(N=160, size=8, side=8), CE()))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)
