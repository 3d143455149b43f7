"""What `nlt detect PATH` judges: labelled images in a folder, a list or an archive, looked at once, read when needed.

Legend: N samples, B of them at a time, K classes, S the side of a square in pixels.
"""

import io
import os
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from nlt.data.decoding import centre_square, channels_first, content_sum, open_again, rgb_image, strict
from nlt.data.listing import SPLIT_OF, list_judged
from nlt.data.looking import Looked, look, one_colour, small_square
from nlt.data.npz import read_archive
from nlt.data.samples import MAX_CLASSES, reason
from nlt.data.table import name_files, read_table
from nlt.events import Progress
from nlt.settings import BadInput, brief

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image


@dataclass(frozen=True, eq=False)
class Labelled:
    """N labelled samples; row i of every field is the same one. No image is kept in memory, but those of an npz."""

    source: Path
    """The folder that `names` are relative to, or the file."""
    kind: Literal["folder", "list", "npz", "features"]
    classes: tuple[str, ...]
    """Sorted (of an npz in its order), each with a sample; K of them, at least two."""
    labels_N: NDArray[np.int64]
    """In [0, K): the given labels."""
    names: tuple[str, ...]
    """Path relative to the folder, "/" between; else the row's number ("train/7" where an npz has test arrays), or id.
    No name stands twice."""
    sums: tuple[bytes, ...]
    """SHA-256 of each file's bytes; of the pixels of an image in an npz, of a sample's own numbers."""
    splits: tuple[str, ...] | None = None
    """Of each row: "train", "test" or "val"; None without splits."""
    clean_N: NDArray[np.int64] | None = None
    """In [0, K), the true labels where known, -1 where not: only measured against; None if nothing is known."""
    left_out: tuple[tuple[str, str, str], ...] = ()
    """(path, reason, name of the given class) of each file that cannot be read."""
    rows: "pd.DataFrame | None" = None
    """Of a CSV: all its columns as texts, in the order of `names`."""
    label_column: int | None = None
    """Which column of `rows` the labels are from."""
    empty_classes: tuple[str, ...] = ()
    """Classes without a sample: folders without an image that can be read, names that no label of an npz has."""
    one_colour: tuple[int, ...] = ()
    """Rows of images of one colour."""
    small_NCHW: NDArray[np.uint8] | None = field(default=None, repr=False)
    """(N, 3, 16, 16): the centre square of each image, what copies are known by; 768 bytes each. None of numbers."""
    notes: tuple[str, ...] = ()
    """What was passed over, or taken for what; sentences without a full stop."""
    labels: Path | None = None
    """The file that the labels are from, where it is not `source`."""
    pixels_NCHW: NDArray[np.uint8] | None = field(default=None, repr=False)
    """Of an npz."""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, first: int, last: int, size: int) -> NDArray[np.uint8]:
        """Images of rows first..last-1, (B, 3, S, S): the centre square at `size` pixels, decoded now, in threads.

        Raises:
            BadInput: a file's bytes are others than those of `sums`; own numbers have no images.
        """
        rows = range(len(self))[first:last]
        images_BCHW = np.empty((len(rows), 3, size, size), np.uint8)
        with strict(), ThreadPoolExecutor() as pool:
            squares = pool.map(lambda row: channels_first(centre_square(self._open(row, 2 * size), size)), rows)
            for i, image_CHW in enumerate(squares):
                images_BCHW[i] = image_CHW
        return images_BCHW

    def thumbnail(self, row: int, size: int) -> bytes:
        """A JPEG of the whole image, at most `size` pixels wide and high, never enlarged; the same bytes each time.

        Raises:
            BadInput: as `read`.
        """
        from PIL import Image

        with strict():
            image = self._open(row, 2 * size)
        image.thumbnail((size, size), Image.Resampling.BILINEAR)
        image.info = {}  # no comment of a camera
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    def _open(self, row: int, least: int) -> "Image.Image":
        """The upright image of a row; a JPEG may come smaller, but no side below `least`."""
        if self.kind == "features":
            raise BadInput(f"{self.source} holds numbers, no images: name a folder, a CSV or an .npz to see images")
        if self.pixels_NCHW is not None:
            return rgb_image(self.pixels_NCHW[row])
        return open_again(self.source / self.names[row], self.sums[row], least)


