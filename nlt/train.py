"""The one training loop: a learner takes steps, an epoch hands out batches and is told what came of them.

N training samples, B of them in a batch, M of them in an epoch; C channels, K classes. Images lie as uint8 on the
training device (rows of `images_NHWC`) and turn into float batches in [0, 1] there. Inside an epoch nothing waits for
the device: no `.item()`, no `if tensor`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from nlt.augment import Augmentation
from nlt.checkpoint import State
from nlt.losses import CE, Loss, expected
from nlt.models import last_linear
from nlt.optim import Optimizer, Schedule, Step
from nlt.settings import Settings

# Images at a time where no gradient is kept; changes no result beyond rounding. On a CPU what fits into its caches:
# CNN9 at a quarter of the width evaluates 1.5 times as many images per second as at 500.
EVALUATION_BATCH = {"cpu": 125, "cuda": 1000}


class Stage(Settings):
    """A stretch of epochs with one batch size, loss and learning-rate schedule."""

    epochs: int = Field(100, ge=1, le=100_000)
    """Number of epochs."""
    batch_size: int = Field(128, ge=1, le=1_000_000)
    """Samples per optimizer step: 128 in the authors' code (`main.py`, lines 81, 86), 16 in its stage 2 (131)."""
    loss: Loss = CE()
    """Per-sample loss; its mean over the batch is minimized."""
    schedule: Schedule = Step()
    """Learning rate of each epoch of this stage."""


def _cross_entropy(stage: Stage) -> Stage:
    if not isinstance(stage.loss, CE):
        raise ValueError("loss must be ce: labels are mixed, and other losses take one label a sample")
    return stage


CrossEntropyStage = Annotated[Stage, AfterValidator(_cross_entropy)]
"""Of a method whose targets are class probabilities."""


class Diverged(Exception):
    """A per-sample loss or a feature was not finite: the run has failed."""


