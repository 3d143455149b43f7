"""Writes docs/benchmark.md out of docs/benchmark.jsonl: `docs/benchmark.py` says how the lines come about.

A line is one run; a cell is what the seeds of one method in one row of one data set gave. Accuracies are fractions in
the lines and per cent on the page.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nlt.reading import load
from nlt.report.plots import INK, RIGHT, STYLE, WRONG
from nlt.report.statistics import paired_difference, ranks, summary
from nlt.settings import Settings
from nlt.spec import Experiment
from nlt.train import Stage

FILES = Path(__file__).parent.parent / "experiments" / "benchmark"
BEGIN, END = "<!-- benchmark.jsonl -->", "<!-- end -->"
DATA = {
    "digits-augmented": "digits, augmented",
    "digits": "digits, as they are",
    "cifar4-reduced-augmented": "CIFAR-4, reduced, augmented",
    "cifar4-reduced": "CIFAR-4, reduced, as they are",
    "cifar4": "CIFAR-4, full scale",
    "cifar10": "CIFAR-10, full scale",
}
FOLDERS = {data: "cifar" if data in ("cifar4", "cifar10") else data.removesuffix("-augmented") for data in DATA}
VIEWS: dict[str, dict[str, Any] | None] = {
    "digits-augmented": {"name": "crop_flip_cutout", "pad": 1, "flip": False, "cutout": 3},
    "digits": None,
    "cifar4-reduced-augmented": {"name": "crop_flip_cutout", "pad": 4, "flip": True, "cutout": 8},
    "cifar4-reduced": None,
}
"""What all methods of a data set learn of the images, None for all of it; at full scale as each one's paper has it."""
ROWS = (
    "clean", "symmetric 20", "symmetric 60", "symmetric 80", "pair flip 40", "asymmetric 40", "instance 40",
    "human worst", "imbalance 10, symmetric 40",
)  # fmt: skip
BASE = "base"
ANOTHER_SETTING = frozenset({"loo_consistency_batch128"})  # of a method that is ranked already
DIVIDEMIX = "Li et al. 2020, Tables 1 and 2, best epoch"
WEI = "Wei et al. 2022 (CIFAR-10N), leaderboard"
AGAIN = "independent reproduction (Vovk et al., ReScience C 2026)"
PAPER = "Lanson & David 2023, Table 1, one run, 9-layer CNN"
PUBLISHED: tuple[tuple[str, str, str, float, str], ...] = (
    ("cifar4", "base", "symmetric 20", 69.6, PAPER), ("cifar4", "base", "symmetric 60", 36.2, PAPER),
    ("cifar4", "apl", "symmetric 20", 75.7, PAPER), ("cifar4", "apl", "symmetric 60", 49.6, PAPER),
    ("cifar4", "o2u_told", "symmetric 20", 79.6, PAPER), ("cifar4", "o2u_told", "symmetric 60", 56.7, PAPER),
    ("cifar4", "o2u_apl", "symmetric 20", 81.2, f"{PAPER}, told the rate"),
    ("cifar4", "o2u_apl", "symmetric 60", 55.7, f"{PAPER}, told the rate"),
    ("cifar10", "base", "symmetric 20", 86.8, DIVIDEMIX), ("cifar10", "base", "symmetric 80", 62.9, DIVIDEMIX),
    ("cifar10", "base", "asymmetric 40", 85.0, DIVIDEMIX), ("cifar10", "base", "human worst", 77.7, WEI),
    ("cifar10", "base", "human worst", 83.9, AGAIN),
    ("cifar10", "coteaching_told", "symmetric 20", 82.2, "Han et al. 2018, the authors' page, 9-layer CNN"),
    ("cifar10", "coteaching_told", "human worst", 80.9, AGAIN),
    ("cifar10", "elr", "symmetric 20", 91.2, "Liu et al. 2020, ResNet-34"),
    ("cifar10", "elr", "symmetric 60", 86.1, "Liu et al. 2020, ResNet-34"),
    ("cifar10", "elr", "symmetric 80", 73.9, "Liu et al. 2020, ResNet-34"),
    ("cifar10", "elr", "asymmetric 40", 90.1, "Liu et al. 2020, ResNet-34"),
    ("cifar10", "elr", "human worst", 87.9, AGAIN), ("cifar10", "sop", "human worst", 83.7, AGAIN),
    ("cifar10", "dividemix", "symmetric 20", 96.1, DIVIDEMIX),
    ("cifar10", "dividemix", "symmetric 80", 93.2, DIVIDEMIX),
    ("cifar10", "dividemix", "asymmetric 40", 93.4, DIVIDEMIX), ("cifar10", "dividemix", "human worst", 92.6, WEI),
    ("cifar10", "dividemix", "human worst", 93.1, AGAIN),
    ("cifar10", "ssr", "symmetric 20", 96.7, "Feng et al. 2022, SSR+"),
    ("cifar10", "ssr", "symmetric 80", 95.6, "Feng et al. 2022, SSR+"),
    ("cifar10", "ssr", "asymmetric 40", 95.5, "Feng et al. 2022, SSR+"),
    ("cifar10", "SOP+ (not here)", "symmetric 20", 96.3, "Liu et al. 2022"),
    ("cifar10", "SOP+ (not here)", "symmetric 80", 94.0, "Liu et al. 2022"),
    ("cifar10", "SOP+ (not here)", "asymmetric 40", 93.8, "Liu et al. 2022"),
    ("cifar10", "SOP+ (not here)", "human worst", 92.9, AGAIN),
    ("cifar10", "ELR+ (not here)", "human worst", 91.8, AGAIN),
    ("cifar10", "ProMix (not here)", "symmetric 20", 97.7, "Xiao et al. 2023, best epoch"),
    ("cifar10", "ProMix (not here)", "symmetric 80", 95.5, "Xiao et al. 2023, best epoch"),
    ("cifar10", "ProMix (not here)", "asymmetric 40", 96.6, "Xiao et al. 2023, best epoch"),
    ("cifar10", "ProMix (not here)", "human worst", 96.3, "Xiao et al. 2023, best epoch"),
)  # fmt: skip
"""Data set, method, row, test accuracy in per cent, source."""
REDRAWN = (
    "Not all symmetric noise is the same: DivideMix's code, and what follows it, may draw the true class again, so "
    "that of ten classes 0.9 r of the labels are wrong where it says r; here r are."
)

