"""Figures of a comparison, for print: one style, legible in grey; matplotlib without pyplot's global state."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from nlt.report.collect import Comparison, noise_title
from nlt.report.curves import Curve, Losses, Panel

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 8,
    "text.parse_math": False,  # runs and methods are called as users call them, with dollars in it, too
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "path",  # looks the same without the font
    "svg.hashsalt": "nlt",  # the same figure gives the same bytes
    "pdf.fonttype": 42,  # type 3 fonts are refused by some publishers
}
INK = "#444444"
# Okabe & Ito's colours, told apart by the colour-blind; the lines also differ in dashes, markers and brightness.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v")
RIGHT, WRONG = "#0072B2", "#E69F00"  # as in the histograms of single runs
MARKED = 8  # markers on a line
COLUMNS = 3  # panels beside one another
BINS = 40
PANEL_INCHES = 3.5
TITLE = 44  # characters across a panel


@dataclass(frozen=True)
class Drawing:
    """A figure with what is to be said below it."""

    name: str
    """Of its files."""
    key: str
    """Under which it stands in the comparison view; several noises are steps of one key."""
    step: int
    figure: Figure
    caption: str
    of_one_noise: str = ""
    """What it shows of which noise, where each noise has one; a page of many noises has it folded under these words."""


@dataclass(frozen=True)
class Line:
    """How a method is drawn, in all figures alike."""

    colour: str
    dashes: str | tuple[float, tuple[float, ...]]
    marker: str


def lines(methods: Sequence[str]) -> dict[str, Line]:
    """Return method -> how it is drawn; the periods share no factor, so that 140 methods differ."""
    n = len(methods)
    kinds = zip(*(islice(cycle(of), n) for of in (COLOURS, DASHES, MARKERS)), strict=True)
    return {
        method: Line(colour, dashes, marker) for method, (colour, dashes, marker) in zip(methods, kinds, strict=True)
    }


def drawings(comparison: Comparison, panels: list[Panel]) -> list[Drawing]:
    """Draw all figures that there are data for."""
    style = lines(comparison.methods)
    with rc_context(STYLE):
        detecting = [panel for panel in panels if panel.detections]
        apart = comparison.many_noises
        together = [[panel] for panel in detecting] if apart else [detecting]
        with_losses = [panel for panel in panels if panel.losses]
        noises = [panel.noise for panel in panels]
        called = dict(zip(noises, file_names(noises), strict=True))
        result = [
            _ranks(comparison),
            _accuracy(panels, style),
            _remaining(panels, style),
            *(
                _detection(group, step, f"detection_{called[group[0].noise]}" if apart else "detection", apart)
                for step, group in enumerate(together, 1)
                if group
            ),
            *(_losses(panel, step, f"losses_{called[panel.noise]}") for step, panel in enumerate(with_losses, 1)),
        ]
    return [drawing for drawing in result if drawing is not None]


def _ranks(comparison: Comparison) -> Drawing | None:
    places = {label: list(of.values()) for label, of in comparison.ranks().items() if of}
    if not places:
        return None
    order = sorted(places, key=lambda label: -sum(places[label]) / len(places[label]))
    figure = Figure(figsize=(PANEL_INCHES * 1.7, 0.9 + 0.24 * len(order)))
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for kind, outside in (("from these data alone", False), ("on outside weights", True)):
        rows = [y for y, label in enumerate(order) if bool(comparison.outside(label)) == outside]
        if not rows:
            continue
        colour = WRONG if outside else RIGHT
        each = [(rank, y) for y in rows for rank in places[order[y]]]
        ax.plot(*zip(*each, strict=True), ls="", marker="|", ms=7, color=INK, alpha=0.55)
        means = [sum(places[order[y]]) / len(places[order[y]]) for y in rows]
        ax.plot(means, rows, ls="", marker="D" if outside else "o", ms=6.5, color=colour, mec="white", label=kind)
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel="rank by last-epoch test accuracy, 1 the highest", ylim=(-0.6, len(order) - 0.4))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(0.5, len(order) + 0.5)
    _legend(figure, [ax])
    caption = (
        "Methods by their mean rank (large marks) over the noises that each was run at; each short line is one noise. "
        "What uses weights of outside origin is ranked among its own. A rank says nothing of how far apart two methods "
        "are."
    )
    return Drawing("ranks", "summary/ranks", 1, figure, caption)


def _accuracy(panels: list[Panel], style: dict[str, Line]) -> Drawing | None:
    shown = [panel for panel in panels if panel.accuracies]
    if not shown:
        return None
    figure, axes = _grid(len(shown), 2.7)
    for ax, panel in zip(axes, shown, strict=True):
        for i, accuracy in enumerate(panel.accuracies):
            line, found, begin = style[accuracy.label], accuracy.curve, accuracy.last_stage
            early, late = found.steps_E <= begin, found.steps_E >= begin
            _band(ax, found, line.colour, early, 0.07)
            _band(ax, found, line.colour, late)
            ax.plot(found.steps_E[early], found.mean_E[early], color=line.colour, ls=line.dashes, lw=0.7, alpha=0.6)
            every = max(1, len(found.steps_E) // MARKED)
            ax.plot(
                found.steps_E[late], found.mean_E[late], color=line.colour, ls=line.dashes, marker=line.marker,
                markevery=(i * every // len(panel.accuracies), every), label=accuracy.label, mec="white", mew=0.4,
            )  # fmt: skip
        for begin in {accuracy.last_stage for accuracy in panel.accuracies} - {1}:
            ax.axvline(begin, color=INK, ls=":", lw=0.9, zorder=0.5)
        ax.set(title=noise_title(panel.noise), xlabel="epoch", xlim=(0, None))
        ax.set_ylim(max(ax.get_ylim()[0], 0), min(ax.get_ylim()[1], 1.01))  # a band may leave what is possible
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes[0].set_ylabel("test accuracy")
    _legend(figure, axes)
    curves = [accuracy.curve for panel in shown for accuracy in panel.accuracies]
    staged = any(accuracy.last_stage > 1 for panel in shown for accuracy in panel.accuracies)
    caption = f"Test accuracy by epoch, {_over(curves)}"
    caption += " Stages before a method's last one are thin; the dotted line marks where the last one begins." * staged
    caption += " The axes of the panels differ." * (len(shown) > 1)
    return Drawing("accuracy", "summary/accuracy", 1, figure, caption)


def _detection(panels: list[Panel], step: int, name: str, apart: bool) -> Drawing:
    """Draw all panels in one figure, or where each has one of its own (`apart`) the only one."""
    shown = [(panel.noise, detection) for panel in panels for detection in panel.detections]
    columns = min(len(shown), COLUMNS)
    bands = -(-len(shown) // columns)
    figure = Figure(figsize=(PANEL_INCHES * max(columns, 1.4), 3.4 * bands))
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * bands, columns, squeeze=False, sharex="col", height_ratios=[1, 2.2] * bands)
    for i, (noise, detection) in enumerate(shown):
        above, below = (axes[2 * (i // columns) + row, i % columns] for row in (0, 1))
        above.plot(detection.lr.steps_E, detection.lr.mean_E, color=INK, drawstyle="steps-mid", lw=1.1)
        above.set(title=f"{noise_title(noise)}\n{fill(_joined(detection.labels), TITLE)}", ylim=(0, None))
        above.yaxis.set_major_locator(MaxNLocator(3))
        for found, colour, dashes, marker, label in (
            (detection.removed, WRONG, (0, (5, 1.5)), "s", "removed samples"),
            (detection.kept, RIGHT, "-", "o", "kept samples"),
        ):
            _band(below, found, colour)
            below.plot(
                found.steps_E, found.mean_E, color=colour, ls=dashes, marker=marker, label=label,
                markevery=max(1, len(found.steps_E) // MARKED), mec="white", mew=0.4,
            )  # fmt: skip
        below.set(xlabel="epoch", ylim=(0, None))
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes.flat[len(shown) if bands == 1 else 2 * len(shown) :]:
        if not ax.lines:
            ax.set_axis_off()
    for row in range(bands):
        axes[2 * row, 0].set_ylabel("learning rate")
        axes[2 * row + 1, 0].set_ylabel("mean loss")
    figure.align_ylabels()
    _legend(figure, [axes[1, 0]])
    curves = [detection.removed for _, detection in shown]
    caption = (
        "Learning rate (above) and mean loss of the samples that the last mask removes and keeps (below), over the "
        f"epochs that detect wrong labels, {_over(curves)}"
    )
    words = f"Learning rate, losses of removed and kept samples, {noise_title(panels[0].noise)}" if apart else ""
    return Drawing(name, "summary/detection", step, figure, caption, words)


def _remaining(panels: list[Panel], style: dict[str, Line]) -> Drawing | None:
    shown = [(p.noise, [(d, d.remaining) for d in p.detections if d.remaining]) for p in panels]
    shown = [(noise, found) for noise, found in shown if found]
    if not shown:
        return None
    figure, axes = _grid(len(shown), 2.4)
    for ax, (noise, group) in zip(axes, shown, strict=True):
        for detection, found in group:
            assert found is not None
            line = style[detection.labels[0]]
            _band(ax, found, line.colour)
            ax.plot(
                found.steps_E, found.mean_E, color=line.colour, ls=line.dashes, marker=line.marker,
                markevery=max(1, len(found.steps_E) // MARKED), mec="white", mew=0.4, label=_joined(detection.labels),
            )  # fmt: skip
        rate = group[0][0].drawn_rate
        if rate is not None:
            ax.axhline(rate, color=INK, ls=(0, (4, 3)), lw=0.9, label="nothing removed")
        ax.set(title=noise_title(noise), xlabel="epoch", ylim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes[0].set_ylabel("wrong labels among the kept")
    _legend(figure, axes)
    curves = [found for _, group in shown for _, found in group if found]
    caption = (
        f"Remaining noise: wrong labels among the samples that each epoch's mask keeps, {_over(curves)} The dashed "
        "line is the share of wrong labels among all training samples."
    )
    return Drawing("remaining", "summary/remaining_noise", 1, figure, caption)


def _losses(panel: Panel, step: int, name: str) -> Drawing:
    rows, columns = len(panel.losses), max(len(row.steps) for row in panel.losses)
    figure = Figure(figsize=(PANEL_INCHES * 2.1, 0.55 + 1.25 * rows))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for line, row in zip(axes, panel.losses, strict=True):
        for ax, epoch, top, clean, wrong in zip(line, row.steps, axis_tops(row), row.clean, row.wrong, strict=False):
            edges = np.linspace(0, top, BINS + 1)
            inside = np.nextafter(top, 0)  # what lies beyond is counted in the last bin
            right = {"facecolor": RIGHT, "alpha": 0.85, "label": "truly right labels"}
            # No hatching: browsers print it opaque, and the bars behind would be gone.
            outlined = {"facecolor": WRONG + "66", "edgecolor": "#8a5a00", "lw": 0.9}
            ax.hist(clean.clip(0, inside), edges, histtype="stepfilled", **right)
            ax.hist(wrong.clip(0, inside), edges, histtype="stepfilled", label="truly wrong labels", **outlined)
            ax.set_title(f"epoch {epoch}", fontsize=7.5, pad=3)
            ax.grid(False)
            ax.set_xlim(0, top)
            ax.set_yscale("function", functions=(np.sqrt, np.square))  # else few wrong labels vanish beside many right
            ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            ax.xaxis.set_major_locator(MaxNLocator(3))
            ax.tick_params(labelsize=6.5)
        for ax in line[len(row.steps) :]:
            ax.set_axis_off()
        line[0].set_ylabel(row.label.replace(", ", ",\n"), fontsize=7.5)
    # Below an axis that is drawn: `supxlabel` would lie over the legend.
    axes[-1, len(panel.losses[-1].steps) // 2].set_xlabel("per-sample loss")
    _legend(figure, [axes[0, 0]])
    seeds = sorted({row.seed for row in panel.losses})
    caption = (
        f"Training samples by loss, {noise_title(panel.noise)}, truly right and truly wrong labels, seed "
        f"{', '.join(map(str, seeds))}: counts; samples that a method has left out are not drawn. The last bin holds "
        "what lies beyond. Each panel has its own count axis, on a square-root scale; the loss axis is the same "
        "within a stage of a method."
    )
    words = f"Training samples by loss, {noise_title(panel.noise)}"
    return Drawing(name, "summary/losses", step, figure, caption, words)


def axis_tops(row: Losses) -> list[float]:
    """Return the right end of each epoch's loss axis, one for the epochs of a stage: it leaves out one loss in 200."""
    tops = {}
    for stage in set(row.stages):
        of = [i for i, other in enumerate(row.stages) if other == stage]
        pooled = np.concatenate([losses for i in of for losses in (row.clean[i], row.wrong[i])])
        tops[stage] = max(float(np.quantile(pooled, 0.995)), 1e-3) if len(pooled) else 1.0
    return [tops[stage] for stage in row.stages]


