"""Own numbers in place of images, for `nlt detect`: features or probabilities of text, audio, tables, with labels.

Legend: N samples, D features, K classes.
"""

import hashlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray

from nlt.data.arrays import Array, in_words, is_name, read_labels
from nlt.data.decoding import content_sum
from nlt.data.labelled import Labelled
from nlt.data.samples import MAX_CLASSES, check_file, reason
from nlt.data.table import read_table
from nlt.settings import BadInput, brief

CHUNK = 2**22  # numbers looked at together: 32 MB as float64, however large the file is


class Numbers(NamedTuple):
    """Own numbers and what is known of each row."""

    data: Labelled
    features_ND: NDArray[Any] | None
    """float16, float32 or float64; read from the disk as it is used."""
    probabilities_NK: NDArray[Any] | None
    """As `features_ND`; column k is class k of `data.classes`. One of the two is None."""


def read_numbers(
    labels: Path,
    *,
    features: Path | None = None,
    probabilities: Path | None = None,
    label_column: str = "label",
    id_column: str = "id",
) -> Numbers:
    """Read an .npy of features (N, D) or of out-of-sample probabilities (N, K), and the label of each row.

    Classes are the labels that occur, in sorted order, whole numbers by their values. With probabilities, labels that
    are whole numbers are the numbers of the columns, from 0; texts are the columns in sorted order.

    Args:
        labels: A CSV with a column of labels, and perhaps one of ids; or an .npy of integers or texts (N,).
        features: The .npy; one of the two.
        probabilities: The .npy; rows sum to 1.
        label_column: Of the CSV.
        id_column: Of the CSV; without it a row is called by its number, from 0.

    Raises:
        BadInput: a file cannot be read, lengths differ, NaN or infinity is in it, or there is one class only.
    """
    if (features is None) == (probabilities is None):
        raise BadInput("--features or --probabilities: give one of the two")
    file = Path(os.path.expanduser(features or probabilities or ""))
    values = _read_npy(file)
    values_ND = _numbers(file, values, "(N, D) features" if features else "(N, K) probabilities, K at least 2")
    N = len(values_ND)
    labels = Path(os.path.expanduser(labels))
    given, ids, notes = _read_labels(labels, file, N, label_column, id_column)
    _check_finite(file, values_ND, probabilities is not None)
    numbered = all(re.fullmatch(r"0|-?[1-9]\d{0,17}", name) for name in set(given))
    classes = sorted(set(given), key=int) if numbered else sorted(set(given))
    if probabilities is not None:
        classes = _columns(file, labels, values_ND.shape[1], classes, numbered, notes)
    if len(set(given)) < 2:
        raise BadInput(f"{labels}: all labels are {brief(given[0])}: at least two classes are needed")
    if len(classes) > MAX_CLASSES:
        raise BadInput(f"{labels} has {len(classes):,} classes, at most {MAX_CLASSES:,} are possible: merge some")
    label_of = {name: k for k, name in enumerate(classes)}
    there = set(given)
    data = Labelled(
        source=file,
        kind="features",
        classes=tuple(classes),
        labels_N=np.array([label_of[name] for name in given], np.int64),
        names=ids,
        sums=_sums(values_ND, probabilities is not None),
        rows=None,
        empty_classes=tuple(name for name in classes if name not in there),
        notes=tuple(notes),
        labels=labels,
    )
    return Numbers(data, values_ND, None) if features is not None else Numbers(data, None, values_ND)


def _read_npy(file: Path) -> NDArray[Any]:
    try:
        check_file(file, "an .npy file")
        with open(file, "rb") as opened:  # numpy takes whatever is no .npy for pickles
            if opened.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:
                raise BadInput(f"{file} is no .npy file: write one array with numpy.save")
        values: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except BadInput:
        raise
    except Exception as error:  # damaged headers raise nearly anything; every one of them is the file's fault
        if "Python objects" in str(error):
            raise BadInput(
                f"{file} holds pickled objects, which are never loaded: save a plain array, texts by .astype(str)"
            ) from error
        raise BadInput(f"{file} cannot be read ({reason(error)}): write it with numpy.save") from error
    return values


def _numbers(file: Path, values: NDArray[Any], what: str) -> NDArray[Any]:
    if values.ndim != 2 or values.dtype.kind not in "fiu" or 0 in values.shape:
        raise BadInput(f"{file} must hold {what}, as floats, found {values.dtype} of shape {values.shape}")
    plain = values.dtype.kind == "f" and values.dtype.itemsize <= 8
    return values if plain else values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32)


