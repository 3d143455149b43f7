"""Arrays as people have them: images and labels of many forms, taken for what they can only be, else refused.

What is taken for something is noted in words; what could be two things is refused with the mend. Nothing is clipped.

Legend: N samples of one split, C channels, H height, W width, K classes.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nlt.settings import BadInput, brief

CHUNK = 2**22  # pixels converted at a time: 32 MB as float64, however large the data set is
MEND = "map the values to 0..255 and save them as uint8"


@dataclass(frozen=True)
class Array:
    """One array of a file, with what was taken for what in it."""

    file: Path
    name: str
    values: NDArray[Any]
    notes: list[str]
    """Of the whole file; added to here."""

    def note(self, what: str) -> None:
        """Note what was taken for what."""
        self.notes.append(f"{self.name} {what}")

    def refuse(self, what: str) -> BadInput:
        """Return the error that says what is wrong and what to do."""
        return BadInput(f"{self.file}: {self.name} {what}")

    def wrong(self, expected: str) -> BadInput:
        """Return the error that says what it must be and what it is."""
        return self.refuse(f"must be {expected}, found {self.values.dtype} of shape {self.values.shape}")


# ---- images


def take_images(*arrays: Array) -> list[Tensor]:
    """Each array as (N, C, H, W) uint8 with C 1 or 3, all of one C, H and W, and contiguous.

    Taken are (N, H, W, C), (N, H, W) and (N, C, H, W); whole numbers in 0..255 of any type, floats in [0, 1], and an
    alpha channel that is opaque everywhere. BadInput if one is anything else, empty, or could be two things, and if
    floats in [0, 1] stand beside floats in 0..255.
    """
    shaped = [_channels_first(images) for images in arrays]
    factors = [_factor(images) for images in shaped]
    floats = [i for i, images in enumerate(shaped) if images.values.dtype.kind == "f" and factors[i] != 0]
    if len({factors[i] for i in floats}) > 1:
        fractions, levels = sorted(floats, key=lambda i: -factors[i])[:2]
        raise arrays[fractions].refuse(
            f"lies in [0, 1] and {arrays[levels].name} in 0..255, both as floats: save both as uint8 in 0..255"
        )
    taken = [_opaque(images, _levels(images, factor)) for images, factor in zip(shaped, factors, strict=True)]
    for images, images_NCHW in zip(arrays[1:], taken[1:], strict=True):
        if images_NCHW.shape[1:] != taken[0].shape[1:]:
            raise images.wrong(f"of the size of {arrays[0].name} {arrays[0].values.shape}")
    return [torch.from_numpy(images_NCHW) for images_NCHW in taken]


def _channels_first(images: Array) -> Array:
    """A view of shape (N, C, H, W) with C in 1..4; a last axis of 1 or 3 is always the channels."""
    values = images.values
    expected = "uint8 of shape (N, H, W, C) with C 1 or 3, or (N, H, W), and not empty"
    if values.dtype.kind not in "iuf" or values.ndim not in (3, 4) or 0 in values.shape:
        raise images.wrong(expected)
    if values.ndim == 3:
        return replace(images, values=values[:, None])
    first, last = values.shape[1], values.shape[3]
    if last in (1, 3) or (last in (2, 4) and first not in (1, 2, 3, 4)):
        return replace(images, values=values.transpose(0, 3, 1, 2))
    if last in (2, 4):
        raise images.wrong("of channels first or last, which this shape leaves open: save (N, H, W, C) with C 1 or 3")
    if first not in (1, 2, 3, 4):
        raise images.wrong(expected)
    images.note(f"{values.shape} taken for channels first, (N, C, H, W)")
    return images


def _factor(images: Array) -> int:
    """What makes levels 0..255 of the values: 1 or 255; 0 where all of them are 0."""
    values = images.values
    if values.dtype == np.uint8:
        return 1
    with np.errstate(invalid="ignore"):
        low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise images.refuse("holds NaN or infinity: replace such pixels")
    if low < 0:
        raise images.refuse(f"holds {float(low):g}, which is negative: {MEND}")
    if high > 255:
        raise images.refuse(f"holds {float(high):g}, more than 255: {MEND}; nothing is clipped")
    if high == 0:
        return 0
    if values.dtype.kind != "f":
        if high == 1:
            raise images.refuse(
                "holds only 0 and 1, which may be black and white or nearly black: save 0..255 as uint8"
            )
        images.note(f"{values.dtype} taken for uint8")
        return 1
    if high <= 1:
        images.note("floats in [0, 1] taken for 0..255")
        return 255
    if not all((part == np.floor(part)).all() for _, part in _parts(values)):
        raise images.refuse(f"holds floats up to {float(high):g} that are no whole numbers: {MEND}")
    images.note("floats that are whole numbers in 0..255 taken for uint8")
    return 1


def _levels(images: Array, factor: int) -> NDArray[np.uint8]:
    """(N, C, H, W) uint8: the values times `factor`, rounded; a view where nothing has to be done."""
    values = images.values
    if values.dtype == np.uint8:
        return values
    levels = np.empty(values.shape, np.uint8)
    for rows, part in _parts(values):
        # in float64, since float16 would round 255 x a first time, to steps of 1/8
        levels[rows] = np.rint(part.astype(np.float64) * factor) if factor == 255 else part
    return levels


def _parts(values: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
    rows = max(1, CHUNK // max(1, values[0].size))
    for start in range(0, len(values), rows):
        yield slice(start, start + rows), values[start : start + rows]


def _opaque(images: Array, images_NCHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Contiguous images without their alpha channel; BadInput where that is not 255 everywhere."""
    C = images_NCHW.shape[1]
    if C in (2, 4):
        if images_NCHW[:, -1].min() < 255:
            raise images.refuse("has an alpha channel that is not 255 everywhere: composite the images on a background")
        images.note(f"taken without its alpha channel, 255 everywhere: {'RGB' if C == 4 else 'grey'}")
        images_NCHW = images_NCHW[:, :-1]
    return np.ascontiguousarray(images_NCHW)


