"""What a method is handed: given labels, learners, randomness, epochs that resume, and a place to report.

N training samples, K classes. A method sees nothing else: the clean labels, the kind of noise and its true rate stay
behind `report`, which is the only place that evaluates and logs.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nlt.augment import CropFlipCutout
from nlt.checkpoint import State
from nlt.data import Samples
from nlt.detect import auc, mask_quality
from nlt.models import Model
from nlt.optim import SGD
from nlt.train import Batches, Learner, evaluate


@dataclass(frozen=True)
class Epoch:
    """What became known in one epoch; everything lies on the CPU."""

    step: int
    """Counted through all stages from 1."""
    steps: int
    """How many there will be in all."""
    stage: str
    """The stage's name, as the method gave it."""
    t: int
    """Counted within the stage from 1."""
    metrics: dict[str, float]
    """By their MLflow names."""
    losses_N: Tensor
    """float32, NaN for samples that were left out."""
    keep_N: Tensor | None
    """The mask, in epochs that detect."""
    scores_N: Tensor | None
    """The scores behind the mask: the higher, the more suspicious."""


class Split:
    """Samples on the training device. `wrong_N` (given label is not the true one) is None where nobody knows."""

    def __init__(self, samples: Samples, device: torch.device):
        self.images_NHWC = samples.images_NCHW.permute(0, 2, 3, 1).contiguous().to(device)
        self.labels_N = samples.labels_N.to(device)
        self.wrong_N = samples.wrong_N


@dataclass(frozen=True)
class BestVal:
    """The weights with which a stage reached its highest validation accuracy, the first of equals."""

    accuracy: float
    weights: dict[str, Tensor]


