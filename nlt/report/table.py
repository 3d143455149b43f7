"""Tables of a comparison, built once and rendered three times: terminal, Markdown (`text.py`) and page (`html.py`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import mean
from typing import Literal

from nlt.report.collect import ACCURACY, PRECISION, Cell, Comparison, Metric, noise_title
from nlt.report.statistics import LEVEL, Difference, Summary

SHOWN_FIRST = (ACCURACY, PRECISION)  # what the paper's Table 1 has; the second table has the rest
RESULTS = "%, last epoch: mean ± sample standard deviation over seeds{n}."
SEEDS = "The seeds vary the training; the wrong labels are the same for all of them."
MIXED = (
    "At {noises} not all methods learned the same data and the same wrong labels: they have no places there, and a "
    "difference only to a baseline that learned the same."
)
RANK = (
    "Mean rank: of a method's places by mean accuracy, 1 the highest, over the noises that it was run at (their "
    "number, if not all); what uses weights of outside origin has places among its own."
)


@dataclass(frozen=True)
class Column:
    """A column's head."""

    name: str
    group: str = ""
    """What it has in common with the columns beside it: a noise."""
    text: bool = False
    """Whether it holds text, set to the left; numbers are set to the right."""


@dataclass(frozen=True)
class Entry:
    """What stands in a row under a column."""

    text: str
    aside: str = ""
    """The published number, shown in brackets."""
    best: bool = False
    """Whether it is the highest mean of its noise, where there are several."""


@dataclass(frozen=True)
class Table:
    """Head, rows and caption."""

    columns: list[Column]
    rows: list[list[Entry]]
    caption: str = ""
    title: str = ""
    kind: Literal["results", "runs"] = "results"
    """What is in the rows: the page sets runs smaller."""
    groups: tuple[tuple[str, int], ...] = ()
    """What rows that follow one another have in common, and how many they are; empty for one group without a name."""


def results(comparison: Comparison) -> Table:
    """Return method x noise: last-epoch test accuracy, and noise precision where it is known, beside the published.

    Of many noises the accuracy alone and the methods' mean rank; methods on outside weights stand below the others.
    """
    first, places = shown_first(comparison), comparison.ranks()
    counts = {len(cell.runs) for cell in comparison.cells}
    alike = first == (ACCURACY,) and len(counts) == 1
    columns = [
        (noise, metric)
        for noise in comparison.noises
        for metric in first
        if metric is ACCURACY or any(cell.values(metric) for cell in comparison.at(noise))
    ]
    names = {ACCURACY.key: "test accuracy", PRECISION.key: "noise precision"}
    best = {(noise, label) for noise in comparison.noises for label in _best(comparison, noise)}
    rows = []
    for label in comparison.methods:
        row = [Entry(label)]
        for noise, metric in columns:
            cell = comparison.cell(label, noise)
            found = None if cell is None else cell.summary(metric)
            number = show(found, metric) if found is None or not alike else show_mean(found, metric)
            row.append(Entry(number, show_published(cell, metric), metric is ACCURACY and (noise, label) in best))
        if places:
            row.append(Entry(show_rank(places[label], len(comparison.noises))))
        rows.append(row)
    if first == (ACCURACY,):
        numbers = [Column(_short_title(noise)) for noise, _ in columns]
    else:
        numbers = [Column(names[metric.key], noise) for noise, metric in columns]
    heads = [Column("method", text=True), *numbers, *([Column("mean rank")] if places else [])]
    sources = comparison.sources()
    published = f"In brackets what is published (number of runs, where it is said): {'; '.join(sources)}."
    n = f", {counts.pop()} of each" if alike else " (number of seeds)"
    what = "Test accuracy, " * (first == (ACCURACY,)) + RESULTS.format(n=n)
    mixed = "; ".join(map(noise_title, comparison.mixed))
    same = MIXED.format(noises=mixed) if mixed else SEEDS
    caption = " ".join([what, same, *([RANK] if places else []), *([published] if sources else [])])
    return Table(heads, rows, caption, comparison.experiment, groups=_by_outside_weights(comparison))


def shown_first(comparison: Comparison) -> tuple[Metric, ...]:
    """Return what the first table has of each noise."""
    return (ACCURACY,) if comparison.many_noises else SHOWN_FIRST


def _short_title(noise: str) -> str:
    """Return a noise as the head of a narrow column: "pair flip, 45 %", "no noise added"."""
    title = noise_title(noise)
    return title if title.startswith("no noise") else title.replace(" noise", "", 1)


def _by_outside_weights(comparison: Comparison) -> tuple[tuple[str, int], ...]:
    outside = [comparison.outside(label) != "" for label in comparison.methods]
    if not any(outside):
        return ()
    groups = ("from these data alone", outside.count(False)), ("on outside weights", outside.count(True))
    return tuple((name, rows) for name, rows in groups if rows)


