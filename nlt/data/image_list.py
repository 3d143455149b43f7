"""A user's own images, listed in a CSV with the label of each."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from nlt.data.decoding import Pixels, decode_images
from nlt.data.image_folder import samples_of
from nlt.data.listing import SPLIT_OF, File
from nlt.data.samples import Dataset, DataSettings, PathText, TestFraction, finish, note
from nlt.data.table import name_files, read_table
from nlt.settings import BadInput, brief

Column = Annotated[str, Field(min_length=1, max_length=200)]


class ImageList(DataSettings):
    """A user's own images, listed in a CSV: a header, then a row for each image with its path and its label.

    UTF-8 or UTF-16; commas, semicolons, tabs or other signs between the cells. Classes are in sorted order, images in
    the order of the rows. Labels stay texts: "01", "NA" and "1.0" are classes. Decoded once, then read from a cache
    under the data root, as long as every file holds the same bytes.
    """

    name: Literal["image_list"] = "image_list"
    path: PathText
    """The CSV; relative to the current folder, ~ is expanded."""
    root: PathText | None = None
    """The folder that the paths in it are relative to; null for the CSV's own folder."""
    path_column: Column = "path"
    """The column with the images' paths."""
    label_column: Column = "label"
    """The column with the labels."""
    split_column: Column | None = None
    """A column that says train or test (or val, which is not read); null if all images are for training."""
    image_size: int | None = Field(None, ge=8, le=4096)
    """Make every image this many pixels wide and high: its centre square, resized; null if all have one size."""
    depth: int | None = Field(None, ge=1, le=32)
    """Bits of a grey value in 16-bit, 32-bit and float images: 0 .. 2^depth - 1 become 0 .. 255; 1 for 0.0 .. 1.0."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What an image does that cannot be decoded: stop, or be counted, listed in left_out.csv, and left out."""
    test_fraction: TestFraction = 0.0
    """Share of each class held out for the test, where no row is of the test split."""

    def load(self, root: Path) -> Dataset:
        """Images (N, 3, H, W), upright (EXIF); clean_N is None; without rows for a test `Dataset.test` is None.

        Ids are places among the rows of a split, those whose image cannot be decoded included.

        BadInput names the CSV and the line, the column, or the image that will not do.
        """
        file = Path(os.path.expanduser(self.path))
        folder = file.parent if self.root is None else Path(os.path.expanduser(self.root))
        asked = [self.path_column, self.label_column] + ([self.split_column] if self.split_column is not None else [])
        try:
            table = read_table(file, tuple(asked))
        except BadInput as error:
            raise BadInput(f"data.path: {error}") from error
        if not os.path.isdir(folder):
            raise BadInput(f"data.root: {folder} is no folder: name the one that the paths in {file} are relative to")
        paths, labels, *splits = (
            table.column(column, f"set data.{option}")
            for column, option in zip(asked, ("path_column", "label_column", "split_column"), strict=False)
        )
        named = name_files(table, folder, paths, labels, "data.root")
        files: dict[str, list[File]] = {"train": [], "test": [], "val": []}
        for path, row in zip(named.paths, named.rows, strict=True):
            word = splits[0][row] if splits else "train"
            if word.strip().lower() not in SPLIT_OF:
                raise BadInput(
                    f"{file}: line {table.lines[row]} is of the split {brief(word)}: write train, test or val"
                )
            files[SPLIT_OF[word.strip().lower()]].append(File(path, labels[row]))
        if named.repeated:
            note(f"{file}: {named.repeated:,} rows name an image once more, with the same label: the first counts")
        if files["val"]:
            note(f"{file}: passed over {len(files['val']):,} rows of the split val (only train and test are read)")
        return self._load(file, folder, files["train"], files["test"], root)

    def _load(self, file: Path, folder: Path, train_files: list[File], test_files: list[File], root: Path) -> Dataset:
        names = tuple(sorted({listed.class_name for listed in train_files}))
        if len(names) < 2:
            raise BadInput(f"{file} lists training images of {len(names)} classes: at least two are needed, add rows")
        if unknown := sorted({listed.class_name for listed in test_files} - set(names)):
            raise BadInput(f"{file}: no training image is of the class {brief(unknown[0])}, which test images are of")
        if test_files and self.test_fraction:
            raise BadInput(f"data.test_fraction: {file} has rows of the split test already: remove one of the two")
        files = [*train_files, *test_files]
        pixels = Pixels(self.image_size, self.depth, self.on_bad_image)
        images_MCHW, bad = decode_images(
            folder, [listed.path for listed in files], pixels, Path(os.path.expanduser(root))
        )
        train, test = samples_of(folder, names, images_MCHW, bad, train_files, test_files)
        how = (
            "mark rows as test in a column that data.split_column names"
            if self.split_column is None
            else f"mark rows as test in the column {brief(self.split_column)}"
        )
        mend = f"{how}, or set data.test_fraction, e.g. 0.2"
        left_out = tuple((files[row].path, why) for row, why in sorted(bad.items()))
        return finish(self, names, train, test, left_out, mend, all_images=len(train_files))
