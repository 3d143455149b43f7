"""What a method is handed: given labels, learners, buffers, randomness, and epochs that resume.

N training samples, K classes. A method sees nothing else: the clean labels, the kind of noise and its true rate stay
behind `Run.epochs`, which is the only place that evaluates and logs.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nlt.augment import Augmentation
from nlt.backbones import AnyBackbone
from nlt.checkpoint import State
from nlt.data import Dataset, Samples
from nlt.detect import LabelErrors, find_label_errors, mask_quality, ranking_quality
from nlt.detect.posterior import STEPS
from nlt.features import of_images
from nlt.models import Model
from nlt.optim import Optimizer
from nlt.settings import BadInput
from nlt.train import Diverged, Epoch, Learner, Stage, embed, evaluate, predict

_ANOTHER_VERSION = (
    "it was written by another version of the method: go on with that one, or begin anew with nlt launch --rerun"
)


@dataclass(frozen=True)
class Prepared:
    """An experiment with one seed, all of it resolved: what is trained, on what, and how; `nlt.prepare` makes it."""

    seed: int
    """Of the initial weights, dropout and the order of the samples."""
    device: torch.device
    precision: Literal["fp32", "bf16"]
    compiled: bool
    """Whether the network is compiled."""
    dataset: Dataset
    """The data as loaded."""
    train: Samples
    """What is trained on, corrupted labels and all."""
    val: Samples | None
    """What is held out of the training samples, corrupted labels and all."""
    test: Samples
    """What accuracy is measured on."""
    T_KK: Tensor | None
    """The noise transition matrix that was asked for; None where labels depend on more than the class."""
    empirical_T_KK: Tensor | None
    """The one that was drawn, where the clean labels are known."""
    model: Model
    optimizer: Optimizer
    augmentation: Augmentation | None
    evaluate: Literal["after", "before"]
    steps: int
    """Epochs of all stages together, if none ends early."""
    cache: Path | None = None
    """Folder that keeps features; None to keep none."""


@dataclass(frozen=True)
class EpochRecord:
    """What became known in one epoch; everything lies on the CPU."""

    step: int
    """Counted through all stages from 1."""
    steps: int
    """How many there will be in all, as far as is known: a stage may end early."""
    stage: str
    """The stage's name, as the method gave it."""
    t: int
    """Counted within the stage from 1."""
    metrics: dict[str, float]
    """By their MLflow names."""
    losses_N: Tensor
    """float32, NaN for samples that were left out."""
    keep_N: Tensor | None = None
    """The mask, in epochs that make one."""
    scores_N: Tensor | None = None
    """Scores, in epochs that have some: the higher, the more suspicious."""
    labels_N: Tensor | None = None
    """The labels that the method believes, in epochs in which it has changed some; int64."""

    @property
    def detects(self) -> bool:
        """Whether the epoch says anything of which labels are wrong."""
        return self.keep_N is not None or self.scores_N is not None


class Split:
    """Samples on the training device. `wrong_N` (given label is not the true one) is None where nobody knows."""

    def __init__(self, samples: Samples, device: torch.device):
        self.images_NHWC = samples.images_NCHW.permute(0, 2, 3, 1).contiguous().to(device)
        self.labels_N = samples.labels_N.to(device)
        self.wrong_N, self.clean_N = samples.wrong_N, samples.clean_N


@dataclass(frozen=True)
class BestVal:
    """The weights with which a stage reached its highest validation accuracy, the first of equals."""

    accuracy: float
    weights: dict[str, Tensor]
    t: int = 0
    """The epoch within the stage; 0 in earlier checkpoints, where no stage ended early."""


