"""A comparison as text: tables for the terminal and for Markdown, numbers for programs as CSV and JSON."""

import csv
import io
import json
from typing import Any

from rich.table import Table

from nlt.report.collect import ACCURACY, PRECISION, Cell, Comparison, Metric
from nlt.report.statistics import LEVEL, Difference, Summary

SHOWN_FIRST = (ACCURACY, PRECISION)  # what the paper's Table 1 has; the second table has the rest
RESULTS = (
    "%, last epoch: mean ± sample standard deviation over seeds (number of seeds). The seeds vary the training; the "
    "wrong labels are the same for all of them."
)


def differences_caption(comparison: Comparison) -> str:
    """Say what the differences are taken to, and what their interval is."""
    labels = sorted({cell.label for cell in comparison.baselines.values()})
    if not labels or not any(comparison.difference(cell) for cell in comparison.cells):
        return ""
    return (
        f"Difference: last-epoch test accuracy less that of {' / '.join(labels)}, percentage points: mean over the "
        f"seeds that both have (their number, if not all) ± half the {100 * LEVEL:g} % interval of Student's t over "
        "these pairs, where there are two or more."
    )


def published_caption(comparison: Comparison) -> str:
    """Say whose numbers the published ones are."""
    sources = comparison.sources()
    return f"In brackets what is published (number of runs, where it is said): {'; '.join(sources)}." if sources else ""


def show(found: Summary | None, metric: Metric) -> str:
    """Return "64.3 ± 0.7 (3)", in per cent or seconds, or "" where there is nothing."""
    if found is None:
        return ""
    return f"{show_mean(found, metric)} ({found.n})"


def show_mean(found: Summary, metric: Metric) -> str:
    """Return "64.3 ± 0.7", without the number of seeds."""
    scale, digits = (1, 0) if metric.seconds else (100, 1)
    spread = "" if found.sd is None else f" ± {scale * found.sd:.{digits}f}"
    return f"{scale * found.mean:.{digits}f}{spread}"


def show_difference(found: Difference | None, seeds: int) -> str:
    """Return "+2.1 ± 1.3", in percentage points, or "" where there is nothing to compare with.

    The number of pairs is added where it is not that of the cell's `seeds`.
    """
    if found is None:
        return ""
    half = "" if found.half is None else f" ± {100 * found.half:.1f}"
    pairs = "" if found.n == seeds else f" ({found.n})"
    return f"{100 * found.mean:+.1f}{half}{pairs}".replace("-", "\N{MINUS SIGN}")


def with_published(cell: Cell, metric: Metric) -> str:
    """Return a cell's number, and in brackets the published one."""
    theirs = show_published(cell, metric)
    return " ".join(filter(None, (show(cell.summary(metric), metric), f"[{theirs}]" if theirs else "")))


def show_published(cell: Cell | None, metric: Metric) -> str:
    """Return the published number of a cell and of how many runs it is the mean, "79.6 (1)"; "" where there is none."""
    published = cell.published if cell else None
    number = published.of(metric) if published else None
    if published is None or number is None:
        return ""
    return f"{100 * number:.1f}" + ("" if published.n is None else f" ({published.n})")


def heading(metric: Metric) -> str:
    """Return a column's name with its unit."""
    return f"{metric.heading}, {'s' if metric.seconds else '%'}"


def first_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of method x noise: last-epoch test accuracy, and noise precision where it is known."""
    columns = [
        (noise, metric)
        for noise in comparison.noises
        for metric in SHOWN_FIRST
        if metric is ACCURACY or any(cell.values(metric) for cell in comparison.at(noise))
    ]
    names = {ACCURACY.key: "test accuracy", PRECISION.key: "noise precision"}
    head = ["method", *(f"{noise}: {names[metric.key]}" for noise, metric in columns)]
    rows = []
    for label in comparison.methods:
        cells = [(comparison.cell(label, noise), metric) for noise, metric in columns]
        rows.append([label, *("" if cell is None else with_published(cell, metric) for cell, metric in cells)])
    return head, rows


def second_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of all other columns, a row per noise and method."""
    metrics = [metric for metric in comparison.metrics() if metric not in SHOWN_FIRST]
    differs = any(comparison.difference(cell) for cell in comparison.cells)
    head = ["noise", "method", "seeds", *(["difference"] if differs else []), *map(heading, metrics)]
    rows = []
    for noise in comparison.noises:
        for cell in comparison.at(noise):
            found = [(cell.summary(metric), metric) for metric in metrics]
            rows.append(
                [
                    noise,
                    cell.label,
                    str(len(cell.runs)),
                    *([show_difference(comparison.difference(cell), len(cell.runs))] if differs else []),
                    *(show_mean(s, metric) if s else "" for s, metric in found),
                ]
            )
    return head, rows


