"""Data sets by name: each settings class loads into uint8 images with ids, given labels and, where known, clean labels.

Everything random here is drawn from numpy's frozen legacy stream (NEP 19), so that the same seed names the same samples
with every version of numpy and torch.

Legend: N samples of one split, C channels (1 or 3), H height, W width, K classes.
"""

import contextlib
import hashlib
import json
import os
import socket
import sys
import uuid
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from nlt.settings import BadInput, Seed, Settings

CIFAR4_CLASSES = ("cat", "dog", "horse", "deer")  # in the paper's order
DIGITS_TRAIN, DIGITS_SEED = 1400, 0
DOWNLOAD_TIMEOUT_S = 30.0  # of silence, not of the whole download
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")  # closed: Pillow would start Ghostscript for EPS
LIMIT_STREAM, HOLD_OUT_STREAM = 1, 2  # one seed, two unrelated permutations


@dataclass(frozen=True)
class Samples:
    """One split; row i of every field is the same sample."""

    images_NCHW: Tensor
    """uint8 in [0, 255], on the CPU, contiguous."""
    ids_N: Tensor
    """int64: place in the complete, official split, before `classes` and `limit`; never changes."""
    labels_N: Tensor
    """int64 in [0, K): the given labels."""
    clean_N: Tensor | None
    """int64 in [0, K): the true labels where known, else None. Methods never see them."""
    files: tuple[str, ...] | None = None
    """Of an image folder only: path relative to that folder, e.g. "train/cat/7.png"."""

    def __len__(self) -> int:
        return len(self.ids_N)

    def take(self, rows: Tensor) -> "Samples":
        """The samples at `rows` (int64, any length, any order), in that order; the tensors are copies."""
        return Samples(
            images_NCHW=self.images_NCHW[rows],
            ids_N=self.ids_N[rows],
            labels_N=self.labels_N[rows],
            clean_N=None if self.clean_N is None else self.clean_N[rows],
            files=None if self.files is None else tuple(self.files[row] for row in rows.tolist()),
        )


@dataclass(frozen=True)
class Dataset:
    """A training and a test split over the same K classes."""

    name: str
    classes: tuple[str, ...]
    train: Samples
    test: Samples
    digest: str
    """16 hex digits over images, ids, labels and clean labels of both splits and the class names, as loaded."""


def hold_out(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples | None]:
    """Split off round(N * fraction) random samples: (train, val), both in ascending row order.

    A fraction of 0 gives (samples, None). BadInput if either side would be empty.
    """
    if fraction == 0:
        return samples, None
    N, V = len(samples), round(len(samples) * fraction)
    if not 0 < V < N:
        raise BadInput(f"data.val_fraction {fraction} holds out {V} of {N} training images: neither side may be empty")
    is_val_N = torch.zeros(N, dtype=torch.bool)
    is_val_N[torch.from_numpy(_permutation(N, seed, HOLD_OUT_STREAM)[:V])] = True
    return samples.take((~is_val_N).nonzero().squeeze(1)), samples.take(is_val_N.nonzero().squeeze(1))


class _Common(Settings):
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """Only these classes, relabelled 0, 1, ... in the order given; null keeps all."""
    limit: int | None = Field(None, ge=2)
    """Training images to keep, the same number of each class; null keeps all. The test set is never cut."""
    val_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the training images held out for validation, after label noise is drawn."""
    seed: Seed = 0
    """Seed of the choice under `limit` and of the validation split."""

    @field_validator("classes")
    @classmethod
    def _no_repeats(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if classes is not None and len(set(classes)) < len(classes):
            raise ValueError("a class is named twice")
        return classes


class Digits(_Common):
    """scikit-learn's 1,797 handwritten digits (8x8, one channel), which it carries along: no download.

    It has no official split; ours is `numpy.random.RandomState(0).permutation(1797)`: the first 1,400 train, the other
    397 test. Ids are indices in scikit-learn's order. The labels are taken as clean.
    """

    name: Literal["digits"] = "digits"

    def load(self, root: Path) -> Dataset:
        """Images (N, 1, 8, 8); the 17 grey values 0..16 are spread over 0..255. `root` is not used."""
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]

        bunch = load_digits()
        images_NCHW = torch.from_numpy(np.round(bunch.images * 255 / 16).astype(np.uint8)).unsqueeze(1)
        labels_N = torch.from_numpy(bunch.target.astype(np.int64))
        every = Samples(images_NCHW, torch.arange(len(labels_N)), labels_N, labels_N)
        rows = torch.from_numpy(np.random.RandomState(DIGITS_SEED).permutation(len(every)))
        train, test = (every.take(part.sort().values) for part in (rows[:DIGITS_TRAIN], rows[DIGITS_TRAIN:]))
        return _dataset(self, tuple("0123456789"), train, test)


class Cifar10(_Common):
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32 RGB. The labels are taken as clean."""

    name: Literal["cifar10"] = "cifar10"

    def load(self, root: Path) -> Dataset:
        """Read it from `root`/cifar-10-batches-py, downloading it first if it is not there; BadInput if it cannot."""
        return _dataset(self, *_read_cifar("CIFAR10", root))


