"""The tables of docs/detection.md out of its measurements, and which goals they meet; `detection.py` measures."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

BEGIN, END = "<!-- tables: written by docs/detection.py -->", "<!-- end of tables -->"
MISS = " ✗"
HUMAN = {"human, aggregate": "aggre_label", "human, random 1": "random_label1", "human, worst": "worse_label"}
DATA = ("digits", "CIFAR-10", "CIFAR-4")
NOISES = (
    "clean", *(f"symmetric {rate} %" for rate in (5, 10, 20, 40, 60)),
    *(f"{kind} {rate} %" for kind in ("pair flip", "asymmetric", "instance-dependent") for rate in (20, 40)), *HUMAN,
)  # fmt: skip
"""Rows in the order of the tables."""
LEAST_AUROC = {  # of lite0 on CIFAR-10
    "symmetric 20 %": 0.97, "symmetric 60 %": 0.955, "pair flip 40 %": 0.965, "human, worst": 0.91
}  # fmt: skip
BEHIND, MOST_FLAGGED, POINTS = 0.005, 0.02, 0.03
Line = dict[str, Any]
Goal = Callable[["Row"], bool | None]


class Row:
    """All seeds of one data set and noise; of figures that a seed lacks the others' mean is taken."""

    def __init__(self, lines: list[Line]) -> None:
        self.data, self.noise = lines[0]["data"], lines[0]["noise"]
        self.lines = lines
        self.default = [line for line in lines if line["score"] == "default"]

    def mean(self, score: str, figure: str, seed: int | None = None) -> float | None:
        """Return the mean over seeds, or that seed's."""
        found = [
            line[figure]
            for line in self.lines
            if line["score"] == score and line.get(figure) is not None and seed in (None, line["seed"])
        ]
        return mean(found) if found else None

    @property
    def human(self) -> bool:
        """Whether people made the labels wrong."""
        return bool(self.noise.startswith("human"))

    @property
    def by_class(self) -> bool:
        """Whether wrong labels depend on the class alone, as the detector's rate takes for granted."""
        return not self.human and not self.noise.startswith("instance")


def rows_of(lines: list[Line]) -> list[Row]:
    """Group the lines by data set and noise, in the order of `DATA` and `NOISES`, whatever was measured first."""
    groups: dict[tuple[str, str], list[Line]] = {(data, noise): [] for data in DATA for noise in NOISES}
    for line in lines:
        groups[line["data"], line["noise"]].append(line)
    rows = [Row(group) for group in groups.values() if group]
    return [row for row in rows if row.default]


def near_the_best_single_score(row: Row) -> bool | None:
    """AUROC at least each single score's less 0.005, in the mean over seeds."""
    own = row.mean("default", "auroc")
    singles = [single for score in ("p_y", "margin") if (single := row.mean(score, "auroc")) is not None]
    return None if own is None or not singles else own >= max(singles) - BEHIND


def above_cleanlab(row: Row) -> bool | None:
    """AUROC above cleanlab's, of the same labels."""
    own, other = row.mean("default", "auroc", 0), row.mean("cleanlab", "auroc", 0)
    return None if own is None or other is None else own > other


def auroc_high_enough(row: Row) -> bool | None:
    """AUROC on CIFAR-10 with lite0 at least that of `LEAST_AUROC`."""
    own = row.mean("default", "auroc")
    if row.data != "CIFAR-10" or own is None or row.noise not in LEAST_AUROC:
        return None
    return own >= LEAST_AUROC[row.noise]


def few_flagged(row: Row) -> bool | None:
    """At most 2 % of clean labels flagged, with every seed."""
    return None if row.noise != "clean" else all(line["flagged"] <= MOST_FLAGGED for line in row.default)


def rate_close(row: Row) -> bool | None:
    """Rate within 3 points with every seed, where wrong labels depend on the class alone."""
    return None if not row.by_class else all(abs(line["rate"] - line["true_rate"]) <= POINTS for line in row.default)


def covered(row: Row) -> bool | None:
    """The interval covers the truth, with every seed."""
    return all(_covers(line) for line in row.default)


def decided_close(row: Row) -> bool | None:
    """With 100 decisions within 3 points: the root mean square error over samples, of people's noise."""
    return None if not row.human else max(line["decided_error"] for line in row.default) <= POINTS


GOALS: dict[str, Goal] = {
    "AUROC at least each single score's less .005": near_the_best_single_score,
    "AUROC above cleanlab's (seed 0)": above_cleanlab,
    "AUROC of lite0 on CIFAR-10: symmetric 20 % .97, 60 % .955, pair flip 40 % .965, worst .91": auroc_high_enough,
    "at most 2 % flagged on clean labels": few_flagged,
    "rate within 3 points with every seed, human and instance-dependent labels left out": rate_close,
    "interval of the rate covers the truth with every seed": covered,
    "within 3 points (root mean square) by 100 decisions, human labels": decided_close,
}


