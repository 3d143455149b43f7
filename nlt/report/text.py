"""A comparison as text: tables for the terminal and for Markdown, numbers for programs as CSV and JSON."""

import csv
import io
import json
from typing import Any

import rich.table

from nlt.report.collect import Cell, Comparison, Metric
from nlt.report.statistics import LEVEL, Difference
from nlt.report.table import Column, Entry, Table, details, results


def tables(comparison: Comparison) -> list[rich.table.Table]:
    """Lay a comparison out for the terminal."""
    return [_terminal(results(comparison)), _terminal(details(comparison))]


def markdown(comparisons: list[Comparison]) -> str:
    """Lay comparisons out as Markdown."""
    parts = []
    for comparison in comparisons:
        parts.append(f"### {comparison.experiment}")
        for table in (results(comparison), details(comparison)):
            parts += [_pipes(table), table.caption]
    return "\n\n".join(filter(None, parts)) + "\n"


def _terminal(table: Table) -> rich.table.Table:
    laid_out = rich.table.Table(title_justify="left", caption_justify="left")
    laid_out.title, laid_out.caption = table.title or None, table.caption or None
    for column in table.columns:
        laid_out.add_column(_head(column, "\n"), justify="left" if column.text else "right")
    for row in table.rows:
        laid_out.add_row(*map(_words, row))
    return laid_out


def _pipes(table: Table) -> str:
    head = [_head(column, ": ") for column in table.columns]
    rule = ["---" if column.text else "---:" for column in table.columns]
    # A bar would end the cell, in a run's name it can stand.
    lines = [[text.replace("|", "\\|") for text in row] for row in (head, rule, *(map(_words, r) for r in table.rows))]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def _head(column: Column, joint: str) -> str:
    return joint.join(filter(None, (column.group, column.name)))


def _words(entry: Entry) -> str:
    return " ".join(filter(None, (entry.text, f"[{entry.aside}]" if entry.aside else "")))


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
