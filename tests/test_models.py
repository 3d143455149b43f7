"""Networks: sizes worked out by hand, and what happens inside, seen through hooks.

B images of C channels, K classes.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from nlt.models import CNN9, Model, PreActBlock, PreActResNet18, ResNet18, ResNet34, Timm, WRN28x2
from nlt.settings import BadInput

THIN = CNN9(width=0.125)  # 16, 16, 16, 32, 32, 32, 64, 32, 16 channels


def build(model: Any, C: int = 3, side: int = 32, K: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network: nn.Module = model.build(C, side, side, K)
    return network


def images(B: int = 2, C: int = 3, side: int = 32) -> Tensor:
    return torch.rand(B, C, side, side, generator=torch.Generator().manual_seed(1))


def watch(network: nn.Module, images_BCHW: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what went into and came out of each inner module in one forward pass."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda _, ins, out, name=name: seen.update({name: (ins[0], out.clone())}))
        for name, module in network.named_modules()
        if name
    ]
    with torch.no_grad():
        network(images_BCHW)
    for hook in hooks:
        hook.remove()
    return seen


def n_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# ---- CNN9


def test_cnn9_has_the_papers_size() -> None:
    """Convolutions, weights + biases, c_in * c_out * 9 + c_out:

    3 -> 128:    3,584    128 -> 128: 147,584    128 -> 128:   147,584
    128 -> 256: 295,168   256 -> 256: 590,080    256 -> 256:   590,080
    256 -> 512: 1,180,160 512 -> 256: 1,179,904  256 -> 128:   295,040     together 4,429,184
    Batch norm, 2 per channel: 2 * (3 * 128 + 3 * 256 + 512 + 256 + 128) = 4,096
    Linear: 128 * 4 + 4 = 516
    """
    network = build(CNN9())
    assert n_parameters(network) == 4_429_184 + 4_096 + 516 == 4_433_796
    seen = watch(network.eval(), images(1))
    shapes = [tuple(seen[f"convs.{i}"][1].shape[1:]) for i in range(9)]
    assert shapes == [
        (128, 32, 32), (128, 32, 32), (128, 32, 32),
        (256, 16, 16), (256, 16, 16), (256, 16, 16),
        (512, 6, 6), (256, 4, 4), (128, 2, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("side", "last"),
    [
        (32, [6, 4, 2]),  # 32 / 4 = 8, each unpadded convolution takes 2
        (28, [5, 3, 1]),  # 7: the smallest that leaves a pixel
        (27, [6, 6, 6]),  # 6: padded
        (8, [2, 2, 2]),
        (4, [1, 1, 1]),
    ],
)
def test_cnn9_pads_the_last_convolutions_only_of_small_images(side: int, last: list[int]) -> None:
    seen = watch(build(THIN, C=1, side=side).eval(), images(C=1, side=side))
    assert [seen[f"convs.{i}"][1].shape[-1] for i in (6, 7, 8)] == last
    assert seen["linear"][1].shape == (2, 4)


def test_cnn9_pads_by_the_shorter_side() -> None:
    """48 x 8: 12 x 2 after the pools, which unpadded convolutions would use up."""
    network = CNN9(width=0.01).build(1, 48, 8, 3).eval()
    assert network(torch.rand(2, 1, 48, 8)).shape == (2, 3)


@pytest.mark.parametrize(("H", "W"), [(3, 32), (32, 3), (1, 1)])
def test_cnn9_refuses_images_under_4_pixels(H: int, W: int) -> None:
    with pytest.raises(BadInput, match=f"at least 4 x 4 pixels, the data has {H} x {W}"):
        CNN9().build(3, H, W, 4)


@pytest.mark.parametrize(
    ("width", "channels"),
    [
        (0.125, [16, 16, 16, 32, 32, 32, 64, 32, 16]),
        (0.5, [64, 64, 64, 128, 128, 128, 256, 128, 64]),
        (0.001, [1, 1, 1, 1, 1, 1, 1, 1, 1]),  # never 0
    ],
)
def test_cnn9_width_scales_the_channels(width: float, channels: list[int]) -> None:
    network = build(CNN9(width=width))
    assert [conv.out_channels for conv in network.convs] == channels  # type: ignore[union-attr, misc]
    assert network.linear.in_features == channels[-1]


def test_cnn9_layer_by_layer() -> None:
    """Conv, batch norm, leaky ReLU of slope 0.01, 2 x 2 max pool, mean over the pixels, linear."""
    seen = watch(build(THIN).eval(), images())

    def activated(i: int) -> Tensor:
        normed = seen[f"norms.{i}"][1]
        assert (normed < 0).any()
        return torch.where(normed < 0, 0.01 * normed, normed)

    for i in range(8):
        after = activated(i)
        if i in (2, 5):
            B, channels, H, W = after.shape
            after = after.reshape(B, channels, H // 2, 2, W // 2, 2).amax((3, 5))
        torch.testing.assert_close(seen[f"convs.{i + 1}"][0], after)
        torch.testing.assert_close(seen[f"norms.{i}"][0], seen[f"convs.{i}"][1])
    torch.testing.assert_close(seen["linear"][0], activated(8).mean(3).mean(2))


def test_cnn9_gradient_reaches_every_parameter() -> None:
    network = build(THIN, side=16)
    F.cross_entropy(network(images(8, side=16)), torch.arange(8) % 4).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # The biases before a batch norm are cancelled by it, up to rounding, and may be silent.
    assert [name for name in silent if not (name.startswith("convs") and name.endswith("bias"))] == []


@pytest.mark.parametrize(
    ("eval_dropout", "training", "random"),
    [(False, False, False), (True, False, True), (False, True, True), (True, True, True)],
)
def test_cnn9_dropout_is_on_in_training_and_where_asked(eval_dropout: bool, training: bool, random: bool) -> None:
    network = build(CNN9(width=0.125, eval_dropout=eval_dropout)).train(training)
    with torch.no_grad():
        first_BK, second_BK = network(images()), network(images())
    assert torch.equal(first_BK, second_BK) is not random


def test_cnn9_drops_whole_channels_with_probability_a_quarter() -> None:
    """What goes into the 4th convolution, with and without dropout: a channel is 0, or 1 / 0.75 of what it was."""
    B = 64
    plain, dropping = build(THIN, side=16).eval(), build(CNN9(width=0.125, eval_dropout=True), side=16).eval()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), dropping.parameters(), strict=True))
    x_BCHW = watch(plain, images(B, side=16))["convs.3"][0]
    seen = watch(dropping, images(B, side=16))
    y_BCHW = seen["convs.3"][0]
    dropped_BC = (y_BCHW == 0).all(3).all(2)
    torch.testing.assert_close(y_BCHW, x_BCHW / 0.75 * ~dropped_BC[:, :, None, None])
    # 64 * 16 = 1024 draws: a standard deviation is sqrt(0.25 * 0.75 / 1024) = 0.0135; 4 of them are 0.054.
    assert abs(dropped_BC.float().mean().item() - 0.25) < 0.054
    assert len(dropped_BC.unique(dim=0)) > 1  # drawn for each image
    second_BC = (seen["convs.6"][0] == 0).all(3).all(2)  # 64 * 32 draws: 4 * 0.0096
    assert abs(second_BC.float().mean().item() - 0.25) < 0.039
    assert not (seen["linear"][0] == 0).any()  # no third dropout


# ---- ResNets


@pytest.mark.parametrize(
    ("model", "C", "K", "parameters"),
    [
        (ResNet18(), 3, 10, 11_173_962),  # published for the CIFAR stem (kuangliu/pytorch-cifar)
        # 2 channels less in conv1: 2 * 64 * 9 = 1,152; 6 classes less: 6 * 513 = 3,078
        (ResNet18(), 1, 4, 11_173_962 - 1_152 - 3_078),
        # conv1 3 * 64 * 9 = 1,728 and its norm 128; 3 blocks of 2 * (64 * 64 * 9) + 256 = 73,984;
        # 221,696 + shortcut 8,448 + 3 * 295,424; 885,760 + 33,280 + 5 * 1,180,672; 3,540,992 + 132,096 + 2 * 4,720,640;
        # linear 5,130: 1,856 + 221,952 + 1,116,416 + 6,822,400 + 13,114,368 + 5,130
        (ResNet34(), 3, 10, 21_282_122),
    ],
    ids=repr,
)
def test_resnet_size(model: Any, C: int, K: int, parameters: int) -> None:
    assert n_parameters(build(model, C=C, K=K)) == parameters


@pytest.mark.parametrize(("model", "C"), [(ResNet18(), 1), (ResNet34(), 3)], ids=repr)
def test_resnet_has_the_cifar_stem(model: Any, C: int) -> None:
    """ImageNet's stem (7 x 7, stride 2, max pool) would leave 4 x 4 of 16 x 16 pixels before the first block."""
    network = build(model, C=C)
    conv: Any = network.conv1
    assert (conv.kernel_size, conv.stride, conv.padding, conv.bias) == ((3, 3), (1, 1), (1, 1), None)
    # He's normal initialization, fan out: sqrt(2 / (64 * 9)) = 0.0589; 576 weights or more give it within 10 %.
    assert conv.weight.std().item() == pytest.approx(0.0589, rel=0.1)
    seen = watch(network.eval(), images(C=C, side=16))
    sides = [seen[name][1].shape[-1] for name in ("conv1", "layer1", "layer2", "layer3", "layer4")]
    assert sides == [16, 16, 8, 4, 2]
    assert seen["fc"][1].shape == (2, 4)


