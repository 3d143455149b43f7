"""The clean data set in the forms that others read: folders, a table, arrays, tasks for Label Studio.

Legend: N samples, K classes, S pixels on a side.
"""

import csv
import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from nlt.data.decoding import enable_heif, open_again
from nlt.settings import BadInput

Export = Literal["folder", "csv", "npz", "labelstudio"]
Kind = Literal["folder", "list", "npz", "features"]
SIDE = 224  # of images in an npz where they are not all of one size
LONGEST, MOST = 200, 255  # bytes of a class's folder, where a suffix is still to follow; of any name on a file system


@dataclass(frozen=True)
class Clean:
    """What is exported: where the images are, and what became of each."""

    source: Path
    kind: Kind
    classes: tuple[str, ...]
    table: pd.DataFrame
    """As `decide` returns it, of readable samples only, in the order of the input."""
    rows: pd.DataFrame | None
    """The user's own table, of a CSV, in the same order."""
    pixels_NCHW: NDArray[np.uint8] | None
    """Of an npz."""
    label_column: int | None = None
    """Which column of `rows` the labels are from."""

    @cached_property
    def names(self) -> list[str]:
        """Path or id of each sample."""
        return [str(name) for name in self.table.iloc[:, 0]]

    @cached_property
    def splits(self) -> list[str]:
        """The split of each sample, "" where there are none."""
        return list(self.table["split"]) if "split" in self.table else [""] * len(self.table)


def check_export(export: Export, kind: Kind) -> None:
    """Make sure that a data set can be exported so.

    Raises:
        BadInput: there are no images, or no files of images, to export.
    """
    if kind == "features" and export != "csv":
        raise BadInput(f"--export {export} needs images and the input is features: choose csv")
    if kind == "npz" and export == "labelstudio":
        raise BadInput("--export labelstudio needs image files and the input is an npz: choose npz, csv or folder")


def write_clean(into: Path, clean: Clean, export: Export) -> dict[str, str]:
    """Write the clean data set into a folder; returns class -> folder name where these differ.

    Raises:
        BadInput: an image is no longer there.
    """
    match export:
        case "folder":
            return write_folder(into / "clean", clean)
        case "csv":
            write_csv(into / "clean.csv", clean)
        case "npz":
            write_npz(into / "clean.npz", clean)
        case "labelstudio":
            write_labelstudio(into, clean)
    return {}