def write_page(page: Path, lines: list[Line]) -> None:
    """Replace what lies between the markers; a page without them, or none at all, gets them at its end."""
    rows = rows_of(lines)
    text = page.read_text() if page.exists() else ""
    if BEGIN not in text:
        text += f"{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    parts = [_facts(lines), _goals(rows)]
    for data in dict.fromkeys(row.data for row in rows):
        own = [row for row in rows if row.data == data]
        parts += [f"### {data}, {own[0].lines[0]['images']:,} images\n", _ranking(own), _rates(own)]
    page.write_text(before + "\n".join([BEGIN, "", *parts, END]) + after)


def _facts(lines: list[Line]) -> str:
    dates, commits = sorted({line["date"] for line in lines}), sorted({line["commit"][:7] for line in lines})
    return f"Measured {', '.join(dates)} with nlt at {', '.join(commits)}.\n"


def _goals(rows: list[Row]) -> str:
    table = []
    for goal, meets in GOALS.items():
        judged = {f"{row.data}, {row.noise}": met for row in rows if (met := meets(row)) is not None}
        missed = [name for name, met in judged.items() if not met]
        table.append([goal, f"{len(judged) - len(missed)} of {len(judged)} rows", "; ".join(missed)])
    head = (
        f"Goals that were set beforehand; a figure that misses one, with some seed, is marked{MISS} in the tables.\n\n"
    )
    return head + _table(["goal", "met in", "missed in"], table)


def _ranking(rows: list[Row]) -> str:
    heads = ["labels", "seeds", "wrong", "AUROC", "AP", "precision", "missed", "F1", "`p_y`: AUROC, AP"]
    heads += ["`margin`: AUROC, AP", "cleanlab, seed 0: AUROC, AP, F1"]
    o2u = any(row.mean("O2U", "auroc") is not None for row in rows)
    table = []
    for row in rows:
        if row.mean("default", "auroc") is None:
            continue
        bad = any(goal(row) is False for goal in (near_the_best_single_score, above_cleanlab, auroc_high_enough))
        cells = [row.noise, len(row.default), _share(row.mean("default", "true_rate"), 3)]
        cells += [_share(row.mean("default", "auroc"), 4) + MISS * bad]
        cells += [_share(row.mean("default", figure), 3) for figure in ("average_precision", "precision")]
        cells += [f"{row.mean('default', 'false_negatives'):,.0f}", _share(row.mean("default", "f1"), 3)]
        for score, figures in (("p_y", 2), ("margin", 2), ("cleanlab", 3), *([("O2U", 2)] if o2u else [])):
            found = [row.mean(score, figure) for figure in ("auroc", "average_precision", "f1")[:figures]]
            cells.append("" if found[0] is None else ", ".join(_share(at, 4 - (i > 0)) for i, at in enumerate(found)))
        table.append(cells)
    return _table(heads + ["O2U-Net, seed 0: AUROC, AP"] * o2u, table)


def _rates(rows: list[Row]) -> str:
    heads = ["labels", "wrong", "estimate", "interval", "covers", "classes covered", "by 100 decisions: error"]
    heads += ["of the samples within 3 points", "flagged", "seconds (of CPU)", "cleanlab: seconds (of CPU)"]
    table = []
    for row in rows:
        default = row.default
        inside = [line["classes_covered"] for line in default]
        cells = [row.noise, _share(row.mean("default", "true_rate"), 3)]
        cells += [_share(row.mean("default", "rate"), 3) + MISS * (rate_close(row) is False)]
        cells += [" to ".join(_share(row.mean("default", end), 3) for end in ("low", "high"))]
        cells[-1] += " (unreliable)" * any(line["unreliable"] for line in default)
        cells += [f"{sum(map(_covers, default))} of {len(default)}" + MISS * (not covered(row))]
        cells += [f"{sum(inside)} of {sum(line['classes'] for line in default)}"]
        cells += [_share(row.mean("default", "decided_error"), 3) + MISS * (decided_close(row) is False)]
        cells += [f"{row.mean('default', 'decided_within'):.0%}"]
        cells += [_share(row.mean("default", "flagged"), 3) + MISS * (few_flagged(row) is False)]
        for score in ("default", "cleanlab"):
            seconds = [row.mean(score, figure) for figure in ("seconds", "cpu_seconds")]
            cells.append("" if seconds[0] is None else f"{seconds[0]:.1f} ({seconds[1]:.1f})")
        table.append(cells)
    return _table(heads, table)


def _covers(line: Line) -> bool:
    return bool(line["low"] <= line["true_rate"] <= line["high"])


def _share(value: float | None, digits: int) -> str:
    """A share without its leading 0."""
    if value is None:
        return ""
    text = f"{value:.{digits}f}"
    return text.removeprefix("0") if float(text) else "0"


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"
