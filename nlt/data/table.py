"""Tables as people save them: every cell a text, whatever separates them, and the file that each row names."""

import codecs
import csv
import io
import os
import posixpath
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nlt.data.listing import DEBRIS, IMAGE_SUFFIXES
from nlt.data.samples import check_file, reason
from nlt.settings import BadInput, brief

USUAL = ",;\t|: "  # what separates cells, the likeliest first; else any other sign in the header
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
csv.field_size_limit(2**24)  # a cell of 131,072 characters is no error of the file's


@dataclass(frozen=True)
class Table:
    """A CSV file; row i of `rows` ends on line `lines[i]` of the file."""

    file: Path
    columns: tuple[str, ...]
    """Without blanks around them."""
    rows: list[list[str]]
    """As many cells in each as there are columns; nothing is taken for a number or for missing."""
    lines: list[int]
    """From 1, the header's."""

    def column(self, name: str, option: str) -> list[str]:
        """The cells of a column, as `place` finds it."""
        place = self.place(name, option)
        return [row[place] for row in self.rows]

    def place(self, name: str, option: str) -> int:
        """Which column is called so, but for capitals; BadInput, which names `option`, if there is none."""
        exact = [i for i, column in enumerate(self.columns) if column == name]
        places = exact or [i for i, column in enumerate(self.columns) if column.lower() == name.lower()]
        if not places:
            shown = ", ".join(brief(column, 30) for column in self.columns[:8]) + ", ..." * (len(self.columns) > 8)
            raise BadInput(f"{self.file} has no column {brief(name)}, only {shown}: {option}")
        if len(places) > 1:
            raise BadInput(f"{self.file} has {len(places)} columns called {brief(name)}: rename all but one")
        return places[0]


def read_table(file: Path, wanted: tuple[str, ...]) -> Table:
    """Read a CSV of UTF-8 or UTF-16 with a header; cells stay texts.

    Args:
        file: The CSV; a first line `sep=;`, as spreadsheets write it, is understood.
        wanted: Columns; of several signs that may separate cells, the one under which most of them are there is taken.

    Raises:
        BadInput: the file cannot be read, has no rows, or a row has more cells than the header.
    """
    return parse_table(file, _content(file), wanted)


def parse_table(file: Path, content: bytes, wanted: tuple[str, ...]) -> Table:
    """Read a CSV as `read_table` does, of which the content is there; `file` stands in error messages."""
    text = _text(file, content)
    first, _, rest = text.partition("\n")
    if len(first.rstrip("\r")) == 5 and first.startswith("sep="):
        signs, text, skipped = [first[4]], rest, 1
    else:
        signs, skipped = _signs(first), 0
    names = {name.lower() for name in wanted}

    def fits(sign: str) -> tuple[int, int]:
        header = [cell.strip().lower() for cell in _first_row(text, sign)]
        return len(names & set(header)), len(header)

    sign = max(signs, key=fits)  # the first of equals
    blanks = all(cell.startswith(" ") for cell in _first_row(text, sign)[1:]) and sign != " "
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign, skipinitialspace=blanks, strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if row:  # an empty line is no row
                rows.append(row)
                lines.append(reader.line_num + skipped)
    except csv.Error as error:
        raise BadInput(
            f"{file}: line {reader.line_num + skipped} is no line of a CSV ({reason(error)}): mend its quotes"
        ) from error
    if not rows:
        raise BadInput(f"{file} is empty: write a header and a row for each image into it")
    columns = tuple(cell.strip() for cell in rows[0])
    for row, line in zip(rows[1:], lines[1:], strict=True):
        if len(row) > len(columns) and any(row[len(columns) :]):
            raise BadInput(
                f"{file}: line {line} has {len(row)} cells and the header {len(columns)}: put texts that hold "
                f"{brief(sign)} into quotes"
            )
        row[len(columns) :] = [""] * (len(columns) - len(row))
    if len(rows) == 1:
        raise BadInput(f"{file} has a header and no rows: write one for each image into it")
    return Table(file, columns, rows[1:], lines[1:])


def _content(file: Path) -> bytes:
    try:
        check_file(file, "a CSV file")
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read ({reason(error)}): name a CSV file") from error


def _text(file: Path, raw: bytes) -> str:
    encoding = next((name for mark, name in MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{file}: byte {error.start} is not {encoding.upper()}: save it as UTF-8 (in a spreadsheet: CSV UTF-8)"
        ) from error
    if "\0" in text:
        raise BadInput(f"{file} holds the character \\u0000: save it as text, in UTF-8")
    return text


def _signs(header: str) -> list[str]:
    others = {c for c in header if not (c.isalnum() or c.isspace() or c in "_-./\"'" or c in USUAL)}
    return [*USUAL, *sorted(others)]


def _first_row(text: str, sign: str) -> list[str]:
    try:
        return next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=sign)), [])
    except csv.Error:
        return []


