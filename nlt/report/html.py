"""A comparison as one page for print: tables, figures, where the numbers come from. It loads nothing from elsewhere.

The page's text is `templates/page.html`; what users have named is escaped there.
"""

from collections.abc import Sequence
from importlib.metadata import version
from itertools import count, groupby, islice

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from mlflow.entities import DatasetInput
from mlflow.entities import Run as MlflowRun

from nlt.events import Progress, silent
from nlt.provenance import git_commit
from nlt.report.collect import Comparison, noise_title, sweeps_of
from nlt.report.plots import Drawing, svg
from nlt.report.table import Entry, Table, details, results, run_list, show_time

NARROW = 6  # inches; a narrower figure is not stretched over the page
MANY_RUNS = 60  # runs, from which on their list is unfolded by a click


def page(parts: Sequence[tuple[Comparison, Sequence[Drawing]]], progress: Progress = silent) -> str:
    """Return comparisons and their figures as one HTML page."""
    environment = Environment(
        loader=PackageLoader("nlt.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    tables, figures, of = count(1), count(1), sum(len(drawings) for _, drawings in parts)

    def figure(drawing: Drawing, part: int) -> tuple[int, Markup, Drawing]:
        number, image = next(figures), _image(drawing, part)
        progress("drawing figures", number, of)
        return number, image, drawing

    shown = [
        {
            "title": comparison.experiment,
            "wide": comparison.many_noises,
            "lead": _lead(comparison),
            "tables": [(next(tables), table) for table in (results(comparison), details(comparison))],
            "figures": [figure(drawing, part) for drawing in drawings],
            "facts": _facts(comparison),
            "runs": (next(tables), run_list(comparison)),
        }
        for part, (comparison, drawings) in enumerate(parts)
    ]
    return environment.get_template("page.html").render(
        parts=shown, groups=_groups, bodies=_bodies, noise_title=noise_title, many_runs=MANY_RUNS
    )


def _groups(table: Table) -> list[tuple[str, int]]:
    """Return what stands above the columns' names, and over how many of them; empty if nothing does."""
    found = [(group, len(list(columns))) for group, columns in groupby(table.columns, lambda column: column.group)]
    return found if any(group for group, _ in found) else []


def _bodies(table: Table) -> list[tuple[str, list[list[Entry]]]]:
    """Return a table's rows group by group, with what each has in common; sorting leaves a row in its group."""
    rows = iter(table.rows)
    return [(name, list(islice(rows, n))) for name, n in table.groups or (("", len(table.rows)),)]


def _image(drawing: Drawing, part: int) -> Markup:
    narrow = ' class="narrow"' if drawing.figure.get_figwidth() < NARROW else ""
    return Markup(svg(drawing, f"{drawing.name}-{part}").replace("<svg ", f"<svg{narrow} ", 1))


def _lead(comparison: Comparison) -> str:
    runs = sum(len(cell.runs) for cell in comparison.cells)
    seeds = sorted({seed for cell in comparison.cells for seed in cell.runs})
    counts = [
        _count(len(comparison.methods), "method"),
        _count(len(comparison.noises), "noise setting"),
        _count(runs, "run"),
    ]
    return f"{', '.join(counts)}; {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"


def _count(number: int, of: str) -> str:
    return f"{number} {of}{'s' if number != 1 else ''}"


def _facts(comparison: Comparison) -> dict[str, str]:
    """Say what all runs share, or list what they differ in."""
    runs = [run for cell in comparison.cells for run in cell.runs.values()]
    tags, params = [run.data.tags for run in runs], [run.data.params for run in runs]
    data = {f"{given.dataset.name} ({given.dataset.digest})" for run in runs for given in _datasets(run)}
    starts = [run.info.start_time for run in runs]
    ends = [run.info.end_time for run in runs if run.info.end_time]
    seconds = sum(run.data.metrics.get("final/train_seconds", 0.0) for run in runs)
    facts = {
        "sweep": {name for run in runs for name in sweeps_of(run)},
        "MLflow experiment": {f"{comparison.experiment} (id {comparison.experiment_id})"},
        "data set (digest)": data,
        "training images": {p.get("train_images", "") for p in params},
        "model": {t.get("nlt.model", p.get("model", "")) for t, p in zip(tags, params, strict=True)},
        "outside weights": {t.get("nlt.outside_weights", "") for t in tags},
        "profile": {t.get("nlt.profile", "") for t in tags},
        "nlt": {t.get("nlt.version", "") for t in tags},
        "git commit": {t.get("nlt.git_commit", "") for t in tags},
        "device": {t.get("nlt.device", "") for t in tags},
        "precision": {p.get("precision", "") for p in params},
        "begun and ended (UTC)": {" to ".join([show_time(min(starts)), *([show_time(max(ends))] if ends else [])])},
        "training time, all runs": {f"{seconds / 60:,.0f} minutes"},
        "this page": {f"nlt {version('nlt')}, commit {git_commit()}"},
    }
    return {name: ", ".join(sorted(filter(None, values))) for name, values in facts.items() if any(values)}


def _datasets(run: MlflowRun) -> list[DatasetInput]:
    return list(run.inputs.dataset_inputs) if run.inputs else []
