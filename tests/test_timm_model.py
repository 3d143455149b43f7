"""timm's networks as models of experiments: what they are given, what is trained, and that a run with one resumes.

B images of C channels, K classes.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import make_run, samples
from PIL import Image
from safetensors.torch import save_file
from test_pretrained import TINY, weights_of
from torch import Tensor, nn

from nlt.checkpoint import State
from nlt.models import Timm
from nlt.optim import SGD, AdamW, Constant, Optimizer
from nlt.settings import BadInput
from nlt.train import Learner, Stage


@pytest.fixture
def tiny_weights(tmp_path: Path) -> str:
    state = weights_of()
    for name, tensor in state.items():  # as if trained: otherwise each mean is 0; below 0, so that ReLU lets pass
        if name.endswith("running_mean"):
            tensor -= 0.1
    save_file(state, tmp_path / "w.safetensors")
    return str(tmp_path / "w.safetensors")


def images(B: int = 4, C: int = 3, side: int = 16) -> Tensor:
    return torch.rand(B, C, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("C", [1, 3])
@torch.no_grad()
def test_logits_are_the_heads_of_timms_features_of_normalized_images(tiny_weights: str, C: int) -> None:
    torch.manual_seed(0)
    network: Any = Timm(architecture=TINY, weights=tiny_weights).build(C, 16, 16, 5).eval()
    own = timm.create_model(TINY, num_classes=0).eval()
    own.load_state_dict(network.backbone.state_dict())
    x = images(C=C)
    expected = own((torch.cat([x, x, x], 1) if C == 1 else x) * 2 - 1) @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(x), expected)
    assert network(x).shape == (4, 5)


@torch.no_grad()
def test_images_are_enlarged_as_pillow_does_it(tiny_weights: str) -> None:
    network: Any = Timm(architecture=TINY, weights=tiny_weights, image_size=40).build(3, 16, 16, 5).eval()
    seen: list[Tensor] = []
    network.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = images(1)
    network(x)
    # test_resnet's interpolation is bilinear
    channels = [np.asarray(Image.fromarray(c.numpy(), "F").resize((40, 40), Image.Resampling.BILINEAR)) for c in x[0]]
    torch.testing.assert_close(seen[0][0], torch.from_numpy(np.stack(channels)) * 2 - 1, atol=1e-4, rtol=1e-4)


def test_on_the_meta_device_no_weights_are_read() -> None:
    for model in (Timm(), Timm(architecture="resnet18"), Timm(architecture="test_vit")):  # none of them downloaded
        with torch.device("meta"):
            network = model.build(1, 32, 32, 7)
            assert network.eval()(torch.empty(2, 1, 32, 32)).shape == (2, 7)
        assert all(p.is_meta for p in network.parameters())


def test_a_network_of_one_side_enlarges_to_it_or_refuses() -> None:
    with torch.device("meta"), pytest.raises(BadInput, match="image_size 64: the network test_vit takes images of 160"):
        Timm(architecture="test_vit", image_size=64).build(3, 32, 32, 2)


def test_images_of_two_channels_are_refused() -> None:
    with torch.device("meta"), pytest.raises(BadInput, match="1 or 3 channels, the data has 2"):
        Timm().build(2, 32, 32, 2)


def test_lite0_is_built_with_the_weights_that_come_with_nlt() -> None:
    network: Any = Timm().build(3, 32, 32, 4)
    assert network.head.weight.shape == (4, 1280)
    assert Timm().outside_weights == "ImageNet-1k (timm tf_efficientnet_lite0)"
    assert network.backbone.bn1.running_mean[1].item() == pytest.approx(1.1309, abs=1e-4)  # the package's _bn0


@pytest.mark.parametrize("tune", ["head", "all"])
def test_what_training_changes(tiny_weights: str, tune: Any) -> None:
    torch.manual_seed(0)
    network = Timm(architecture=TINY, weights=tiny_weights, tune=tune).build(3, 16, 16, 3)
    learner = Learner(network, SGD(weight_decay=0.1), torch.device("cpu"), "fp32")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    learner.set_lr(0.1)
    for _ in range(3):
        network.train()
        learner.step(F.cross_entropy(learner(images()), torch.tensor([0, 1, 2, 0])))
    same = {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}
    if tune == "head":
        assert same == {name for name in before if name.startswith("backbone.")}
        assert len(same) == 90
    else:  # batch norm keeps its statistics
        assert same == {name for name, _ in network.named_buffers()}
        assert len(same) == 45


def test_the_frozen_network_stays_in_eval_mode_and_batch_norm_in_both() -> None:
    with torch.device("meta"):
        frozen, tuned = (Timm(architecture=TINY, tune=t).build(3, 16, 16, 3).train() for t in ("head", "all"))
    assert [m for m in frozen.modules() if m.training] == [frozen, frozen.head]
    modes = [m.training for m in tuned.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(modes) == 15 and not any(modes)
    layers = (nn.Conv2d, nn.Linear, nn.ReLU)
    assert all(m.training for m in tuned.modules() if isinstance(m, layers)) and tuned.training
    assert all(p.requires_grad for p in tuned.parameters())


@pytest.mark.parametrize(("tune", "optimizer", "lr"), [("head", SGD(), 0.05), ("all", AdamW(), 0.001)])
def test_a_run_resumes_to_the_last_bit(tiny_weights: str, tune: Any, optimizer: Optimizer, lr: float) -> None:
    model = Timm(architecture=TINY, weights=tiny_weights, tune=tune)
    stage = Stage(epochs=3, batch_size=8, schedule=Constant(lr=lr))
    train = samples(16, side=16)
    saved: list[State] = []

    def finish(**more: Any) -> dict[str, Tensor]:
        run, _ = make_run(
            train,
            model=model,
            optimizer=optimizer,
            after_epoch=lambda step, state: saved.append(copy.deepcopy(state())),
            **more,
        )
        net = run.learner("net")
        for epoch in run.epochs("training", stage, net):
            for batch in epoch.batches():
                logits = net(batch.images_BCHW)
                losses = F.cross_entropy(logits, batch.labels_B, reduction="none")
                net.step(losses.mean())
                epoch.saw(batch, logits, losses)
        return {name: value.clone() for name, value in run.weights().items()}

    whole = finish()
    resumed = finish(resume=saved[0])
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