# ---- pre-activation networks


@pytest.mark.parametrize(
    ("model", "C", "K", "parameters"),
    [
        # Stem 3 * 64 * 9 = 1,728. A block of c channels has 2 norms of 2 c and 2 convolutions of 9 c c, and one that
        # goes from half as many has 2 (c / 2) + 2 c, 9 c c / 2 + 9 c c and the shortcut's c c / 2:
        # 2 * 73,984; 229,760 + 295,424; 918,272 + 1,180,672; 3,671,552 + 4,720,640
        # last norm 1,024, linear 5,130: 1,728 + 147,968 + 525,184 + 2,098,944 + 8,392,192 + 1,024 + 5,130
        (PreActResNet18(), 3, 10, 11_172_170),
        (PreActResNet18(), 1, 4, 11_172_170 - 1_152 - 3_078),
        # Stem 3 * 16 * 9 = 432; 16 -> 32: 96 + 4,608 + 9,216 + 512 = 14,432, then 3 * 18,560;
        # 57,536 + 3 * 73,984; 229,760 + 3 * 295,424; norm 256, linear 1,290
        # 432 + 70,112 + 279,488 + 1,116,032 + 256 + 1,290; the 1.5 million of the paper's Table 4
        (WRN28x2(), 3, 10, 1_467_610),
    ],
    ids=repr,
)
def test_preactivation_size(model: Any, C: int, K: int, parameters: int) -> None:
    with torch.device("meta"):
        assert n_parameters(model.build(C, 32, 32, K)) == parameters


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        (PreActResNet18(), [(64, 20, 12)] * 2 + [(128, 10, 6)] * 2 + [(256, 5, 3)] * 2 + [(512, 3, 2)] * 2),
        (WRN28x2(), [(32, 20, 12)] * 4 + [(64, 10, 6)] * 4 + [(128, 5, 3)] * 4),
    ],
    ids=repr,
)
def test_preactivation_halves_the_resolution_at_each_stage_but_the_first(model: Any, shapes: list[Any]) -> None:
    with torch.device("meta"):
        network: Any = model.build(1, 20, 12, 7)
        x = network.stem(torch.empty(2, 1, 20, 12))
        found = []
        for block in network.blocks:
            x = block(x)
            found.append(tuple(x.shape[1:]))
        assert found == shapes
        assert network(torch.empty(2, 1, 20, 12)).shape == (2, 7)
        assert network.eval()(torch.empty(1, 1, 1, 1)).shape == (1, 7)


