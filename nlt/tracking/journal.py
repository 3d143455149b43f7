"""A run's folder on this machine. What was computed is on this disk before it is sent anywhere.

    RUNS/RUN_ID/run.json            what is needed to go on; the folder counts once it is there
                lock                held by the process that trains or delivers the run
                journal.jsonl       one line per event, the last one being `end`
                delivered           how many bytes of the journal have reached MLflow
                checkpoint-STEP.pt  see checkpoint.py
                artifacts/          files of the finished run, until they are delivered
    RUNS/shared/                    see shared.py

The folder is removed when the run is over and all of it has reached MLflow.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from nlt.checkpoint import State, save, sync_folder, write_whole
from nlt.run import EpochRecord
from nlt.settings import BadInput

Record = dict[str, Any]
RUN_ID = re.compile(r"[0-9a-f]{32}")
REQUIRED = {"experiment_id", "store", "spec", "seed", "data_root", "log_model", "same", "alike"}  # keys of run.json


class Journal:
    """Append-only lines of `CRC32 JSON`; a line counts once it and its newline are on disk."""

    def __init__(self, path: Path):
        """Open a journal for appending, and cut off what a crash left of an unfinished line.

        Raises:
            BadInput: a line that others follow is damaged, or the first one.
        """
        self.path = path
        self.ends = _line_ends(path)
        """Where each line ends."""
        self._file = path.open("ab", buffering=0)
        if self.end < path.stat().st_size:
            self._file.truncate(self.end)

    @property
    def end(self) -> int:
        """Where the last whole line ends."""
        return self.ends[-1]

    def append(self, record: Record) -> None:
        """Write a record through to the disk.

        Raises:
            OSError: it could not be written; the journal is as it was.
        """
        line = _line(record)
        try:
            written = 0
            while written < len(line):  # a disk that fills up takes a part
                written += os.write(self._file.fileno(), line[written:])
            os.fsync(self._file.fileno())
        except BaseException:  # Ctrl-C too: the next line must not go on where this one broke off
            self._file.truncate(self.end)
            raise
        self.ends.append(self.end + len(line))

    def read(self, offset: int = 0) -> Iterator[tuple[Record, int]]:
        """Yield (record, offset of the next one) for all that has been appended until now."""
        end = self.end
        with self.path.open("rb") as file:
            file.seek(offset)
            while offset < end:
                line = file.readline()
                offset += len(line)
                yield json.loads(line[9:]), offset

    def last(self) -> Record:
        """Return the last record."""
        record, _ = next(self.read(self.ends[-2] if len(self.ends) > 1 else 0))
        return record

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _line(record: Record) -> bytes:
    text = json.dumps(record, allow_nan=False, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _line_ends(path: Path) -> list[int]:
    """Return where the whole lines at the beginning end."""
    ends: list[int] = []
    bad = offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            offset += len(line)
            whole = line.endswith(b"\n") and line[:9] == b"%08x " % zlib.crc32(line[9:-1])
            if whole and not bad:
                ends.append(offset)
            elif whole or number == 1:
                raise BadInput(f"{path}: line {bad or 1} is damaged, the run cannot go on; launch it again.")
            bad = bad or (0 if whole else number)
    if not ends:
        raise BadInput(f"{path} is empty, the run cannot go on; launch it again.")
    return ends


def epoch_record(epoch: EpochRecord, pictures: dict[str, bytes]) -> Record:
    """Put an epoch and its pictures (artifact path -> content) into a record, to the last bit."""
    return {
        "kind": "epoch",
        "time": now(),
        "step": epoch.step,
        "steps": epoch.steps,
        "stage": epoch.stage,
        "t": epoch.t,
        "metrics": epoch.metrics,
        "losses_N": _encode(epoch.losses_N),
        "keep_N": None if epoch.keep_N is None else _encode(epoch.keep_N.to(torch.uint8)),
        "scores_N": None if epoch.scores_N is None else _encode(epoch.scores_N),
        "labels_N": None if epoch.labels_N is None else _encode(epoch.labels_N),
        "files": {path: base64.b64encode(content).decode() for path, content in pictures.items()},
    }


def epoch_of(record: Record) -> EpochRecord:
    """Read an epoch back out of its record."""
    keep_N, scores_N = record["keep_N"], record["scores_N"]
    labels_N = record.get("labels_N")  # earlier journals have none
    return EpochRecord(
        record["step"],
        record["steps"],
        record["stage"],
        record["t"],
        record["metrics"],
        _decode(record["losses_N"], np.float32),
        None if keep_N is None else _decode(keep_N, np.uint8).bool(),
        None if scores_N is None else _decode(scores_N, np.float32),
        None if labels_N is None else _decode(labels_N, np.int64),
    )


def _encode(values_N: Tensor) -> str:
    return base64.b64encode(values_N.numpy().tobytes()).decode()


def _decode(text: str, kind: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), kind).copy())


def now() -> int:
    """Return the time in MLflow's unit, milliseconds."""
    return int(time.time() * 1000)


class Busy(Exception):
    """Another process trains or delivers this run."""


