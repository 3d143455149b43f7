"""A matrix of numbers out of a CSV without names or an .npy."""

import io
import re
from pathlib import Path

import numpy as np

from nlt.data.samples import MAX_CLASSES, reason
from nlt.settings import BadInput, brief


def read_matrix(file: Path, content: bytes) -> list[list[float]]:
    """Return the rows of the file's `content`, all numbers in [0, 1].

    Raises:
        BadInput: it is neither, holds anything else, or has too many rows.
    """
    if file.suffix.lower() not in (".csv", ".npy"):
        raise BadInput(f"noise.path: {file} is no .csv and no .npy: save the matrix as one of the two")
    rows = _of_npy(file, content) if file.suffix.lower() == ".npy" else _of_csv(file, content)
    if len(rows) > MAX_CLASSES:
        raise BadInput(f"{file} has {len(rows):,} rows, at most {MAX_CLASSES:,} are possible: merge some classes")
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if not 0 <= value <= 1:  # nor NaN
                raise BadInput(f"{file}: row {i}, column {j} (from 0) is {value:g}: write a probability in [0, 1]")
    return rows


def _of_npy(file: Path, content: bytes) -> list[list[float]]:
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # damaged headers raise nearly anything; every one of them is the file's fault
        raise BadInput(f"{file} cannot be read ({reason(error)}): write it with numpy.save") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
        found = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise BadInput(f"{file} must hold a matrix of numbers, found {found}: save one K x K array with numpy.save")
    return [[float(value) for value in row] for row in values.astype(np.float64)]


def _of_csv(file: Path, content: bytes) -> list[list[float]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: byte {error.start} is not UTF-8: save it as UTF-8") from error
    rows: list[list[float]] = []
    for line, written in enumerate(text.splitlines(), start=1):
        if not written.strip():
            continue
        row = []
        for cell in re.split(r"\s*[,;\t]\s*|\s+", written.strip()):
            try:
                row.append(float(cell))
            except ValueError:
                raise BadInput(
                    f"{file}: line {line} holds {brief(cell)}, which is no number: leave names out and write numbers "
                    "as 0.25, commas between them"
                ) from None
        rows.append(row)
    if not rows:
        raise BadInput(f"{file} is empty: write a row of the matrix into each line")
    return rows
