"""A run's state on disk: whole or not at all, checked when it is read, and never a pickle that can run code.

A checkpoint is one line, `nlt checkpoint 1 SHA256`, then what `torch.save` writes of tensors and plain values. Each is
written beside the one before, which goes only when the new one is safely there.
"""

import hashlib
import io
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]
"""Tensors, numbers, text, and lists and dicts of these."""

KEPT = 2  # the newest, and the one before should the newest turn out damaged
_MAGIC = b"nlt checkpoint 1 "
_NAME = re.compile(r"checkpoint-(\d{6,})\.pt")


def file(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"checkpoint-{step:06}.pt"


def save(folder: Path, step: int, state: State) -> None:
    """Write the checkpoint of a step, then remove all but the last `KEPT`.

    Raises:
        OSError: the checkpoint could not be written; earlier ones are untouched.
    """
    payload = io.BytesIO()
    torch.save(state, payload)
    write_whole(
        file(folder, step),
        _MAGIC + hashlib.sha256(payload.getbuffer()).hexdigest().encode() + b"\n",
        payload.getbuffer(),
    )
    for _, old in _found(folder)[:-KEPT]:
        old.unlink(missing_ok=True)


class Writer:
    """Writes checkpoints beside training, one at a time; as a context it waits at the end for the one under way."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, state: State) -> None:
        """Copy the state and write the copy in the background, as `save` does; training may change the state meanwhile.

        Raises:
            OSError: as `wait`.
        """
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(step, _copy(state)), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the checkpoint under way is on the disk.

        Raises:
            OSError: the checkpoint could not be written; earlier ones are untouched.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.wait()
        except OSError:
            if kind is None:
                raise  # otherwise what ended the run says more than that its last checkpoint is missing

    def _write(self, step: int, state: State) -> None:
        try:
            save(self._folder, step, state)
        except Exception as error:  # it belongs to the thread that trains
            self._error = error


def _copy(value: Any) -> Any:
    """Return a copy of a state, its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value


def latest(folder: Path, warn: Callable[[str], None] = lambda sentence: None) -> tuple[int, State] | None:
    """Return (step, state) of the newest whole checkpoint, or None; `warn` gets a sentence for each damaged one."""
    for step, path in reversed(_found(folder)):
        state = _read(path)
        if state is not None:
            return step, state
        warn(f"{path} is damaged and passed over.")
    return None


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that after a crash or a full disk `path` holds all of the new content or all of the old.

    Raises:
        OSError: the file could not be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            for piece in parts:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)  # on a full disk it holds the room that others need
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _found(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint, the oldest first."""
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def _read(path: Path) -> State | None:
    try:
        with path.open("rb") as file:
            head, payload = file.readline(200), file.read()
        if head != _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n":
            return None
        state: State = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception:  # whatever torch says of bytes that it did not write
        return None
    return state
