"""People's decisions on samples: read from CSV files, checked line by line, merged without loss or doubling."""

import csv
import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nlt.settings import BadInput, brief

WORDS = ("keep", "relabel", "remove", "unsure")
UNDECIDED = (*WORDS, "")  # an empty decision is none: taken back at its time, without a time not filled in yet
OWN = "p_wrong"  # a column of labels.csv, whose decisions are automatic


@dataclass(frozen=True)
class Decision:
    """What one person said of one sample."""

    row: int
    """The sample's row in the input."""
    decision: str
    """keep (the given label is right), relabel, remove (no class fits), unsure; "" takes back what was said."""
    label: str
    """The right one: the given label of keep; "" of remove and unsure."""
    tab: str
    """"sample" where it was taken in the random sample."""
    time: str
    reviewer: str
    """Who said so; of a file without that column, the file."""
    file: str
    line: int

    @property
    def verdict(self) -> tuple[str, str]:
        """What two people agree in or not."""
        return self.decision, self.label


@dataclass(frozen=True)
class Found:
    """What decisions are about: the samples of a result."""

    digest: str
    id: str
    """The name of the column that names a sample: "path" or "id"."""
    classes: tuple[str, ...]
    rows: Mapping[str, tuple[int, str, str]]
    """Name -> (row, given label, SHA-256)."""

    @staticmethod
    def of(table: pd.DataFrame, digest: str, classes: Sequence[str]) -> "Found":
        """Of a table as `decide` returns it."""
        readable = table[table.index >= 0]
        columns = (readable.index, readable.iloc[:, 0], readable["given_label"], readable["sha256"])
        rows = {str(name): (int(row), given, content) for row, name, given, content in zip(*columns, strict=True)}
        return Found(digest, str(table.columns[0]), tuple(classes), rows)


def read_decisions(file: Path, content: bytes, found: Found, carried: bool = False) -> list[Decision]:
    """Return the decisions in the content of a CSV file with the columns of `decisions.csv`.

    Needed are the columns `path` (`id`) and `decision`, and `label` for relabel; `sha256`, `given_label`, `tab`,
    `time`, `reviewer` and `result` may be missing. A line without a decision counts where it has a time: it takes back.

    Args:
        file: What error messages call it.
        content: UTF-8, separated by commas, semicolons or tabs.
        found: the result that they are about.
        carried: from an output folder, where it may be about an earlier result: lines of other samples are passed over,
            and none of another result counts for the random sample.

    Raises:
        BadInput: no such table, or one that nlt wrote itself, or a line that is of another result, names an unknown
            sample or class, or says nothing.
    """
    lines = _lines(file, content, found, carried)
    decisions = []
    for number, line in lines:
        at = f"{file} line {number}"
        foreign = line.get("result", "") not in ("", found.digest)
        if foreign and not carried:
            raise BadInput(f"{at}: result {brief(line['result'])} is not the one in this folder: apply it to its own")
        try:
            row, given = _row(at, line, found)
            decision, label = _verdict(at, line, given, found)
        except BadInput:
            if carried:
                continue
            raise
        if decision or line.get("time", ""):
            reviewer = line.get("reviewer", "") or f"file {content_name(content)}"
            tab = "" if foreign else line.get("tab", "")
            when, name = line.get("time", ""), f"{content_name(content)}.csv"
            decisions.append(Decision(row, decision, label, tab, when, reviewer, name, number))
    return decisions


def read_file(file: Path) -> bytes:
    """Return a file's bytes; BadInput where it cannot be read."""
    try:
        if not file.is_file():
            raise BadInput(f"{file} is {'no file' if file.exists() else 'not there'}: name a decisions.csv")
        return file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        what = getattr(error, "strerror", None) or "no file name"
        raise BadInput(f"{file} cannot be read ({what}): name a decisions.csv") from error


def content_name(content: bytes) -> str:
    """Return what a decisions file is called by in the output folder: a hash of what it holds."""
    return hashlib.sha256(content).hexdigest()[:16]


