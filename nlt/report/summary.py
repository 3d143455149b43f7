"""The summary run of a sweep: its tables and figures, where the runs are."""

import io

import numpy as np
from PIL import Image

from nlt.events import Progress, silent
from nlt.figures import Picture
from nlt.report.collect import Comparison, compare
from nlt.report.curves import panels
from nlt.report.html import page
from nlt.report.plots import Drawing, drawings, png
from nlt.report.text import as_csv, as_json, markdown
from nlt.tracking import LONGEST_TAG, Store, experiment_id, write_summary


def figures_of(store: Store, comparison: Comparison, progress: Progress = silent) -> list[Drawing]:
    """Return all figures that a comparison has data for."""
    return drawings(comparison, panels(store, comparison.cells, progress))


def log_summary(store: Store, sweep: str, progress: Progress = silent) -> str:
    """Make or bring up to date the summary run of a sweep, one in each MLflow experiment that the sweep has runs in.

    It carries the tags `nlt.kind` = summary and `nlt.sweep`, the table as its description, `report.html`,
    `results.csv`, `results.json`, `figures/`, and each figure as an image that the comparison view shows.

    Args:
        store: where the runs are.
        sweep: one of the names in their tag `nlt.sweep`.
        progress: told what is done.

    Returns:
        The run's id; of several experiments that of the one with the most runs.

    Raises:
        BadInput: the sweep has no finished run.
        MlflowException: the store does not take the run.
    """
    written: dict[str, int] = {}
    for comparison in compare(store, sweep=sweep):
        figures = figures_of(store, comparison, progress)
        drawn = [(drawing, png(drawing)) for drawing in figures]
        files = {
            "report.html": page([(comparison, figures)], progress).encode(),
            "results.csv": as_csv([comparison]).encode(),
            "results.json": as_json([comparison]).encode(),
        } | {f"figures/{drawing.name}.png": content for drawing, content in drawn}
        pictures = {(drawing.key, drawing.step): _pixels(content) for drawing, content in drawn}
        runs = sum(len(cell.runs) for cell in comparison.cells)
        note = f"Summary of the sweep {sweep}, {runs} runs; report.html among the artifacts has the figures too.\n\n"
        if len(note) + len(tables := markdown([comparison])) <= LONGEST_TAG:
            note += tables
        experiment_id(store, comparison.experiment)  # its view may be that of an older version, without a summary
        run_id = write_summary(store, comparison.experiment_id, sweep, note, files, pictures)
        written[run_id] = runs
    return max(written, key=lambda run_id: written[run_id])


def _pixels(content: bytes) -> Picture:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