def svg(drawing: Drawing, prefix: str) -> str:
    """Return the figure as an element to stand in HTML: no prologue, no metadata, no address of anything outside.

    `prefix` goes before its ids, which are unique within one figure only.
    """
    text = _saved(drawing.figure, "svg", metadata={"Date": None}).decode()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    # In HTML a plain href does, and xlink's prefix would need its namespace.
    text = text.replace("xlink:href", "href")
    return text.replace("<svg ", f'<svg role="img" aria-label="{drawing.name}" ', 1)


def png(drawing: Drawing) -> bytes:
    """Return the figure as PNG, 200 dots per inch."""
    return _saved(drawing.figure, "png", dpi=200, metadata={"Software": None})


def pdf(drawing: Drawing) -> bytes:
    """Return the figure as PDF."""
    return _saved(drawing.figure, "pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})


def _saved(figure: Figure, kind: str, **how: Any) -> bytes:
    content = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(content, format=kind, **how)
    return content.getvalue()


def _grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL_INCHES * max(columns, 1.4), height * rows + 0.4))
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def _band(ax: Axes, found: Curve, colour: str, where: NDArray[np.bool_] | None = None, alpha: float = 0.15) -> None:
    if found.sd_E is not None:
        low_E, high_E = found.mean_E - found.sd_E, found.mean_E + found.sd_E
        ax.fill_between(found.steps_E, low_E, high_E, where=where, color=colour, alpha=alpha, lw=0)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Put one legend for all panels below them, in as few rows as its width allows."""
    entries: dict[Any, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for rows in count(max(1, math.ceil(len(entries) / 4))):
        ncols = math.ceil(len(entries) / rows)
        legend = figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=ncols)
        if ncols <= 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            return
        legend.remove()


def file_names(names: Sequence[str]) -> list[str]:
    """Return a name for a file or folder for each, all different and none of them leading elsewhere."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w.+-]+", "_", name).lstrip(".") or "_"
        others = (plain, *(f"{plain}_{i}" for i in range(2, len(names) + 1)))
        found.append(next(other for other in others if other not in found))
    return found


def _joined(labels: list[str]) -> str:
    return " and ".join(labels)


def _over(curves: Sequence[Curve]) -> str:
    """Say what a line is: of how many seeds, and what the band is."""
    counts = sorted({found.n for found in curves})
    if counts == [1]:
        return "one seed."
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return f"mean over {seeds} seeds; the band is ± one sample standard deviation."