# ---- labels


@dataclass(frozen=True)
class Labels:
    """(N,) labels of one array, in numbers or in texts, before they are places among the classes."""

    array: Array
    values: NDArray[Any]
    """Whole numbers of any type, or "U" texts."""
    K: int | None = None
    """How many classes their form itself says: columns of one-hot rows, two of booleans."""

    @property
    def are_texts(self) -> bool:
        """Whether they are class names."""
        return self.values.dtype.kind == "U"


def read_labels(labels: Array, N: int) -> Labels:
    """N labels of any form that can only be labels; BadInput if they are anything else.

    Taken are integers, floats that are whole numbers, booleans and texts (bytes: UTF-8) of shape (N,), (N, 1) or
    (1, N), and one-hot rows (N, K).
    """
    values = labels.values
    if values.dtype.kind not in "iufbUS" or values.ndim not in (1, 2) or (values.ndim == 2 and 0 in values.shape):
        raise labels.wrong("integers of shape (N,), or class names")
    if values.ndim == 2 and (values.shape[1] == 1 or (values.shape[0] == 1 and N > 1)):
        labels.note(f"{values.shape} taken for ({values.size},)")
        values = values.ravel()
    if len(values) != N:
        raise labels.refuse(f"must have one label for each of the {N} images, found {len(values)} labels")
    if values.ndim == 2:
        return _one_hot(replace(labels, values=values))
    match values.dtype.kind:
        case "S":
            values = decoded(replace(labels, values=values))
        case "b":
            labels.note("booleans taken for classes 0 (False) and 1 (True)")
            return Labels(labels, values.astype(np.uint8), 2)
        case "f":
            odd_N = ~np.isfinite(values)
            odd_N[~odd_N] = values[~odd_N] != np.floor(values[~odd_N])
            if odd_N.any():
                raise labels.refuse(f"holds {float(values[odd_N][0]):g}, which is no whole number: save integers")
            labels.note("floats that are whole numbers taken for integers")
    return Labels(labels, values)


def _one_hot(labels: Array) -> Labels:
    rows_NK = labels.values
    K = rows_NK.shape[1]
    if rows_NK.dtype.kind in "US":
        raise labels.wrong("class names of shape (N,)")
    ones_NK = rows_NK == 1
    good_N = (ones_NK.sum(1) == 1) & ((rows_NK != 0).sum(1) == 1)
    if not good_N.all():
        row = int(good_N.argmin())
        raise labels.refuse(
            f"of shape {rows_NK.shape} must be one-hot, exactly one 1 in a row and else 0, which row {row} is not: "
            "save one label for each image"
        )
    labels.note(f"one-hot rows {rows_NK.shape} taken for labels in 0..{K - 1}")
    return Labels(labels, ones_NK.argmax(1), K)


