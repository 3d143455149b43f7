"""The one loop: against plain SGD, per-sample losses, batches, precision, devices."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import Net, make_learner, samples

from nlt.losses import CE, MAE
from nlt.models import CNN9
from nlt.optim import SGD
from nlt.run import Split
from nlt.settings import BadInput
from nlt.train import (
    COMPILE_GAIN_S,
    Batches,
    Diverged,
    Learner,
    evaluate,
    find_compile,
    find_device,
    find_precision,
    to_float,
    train_epoch,
)

CPU = torch.device("cpu")


def epoch_of(N: int = 40, size: int = 16, side: int = 2) -> Batches:
    split = Split(samples(N, side=side), CPU)
    return Batches(
        split.images_NHWC, split.labels_N, torch.randperm(N, generator=torch.Generator().manual_seed(3)), size
    )


def test_an_epoch_is_plain_sgd_with_torch_own_loss():
    """Same batches through torch's cross_entropy and torch.optim.SGD written out: same weights, momentum and decay."""
    batches = epoch_of()
    network = Net(4, 4)
    plain = copy.deepcopy(network)
    net = make_learner(network, momentum=0.9, weight_decay=0.01)
    net.set_lr(0.1)
    for _ in range(3):
        train_epoch(net, batches, CE())
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        for rows in batches.rows_M.split(16):
            images = batches.images_NHWC[rows].permute(0, 3, 1, 2).float() / 255
            optimizer.zero_grad()
            F.cross_entropy(plain(images), batches.labels_N[rows]).backward()
            optimizer.step()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_one_batch_worked_by_hand():
    """Two one-pixel samples, zero weights: p = (1/2, 1/2), loss ln 2 each.

    White pixel (x = 1) of class 0, black (x = 0) of class 1. d loss / d logits = p - q = (-1/2, 1/2) and (1/2, -1/2);
    mean over 2: weight gradient = 1/2 * (1 * (-1/2, 1/2) + 0) = (-1/4, 1/4); bias gradient = 0. lr 0.4: w = (0.1, -0.1).
    """
    network = Net(1, 2)
    torch.nn.init.zeros_(network.linear.weight)
    torch.nn.init.zeros_(network.linear.bias)
    net = make_learner(network, momentum=0.0, weight_decay=0.0)
    net.set_lr(0.4)
    images_NHWC = torch.tensor([255, 0], dtype=torch.uint8).reshape(2, 1, 1, 1)
    losses_N = train_epoch(net, Batches(images_NHWC, torch.tensor([0, 1]), torch.tensor([1, 0]), 2), CE())
    assert losses_N.tolist() == pytest.approx([0.693147, 0.693147])
    assert network.linear.weight.flatten().tolist() == pytest.approx([0.1, -0.1])
    assert network.linear.bias.tolist() == pytest.approx([0, 0])
    # Ties go to class 0: of the two samples, one was met.
    assert float(net.train_accuracy) == 0.5


def test_losses_stand_at_their_samples_and_left_out_ones_are_nan():
    batches = epoch_of(N=10, size=3)
    kept = Batches(batches.images_NHWC, batches.labels_N, torch.tensor([7, 2, 5, 0]), 3)
    net = make_learner(Net(4, 4))  # learning rate 0: the network does not move
    losses_N = train_epoch(net, kept, MAE())
    expected_N = MAE()(net.logits(to_float(batches.images_NHWC)), batches.labels_N)
    assert losses_N.isnan().nonzero().flatten().tolist() == [1, 3, 4, 6, 8, 9]
    torch.testing.assert_close(losses_N[[0, 2, 5, 7]], expected_N[[0, 2, 5, 7]].detach())


def test_train_accuracy_counts_only_the_samples_trained_on():
    batches = epoch_of(N=10, size=3)
    net = make_learner(Net(4, 4))
    hits_N = net.logits(to_float(batches.images_NHWC)).argmax(1) == batches.labels_N
    rows_M = torch.tensor([7, 2, 5, 0])
    train_epoch(net, Batches(batches.images_NHWC, batches.labels_N, rows_M, 3), CE())
    assert float(net.train_accuracy) == pytest.approx(float(hits_N[rows_M].float().mean()))


def test_pixels_are_scaled_to_one_and_lie_channels_last():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    floats = to_float(image.expand(2, 4, 4, 3).contiguous())
    assert floats.shape == (2, 3, 4, 4)
    assert floats[1, :, 2, 3].tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert floats.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("N", "size", "expected"), [(10, 5, [5, 5]), (11, 5, [5, 6]), (12, 5, [5, 5, 2]), (1, 5, [1])])
def test_no_batch_of_one_beside_others(N, size, expected):
    batches = epoch_of(N=N, size=size)
    parts = list(batches)
    assert [len(rows_B) for rows_B, _, _ in parts] == expected
    assert torch.cat([rows_B for rows_B, _, _ in parts]).tolist() == batches.rows_M.tolist()
    for rows_B, images_BCHW, labels_B in parts:
        assert labels_B.tolist() == batches.labels_N[rows_B].tolist()
        assert torch.equal(images_BCHW, to_float(batches.images_NHWC[rows_B]))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_epoch(poison):
    net = make_learner(Net(4, 4))
    with torch.no_grad():
        net.network.linear.bias[0] = poison
    with pytest.raises(Diverged, match="of 40 samples is not finite"):
        train_epoch(net, epoch_of(), CE())


