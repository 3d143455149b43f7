"""An output folder that is whole or not there, whatever happens while it is written.

It is built beside as a hidden folder, `.NAME.part`, and then changes places with the one before in one step of the file
system. What people have put into the one before (decisions above all) is carried over.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nlt.checkpoint import sync_folder
from nlt.settings import BadInput

MARK = "output 1"  # manifest.json's "nlt"; another number where an older nlt could not read it
MANIFEST, DECISIONS = "manifest.json", "decisions"
OURS = frozenset({
    MANIFEST, DECISIONS, "labels.csv", "report.html", "worst.png", "detected", "disagreements.csv", "clean",
    "clean.csv", "clean.npz", "labelstudio.json", "labelstudio.xml",
})  # fmt: skip
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of linux/fs.h and fcntl.h


def check_place(out: Path, source: Path, labels: Path | None = None) -> None:
    """Make sure that an output folder can be written there without harm to the input or to what is not ours.

    Args:
        out: the output folder.
        source: the input.
        labels: the file that the input's labels are from, where that is another one.

    Raises:
        BadInput: it is the input, lies in it or holds it, or the working directory; it exists and is not ours; it is of
            another data set, or of other labels; it cannot be written.
    """
    real_out, real_source = real_place(out), Path(os.path.realpath(source))
    if real_out == real_source:
        raise BadInput(f"--out {out} is the input itself, which is never touched: name another folder")
    if real_source.is_dir() and real_out.is_relative_to(real_source):
        raise BadInput(f"--out {out} lies in the input {source}, which is never touched: name a folder beside it")
    if real_source.is_relative_to(real_out):
        raise BadInput(f"--out {out} holds the input {source}, which is never touched: name a folder beside it")
    with suppress(FileNotFoundError):  # a working directory that is gone
        if Path.cwd().is_relative_to(real_out):
            raise BadInput(f"--out {out} holds the working directory, and is replaced as a whole: go elsewhere first")
    there = real_out.parent
    try:
        while not there.exists():
            there = there.parent
        os.rmdir(tempfile.mkdtemp(prefix=".", dir=there))
    except OSError as error:
        raise BadInput(
            f"--out {out} cannot be written in {there} ({error.strerror}): make that a folder to write in, or name "
            "another one"
        ) from error
    if not os.path.lexists(out):
        return
    try:
        if not out.is_dir() or out.is_symlink():
            raise BadInput(f"--out {out} exists and is no folder: name another one, or remove it")
        if not any(out.iterdir()):
            return
    except OSError as error:
        raise BadInput(f"--out {out} cannot be read ({error.strerror}): name another folder") from error
    if not (out / MANIFEST).is_file():
        raise BadInput(f"--out {out} exists and is not nlt's (it has no {MANIFEST}): name another one, or remove it")
    manifest = read_manifest(out)
    told: list[tuple[str | None, Path | None]] = [(manifest["source"], source)]
    if "labels" in manifest:  # of what was written before they were there nothing is known
        told.append((manifest["labels"], labels))
    for before, now in told:
        if (before and os.path.realpath(real_out / before)) != (now and os.path.realpath(now)):
            place = os.path.normpath(real_out / before) if before else "labels in the folders"
            raise BadInput(
                f"--out {out} holds the result of {place}, not of {now or 'labels in the folders'}: "
                "name another folder, or remove it"
            )


def real_place(out: Path) -> Path:
    """Return where an output folder is: called "." it would be another one once the new one has its place.

    Raises:
        BadInput: it is named from a working directory that is no longer there.
    """
    try:
        return Path(os.path.realpath(out))
    except FileNotFoundError as error:
        raise BadInput(f"{out}: the working directory is no longer there: go elsewhere first") from error


def from_out(out: Path, file: Path) -> str:
    """Return a file's path as an output folder's manifest has it, so that both may be moved together."""
    return os.path.relpath(os.path.realpath(file), os.path.realpath(out))


def read_manifest(out: Path) -> dict[str, Any]:
    """Return manifest.json of an output folder.

    Raises:
        BadInput: there is none, or not one of ours.
    """
    file = out / MANIFEST
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise BadInput(f"{out} is no output folder of nlt detect (no {MANIFEST}): name one") from error
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}): make it readable") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file} is damaged: run nlt detect again into another folder") from error
    if (
        not isinstance(found, dict)
        or found.get("nlt") != MARK
        or not isinstance(found.get("source"), str)
        or not isinstance(found.get("labels"), str | None)
    ):
        raise BadInput(f"{file} is not one that this nlt wrote ({MARK}): run nlt detect into another folder")
    return found


@contextmanager
def built(out: Path) -> Iterator[Path]:
    """Give an empty folder to write into, which becomes `out` at the end; after an error `out` is as it was.

    Raises:
        BadInput: another process is writing the same output, or the disk does not take it.
    """
    out = real_place(out)
    part = out.with_name(f".{out.name}.part")
    lock = old = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(part, out)
        if not out.exists() and _before(out).is_dir():
            os.rename(_before(out), out)  # killed between the two steps of a swap
        yield part
        if out.is_dir():
            old = _alone(out, out)  # it is called `part` in a moment, where nobody may begin until it is cleared
            rescue(out, part)
        _sync(part)
        _swap(part, out)
        os.close(lock)
        lock, old = old, None
        sync_folder(out.parent)
    except OSError as error:
        what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        mend = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        raise BadInput(f"{out} cannot be written ({what}): {mend}, or name another folder by --out") from error
    finally:
        if old is not None:
            os.close(old)
        if lock is not None:
            if part.is_dir():
                if out.is_dir():
                    rescue(part, out)  # put there between the copy and the swap
                _make_writable(part)  # the output before, which somebody may have made read-only
                shutil.rmtree(part, ignore_errors=True)
            os.close(lock)


def _lock(part: Path, out: Path) -> int:
    """Make `part` an empty folder that is ours alone, and return the descriptor that keeps it so."""
    part.mkdir(exist_ok=True)
    lock = _alone(part, out)
    try:
        if out.is_dir():
            rescue(part, out)  # a process was killed right after the swap
        _make_writable(part)
        for entry in os.scandir(part):
            shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _alone(folder: Path, out: Path) -> int:
    """Lock a folder, and return the descriptor that keeps it so; BadInput where another process writes `out`."""
    busy = BadInput(f"{out} is being written by another nlt: wait until it is done")
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError as error:
        raise busy from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(lock), os.stat(folder))  # else it got another name before it was locked
    except (BlockingIOError, PermissionError, FileNotFoundError):
        ours = False
    except OSError:
        os.close(lock)
        raise
    if not ours:
        os.close(lock)
        raise busy
    return lock


def _make_writable(part: Path) -> None:
    with suppress(OSError):  # another user's: what follows says so
        for inside, _, _ in os.walk(part):
            os.chmod(inside, os.stat(inside).st_mode | stat.S_IRWXU)


def rescue(old: Path, new: Path) -> None:
    """Copy what people have put into an output folder to its successor: decisions, and whatever nlt did not write.

    A name that the successor has with another content gets the content's hash added.
    """
    theirs = [path for path in old.iterdir() if path.name not in OURS]
    if (old / DECISIONS).is_dir():
        theirs += (old / DECISIONS).iterdir()
    for path in sorted(theirs):
        target = new / path.relative_to(old)
        target.parent.mkdir(exist_ok=True)
        if path.is_file() and target.is_file() and target.read_bytes() != (content := path.read_bytes()):
            target = target.with_name(f"{path.stem}-{hashlib.sha256(content).hexdigest()[:16]}{path.suffix}")
        carry(path, target)


def carry(old: Path, new: Path) -> None:
    """Let what is at `old` be at `new`, too, unless something is there: a file by one more name for it, or a copy where
    the file system has no such, a folder file by file. Sockets and pipes are nobody's data."""
    if old.is_symlink():
        if not os.path.lexists(new):
            new.symlink_to(os.readlink(old))
    elif old.is_dir():
        if not os.path.lexists(new):
            new.mkdir()
        if new.is_dir():
            for path in sorted(old.iterdir()):
                carry(path, new / path.name)
    elif old.is_file() and not os.path.lexists(new):
        try:
            os.link(old, new)
        except OSError:
            shutil.copy2(old, new)


def _sync(folder: Path) -> None:
    """Bring a tree to the disk; files that are links to the input's are there already."""
    for inside, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(inside, name)
            if not os.path.islink(path) and os.stat(path).st_nlink == 1:
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        sync_folder(Path(inside))


def _swap(part: Path, out: Path) -> None:
    """Give `part` the name `out`; what had it gets the name `part`."""
    if not out.exists():
        os.rename(part, out)
        return
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux, glibc 2.28
    if rename is not None:
        if rename(_HERE, os.fsencode(part), _HERE, os.fsencode(out), _EXCHANGE) == 0:
            return
        if (code := ctypes.get_errno()) not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(code, os.strerror(code), str(out))
    # Elsewhere two steps: a crash between them leaves the old one, whole, under a name that the next run finds.
    os.rename(out, _before(out))
    os.rename(part, out)
    os.rename(_before(out), part)


def _before(out: Path) -> Path:
    return out.with_name(f".{out.name}.before")
