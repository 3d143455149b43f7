"""Write docs/reliability.md from what the reliability tests count: `make reliability` runs both.

    python docs/reliability.py FIGURES.jsonl

Each line of FIGURES.jsonl is one test's: {"what": "kills" | "full disk" | "fuzzed" | a fault scenario, ...}.
"""

import json
import platform
import sys
import time
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

HEAD = """# Reliability, measured

Written by `make reliability` on {date}: {machine}, Python {python}, torch {torch}, mlflow {mlflow}. It runs the
tests and writes this page; where a test fails, `make` stops and the page stays as it was.

Every run is compared with one that was never disturbed: status, params, tags, data set, each point of each metric (and
that it is there once), the per-sample losses, masks and weights bit by bit, pictures by number. "Different", "lost" and
"doubled" count what deviates.
"""


def main() -> None:
    """Read the figures and write the page beside this file."""
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        of[row["what"]].append(row)
    facts = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
    facts |= {name: version(name) for name in ("torch", "mlflow")} | {"machine": f"{platform.machine()}, CPU"}
    parts = [HEAD.format(**facts), *_kills(of.pop("kills", [])), *_disk(of.pop("full disk", []))]
    fuzzed, slow = of.pop("fuzzed", []), of.pop("slow server", [])
    parts += _faults([row for group in of.values() for row in group]) + _slow(slow) + _fuzz(fuzzed)
    Path(__file__).with_suffix(".md").write_text("\n".join(parts).rstrip() + "\n")


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def _kills(rows: list[dict[str, Any]]) -> list[str]:
    head = "## kill -9, then `nlt resume`\n\nMoments by name lie in the middle of a call (`tests/killer.py`).\n"
    table = [
        [row["method"], row["runs"], sum(row["kills"].values()), row["differences"], _counts(row["kills"])]
        for row in rows
    ]
    return [head, _table(["method", "runs", "kills survived", "different", "moments"], table)]


def _disk(rows: list[dict[str, Any]]) -> list[str]:
    head = "## A full disk, then room again\n\nAll of a run on a disk of 8 MiB that is filled but for some kB.\n"
    ends = Counter(row["ended"] for row in rows)
    total = f"Different in all {len(rows)} runs together: {sum(row['differences'] for row in rows)}.\n"
    return [head, _table(["how the run ended", "runs"], [[end, n] for end, n in sorted(ends.items())]), total]


def _faults(rows: list[dict[str, Any]]) -> list[str]:
    injected = sum(sum(row["kinds"].values()) for row in rows)
    head = (
        "## A tracking server that fails\n\nA real `mlflow server` on loopback behind a proxy that injects faults; "
        f"artifacts go through it too. {injected:,} faults in {len(rows)} scenarios, then `nlt sync` where needed.\n"
    )
    table = [
        [row["what"], row["backend"], _counts(row["kinds"]), row["metric_points"], row["lost"], row["duplicated"]]
        for row in rows
    ]
    return [head, _table(["scenario", "behind the server", "faults", "metric points", "lost", "doubled"], table)]


def _slow(rows: list[dict[str, Any]]) -> list[str]:
    head = "Seconds for all epochs of a run on digits, while the server does not answer or is slow, and undisturbed:\n"
    table = [[row["kind"], f"{row['epochs_s']:.1f}", f"{row['epochs_clean_s']:.1f}"] for row in rows]
    return [head, _table(["server", "seconds", "undisturbed"], table)]


def _fuzz(rows: list[dict[str, Any]]) -> list[str]:
    cases: Counter[str] = Counter()
    for row in rows:
        cases[row["kind"]] += row["cases"]
    head = (
        f"## Bad input\n\n{sum(cases.values()):,} generated cases: accepted, or refused in one sentence that names the "
        "place; no traceback, no hang, no run left behind.\n"
    )
    return [head, _table(["input", "cases"], [[kind, f"{count:,}"] for kind, count in sorted(cases.items())])]


def _counts(kinds: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()) if count)


if __name__ == "__main__":
    main()
