"""CIFAR-10, CIFAR-100 and the paper's CIFAR-4, through torchvision with its checksums."""

import os
import socket
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nlt.data.samples import Dataset, DataSettings, Samples, finish, pick, reason
from nlt.settings import BadInput

CIFAR4_CLASSES = ("cat", "dog", "horse", "deer")  # in the order of the authors' code
DOWNLOAD_TIMEOUT_S = 30.0  # of silence, not of the whole download


class Cifar10(DataSettings):
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32 RGB. The labels are taken as clean."""

    name: Literal["cifar10"] = "cifar10"

    def load(self, root: Path) -> Dataset:
        """Read it from `root`/cifar-10-batches-py, downloading it first if it is not there; BadInput if it cannot."""
        names, train, test = _read_cifar("CIFAR10", root)
        return finish(self, names, train, test, all_images=len(train))


class Cifar100(DataSettings):
    """CIFAR-100 with its 100 fine labels: 50,000 training and 10,000 test images, 32x32 RGB, labels taken as clean."""

    name: Literal["cifar100"] = "cifar100"

    def load(self, root: Path) -> Dataset:
        """Read it from `root`/cifar-100-python, downloading it first if it is not there; BadInput if it cannot."""
        names, train, test = _read_cifar("CIFAR100", root)
        return finish(self, names, train, test, all_images=len(train))


class Cifar4(DataSettings):
    """The paper's CIFAR-4: CIFAR-10's cat, dog, horse and deer, relabelled 0..3 in this order.

    `classes` picks among these four. Ids are places in the complete CIFAR-10 split, 0..49,999 and 0..9,999.
    """

    name: Literal["cifar4"] = "cifar4"

    def load(self, root: Path) -> Dataset:
        """As Cifar10's: 20,000 training and 4,000 test images."""
        names, train, test = _read_cifar("CIFAR10", root)
        own_train, own_test = (pick(split, names, CIFAR4_CLASSES) for split in (train, test))
        return finish(self, CIFAR4_CLASSES, own_train, own_test, all_classes=names, all_images=len(train))


def _read_cifar(kind: Literal["CIFAR10", "CIFAR100"], root: Path) -> tuple[tuple[str, ...], Samples, Samples]:
    """(class names, train, test), from disk if intact there, else downloaded. BadInput if neither works.

    The files are pickles; torchvision unpickles one only after its MD5 sum was found right, downloaded or not.
    """
    from filelock import FileLock
    from torchvision import datasets  # type: ignore[import-untyped]
    from torchvision.datasets.utils import download_and_extract_archive  # type: ignore[import-untyped]

    cifar = getattr(datasets, kind)
    root = Path(os.path.abspath(os.path.expanduser(root)))

    def read() -> tuple[Any, Any]:
        return cifar(root, train=True), cifar(root, train=False)

    try:
        train, test = read()
    except (RuntimeError, OSError):  # not there, damaged or unreadable
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)  # torchvision sets none: a silent server would hang us for ever
        try:
            root.mkdir(parents=True, exist_ok=True)
            lock = root / f".{cifar.base_folder}.lock"
            lock.touch()  # FileLock waits for ever where no file can be made, as in /proc
            with FileLock(lock):  # runs that start together download it once
                try:
                    train, test = read()
                except (RuntimeError, OSError):
                    # not cifar(download=True), which would not mend a missing batches.meta
                    download_and_extract_archive(cifar.url, root, filename=cifar.filename, md5=cifar.tgz_md5)
                    train, test = read()
        except (RuntimeError, OSError, HTTPException) as error:  # URLError is an OSError
            raise BadInput(
                f"looked for the intact files of {kind} in {root / cifar.base_folder} and could not download them "
                f"({reason(error)}): unpack {cifar.filename} in {root}, "
                "or name the folder you unpacked it in by --data-root or NLT_DATA_ROOT"
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)

    def samples(split: Any) -> Samples:
        images_NCHW = torch.from_numpy(np.ascontiguousarray(split.data.transpose(0, 3, 1, 2)))
        labels_N = torch.tensor(split.targets, dtype=torch.int64)
        return Samples(images_NCHW, torch.arange(len(labels_N)), labels_N, labels_N)

    return tuple(train.classes), samples(train), samples(test)
