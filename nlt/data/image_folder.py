"""A user's own images in folders, decoded once and cached.

Legend: N samples of one split, C channels (1 or 3), H height, W width, K classes.
"""

import contextlib
import hashlib
import json
import os
import sys
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from nlt.data.samples import Dataset, DataSettings, PathText, Samples, finish, reason
from nlt.settings import BadInput

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")  # closed: Pillow would start Ghostscript for EPS


class ImageFolder(DataSettings):
    """A user's own images in folders: PATH/train/CLASS/*.png and PATH/test/CLASS/*.png; classes in sorted order.

    Hidden files and Thumbs.db are skipped; any other file that is not an image is an error. Of an animation the first
    frame counts. Decoded once, then read from a cache under the data root.
    """

    name: Literal["image_folder"] = "image_folder"
    path: PathText
    """The folder that holds train/ and test/; relative to the current folder, ~ is expanded."""
    image_size: int | None = Field(None, ge=8, le=4096)
    """Make every image this many pixels wide and high: its centre square, resized; null if all have one size."""

    def load(self, root: Path) -> Dataset:
        """Images (N, 3, H, W), upright (EXIF). Ids are places in the sorted list of a split's files; clean_N is None.

        BadInput names the file or folder that is missing, damaged, out of place, or of another size than the rest.
        """
        folder = Path(os.path.expanduser(self.path))
        names, train_files = _list_split(folder, "train")
        test_names, test_files = _list_split(folder, "test")
        train_folder, test_folder = folder / "train", folder / "test"
        if len(names) < 2:
            raise BadInput(f"{train_folder} must hold folders of at least two classes, found {len(names)}: add images")
        if unknown := sorted(set(test_names) - set(names)):
            raise BadInput(f"{test_folder / unknown[0]}: no such class in {train_folder}: add or rename a folder")
        if empty := sorted(set(names) - {file.class_name for file in train_files}):
            raise BadInput(f"{train_folder / empty[0]} holds no image: add some or remove the folder")
        if not test_files:
            raise BadInput(f"{test_folder} holds no image: put test images into {test_folder}/CLASS/")
        images_NCHW = _decoded(folder, [*train_files, *test_files], self.image_size, Path(os.path.expanduser(root)))

        def samples(images_NCHW: Tensor, files: list[_File]) -> Samples:
            labels_N = torch.tensor([names.index(file.class_name) for file in files])
            return Samples(images_NCHW, torch.arange(len(files)), labels_N, None, tuple(file.path for file in files))

        train = samples(images_NCHW[: len(train_files)], train_files)
        test = samples(images_NCHW[len(train_files) :], test_files)
        return finish(self, tuple(names), train, test)


class _File(NamedTuple):
    path: str  # relative to the folder, with slashes: "train/cat/7.png"
    class_name: str
    size: int
    mtime_ns: int


def _list_split(folder: Path, split: str) -> tuple[list[str], list[_File]]:
    """(sorted class names, files sorted by path) of folder/split; BadInput for anything that does not belong there."""
    names, files = [], []
    try:
        for class_folder in _entries(folder, folder / split):
            if not class_folder.is_dir():
                raise BadInput(f"{class_folder} lies beside the class folders: move it into one or remove it")
            names.append(class_folder.name)
            for file in _entries(folder, class_folder):
                if not file.is_file() or file.suffix.lower() not in IMAGE_SUFFIXES:
                    raise BadInput(f"{file} is not an image ({' '.join(sorted(IMAGE_SUFFIXES))}): remove it")
                relative, stat = file.relative_to(folder).as_posix(), file.stat()
                files.append(_File(relative, class_folder.name, stat.st_size, stat.st_mtime_ns))
    except OSError as error:
        raise BadInput(f"data.path: cannot read {folder / split} ({reason(error)}): it must hold CLASS/*") from error
    return names, sorted(files)