def write_folder(top: Path, clean: Clean) -> dict[str, str]:
    """Write top/[SPLIT/]CLASS/** of hard links, or copies where the file system has no links; of an npz PNG files.

    A file keeps its path inside its class's folder. Where a relabelled one meets another there, the class it came from
    is added to its name. Returns class -> folder name where a class's name is none for a folder.
    """
    folders = folder_names(clean.classes)
    labels, given = list(clean.table["label"]), list(clean.table["given_label"])
    kept = [row for row, label in enumerate(labels) if label]
    kept.sort(key=lambda row: labels[row] != given[row])  # who stays keeps its name; stable
    taken: dict[str, bool] = {}
    width = len(str(len(labels)))
    top.mkdir()
    for row in kept:
        split, inside = _place(clean, row, width)
        head = f"{split}/{folders[labels[row]]}" if split else folders[labels[row]]
        target = _free(f"{head}/{inside}", folders[given[row]], taken)
        (top / target).parent.mkdir(parents=True, exist_ok=True)
        if clean.pixels_NCHW is None:
            _link(clean.source / clean.names[row], top / target)
        else:
            image_CHW = clean.pixels_NCHW[row]
            image = image_CHW[0] if len(image_CHW) == 1 else np.ascontiguousarray(image_CHW.transpose(1, 2, 0))
            Image.fromarray(image).save(top / target)
    return {name: folder for name, folder in folders.items() if name != folder}


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """Return class -> a folder's name: itself where it can be one, else with odd characters as %XX; all different.

    Two names that differ by case alone are told apart, since some file systems do not.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(classes, key=lambda name: (not _is_folder_name(name), name)):
        base = name if _is_folder_name(name) else quote(name, safe=" ").replace(".", "%2E")[:LONGEST].strip() or "%20"
        folder, number = base, 2
        while folder.casefold() in taken:
            folder, number = f"{base}~{number}", number + 1
        taken.add(folder.casefold())
        found[name] = folder
    return {name: found[name] for name in classes}


def _is_folder_name(name: str) -> bool:
    safe = name.isprintable() and not set(name) & set('/\\:*?"<>|') and name == name.strip(" .") and name
    return bool(safe) and not name.startswith(".") and len(name.encode()) <= LONGEST


def _place(clean: Clean, row: int, width: int) -> tuple[str, str]:
    """(split's folder or "", path inside the class's folder)."""
    name, split = clean.names[row], clean.splits[row]
    if clean.kind == "npz":
        return split, f"{row:0{width}}.png"
    parts = name.split("/")
    if clean.kind == "list":
        return split, name
    return (parts[0], "/".join(parts[2:])) if split else ("", "/".join(parts[1:]))


def _free(target: str, origin: str, taken: dict[str, bool]) -> str:
    """A path that nothing has yet, in folders that are no files; file systems that do not tell case apart are heeded.

    `taken`, path -> whether it is a folder, learns of it.
    """
    *folders, name = target.split("/")
    head = ""
    for folder in folders:
        head += _unlike(head, folder, origin, taken, (None, True)) + "/"
        taken[head[:-1].casefold()] = True
    path = head + _unlike(head, name, origin, taken, (None,))
    taken[path.casefold()] = False
    return path


def _unlike(head: str, name: str, origin: str, taken: dict[str, bool], free: tuple[bool | None, ...]) -> str:
    """The name, or one made of it, of at most `MOST` bytes, for which `taken` says what is `free`."""
    stem, suffix = os.path.splitext(name)
    new, number = name, 1
    while taken.get((head + new).casefold()) not in free:
        end = f"-from-{origin}{f'-{number}' if number > 1 else ''}{suffix}"
        new = os.fsencode(stem)[: max(0, MOST - len(os.fsencode(end)))].decode(errors="ignore") + end
        number += 1
    return new


def _link(source: Path, target: Path) -> None:
    real = os.path.realpath(source)
    try:
        os.link(real, target)
    except FileNotFoundError as error:
        raise BadInput(f"{source} is no longer there: leave the input alone meanwhile, and run again") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EEXIST):
            raise
        shutil.copy2(real, target)  # another file system, or one without links


def write_csv(file: Path, clean: Clean) -> None:
    """Write the user's own rows and columns with corrected labels, or columns path (id), split and label."""
    keep = (clean.table["label"] != "").to_numpy()
    labels = clean.table["label"].to_numpy()
    if clean.rows is None:
        frame = clean.table[[clean.table.columns[0], *(["split"] if "split" in clean.table else [])]].copy()
        frame["label"] = labels
    else:
        assert clean.label_column is not None
        frame = clean.rows.copy()
        changed = (clean.table["label"] != clean.table["given_label"]).to_numpy() & keep
        old = frame.iloc[:, clean.label_column].astype(object)
        frame.isetitem(clean.label_column, old.where(~changed, labels))  # what is not changed stays as written
    file.write_bytes(table_bytes(frame[keep]))


def table_bytes(table: pd.DataFrame, with_rows: bool = False) -> bytes:
    """Return a table as CSV, numbers with six digits; with the sample's row in the input as the first column.

    Where a text holds \\r all are quoted: up to Python 3.12 it stands bare else, and ends the line for who reads it.
    """
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        text: str = table.to_csv(
            index=with_rows, index_label="row", float_format="%.6f", lineterminator="\n", quoting=quoting
        )
        if "\r" not in text:
            break
    return text.encode()