class Cifar100(_Common):
    """CIFAR-100 with its 100 fine labels: 50,000 training and 10,000 test images, 32x32 RGB, labels taken as clean."""

    name: Literal["cifar100"] = "cifar100"

    def load(self, root: Path) -> Dataset:
        """Read it from `root`/cifar-100-python, downloading it first if it is not there; BadInput if it cannot."""
        return _dataset(self, *_read_cifar("CIFAR100", root))


class Cifar4(_Common):
    """The paper's CIFAR-4: CIFAR-10's cat, dog, horse and deer, relabelled 0..3 in this order.

    `classes` picks among these four. Ids are places in the complete CIFAR-10 split, 0..49,999 and 0..9,999.
    """

    name: Literal["cifar4"] = "cifar4"

    def load(self, root: Path) -> Dataset:
        """As Cifar10's: 20,000 training and 4,000 test images."""
        names, train, test = _read_cifar("CIFAR10", root)
        train, test = (_pick(split, names, CIFAR4_CLASSES) for split in (train, test))
        return _dataset(self, CIFAR4_CLASSES, train, test)


class Npz(_Common):
    """A user's own images and labels in one numpy archive.

    Arrays: train_images (N, H, W, C) or (N, H, W) uint8 with C 1 or 3, train_labels (N,) integers in [0, K),
    test_images, test_labels, class_names (K,) strings and, if known, train_clean_labels (N,).
    """

    name: Literal["npz"] = "npz"
    path: str
    """The .npz file; relative to the current folder, ~ is expanded."""

    def load(self, root: Path) -> Dataset:
        """`root` is not used. Anything wrong with the file or an array is a BadInput that names both."""
        file = Path(os.path.expanduser(self.path))
        arrays = _read_npz(file)
        names = arrays["class_names"]
        if names.dtype.kind != "U" or names.ndim != 1 or len(names) < 2:
            raise _wrong(file, "class_names", "(K,) strings with K at least 2", names)
        classes = tuple(str(name) for name in names)
        if repeated := sorted({name for name in classes if classes.count(name) > 1}):
            raise BadInput(f"{file}: class_names holds {repeated[0]!r} more than once: give every class its own name")

        def samples(split: str) -> Samples:
            images_NCHW = _check_images(file, f"{split}_images", arrays[f"{split}_images"])
            shape = (len(images_NCHW), len(classes))
            labels_N = _check_labels(file, f"{split}_labels", arrays[f"{split}_labels"], *shape)
            clean = arrays.get(f"{split}_clean_labels")  # of train only
            clean_N = None if clean is None else _check_labels(file, f"{split}_clean_labels", clean, *shape)
            return Samples(images_NCHW, torch.arange(len(images_NCHW)), labels_N, clean_N)

        train, test = samples("train"), samples("test")
        if train.images_NCHW.shape[1:] != test.images_NCHW.shape[1:]:
            raise _wrong(
                file,
                "test_images",
                f"of the size of train_images {arrays['train_images'].shape}",
                arrays["test_images"],
            )
        return _dataset(self, classes, train, test)


class ImageFolder(_Common):
    """A user's own images in folders: PATH/train/CLASS/*.png and PATH/test/CLASS/*.png; classes in sorted order.

    Hidden files and Thumbs.db are skipped; any other file that is not an image is an error. Of an animation the first
    frame counts. Decoded once, then read from a cache under the data root.
    """

    name: Literal["image_folder"] = "image_folder"
    path: str
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
        return _dataset(self, tuple(names), train, test)


Data = Annotated[Digits | Cifar10 | Cifar100 | Cifar4 | Npz | ImageFolder, Field(discriminator="name")]


# ---- what all share: classes, limit, digest


