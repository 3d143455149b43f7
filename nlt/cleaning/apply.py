"""Decisions in: the clean data set written anew, the rate from the random sample, how often suggestions were right."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nlt.cleaning.decide import final_labels, numbers
from nlt.cleaning.decisions import Decision, Found, content_name, merge, read_decisions, read_file
from nlt.cleaning.export import table_bytes
from nlt.cleaning.folder import DECISIONS, built, carry, read_manifest, real_place
from nlt.cleaning.output import result_digest, write_result
from nlt.cleaning.page import with_review
from nlt.cleaning.sample import Estimate, Sample, estimate_rate
from nlt.data.labelled import read_labelled
from nlt.settings import BadInput


@dataclass(frozen=True)
class Applied:
    """What decisions came to, of all files that the output folder has seen."""

    folder: Path
    decided: int
    """Samples with a decision that holds; kept + relabelled + removed + unsure."""
    kept: int
    relabelled: int
    removed: int
    unsure: int
    disagreements: int
    """Samples that people disagree in; listed in disagreements.csv, and left to review."""
    suggestions: int
    """Samples with another label suggested that somebody was sure about."""
    suggestions_right: int
    """Of them, those where the suggested label was the right one."""
    sample_answered: int
    """Answers on the random sample that count so far, of `sample_size`."""
    sample_size: int
    rate: Estimate | None
    """Of wrong labels, from the random sample; None while too few of it are answered."""
    images: int
    """Samples in the clean data set."""


def apply(out: Path, decisions: Sequence[Path] = ()) -> Applied:
    """Take people's decisions into an output folder of `nlt detect` and write its clean data set anew.

    Each file is kept in OUT/decisions/ under a hash of its content, and every one that is there counts: the same file
    twice changes nothing, files of several people are merged. The rate is `estimate_rate`'s, Horvitz and Thompson's.

    Raises:
        BadInput: no output folder, no decisions, a file with a line that does not fit, images that have changed since.
    """
    called, out = out, real_place(out)
    read_manifest(out)  # BadInput before anything is made beside what is none of ours
    given = [(file, read_file(file)) for file in decisions]
    contents = {content_name(content): content for _, content in given}
    with built(out) as part:  # nobody else writes there between what is read and what is written
        manifest = read_manifest(out)
        table, rows, sample, source = _read_result(out, manifest)
        found = Found.of(table, manifest["result"], manifest["classes"])
        taken = [decision for file, content in given for decision in read_decisions(file, content, found)]
        there = [(file, read_file(file)) for file in sorted((out / DECISIONS).glob("*.csv"))]
        carried = [(file, content) for file, content in there if content_name(content) not in contents]
        earlier = [
            decision for file, content in carried for decision in read_decisions(file, content, found, carried=True)
        ]
        if not decisions and not carried:
            raise BadInput(
                f"{out} has no decisions yet: review {out / 'report.html'} and name the file that it downloads"
            )
        agreed, open_ = merge([*earlier, *taken])
        decided = decide_anew(table, agreed, open_, manifest["action"])
        applied = _summary(out, decided, table, agreed, open_, sample, [*earlier, *taken])
        if manifest["kind"] in ("folder", "list"):
            _check_files(source, decided)
        pixels_NCHW = _read_pixels(source, table) if manifest["kind"] == "npz" else None
        reviewed = {key: value for key, value in asdict(applied).items() if key != "folder"}
        for name in ("worst.png", "detected"):
            carry(out / name, part / name)
        if (page := out / "report.html").is_file():
            text = with_review(page.read_text(encoding="utf-8"), applied)
            (part / "report.html").write_text(text, encoding="utf-8")
        (part / DECISIONS).mkdir()
        for file, content in carried:
            (part / DECISIONS / file.name).write_bytes(content)
        for name, content in contents.items():
            (part / DECISIONS / f"{name}.csv").write_bytes(content)
        if open_:
            (part / "disagreements.csv").write_bytes(_disagreements(open_, table))
        write_result(part, decided, source, rows, pixels_NCHW, manifest | {"reviewed": _rounded(reviewed)})
    return replace(applied, folder=called)


def decide_anew(
    table: pd.DataFrame, agreed: Mapping[int, Decision], open_: Mapping[int, object], action: Any
) -> pd.DataFrame:
    """Return the table with people's decisions in the place of the automatic ones; the rest is as it was."""
    decided = table.copy()
    places = {row: place for place, row in enumerate(decided.index) if row >= 0}
    columns = {name: list(decided[name]) for name in ("decision", "reason", "label")}
    for row in [*agreed, *open_]:
        place = places[row]
        held = agreed.get(row)
        word = held.decision if held is not None else "disagreement"
        columns["decision"][place] = word if word in ("keep", "relabel", "remove") else "review"
        note = word if columns["decision"][place] == "review" else "reviewed"
        columns["reason"][place] = "; ".join(filter(None, [note, columns["reason"][place]]))
    for name in ("decision", "reason"):
        decided[name] = columns[name]
    decided["label"] = final_labels(decided, action)
    columns["label"] = list(decided["label"])
    for row, held in agreed.items():
        if held.decision in ("keep", "relabel"):
            columns["label"][places[row]] = held.label
    decided["label"] = columns["label"]
    return decided