class Run:
    """One training run of one method with one seed.

    What a method registers (learners, buffers) is saved after each epoch. After an interruption the method starts from
    the top: stages that were over yield nothing, and when the one in progress begins, all that was registered until
    then takes its saved state. So what stands between two stages may run once more, and what a later stage needs of an
    earlier one has to be registered, and updated in place.
    """

    def __init__(
        self,
        *,
        train: Samples,
        val: Samples | None,
        test: Samples,
        K: int,
        model: Model,
        optimizer: SGD,
        seed: int,
        device: torch.device,
        precision: Literal["fp32", "bf16"],
        evaluate_before: bool,
        on_epoch: Callable[[Epoch], None],
        after_epoch: Callable[[int, Callable[[], State]], None] = lambda step, state: None,
        augmentation: CropFlipCutout | None = None,
        compiled: bool = False,
        resume: State | None = None,
        steps: int,
    ):
        self.N, self.K, self.device = len(train), K, device
        self.learners: dict[str, Learner] = {}
        self.buffers: dict[str, Tensor] = {}
        self.step = 0
        """Epochs reported so far, through all stages."""
        self.best_val: BestVal | None = None
        """Of the stage in progress, or the last one; None without a validation split."""
        self.pending = resume
        """The state to go on from, until the stage that it belongs to begins."""
        self._train = Split(train, device)
        self._held_out = {name: Split(s, device) for name, s in (("val", val), ("test", test)) if s is not None}
        self._model, self._optimizer, self._precision, self._compiled = model, optimizer, precision, compiled
        self._evaluate_before, self._on_epoch, self._steps = evaluate_before, on_epoch, steps
        self._after_epoch, self._augmentation = after_epoch, augmentation
        self._stages: set[str] = set()
        # Initial weights and dropout draw from torch's global generators (nn.Module offers no other), the order of
        # the samples, and what augmentation draws, from one of its own, on the CPU: the same on every device.
        global_seed, order_seed = np.random.SeedSequence(seed).generate_state(2, np.uint64).tolist()
        torch.manual_seed(global_seed)
        self._order = torch.Generator().manual_seed(order_seed)

    def learner(self, name: str) -> Learner:
        """Return a learner with freshly drawn weights of the experiment's model, registered under `name`."""
        _, H, W, C = self._train.images_NHWC.shape
        network = self._model.build(C, H, W, self.K)
        self.learners[name] = Learner(network, self._optimizer, self.device, self._precision, self._compiled)
        return self.learners[name]

    def buffer(self, name: str, tensor: Tensor) -> Tensor:
        """Return `tensor` on the training device, registered under `name`: write into it, do not replace it."""
        self.buffers[name] = tensor.to(self.device)
        return self.buffers[name]

    def batches(self, size: int, keep_N: Tensor | None = None) -> Batches:
        """Return the next epoch's batches: all samples, or the kept ones, in a newly drawn order."""
        rows_M = torch.randperm(self.N, generator=self._order).to(self.device)
        if keep_N is not None:
            rows_M = rows_M[keep_N[rows_M]]
        batches = Batches(self._train.images_NHWC, self._train.labels_N, rows_M, size)
        return batches if self._augmentation is None else batches.augmented(self._augmentation, self._order)

    def epochs(self, stage: str, epochs: int, net: Learner) -> Iterator[int]:
        """Yield t = 1 .. epochs; `net` is the learner whose accuracy is reported. The body must call `report` once.

        After an interruption: nothing if the stage was over, else from the epoch that follows the saved one.
        """
        if stage in self._stages:
            raise RuntimeError(f"two stages are called {stage!r}: a checkpoint could not tell them apart")
        self._stages.add(stage)
        self.net, first = net, 1
        if self.pending is None:
            self.best_val = None
        elif self.pending["stage"] != stage:
            return
        else:
            first = self.pending["t"] + 1
            self._load(self.pending)
            self.pending = None
        for t in range(first, epochs + 1):
            self._stage, self._t, step = stage, t, self.step + 1
            self._accuracies = self._evaluate() if self._evaluate_before else {}
            self._began = time.perf_counter()
            yield t
            if self.step != step:
                raise RuntimeError(f"stage {stage!r} must call run.report(...) exactly once in each epoch")
            self._after_epoch(step, self._state)

    def _state(self) -> State:
        """Return all that decides how the run goes on."""
        generators = {"order": self._order.get_state(), "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "stage": self._stage,
            "t": self._t,
            "step": self.step,
            "learners": {name: learner.state() for name, learner in self.learners.items()},
            "buffers": self.buffers,
            "generators": generators,
            "best_val": None if self.best_val is None else vars(self.best_val),
        }

    def _load(self, state: State) -> None:
        self.step = state["step"]
        for name, learner_state in state["learners"].items():
            self.learners[name].load(learner_state)
        for name, tensor in state["buffers"].items():
            self.buffers[name].copy_(tensor)
        self.best_val = None if state["best_val"] is None else BestVal(**state["best_val"])
        self._order.set_state(state["generators"]["order"])
        torch.set_rng_state(state["generators"]["torch"])
        if self.device.type == "cuda" and "cuda" in state["generators"]:
            torch.cuda.set_rng_state(state["generators"]["cuda"], self.device)

    def report(self, *, losses_N: Tensor, keep_N: Tensor | None = None, scores_N: Tensor | None = None) -> None:
        """Measure and log the epoch that is ending.

        Args:
            losses_N: per-sample losses, NaN for samples that were left out.
            keep_N: the mask, if this epoch detects wrong labels.
            scores_N: the scores behind it, the higher, the more suspicious.
        """
        losses_N = losses_N.to("cpu", torch.float32, copy=True)  # waits for the device, so the clock below is true
        seconds = time.perf_counter() - self._began
        visited_N = losses_N.isfinite()
        metrics = {
            "train/loss": float(losses_N[visited_N].double().mean()),
            "train/accuracy": float(self.net.train_accuracy),
            **(self._accuracies or self._evaluate()),
            "optim/lr": self.net.lr,
            "time/epoch_seconds": seconds,
            "time/images_per_second": int(visited_N.sum()) / seconds,
        }
        # Copies, since a method goes on writing into its own tensors.
        keep_N = None if keep_N is None else keep_N.to("cpu", copy=True)
        scores_N = None if scores_N is None else scores_N.to("cpu", torch.float32, copy=True)
        if self._train.wrong_N is not None and keep_N is not None:
            metrics |= mask_quality(keep_N, self._train.wrong_N)
            if scores_N is not None and (area := auc(scores_N, self._train.wrong_N)) is not None:
                metrics["noise/auc"] = area
        self.step += 1
        self._on_epoch(Epoch(self.step, self._steps, self._stage, self._t, metrics, losses_N, keep_N, scores_N))

    def _evaluate(self) -> dict[str, float]:
        accuracies = {
            f"{name}/accuracy": evaluate(self.net, split.images_NHWC, split.labels_N)
            for name, split in self._held_out.items()
        }
        val = accuracies.get("val/accuracy")
        if val is not None and (self.best_val is None or val > self.best_val.accuracy):
            weights = {name: value.detach().clone() for name, value in self.net.network.state_dict().items()}
            self.best_val = BestVal(val, weights)
        return accuracies