def _dataset(settings: Any, names: tuple[str, ...], train: Samples, test: Samples) -> Dataset:
    """Apply `classes` and `limit` to complete splits over the classes `names`."""
    if settings.classes is not None:
        if unknown := [name for name in settings.classes if name not in names]:
            raise BadInput(f"data.classes: {settings.name} has no class {unknown[0]!r}, only {', '.join(names)}")
        train, test = (_pick(split, names, settings.classes) for split in (train, test))
        names = settings.classes
        for split, samples in (("training", train), ("test", test)):
            if not len(samples):
                raise BadInput(f"data.classes: no {split} image is of {', '.join(names)}: name other classes")
    if settings.limit is not None:
        train = _limited(train, names, settings.limit, settings.seed)
    return Dataset(settings.name, names, train, test, _digest(names, train, test))


def _pick(samples: Samples, names: tuple[str, ...], wanted: tuple[str, ...]) -> Samples:
    """The samples given a label in `wanted`, relabelled by its order.

    A sample whose clean label lies outside `wanted` is dropped too: its truth has no number among the new labels, and
    a stand-in would make every count of wrong labels a guess. unpack_cifar10.py drops the mirror case likewise.
    """
    to_new_K = torch.full((len(names),), -1)
    to_new_K[[names.index(name) for name in wanted]] = torch.arange(len(wanted))
    labels_N = to_new_K[samples.labels_N]
    clean_N = None if samples.clean_N is None else to_new_K[samples.clean_N]
    kept_N = labels_N >= 0 if clean_N is None else (labels_N >= 0) & (clean_N >= 0)
    rows = kept_N.nonzero().squeeze(1)
    return replace(samples.take(rows), labels_N=labels_N[rows], clean_N=None if clean_N is None else clean_N[rows])


def _limited(samples: Samples, names: tuple[str, ...], limit: int, seed: int) -> Samples:
    """limit // K random samples of each given label, one more of each of the first limit % K; rows stay in order."""
    K, labels_N = len(names), samples.labels_N.numpy()
    have_K = np.bincount(labels_N, minlength=K)
    need_K = limit // K + (np.arange(K) < limit % K)
    if (need_K > have_K).any():
        k = int(np.argmax(need_K > have_K))
        # label k takes part in the remainder only if limit % K > k, so have * K + k is the last limit it can serve
        largest = int((have_K * K + np.arange(K)).min())
        mend = f"set data.limit to at most {largest}" if largest >= 2 else "leave data.limit out"
        raise BadInput(f"data.limit {limit} needs {need_K[k]} images of {names[k]!r}, which has {have_K[k]}: {mend}")
    order = _permutation(len(samples), seed, LIMIT_STREAM)
    rows = np.concatenate([order[labels_N[order] == k][: need_K[k]] for k in range(K)])
    return samples.take(torch.from_numpy(np.sort(rows)))


def _permutation(n: int, seed: int, stream: int) -> NDArray[np.int64]:
    """A random order of range(n); another `stream` gives an unrelated one for the same seed."""
    bits = np.random.MT19937(np.random.SeedSequence([seed, stream]))
    return np.random.RandomState(bits).permutation(n).astype(np.int64)


def _digest(names: tuple[str, ...], train: Samples, test: Samples) -> str:
    sha = hashlib.sha256(json.dumps(names).encode())
    for split in (train, test):
        for tensor in (split.images_NCHW, split.ids_N, split.labels_N, split.clean_N):
            # the shape goes in as well, else bytes could move from one field to the next unseen
            sha.update(b"None" if tensor is None else f"{tuple(tensor.shape)}".encode())
            if tensor is not None:
                sha.update(tensor.numpy().data)
    return sha.hexdigest()[:16]


# ---- CIFAR


def _read_cifar(kind: Literal["CIFAR10", "CIFAR100"], root: Path) -> tuple[tuple[str, ...], Samples, Samples]:
    """(class names, train, test), from disk if intact there, else downloaded. BadInput if neither works.

    The files are pickles; torchvision unpickles one only after its MD5 sum was found right, downloaded or not.
    """
    from filelock import FileLock
    from torchvision import datasets  # type: ignore[import-untyped]
    from torchvision.datasets.utils import download_and_extract_archive  # type: ignore[import-untyped]

    cifar = getattr(datasets, kind)
    root = Path(os.path.abspath(os.path.expanduser(root)))

    def read() -> tuple[Any, Any]:
        return cifar(root, train=True), cifar(root, train=False)

    try:
        train, test = read()
    except (RuntimeError, OSError):  # not there, damaged or unreadable
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)  # torchvision sets none: a silent server would hang us for ever
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{cifar.base_folder}.lock"):  # runs that start together download it once
                try:
                    train, test = read()
                except (RuntimeError, OSError):
                    # not cifar(download=True), which would not mend a missing batches.meta
                    download_and_extract_archive(cifar.url, root, filename=cifar.filename, md5=cifar.tgz_md5)
                    train, test = read()
        except (RuntimeError, OSError, HTTPException) as error:  # URLError is an OSError
            raise BadInput(
                f"looked for the intact files of {kind} in {root / cifar.base_folder} and could not download them "
                f"({_reason(error)}): unpack {cifar.filename} in {root}, "
                "or name the folder you unpacked it in by --data-root or NLT_DATA_ROOT"
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)

    def samples(split: Any) -> Samples:
        images_NCHW = torch.from_numpy(np.ascontiguousarray(split.data.transpose(0, 3, 1, 2)))
        labels_N = torch.tensor(split.targets, dtype=torch.int64)
        return Samples(images_NCHW, torch.arange(len(labels_N)), labels_N, labels_N)

    return tuple(train.classes), samples(train), samples(test)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__