def details(comparison: Comparison) -> Table:
    """Return all other metrics, a row per noise and method, and the difference to the baseline."""
    metrics = [metric for metric in comparison.metrics() if metric not in shown_first(comparison)]
    differs = any(comparison.difference(cell) for cell in comparison.cells)
    numbers = ["seeds", *(["difference"] if differs else []), *map(heading, metrics)]
    rows = []
    for noise in comparison.noises:
        for cell in comparison.at(noise):
            difference = show_difference(comparison.difference(cell), len(cell.runs))
            if cell is comparison.baselines.get(noise):
                difference = "baseline"
            found = [(cell.summary(metric), metric) for metric in metrics]
            texts = [noise, cell.label, str(len(cell.runs)), *([difference] if differs else [])]
            rows.append([Entry(text) for text in (*texts, *(show_mean(s, metric) if s else "" for s, metric in found))])
    columns = [Column("noise", text=True), Column("method", text=True), *map(Column, numbers)]
    what = "All else that was measured, mean ± sample standard deviation; time is that of training alone."
    groups = tuple((noise_title(noise), len(comparison.at(noise))) for noise in comparison.noises)
    many = groups if comparison.many_noises else ()
    return Table(columns, rows, " ".join(filter(None, (what, _differences_caption(comparison)))), groups=many)


def run_list(comparison: Comparison) -> Table:
    """Return the runs one by one."""
    rows = []
    for noise in comparison.noises:
        for cell in comparison.at(noise):
            for seed, run in cell.runs.items():
                accuracy = run.data.metrics.get(ACCURACY.key)
                number = "" if accuracy is None else f"{100 * accuracy:.2f}"
                begun = show_time(run.info.start_time)
                texts = (str(run.info.run_name), cell.label, noise_title(noise), str(seed), number, begun)
                rows.append([Entry(text) for text in (*texts, str(run.info.run_id))])
    words = [Column(name, text=True) for name in ("run", "method", "noise")]
    numbers = [Column(name) for name in ("seed", "test accuracy")]
    ends = [Column(name, text=True) for name in ("begun (UTC)", "MLflow run id")]  # a date is no number to sort by
    caption = "The runs, with their test accuracy of the last epoch, %."
    return Table([*words, *numbers, *ends], rows, caption, kind="runs")


def _best(comparison: Comparison, noise: str) -> list[str]:
    """Return the methods of the highest mean among their rivals."""
    return [
        label
        for means in comparison.rivals(noise)
        for label, value in means.items()
        if len(means) > 1 and value == max(means.values())
    ]


def _differences_caption(comparison: Comparison) -> str:
    """Say what the differences are taken to, and what their interval is."""
    labels = sorted({cell.label for cell in comparison.baselines.values()})
    if not labels or not any(comparison.difference(cell) for cell in comparison.cells):
        return ""
    return (
        f"Difference: last-epoch test accuracy less that of {' / '.join(labels)}, percentage points: mean over the "
        f"seeds that both have (their number, if not all) ± half the {100 * LEVEL:g} % interval of Student's t over "
        "these pairs, where there are two or more."
    )


# ---- numbers as texts


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


def show_rank(places: Mapping[str, float], noises: int) -> str:
    """Return the mean of places, "2.4", and their number where it is not that of all `noises`."""
    if not places:
        return ""
    return f"{mean(places.values()):.1f}" + ("" if len(places) == noises else f" ({len(places)})")


def show_difference(found: Difference | None, seeds: int) -> str:
    """Return "+2.1 ± 1.3", in percentage points, or "" where there is nothing to compare with.

    The number of pairs is added where it is not that of the cell's `seeds`.
    """
    if found is None:
        return ""
    half = "" if found.half is None else f" ± {100 * found.half:.1f}"
    pairs = "" if found.n == seeds else f" ({found.n})"
    return f"{100 * found.mean:+.1f}{half}{pairs}".replace("-", "\N{MINUS SIGN}")


def show_published(cell: Cell | None, metric: Metric) -> str:
    """Return the published number of a cell and of how many runs it is the mean, "79.6 (1)"; "" where there is none."""
    published = cell.published if cell else None
    number = published.of(metric) if published else None
    if published is None or number is None:
        return ""
    return f"{100 * number:.1f}" + ("" if published.n is None else f" ({published.n})")


def show_time(milliseconds: int) -> str:
    """Return a time as MLflow has it as "2026-11-26 03:40", UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def heading(metric: Metric) -> str:
    """Return a column's name with its unit."""
    return f"{metric.heading}, {'s' if metric.seconds else '%'}"
