"""Labels in a file of their own, by the ids of the samples: CIFAR-10N's and CIFAR-100N's files, arrays, or a CSV.

Pickled files (.pt, and .npy of a dict) are read by unpicklers that know numpy's arrays and nothing else, and even these
are put together here: numpy itself would take a crafted dtype for pointers.

Legend: L labels in the file, N samples.
"""

import io
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nlt.data.arrays import Array, in_words, read_labels
from nlt.data.samples import note, reason
from nlt.data.table import parse_table
from nlt.settings import BadInput, brief

TRUTH = "clean_label"  # what CIFAR-10N's and CIFAR-100N's files call the official labels
FORMS = "name a .pt, .npy, .npz or .csv file"


@dataclass(frozen=True)
class LabelFile:
    """Labels by id."""

    file: Path
    names: tuple[str, ...]
    """Of the classes 0, 1, ... of the file."""
    values: NDArray[np.int64]
    """(L,) in [0, len(names))."""
    ids: NDArray[np.int64] | None
    """(L,) the samples they are of; None if label i is of sample i."""
    truth: NDArray[np.int64] | None
    """(L,) the official labels, where the file has them, to tell whether ids and classes fit."""

    def rows(self, ids_N: NDArray[np.int64], all_images: int | None) -> NDArray[np.int64]:
        """Return for each sample the place of its label.

        Args:
            ids_N: of the samples.
            all_images: of the complete training split; None if nobody knows.

        Raises:
            BadInput: one of the samples has no label, or there are more or less labels than images.
        """
        L = len(self.values)
        if self.ids is not None:
            place_of = {id_: row for row, id_ in enumerate(self.ids.tolist())}
            rows_N = np.array([place_of.get(id_, -1) for id_ in ids_N.tolist()], np.int64)
        elif all_images not in (None, L):
            raise BadInput(
                f"{self.file} holds {L:,} labels and the data set {all_images:,} training images: name the labels of "
                "this data set (an npz that is a part of another needs an array train_ids, each image's place in that)"
            )
        else:
            rows_N = np.where(ids_N < L, ids_N, -1)
        if (rows_N < 0).any():
            missing = int(ids_N[rows_N < 0][0])
            raise BadInput(
                f"{self.file} has no label for {int((rows_N < 0).sum()):,} of {len(ids_N):,} training images, of the "
                f"id {missing} first: give each one"
            )
        return rows_N

    def check_truth(self, rows_N: NDArray[np.int64], ids_N: NDArray[np.int64], classes_N: Sequence[str]) -> None:
        """Hold the official labels in the file, if there are some, against the samples' own classes, by name.

        Raises:
            BadInput: two differ, so that ids or classes are not those of the data set.
        """
        if self.truth is None:
            return
        truth_N = self.truth[rows_N].tolist()
        for row, (k, own) in enumerate(zip(truth_N, classes_N, strict=True)):
            if self.names[k] != own:
                raise BadInput(
                    f"{self.file}: {TRUTH} says that image {ids_N[row]} is {brief(self.names[k])} and the data set "
                    f"that it is {brief(own)}: use the labels of this data set, and its classes in noise.class_names"
                )


def read_label_file(file: Path, content: bytes, key: str | None, names: tuple[str, ...]) -> LabelFile:
    """Read labels: whole numbers or class names.

    Args:
        file: Its suffix says what it is, the rest stands in error messages.
        content: The file's.
        key: Which of several arrays or columns.
        names: Of the classes 0, 1, ...

    Raises:
        BadInput: it cannot be read, has no such key, or holds anything but labels of these classes.
    """
    kind = file.suffix.lower()
    if kind in (".csv", ".txt"):
        return _of_csv(file, content, key or "label", names)
    if kind not in (".pt", ".pth", ".npy", ".npz"):
        raise BadInput(f"noise.path: {file} is no file of labels by its name: {FORMS}")
    found = {".npy": _of_npy, ".npz": _of_npz}.get(kind, _of_pt)(file, content)
    arrays = found if isinstance(found, dict) else {"": found}
    if key is None:
        if len(arrays) != 1:
            raise BadInput(f"noise.key: {file} holds {_shown(arrays)}: say which one")
        key = next(iter(arrays))
    elif key not in arrays:
        holds = "one array without a name" if list(arrays) == [""] else _shown(arrays)
        raise BadInput(f"noise.key: {file} has no array {brief(key)}, it holds {holds}")
    notes: list[str] = []
    values = _numbers(Array(file, key or "its array", arrays[key], notes), names)
    if notes:
        note(f"{file}: {'; '.join(notes)}")
    truth = None
    if TRUTH in arrays and arrays[TRUTH].shape == values.shape:
        truth = _numbers(Array(file, TRUTH, arrays[TRUTH], []), names)
    return LabelFile(file, names, values, None, truth)


def _shown(arrays: dict[str, Any]) -> str:
    shown = ", ".join(brief(name, 30) for name in list(arrays)[:8]) or "nothing"
    return shown + ", ..." * (len(arrays) > 8)


def _numbers(array: Array, names: tuple[str, ...]) -> NDArray[np.int64]:
    """(L,) class numbers; BadInput if a label is none."""
    values = array.values
    if not isinstance(values, np.ndarray) or values.ndim == 0 or not values.size:
        raise BadInput(f"{array.file}: {array.name} is no array of labels: save one of (N,) integers or class names")
    labels = read_labels(array, len(values) if values.shape[0] > 1 else values.size)
    if labels.are_texts:
        found, place_L = np.unique(labels.values, return_inverse=True)
        return _places(array, in_words(found), names)[place_L]
    if outside := [int(k) for k in np.unique(labels.values) if not 0 <= k < len(names)]:
        raise array.refuse(
            f"holds the class {outside[0]} and there are {len(names)} ({_shown(dict.fromkeys(names))}): name all "
            "classes of the file, by their numbers, in noise.class_names"
        )
    return labels.values.astype(np.int64)