# ---- npz


def _read_npz(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays we know by name; BadInput if the file or a required array is missing or cannot be read."""
    required = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
    if not file.is_file():
        found = "is a folder" if file.is_dir() else "is not there"
        raise BadInput(f"data.path: {file} {found}: name an .npz file")
    if not zipfile.is_zipfile(file):  # the zip directory stands at the end, so this finds a cut-off file too
        raise BadInput(f"data.path: {file} is not a complete, readable .npz file: write it with numpy.savez")
    arrays: dict[str, NDArray[Any]] = {}
    at = "its list of arrays"
    try:
        with np.load(file, allow_pickle=False) as archive:
            for at in (*required, "train_clean_labels"):
                if at in archive.files:
                    # a member that is no array comes back as bytes; the checks then name what was found
                    arrays[at] = np.asarray(archive[at])
    except Exception as error:  # damaged zips and headers raise nearly anything; every one of them is the file's fault
        if "allow_pickle" in str(error):
            raise BadInput(f"{file}: {at} holds pickled objects, which are never loaded: save a plain array") from error
        raise BadInput(f"{file}: {at} cannot be read ({_reason(error)}): write the file anew") from error
    if missing := [name for name in required if name not in arrays]:
        raise BadInput(f"{file} has no array {missing[0]}: it must hold {', '.join(required)}")
    return arrays


def _wrong(file: Path, array: str, expected: str, found: NDArray[Any]) -> BadInput:
    return BadInput(f"{file}: {array} must be {expected}, found {found.dtype} of shape {found.shape}")


def _check_images(file: Path, array: str, images: NDArray[Any]) -> Tensor:
    """(N, H, W, C) or (N, H, W) uint8 -> (N, C, H, W); BadInput if it is anything else or empty."""
    shaped = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or shaped.ndim != 4 or shaped.shape[3] not in (1, 3) or 0 in shaped.shape:
        raise _wrong(file, array, "uint8 of shape (N, H, W, C) with C 1 or 3, or (N, H, W), and not empty", images)
    return torch.from_numpy(np.ascontiguousarray(shaped.transpose(0, 3, 1, 2)))


def _check_labels(file: Path, array: str, labels: NDArray[Any], N: int, K: int) -> Tensor:
    """(N,) integers in [0, K) -> int64; BadInput if they are anything else."""
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise _wrong(file, array, "integers of shape (N,)", labels)
    if len(labels) != N:
        raise BadInput(f"{file}: {array} must have one label for each of the {N} images, found {len(labels)} labels")
    if outside := [int(label) for label in np.unique(labels) if not 0 <= label < K]:
        raise BadInput(f"{file}: {array} must lie in 0..{K - 1}, one for each of class_names, found {outside[0]}")
    return torch.from_numpy(labels.astype(np.int64))


# ---- image folder


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
        raise BadInput(f"data.path: cannot read {folder / split} ({_reason(error)}): it must hold CLASS/*") from error
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
            print(f"warning: cannot keep decoded images in {cache.parent} ({_reason(error)})", file=sys.stderr)
            with contextlib.suppress(OSError):
                part.unlink()
    return torch.from_numpy(images_NCHW)


def _read_cache(cache: Path, N: int) -> NDArray[np.uint8] | None:
    """(N, 3, H, W), or None if the cache is not there or damaged."""
    try:
        with np.load(cache, allow_pickle=False) as archive:
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
        raise BadInput(f"{file} cannot be decoded ({_reason(error)}): replace or remove it") from error
    if image_size is not None:
        # the same pixels as shorter side to S and centre crop, without the huge image that makes of a thin strip;
        # Pillow's bilinear filter widens as it shrinks, that is, it is antialiased
        upright = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(upright).transpose(2, 0, 1))
