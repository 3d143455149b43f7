"""A user's own images in one numpy archive, read without pickle and checked array by array.

Legend: N samples of one split, C channels (1 or 3), H height, W width, K classes.
"""

import os
import stat
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nlt.data.arrays import Array, classes_of, decoded, in_words, is_name, places, read_labels, take_images
from nlt.data.samples import Dataset, DataSettings, PathText, Samples, TestFraction, finish, note, reason
from nlt.settings import BadInput, brief


class Npz(DataSettings):
    """A user's own images and labels in one numpy archive.

    Arrays: train_images (N, H, W, C) or (N, H, W) uint8 with C 1 or 3, train_labels (N,) integers in [0, K),
    test_images, test_labels, class_names (K,) strings and, if known, train_clean_labels (N,) and train_ids (N,): a
    whole number for each image, its place in the complete data set that it is taken from; 0 to N - 1 without them. What
    is of another form but can only mean one thing is taken for it, which a note on stderr says.
    """

    added_later = DataSettings.added_later | {"test_fraction"}

    name: Literal["npz"] = "npz"
    path: PathText
    """The .npz file; relative to the current folder, ~ is expanded."""
    test_fraction: TestFraction = 0.0
    """Share of each class held out for the test, where there are no test arrays."""

    def load(self, root: Path) -> Dataset:
        """`root` is not used; without test arrays `Dataset.test` is None, unless `test_fraction` makes one.

        Anything wrong with the file or an array is a BadInput that names both.
        """
        file = Path(os.path.expanduser(self.path))
        found = read_archive(file)
        if found.notes:
            note(f"{file}: {'; '.join(found.notes)}")
        if found.test is not None and self.test_fraction:
            raise BadInput(f"data.test_fraction: {file} holds test_images already: remove one of the two")
        mend = f"add arrays test_images and test_labels to {file}, or set data.test_fraction, e.g. 0.2"
        N = None if found.own_ids else len(found.train)
        return finish(self, found.classes, found.train, found.test, (), mend, all_images=N)


class Archive(NamedTuple):
    """What an npz holds."""

    classes: tuple[str, ...]
    train: Samples
    test: Samples | None
    notes: list[str]
    """What was taken for what."""
    own_ids: bool
    """Whether the training samples are called by ids of the file."""


def read_archive(file: Path) -> Archive:
    """Read and check the arrays that `Npz` names; BadInput names the file and the array."""
    notes: list[str] = []
    arrays = {name: Array(file, name, values, notes) for name, values in _read_npz(file).items()}
    splits = ("train", "test") if "test_images" in arrays else ("train",)
    images = take_images(*(arrays.pop(f"{split}_images") for split in splits))
    labels = {
        name: read_labels(arrays[name], len(images_NCHW))
        for split, images_NCHW in zip(splits, images, strict=True)
        for name in (f"{split}_labels", f"{split}_clean_labels")
        if name in arrays  # clean ones of train only
    }
    known = [labels[name] for name in ("train_labels", "train_clean_labels") if name in labels]
    named = "class_names" in arrays
    classes = _names(arrays["class_names"]) if named else classes_of(*known)
    placed = {name: places(given, classes, None if named else known[0]) for name, given in labels.items()}
    own_ids = _ids(arrays["train_ids"], len(images[0])) if "train_ids" in arrays else None
    train, *test = (
        Samples(
            images_NCHW,
            own_ids if own_ids is not None and split == "train" else torch.arange(len(images_NCHW)),
            placed[f"{split}_labels"],
            placed.get(f"{split}_clean_labels"),
        )
        for split, images_NCHW in zip(splits, images, strict=True)
    )
    return Archive(classes, train, test[0] if test else None, notes, own_ids is not None)


def _ids(ids: Array, N: int) -> Tensor:
    """(N,) int64; BadInput if these are no N different whole numbers from 0."""
    values = ids.values
    if values.shape != (N,) or values.dtype.kind not in "iu":
        raise ids.wrong(f"({N},) integers, one for each training image")
    if values.min() < 0 or values.max() >= 2**63:
        raise ids.refuse(f"holds {values.min() if values.min() < 0 else values.max()}: ids are whole numbers from 0")
    found, counts = np.unique(values, return_counts=True)
    if counts.max() > 1:
        raise ids.refuse(f"holds {found[counts.argmax()]} more than once: give each image its own")
    return torch.from_numpy(values.astype(np.int64))


def _names(names: Array) -> tuple[str, ...]:
    """The classes by their given names; BadInput if these are no names of two or more."""
    values = names.values
    if values.dtype.kind not in "US" or values.ndim != 1 or len(values) < 2:
        raise names.wrong("(K,) strings with K at least 2")
    classes = in_words(decoded(names) if values.dtype.kind == "S" else values)
    if odd := [i for i, name in enumerate(classes) if not is_name(name)]:
        raise BadInput(f"{names.file}: class_names[{odd[0]}] is empty, no text or holds control characters: rename it")
    if repeated := sorted(name for name, count in Counter(classes).items() if count > 1):
        raise names.refuse(f"holds {brief(repeated[0])} more than once: give every class its own name")
    return classes


def _read_npz(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays we know by name; BadInput if the file or a required array is missing or cannot be read."""
    required, optional = ["train_images", "train_labels"], ("test_images", "test_labels")
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
            for at in (*required, *optional, "class_names", "train_clean_labels", "train_ids"):
                if at in archive.files:
                    # a member that is no array comes back as bytes; the checks then name what was found
                    arrays[at] = np.asarray(archive[at])
    except Exception as error:  # damaged zips and headers raise nearly anything; every one of them is the file's fault
        if "allow_pickle" in str(error):
            raise BadInput(
                f"{file}: {at} holds pickled objects, which are never loaded: save a plain array, texts by .astype(str)"
            ) from error
        raise BadInput(f"{file}: {at} cannot be read ({reason(error)}): write the file anew") from error
    if any(name in arrays for name in optional):
        required += optional
    if missing := [name for name in required if name not in arrays]:
        raise BadInput(f"{file} has no array {missing[0]}: it must hold {', '.join(required)}")
    return arrays