def write_npz(file: Path, clean: Clean) -> None:
    """Write arrays as nlt's npz data set has them: {train,test,val}_images, {...}_labels, class_names.

    Images of files are RGB, with the pixels that were judged, and squares of `SIDE` pixels unless all have one size.

    Raises:
        BadInput: a file can no longer be read.
    """
    place = {name: k for k, name in enumerate(clean.classes)}
    labels, splits = list(clean.table["label"]), np.array([split or "train" for split in clean.splits])
    shape, pixels_HWC = _pixels(clean)
    arrays: dict[str, NDArray[Any]] = {}
    for split in sorted(set(splits)):
        kept = [row for row in np.flatnonzero(splits == split).tolist() if labels[row]]
        images_NHWC = np.empty((len(kept), *shape), np.uint8)  # filled one by one: they may take half the memory
        for i, row in enumerate(kept):
            images_NHWC[i] = pixels_HWC(row)
        arrays[f"{split}_images"] = images_NHWC
        arrays[f"{split}_labels"] = np.array([place[labels[row]] for row in kept], dtype=np.int64)
    arrays["class_names"] = np.array(clean.classes)
    with file.open("wb") as opened:
        np.savez(opened, allow_pickle=False, **arrays)


def _pixels(clean: Clean) -> tuple[tuple[int, int, int], Callable[[int], NDArray[np.uint8]]]:
    """(height, width, channels) of every image, and what reads that of a row."""
    if (pixels_NCHW := clean.pixels_NCHW) is not None:
        _, C, H, W = pixels_NCHW.shape
        return (H, W, C), lambda row: pixels_NCHW[row].transpose(1, 2, 0)
    files = [clean.source / name for name in clean.names]
    enable_heif(clean.source, clean.names)
    sizes: set[tuple[int, int]] = set()
    for file, label in zip(files, clean.table["label"], strict=True):
        if label and len(sizes) < 2:
            sizes.add(open_again(file).size)
    W, H = size = sizes.pop() if len(sizes) == 1 else (SIDE, SIDE)

    def resized(row: int) -> NDArray[np.uint8]:
        image = open_again(files[row])
        return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))

    return (H, W, 3), resized


def write_labelstudio(into: Path, clean: Clean) -> None:
    """Write labelstudio.json, tasks with predictions, the worst first, and labelstudio.xml, the labelling interface.

    Images are named as Label Studio's local files: its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT is to be the folder that
    holds the data set's.
    """
    top = Path(os.path.abspath(clean.source)).name
    names = ("sha256", "given_label", "suggested_label", "decision", "label", "p_wrong")
    lines = list(zip(clean.names, *(clean.table[name].tolist() for name in names), strict=True))
    with (into / "labelstudio.json").open("w", encoding="utf-8") as file:  # one by one: all take a lot of memory
        before = "["
        for row in np.argsort(-clean.table["p_wrong"].to_numpy(), kind="stable").tolist():
            path, sha256, given, suggested, decision, label, p_wrong = lines[row]
            choice = {"from_name": "label", "to_name": "image", "type": "choices"}
            task = {
                "data": {
                    "image": f"/data/local-files/?d={quote(f'{top}/{path}')}",
                    "path": path,
                    "sha256": sha256,
                    "given_label": given,
                    "decision": decision,
                    "p_wrong": round(p_wrong, 6),
                },
                "predictions": [
                    {
                        "model_version": "nlt",
                        "score": round(p_wrong, 6),
                        "result": [choice | {"value": {"choices": [label or suggested]}}],
                    }
                ],
            }
            text = json.dumps(task, ensure_ascii=False, indent=1).replace("\n", "\n ")  # no text holds a bare one
            file.write(f"{before}\n {text}")
            before = ","
        file.write("\n]\n")
    choices = "".join(f"    <Choice value={quoteattr(name)}/>\n" for name in clean.classes)
    (into / "labelstudio.xml").write_text(
        '<View>\n  <Image name="image" value="$image"/>\n  <Choices name="label" toName="image" showInLine="true">\n'
        f"{choices}  </Choices>\n</View>\n",
        encoding="utf-8",
    )
