"""Image files to pixels of 8 bits, read once, in threads, and kept in a cache that is called by what they hold.

Legend: N images, M of them decoded, C channels (3), H height, W width.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import sys
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from glob import glob
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from nlt.data.listing import HEIF_SUFFIXES
from nlt.data.samples import reason
from nlt.events import Progress
from nlt.settings import BadInput

if TYPE_CHECKING:
    from PIL import Image

# Closed: Pillow would start Ghostscript for EPS. HEIF is read in files of that name only, through pillow-heif.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "AVIF")
CACHE_VERSION = 2  # 1 was called by names, sizes and times, and could hold the images of another folder
AT_ONCE = 32  # files to a task: opening small ones costs less than a task does
CHANGED = "was changed while it was read: try again when nothing writes there"

T = TypeVar("T")


@dataclass(frozen=True)
class Pixels:
    """What decides the pixels that are made of a file; its fields are part of a cache's name."""

    image_size: int | None
    depth: int | None
    on_bad_image: Literal["error", "skip"]


class Decoded(NamedTuple):
    """What came of N files."""

    images_MCHW: NDArray[np.uint8]
    """(M, 3, H, W), of the files that could be decoded, in their order."""
    bad: dict[int, str]
    """The others: place among the N files -> reason."""


def decode_images(top: Path, paths: Sequence[str], pixels: Pixels, root: Path) -> Decoded:
    """Decode the images at `paths`, relative to `top`, or read them from root/cache if that was done before.

    A cache is called by the paths, the settings and the decoders' versions, and by the SHA-256 sum of every file's
    bytes. Where none fits the former, files are read once and decoded from the bytes that were summed; else they are
    summed first, and decoded only if no cache fits the sums.

    Raises:
        BadInput: a file cannot be read or decoded, has another size than the rest, or changes meanwhile.
    """
    key = json.dumps([CACHE_VERSION, asdict(pixels), decoders(enable_heif(top, paths)), list(paths)])
    prefix = f"images-{CACHE_VERSION}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    caches = root / "cache"
    sums = None
    if glob(f"{prefix}-*.npz", root_dir=caches):  # Path.glob raises where the root's name is too long
        sums = list(in_order(lambda row: content_sum(_read(top / paths[row])), len(paths), "reading images"))
        if found := _read_cache(caches / f"{prefix}-{_name(sums)}.npz", len(paths)):
            return found
    sums, decoded = _decode_all(top, paths, pixels, sums)
    _write_cache(caches / f"{prefix}-{_name(sums)}.npz", decoded)
    return decoded


def decoders(heif: bool) -> dict[str, str | None]:
    """Return what decodes, with its version: another one may round pixels differently."""
    from PIL import features

    codecs = {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "libtiff", "webp", "avif")}
    return codecs | {"pillow": version("pillow"), "pillow-heif": version("pillow-heif") if heif else None}


def enable_heif(top: Path, paths: Sequence[str]) -> bool:
    """Let Pillow know HEIF if a path, relative to `top`, is of that; return whether. BadInput without the extra."""
    first = next((path for path in paths if Path(path).suffix.lower() in HEIF_SUFFIXES), None)
    if first is None:
        return False
    try:
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise BadInput(
            f"{top / first} can only be read with pillow-heif: pip install 'nlt[heic]', or convert such images to JPEG"
        ) from error
    register_heif_opener(thumbnails=False)
    return True


def _name(sums: list[bytes]) -> str:
    return hashlib.sha256(b"".join(sums)).hexdigest()[:32]