def normed(x_BCHW: Tensor, norm: Any) -> Tensor:
    """What batch norm makes of a batch in training: mean 0 and variance 1 in each channel, as its scale is 1 at first."""
    mean_C, var_C = x_BCHW.mean((0, 2, 3), keepdim=True), x_BCHW.var((0, 2, 3), correction=0, keepdim=True)
    return (x_BCHW - mean_C) / (var_C + norm.eps).sqrt()


@pytest.mark.parametrize(("c_in", "c_out", "stride"), [(3, 3, 1), (3, 5, 1), (3, 3, 2), (3, 6, 2)])
def test_preactivation_block_by_hand(c_in: int, c_out: int, stride: int) -> None:
    """BN, ReLU, convolution, twice; what is added is the input as it came, or a 1x1 of the activated input."""
    torch.manual_seed(0)
    block = PreActBlock(c_in, c_out, stride)
    x = torch.randn(4, c_in, 6, 6)
    first = normed(x, block.norm1).clamp(min=0)
    kept = x if (c_in, stride) == (c_out, 1) else F.conv2d(first, block.shortcut.weight, stride=stride)  # type: ignore[union-attr]
    second = normed(F.conv2d(first, block.conv1.weight, stride=stride, padding=1), block.norm2).clamp(min=0)
    torch.testing.assert_close(block(x), kept + F.conv2d(second, block.conv2.weight, padding=1))


def test_preactivation_network_ends_activated_averaged_and_linear() -> None:
    network: Any = build(WRN28x2(), C=1, side=8)
    seen = watch(network, images(C=1, side=8))
    torch.testing.assert_close(seen["linear"][0], seen["norm"][1].clamp(min=0).mean((2, 3)))
    assert (seen["norm"][1] < 0).any()
    # He's normal initialization, fan out: sqrt(2 / (128 * 9)) = 0.0417.
    assert network.blocks[-1].conv2.weight.std().item() == pytest.approx(0.0417, rel=0.02)
    F.cross_entropy(network(images(C=1, side=8)), torch.tensor([0, 1])).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


# ---- all


@pytest.mark.parametrize("model", [THIN, ResNet18(), WRN28x2()], ids=repr)
def test_seeded_build_repeats(model: Any) -> None:
    first, second, other = build(model, seed=5), build(model, seed=5), build(model, seed=6)
    a, b, c = (nn.utils.parameters_to_vector(network.parameters()) for network in (first, second, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ('{"name": "cnn9", "width": 0.5}', CNN9(width=0.5)),
        ('{"name": "resnet18"}', ResNet18()),
        ('{"name": "resnet34"}', ResNet34()),
        ('{"name": "preact_resnet18"}', PreActResNet18()),
        ('{"name": "wrn28_2"}', WRN28x2()),
        ('{"name": "timm", "tune": "head"}', Timm(architecture="lite0", tune="head")),
    ],
)
def test_union_picks_by_name(text: str, model: Any) -> None:
    assert TypeAdapter(Model).validate_json(text) == model


@pytest.mark.parametrize("width", [0, -1, 9])
def test_width_out_of_range_is_refused(width: float) -> None:
    with pytest.raises(ValidationError):
        CNN9(width=width)
