"""First stages that several runs of a launch have in common are trained once: one leaves them, others begin there.

    RUNS/shared/HASH/facts.json          which run trained them, and on what
                     journal.jsonl       its epochs
                     checkpoint-STEP.pt  its state after them

HASH is of `Experiment.prefix`. A run that begins there is as one that was interrupted there, and goes on in the
same way. All is copied: the folder may go at any time.
"""

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nlt import checkpoint
from nlt.checkpoint import State
from nlt.settings import BadInput
from nlt.tracking.journal import Journal, Record, RunFolder

FOLDER = "shared"


@dataclass(frozen=True)
class Prefix:
    """Epochs of another run that a new one begins with."""

    run_id: str
    """The run that trained them."""
    epochs: list[Record]
    """Their records in its journal."""
    saved: tuple[int, State]
    """How many they are, and the state after them."""


def leave_prefix(folder: RunFolder, step: int, prefix: str) -> None:
    """Leave a run's first `step` epochs, all it has and in a checkpoint, for others of the same `prefix`.

    What other code, data or another machine has left there makes room. On a disk that does not take them nothing
    happens: the others train for themselves.
    """
    place, trained_on = folder.path.parent / FOLDER / prefix, _trained_on(folder.facts)
    part = place.with_name(f".{prefix}.{folder.run_id}")
    try:
        if place.exists():
            if json.loads((place / "facts.json").read_text())["trained_on"] == trained_on:
                return
            shutil.rmtree(place)
        part.mkdir(parents=True)
        shutil.copy(checkpoint.file(folder.path, step), part)
        shutil.copy(folder.journal.path, part)
        known = {"run_id": folder.run_id, "trained_on": trained_on}
        (part / "facts.json").write_text(json.dumps(known, indent=1))
        os.rename(part, place)
    except (OSError, ValueError, KeyError):  # a damaged facts.json: `find_prefix` removes it
        shutil.rmtree(part, ignore_errors=True)


def find_prefix(runs: Path, prefix: tuple[int, str] | None, launched: Record) -> Prefix | None:
    """Return a new run's `Experiment.prefix`, if it was left here, trained on equal data and machine by equal code.

    `launched` is what the new run's `run.json` will hold.
    """
    if prefix is None or not (place := runs / FOLDER / prefix[1]).exists():
        return None
    step = prefix[0]
    try:
        known = json.loads((place / "facts.json").read_text())
        if known["trained_on"] != _trained_on(launched):
            return None
        journal = Journal(place / "journal.jsonl")
        epochs = [record for record, _ in journal.read() if record["kind"] == "epoch" and record["step"] <= step]
        journal.close()
        saved = checkpoint.latest(place)
        if saved is None or saved[0] != step or len(epochs) != step:
            raise ValueError("parts are missing")
    except (OSError, ValueError, BadInput):  # a crash of the machine cut it off, or another launch is over with it
        shutil.rmtree(place, ignore_errors=True)
        return None
    return Prefix(known["run_id"], epochs, saved)


def forget_prefixes(runs: Path, prefixes: Iterable[str]) -> None:
    """Remove prefixes that were left for other runs, and those that a killed process had begun to leave."""
    for prefix in prefixes:
        for place in (runs / FOLDER / prefix, *(runs / FOLDER).glob(f".{prefix}.*")):
            shutil.rmtree(place, ignore_errors=True)
    with suppress(OSError):  # another launch has left something, or nobody has
        (runs / FOLDER).rmdir()


def _trained_on(facts: Record) -> Record:
    return {what: value for what, value in (facts["same"] | facts["alike"]).items() if what != "spec"}