def _check_finite(file: Path, values_ND: NDArray[Any], are_probabilities: bool) -> None:
    """BadInput names the first row with a number that is none, or with probabilities that are none."""
    step = max(1, CHUNK // values_ND.shape[1])
    for start in range(0, len(values_ND), step):
        part_ND = np.asarray(values_ND[start : start + step], np.float64)
        finite_N = np.isfinite(part_ND).all(1)
        if not finite_N.all():
            row = start + int(finite_N.argmin())
            raise BadInput(f"{file}: row {row} (from 0) holds NaN or infinity: replace it or leave the sample out")
        if not are_probabilities:
            continue
        sums_N = part_ND.sum(1)
        # half floats near 1 / K are off by up to 1/4096 of their value
        good_N = (part_ND >= 0).all(1) & (part_ND <= 1).all(1) & (abs(sums_N - 1) <= 0.005)
        if not good_N.all():
            i = int(good_N.argmin())
            raise BadInput(
                f"{file}: row {start + i} (from 0) is no row of probabilities, it lies in {part_ND[i].min():.4g} .. "
                f"{part_ND[i].max():.4g} and sums to {sums_N[i]:.4g}: save softmax outputs, not logits"
            )


def _read_labels(
    file: Path, numbers: Path, N: int, label_column: str, id_column: str
) -> tuple[list[str], tuple[str, ...], list[str]]:
    """(labels as texts, ids, notes) of N rows."""
    notes: list[str] = []
    if file.suffix.lower() == ".npy":
        array = Array(file, "labels", _read_npy(file), notes)
        _same_length(file, np.size(array.values, 0) if array.values.ndim else 0, numbers, N)
        values = read_labels(array, N).values
        found, places_N = np.unique(values, return_inverse=True)
        words = in_words(found) if values.dtype.kind == "U" else tuple(str(int(value)) for value in found)
        if any(not is_name(word) for word in words):
            raise BadInput(f"{file} holds a class name that is empty, no text or holds control characters: rename it")
        return [words[place] for place in places_N], tuple(map(str, range(N))), notes
    table = read_table(file, (label_column, id_column))
    given = table.column(label_column, f"write {label_column} into the header, above the labels")
    _same_length(file, len(given), numbers, N)
    if empty := [row for row, label in enumerate(given) if not label.strip()]:
        raise BadInput(f"{file}: line {table.lines[empty[0]]} has no label: write one")
    if id_column.lower() not in (column.lower() for column in table.columns):
        return given, tuple(map(str, range(N))), notes
    ids = table.column(id_column, "")
    name, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise BadInput(
            f"{file}: the id {brief(name)} stands in {count} rows: give every row its own, or leave them out"
        )
    return given, tuple(ids), notes


def _same_length(labels: Path, found: int, numbers: Path, N: int) -> None:
    if found != N:
        raise BadInput(f"{labels} has {found:,} labels and {numbers} {N:,} rows: give one label for each row")


def _columns(file: Path, labels: Path, K: int, found: list[str], numbered: bool, notes: list[str]) -> list[str]:
    """The classes of K columns of probabilities."""
    if numbered:
        if outside := [name for name in found if not 0 <= int(name) < K]:
            raise BadInput(
                f"{labels} holds the label {outside[0]} and {file} has columns 0 to {K - 1}: "
                "number the classes as the columns"
            )
        return [str(k) for k in range(K)]
    if len(found) != K:
        raise BadInput(
            f"{labels} holds {len(found):,} classes and {file} has {K:,} columns: give a column to each, in sorted "
            "order, or number the labels as the columns"
        )
    notes.append(f"columns of {file} taken for the classes in sorted order: {', '.join(found[:8])}")
    return found


def _sums(values_ND: NDArray[Any], are_probabilities: bool) -> tuple[bytes, ...]:
    """SHA-256 of each row's bytes; of probabilities with its number: sure ones are equal without being copies."""
    if not are_probabilities:
        return tuple(content_sum(np.ascontiguousarray(row_D).tobytes()) for row_D in values_ND)
    return tuple(
        hashlib.sha256(f"{i} ".encode() + np.asarray(row_D).tobytes()).digest() for i, row_D in enumerate(values_ND)
    )
