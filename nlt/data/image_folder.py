"""A user's own images in folders."""

import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from nlt.data.decoding import Pixels, decode_images
from nlt.data.listing import File, list_images
from nlt.data.samples import Dataset, DataSettings, PathText, Samples, TestFraction, finish, note
from nlt.settings import BadInput


class ImageFolder(DataSettings):
    """A user's own images in folders: PATH/train/CLASS/** and PATH/test/CLASS/**, or PATH/CLASS/** without splits.

    Classes are in sorted order. Files that are no images by their names are skipped and counted; hidden ones and what
    systems leave behind (Thumbs.db, __MACOSX) are skipped. Of an animation the first frame counts. Decoded once, then
    read from a cache under the data root, as long as every file holds the same bytes.
    """

    added_later = DataSettings.added_later | {"on_bad_image", "depth", "recursive", "test_fraction"}

    name: Literal["image_folder"] = "image_folder"
    path: PathText
    """The folder that holds train/ and test/, or the classes; relative to the current folder, ~ is expanded."""
    image_size: int | None = Field(None, ge=8, le=4096)
    """Make every image this many pixels wide and high: its centre square, resized; null if all have one size."""
    depth: int | None = Field(None, ge=1, le=32)
    """Bits of a grey value in 16-bit, 32-bit and float images: 0 .. 2^depth - 1 become 0 .. 255; 1 for 0.0 .. 1.0."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What an image does that cannot be decoded: stop, or be counted, listed in left_out.csv, and left out."""
    recursive: bool = True
    """Read folders inside a class folder, too; false passes them over."""
    test_fraction: TestFraction = 0.0
    """Share of each class held out for the test, where there is no test split."""

    def load(self, root: Path) -> Dataset:
        """Images (N, 3, H, W), upright (EXIF); clean_N is None; without a test split `Dataset.test` is None.

        Ids are places in the sorted list of a split's image files, those that cannot be decoded included.

        BadInput names the file or folder that is missing, damaged, out of place, or of another size than the rest.
        """
        folder = Path(os.path.expanduser(self.path))
        listed = list_images(folder, self.recursive)
        if listed.test is not None and self.test_fraction:
            raise BadInput(f"data.test_fraction: {folder / 'test'} is there already: remove one of the two")
        if listed.skipped:
            note(f"{folder}: {listed.skipped}")
        train_files, test_files = listed.train, listed.test or []
        files = [*train_files, *test_files]
        pixels = Pixels(self.image_size, self.depth, self.on_bad_image)
        images_MCHW, bad = decode_images(folder, [file.path for file in files], pixels, Path(os.path.expanduser(root)))
        names = listed.classes
        train, test = samples_of(folder, names, images_MCHW, bad, train_files, test_files)
        left_out = tuple((files[row].path, why) for row, why in sorted(bad.items()))
        return finish(self, names, train, test, left_out, listed.test_mend, all_images=len(train_files))


def samples_of(
    folder: Path,
    names: tuple[str, ...],
    images_MCHW: NDArray[np.uint8],
    bad: dict[int, str],
    train_files: list[File],
    test_files: list[File],
) -> tuple[Samples, Samples | None]:
    """Both splits of decoded files; `bad`: those that could not be, by their places among train and test files.

    BadInput if a class has lost all of its images.
    """
    files = [*train_files, *test_files]
    if bad:
        first = files[min(bad)].path
        note(
            f"{folder}: left out {len(bad):,} of {len(files):,} images, which cannot be decoded ({first}: "
            f"{bad[min(bad)]}): left_out.csv among a run's artifacts lists them"
        )
    images_NCHW = torch.from_numpy(images_MCHW)
    ids = [i for i in range(len(train_files)) if i not in bad]
    train = _samples(folder, names, images_NCHW[: len(ids)], train_files, ids)
    if not test_files:
        return train, None
    test_ids = [i for i in range(len(test_files)) if len(train_files) + i not in bad]
    return train, _samples(folder, names, images_NCHW[len(ids) :], test_files, test_ids)


def _samples(folder: Path, names: tuple[str, ...], images_NCHW: Tensor, files: list[File], ids: list[int]) -> Samples:
    """One split of `files`, of which those at `ids` were decoded; BadInput if a class has lost all of its images."""
    label_of = {name: k for k, name in enumerate(names)}
    kept = [files[i] for i in ids]
    if lost := sorted({file.class_name for file in files} - {file.class_name for file in kept}):
        example = next(file.path for file in files if file.class_name == lost[0])
        raise BadInput(f"{folder / example} and all other images of its class cannot be decoded: replace some")
    labels_N = torch.tensor([label_of[file.class_name] for file in kept])
    return Samples(images_NCHW, torch.tensor(ids), labels_N, None, tuple(file.path for file in kept))