Line = dict[str, Any]


def viewed(data: str, file: Path, sets: dict[str, Any]) -> Experiment:
    """Return a file's experiment, all methods of a data set learning from the same view of the images.

    Where a method tells a view to learn from (`strong`) from one to judge by, the latter is the images as they are.
    """
    if data in VIEWS:
        has_strong = "strong" in json.loads(file.read_text())["method"]
        sets = {"method.strong" if has_strong else "augmentation": VIEWS[data]} | sets
    return load(file, tuple(f"{key}={json.dumps(value)}" for key, value in sets.items()))


class Results:
    """The cells of one data set. Of a method in a row only lines of the recipe of its last line count."""

    def __init__(self, data: str, lines: Iterable[Line]):
        own = [line for line in lines if line["data"] == data]
        recipes = {(line["method"], line["row"]): line["recipe"] for line in own}
        self.cells: dict[tuple[str, str], dict[int, Line]] = defaultdict(dict)
        for line in own:
            if line["recipe"] == recipes[line["method"], line["row"]]:
                self.cells[line["method"], line["row"]][line["seed"]] = line
        self.data = data
        self.lines = [line for cell in self.cells.values() for line in cell.values()]
        self.rows = [row for row in ROWS if any(line["row"] == row for line in self.lines)]
        self.told = {line["method"] for line in self.lines if line["told"]}
        self.outside = {line["method"]: line["outside_weights"] for line in self.lines if line["outside_weights"]}
        names = {line["method"] for line in self.lines}
        self.methods = sorted(names, key=lambda m: (m in self.outside, m in self.told, m != BASE, m))

    def values(self, method: str, row: str, key: str) -> dict[int, float]:
        """Return seed -> value, without the runs that have none."""
        cell = self.cells.get((method, row), {})
        return {seed: line[key] for seed, line in sorted(cell.items()) if line.get(key) is not None}

    def group(self, method: str) -> str:
        """Return what a method may use that others may not."""
        return "outside" if method in self.outside else "told" if method in self.told else "alone"

    def ranks(self) -> dict[str, dict[str, float]]:
        """Return method -> row -> place by mean last-epoch accuracy, among those that use these data alone."""
        alone = [m for m in self.methods if self.group(m) == "alone" and m not in ANOTHER_SETTING]
        found: dict[str, dict[str, float]] = {method: {} for method in alone}
        for row in self.rows:
            of = {method: self.values(method, row, "accuracy") for method in alone}
            for method, rank in ranks({method: mean(seen.values()) for method, seen in of.items() if seen}).items():
                found[method][row] = rank
        return found


def write_page(page: Path, lines: list[Line]) -> None:
    """Replace what lies between the two markers, and draw a figure for each data set beside the page."""
    text = page.read_text() if page.exists() else f"{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    parts = []
    for data, title in DATA.items():
        results = Results(data, lines)
        if results.lines:
            figure = page.with_name(f"{page.stem}_{data}.png")
            draw(results, figure)
            parts += [f"## {title}", *_sections(results), f"![{title}: accuracy by row and method]({figure.name})"]
            parts.append(_provenance(results))
    parts += [f"## Published\n\n{REDRAWN}\n\n{published(lines)}"]
    page.write_text(f"{head}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{tail}")


