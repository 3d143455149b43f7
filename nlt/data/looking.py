"""One look at every file of a user's folder: its sum, whether it can be decoded, whether it is of one colour.

Legend: N files, M of them decoded, B images at a time, C channels (3), H height, W width.
"""

import contextlib
import glob
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nlt.data.decoding import (
    CHANGED,
    centre_square,
    channels_first,
    content_sum,
    decoders,
    enable_heif,
    in_order,
    open_upright,
    strict,
)
from nlt.data.samples import reason
from nlt.events import Progress
from nlt.settings import BadInput

if TYPE_CHECKING:
    from PIL import Image

CACHE_VERSION = 1
SMALL = 16  # pixels wide and high: what copies are known by
SPREAD = 4  # levels of 0..255 within an image of one colour: what JPEG adds to one


def one_colour(images_BCHW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(B,) True where an image is of one colour: no channel varies by more than 4 of 255 levels."""
    return np.asarray((np.ptp(images_BCHW, axis=(2, 3)) <= SPREAD).all(1))


class Seen(NamedTuple):
    """What came of one file."""

    sum: bytes
    """SHA-256 of its bytes; empty if they cannot be read."""
    why: str = ""
    """Why it cannot be decoded, or ""."""
    plain: bool = False
    """Whether it is of one colour."""
    small_CHW: NDArray[np.uint8] | None = None
    """(3, 16, 16), its centre square."""


class Looked(NamedTuple):
    """What came of N files, by their places; M of them can be decoded."""

    paths: list[str]
    sums: list[bytes]
    bad: dict[int, str]
    """Place -> why it cannot be read."""
    one_colour: list[int]
    small_MCHW: NDArray[np.uint8]
    """(M, 3, 16, 16) of those that can."""


def look(top: Path, paths: Sequence[str], cache: Path | None, progress: Progress | None) -> Looked:
    """Sum every file and see whether it can be decoded, or take the latter from the cache if all sums are the same."""
    key = json.dumps([CACHE_VERSION, decoders(enable_heif(top, paths)), SPREAD, SMALL, list(paths)])
    prefix = f"looked-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    before: list[bytes] | None = None
    if cache is not None and glob.glob(f"{prefix}-*.npz", root_dir=cache):
        before = [seen.sum for seen in _map(lambda row: _see(top / paths[row], False), len(paths), progress)]
        if (found := _read_cache(cache / _cache_name(prefix, before), len(paths))) is not None:
            return Looked(list(paths), before, *found)
    sums: list[bytes] = []
    bad: dict[int, str] = {}
    plain: list[int] = []
    small_NCHW = np.zeros((len(paths), 3, SMALL, SMALL), np.uint8)
    for row, seen in enumerate(_map(lambda row: _see(top / paths[row], True), len(paths), progress)):
        if before is not None and before[row] != seen.sum:
            raise BadInput(f"{top / paths[row]} {CHANGED}")
        sums.append(seen.sum)
        if seen.small_CHW is None:
            bad[row] = seen.why
            continue
        small_NCHW[row] = seen.small_CHW
        if seen.plain:
            plain.append(row)
    small_MCHW = np.delete(small_NCHW, list(bad), 0)
    if cache is not None:
        _write_cache(cache / _cache_name(prefix, sums), bad, plain, small_MCHW)
    return Looked(list(paths), sums, bad, plain, small_MCHW)


def _map(see: Callable[[int], Seen], N: int, progress: Progress | None) -> Generator[Seen, None, None]:
    with strict(), contextlib.closing(in_order(see, N, "reading images", progress)) as results:
        yield from results


def _see(file: Path, decode: bool) -> Seen:
    try:
        raw = file.read_bytes()
    except FileNotFoundError as error:
        raise BadInput(f"{file} was removed while the folder was read: try again when nothing writes there") from error
    except OSError as error:
        return Seen(b"", reason(error))
    found = content_sum(raw)
    if not decode:
        return Seen(found)
    try:
        # a large JPEG at 1/8: all of its bytes are read, and few pixels made of them
        image = open_upright(file, raw, "by mode", least=2 * SMALL)
        if isinstance(image, str):
            return Seen(found, image)
        small_CHW = small_square(image)
        if _is_plain(image):  # its means over 8 x 8 pixels may be so: now the pixels themselves
            image = open_upright(file, raw, "by mode")
            if isinstance(image, str):
                return Seen(found, image)
    except BadInput as error:  # grey values of more than 16 bits and the like
        return Seen(found, str(error).removeprefix(f"{file} ").partition(": ")[0])
    except MemoryError:
        raise BadInput(f"{file} cannot be decoded for want of memory: replace or remove it") from None
    return Seen(found, "", _is_plain(image), small_CHW)


def small_square(image: "Image.Image") -> NDArray[np.uint8]:
    """(3, 16, 16): the centre square of an RGB image, enough to know copies by."""
    return channels_first(centre_square(image, SMALL))


def _is_plain(image: "Image.Image") -> bool:
    return all(high - low <= SPREAD for low, high in image.getextrema())  # type: ignore[misc]


def _cache_name(prefix: str, sums: list[bytes]) -> str:
    return f"{prefix}-{hashlib.sha256(b'|'.join(sums)).hexdigest()[:32]}.npz"


def _read_cache(cache: Path, N: int) -> tuple[dict[int, str], list[int], NDArray[np.uint8]] | None:
    """(bad, one_colour, small_MCHW) as written, or None if the file is not there or damaged."""
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            bad = dict(zip(archive["bad_rows"].tolist(), archive["reasons"].tolist(), strict=True))
            plain, small_MCHW = archive["one_colour"].tolist(), archive["small_MCHW"]
    except Exception:  # a damaged archive raises nearly anything
        return None
    fits = small_MCHW.shape == (N - len(bad), 3, SMALL, SMALL) and small_MCHW.dtype == np.uint8
    return (bad, plain, small_MCHW) if fits and all(row in range(N) for row in (*bad, *plain)) else None


def _write_cache(cache: Path, bad: dict[int, str], plain: list[int], small_MCHW: NDArray[np.uint8]) -> None:
    part = cache.with_name(f".{cache.stem}-{uuid.uuid4().hex}.npz")
    bad_rows, reasons = np.array(list(bad), np.int64), np.array(list(bad.values()), np.str_)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        plain_rows = np.array(plain, np.int64)
        np.savez(part, bad_rows=bad_rows, reasons=reasons, one_colour=plain_rows, small_MCHW=small_MCHW)
        os.replace(part, cache)  # whole or not at all, also with several runs at once
    except OSError as error:
        print(f"warning: cannot keep what was seen of images in {cache.parent} ({reason(error)})", file=sys.stderr)
        with contextlib.suppress(OSError):
            part.unlink()
