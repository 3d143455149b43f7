"""What a method is handed: given labels, learners, randomness, epochs to go through, and a place to report.

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
        self.wrong_N = None if samples.clean_N is None else (samples.clean_N != samples.labels_N)


class Run:
    """One training run of one method with one seed."""

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
        steps: int,
    ):
        self.N, self.K, self.device = len(train), K, device
        self.learners: dict[str, Learner] = {}
        self.history: list[Epoch] = []
        self._train = Split(train, device)
        self._held_out = {name: Split(s, device) for name, s in (("val", val), ("test", test)) if s is not None}
        self._model, self._optimizer, self._precision = model, optimizer, precision
        self._evaluate_before, self._on_epoch, self._steps = evaluate_before, on_epoch, steps
        # Initial weights and dropout draw from torch's global generators (nn.Module offers no other), the order of
        # the samples from one of its own, on the CPU, so that it is the same on every device.
        global_seed, order_seed = np.random.SeedSequence(seed).generate_state(2, np.uint64).tolist()
        torch.manual_seed(global_seed)
        self._order = torch.Generator().manual_seed(order_seed)

    def learner(self, name: str) -> Learner:
        """Return a learner with freshly drawn weights of the experiment's model."""
        _, H, W, C = self._train.images_NHWC.shape
        network = self._model.build(C, H, W, self.K)
        self.learners[name] = Learner(network, self._optimizer, self.device, self._precision)
        return self.learners[name]

    def batches(self, size: int, keep_N: Tensor | None = None) -> Batches:
        """Return the next epoch's batches: all samples, or the kept ones, in a newly drawn order."""
        rows_M = torch.randperm(self.N, generator=self._order).to(self.device)
        if keep_N is not None:
            rows_M = rows_M[keep_N[rows_M]]
        return Batches(self._train.images_NHWC, self._train.labels_N, rows_M, size)

    def epochs(self, stage: str, epochs: int, net: Learner) -> Iterator[int]:
        """Yield t = 1 .. epochs; `net` is the learner whose accuracy is reported. The body must call `report` once."""
        for t in range(1, epochs + 1):
            self._stage, self._t, self.net, step = stage, t, net, len(self.history) + 1
            self._accuracies = self._evaluate() if self._evaluate_before else {}
            self._began = time.perf_counter()
            yield t
            if len(self.history) != step:
                raise RuntimeError(f"stage {stage!r} must call run.report(...) exactly once in each epoch")

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
        step = len(self.history) + 1
        epoch = Epoch(step, self._steps, self._stage, self._t, metrics, losses_N, keep_N, scores_N)
        self.history.append(epoch)
        self._on_epoch(epoch)

    def _evaluate(self) -> dict[str, float]:
        return {
            f"{name}/accuracy": evaluate(self.net, split.images_NHWC, split.labels_N)
            for name, split in self._held_out.items()
        }