def content_sum(raw: bytes) -> bytes:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(raw).digest()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:  # not for on_bad_image: a disk that fails must not make a smaller data set
        raise BadInput(f"{file} cannot be read ({reason(error)}): make it readable or remove it") from error


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Make an error of Pillow's warning of decompression bombs, in all threads: the filters are not a thread's own."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def in_order(
    function: Callable[[int], T], N: int, what: str, progress: Progress | None = None
) -> Generator[T, None, None]:
    """function(0), ..., function(N - 1), computed in threads; `progress` is told, else a bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    def several(first: int) -> list[T]:
        return [function(row) for row in range(first, min(first + AT_ONCE, N))]

    console = Console(stderr=True)
    pool = ThreadPoolExecutor()
    try:
        with Bar(console=console, disable=progress is not None or not sys.stderr.isatty(), transient=True) as bar:
            task, done = bar.add_task(what, total=N), 0
            for results in pool.map(several, range(0, N, AT_ONCE)):
                yield from results
                bar.advance(task, len(results))
                done += len(results)
                if progress is not None:
                    progress(what, done, N)
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_all(
    top: Path, paths: Sequence[str], pixels: Pixels, sums: list[bytes] | None
) -> tuple[list[bytes], Decoded]:
    """(SHA-256 sums, images) of the same bytes; `sums`: what an earlier reading found, which must be found again."""

    def decode(row: int) -> tuple[bytes, NDArray[np.uint8] | str]:
        raw = _read(top / paths[row])
        return content_sum(raw), _decode(top / paths[row], raw, pixels)

    if not sys.stderr.isatty():
        print(f"decoding {len(paths)} images of {top}, once", file=sys.stderr)
    images: NDArray[np.uint8] | None = None
    found: list[bytes] = []
    bad: dict[int, str] = {}
    # closing: after an error nobody waits for the rest
    with strict(), contextlib.closing(in_order(decode, len(paths), "decoding images")) as results:
        for row, (found_sum, image) in enumerate(results):
            file = top / paths[row]
            found.append(found_sum)
            if sums is not None and sums[row] != found_sum:
                raise BadInput(f"{file} {CHANGED}")
            if isinstance(image, str):
                if pixels.on_bad_image == "error":
                    raise BadInput(
                        f"{file} cannot be decoded ({image}): replace or remove it, or leave such images out with "
                        '"on_bad_image": "skip" in data'
                    )
                bad[row] = image
                continue
            if images is None:
                images = np.empty((len(paths), *image.shape), np.uint8)
            if image.shape != images.shape[1:]:
                (_, _, H, W), (_, h, w) = images.shape, image.shape
                raise BadInput(f"{file} is {w}x{h} and the images before it {W}x{H}: set data.image_size")
            images[row - len(bad)] = image
    if images is None:
        raise BadInput(f"{top}: none of {len(paths)} images can be decoded ({bad[0]}): replace them")
    return found, Decoded(images[: len(paths) - len(bad)], bad)


def _decode(file: Path, raw: bytes, pixels: Pixels) -> NDArray[np.uint8] | str:
    """(3, H, W), or why it cannot be decoded; with `image_size` S the centre square at (3, S, S).

    BadInput where the image is whole and `depth` does not fit it.
    """
    try:
        image = open_upright(file, raw, pixels.depth)
    except MemoryError as error:  # not for on_bad_image: a smaller machine must not make a smaller data set
        raise BadInput(f"{file} cannot be decoded for want of memory: replace or remove it") from error
    if isinstance(image, str):
        return image
    return channels_first(image if pixels.image_size is None else centre_square(image, pixels.image_size))


def open_upright(
    file: Path, raw: bytes, depth: int | Literal["by mode"] | None, least: int | None = None
) -> "Image.Image | str":
    """An RGB image, turned as its EXIF says, or why `raw`, the bytes of `file`, cannot be decoded.

    Args:
        file: Its name says whether it is HEIF.
        raw: The bytes.
        depth: Bits of a grey value in images of more than 8; "by mode": 1 in floats, else 16.
        least: A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as the shorter side has that many pixels.

    Raises:
        BadInput: the image is whole and `depth` does not fit it.
        MemoryError: it is too large for this machine.
    """
    from PIL import Image, ImageOps

    formats = (*IMAGE_FORMATS, "HEIF") if file.suffix.lower() in HEIF_SUFFIXES else IMAGE_FORMATS
    try:
        if not raw:
            raise ValueError("the file is empty")
        with Image.open(io.BytesIO(raw), formats=formats) as image:
            if least is not None:
                image.draft(None, (least, least))  # does nothing to other formats
            deep = image.mode in ("I", "F") or image.mode.startswith("I;")
            bits = (1 if image.mode == "F" else 16) if depth == "by mode" else depth
            # Deep values are scaled first, exactly, and resized like those of any other image, which have 8 bits.
            return ImageOps.exif_transpose(_to_8_bits(file, image, bits) if deep else image).convert("RGB")
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files, decompression bombs included
        return reason(error)


def open_again(file: Path, sha256: bytes | None = None, least: int | None = None) -> "Image.Image":
    """The upright RGB image of a file that could be decoded before, deep grey by mode.

    Args:
        file: Named as it was then.
        sha256: Of the bytes it held then, None if others will do.
        least: As of `open_upright`.

    Raises:
        BadInput: it is gone, holds other bytes, or cannot be decoded any more.
    """
    try:
        raw = file.read_bytes()
        if sha256 is not None and content_sum(raw) != sha256:
            raise BadInput(f"{file} {CHANGED}")
        image = open_upright(file, raw, "by mode", least)
    except OSError as error:
        raise BadInput(f"{file} cannot be read any more ({reason(error)}): put it back and try again") from error
    except MemoryError:
        raise BadInput(f"{file} cannot be decoded for want of memory: replace or remove it") from None
    if isinstance(image, str):
        raise BadInput(f"{file} cannot be decoded any more ({image}): put it back and try again")
    return image


def centre_square(image: "Image.Image", size: int) -> "Image.Image":
    """The centre square of an image, resized to `size` x `size`.

    The same pixels as shorter side to `size` and centre crop, without the huge image that makes of a thin strip;
    Pillow's bilinear filter widens as it shrinks, that is, it is antialiased.
    """
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def rgb_image(pixels_CHW: NDArray[np.uint8]) -> "Image.Image":
    """Pixels of 1 or 3 channels as an RGB image."""
    from PIL import Image

    _, H, W = pixels_CHW.shape
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels_CHW, (3, H, W)).transpose(1, 2, 0)))


def channels_first(image: "Image.Image") -> NDArray[np.uint8]:
    """(3, H, W) of an RGB image, contiguous."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _to_8_bits(file: Path, image: "Image.Image", depth: int | None) -> "Image.Image":
    """A grey image of more than 8 bits, its values v in 0 .. 2**depth - 1 -> round(v * 255 / (2**depth - 1)).

    16-bit colour does not come here: Pillow itself keeps the high byte of each value, which clips nothing.
    """
    from PIL import ExifTags, Image

    if depth is None:
        raise BadInput(
            f"{file} has grey values of more than 8 bits (Pillow's mode {image.mode}): set data.depth to the number of "
            "bits they use, e.g. 16, or 12 in files of some microscopes, or 1 for fractions in [0, 1]"
        )
    values, largest = _grey_values(file, image), 2**depth - 1
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= largest):  # NaN compares as false
        needed = math.ceil(high).bit_length() if 0 <= low <= high < 2**32 else None
        raise BadInput(
            f"{file} holds grey values from {low:.10g} to {high:.10g}, outside 0 .. {largest}, the range of data.depth "
            f"{depth}: {f'set it to {needed}, or ' if needed else ''}replace or remove the image"
        )
    # Whole numbers never come to lie halfway, as 255 and `largest` are odd. Of a float, 24 bits times 8 are exact in a
    # double, and halfway goes to the even neighbour.
    whole = values.dtype == np.int64
    scaled = (values * 510 + largest) // (2 * largest) if whole else np.rint(values * 255 / largest)
    grey = Image.fromarray(scaled.astype(np.uint8))
    if (orientation := image.getexif().get(ExifTags.Base.Orientation)) is not None:
        grey.getexif()[ExifTags.Base.Orientation] = orientation
    return grey


