"""The tables of docs/cleaning.md out of its measurements; `cleaning.py` measures."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

BEGIN, END = "<!-- tables: written by docs/cleaning.py -->", "<!-- end of tables -->"
CELLS = (
    ("CIFAR-4", "symmetric 20 %"), ("CIFAR-4", "symmetric 60 %"), ("cat, dog", "symmetric 20 %"),
    ("cat, dog", "symmetric 40 %"),
)  # fmt: skip
ACTS = ("given", "remove_at_random", "remove", "relabel", "reweight")
OURS = ("remove", "relabel", "reweight")
CLASSIFIERS = {"cnn9": "CNN9, a quarter of its width, from scratch", "linear": "Linear head on lite0's features"}
WORDS = {"given": "as given", "remove_at_random": "as many removed at random"} | {act: act for act in OURS}
Line = dict[str, Any]
BySeed = dict[int, Line]


def write_page(page: Path, lines: list[Line]) -> None:
    """Replace what lies between the markers; a page without them, or none at all, gets them at its end."""
    text = page.read_text() if page.exists() else ""
    if BEGIN not in text:
        text += f"{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    dates, commits = sorted({line["date"] for line in lines}), sorted({line["commit"][:7] for line in lines})
    parts = [f"Measured {', '.join(dates)} with nlt at {', '.join(commits)}.\n"]
    for classifier, words in CLASSIFIERS.items():
        own = [line for line in lines if line["classifier"] == classifier]
        if own:
            parts += [f"### {words}\n", _accuracies(own), _differences(own)]
    parts += ["### What is trained on\n", _left(lines)] if lines else []
    page.write_text(before + "\n".join([BEGIN, "", *parts, END]) + after)


def _by_seed(lines: list[Line], data: str, noise: str, act: str) -> BySeed:
    """One line a seed."""
    return {line["seed"]: line for line in lines if (line["data"], line["noise"], line["act"]) == (data, noise, act)}


def spread(values: list[float], signed: bool = False) -> str:
    """Mean and standard deviation in percent or points, and how many there are."""
    if not values:
        return "-"
    sign = "+" if signed else ""
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):{sign}.1f}{deviation} ({len(values)})"


def _accuracies(lines: list[Line]) -> str:
    rows = []
    for data, noise in CELLS:
        cells = [[line["test_accuracy"] for line in _by_seed(lines, data, noise, act).values()] for act in ACTS]
        rows.append([f"{data}, {noise}", *map(spread, cells)])
    head = "Test accuracy in percent: mean ± standard deviation (number of seeds).\n\n"
    return head + _table(["data, noise", *(WORDS[act] for act in ACTS)], rows)


def _differences(lines: list[Line]) -> str:
    rows = []
    for data, noise in CELLS:
        cells = []
        for base in ("given", "remove_at_random"):
            bases = _by_seed(lines, data, noise, base)
            for act in OURS:
                own = _by_seed(lines, data, noise, act)
                pairs = [(own[seed], bases[seed]) for seed in sorted(own.keys() & bases.keys())]
                cells.append(spread([one["test_accuracy"] - other["test_accuracy"] for one, other in pairs], True))
        rows.append([f"{data}, {noise}", *cells])
    heads = [f"{act} - {base}" for base in ("given", "random") for act in OURS]
    return "Differences in points, each seed with itself.\n\n" + _table(["data, noise", *heads], rows)


def _left(lines: list[Line]) -> str:
    rows = []
    for data, noise in CELLS:
        cells = []
        for act in ACTS:
            # Both classifiers are trained on the same; random draws differ.
            found = list(_by_seed(lines, data, noise, act).values())
            images = f"{mean(line['images'] for line in found):,.0f}, " if found else ""
            cells.append(images + (f"{100 * mean(line['wrong'] for line in found):.1f} %" if found else "-"))
        rows.append([f"{data}, {noise}", *cells])
    head = "Images, and the share of wrong labels among them by weight; the mean over seeds.\n\n"
    return head + _table(["data, noise", *(WORDS[act] for act in ACTS)], rows)


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"
