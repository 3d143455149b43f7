"""What a run trains on, before it begins: the data with its noise drawn, split, and tried on the network's shapes."""

import hashlib
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from nlt.augment import AnyAugmentation
from nlt.backbones import AnyBackbone
from nlt.data import Dataset, hold_out
from nlt.detect import checked_labels
from nlt.hardware import find_device, find_precision
from nlt.noise import empirical_matrix, with_noise_file
from nlt.pretrained import file_sha256
from nlt.provenance import git_commit
from nlt.run import Prepared
from nlt.settings import BadInput
from nlt.spec import Experiment


def prepare(
    spec: Experiment, seed: int, device: str, data_root: str | Path, dataset: Dataset | None = None
) -> Prepared:
    """Load the data, unless they are given, draw the noise, split off validation samples, and try the network's shapes.

    Raises:
        BadInput: any of it cannot be done.
    """
    if not 0 <= seed < 2**63:
        raise BadInput(f"--seed {seed}: a seed is a whole number from 0 to 2^63 - 1.")
    on = find_device(device)
    root = Path(os.path.expanduser(data_root))
    dataset = spec.load_data(root) if dataset is None else with_noise_file(dataset, spec.noise)
    if dataset.test is None:
        raise BadInput(f"data: {dataset.name} has no test images, which a run is measured on: {dataset.test_mend}.")
    K = len(dataset.classes)
    T_KK = spec.noise.asked(dataset)
    train = dataset.train
    if spec.noise.name != "none":
        if train.wrong_N is not None and bool(train.wrong_N.any()):
            raise BadInput(
                "noise: the data set brings wrong labels of its own (train_clean_labels differ from train_labels): "
                'use {"name": "none"} with it.'
            )
        # The labels that are corrupted are taken for true ones.
        train = replace(train, labels_N=spec.noise.draw_labels(dataset), clean_N=train.labels_N)
        if bool((train.labels_N < 0).any()):
            train = train.take((train.labels_N >= 0).nonzero().squeeze(1))
    train, val = hold_out(train, spec.data.val_fraction, spec.data.seed)
    if getattr(spec.method, "needs_validation", False):  # a method that ends a stage early says so
        if val is None:
            raise BadInput(
                "data.val_fraction: the method stops by its accuracy on held-out training samples, and none are held "
                "out: set it, to 0.1, say."
            )
        if spec.evaluate == "before":
            raise BadInput(
                'evaluate: "before" never measures the last weights, by which the method decides when to stop: set it '
                'to "after".'
            )
    empirical_T_KK = None if train.clean_N is None else empirical_matrix(train.clean_N, train.labels_N, K)
    fewest_of = getattr(spec.method, "fewest_samples", lambda N: N)  # a method that trains on fewer says so
    fewest: int = fewest_of(len(train))
    _, C, H, W = train.images_NCHW.shape
    for part in (spec.augmentation, *(value for _, value in spec.method)):
        if isinstance(part, AnyAugmentation):
            part.check(H, W)
        elif isinstance(part, AnyBackbone):
            part.identity()  # a network or weights that cannot be had fail here
            checked_labels(train.labels_N.numpy(), K)
    with torch.device("meta"):  # shapes without arithmetic: a network that cannot take these images fails here
        network = spec.model.build(C, H, W, K)
        network.eval()(torch.empty(2, C, H, W))
        for name, stage in spec.stages().items():
            if stage.batch_size > 1 and fewest > 1:  # a last batch of one joins the one before
                continue
            try:
                network.train()(torch.empty(1, C, H, W))
            except ValueError:
                raise BadInput(
                    f"method.{name}.batch_size: batch norm cannot take single images of {H} x {W} pixels in "
                    f"{spec.model.name}: train on batches of at least 2, of more images than one."
                ) from None
    return Prepared(
        seed=seed,
        device=on,
        precision=find_precision(spec.precision, on),
        compiled=spec.compile == "on",
        dataset=dataset,
        train=train,
        val=val,
        test=dataset.test,
        T_KK=T_KK,
        empirical_T_KK=empirical_T_KK,
        model=spec.model,
        optimizer=spec.optimizer,
        augmentation=spec.augmentation,
        evaluate=spec.evaluate,
        steps=spec.steps(),
        cache=root / "features",
    )


def fingerprint(spec: Experiment, prepared: Prepared) -> dict[str, str]:
    """What has to be equal for a run to go on."""
    train = prepared.train
    labels = hashlib.sha256(train.ids_N.numpy().tobytes() + train.labels_N.numpy().tobytes()).hexdigest()
    return {
        "spec": spec.sha256(),
        "data set": prepared.dataset.digest,
        "set of training labels": labels,
        "file of outside weights": " ".join(file_sha256(file) for file in spec.weight_files()),
    }


def environment(prepared: Prepared) -> dict[str, str]:
    """What should be equal for a run to end with the same numbers."""
    return {
        "device": str(prepared.device),
        "precision": prepared.precision,
        "nlt": version("nlt"),
        "git commit": git_commit(),
        "torch": torch.__version__,
        # On these two depends in which order a CPU adds numbers up.
        "number of threads": str(torch.get_num_threads()),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
    }