def _places(array: Array, words: tuple[str, ...], names: tuple[str, ...]) -> NDArray[np.int64]:
    place_of = {name: k for k, name in enumerate(names)}
    if unknown := [word for word in words if word not in place_of]:
        raise array.refuse(
            f"holds {brief(unknown[0])}, which is none of the classes {_shown(place_of)}: correct it, or name all "
            "classes of the file in noise.class_names"
        )
    return np.array([place_of[word] for word in words], np.int64)


# ---- CSV


def _of_csv(file: Path, content: bytes, column: str, names: tuple[str, ...]) -> LabelFile:
    """Class names, or class numbers where not all labels are names."""
    table = parse_table(file, content, ("id", column))
    words = [word.strip() for word in table.column("id", "write id into the header, above the ids")]
    labels = [label.strip() for label in table.column(column, "set noise.key")]
    place_of: dict[int, int] = {}
    for row, word in enumerate(words):
        if not re.fullmatch(r"\d{1,18}", word, re.ASCII):
            raise BadInput(f"{file}: line {table.lines[row]} has the id {brief(word)}: write a whole number from 0")
        if (first := place_of.setdefault(int(word), row)) != row:
            raise BadInput(f"{file}: lines {table.lines[first]} and {table.lines[row]} have one id, {word}: keep one")
        if not labels[row]:
            raise BadInput(f"{file}: line {table.lines[row]} has no label: write one")
    ids_L = np.fromiter(place_of, np.int64, len(place_of))
    are_numbers = not set(labels) <= set(names) and all(re.fullmatch(r"\d{1,18}", label, re.ASCII) for label in labels)
    values_L = np.array([int(label) for label in labels], np.int64) if are_numbers else np.array(labels)
    return LabelFile(file, names, _numbers(Array(file, column, values_L, []), names), ids_L, None)


# ---- numpy and torch


def _of_npz(file: Path, content: bytes) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            for name in archive.files:
                arrays[name] = archive[name]
    except Exception as error:  # damaged zips and headers raise nearly anything; every one of them is the file's fault
        raise _unreadable(file, error) from error
    return arrays


def _of_npy(file: Path, content: bytes) -> Any:
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read_header(stream)
        if not dtype.hasobject:
            return np.load(io.BytesIO(content), allow_pickle=False)
        return _built(_Unpickler(stream).load())
    except Exception as error:
        raise _unreadable(file, error) from error


def _of_pt(file: Path, content: bytes) -> Any:
    try:
        with torch.serialization.safe_globals([(shim, name) for name, shim in _KNOWN.items()]):
            return _built(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:  # torch's own words advise to load it without these checks
        raise _unreadable(file, ValueError("it holds more than arrays, which is never loaded")) from error
    except Exception as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> BadInput:
    return BadInput(f"noise.path: {file} cannot be read as labels ({reason(error)}): save a dict of arrays of integers")


class _Type:
    """Stands for a numpy dtype while it is unpickled."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.big = code, False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.big = state[1] == ">"

    def dtype(self) -> np.dtype[Any]:
        """The dtype of plain numbers or texts; ValueError if it is of anything else."""
        if not isinstance(self.code, str) or not re.fullmatch(r"[iu][1248]|b1|f[48]|[SU]\d{1,6}", self.code, re.ASCII):
            raise ValueError(f"it holds {self.code!r:.20}, which are no labels")
        return np.dtype(self.code).newbyteorder(">" if self.big else "=")


class _Values:
    """Stands for a numpy array while it is unpickled."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> Any:
        """The array, or the object that numpy.save wrapped into an array without dimensions."""
        if self.state is None:
            raise ValueError("an array is empty")
        _, shape, kind, by_columns, data = self.state
        if kind.code == "O8" and shape == () and len(data) == 1:
            return _built(data[0])
        if not isinstance(data, bytes):
            raise ValueError("it holds objects, which are no labels")
        return np.frombuffer(data, kind.dtype()).reshape(shape, order="F" if by_columns else "C")


def _built(found: Any) -> Any:
    """Arrays in the place of what stands for them and of tensors, in a dict or alone."""
    if isinstance(found, dict):
        return {str(name): _built(value) for name, value in found.items() if isinstance(value, _Values | Tensor)}
    if isinstance(found, Tensor):
        return found.numpy()
    if isinstance(found, _Values):
        return found.array()
    raise ValueError(f"it holds a {type(found).__name__}")


def _bytes(text: str, encoding: str) -> bytes:
    """What older pickles call for each string of bytes."""
    if encoding != "latin1":
        raise ValueError("its bytes are of an unknown encoding")
    return text.encode("latin1")


_KNOWN: dict[str, Any] = {
    "numpy.ndarray": _Values,
    "numpy.dtype": _Type,
    "numpy.core.multiarray._reconstruct": _Values,
    "numpy._core.multiarray._reconstruct": _Values,
    "_codecs.encode": _bytes,
}


class _Unpickler(pickle._Unpickler):  # Python's own: the one in C makes room for as many objects as a file claims
    """Knows arrays, and nothing that could be called."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for numpy's class; nothing is imported."""
        if f"{module}.{name}" not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is never loaded")
        return _KNOWN[f"{module}.{name}"]
