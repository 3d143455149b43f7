"""A comparison as one page for print: tables, figures, where the numbers come from. It loads nothing from elsewhere."""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version

from mlflow.entities import DatasetInput
from mlflow.entities import Run as MlflowRun

from nlt.report.collect import ACCURACY, PRECISION, Cell, Comparison, Metric, noise_title, sweeps_of
from nlt.report.plots import Drawing, svg
from nlt.report.text import (
    differences_caption,
    heading,
    show_difference,
    show_mean,
    show_published,
)
from nlt.tracking import git_commit

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1a1a1a; font: 15px/1.5 Georgia, "Times New Roman", serif; }
main { max-width: 900px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 6px; font-weight: 600; }
h2 { font-size: 18px; margin: 38px 0 8px; font-weight: 600; }
.lead { color: #555; margin: 0 0 28px; }
figure { margin: 26px 0 34px; break-inside: avoid; }
figcaption { font-size: 13.5px; line-height: 1.45; color: #333; }
figure.table figcaption { margin-bottom: 10px; }
figure svg { display: block; width: 100%; height: auto; margin-bottom: 8px; }
figure svg.narrow { max-width: 620px; margin-left: auto; margin-right: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 0 auto; font-size: 13.5px; line-height: 1.35;
  font-variant-numeric: tabular-nums;  border-top: 1.6px solid #1a1a1a; border-bottom: 1.6px solid #1a1a1a; }
th, td { padding: 3px 9px; text-align: right; white-space: nowrap; vertical-align: bottom; }
th { font-weight: 500; }
th.wrap { white-space: normal; }
th.text, td.text { text-align: left; }
thead tr:last-child th { border-bottom: 0.8px solid #1a1a1a; padding-bottom: 5px; }
thead th.group { text-align: center; padding-bottom: 2px; }
thead th.group span { display: block; border-bottom: 0.8px solid #777; padding: 0 6px 2px; }
tbody tr:first-child td, tbody tr.noise td { padding-top: 7px; }
tbody tr:last-child td { padding-bottom: 6px; }
tr.noise td { text-align: left; font-style: italic; color: #444; }
tr.noise:not(:first-child) td { border-top: 0.8px solid #bbb; }
td.theirs { color: #777; }
table.facts td:first-child { color: #555; padding-right: 18px; }
table.facts td { white-space: normal; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
table.runs { font-size: 12px; }
code { font: 0.92em ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
@page { size: A4; margin: 16mm; }
@media print {
  body { font-size: 10pt; } main { padding: 0; max-width: none; } figcaption { font-size: 9pt; }
  table { font-size: 8.5pt; } table.runs { font-size: 7.5pt; } th, td { padding: 2px 6px; }
  .scroll { overflow: visible; } h2 { break-after: avoid; }
  tr { break-inside: avoid; }
}
"""


def page(parts: Sequence[tuple[Comparison, Sequence[Drawing]]]) -> str:
    """Return comparisons and their figures as one HTML page."""
    counter = _Counter()
    names = ", ".join(comparison.experiment for comparison, _ in parts)
    body = []
    for i, (comparison, figures) in enumerate(parts):
        level = "h1" if i == 0 else 'h1 style="margin-top: 70px"'
        body += [f"<{level}>{escape(comparison.experiment)}</h1>", f'<p class="lead">{escape(_lead(comparison))}</p>']
        body += [_first_table(comparison, counter), _second_table(comparison, counter)]
        if figures:
            body += ["<h2>Figures</h2>", *(_figure(drawing, counter, i) for drawing in figures)]
        body += ["<h2>Provenance</h2>", _facts(comparison), _runs(comparison, counter)]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(names)}: comparison</title>",
            f"<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            *body,
            "</main>\n</body>\n</html>\n",
        ]
    )


class _Counter:
    """Numbers tables and figures through the page."""

    def __init__(self) -> None:
        self._seen = {"Table": 0, "Figure": 0}

    def next(self, kind: str) -> str:
        self._seen[kind] += 1
        return f"<b>{kind} {self._seen[kind]}.</b>"


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


def _table(caption: str, head: str, rows: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return (
        f'<figure class="table">\n<figcaption>{caption}</figcaption>\n<div class="scroll"><table{attribute}>\n'
        f"<thead>\n{head}\n</thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>\n</figure>"
    )


def _same_n(cells: Sequence[Cell]) -> int | None:
    """Return the number of seeds, if all cells have as many."""
    counts = {len(cell.runs) for cell in cells}
    return counts.pop() if len(counts) == 1 else None


def _number(cell: Cell | None, metric: Metric, n: int | None) -> str:
    """Return a number, followed by its seeds where they are not the `n` that the caption names."""
    found = None if cell is None else cell.summary(metric)
    if found is None:
        return ""
    return show_mean(found, metric) + (f" ({found.n})" if found.n != n else "")


def _first_table(comparison: Comparison, counter: _Counter) -> str:
    n = _same_n(comparison.cells)
    groups: list[tuple[str, list[tuple[Metric, bool]]]] = []  # noise -> its columns, ours or the published ones
    for noise in comparison.noises:
        columns = []
        for metric in (ACCURACY, PRECISION):
            if any(cell.values(metric) for cell in comparison.at(noise)):
                columns.append((metric, False))
            if any(cell.published and cell.published.of(metric) is not None for cell in comparison.at(noise)):
                columns.append((metric, True))
        groups.append((noise, columns))
    best = {noise: _best(comparison, noise) for noise in comparison.noises}
    names = {ACCURACY.key: "test acc.", PRECISION.key: "noise prec."}
    first = "".join(
        f'<th class="group" colspan="{len(columns)}"><span>{escape(noise_title(noise))}</span></th>'
        for noise, columns in groups
    )
    second = "".join(
        f"<th>{'published' if theirs else names[metric.key]}</th>"
        for _, columns in groups
        for metric, theirs in columns
    )
    rows = []
    for label in comparison.methods:
        row = [f'<td class="text">{escape(label)}</td>']
        for noise, columns in groups:
            cell = comparison.cell(label, noise)
            for metric, theirs in columns:
                if theirs:
                    row.append(f'<td class="theirs">{show_published(cell, metric)}</td>')
                    continue
                text = escape(_number(cell, metric, n))
                bold = metric is ACCURACY and cell is not None and cell is best[noise]
                row.append(f"<td>{f'<b>{text}</b>' if bold else text}</td>")
        rows.append(f"<tr>{''.join(row)}</tr>")
    says = [
        "Test accuracy of the last epoch and noise precision (the share of wrong labels among the removed ones), %:",
        _mean_of(n),
        "The seeds vary the training only; the wrong labels are drawn once, by the noise seed of the spec.",
    ]
    if any(best.values()):
        says.append("Bold: the highest mean at each noise.")
    if sources := comparison.sources():
        says.append(f"Published (number of runs, where it is said): {'; '.join(sources)}.")
    caption = f"{counter.next('Table')} {escape(' '.join(says))}"
    head = f'<tr><th class="text"></th>{first}</tr>\n<tr><th class="text">method</th>{second}</tr>'
    return _table(caption, head, "\n".join(rows))


def _mean_of(n: int | None) -> str:
    if n == 1:
        return "one seed."
    if n is None:
        return "mean ± sample standard deviation over seeds (number of seeds)."
    return f"mean ± sample standard deviation over {n} seeds."


def _best(comparison: Comparison, noise: str) -> Cell | None:
    found = {cell.label: cell.summary(ACCURACY) for cell in comparison.at(noise)}
    means = {label: summary.mean for label, summary in found.items() if summary}
    return comparison.cell(max(means, key=lambda label: means[label]), noise) if len(means) > 1 else None


def _second_table(comparison: Comparison, counter: _Counter) -> str:
    n = _same_n(comparison.cells)
    metrics = [metric for metric in comparison.metrics() if metric not in (ACCURACY, PRECISION)]
    differs = any(comparison.difference(cell) for cell in comparison.cells)
    names = ["seed numbers", *(["difference, points"] if differs else []), *map(heading, metrics)]
    rows = []
    for noise in comparison.noises:
        rows.append(f'<tr class="noise"><td colspan="{len(names) + 1}">{escape(noise_title(noise))}</td></tr>')
        for cell in comparison.at(noise):
            difference = show_difference(comparison.difference(cell), len(cell.runs))
            if cell is comparison.baselines.get(noise):
                difference = "baseline"
            numbers = [", ".join(map(str, cell.runs)), *([difference] if differs else [])]
            numbers += [_number(cell, metric, len(cell.runs)) for metric in metrics]
            shown = "".join(f"<td>{escape(text)}</td>" for text in numbers)
            rows.append(f'<tr><td class="text">{escape(cell.label)}</td>{shown}</tr>')
    spread = "one seed" if n == 1 else "means ± sample standard deviation"
    says = f"All else that was measured, {spread}. Time is that of training alone. {differences_caption(comparison)}"
    head = "".join(f'<th class="wrap">{escape(name)}</th>' for name in names)
    return _table(
        f"{counter.next('Table')} {escape(says)}", f'<tr><th class="text">method</th>{head}</tr>', "\n".join(rows)
    )


def _figure(drawing: Drawing, counter: _Counter, part: int) -> str:
    narrow = ' class="narrow"' if drawing.figure.get_figwidth() < 6 else ""
    image = svg(drawing, f"{drawing.name}-{part}").replace("<svg ", f"<svg{narrow} ", 1)
    return f"<figure>\n{image}\n<figcaption>{counter.next('Figure')} {escape(drawing.caption)}</figcaption>\n</figure>"


def _facts(comparison: Comparison) -> str:
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
        "model": {f"{p.get('model', '')} {'width ' * ('width' in p)}{p.get('width', '')}".strip() for p in params},
        "profile": {t.get("nlt.profile", "") for t in tags},
        "nlt": {t.get("nlt.version", "") for t in tags},
        "git commit": {t.get("nlt.git_commit", "") for t in tags},
        "device": {t.get("nlt.device", "") for t in tags},
        "precision": {p.get("precision", "") for p in params},
        "begun and ended": {f"{_date(min(starts))} to {_date(max(ends))}" if ends else _date(min(starts))},
        "training time, all runs": {f"{seconds / 60:,.0f} minutes"},
        "this page": {f"nlt {version('nlt')}, commit {git_commit()}"},
    }
    rows = [
        f"<tr><td>{escape(name)}</td><td>{escape(', '.join(sorted(filter(None, values))))}</td></tr>"
        for name, values in facts.items()
        if any(values)
    ]
    return f'<figure class="table"><table class="facts">\n<tbody>\n{"".join(rows)}\n</tbody>\n</table></figure>'


def _datasets(run: MlflowRun) -> list[DatasetInput]:
    return list(run.inputs.dataset_inputs) if run.inputs else []


def _runs(comparison: Comparison, counter: _Counter) -> str:
    rows = []
    for noise in comparison.noises:
        for cell in comparison.at(noise):
            for seed, run in cell.runs.items():
                accuracy = run.data.metrics.get(ACCURACY.key)
                texts = [run.info.run_name, cell.label, noise_title(noise)]
                shown = "".join(f'<td class="text">{escape(str(text))}</td>' for text in texts)
                number = "" if accuracy is None else f"{100 * accuracy:.2f}"
                shown += f"<td>{seed}</td><td>{number}</td><td>{escape(_date(run.info.start_time))}</td>"
                rows.append(f'<tr>{shown}<td class="text"><code>{escape(run.info.run_id)}</code></td></tr>')
    head = '<tr><th class="text">run</th><th class="text">method</th><th class="text">noise</th><th>seed</th>'
    head += '<th>test acc.</th><th>begun (UTC)</th><th class="text">MLflow run id</th></tr>'
    caption = f"{counter.next('Table')} The runs, with their test accuracy of the last epoch, %."
    return _table(caption, head, "\n".join(rows), "runs")


def _date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")