def _sections(results: Results) -> list[str]:
    def percent(found: dict[int, float]) -> str:
        of = summary(list(found.values()))
        if of is None:
            return ""
        return f"{100 * of.mean:.1f}" + ("" if of.sd is None else f" ± {100 * of.sd:.1f}") + f" ({of.n})"

    def accuracy(method: str, row: str) -> str:
        text = percent(results.values(method, row, "accuracy"))
        return f"**{text}**" if text and method in best[row] else text

    def difference(method: str, row: str) -> str:
        if method == BASE:
            return ""
        of = paired_difference(results.values(method, row, "accuracy"), results.values(BASE, row, "accuracy"))
        if of is None:
            return ""
        half = "" if of.half is None else f" ± {100 * of.half:.1f}"
        return f"{100 * of.mean:+.1f}{half} ({of.n})".replace("-", "\N{MINUS SIGN}")

    def detection(method: str, row: str) -> str:
        found = [results.values(method, row, key) for key in ("auc", "average_precision")]
        return " / ".join(f"{mean(of.values()):.3f}" for of in found if of)

    def estimate(method: str, row: str) -> str:
        found, wrong = (results.values(method, row, key) for key in ("estimated_rate", "wrong"))
        return f"{100 * mean(found.values()):.0f} / {100 * mean(wrong.values()):.0f}" if found and wrong else ""

    places, best = results.ranks(), dict[str, set[str]]()
    for row in results.rows:
        first = min((of[row] for of in places.values() if row in of), default=0.0)
        best[row] = {method for method, of in places.items() if of.get(row) == first}
    rank = {
        m: f"{mean(of.values()):.1f}" + f" ({len(of)})" * (len(of) < len(results.rows))
        for m, of in places.items()
        if of
    }
    rankings = sorted(rank, key=lambda m: mean(places[m].values()))
    detecting = [m for m in results.methods if any(results.values(m, row, "auc") for row in results.rows)]
    estimating = [m for m in results.methods if any(results.values(m, row, "estimated_rate") for row in results.rows)]
    noisy = [row for row in results.rows if row != "clean"]
    return [
        "Last-epoch test accuracy, %: mean ± standard deviation (seeds).",
        _table(results, results.methods, results.rows, accuracy),
        "Last epoch less cross-entropy's, percentage points: mean ± half the 95 % interval of Student's t over pairs "
        "of equal seeds (pairs).",
        _table(results, [m for m in results.methods if m != BASE], results.rows, difference),
        "At the best accuracy on the noisy validation samples, %.",
        _table(results, results.methods, results.rows, lambda m, row: percent(results.values(m, row, "at_best_val"))),
        "Places by last-epoch accuracy among the methods that use these data alone, 1 the highest; a mean rank over "
        "fewer than all rows has their number behind it.",
        _table(
            results, rankings, [*results.rows, "mean"],
            lambda m, row: rank[m] if row == "mean" else f"{places[m][row]:g}" if row in places[m] else "",
        ),
        "Wrong labels found: AUROC / average precision of the method's last scores.",
        _table(results, detecting, noisy, detection),
        "Share of wrong labels that a method estimated / that there was, %.",
        _table(results, estimating, results.rows, estimate),
        "What each method does in how many epochs, with which views, batches and learning rates.",
        _stages(results),
        "Cost: the median of a method's seconds in epochs, on a machine shared with other work, over its runs on the "
        "device that most runs of these data had, empty where it has none there (what a method does before its first "
        "epoch, as features of a backbone, is not in them). Over the rows and seeds that cross-entropy was run at, "
        "too, whatever the device, the mean of the images that a step went back through, each network and view counted "
        "(what is only looked at is not), and the mean of their ratio to cross-entropy's of the same row and seed.",
        _cost(results),
    ]  # fmt: skip


def _table(results: Results, methods: list[str], columns: list[str], text: Callable[[str, str], str]) -> str:
    head = ["method", *columns]
    body = [[_name(results, method), *(text(method, column) for column in columns)] for method in methods]
    return _pipes(head, body)