def _entries(top: Path, inside: Path) -> list[Path]:
    """What lies in a folder, sorted, without hidden files; BadInput for links out of `top` and names not in UTF-8."""
    kept = [entry for entry in inside.iterdir() if not entry.name.startswith(".") and entry.name.lower() != "thumbs.db"]
    for entry in (inside, *kept):
        if entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(os.path.realpath(top)):
            raise BadInput(f"{entry} is a link that leaves {top}: put the images themselves there")
        if not entry.name.isascii() and entry.name.encode(errors="replace").decode() != entry.name:
            raise BadInput(f"{str(entry)!a} is not a file name in UTF-8: rename it")
    return sorted(kept)


def _decoded(folder: Path, files: list[_File], image_size: int | None, root: Path) -> Tensor:
    """The images of `files` in this order, (N, 3, H, W) uint8; from root/cache if they were decoded before."""
    key = json.dumps(["1", image_size, [(file.path, file.size, file.mtime_ns) for file in files]])
    cache = root / "cache" / f"image_folder-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    images_NCHW = _read_cache(cache, len(files))
    if images_NCHW is None:
        images_NCHW = _decode_all(folder, files, image_size)
        part = cache.with_name(f".{cache.stem}-{uuid.uuid4().hex}.npz")
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            np.savez(part, images_NCHW=images_NCHW)
            os.replace(part, cache)  # whole or not at all, also with several runs at once
        except OSError as error:
            print(f"warning: cannot keep decoded images in {cache.parent} ({reason(error)})", file=sys.stderr)
            with contextlib.suppress(OSError):
                part.unlink()
    return torch.from_numpy(images_NCHW)


def _read_cache(cache: Path, N: int) -> NDArray[np.uint8] | None:
    """(N, 3, H, W), or None if the cache is not there or damaged."""
    try:
        # opened here, since np.load leaves a damaged file open
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            images_NCHW: NDArray[np.uint8] = archive["images_NCHW"]
            fits = images_NCHW.dtype == np.uint8 and images_NCHW.ndim == 4 and images_NCHW.shape[:2] == (N, 3)
            return images_NCHW if fits else None
    except Exception:  # a damaged archive raises nearly anything
        return None


def _decode_all(folder: Path, files: list[_File], image_size: int | None) -> NDArray[np.uint8]:
    from PIL import Image
    from rich.console import Console
    from rich.progress import track

    shown = sys.stderr.isatty()
    if not shown:
        print(f"decoding {len(files)} images of {folder}, once", file=sys.stderr)
    images_NCHW: NDArray[np.uint8] | None = None
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # here: the filters are not a thread's own
        decoded = pool.map(lambda file: _decode(folder / file.path, image_size), files)
        bar = track(decoded, "decoding images", len(files), console=Console(stderr=True), disable=not shown)
        for row, (file, image_CHW) in enumerate(zip(files, bar, strict=True)):
            if images_NCHW is None:
                images_NCHW = np.empty((len(files), *image_CHW.shape), np.uint8)
            if image_CHW.shape != images_NCHW.shape[1:]:
                (_, _, H, W), (_, h, w) = images_NCHW.shape, image_CHW.shape
                raise BadInput(f"{folder / file.path} is {w}x{h} and the images before it {W}x{H}: set data.image_size")
            images_NCHW[row] = image_CHW
    assert images_NCHW is not None  # the caller has checked that there are files
    return images_NCHW


def _decode(file: Path, image_size: int | None) -> NDArray[np.uint8]:
    """(3, H, W); with `image_size` S the centre square at (3, S, S). BadInput names a file that cannot be decoded."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;"):
                raise ValueError("more than 8 bits per grey pixel, which Pillow would clip to white")
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # decoders raise nearly anything on damaged files, decompression bombs included
        raise BadInput(f"{file} cannot be decoded ({reason(error)}): replace or remove it") from error
    if image_size is not None:
        # the same pixels as shorter side to S and centre crop, without the huge image that makes of a thin strip;
        # Pillow's bilinear filter widens as it shrinks, that is, it is antialiased
        upright = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(upright).transpose(2, 0, 1))