def test_evaluate_is_the_share_of_hits_with_dropout_off():
    torch.manual_seed(0)
    net = make_learner(CNN9(width=0.05).build(1, 8, 8, 4))
    split = Split(samples(701, side=8), CPU)  # more than one evaluation batch, the last one cut
    first = evaluate(net, split.images_NHWC, split.labels_N)
    assert first == evaluate(net, split.images_NHWC, split.labels_N)
    net.network.eval()
    hits = net.network(to_float(split.images_NHWC)).argmax(1) == split.labels_N
    assert first == int(hits.sum()) / 701


def test_evaluation_leaves_batch_norm_statistics_alone():
    net = make_learner(CNN9(width=0.05).build(1, 8, 8, 4))
    before = copy.deepcopy(net.network.state_dict())
    split = Split(samples(50, side=8), CPU)
    evaluate(net, split.images_NHWC, split.labels_N)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.network.state_dict().items())


def test_bf16_autocast_gives_float32_losses_near_those_of_fp32():
    torch.manual_seed(0)
    network = CNN9(width=0.1).build(1, 8, 8, 4)
    exact, rounded = make_learner(copy.deepcopy(network)), make_learner(network)
    rounded._autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    batches = epoch_of(N=64, size=64, side=8)
    torch.manual_seed(1)
    a = train_epoch(exact, batches, CE())
    torch.manual_seed(1)
    b = train_epoch(rounded, batches, CE())
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


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "cpu:0", "", "mps"])
def test_unknown_device(name):
    with pytest.raises(BadInput, match="use auto, cpu, cuda"):
        find_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_asked_for_and_absent():
    with pytest.raises(BadInput, match="sees no CUDA device here: use --device cpu or auto"):
        find_device("cuda")
    assert find_device("auto") == CPU


def test_auto_precision_is_bf16_only_in_hardware():
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert find_precision("auto", CPU) == ("bf16" if native else "fp32")
    assert find_precision("bf16", CPU) == "bf16"


@pytest.mark.gpu
def test_no_wait_for_the_device_inside_an_epoch():
    """torch raises at a synchronizing call in this mode; only the check at the end of the epoch may wait."""
    device = torch.device("cuda")
    split = Split(samples(256, side=8), device)
    from nlt.optim import SGD
    from nlt.train import Learner

    net = Learner(CNN9(width=0.1).build(1, 8, 8, 4), SGD(), device, "bf16")
    batches = Batches(split.images_NHWC, split.labels_N, torch.arange(256, device=device), 64)
    train_epoch(net, batches, CE())
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing") as caught:
            train_epoch(net, batches, CE())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(caught) == 1


def test_compilation_pays_only_where_it_is_a_gain_and_there_are_many_steps(monkeypatch):
    assert find_compile("auto", CPU, {128: 10**9})[0] is False
    gpu = torch.device("cuda")
    assert find_compile("auto", gpu, {128: 10**9})[0] is False  # until it has been measured there
    monkeypatch.setitem(COMPILE_GAIN_S, "cuda", 0.0015)
    few, many = find_compile("auto", gpu, {128: 15_700}), find_compile("auto", gpu, {128: 12_560, 16: 50_000})
    assert few == (False, "off: 15,700 steps gain about 24 s on cuda, compiling takes 30 s")
    assert many == (True, "on: 62,560 steps gain about 94 s on cuda, compiling takes 60 s")
    assert find_compile("on", CPU, {128: 1})[0] is True
    assert find_compile("off", gpu, {16: 10**9})[0] is False


def test_only_whole_training_batches_take_the_compiled_network(monkeypatch):
    sizes = []

    def compiled(network, **settings):
        assert settings["options"]["fallback_random"] is True
        assert settings["options"]["triton.cudagraphs"] is False  # on a CPU

        def forward(images_BCHW):
            sizes.append(len(images_BCHW))
            return network(images_BCHW)

        return forward

    batches = epoch_of(N=40, size=16)
    torch.manual_seed(0)
    network = Net(4, 4)
    plain = make_learner(copy.deepcopy(network))
    monkeypatch.setattr(torch, "compile", compiled)
    net = Learner(network, SGD(), CPU, "fp32", compiled=True)
    for learner in (plain, net):
        learner.set_lr(0.1)
    assert torch.equal(train_epoch(net, batches, CE()), train_epoch(plain, batches, CE()))
    evaluate(net, batches.images_NHWC, batches.labels_N)
    assert sizes == [16, 16]


@pytest.mark.slow
def test_a_compiled_network_trains_as_the_plain_one():
    """20 steps with dropout and batch norm, through the compiler itself: a minute."""
    batches = epoch_of(N=160, size=8, side=8)
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = Learner(CNN9(width=0.05).build(1, 8, 8, 4), SGD(), CPU, "fp32", compiled=compiled)
        net.set_lr(0.01)
        torch.manual_seed(1)
        losses.append(train_epoch(net, batches, CE()))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)