def _grey_values(file: Path, image: "Image.Image") -> NDArray[Any]:
    """(H, W) int64 or float64: the values as they stand in the file."""
    coded = getattr(image, "tile", [])  # how they are; gone once they are read
    values = np.asarray(image)
    if image.mode == "F":
        return values.astype(np.float64)
    tags = getattr(image, "tag_v2", {})  # of TIFF
    if tags.get(262) == 0:  # PhotometricInterpretation; Pillow minds it in images of 8 bits only
        raise BadInput(f"{file} has grey values of which 0 is white: save it with 0 as black")
    if image.mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,):  # BitsPerSample, SampleFormat
        values = values.view(np.uint32)  # which Pillow reads as if they had signs
    values = values.astype(np.int64)
    if image.format == "HEIF":  # pillow-heif shifts them to the left
        values >>= 16 - image.info["bit_depth"]
    if image.format == "PPM" and coded and isinstance(coded[0].args, tuple):
        # Pillow spreads 0 .. maxval over 0 .. 65535 and rounds, which is undone without loss
        values = (values * coded[0].args[1] * 2 + 65535) // (2 * 65535)
    return values


def _read_cache(cache: Path, N: int) -> Decoded | None:
    """What `_write_cache` wrote of N files, or None if it is not there or damaged."""
    try:
        # opened here, since np.load leaves a damaged file open
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            images: NDArray[np.uint8] = archive["images_MCHW"]
            bad = dict(zip(archive["bad_rows"].tolist(), archive["reasons"].tolist(), strict=True))
    except Exception:  # a damaged archive raises nearly anything
        return None
    fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[:2] == (N - len(bad), 3)
    return Decoded(images, bad) if fits and set(bad) < set(range(N)) else None


def _write_cache(cache: Path, decoded: Decoded) -> None:
    part = cache.with_name(f".{cache.stem}-{uuid.uuid4().hex}.npz")
    bad_rows, reasons = np.array(list(decoded.bad), np.int64), np.array(list(decoded.bad.values()), np.str_)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(part, images_MCHW=decoded.images_MCHW, bad_rows=bad_rows, reasons=reasons)
        os.replace(part, cache)  # whole or not at all, also with several runs at once
    except OSError as error:
        print(f"warning: cannot keep decoded images in {cache.parent} ({reason(error)})", file=sys.stderr)
        with contextlib.suppress(OSError):
            part.unlink()