def read_labelled(
    path: Path,
    labels: Path | None = None,
    *,
    path_column: str = "path",
    label_column: str = "label",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Labelled:
    """Read names and labels, and look once at every file: what cannot be decoded is left out, the rest goes on.

    Args:
        path: A folder with a folder for each class, within train/, test/, val/ or not; a folder with `labels`; a CSV,
            whose paths are relative to its own folder; or an .npz (see `nlt.data.Npz`, test arrays are optional).
        labels: A CSV with the label of each file in the folder `path`.
        path_column: Of the CSV.
        label_column: Of the CSV.
        cache: Folder that keeps which files cannot be decoded, called by what they hold.
        progress: Is told what is done, how many are, of how many; without it a bar on a terminal.

    Raises:
        BadInput: there is nothing to judge, or one class only, or a row and the files do not fit.
    """
    path = Path(os.path.expanduser(path))
    kind = kind_of(path)
    if labels is not None and kind != "folder":
        raise BadInput(f"{path} is no folder: leave --labels out, or name the folder that its paths are relative to")
    try:
        if kind == "npz":
            return _read_npz(path)
        if kind == "folder" and labels is None:
            return _read_folder(path, cache, progress)
        folder, file = (path.parent, path) if labels is None else (path, Path(os.path.expanduser(labels)))
        return _read_list(folder, file, (path_column, label_column), cache, progress)
    except BadInput as error:  # what is shared with data sets names a field of theirs
        raise BadInput(str(error).removeprefix("data.path: ")) from error


def kind_of(path: Path) -> Literal["folder", "list", "npz"]:
    """Return what a path is taken for.

    Raises:
        BadInput: there is nothing, or it cannot be read.
    """
    try:
        if path.is_dir():
            return "folder"
        if not path.exists():
            raise BadInput(f"{path} is not there: name a folder of images, a CSV or an .npz file")
        return "npz" if path.suffix.lower() == ".npz" or (path.is_file() and zipfile.is_zipfile(path)) else "list"
    except (OSError, ValueError) as error:  # no right to look, a name too long, a NUL
        raise BadInput(f"{path} cannot be read ({reason(error)}): name a folder, a CSV or an .npz") from error


def _read_folder(top: Path, cache: Path | None, progress: Progress | None) -> Labelled:
    listed = list_judged(top)
    if not listed.files:
        raise BadInput(f"{top} holds no image: put images into a folder for each class, {top}/CLASS/")
    looked = look(top, [file.path for file in listed.files], cache, progress)
    given = [file.class_name for file in listed.files]
    return _kept(top, "folder", listed.classes, given, looked, listed.splits, None, listed.notes)


def _read_list(
    top: Path, file: Path, columns: tuple[str, str], cache: Path | None, progress: Progress | None
) -> Labelled:
    import pandas as pd

    table = read_table(file, columns)
    mend = "write {} into the header, above the {}"
    paths, labels = (
        table.column(column, mend.format(column, what))
        for column, what in zip(columns, ("files' paths", "labels"), strict=True)
    )
    named = name_files(table, top, paths, labels)
    notes = []
    if named.repeated:
        notes.append(f"{file}: {named.repeated:,} rows name a file once more, with the same label: the first counts")
    if named.unnamed:
        notes.append(f"{len(named.unnamed):,} images in {top} are in no row of {file}, first {named.unnamed[0]}")
    given = [labels[row] for row in named.rows]
    frame = pd.DataFrame([table.rows[row] for row in named.rows], columns=list(table.columns), dtype=str)
    splits, note = _splits(file, frame)
    looked = look(top, named.paths, cache, progress)
    data = _kept(top, "list", tuple(sorted(set(given))), given, looked, splits, frame, (*notes, *note))
    return replace(data, labels=file, label_column=table.place(columns[1], ""))


def _splits(file: Path, frame: "pd.DataFrame") -> tuple[tuple[str, ...] | None, list[str]]:
    """A column called "split", if all it holds are splits, and else a note."""
    if list(frame.columns).count("split") != 1:
        return None, []
    words = [str(word).strip().lower() for word in frame["split"]]
    if unknown := sorted(set(words) - set(SPLIT_OF)):
        return None, [f"{file}: column split is not taken for splits, as it holds {brief(unknown[0])}"]
    return tuple(SPLIT_OF[word] for word in words), []


def _read_npz(file: Path) -> Labelled:
    found = read_archive(file)
    parts = [("train", found.train)] + ([("test", found.test)] if found.test is not None else [])
    pixels_NCHW = np.concatenate([part.images_NCHW.numpy() for _, part in parts])
    names = tuple(f"{split}/{i}" if len(parts) > 1 else str(i) for split, part in parts for i in range(len(part)))
    labels_N = np.concatenate([part.labels_N.numpy() for _, part in parts])
    clean_N = None
    if found.train.clean_N is not None:
        clean_N = np.full(len(labels_N), -1)
        clean_N[: len(found.train)] = found.train.clean_N.numpy()
    known = labels_N if clean_N is None else np.concatenate([labels_N, clean_N[clean_N >= 0]])
    is_there_K = np.bincount(known, minlength=len(found.classes)) > 0
    place_K = np.cumsum(is_there_K) - 1
    if len(np.unique(labels_N)) < 2:
        raise BadInput(f"{file}: all labels are {brief(found.classes[labels_N[0]])}: at least two classes are needed")
    step = 1024
    plain = [one_colour(pixels_NCHW[i : i + step]) for i in range(0, len(pixels_NCHW), step)]
    return Labelled(
        source=file,
        kind="npz",
        classes=tuple(name for name, there in zip(found.classes, is_there_K, strict=True) if there),
        labels_N=place_K[labels_N],
        names=names,
        sums=tuple(content_sum(image_CHW.tobytes()) for image_CHW in pixels_NCHW),
        splits=tuple(split for split, part in parts for _ in range(len(part))) if len(parts) > 1 else None,
        clean_N=None if clean_N is None else np.where(clean_N < 0, -1, place_K[clean_N]),
        empty_classes=tuple(name for name, there in zip(found.classes, is_there_K, strict=True) if not there),
        one_colour=tuple(np.concatenate(plain).nonzero()[0].tolist()),
        small_NCHW=np.stack([small_square(rgb_image(pixels_CHW)) for pixels_CHW in pixels_NCHW]),
        notes=tuple(found.notes),
        pixels_NCHW=pixels_NCHW,
    )


def _kept(
    top: Path,
    kind: Literal["folder", "list"],
    classes: tuple[str, ...],
    given: list[str],
    looked: Looked,
    splits: tuple[str, ...] | None,
    frame: "pd.DataFrame | None",
    notes: tuple[str, ...],
) -> Labelled:
    """All files but those that cannot be read; BadInput if that leaves less than two classes."""
    kept = [i for i in range(len(given)) if i not in looked.bad]
    counts = Counter(given[i] for i in kept)
    there = tuple(name for name in classes if counts[name])
    if not kept:
        raise BadInput(
            f"{top / looked.paths[0]} and all other images, {len(given):,} in all, cannot be read ({looked.bad[0]}): "
            "replace them"
        )
    if len(there) < 2:
        raise BadInput(
            f"{top}: all {len(kept):,} images that can be read are of the class {brief(there[0])}: at least two "
            "classes are needed, a folder or label for each"
        )
    if len(there) > MAX_CLASSES:
        raise BadInput(f"{top} has {len(there):,} classes, at most {MAX_CLASSES:,} are possible: merge some")
    label_of = {name: k for k, name in enumerate(there)}
    place_of = {i: row for row, i in enumerate(kept)}
    return Labelled(
        source=top,
        kind=kind,
        classes=there,
        labels_N=np.array([label_of[given[i]] for i in kept], np.int64),
        names=tuple(looked.paths[i] for i in kept),
        sums=tuple(looked.sums[i] for i in kept),
        splits=None if splits is None else tuple(splits[i] for i in kept),
        left_out=tuple((looked.paths[i], why, given[i]) for i, why in sorted(looked.bad.items())),
        rows=None if frame is None else frame.iloc[kept].reset_index(drop=True),
        empty_classes=tuple(name for name in classes if not counts[name]),
        one_colour=tuple(place_of[i] for i in looked.one_colour),
        small_NCHW=looked.small_MCHW,
        notes=notes,
    )