def _summary(
    out: Path,
    decided: pd.DataFrame,
    table: pd.DataFrame,
    agreed: Mapping[int, Decision],
    open_: Mapping[int, list[Decision]],
    sample: Sample,
    taken: Sequence[Decision],
) -> Applied:
    count = {word: sum(d.decision == word for d in agreed.values()) for word in ("keep", "relabel", "remove", "unsure")}
    suggested = {
        int(row): label
        for row, given, label in zip(table.index, table["given_label"], table["suggested_label"], strict=True)
        if row >= 0 and given != label
    }
    sure = [d for d in agreed.values() if d.decision != "unsure" and d.row in suggested]
    answers: dict[int, bool | None] = dict.fromkeys(open_)
    answers |= {row: None if d.decision == "unsure" else d.decision != "keep" for row, d in agreed.items()}
    counted = _counted(sample, answers, taken)
    return Applied(
        folder=out,
        decided=len(agreed),
        kept=count["keep"],
        relabelled=count["relabel"],
        removed=count["remove"],
        unsure=count["unsure"],
        disagreements=len(open_),
        suggestions=len(sure),
        suggestions_right=sum(d.label == suggested[d.row] for d in sure),
        sample_answered=counted,
        sample_size=len(sample.rows),
        rate=estimate_rate(sample, answers, counted),
        images=int((decided["label"] != "").sum()),
    )


def _counted(sample: Sample, answers: Mapping[int, bool | None], taken: Sequence[Decision]) -> int:
    """How much of the sample's beginning counts: without a gap, up to the last answer given in the sample itself.

    Who only reviews the worst meets some of the random ones, too, and no fair choice of them.
    """
    in_sample = {decision.row for decision in taken if decision.tab == "sample"}
    gap = next((i for i, row in enumerate(sample.rows) if row not in answers), len(sample.rows))
    return max((i + 1 for i, row in enumerate(sample.rows[:gap]) if row in in_sample), default=0)


def _read_result(out: Path, manifest: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame | None, Sample, Path]:
    """(table as detected, the user's rows, random sample, the input's path); BadInput where they do not fit."""
    file = out / "detected" / "labels.csv"
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, index_col="row")
        table.index = table.index.astype("int64")
        for name in numbers(table):
            table[name] = pd.to_numeric(table[name], errors="coerce").astype("float64")
        drawn = manifest["sample"]
        sample = Sample(tuple(drawn["rows"]), tuple(drawn["strata"]), tuple(drawn["sizes"]))
        whole = result_digest(table, manifest["classes"], drawn["names"]) == manifest["result"]
        rows = out / "detected" / "rows.csv"
        given = _read_rows(rows) if rows.is_file() else None
        whole &= manifest["kind"] in ("folder", "list", "npz", "features")
        whole &= "action" in manifest and "export" in manifest
        whole &= given is None or manifest.get("label_column", 0) in range(given.shape[1])
        source = Path(os.path.normpath(os.path.join(os.path.realpath(out), manifest["source"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{out} is damaged ({file.name} of detected/ or the manifest): run nlt detect again") from error
    if not whole:
        raise BadInput(f"{file} was changed since nlt detect wrote it: run nlt detect again")
    if given is not None and "label_column" not in manifest:
        raise BadInput(
            f"{out} was written by an earlier nlt, which did not note the column of the labels: run nlt detect again, "
            "decisions stay"
        )
    if not source.exists():
        raise BadInput(f"{source}, which {out} was made from, is not there: put it back, or run nlt detect again")
    return table, given, sample, source


def _read_rows(file: Path) -> pd.DataFrame:
    """The user's table, whose columns may have any names, the same one twice, too."""
    lines = pd.read_csv(file, dtype=str, keep_default_na=False, header=None, skip_blank_lines=False)
    return lines.iloc[1:].reset_index(drop=True).set_axis(list(lines.iloc[0]), axis=1)


def _read_pixels(source: Path, table: pd.DataFrame) -> NDArray[np.uint8] | None:
    """The images of an npz; BadInput where they are not those that were judged."""
    data = read_labelled(source)
    if [digest.hex() for digest in data.sums] != list(table[table.index >= 0].sort_index()["sha256"]):
        raise BadInput(f"{source} has changed since nlt detect judged it: run nlt detect again")
    return data.pixels_NCHW


def _check_files(source: Path, decided: pd.DataFrame) -> None:
    """Raise BadInput where a file that stays holds other bytes than those that were judged."""
    for name, digest, label in zip(decided.iloc[:, 0], decided["sha256"], decided["label"], strict=True):
        if label:
            try:
                with (source / name).open("rb") as file:
                    same = hashlib.file_digest(file, "sha256").hexdigest() == digest
            except OSError as error:
                raise BadInput(f"{source / name} cannot be read ({error.strerror}): put it back") from error
            if not same:
                raise BadInput(f"{source / name} has changed since nlt detect judged it: run nlt detect again")


def _disagreements(open_: Mapping[int, list[Decision]], table: pd.DataFrame) -> bytes:
    columns = [table.columns[0], "given_label", "suggested_label"]
    told = [
        [*table.loc[row, columns], said.reviewer, said.decision, said.label, said.file, said.line]
        for row, people in open_.items()
        for said in people
    ]
    return table_bytes(pd.DataFrame(told, columns=[*columns, "reviewer", "decision", "label", "file", "line"]))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return round(value, 6) if isinstance(value, float) else value
