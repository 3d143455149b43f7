"""Which files of a user's folder are images of which class and split, by names alone; decoding.py looks into them."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nlt.data.samples import reason
from nlt.settings import BadInput

HEIF_SUFFIXES = {".heic", ".heif"}
IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", *HEIF_SUFFIXES
}  # fmt: skip
# What systems leave in folders: macOS archives, Synology, Windows, ext4. Everything hidden is debris, too.
DEBRIS = {
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
}  # fmt: skip
VALIDATION = ("val", "valid", "validation")
SPLIT_OF = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(VALIDATION, "val")
BESIDE_SPLITS = "lies beside the splits: move it into a class folder of one or remove it"
MOST_KINDS = 6  # of skipped files or folders, in one line


class File(NamedTuple):
    """An image by its name."""

    path: str
    """Relative to the folder, with slashes: "train/cat/2024/7.png"."""
    class_name: str


@dataclass(frozen=True)
class Listing:
    """What lies in a user's folder; files are in the order of their paths."""

    classes: tuple[str, ...]
    train: list[File]
    test: list[File] | None
    test_mend: str
    """Without a test split: how to get one, the end of a sentence."""
    skipped: str
    """What was passed over, for a note, or ""."""


def list_images(top: Path, recursive: bool) -> Listing:
    """List top/train/CLASS/** and top/test/CLASS/**, or top/CLASS/** where there are no splits.

    Raises:
        BadInput: a folder is missing or holds what does not belong there.
    """
    try:
        with os.scandir(top) as found:
            entries = sorted((entry.name, entry.is_dir()) for entry in found if not _is_debris(entry.name))
    except OSError as error:
        raise BadInput(
            f"data.path: cannot read {top} ({reason(error)}): name a folder with CLASS/*, or with train/CLASS/* and "
            "test/CLASS/*"
        ) from error
    folders = [name for name, is_folder in entries if is_folder]
    skipped: Counter[str] = Counter()
    if "train" not in folders:
        if splits := [name for name in folders if name.lower() in SPLIT_OF]:
            raise BadInput(f"data.path: {top / splits[0]} is there and {top / 'train'} is not: name the folders so")
        classes, train = _list_split(top, "", recursive, skipped)
        _check(top, classes, train)
        mend = (
            f"set data.test_fraction, e.g. 0.2, or move the images into {top / 'train'}/CLASS and {top / 'test'}/CLASS"
        )
        return Listing(tuple(classes), train, None, mend, _in_words(skipped))
    if loose := [name for name, is_folder in entries if not is_folder and _suffix(name) in IMAGE_SUFFIXES]:
        raise BadInput(f"data.path: {top / loose[0]} {BESIDE_SPLITS}")
    skipped.update(f"{name}/" for name in folders if name not in ("train", "test"))
    classes, train = _list_split(top, "train", recursive, skipped)
    _check(top / "train", classes, train)
    if "test" not in folders:
        validation = [name for name in VALIDATION if name in folders]
        test = f"rename {top / validation[0]} to" if validation else "put test images into"
        mend = f"{test} {top / 'test'}, or set data.test_fraction, e.g. 0.2"
        return Listing(tuple(classes), train, None, mend, _in_words(skipped))
    test_classes, test_files = _list_split(top, "test", recursive, skipped)
    if unknown := sorted(set(test_classes) - set(classes)):
        raise BadInput(f"{top / 'test' / unknown[0]}: no such class in {top / 'train'}: add or rename a folder")
    if not test_files:
        raise BadInput(f"{top / 'test'} holds no image: put test images into {top / 'test'}/CLASS/")
    return Listing(tuple(classes), train, test_files, "", _in_words(skipped))


def _check(folder: Path, classes: list[str], files: list[File]) -> None:
    if len(classes) < 2:
        raise BadInput(
            f"data.path: {folder} must hold folders of at least two classes, found {len(classes)}: add images"
        )
    if empty := sorted(set(classes) - {file.class_name for file in files}):
        raise BadInput(f"data.path: {folder / empty[0]} holds no image: add some or remove the folder")


def _list_split(top: Path, split: str, recursive: bool, skipped: Counter[str]) -> tuple[list[str], list[File]]:
    """(sorted class names, files sorted by path) of top/split; counts in `skipped` what it passes over."""
    names, files = [], []
    try:
        for entry in _entries(top, top / split):
            if entry.is_dir():
                names.append(entry.name)
                inside = f"{split}/{entry.name}" if split else entry.name
                files += [File(path, entry.name) for path in _list_class(top, inside, recursive, skipped)]
            elif _suffix(entry.name) in IMAGE_SUFFIXES:
                raise BadInput(f"data.path: {entry.path} lies beside the class folders: move it into one or remove it")
            else:
                skipped[_suffix(entry.name)] += 1
    except OSError as error:
        raise BadInput(
            f"data.path: cannot read {top / split} ({reason(error)}): it must hold a folder for each class"
        ) from error
    return names, sorted(files)


def _list_class(top: Path, folder: str, recursive: bool, skipped: Counter[str]) -> list[str]:
    """The paths of the images in top/folder and the folders in it, relative to `top`, in no order."""
    found, seen, pending = [], set(), [folder]
    while pending:
        inside = pending.pop()
        if (real := os.path.realpath(top / inside)) in seen:  # links in a circle, or several to one folder
            raise BadInput(f"data.path: {top / inside} is a link to a folder that its class holds already: remove it")
        seen.add(real)
        for entry in _entries(top, top / inside):
            if entry.is_dir():
                if recursive:
                    pending.append(f"{inside}/{entry.name}")
                else:
                    skipped["/"] += 1
            elif _suffix(entry.name) not in IMAGE_SUFFIXES:
                skipped[_suffix(entry.name)] += 1
            elif not entry.is_file():  # a pipe would keep us waiting
                raise BadInput(f"{entry.path} is no file, or a link to nothing: remove it")
            else:
                found.append(f"{inside}/{entry.name}")
    return found


