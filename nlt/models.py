"""Networks. B images of C channels and H x W pixels in, logits_BK out.

`build()` draws the initial weights from torch's global generators: whoever calls it seeds them.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nlt.pretrained import Preparation, load_backbone, origin, preparation
from nlt.settings import BadInput, Settings


class CNN9(Settings):
    """The 9-layer CNN of the paper (Figure 2), Co-teaching's (Han et al. 2018, Table 2)."""

    name: Literal["cnn9"] = "cnn9"
    width: float = Field(1.0, gt=0, le=8)
    """Factor on the number of channels of every layer; 1 is the paper's."""
    eval_dropout: bool = False
    """Keep dropout on at test time: a bug of the published code (`cnn.py`, lines 52 and 61), for `as_published`."""

    def __str__(self) -> str:
        return f"{self.name} width {self.width:g}" + (", dropout at test time" if self.eval_dropout else "")

    def build(self, C: int, H: int, W: int, K: int) -> nn.Module:
        """Return the network.

        Raises:
            BadInput: the images are smaller than 4 x 4 pixels.
        """
        if min(H, W) < 4:
            raise BadInput(f"model cnn9 needs images of at least 4 x 4 pixels, the data has {H} x {W}: set image_size.")
        return CNN9Network(C, min(H, W), K, self.width, self.eval_dropout)


class CNN9Network(nn.Module):
    """3 x [conv, batch norm, leaky ReLU] - pool, dropout - 3 x [...] - pool, dropout - 3 x [...] - mean - linear."""

    def __init__(self, C: int, side: int, K: int, width: float, eval_dropout: bool) -> None:
        super().__init__()
        widths = [max(1, round(width * w)) for w in (128, 128, 128, 256, 256, 256, 512, 256, 128)]
        # The last three convolutions are unpadded; where the pooled image (side / 4) is under 7 pixels nothing would
        # be left after them (8 x 8 digits), so there they are padded.
        last = 0 if side // 4 >= 7 else 1
        layers = [
            nn.Conv2d(c_in, c_out, 3, padding=1 if i < 6 else last)
            for i, (c_in, c_out) in enumerate(zip([C, *widths], widths, strict=False))
        ]
        self.convs = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths)
        self.linear = nn.Linear(widths[-1], K)
        self.eval_dropout = eval_dropout

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BK."""
        x = images_BCHW
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), start=1):
            x = norm(conv(x))
            if i in (3, 6):
                # The pool before the activation instead of after it: the maximum is the same, as leaky ReLU ascends,
                # and a quarter of the numbers is left to it.
                x = F.max_pool2d(x, 2)
            x = F.leaky_relu(x, 0.01, inplace=True)
            if i in (3, 6):
                # Whole channels are dropped, as in Co-teaching's code (`dropout2d`) and the authors'.
                x = F.dropout2d(x, 0.25, training=self.training or self.eval_dropout)
        logits_BK: Tensor = self.linear(x.mean((2, 3)))
        return logits_BK


class ResNet18(Settings):
    """torchvision's ResNet-18 with the CIFAR stem: a 3x3 convolution of stride 1, no max pool (He et al. 2016, 4.2)."""

    name: Literal["resnet18"] = "resnet18"

    def __str__(self) -> str:
        return self.name

    def build(self, C: int, H: int, W: int, K: int) -> nn.Module:
        """Return the network with freshly drawn weights."""
        # torchvision takes seconds to import; CNN9 does without it.
        from torchvision.models import resnet18  # type: ignore[import-untyped]

        return _cifar_stem(resnet18(num_classes=K), C)


class ResNet34(Settings):
    """torchvision's ResNet-34 with the CIFAR stem: a 3x3 convolution of stride 1, no max pool (He et al. 2016, 4.2)."""

    name: Literal["resnet34"] = "resnet34"

    def __str__(self) -> str:
        return self.name

    def build(self, C: int, H: int, W: int, K: int) -> nn.Module:
        """Return the network with freshly drawn weights."""
        from torchvision.models import resnet34

        return _cifar_stem(resnet34(num_classes=K), C)