def _pipes(head: list[str], body: list[list[str]], texts: int = 1) -> str:
    lines = [head, ["---"] * texts + ["---:"] * (len(head) - texts), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(results: Results, method: str) -> str:
    marks = " †" * (method in results.told) + " ‡" * (method in results.outside)
    return f"[{method}](../experiments/benchmark/{FOLDERS[results.data]}/{method}.json){marks}"


def _cost(results: Results) -> str:
    [(device, _)] = Counter(line["device"] for line in results.lines).most_common(1)

    def images(method: str) -> dict[tuple[str, int], float]:
        seen = {row: results.values(method, row, "images_seen") for row in results.rows}
        return {(row, seed): number for row, of in seen.items() for seed, number in of.items()}

    base = images(BASE)
    body = []
    for method in results.methods:
        own = [line for line in results.lines if line["method"] == method]
        seconds = [line["seconds"] for line in own if line["device"] == device]
        seen = {key: number for key, number in images(method).items() if key in base}
        body.append([
            _name(results, method),
            f"{median(seconds):.0f}" if seconds else "",
            f"{mean(seen.values()) / 1000:,.0f}" if seen else "",
            f"{mean(number / base[key] for key, number in seen.items()):.1f}" if seen else "",
            ", ".join(sorted({line["epochs"] for line in own})),
            results.outside.get(method, ""),
        ])  # fmt: skip
    head = ["method", f"seconds ({device})", "1,000 images", "times cross-entropy's", "epochs", "outside weights"]
    return _pipes(head, body)


def _stages(results: Results) -> str:
    body = []
    for method in results.methods:
        file = FILES / FOLDERS[results.data] / f"{method}.json"
        if file.exists():
            body.append([_name(results, method), *_does(viewed(results.data, file, {}))])
    return _pipes(["method", "views", "stages: epochs x batch, schedule"], body, texts=3)


def _does(spec: Experiment) -> tuple[str, str]:
    """Return a spec's views and its stages in words."""
    method = dict(spec.method)
    views = _view(spec.augmentation)
    if method.get("strong") is not None:
        views += f"; strong: {_view(method['strong'])}"
    stages = [
        f"{name} {stage.epochs} x {stage.batch_size}, {stage.schedule.name} {_rates(stage.schedule)}"
        for name, stage in method.items()
        if isinstance(stage, Stage)
    ]
    return views, "; ".join(stages)


def _view(view: Settings | None) -> str:
    """Return a view in words: `crop 1, cutout 3`."""
    if view is None:
        return "as they are"
    told = view.model_dump()
    if told["name"] == "strong":
        return f"{told['operations']} operations, crop, flip, cutout"
    words = [
        f"crop {told['pad']}" * bool(told["pad"]),
        "flip" * told["flip"],
        f"cutout {told['cutout']}" * bool(told["cutout"]),
    ]
    return ", ".join(filter(None, words)) or "as they are"


def _rates(schedule: Settings) -> str:
    told = schedule.model_dump()
    rates = told.get("lrs") or [told[key] for key in ("lr", "final_lr", "r1", "r2") if key in told]
    return " / ".join(f"{rate:g}" for rate in rates)


def _provenance(results: Results) -> str:
    def of(key: str) -> str:
        return ", ".join(sorted({str(line[key]) for line in results.lines}))

    days = sorted(line["date"] for line in results.lines)
    return (
        f"{len(results.lines)} runs, {days[0]} to {days[-1]} UTC; commits {of('commit')}; device {of('device')}, "
        f"threads {of('threads')}."
    )


def published(lines: list[Line]) -> str:
    """Return the table of published numbers, ours beside them where there are some."""
    found = {data: Results(data, lines) for data in DATA}
    body = []
    for data, method, row, number, source in PUBLISHED:
        ours = summary(list(found[data].values(method, row, "accuracy").values()))
        shown = "" if ours is None else f"{100 * ours.mean:.1f} ({ours.n})"
        body.append([DATA[data].partition(",")[0], method, row, f"{number:.1f}", shown, source])
    return _pipes(["data", "method", "row", "published", "ours (seeds)", "source"], body)


def draw(results: Results, path: Path) -> None:
    """Draw a panel for each row: each method's mean accuracy and its standard deviation."""
    colours = {"alone": RIGHT, "told": INK, "outside": WRONG}
    columns = min(3, len(results.rows))
    bands = -(-len(results.rows) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(3.1 * columns + 1.2, (0.75 + 0.19 * len(results.methods)) * bands))
        FigureCanvasAgg(figure)
        axes = figure.subplots(bands, columns, squeeze=False, sharey=True)
        for ax, row in zip(axes.flat, results.rows, strict=False):
            for y, method in enumerate(reversed(results.methods)):
                of = summary(list(results.values(method, row, "accuracy").values()))
                if of is not None:
                    kind = results.group(method)
                    marker = {"alone": "o", "told": "^", "outside": "D"}[kind]
                    ax.errorbar(
                        100 * of.mean, y, xerr=None if of.sd is None else 100 * of.sd, fmt=marker, ms=4,
                        color=colours[kind], elinewidth=1,
                    )  # fmt: skip
            ax.set_title(row)
            ax.set_yticks(range(len(results.methods)), list(reversed(results.methods)))
            ax.set_ylim(-0.6, len(results.methods) - 0.4)
        for ax in list(axes.flat)[len(results.rows) :]:
            ax.set_axis_off()
        for ax in axes[-1]:
            ax.set_xlabel("test accuracy, %")
        figure.savefig(path, dpi=90, metadata={"Software": None})