def tables(comparison: Comparison) -> list[Table]:
    """Lay a comparison out for the terminal."""
    head, rows = first_table(comparison)
    first = _table([name.replace(": ", "\n") for name in head], rows, 1)
    first.title = comparison.experiment
    first.caption = " ".join(filter(None, (RESULTS, published_caption(comparison))))
    second = _table(*second_table(comparison), 2)
    second.caption = differences_caption(comparison)
    return [first, second]


def _table(head: list[str], rows: list[list[str]], texts: int) -> Table:
    """Return a table whose first columns hold text, the others numbers."""
    result = Table(title_justify="left", caption_justify="left")
    for i, name in enumerate(head):
        result.add_column(name, justify="left" if i < texts else "right")
    for row in rows:
        result.add_row(*row)
    return result


def markdown(comparisons: list[Comparison]) -> str:
    """Lay comparisons out as Markdown."""
    parts = []
    for comparison in comparisons:
        parts += [f"### {comparison.experiment}", _pipes(*first_table(comparison), 1)]
        parts += [" ".join(filter(None, (RESULTS, published_caption(comparison))))]
        parts += [_pipes(*second_table(comparison), 2), differences_caption(comparison)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _pipes(head: list[str], rows: list[list[str]], texts: int) -> str:
    rule = ["---" if i < texts else "---:" for i in range(len(head))]
    # A bar would end the cell, in a run's name it can stand.
    lines = [[text.replace("|", "\\|") for text in row] for row in (head, rule, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return each cell's unrounded numbers as JSON-ready data, fractions and seconds."""
    result = []
    for cell in comparison.cells:
        difference, baseline = comparison.difference(cell), comparison.baselines.get(cell.noise)
        result.append(
            {
                "experiment": comparison.experiment,
                "label": cell.label,
                "method": cell.method,
                "loss": cell.loss,
                "noise": cell.noise,
                "spec_name": cell.spec_name,
                "spec_sha256": cell.sha256,
                "seeds": list(cell.runs),
                "run_ids": [run.info.run_id for run in cell.runs.values()],
                "metrics": {metric.column: _numbers(cell, metric) for metric in comparison.metrics()},
                "baseline": None if difference is None or baseline is None else baseline.label,
                "difference": None if difference is None else _difference(difference),
                "published": None if cell.published is None else vars(cell.published),
            }
        )
    return result


def _numbers(cell: Cell, metric: Metric) -> dict[str, Any] | None:
    found = cell.summary(metric)
    if found is None:
        return None
    return {"n": found.n, "mean": found.mean, "sd": found.sd, "by_seed": cell.values(metric)}


def _difference(found: Difference) -> dict[str, Any]:
    low, high = (None, None) if found.half is None else (found.mean - found.half, found.mean + found.half)
    return {"n": found.n, "mean": found.mean, "low": low, "high": high, "level": LEVEL}


def as_json(comparisons: list[Comparison]) -> str:
    """Return all numbers, each seed's too."""
    cells = [record for comparison in comparisons for record in records(comparison)]
    return json.dumps({"cells": cells}, indent=1, ensure_ascii=False) + "\n"


def as_csv(comparisons: list[Comparison]) -> str:
    """Return a row per cell, unrounded: fractions and seconds; what is not known is empty."""
    rows = []
    for comparison in comparisons:
        for record in records(comparison):
            row = {key: record[key] for key in ("experiment", "label", "method", "loss", "noise")}
            row |= {key: record[key] for key in ("spec_name", "spec_sha256")}
            row |= {key: " ".join(map(str, record[key])) for key in ("seeds", "run_ids")}
            for name, numbers in record["metrics"].items():
                row |= {f"{name}_{key}": (numbers or {}).get(key) for key in ("n", "mean", "sd")}
            row["baseline"] = record["baseline"]
            row |= {f"difference_{k}": (record["difference"] or {}).get(k) for k in ("n", "mean", "low", "high")}
            row |= {
                f"published_{k}": (record["published"] or {}).get(k)
                for k in ("source", "n", "test_accuracy", "noise_precision")
            }
            rows.append(row)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