def _entries(top: Path, inside: Path) -> "list[os.DirEntry[str]]":
    """What lies in a folder, sorted, without debris; BadInput for links out of `top` and names not in UTF-8."""
    with os.scandir(inside) as found:
        kept = [entry for entry in found if not _is_debris(entry.name)]
    links = [inside] if inside.is_symlink() else []
    for entry in kept:
        if not (_suffix(entry.name) in IMAGE_SUFFIXES or entry.is_dir()):
            continue  # it is not read, whatever it is
        if entry.is_symlink():
            links.append(Path(entry.path))
        if not entry.name.isascii() and entry.name.encode(errors="replace").decode() != entry.name:
            raise BadInput(f"{entry.path!a} is not a file name in UTF-8: rename it")
    for link in links:
        if not Path(os.path.realpath(link)).is_relative_to(os.path.realpath(top)):
            raise BadInput(f"{link} is a link that leaves {top}: put the images themselves there")
    return sorted(kept, key=lambda entry: entry.name)


def _is_debris(name: str) -> bool:
    return name.startswith(".") or name.lower() in DEBRIS


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _in_words(skipped: Counter[str]) -> str:
    """Put it like "skipped 4 files that are no images (.txt 2, .ini 1, .md 1)".

    "/" counts folders inside classes, "val/" is one beside train/ that is not read, anything else a suffix.
    """
    unread = [name for name in sorted(skipped) if len(name) > 1 and name.endswith("/")]
    parts = [f"{_first(unread)} (only train/ and test/ are read)"] if unread else []
    kinds: Counter[str] = Counter()
    for suffix, count in skipped.items():
        if not suffix.endswith("/"):
            kinds[suffix if re.fullmatch(r"\.[a-z0-9_]{1,10}", suffix) else "other"] += count
    if files := kinds.total():
        order = sorted(kinds.items(), key=lambda kind: (kind[0] == "other", -kind[1], kind[0]))
        shown = _first([f"{kind} {count:,}" for kind, count in order])
        what = "file that is no image" if files == 1 else "files that are no images"
        parts.append(f"{files:,} {what} ({shown})")
    if folders := skipped["/"]:
        parts.append(f"{folders:,} folder{'s' * (folders > 1)} inside classes (data.recursive is false)")
    return f"skipped {', '.join(parts)}" if parts else ""


def _first(words: list[str]) -> str:
    """Return the first of them, with three points if there are more."""
    return ", ".join(words[:MOST_KINDS] + ["..."] * (len(words) > MOST_KINDS))


# ---- what `nlt detect` judges: every image, of every split


@dataclass(frozen=True)
class Judged:
    """All images of a folder with a sub-folder per class; files are in the order of their paths."""

    classes: tuple[str, ...]
    """Sorted, those without an image among them."""
    files: list[File]
    splits: tuple[str, ...] | None
    """Of each file: "train", "test" or "val"; None without splits."""
    notes: tuple[str, ...]
    """What was passed over."""


def list_judged(top: Path) -> Judged:
    """List top/CLASS/**, or top/SPLIT/CLASS/** where the folders are called train, test, val and the like.

    A class may be missing in a split, or be called "train" beside classes that are called otherwise.

    Raises:
        BadInput: a folder cannot be read, an image lies beside the class folders or the splits, or the one folder
            called like a split may be a class, too.
    """
    try:
        entries = _entries(top, top)
    except OSError as error:
        raise BadInput(f"{top} cannot be read ({reason(error)}): name a folder with a folder for each class") from error
    folders = [entry.name for entry in entries if entry.is_dir()]
    parts = named = [name for name in folders if name.lower() in SPLIT_OF]
    notes: list[str] = []
    if not parts or len(parts) == 1 < len(folders):
        parts = [""]
    elif loose := [e.path for e in entries if _suffix(e.name) in IMAGE_SUFFIXES and not e.is_dir()]:
        raise BadInput(f"{loose[0]} {BESIDE_SPLITS}")
    elif others := [name for name in folders if name not in parts]:
        notes.append(f"passed over {_first(others)} beside {', '.join(parts)}: only these are taken for splits")
    skipped: Counter[str] = Counter()
    classes: set[str] = set()
    found: list[tuple[File, str]] = []
    for part in parts:
        names, files = _list_split(top, part, True, skipped)
        classes.update(names)
        found += [(file, SPLIT_OF.get(part.lower(), "")) for file in files]
    if parts == [""] and named:
        inside = [file.path for file, _ in found if file.class_name == named[0]]
        # "train/cat/7.png" beside "extra/8.png": the classes may be train and extra, or those of a training split
        if inside and all(path.count("/") > 1 for path in inside):
            other = next(name for name in folders if name != named[0])
            raise BadInput(
                f"{top / named[0]} may be a split or, beside {other}, a class, as it holds images in folders alone: "
                f"name {top / named[0]} to judge the split, or put images of the class directly there"
            )
    found.sort()
    if words := _in_words(skipped):
        notes.append(words)
    splits = None if parts == [""] else tuple(split for _, split in found)
    return Judged(tuple(sorted(classes)), [file for file, _ in found], splits, tuple(notes))