def _lines(file: Path, content: bytes, found: Found, carried: bool) -> list[tuple[int, dict[str, str]]]:
    """(line number, column -> text) of every line that is not empty."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is no text in UTF-8: save it as a CSV file in UTF-8") from error
    head = re.split(r"[\r\n]", text, maxsplit=1)[0]
    separator = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
        if OWN in columns:
            mend = "remove it" if carried else "name the decisions.csv that report.html downloads"
            raise BadInput(f"{file} is nlt's own table (it has a column {OWN}) and not what people decided: {mend}")
        wanted = [found.id, "decision"]
        if missing := [name for name in wanted if name not in columns]:
            raise BadInput(f"{file} has no column {missing[0]}: its first line must name {' and '.join(wanted)}")
        if doubled := [name for name in columns if name and columns.count(name) > 1]:
            raise BadInput(f"{file} has two columns {brief(doubled[0])}: remove one")
        lines = []
        for values in reader:
            if not any(values):
                continue
            if len(values) != len(columns):
                raise BadInput(
                    f"{file} line {reader.line_num} has {len(values)} fields and the first line {len(columns)}: mend it"
                )
            lines.append((reader.line_num, dict(zip(columns, values, strict=True))))
    except csv.Error as error:
        raise BadInput(f"{file} line {reader.line_num} is no CSV ({error}): save it anew") from error
    return lines


def _row(at: str, line: Mapping[str, str], found: Found) -> tuple[int, str]:
    """(row, given label) of the sample that a line is about."""
    name = line[found.id]
    if name not in found.rows:
        raise BadInput(f"{at}: {found.id} {brief(name)} is none of this result's: remove the line")
    row, given, content = found.rows[name]
    if line.get("given_label", "") not in ("", given):
        told = brief(line["given_label"])
        raise BadInput(f"{at}: given_label {told} is not that of {brief(name)}, {brief(given)}: remove the line")
    if line.get("sha256", "") not in ("", content):
        raise BadInput(f"{at}: sha256 is not that of {brief(name)}, which has changed since: remove the line")
    return row, given


def _verdict(at: str, line: Mapping[str, str], given: str, found: Found) -> tuple[str, str]:
    """(decision, label), where relabelling to the given label is keeping it."""
    decision, label = line["decision"].strip(), line.get("label", "")
    if decision not in UNDECIDED:
        raise BadInput(f"{at}: decision {brief(decision)} is none of {', '.join(WORDS)}: write one of them")
    if decision == "keep":
        if label not in ("", given):
            raise BadInput(f"{at}: keep and label {brief(label)} contradict each other: write relabel, or no label")
        return "keep", given
    if decision != "relabel":
        return decision, ""
    if label not in found.classes:
        raise BadInput(f"{at}: label {brief(label)} is none of the {len(found.classes)} classes: write one of them")
    return ("keep", given) if label == given else ("relabel", label)


def merge(decisions: Iterable[Decision]) -> tuple[dict[int, Decision], dict[int, list[Decision]]]:
    """Return (row -> what holds, row -> what people disagree in).

    Of what one person said of a sample the latest holds (by time, at the same time what takes back, then by the order
    given), and nothing where the latest takes back. Who was unsure abstains where another was sure. Disagreements list
    each person's decision, in the order of their names.
    """
    latest: dict[int, dict[str, Decision]] = defaultdict(dict)
    for decision in decisions:
        before = latest[decision.row].get(decision.reviewer)
        if before is None or (decision.time, not decision.decision) >= (before.time, not before.decision):
            latest[decision.row][decision.reviewer] = decision
    agreed, open_ = {}, {}
    for row, by_person in sorted(latest.items()):
        people = [by_person[name] for name in sorted(by_person) if by_person[name].decision]
        if not people:
            continue
        sure = [decision for decision in people if decision.decision != "unsure"] or people
        if len({decision.verdict for decision in sure}) == 1:
            agreed[row] = sure[0]
        else:
            open_[row] = people
    return agreed, open_