class Learner:
    """A network, its optimizer, and the learning rate in force, on one device at one precision."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        device: torch.device,
        precision: Literal["fp32", "bf16"],
        compiled: bool = False,
    ):
        # Channels-last: 1.2 to 1.8 times the images per second of the default format for CNN9 on CPUs and GPUs.
        self.network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Parameters and batch-norm statistics; how many batches each batch norm has seen. They stay where they are.
        tensors = list(self.network.state_dict().values())
        self._weights = [tensor for tensor in tensors if tensor.is_floating_point()]
        self._counters = [tensor for tensor in tensors if not tensor.is_floating_point()]
        self.device, self.lr = device, 0.0
        self.images_seen = 0
        """Images in the forward passes that its steps went back through, each view of an image being one."""
        self._forward = 0
        self.batch_size: int | None = None
        """Of the stage: the compiled network is for whole training batches, others would be compiled by themselves."""
        self._settings = optimizer
        self._autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
        # Dropout draws what it draws without compilation. On a GPU forward and backward are a CUDA graph each.
        options: dict[str, str | int | bool | Callable[..., object]] = {
            "fallback_random": True,
            "triton.cudagraphs": device.type == "cuda",
        }
        self._compiled = torch.compile(self.network, dynamic=False, options=options) if compiled else None
        self.new_optimizer()

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BK, float32 whatever the precision of the network."""
        # DivideMix's steps are on four times as many images as a batch.
        whole = self.network.training and self.batch_size is not None and len(images_BCHW) % self.batch_size == 0
        network = self._compiled if self._compiled is not None and whole else self.network
        if torch.is_grad_enabled():
            self._forward += len(images_BCHW)
        with self._autocast:
            logits_BK: Tensor = network(images_BCHW)
        return logits_BK.float()

    @torch.no_grad()
    def judge(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BK in evaluation mode, without a gradient; the network is left in the mode it was in."""
        mode = self.network.training
        self.network.eval()
        logits_BK = self(images_BCHW)
        self.network.train(mode)
        return logits_BK

    def step(self, loss: Tensor) -> None:
        """Take one optimizer step down the gradient of `loss`, a scalar."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.images_seen += self._forward
        self._forward = 0

    def new_optimizer(self) -> None:
        """Forget the momentum (AdamW's moments), as the authors' code does at the beginning of each stage."""
        self.optimizer = self._settings.build(self.network)
        self.set_lr(self.lr)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the steps to come; `run.epochs` does it for each epoch."""
        self.lr = lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def copy_weights(self, other: "Learner") -> None:
        """Take over another learner's parameters and batch-norm statistics."""
        self.network.load_state_dict(other.network.state_dict())

    @torch.no_grad()
    def follow(self, other: "Learner", memory: float) -> None:
        """Move towards another learner: memory * own + (1 - memory) * other, batch-norm statistics too.

        After each of the other's steps this learner is the exponential moving average of its weights.

        Args:
            other: of the same architecture.
            memory: in [0, 1]; 0.999, say.
        """
        torch._foreach_lerp_(self._weights, other._weights, 1 - memory)  # one call, not one for each tensor
        if self._counters:
            torch._foreach_copy_(self._counters, other._counters)

    def state(self) -> State:
        """Return all that training changes, for a checkpoint."""
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "lr": self.lr}
        return state | {"images_seen": self.images_seen}

    def load(self, state: State) -> None:
        """Take over what `state` returned once."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr, self.images_seen = state["lr"], state.get("images_seen", 0)  # 0: of an older version


@dataclass(frozen=True)
class Batch:
    """Some training samples, and a view of their images for each augmentation that was asked for."""

    rows_B: Tensor
    """Which samples, int64: rows of every tensor of N rows."""
    labels_B: Tensor
    """Their given labels, int64 in [0, K)."""
    views: tuple[Tensor, ...]
    """Of each view images_BCHW, float32 in [0, 1]."""

    @property
    def images_BCHW(self) -> Tensor:  # noqa: N802  # a tensor carries its shape as a suffix
        """The first view."""
        return self.views[0]


class Epoch:
    """One epoch of a stage: it hands out batches, is told what came of each (`saw`), and may hear more (`report`)."""

    def __init__(
        self,
        images_NHWC: Tensor,
        labels_N: Tensor,
        batch_size: int,
        generator: torch.Generator,
        augmentation: Augmentation | None = None,
        t: int = 1,
    ):
        """Begin an epoch.

        Args:
            images_NHWC: uint8, on the training device.
            labels_N: the given labels, int64, on the training device.
            batch_size: samples in a batch.
            generator: on the CPU, of the order of the samples and of what augmentation draws.
            augmentation: of the images of a batch, unless `batches` is asked for other views.
            t: the epoch's number within its stage, from 1.
        """
        self.t, self.batch_size = t, batch_size
        self.losses_N = torch.full_like(labels_N, torch.nan, dtype=torch.float32)
        """Each sample's loss when it was last seen, float32; NaN for samples that were not seen."""
        # How often a sample's loss was not finite: one that is seen again may have a finite one then.
        self._bad_N = torch.zeros_like(labels_N, dtype=torch.int32)
        self.seen_N = torch.zeros_like(labels_N, dtype=torch.bool)
        """True where a sample was seen."""
        self.reported: dict[str, Tensor] = {}
        """What `report` was given of `scores_N`, `keep_N` and `labels_N`."""
        self.metrics: dict[str, float | Tensor] = {}
        """What `report` was given besides."""
        self._images_NHWC, self._labels_N = images_NHWC, labels_N
        self._generator, self._augmentation = generator, augmentation
        self._hits = torch.zeros((), dtype=torch.int64, device=labels_N.device)
        self._samples = self._handed_out = self._seen = 0

    def batches(
        self,
        keep_N: Tensor | None = None,
        *,
        times_N: Tensor | None = None,
        views: tuple[Augmentation | None, ...] | None = None,
    ) -> Iterator[Batch]:
        """Return batches of all samples, or the kept ones, in a newly drawn order. Each has to be `saw` afterwards.

        Args:
            keep_N: bool, True for the samples that take part; by default all.
            times_N: int64 >= 0, instead of keep_N: how often each sample comes; see `equally_often`. Of one that
                comes more than once its last batch's loss is noted.
            views: an augmentation for each view of a batch's images, None for the images as they are; by default one
                view, with the experiment's augmentation.
        """
        device = self._labels_N.device
        for name, value, dtype in (("keep_N", keep_N, torch.bool), ("times_N", times_N, torch.int64)):
            if value is not None:
                self._check(name, value, dtype)
        if keep_N is not None and times_N is not None:
            raise RuntimeError("keep_N or times_N, not both: a sample that is left out comes 0 times")
        rows_M = torch.arange(len(self._labels_N))
        if times_N is not None:
            rows_M = rows_M.repeat_interleave(times_N.cpu())
        rows_M = rows_M[torch.randperm(len(rows_M), generator=self._generator)]
        if keep_N is not None:
            rows_M = rows_M[keep_N.cpu()[rows_M]]  # waits for the device unless the mask lies on the CPU
        rows_M = rows_M.to(device, non_blocking=True)  # a copy of pageable memory is safe without waiting
        _, H, W, _ = self._images_NHWC.shape
        wanted = (self._augmentation,) if views is None else views
        if not wanted:
            raise RuntimeError("views is empty: a batch has at least one view, None for the images as they are")
        for augmentation in wanted:
            if augmentation is not None:
                augmentation.check(H, W)
        # All is drawn here, not batch by batch: what a method draws meanwhile does not come in between.
        draws = [
            None if a is None else a.draw(len(rows_M), H, W, self._generator).to(device, non_blocking=True)
            for a in wanted
        ]
        return self._hand_out(rows_M, wanted, draws)

    def pairs(
        self, keep_N: Tensor, *, views: tuple[Augmentation | None, ...] | None = None
    ) -> Iterator[tuple[Batch, Batch]]:
        """Yield batches of the kept samples, each beside one of the others. Both have to be `saw` afterwards.

        The kept samples come once each. The others begin again, in a newly drawn order, whenever they run out, and stop
        with the kept ones: some of them may not come, or all several times. If all samples are kept, or none, the part
        that would be empty is made of all samples.

        Args:
            keep_N: bool; one on the CPU does not make this wait for the device.
            views: as those of `batches`.
        """
        self._check("keep_N", keep_N, torch.bool)
        keep_N = keep_N.cpu()
        kept_N, rest_N = (part_N if part_N.any() else ~part_N for part_N in (keep_N, ~keep_N))
        others = self.batches(rest_N, views=views)
        for batch in self.batches(kept_N, views=views):
            other = next(others, None)
            if other is None:
                others = self.batches(rest_N, views=views)
                other = next(others)
            yield batch, other

    def _hand_out(
        self, rows_M: Tensor, views: tuple[Augmentation | None, ...], draws: list[Tensor | None]
    ) -> Iterator[Batch]:
        parts = list(rows_M.split(self.batch_size)) if len(rows_M) else []
        if len(parts) > 1 and len(parts[-1]) == 1:
            # Batch norm cannot take a single sample where the last feature map is 1 x 1: it joins the batch before.
            parts[-2:] = [torch.cat(parts[-2:])]
        begin = 0
        for rows_B in parts:
            images = []
            for augmentation, draws_M5 in zip(views, draws, strict=True):
                if augmentation is None or draws_M5 is None:
                    images_BHWC = self._images_NHWC[rows_B]
                else:
                    draws_B5 = draws_M5[begin : begin + len(rows_B)]
                    images_BHWC = augmentation.take(self._images_NHWC, rows_B, draws_B5)
                images.append(to_float(images_BHWC))
            begin += len(rows_B)
            self._handed_out += 1
            yield Batch(rows_B, self._labels_N[rows_B], tuple(images))

    def saw(self, batch: Batch, logits_BK: Tensor, losses_B: Tensor) -> None:
        """Note what came of a batch: its losses, and how many of its samples met their given label.

        Args:
            batch: from `batches`.
            logits_BK: the network's, or the sum of several networks'.
            losses_B: one loss per sample. One that is not finite fails the run when the epoch ends.
        """
        B = len(batch.rows_B)
        if losses_B.shape != (B,) or len(logits_BK) != B:
            raise RuntimeError(
                f"epoch.saw: a batch of {B} samples has a loss and a row of logits for each, found losses of shape "
                f"{tuple(losses_B.shape)} and logits of shape {tuple(logits_BK.shape)}"
            )
        losses_B = losses_B.detach().float()
        # As `losses_N[rows_B] = losses_B`, but of a sample that is in the batch twice the larger one on every device.
        self.losses_N.scatter_reduce_(0, batch.rows_B, losses_B, "amax", include_self=False)
        self._bad_N.index_add_(0, batch.rows_B, (~losses_B.isfinite()).int())
        self.seen_N.index_fill_(0, batch.rows_B, True)  # `seen_N[rows_B] = True` would wait for a GPU
        self._hits += (logits_BK.argmax(1) == batch.labels_B).sum()
        self._samples += len(batch.rows_B)
        self._seen += 1

    def report(
        self,
        *,
        scores_N: Tensor | None = None,
        keep_N: Tensor | None = None,
        labels_N: Tensor | None = None,
        **metrics: float | Tensor,
    ) -> None:
        """Say more of this epoch, all of it optional.

        Args:
            scores_N: how suspicious each sample is: the higher, the more.
            keep_N: bool, False where a sample is taken for wrongly labelled.
            labels_N: int64, the labels that the method now believes, where it has changed some.
            metrics: the method's own, a number each; logged as `method/NAME`.
        """
        given = (("scores_N", scores_N, None), ("keep_N", keep_N, torch.bool), ("labels_N", labels_N, torch.int64))
        # Copies, since a method goes on writing into its own tensors.
        for name, value, dtype in given:
            if value is not None:
                self._check(name, value, dtype)
                self.reported[name] = value.detach().clone()
        self.metrics |= {name: value.clone() if isinstance(value, Tensor) else value for name, value in metrics.items()}

    def _check(self, name: str, value: Tensor, dtype: torch.dtype | None) -> None:
        """Raise RuntimeError if what a method hands over is not one value per sample; without a dtype: floats."""
        N = len(self._labels_N)
        fits = isinstance(value, Tensor) and value.shape == (N,)
        if not fits or (value.dtype != dtype if dtype else not value.is_floating_point()):
            found = (
                f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            wanted = str(dtype or "floats").removeprefix("torch.")
            raise RuntimeError(f"{name} must be a tensor of {wanted}, one for each of {N} samples, found {found}")

    def accuracy(self) -> float:
        """Return the share of the samples seen whose most probable class was their given label, in [0, 1].

        Raises:
            RuntimeError: the method has trained on nothing, or kept to itself what came of a batch.
            Diverged: a loss was not finite.
        """
        if self._handed_out != self._seen:
            raise RuntimeError(
                f"epoch {self.t}: {self._handed_out} batches were handed out and {self._seen} seen: the method must "
                "call epoch.saw(batch, logits, losses) once for each"
            )
        if not self._samples:
            raise RuntimeError(f"epoch {self.t}: no sample was trained on: call epoch.batches(), and keep some samples")
        M, bad, hits = torch.stack(
            [self.seen_N.sum(), (self._bad_N > 0).sum(), self._hits]
        ).tolist()  # the one wait for the device
        if bad:
            raise Diverged(f"the loss of {bad} of {M} samples is not finite")
        return float(hits / self._samples)


def to_float(images_BHWC: Tensor) -> Tensor:
    """Turn uint8 images into float32 in [0, 1], (B, C, H, W) in channels-last memory order."""
    return images_BHWC.permute(0, 3, 1, 2).float().div_(255)


def train_epoch(
    net: Learner,
    epoch: Epoch,
    loss: Loss,
    keep_N: Tensor | None = None,
    labels_N: Tensor | None = None,
    weights_N: Tensor | None = None,
) -> Tensor:
    """Train on each batch once, with the mean of its per-sample losses: the plain case.

    Args:
        net: what is trained.
        epoch: hands out the batches.
        loss: per sample.
        keep_N: bool, True for the samples that take part; by default all.
        labels_N: int64, the labels to learn, or float32 (N, K), how probable each class is; by default the given ones.
        weights_N: a factor on each sample's loss in the mean, which still divides by the batch's samples; by default 1.

    Returns:
        losses_N, float32: each sample's loss, without its weight, just before its batch's step, NaN for samples in no
        batch.
    """
    for batch in epoch.batches(keep_N):
        logits_BK = net(batch.images_BCHW)
        labels_B = batch.labels_B if labels_N is None else labels_N[batch.rows_B]
        losses_B = loss(logits_BK, labels_B) if labels_B.dim() == 1 else expected(loss, logits_BK, labels_B)
        net.step((losses_B if weights_N is None else weights_N[batch.rows_B] * losses_B).mean())
        epoch.saw(batch, logits_BK, losses_B)
    return epoch.losses_N


def equally_often(classes_N: Tensor, K: int, generator: torch.Generator, keep_N: Tensor | None = None) -> Tensor:
    """Return times_N, int64: how often each sample comes in an epoch of N in which all classes come equally often.

    Of a class each kept sample comes as often as the next, some of them, drawn at random, once more; N is rounded down
    to a multiple of the number of classes that have kept samples. By default, or if nothing is kept, everything is.
    """
    kept_NK = F.one_hot(classes_N, K).float()
    if keep_N is not None:
        kept_NK *= (keep_N | ~keep_N.any())[:, None]
    n_K = kept_NK.sum(0).long()
    share = len(classes_N) // (n_K > 0).sum()
    order_N = torch.randperm(len(classes_N), generator=generator).to(classes_N.device)
    place_NK = torch.zeros_like(kept_NK)
    place_NK[order_N] = kept_NK[order_N].cumsum(0)  # the kept ones of a class, numbered from 1 in a random order
    times_NK = share // n_K.clamp(min=1) + (place_NK <= share % n_K.clamp(min=1))
    return (times_NK * kept_NK).sum(1).long()


@torch.no_grad()
def predict(nets: Sequence[Learner], images_NHWC: Tensor) -> Tensor:
    """Return log_p_NK, of the mean of the networks' class probabilities, dropout off and batch norm as learned.

    The networks are left in the mode they were in.
    """
    modes = [net.network.training for net in nets]
    for net in nets:
        net.network.eval()
    parts = []
    for images_BHWC in images_NHWC.split(EVALUATION_BATCH[images_NHWC.device.type]):
        images_BCHW = to_float(images_BHWC)
        log_p_each_BK = torch.stack([net(images_BCHW).log_softmax(1) for net in nets])
        parts.append(log_p_each_BK.logsumexp(0) - math.log(len(nets)) if len(nets) > 1 else log_p_each_BK[0])
    for net, mode in zip(nets, modes, strict=True):
        net.network.train(mode)
    return torch.cat(parts)


@torch.no_grad()
def embed(net: Learner, images_NHWC: Tensor) -> Tensor:
    """Return z_ND, float32: what goes into the network's last linear layer, dropout off and batch norm as learned.

    The network is left in the mode it was in.
    """
    mode, parts = net.network.training, list[Tensor]()
    # In evaluation mode a learner takes the network as it is, never the compiled one: the hook is always called.
    hook = last_linear(net.network).register_forward_pre_hook(lambda _, inputs: parts.append(inputs[0].float()))
    net.network.eval()
    try:
        for images_BHWC in images_NHWC.split(EVALUATION_BATCH[images_NHWC.device.type]):
            net(to_float(images_BHWC))
    finally:
        hook.remove()
        net.network.train(mode)
    return torch.cat(parts)


def evaluate(nets: Sequence[Learner], images_NHWC: Tensor, labels_N: Tensor) -> float:
    """Return the share of samples to which the networks' mean prediction gives their label, in [0, 1]."""
    return int((predict(nets, images_NHWC).argmax(1) == labels_N).sum()) / len(labels_N)