class Run:
    """One training run of one method with one seed.

    What a method registers (learners, buffers) is saved after each epoch. After an interruption the method starts from
    the top: stages that were over yield nothing, and when the one in progress begins, all that was registered until
    then takes its saved state. So what stands between two stages may run once more, and what a later stage needs of an
    earlier one has to be registered before the stage begins, and updated in place.
    """

    def __init__(
        self,
        prepared: Prepared,
        on_epoch: Callable[[EpochRecord], None],
        after_epoch: Callable[[int, Callable[[], State]], None] = lambda step, state: None,
        resume: State | None = None,
    ):
        """Draw all that follows from the seed.

        Args:
            prepared: what is trained, on what, and how.
            on_epoch: called after each epoch with what became known in it.
            after_epoch: called then with the number of epochs that are over, and what returns the state to save.
            resume: the state to go on from.
        """
        self.N, self.device = len(prepared.train), prepared.device
        self.classes = prepared.dataset.classes
        """Names of the K classes."""
        self.K = len(self.classes)
        self._images_NCHW = prepared.train.images_NCHW.numpy()
        self.learners: dict[str, Learner] = {}
        self.buffers: dict[str, Tensor] = {}
        self.step = 0
        """Epochs that are over, through all stages."""
        self.skipped = 0
        """Epochs that stages which ended early have not run."""
        self.best_val: BestVal | None = None
        """Of the stage in progress, or the last one; None without a validation split."""
        self.pending = resume
        """The state to go on from, until the stage that it belongs to begins."""
        self.nets: tuple[Learner, ...] = ()
        """The learners whose mean prediction is judged, of the stage in progress or the last one."""
        self._train = Split(prepared.train, self.device)
        self.labels_N = self._train.labels_N.clone()
        """The given labels, int64, on the training device; a method's own copy."""
        self.augmentation = prepared.augmentation
        """What is done to training images at random, if anything."""
        held_out = {"val": prepared.val, "test": prepared.test}
        self._held_out = {name: Split(s, self.device) for name, s in held_out.items() if s is not None}
        self._prepared, self._on_epoch, self._after_epoch = prepared, on_epoch, after_epoch
        self._stages: set[str] = set()
        self._in_stage = False
        # Initial weights and dropout draw from torch's global generators (nn.Module offers no other), the order of
        # the samples, what augmentation draws, and methods from one of its own, on the CPU: the same on every device.
        global_seed, order_seed = np.random.SeedSequence(prepared.seed).generate_state(2, np.uint64).tolist()
        torch.manual_seed(global_seed)
        self.generator = torch.Generator().manual_seed(order_seed)
        """Of all that a method draws; on the CPU, and part of each checkpoint."""

    def learner(self, name: str) -> Learner:
        """Return a learner with freshly drawn weights of the experiment's model, registered under `name`.

        Raises:
            RuntimeError: the name is taken, or a stage is in progress.
        """
        self._check_name(name)
        _, H, W, C = self._train.images_NHWC.shape
        how = self._prepared
        network = how.model.build(C, H, W, self.K)
        self.learners[name] = Learner(network, how.optimizer, self.device, how.precision, how.compiled)
        return self.learners[name]

    def buffer(self, name: str, tensor: Tensor) -> Tensor:
        """Return a copy of `tensor` on the training device, registered under `name`: write into it, in place.

        Raises:
            RuntimeError: the name is taken, a stage is in progress, or the tensor needs a gradient.
        """
        self._check_name(name)
        if tensor.requires_grad:
            raise RuntimeError(
                f"the buffer {name!r} needs a gradient, and restoring it would be an operation of its graph: register "
                "tensor.detach() and take steps in place"
            )
        self.buffers[name] = tensor.to(self.device, copy=True)  # else `run.labels_N` as a buffer would be written to
        return self.buffers[name]

    def _check_name(self, name: str) -> None:
        if name in self.learners or name in self.buffers:
            raise RuntimeError(f"{name!r} is registered twice: a checkpoint could not tell the two apart")
        if self._in_stage:
            raise RuntimeError(
                f"{name!r} is registered inside the stage {self._stage!r}, after the saved state was restored: "
                "register it before the stage"
            )

    @property
    def steps(self) -> int:
        """Epochs of all stages together, less those that are known not to be run."""
        return self._prepared.steps - self.skipped

    def epochs(self, name: str, stage: Stage, *nets: Learner, patience: int | None = None) -> Iterator[Epoch]:
        """Yield the epochs of a stage; each one's accuracies are those of the nets' mean prediction.

        Before each epoch all learners get the stage's learning rate and are put into training mode. After an
        interruption: nothing if the stage was over, else from the epoch that follows the saved one.

        With `patience` the stage ends early, after as many epochs in a row in which the accuracy on the validation
        samples, whose labels are the given ones, was no higher than before. Whether it does or not, the nets take back
        the weights of its highest accuracy (the first of equals) within the last epoch, whose accuracies are theirs.

        Args:
            name: of the stage, unlike any other of the run.
            stage: epochs, batch size, schedule.
            nets: one or more registered learners.
            patience: epochs, at least 1; None to run all. A method that gives one says `needs_validation`.
        """
        if name in self._stages:
            raise RuntimeError(f"two stages are called {name!r}: a checkpoint could not tell them apart")
        if not nets:
            raise RuntimeError(f"stage {name!r} names no learner whose accuracy is measured")
        if patience is not None and ("val" not in self._held_out or self._prepared.evaluate == "before"):
            raise RuntimeError(
                f"stage {name!r} ends early by validation samples, of which there are none after an epoch"
            )
        self._stages.add(name)
        self.nets, first = nets, 1
        if self.pending is None:
            self.best_val = None
        elif self.pending["stage"] != name:
            return
        else:
            first = self.pending["t"] + 1
            self._load(self.pending)
            self.pending = None
        train = self._train
        self._stage, self._in_stage = name, True
        try:
            for t in range(first, stage.epochs + 1):
                if self._is_over(t - 1, stage, patience):  # after an interruption in its last epoch, too
                    break
                self._t = t
                for net in self.learners.values():
                    net.batch_size = stage.batch_size
                    net.set_lr(stage.schedule.at(t, stage.epochs))
                accuracies = self._evaluate() if self._prepared.evaluate == "before" else {}
                for net in self.learners.values():
                    net.network.train()
                epoch = Epoch(train.images_NHWC, train.labels_N, stage.batch_size, self.generator, self.augmentation, t)
                began, seen = time.perf_counter(), self._images_seen()
                yield epoch
                self._end(epoch, began, seen, accuracies, stage, patience)
                self._after_epoch(self.step, self._state)
        finally:
            self._in_stage = False

    def _is_over(self, t: int, stage: Stage, patience: int | None) -> bool:
        """Return whether epoch t is a stage's last one: there are no more, or its patience is at an end."""
        best = self.best_val
        return t == stage.epochs or (patience is not None and best is not None and t - best.t >= patience)

    def features(self, backbone: AnyBackbone) -> NDArray[np.float16]:
        """Return features_ND of the training images, without augmentation, from the cache where they are kept.

        Raises:
            BadInput: the backbone's weights cannot be had.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # a network that is built draws weights; from the cache none is built
            return of_images(backbone, self._images_NCHW, self._prepared.cache, device=self.device)

    def label_errors(self, source: AnyBackbone | Learner, steps: int = STEPS) -> LabelErrors:
        """Return what `nlt.detect` makes of the given labels by a backbone's or a network's features.

        Args:
            source: a backbone, without any training, or a learner, by its penultimate features.
            steps: as of `find_label_errors`.

        Raises:
            BadInput: the backbone's weights cannot be had.
            Diverged: the network's features are not finite.
        """
        if isinstance(source, Learner):
            z_ND = self.embed(source)
            if not z_ND.isfinite().all():
                raise Diverged("the network's features are not finite")
            features_ND = z_ND.cpu().numpy()
        else:
            features_ND = self.features(source)
        return find_label_errors(features_ND, self.labels_N.cpu().numpy(), classes=self.classes, steps=steps)

    def predict(self, *nets: Learner) -> Tensor:
        """Return log_p_NK of the training images, without augmentation, as `nlt.train.predict`."""
        return predict(nets, self._train.images_NHWC)

    def embed(self, net: Learner) -> Tensor:
        """Return z_ND, the net's penultimate features of the training images, float32, as `nlt.train.embed`."""
        return embed(net, self._train.images_NHWC)

    def _state(self) -> State:
        """Return all that decides how the run goes on."""
        generators = {"order": self.generator.get_state(), "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "stage": self._stage,
            "t": self._t,
            "step": self.step,
            "skipped": self.skipped,
            "learners": {name: learner.state() for name, learner in self.learners.items()},
            "buffers": self.buffers,
            "generators": generators,
            "best_val": None if self.best_val is None else vars(self.best_val),
        }

    def _load(self, state: State) -> None:
        saved, registered = (
            state["learners"].keys() | state["buffers"].keys(),
            self.learners.keys() | self.buffers.keys(),
        )
        if saved != registered:
            raise BadInput(
                f"the checkpoint holds {sorted(saved)} and the method registers {sorted(registered)} before the stage "
                f"{state['stage']!r}: {_ANOTHER_VERSION}"
            )
        for name, tensor in state["buffers"].items():
            if tensor.shape != self.buffers[name].shape:
                raise BadInput(
                    f"the buffer {name!r} has the shape {tuple(tensor.shape)} in the checkpoint and "
                    f"{tuple(self.buffers[name].shape)} in the method: {_ANOTHER_VERSION}"
                )
        self.step, self.skipped = state["step"], state.get("skipped", 0)  # earlier checkpoints have none
        for name, learner_state in state["learners"].items():
            self.learners[name].load(learner_state)
        for name, tensor in state["buffers"].items():
            self.buffers[name].copy_(tensor)
        self.best_val = None if state["best_val"] is None else BestVal(**state["best_val"])
        self.generator.set_state(state["generators"]["order"])
        torch.set_rng_state(state["generators"]["torch"])
        if self.device.type == "cuda" and "cuda" in state["generators"]:
            torch.cuda.set_rng_state(state["generators"]["cuda"], self.device)

    def _end(
        self,
        epoch: Epoch,
        began: float,
        seen: int,
        accuracies: dict[str, float],
        stage: Stage,
        patience: int | None,
    ) -> None:
        """Measure an epoch that is over, and tell of it.

        It began at the time `began`, when the learners had seen `seen` images; `accuracies` are those measured before
        it, if they were.
        """
        train_accuracy = epoch.accuracy()  # waits for the device, so the clock below is true
        seconds, images_seen = time.perf_counter() - began, self._images_seen()
        losses_N = epoch.losses_N.to("cpu", copy=True)
        visited_N = epoch.seen_N.cpu()
        accuracies = accuracies or self._evaluate()
        if patience is not None and self._is_over(self._t, stage, patience):
            self._take_best()
            accuracies = self._evaluate()
            self.skipped += stage.epochs - self._t
        metrics = {
            "train/loss": float(losses_N[visited_N].double().mean()),
            "train/accuracy": train_accuracy,
            "train/images_seen": images_seen,
            **accuracies,
            "optim/lr": self.nets[0].lr,
            "time/epoch_seconds": seconds,
            "time/images_per_second": (images_seen - seen) / seconds,
            **{f"method/{name}": self._number(name, value) for name, value in epoch.metrics.items()},
        }
        reported = {name: tensor.cpu() for name, tensor in epoch.reported.items()}
        scores_N = reported.get("scores_N")
        record = EpochRecord(
            self.step + 1, self.steps, self._stage, self._t, metrics, losses_N, reported.get("keep_N"),
            None if scores_N is None else scores_N.float(), reported.get("labels_N"),
        )  # fmt: skip
        metrics |= self._quality(record)
        self.step += 1
        self._on_epoch(record)

    def _images_seen(self) -> int:
        return sum(learner.images_seen for learner in self.learners.values())

    def _number(self, name: str, value: float | Tensor) -> float:
        if isinstance(value, str) or (isinstance(value, Tensor) and value.numel() != 1):
            raise RuntimeError(f"epoch.report: {name} must be one number, found {value!r:.80}")
        if not math.isfinite(number := float(value)):
            raise RuntimeError(f"epoch.report: {name} is {number}, which no tracking server takes: leave it out then")
        return number

    def _quality(self, record: EpochRecord) -> dict[str, float]:
        """Compare what an epoch reported with the truth, where that is known."""
        quality: dict[str, float] = {}
        wrong_N = self._train.wrong_N
        if record.labels_N is not None:
            if not 0 <= int(record.labels_N.min()) <= int(record.labels_N.max()) < self.K:
                raise RuntimeError(f"epoch.report: labels_N must lie in [0, {self.K})")
            quality["labels/changed"] = float((record.labels_N != self.labels_N.cpu()).double().mean())
            if self._train.clean_N is not None:
                quality["labels/wrong"] = float((record.labels_N != self._train.clean_N).double().mean())
        if wrong_N is not None and record.keep_N is not None:
            quality |= mask_quality(record.keep_N, wrong_N)
        if wrong_N is not None and record.scores_N is not None:
            ranked = ranking_quality(record.scores_N.double().numpy(), wrong_N.numpy())
            names = {"auroc": "noise/auc", "average_precision": "noise/average_precision"}
            quality |= {names[name]: value for name, value in ranked.items()}
        return quality

    def _evaluate(self) -> dict[str, float]:
        accuracies = {
            f"{name}/accuracy": evaluate(self.nets, split.images_NHWC, split.labels_N)
            for name, split in self._held_out.items()
        }
        val = accuracies.get("val/accuracy")
        if val is not None and (self.best_val is None or val > self.best_val.accuracy):
            self.best_val = BestVal(val, {name: value.clone() for name, value in self.weights().items()}, self._t)
        return accuracies

    def _take_best(self) -> None:
        """Give the learners that are judged the weights of the highest validation accuracy."""
        assert self.best_val is not None
        for name, value in self.weights().items():
            value.copy_(self.best_val.weights[name])

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of the learners that are judged: as the network names them, of several NAME.WEIGHT."""
        if len(self.nets) == 1:
            return {name: value.detach() for name, value in self.nets[0].network.state_dict().items()}
        names = {learner: name for name, learner in self.learners.items()}
        return {
            f"{names[net]}.{name}": value.detach()
            for net in self.nets
            for name, value in net.network.state_dict().items()
        }