# ---- the files that rows name


class Named(NamedTuple):
    """The images of a table."""

    paths: list[str]
    """Relative to the folder, "/" between."""
    rows: list[int]
    """The row of each, the first one where several name it."""
    repeated: int
    """Rows that name an image once more, with the same label."""
    unnamed: list[str]
    """Images in the folder that no row names."""


def name_files(table: Table, folder: Path, paths: list[str], labels: list[str], root_option: str = "") -> Named:
    """Find the file of each row: relative to `folder`, or absolute within it; backslashes and "./" are understood.

    Where the letters of a path are composed otherwise than on the disk (NFC, NFD), the file is found all the same.
    `root_option` is what names another folder, if something does, for the sentence on files that are missing.

    Raises:
        BadInput: rows without a file, without a label, or outside `folder`; rows of one file with different labels.
    """
    top = os.path.realpath(folder)
    on_disk = list(_images(folder))
    by_letters: dict[str, str] = {}
    for path in on_disk:
        by_letters.setdefault(unicodedata.normalize("NFC", path), path)
    found: dict[str, int] = {}
    missing: list[int] = []
    repeated = 0
    checked: dict[str, bool] = {}
    for row, (given, label) in enumerate(zip(paths, labels, strict=True)):
        line = table.lines[row]
        if not given.strip() or not label.strip():
            what = "path" if not given.strip() else "label"
            raise BadInput(f"{table.file}: line {line} has no {what}: write one or remove the line")
        place = _place(table, line, folder, given, by_letters)
        if place is None:
            missing.append(row)
            continue
        _check_link(folder, top, place, checked)
        if (before := found.setdefault(place, row)) != row:
            if labels[before] != label:
                raise BadInput(
                    f"{table.file}: lines {table.lines[before]} and {line} give {brief(place)} the labels "
                    f"{brief(labels[before])} and {brief(label)}: remove one"
                )
            repeated += 1
    if missing:
        count = "a row names a file that is" if len(missing) == 1 else f"{len(missing):,} rows name files that are"
        raise BadInput(
            f"{table.file}: {count} not in {folder}, first {brief(paths[missing[0]], 200)} on line "
            f"{table.lines[missing[0]]}: correct the paths, which are relative to that folder, or remove the rows"
            + (f", or set {root_option}" if root_option else "")
        )
    return Named(list(found), list(found.values()), repeated, [path for path in on_disk if path not in found])


def _place(table: Table, line: int, folder: Path, given: str, by_letters: dict[str, str]) -> str | None:
    """The path of a file in the folder as the disk has it; None if there is none."""
    outside = False
    slashed = given.replace("\\", "/")
    for text in dict.fromkeys((given, given.strip(), slashed, slashed.strip())):
        path = _relative(folder, text)
        if path == ".." or path.startswith("../"):
            outside = True
            continue
        # as it is called, or with its letters composed as on the disk
        for name in (path, by_letters.get(unicodedata.normalize("NFC", path))):
            if name is not None and not os.path.isabs(name) and _is_file(folder / name):  # no link to nothing
                return name
    if outside:
        raise BadInput(
            f"{table.file}: line {line} names {brief(given)}, which leaves {folder}: name a folder that holds all"
        )
    return None


def _relative(folder: Path, text: str) -> str:
    path = posixpath.normpath(text)
    if os.path.isabs(path):
        for top in (os.path.abspath(folder), os.path.realpath(folder)):
            if path.startswith(top.rstrip("/") + "/"):
                return os.path.relpath(path, top)
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or no UTF-8
        return False


def _check_link(folder: Path, top: str, place: str, checked: dict[str, bool]) -> None:
    """BadInput if the file, or a folder it is in, is a link that leaves the folder; folders are looked at once."""
    parent = posixpath.dirname(place)
    if parent not in checked:
        checked[parent] = os.path.join(os.path.realpath(folder / parent), "").startswith(os.path.join(top, ""))
    file = folder / place
    inside = checked[parent] and (not file.is_symlink() or os.path.realpath(file).startswith(os.path.join(top, "")))
    if not inside:
        raise BadInput(f"{file} is a link that leaves {folder}: put the images themselves there")


def _images(folder: Path) -> Iterator[str]:
    """Paths of the files in the folder that are images by their names, sorted within folders; links to folders not."""
    for inside, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name.lower() not in DEBRIS)
        below = os.path.relpath(inside, folder)
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield name if below == "." else f"{below}/{name}"