class RunFolder:
    """One run's folder, locked for this process from construction to `close`."""

    def __init__(self, path: Path, lock: FileLock | None = None, patience_s: float = 0.0):
        """Open a folder that `create` made; `lock` is its lock if this process holds it already.

        Raises:
            Busy: another process has the folder open for longer than `patience_s`, or has just removed it.
            BadInput: the folder is damaged, or belongs to another user.
        """
        self.path, self.run_id = path, path.name
        self._lock = lock or FileLock(path / "lock")
        try:
            if lock is None:
                self._lock.acquire(timeout=patience_s)
        except (Timeout, FileNotFoundError):
            raise Busy(self.run_id) from None
        except OSError as error:
            raise BadInput(f"{path} cannot be opened ({error.strerror}): another user's run, perhaps.") from None
        try:
            if not (path / "run.json").is_file():  # over, delivered and removed since it was listed
                shutil.rmtree(path, ignore_errors=True)
                raise Busy(self.run_id)
            self.facts: Record = json.loads((path / "run.json").read_text(encoding="utf-8"))
            if not isinstance(self.facts, dict) or not self.facts.keys() >= REQUIRED:
                raise ValueError("keys are missing in run.json: another version of nlt wrote it")
            self.journal = Journal(path / "journal.jsonl")
            self._delivered = self._read_delivered()
        except (OSError, ValueError) as error:
            self._lock.release()
            raise BadInput(f"{path}: cannot be read ({error}); launch the run again.") from None
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def create(
        cls, runs: Path, run_id: str, facts: Record, records: list[Record], saved: tuple[int, State] | None = None
    ) -> "RunFolder":
        """Make the folder of a new run, with `facts` as its run.json and one or more `records` as its journal.

        Records that hold epochs need `saved`, the (step, state) of a checkpoint after them.

        Raises:
            OSError: the folder cannot be written; nothing of it is left.
        """
        path = runs / run_id
        lock = FileLock(path / "lock")
        try:
            path.mkdir(parents=True)
            (path / "artifacts").mkdir()
            lock.acquire(timeout=0)  # before run.json is there, from when on others look at the folder
            write_whole(path / "journal.jsonl", *map(_line, records))
            if saved:
                save(path, *saved)
            write_whole(path / "run.json", json.dumps(facts, indent=1).encode())
            sync_folder(runs)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            lock.release()
            raise
        return cls(path, lock)

    def epochs(self) -> list[EpochRecord]:
        """Return the epochs in the journal."""
        return [epoch_of(record) for record, _ in self.journal.read() if record["kind"] == "epoch"]

    def epochs_journaled(self) -> int:
        """Return how many epochs are in the journal."""
        return sum(record["kind"] == "epoch" for record, _ in self.journal.read())

    def is_over(self) -> bool:
        """Tell whether the run has ended for good: finished, or failed in a way that would only repeat itself."""
        return bool(self.journal.last().get("over"))

    def has_ended(self) -> bool:
        """Tell whether its last process could still note that it ended."""
        return bool(self.journal.last()["kind"] == "end")

    @property
    def delivered(self) -> int:
        """How many bytes of the journal have reached MLflow."""
        return self._delivered

    def waiting(self) -> int:
        """Return how many records have not reached MLflow."""
        return sum(end > self._delivered for end in self.journal.ends)

    def set_delivered(self, offset: int) -> None:
        """Note that the journal has reached MLflow up to `offset`; what is sent twice does no harm."""
        part = self.path / ".delivered.part"
        try:
            part.write_text(str(offset))
            os.replace(part, self.path / "delivered")
        finally:
            self._delivered = offset  # last, since the folder may go as soon as all is delivered

    def close(self) -> None:
        """Let go of the folder, and remove it if nothing in it is needed any more."""
        done = self._delivered == self.journal.end and self.is_over()
        self.journal.close()
        if done:
            (self.path / "run.json").unlink()  # first, so that a folder half removed does not count as a run
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()

    def _read_delivered(self) -> int:
        try:
            offset = int((self.path / "delivered").read_text())
        except (FileNotFoundError, ValueError):
            return 0
        return offset if offset in self.journal.ends else 0  # elsewhere it would tear records apart


def folders(runs: Path) -> list[Path]:
    """Return the folders of all runs, the oldest first."""
    found = []
    for path in runs.iterdir() if runs.is_dir() else ():
        if RUN_ID.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):  # no run yet, or no longer
                found.append(((path / "run.json").stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


def opened(runs: Path, complain: Callable[[str], None]) -> Iterator[RunFolder]:
    """Yield the folder of each run that no other process has open, the oldest first, and close it afterwards.

    `complain` gets a sentence for each damaged folder.
    """
    for path in folders(runs):
        try:
            folder = RunFolder(path)
        except Busy:
            continue
        except BadInput as error:
            complain(str(error))
            continue
        try:
            yield folder
        finally:
            folder.close()


def in_progress(runs: Path) -> Iterator[Record]:
    """Yield what `run.json` says of each run that another process has open."""
    for path in folders(runs):
        try:
            RunFolder(path).close()
        except Busy:
            with contextlib.suppress(OSError, ValueError):
                yield json.loads((path / "run.json").read_text())
        except BadInput:  # damaged: whoever opens it says so
            continue


def folder_of(runs: Path, run_id: str) -> Path:
    """Return the folder of one run.

    Raises:
        BadInput: `run_id` is no run's id, or nothing of the run is in `runs`.
    """
    if not RUN_ID.fullmatch(run_id):
        raise BadInput(f"{run_id!r} is no run id: give the 32 hex digits that nlt launch printed.")
    if not (runs / run_id / "run.json").is_file():
        raise BadInput(
            f"nothing of run {run_id} lies in {runs}: it is over and delivered, or it was launched from another folder."
        )
    return runs / run_id