def decoded(texts: Array) -> NDArray[Any]:
    """Bytes as "U" texts; BadInput if they are no UTF-8."""
    try:
        found = np.char.decode(texts.values, "utf-8")
    except UnicodeDecodeError:
        raise texts.refuse("holds bytes that are not UTF-8: save strings") from None
    texts.note("bytes taken for UTF-8")
    return np.asarray(found)


def in_words(texts: NDArray[Any]) -> tuple[str, ...]:
    """(K,) "U" as Python's strings; an empty one for what is no text: numpy reads it all the same, Python cannot."""
    width = max(1, texts.dtype.itemsize // 4)
    codes_KW = np.ascontiguousarray(texts.astype(f"=U{width}")).view(np.uint32).reshape(len(texts), width)
    no_text_KW = (codes_KW > 0x10FFFF) | ((codes_KW >= 0xD800) & (codes_KW <= 0xDFFF))
    return tuple("" if no_text_KW[i].any() else str(texts[i]) for i in range(len(texts)))


def is_name(text: str) -> bool:
    """Whether a class can be called so: names are written into tables, pictures and MLflow."""
    return bool(text) and "Cc" not in map(unicodedata.category, text)  # "Cc" are the control characters


def classes_of(*known: Labels) -> tuple[str, ...]:
    """The classes of training labels (and clean ones) that come without class names.

    Texts are their own names, in sorted order; numbers are called "0" to "K-1". BadInput if they are less than two, if
    texts stand beside numbers, and if a number is missing: it may be that they begin at 1.
    """
    first = known[0].array
    for other in known[1:]:
        _same_kind(known[0], other)
        if None not in (known[0].K, other.K) and known[0].K != other.K:
            raise other.array.refuse(
                f"is of {other.K} classes and {first.name} of {known[0].K}: give both as many, or save integers"
            )
    if known[0].are_texts:
        names = sorted({name for labels in known for name in in_words(np.unique(labels.values))})
        if any(not is_name(name) for name in names):
            raise first.refuse("holds a class name that is empty, no text or holds control characters: rename it")
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")  # "nan" among them, say
        first.note(f"taken for the names of {len(names)} classes, in sorted order: {shown}")
    else:
        columns = [labels.K for labels in known if labels.K is not None]
        # Python's integers: numpy has no type for int64 and uint64 together
        present = sorted({int(label) for labels in known for label in np.unique(labels.values)})
        if present[0] < 0:
            raise first.refuse(f"holds {present[0]}: number the classes from 0")
        K = columns[0] if columns else len(present)
        if not columns and present[-1] != K - 1:
            missing = next(k for k, label in enumerate(present) if k != label)
            raise first.refuse(
                f"goes up to {present[-1]} without {missing}, and there are no class_names: add them, or number the "
                "classes from 0 without gaps"
            )
        names = [str(k) for k in range(K)]
        first.note(f"taken for classes named {names[0]} to {names[-1]}, as there are no class_names")
    if len(names) < 2:
        raise first.refuse("is of one class only: there must be two, or an array class_names")
    return tuple(names)


def _same_kind(one: Labels, other: Labels) -> None:
    if one.are_texts != other.are_texts:
        texts, numbers = (one, other) if one.are_texts else (other, one)
        raise BadInput(
            f"{one.array.file}: {texts.array.name} are class names and {numbers.array.name} numbers: save both alike, "
            "or an array class_names"
        )


def places(labels: Labels, classes: tuple[str, ...], like: Labels | None = None) -> Tensor:
    """(N,) int64 in [0, K): the place of each label among the K classes.

    `like` are the labels that the classes come from, where no class names were given: texts and numbers must not mix
    then. BadInput if a label is of no class.
    """
    K = len(classes)
    if like is not None:
        _same_kind(like, labels)
    if labels.K not in (None, K):
        raise labels.array.refuse(f"is of {labels.K} classes, found {K} in the file: save integers in 0..{K - 1}")
    if labels.are_texts:
        found, place_N = np.unique(labels.values, return_inverse=True)
        place_of = {name: k for k, name in enumerate(classes)}
        words = in_words(found)
        if unknown := [word for word in words if word not in place_of]:
            raise labels.array.refuse(
                f"holds {brief(unknown[0])}, which is none of the {K} classes: correct it, or name it in class_names"
            )
        return torch.from_numpy(np.array([place_of[word] for word in words], np.int64)[place_N])
    if outside := [int(label) for label in np.unique(labels.values) if not 0 <= label < K]:
        raise labels.array.refuse(f"must lie in 0..{K - 1}, one for each of the classes, found {outside[0]}")
    return torch.from_numpy(labels.values.astype(np.int64))
