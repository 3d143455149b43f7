"""A user's own images in one numpy archive, read without pickle and checked array by array.

Legend: N samples of one split, C channels (1 or 3), H height, W width, K classes.
"""

import os
import stat
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nlt.data.samples import Dataset, DataSettings, PathText, Samples, finish, reason
from nlt.settings import BadInput, brief


class Npz(DataSettings):
    """A user's own images and labels in one numpy archive.

    Arrays: train_images (N, H, W, C) or (N, H, W) uint8 with C 1 or 3, train_labels (N,) integers in [0, K),
    test_images, test_labels, class_names (K,) strings and, if known, train_clean_labels (N,).
    """

    name: Literal["npz"] = "npz"
    path: PathText
    """The .npz file; relative to the current folder, ~ is expanded."""

    def load(self, root: Path) -> Dataset:
        """`root` is not used. Anything wrong with the file or an array is a BadInput that names both."""
        file = Path(os.path.expanduser(self.path))
        arrays = _read_npz(file)
        names = arrays["class_names"]
        if names.dtype.kind != "U" or names.ndim != 1 or len(names) < 2:
            raise _wrong(file, "class_names", "(K,) strings with K at least 2", names)
        classes = _texts(names)
        # They are written into tables, pictures and MLflow; "Cc" are the control characters.
        if odd := [i for i, name in enumerate(classes) if not name or "Cc" in map(unicodedata.category, name)]:
            raise BadInput(f"{file}: class_names[{odd[0]}] is empty, no text or holds control characters: rename it")
        if repeated := sorted(name for name, count in Counter(classes).items() if count > 1):
            raise BadInput(
                f"{file}: class_names holds {brief(repeated[0])} more than once: give every class its own name"
            )

        def samples(split: str) -> Samples:
            images_NCHW = _check_images(file, f"{split}_images", arrays[f"{split}_images"])
            shape = (len(images_NCHW), len(classes))
            labels_N = _check_labels(file, f"{split}_labels", arrays[f"{split}_labels"], *shape)
            clean = arrays.get(f"{split}_clean_labels")  # of train only
            clean_N = None if clean is None else _check_labels(file, f"{split}_clean_labels", clean, *shape)
            return Samples(images_NCHW, torch.arange(len(images_NCHW)), labels_N, clean_N)

        train, test = samples("train"), samples("test")
        if train.images_NCHW.shape[1:] != test.images_NCHW.shape[1:]:
            raise _wrong(
                file,
                "test_images",
                f"of the size of train_images {arrays['train_images'].shape}",
                arrays["test_images"],
            )
        return finish(self, classes, train, test)


def _read_npz(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays we know by name; BadInput if the file or a required array is missing or cannot be read."""
    required = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe would keep us waiting
            found = "is a folder" if file.is_dir() else "is no file"
            raise BadInput(f"data.path: {file} {found}: name an .npz file")
        with file.open("rb") as opened:
            complete = zipfile.is_zipfile(opened)  # the zip directory stands at the end, so it is missed if cut off
    except FileNotFoundError as error:
        raise BadInput(f"data.path: {file} is not there: name an .npz file") from error
    except OSError as error:  # not ours to read, a name too long, ...
        raise BadInput(f"data.path: {file} cannot be read ({error.strerror}): name an .npz file") from error
    if not complete:
        raise BadInput(f"data.path: {file} is not a complete, readable .npz file: write it with numpy.savez")
    arrays: dict[str, NDArray[Any]] = {}
    at = "its list of arrays"
    try:
        with np.load(file, allow_pickle=False) as archive:
            for at in (*required, "train_clean_labels"):
                if at in archive.files:
                    # a member that is no array comes back as bytes; the checks then name what was found
                    arrays[at] = np.asarray(archive[at])
    except Exception as error:  # damaged zips and headers raise nearly anything; every one of them is the file's fault
        if "allow_pickle" in str(error):
            raise BadInput(f"{file}: {at} holds pickled objects, which are never loaded: save a plain array") from error
        raise BadInput(f"{file}: {at} cannot be read ({reason(error)}): write the file anew") from error
    if missing := [name for name in required if name not in arrays]:
        raise BadInput(f"{file} has no array {missing[0]}: it must hold {', '.join(required)}")
    return arrays


def _texts(names: NDArray[Any]) -> tuple[str, ...]:
    """The K names; an empty one for what is no text: numpy reads it all the same, Python cannot work with it."""
    width = max(1, names.dtype.itemsize // 4)
    codes_KW = np.ascontiguousarray(names.astype(f"=U{width}")).view(np.uint32).reshape(len(names), width)
    no_text_KW = (codes_KW > 0x10FFFF) | ((codes_KW >= 0xD800) & (codes_KW <= 0xDFFF))
    return tuple("" if no_text_KW[i].any() else str(names[i]) for i in range(len(names)))


def _wrong(file: Path, array: str, expected: str, found: NDArray[Any]) -> BadInput:
    return BadInput(f"{file}: {array} must be {expected}, found {found.dtype} of shape {found.shape}")


def _check_images(file: Path, array: str, images: NDArray[Any]) -> Tensor:
    """(N, H, W, C) or (N, H, W) uint8 -> (N, C, H, W); BadInput if it is anything else or empty."""
    shaped = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or shaped.ndim != 4 or shaped.shape[3] not in (1, 3) or 0 in shaped.shape:
        raise _wrong(file, array, "uint8 of shape (N, H, W, C) with C 1 or 3, or (N, H, W), and not empty", images)
    return torch.from_numpy(np.ascontiguousarray(shaped.transpose(0, 3, 1, 2)))


def _check_labels(file: Path, array: str, labels: NDArray[Any], N: int, K: int) -> Tensor:
    """(N,) integers in [0, K) -> int64; BadInput if they are anything else."""
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise _wrong(file, array, "integers of shape (N,)", labels)
    if len(labels) != N:
        raise BadInput(f"{file}: {array} must have one label for each of the {N} images, found {len(labels)} labels")
    if outside := [int(label) for label in np.unique(labels) if not 0 <= label < K]:
        raise BadInput(f"{file}: {array} must lie in 0..{K - 1}, one for each of class_names, found {outside[0]}")
    return torch.from_numpy(labels.astype(np.int64))