def _cifar_stem(network: nn.Module, C: int) -> nn.Module:
    network.conv1 = nn.Conv2d(C, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision draws its own
    network.maxpool = nn.Identity()
    return network


class PreActResNet18(Settings):
    """The pre-activation ResNet-18 of DivideMix, ELR and others on CIFAR (He et al. 2016b, Identity Mappings).

    As the paper has it an activation follows the last block, which those authors' code leaves out (1,024 parameters).
    """

    name: Literal["preact_resnet18"] = "preact_resnet18"

    def __str__(self) -> str:
        return self.name

    def build(self, C: int, H: int, W: int, K: int) -> nn.Module:
        """Return the network with freshly drawn weights."""
        return PreActNetwork(C, K, stem=64, widths=(64, 128, 256, 512), blocks=2)


class WRN28x2(Settings):
    """The wide ResNet of 28 layers, twice as wide (Zagoruyko & Komodakis 2016, Table 1), without dropout.

    FixMatch's has leaky activations and slower batch-norm statistics; this one is the paper's.
    """

    name: Literal["wrn28_2"] = "wrn28_2"

    def __str__(self) -> str:
        return self.name

    def build(self, C: int, H: int, W: int, K: int) -> nn.Module:
        """Return the network with freshly drawn weights."""
        return PreActNetwork(C, K, stem=16, widths=(32, 64, 128), blocks=4)


class PreActNetwork(nn.Module):
    """3x3 stem - stages of pre-activation blocks, each but the first at half the resolution - BN, ReLU - mean - linear.

    He et al. 2016b for small images: no max pool, the stem of stride 1.
    """

    def __init__(self, C: int, K: int, stem: int, widths: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(C, stem, 3, padding=1, bias=False)
        ins = [stem, *(width for width in widths for _ in range(blocks))]
        strides = [2 if stage and not i else 1 for stage in range(len(widths)) for i in range(blocks)]
        self.blocks = nn.Sequential(*map(PreActBlock, ins, ins[1:], strides))
        self.norm, self.linear = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], K)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, equation 14
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BK."""
        x = F.relu(self.norm(self.blocks(self.stem(images_BCHW))))
        logits_BK: Tensor = self.linear(x.mean((2, 3)))
        return logits_BK


class PreActBlock(nn.Module):
    """BN, ReLU, 3x3 - BN, ReLU, 3x3, added to the input, or to a 1x1 of the activated input where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(c_in), nn.BatchNorm2d(c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False) if (c_in, stride) != (c_out, 1) else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the input's shortcut and what the block makes of it."""
        activated = F.relu(self.norm1(x))
        kept: Tensor = x if self.shortcut is None else self.shortcut(activated)
        added: Tensor = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return kept + added


class Timm(Settings):
    """An image network of timm with pretrained weights and a new linear head; all is trained, or the head alone.

    Batch norm keeps the statistics that came with the weights: those of small batches, few epochs long, would undo what
    was learned from a million images (lite0, 4,800 images of CIFAR-4 at 96 pixels, AdamW: accuracy .83, with batch
    statistics .74).

    The weights are outside knowledge: runs with them stand beside runs from scratch under a tag that says so.
    """

    name: Literal["timm"] = "timm"
    architecture: str = Field("lite0", min_length=1, max_length=200)
    """timm's name, with the tag of its weights or without; `lite0`, the default, is `tf_efficientnet_lite0` with the
    ImageNet weights that come with nlt."""
    weights: str | None = None
    """A file: safetensors, or a pickle that holds tensors alone. By default the hub's, from its cache if they are
    there; HF_HUB_OFFLINE=1 forbids downloads."""
    tune: Literal["all", "head"] = "all"
    """`all`: every weight is trained, AdamW at a learning rate of 0.0005, say; `head`: the linear layer alone, on a
    network that stays as it is."""
    image_size: int | None = Field(None, ge=1, le=4096)
    """Side in pixels to which images are resized inside the network; by default they stay as they are, unless the
    network takes one side only. Pretrained networks see small images better enlarged: 128, say."""

    def __str__(self) -> str:
        return f"{self.name} {self.architecture}, {'fine-tuned' if self.tune == 'all' else 'linear head'}"

    @property
    def outside_weights(self) -> str | None:
        """Where the weights come from, in words."""
        return origin(self.architecture, self.weights)

    def build(self, C: int, H: int, W: int, K: int) -> nn.Module:
        """Return the network, its head freshly drawn; on the meta device no weights are read.

        Raises:
            BadInput: there is no such network, it cannot take these images, or its weights cannot be had.
        """
        if C not in (1, 3):
            raise BadInput(f"model timm takes images of 1 or 3 channels, the data has {C}.")
        prepared = preparation(self.architecture)
        side = prepared.image_size if prepared.fixed and self.image_size is None else self.image_size
        if side is not None:
            prepared.check_side(self.architecture, side)
        backbone = load_backbone(self.architecture, self.weights)
        D = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]
        return TimmNetwork(backbone, nn.Linear(D, K), prepared, side, self.tune == "head")


class TimmNetwork(nn.Module):
    """Resize, normalize as the weights expect it, pretrained network, linear head."""

    def __init__(
        self, backbone: nn.Module, head: nn.Linear, prepared: Preparation, side: int | None, frozen: bool
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.prepared, self.side, self.frozen = prepared, side, frozen
        backbone.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "TimmNetwork":
        """Set the mode; a frozen network stays in eval mode, and so does batch norm in one that is trained."""
        super().train(mode)
        for module in self.backbone.modules():
            if self.frozen or isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BK."""
        x = images_BCHW.expand(-1, 3, -1, -1)  # grey: the same in all three channels
        if self.side is not None and x.shape[2:] != (self.side, self.side):
            size = (self.side, self.side)
            # Antialiased, bicubic is Pillow's; without it the kernel is another one.
            x = F.interpolate(x, size, mode=self.prepared.interpolation, antialias=True).clamp(0, 1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features_BD = self.backbone(self.prepared.normalize(x))
        logits_BK: Tensor = self.head(features_BD)
        return logits_BK


def last_linear(network: nn.Module) -> nn.Linear:
    """Return the layer that makes the logits: of the linear layers of a network of this file the one defined last.

    What goes into it are the penultimate features. `tests/test_embed.py` holds this for every model of the union.

    Raises:
        RuntimeError: the network has no linear layer.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise RuntimeError(f"{type(network).__name__} has no linear layer, so nobody knows what its features are")
    return layers[-1]


Model = Annotated[CNN9 | ResNet18 | ResNet34 | PreActResNet18 | WRN28x2 | Timm, Field(discriminator="name")]
