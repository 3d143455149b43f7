"""Ordinary training on all samples with any loss: the paper's base model (CE) and its APL (NCE + RCE), section 3."""

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator

from nlt.augment import mixup
from nlt.run import Run
from nlt.settings import Settings
from nlt.train import Stage, train_epoch


class Standard(Settings):
    """One stage of ordinary training; the labels are believed, the loss may be a robust one.

    Cross-entropy may be regularized by label smoothing, (1 - epsilon) y + epsilon / K in place of the one-hot y
    (Szegedy et al. 2016, section 7; Lukasik et al. 2020 under label noise), and by mixup (Zhang et al. 2018, section
    2): lambda x_i + (1 - lambda) x_j with the targets mixed alike, lambda ~ Beta(alpha, alpha) once a batch. Losses
    and training accuracy are then those of the mixed images, the latter by x_i's label.

    `early_stopping` ends the stage by the accuracy on held-out samples whose labels are as noisy as the others.

    Differences from the authors' code (`main.py`): the accuracy of an epoch is measured after it (the code measures
    before, and so never scores the last epoch), and `epochs` are run in full (`range(1, n)` runs n - 1).
    """

    title: ClassVar = "Standard"
    told_by: ClassVar = ("loss",)  # cross-entropy and a robust loss are two methods to whoever compares them
    told_if_set: ClassVar = {
        "mixup_alpha": "mixup", "label_smoothing": "label smoothing", "early_stopping": "early stopping"
    }  # fmt: skip
    added_later = frozenset(told_if_set)

    name: Literal["standard"] = "standard"
    training: Stage = Stage()
    """100 epochs, batch 128, learning rate 0.01 / 0.005 / 0.001 (paper, section 3; batch and steps from the code)."""

    mixup_alpha: float = Field(0.0, ge=0, le=100)
    """alpha of mixup: 1 for CIFAR-10 (Zhang et al. 2018, section 3.2), up to 32 under label noise (3.4); 0 for none."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """epsilon, the share of each target that all K classes have in common, in [0, 1): 0.1 in Szegedy et al. 2016,
    section 7; 0 for none."""
    early_stopping: int | None = Field(None, ge=1)
    """Epochs in a row without a higher accuracy on the validation samples after which training ends, with the weights
    of the highest; null to run all epochs. Needs `data.val_fraction`; no validation label is clean."""

    @model_validator(mode="after")
    def _soft_targets_are_of_cross_entropy(self) -> "Standard":
        if (self.mixup_alpha or self.label_smoothing) and self.training.loss.name != "ce":
            raise ValueError("mixup_alpha and label_smoothing make soft targets, for the loss ce alone")
        return self

    @property
    def needs_validation(self) -> bool:
        """Whether it cannot do without validation samples."""
        return self.early_stopping is not None

    def train(self, run: Run) -> None:
        """Train one network."""
        net = run.learner("net")
        for epoch in run.epochs("training", self.training, net, patience=self.early_stopping):
            if not (self.mixup_alpha or self.label_smoothing):
                train_epoch(net, epoch, self.training.loss)
                continue
            for batch in epoch.batches():
                images_BCHW, y_BK = batch.images_BCHW, F.one_hot(batch.labels_B, run.K).float()
                targets_BK = (1 - self.label_smoothing) * y_BK + self.label_smoothing / run.K
                if self.mixup_alpha:
                    images_BCHW, targets_BK = mixup(images_BCHW, targets_BK, self.mixup_alpha, run.generator)
                logits_BK = net(images_BCHW)
                losses_B = -(targets_BK * logits_BK.log_softmax(1)).sum(1)
                net.step(losses_B.mean())
                epoch.saw(batch, logits_BK, losses_B)
