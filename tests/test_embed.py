"""Penultimate features: of every network of the union the input of its last linear layer, in evaluation mode.

N images, D features, K classes.
"""

from typing import Any, get_args

import pytest
import torch
from conftest import Net, make_learner, make_run, samples
from test_pretrained import TINY, weights_of
from torch import Tensor, nn

from nlt.models import CNN9, Model, Timm, last_linear
from nlt.optim import SGD
from nlt.train import EVALUATION_BATCH, Learner, embed, predict

K = 5
SMALL = {"cnn9": CNN9(width=0.05), "timm": Timm(architecture=TINY)}  # the others take their defaults
KINDS = {get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(get_args(Model)[0])}


def network_of(name: str, C: int = 3, side: int = 8) -> nn.Module:
    torch.manual_seed(0)
    model: Any = SMALL.get(name) or KINDS[name]()
    network: nn.Module = model.build(C, side, side, K)
    return network


def pixels(N: int, C: int = 3, side: int = 8) -> Tensor:
    return torch.randint(0, 256, (N, side, side, C), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def without_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's test network comes without weights here: they are drawn."""
    import timm

    network = timm.create_model(TINY, num_classes=0)
    network.load_state_dict(weights_of(classes=0))
    monkeypatch.setattr("nlt.models.load_backbone", lambda architecture, weights: network)


@pytest.mark.parametrize(("name", "precision"), [*((name, "fp32") for name in KINDS), *((n, "bf16") for n in SMALL)])
def test_the_last_linear_layer_makes_the_logits_of_the_features(name: str, precision: Any) -> None:
    net = Learner(network_of(name), SGD(), torch.device("cpu"), precision)
    images_NHWC = pixels(3)
    head = last_linear(net.network)
    z_ND = embed(net, images_NHWC)
    assert z_ND.dtype == torch.float32
    assert z_ND.shape == (3, head.in_features)
    assert not z_ND.requires_grad
    expected_NK = (z_ND @ head.weight.T + head.bias).log_softmax(1)
    rough = {"atol": 0.05, "rtol": 0.05} if precision == "bf16" else {}
    torch.testing.assert_close(predict([net], images_NHWC), expected_NK.detach(), **rough)


def test_features_by_hand_in_order_through_several_parts() -> None:
    """The linear network's features are the pixels, divided by 255."""
    N = 2 * EVALUATION_BATCH["cpu"] + 3
    train = samples(N)
    run, _ = make_run(train)
    z_ND = run.embed(run.learner("net"))
    torch.testing.assert_close(z_ND, train.images_NCHW.flatten(1) / 255)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_batch_norm_stays_and_the_mode_and_hooks_are_as_before(training: bool) -> None:
    net = make_learner(network_of("cnn9"))
    net.network.train(training)
    before = {name: value.clone() for name, value in net.network.state_dict().items()}
    first_ND, second_ND = embed(net, pixels(6)), embed(net, pixels(6))
    assert torch.equal(first_ND, second_ND)
    assert all(torch.equal(value, before[name]) for name, value in net.network.state_dict().items())
    assert net.network.training is training
    assert not last_linear(net.network)._forward_pre_hooks
    alone_ND = embed(net, pixels(6)[:1])  # of a batch of one: no statistics of the batch
    torch.testing.assert_close(alone_ND, first_ND[:1])


def test_a_compiled_learner_embeds_with_whole_training_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled network would never call the hook; it is for training alone."""

    def compiled(network: nn.Module, **settings: Any) -> Any:
        return lambda images_BCHW: pytest.fail("the compiled network was asked for features")

    monkeypatch.setattr(torch, "compile", compiled)
    net = Learner(Net(4, K), SGD(), torch.device("cpu"), "fp32", compiled=True)
    net.batch_size = 3
    images_NHWC = pixels(3, C=1, side=2)
    torch.testing.assert_close(embed(net, images_NHWC), images_NHWC.flatten(1) / 255)
    assert net.network.training


def test_a_network_without_a_linear_layer_is_named() -> None:
    with pytest.raises(RuntimeError, match="Conv2d has no linear layer"):
        last_linear(nn.Conv2d(1, 1, 1))


def test_of_several_linear_layers_the_last_one_is_the_head() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, K))
    assert last_linear(network) is network[3]
    images_NHWC = pixels(2, C=1, side=2)
    expected_ND = network[:3](images_NHWC.flatten(1) / 255).detach()
    torch.testing.assert_close(embed(make_learner(network), images_NHWC), expected_ND)
