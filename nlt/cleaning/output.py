"""The output folder of `nlt detect`: the table, the page, the clean data set, and the manifest of what changed.

    labels.csv        every sample, the worst first          report.html   what was found, and the review
    manifest.json     what changed, counts, settings         worst.png     the worst as a grid
    clean/ or clean.csv, clean.npz, labelstudio.json         detected/     what was found before any review
    decisions/        people's decisions, by content         disagreements.csv

The same input and settings give the same bytes. Legend: N samples, K classes.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from nlt.cleaning.decide import THRESHOLD, Action, decide
from nlt.cleaning.export import Clean, Export, check_export, table_bytes, write_clean
from nlt.cleaning.folder import DECISIONS, MANIFEST, MARK, built, check_place, from_out
from nlt.cleaning.page import review_page, shown_rows, thumbnails
from nlt.cleaning.sample import Sample, draw_sample
from nlt.figures import image_grid

if TYPE_CHECKING:
    from nlt.data.checks import Issue
    from nlt.data.labelled import Labelled
    from nlt.detect import LabelErrors

REVIEWED, SAMPLED = 1_000, 100  # samples in the page: the worst, and the random ones
GRID, GRID_SIDE = 60, 96  # of worst.png


@dataclass(frozen=True)
class Output:
    """What was written, and how many samples it holds."""

    folder: Path
    images: int
    flagged: int
    """Samples whose label is taken for wrong: all decisions but keep, without unreadable files."""
    unreadable: int
    emptied: tuple[str, ...]
    """Classes of which no sample is in the clean data set."""


def write_output(
    out: Path,
    data: "Labelled",
    errors: "LabelErrors",
    issues: Sequence["Issue"] = (),
    *,
    action: Action = "remove",
    export: Export = "folder",
    threshold: float = THRESHOLD,
    review: int = REVIEWED,
    sample: int = SAMPLED,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Output:
    """Write the output folder whole or not at all; one of ours before it is replaced, its decisions are carried over.

    Args:
        out: the folder; beside the input, never in it.
        data: what was judged.
        errors: what was found, row by row of `data`.
        issues: what `check_labelled` and the like found.
        action: what becomes of flagged samples.
        export: the form of the clean data set.
        threshold: flagged is p_wrong above it.
        review: how many of the worst the page shows.
        sample: how many random ones the page shows for the rate.
        seed: of the random sample.
        settings: what else led to the result; goes into the manifest.

    Raises:
        BadInput: as `check_place`, `check_export`, `decide` and `built`.
    """
    check_place(out, data.source, data.labels)
    check_export(export, data.kind)
    table = decide(data, errors, issues, action, threshold)
    drawn = draw_sample(errors.p_wrong_N, sample, seed)
    digest = result_digest(table, errors.classes, [data.names[row] for row in drawn.rows])
    manifest = {
        "nlt": MARK,
        "versions": {name: version(name) for name in ("nlt", "numpy", "pandas", "pillow")},
        "source": from_out(out, data.source),
        "labels": None if data.labels is None else from_out(out, data.labels),
        "label_column": data.label_column,
        "kind": data.kind,
        "input": input_digest(data),
        "result": digest,
        "action": action,
        "export": export,
        "threshold": threshold,
        "seed": seed,
        "settings": dict(settings or {}),
        "classes": list(errors.classes),
        "images": len(data.names),
        "detector": {"features": errors.features, "accuracy": _short(errors.accuracy), "ranking": errors.ranking},
        "rate": _rate(errors.rate),
        "rate_per_class": {name: _rate(rate) for name, rate in zip(errors.classes, errors.per_class, strict=True)},
        "issues": [{"kind": issue.kind, "images": len(issue.rows), "sentence": issue.sentence} for issue in issues],
        "unreadable": [list(line) for line in sorted(data.left_out)],
        "sample": sample_for_json(drawn, data.names),
        "reviewed": None,
    }
    readable = table[table.index >= 0]
    rows = list(dict.fromkeys([*shown_rows(readable, drawn, review), *map(int, readable.index[:GRID])]))
    pictures = {} if data.kind == "features" else dict(zip(rows, thumbnails(data, rows), strict=True))
    page = review_page(data, table, errors, issues, drawn, digest, review, threshold, pictures)
    with built(out) as part:
        (part / "detected").mkdir()
        (part / "detected" / "labels.csv").write_bytes(table_bytes(table, with_rows=True))
        if data.rows is not None:
            (part / "detected" / "rows.csv").write_bytes(table_bytes(data.rows))
        (part / "report.html").write_text(page, encoding="utf-8")
        if data.kind != "features":
            worst_grid(part / "worst.png", table, pictures)
        write_result(part, table, data.source, data.rows, data.pixels_NCHW, manifest)
    emptied = tuple(sorted(set(readable["given_label"]) - set(readable["label"])))
    flagged = int((readable["decision"] != "keep").sum())
    return Output(out, len(readable), flagged, len(table) - len(readable), emptied)


def write_result(
    part: Path,
    table: pd.DataFrame,
    source: Path,
    rows: pd.DataFrame | None,
    pixels_NCHW: NDArray[np.uint8] | None,
    manifest: Mapping[str, Any],
) -> None:
    """Write what changes with decisions: labels.csv, the clean data set, and the manifest last."""
    (part / "labels.csv").write_bytes(table_bytes(table))
    (part / DECISIONS).mkdir(exist_ok=True)
    in_order = table[table.index >= 0].sort_index()
    kind, classes = manifest["kind"], tuple(manifest["classes"])
    clean = Clean(source, kind, classes, in_order, rows, pixels_NCHW, manifest.get("label_column"))
    folders = write_clean(part, clean, manifest["export"])
    changed = table[table["decision"] != "keep"]
    full = dict(manifest) | {
        "decisions": {str(k): int(n) for k, n in table["decision"].value_counts(sort=False).sort_index().items()},
        "given": _count(in_order["given_label"], manifest["classes"]),
        "clean": _count(in_order["label"], manifest["classes"]),
        "folders": folders,
        "changes": [dict(zip(_CHANGED, line, strict=True)) for line in _change_lines(changed)],
    }
    text = json.dumps(full, ensure_ascii=False, indent=1, sort_keys=True)
    (part / MANIFEST).write_text(text + "\n", encoding="utf-8")


_CHANGED = ("name", "given_label", "decision", "label", "reason")


def _change_lines(changed: pd.DataFrame) -> list[tuple[str, ...]]:
    columns = [changed.columns[0], *_CHANGED[1:]]
    return list(changed[columns].itertuples(index=False, name=None))


def result_digest(table: pd.DataFrame, classes: Sequence[str], sampled: Sequence[str]) -> str:
    """Return what decisions belong to: the SHA-256 of what was found and drawn, whatever is done about it."""
    found = table.drop(columns=["decision", "reason", "label"])
    head = json.dumps([list(classes), list(sampled)]).encode()
    return hashlib.sha256(head + b"\n" + table_bytes(found)).hexdigest()


def input_digest(data: "Labelled") -> str:
    """Return the SHA-256 over names, content, labels and splits."""
    sums = [digest.hex() for digest in data.sums]
    told = [list(data.classes), data.labels_N.tolist(), list(data.names), sums, data.splits and list(data.splits)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def sample_for_json(sample: Sample, names: Sequence[str]) -> dict[str, Any]:
    """Return a sample with its inclusion probabilities; `nlt apply` estimates the rate from it."""
    drawn = [sample.strata.count(h) for h in range(len(sample.sizes))]
    return {
        "names": [names[row] for row in sample.rows],
        **asdict(sample),
        "inclusion": [_short(n / size) for n, size in zip(drawn, sample.sizes, strict=True)],
    }


def worst_grid(file: Path, table: pd.DataFrame, pictures: Mapping[int, bytes]) -> None:
    """Write the `GRID` worst images, with given and suggested label below each, as a PNG."""
    worst = table[table.index >= 0].head(GRID)
    square_NHWC = np.full((len(worst), GRID_SIDE, GRID_SIDE, 3), 255, np.uint8)
    for place, row in enumerate(worst.index):
        image = Image.open(io.BytesIO(pictures[int(row)])).convert("RGB")
        image.thumbnail((GRID_SIDE, GRID_SIDE))
        scale = max(1, GRID_SIDE // max(image.size))
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        y, x = (GRID_SIDE - image.height) // 2, (GRID_SIDE - image.width) // 2
        square_NHWC[place, y : y + image.height, x : x + image.width] = np.asarray(image)
    captions = [
        (f"{line.given_label}\n→ {line.suggested_label}", line.decision != "keep") for line in worst.itertuples()
    ]
    import torch

    Image.fromarray(image_grid(torch.from_numpy(square_NHWC), captions)).save(file)


def _count(labels: pd.Series, classes: Sequence[str]) -> dict[str, int]:
    found = labels.value_counts()
    return {name: int(found.get(name, 0)) for name in classes}


def _rate(rate: Any) -> dict[str, Any]:
    return {"point": _short(rate.point), "low": _short(rate.low), "high": _short(rate.high), "reading": rate.reading}


def _short(number: float) -> float:
    return round(float(number), 6)
