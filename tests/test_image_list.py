"""`image_list`, and npz without test arrays, as data sets for `nlt launch`."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import tiny
from PIL import Image

from nlt.cleaning.export import Clean, write_csv
from nlt.data import Dataset, ImageFolder, ImageList, Npz
from nlt.data.labelled import read_labelled
from nlt.prepare import prepare
from nlt.reading import check
from nlt.settings import BadInput


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """shots/ with 5 cats, 5 dogs, their colours 0..9, and two more for a test."""
    for i in range(10):
        file = tmp_path / "shots" / ("cat" if i < 5 else "dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 8), (i, 0, 0)).save(file)
    for i, name in ((50, "ü t.png"), (51, "u.png")):
        Image.new("RGB", (10, 8), (i, 0, 0)).save(tmp_path / "shots" / name)
    return tmp_path / "shots"


def rows(top: Path, order: Any = range(10)) -> list[str]:
    return [f"{name}/{i}.png,{name},train" for i in order for name in ["cat" if i < 5 else "dog"]]


def write(top: Path, lines: list[str], header: str = "path,label,part", name: str = "l.csv") -> Path:
    (top / name).write_text("\n".join([header, *lines]) + "\n")
    return top / name


def load(file: Path, **settings: Any) -> Dataset:
    return ImageList(path=str(file), **settings).load(file.parent.parent / "root")


def test_rows_in_their_order(top: Path) -> None:
    loaded = load(write(top, rows(top, [7, 0, 9, 3])))
    assert loaded.classes == ("cat", "dog") and loaded.test is None and loaded.name == "image_list"
    assert loaded.train.files == ("dog/7.png", "cat/0.png", "dog/9.png", "cat/3.png")
    assert loaded.train.labels_N.tolist() == [1, 0, 1, 0] and loaded.train.ids_N.tolist() == [0, 1, 2, 3]
    assert loaded.train.images_NCHW[:, 0, 0, 0].tolist() == [7, 0, 9, 3] and loaded.train.clean_N is None
    assert loaded.train.images_NCHW.shape == (4, 3, 8, 10)


def test_a_column_of_splits_and_other_names(top: Path) -> None:
    lines = [*rows(top, [0, 5]), "ü t.png,dog,Test", "u.png,cat,val", *rows(top, [1])]
    file = write(top, lines, "Datei,Klasse,part")
    loaded = load(file, path_column="Datei", label_column="Klasse", split_column="part")
    assert loaded.test is not None and loaded.test.files == ("ü t.png",) and loaded.test.labels_N.tolist() == [1]
    assert loaded.test.images_NCHW[0, 0, 0, 0] == 50
    assert loaded.train.files == ("cat/0.png", "dog/5.png", "cat/1.png")
    assert loaded.train.labels_N.tolist() == [0, 1, 0]


def test_root_is_another_folder(top: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    file = write(tmp_path / "lists", rows(top))
    loaded = ImageList(path=str(file), root=str(top)).load(tmp_path / "root")
    assert len(loaded.train) == 10
    missing = r"10 rows name files that are not in .*lists, first 'cat/0.png' on line 2: .*, or set data.root$"
    with pytest.raises(BadInput, match=missing):
        ImageList(path=str(file)).load(tmp_path / "root")
    with pytest.raises(BadInput, match=r"data.root: .*nothing is no folder"):
        ImageList(path=str(file), root=str(tmp_path / "nothing")).load(tmp_path / "root")


def test_a_clean_csv_of_a_folder_is_launched_with_that_folder_as_root(top: Path, tmp_path: Path) -> None:
    judged = tmp_path / "photos"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            shutil.copytree(top / name, judged / split / name)
    data = read_labelled(judged)
    given = [data.classes[k] for k in data.labels_N]
    table = pd.DataFrame({"path": data.names, "split": data.splits, "given_label": given, "label": given})
    table.loc[data.names.index("train/cat/0.png"), "label"] = "dog"
    table.loc[data.names.index("test/dog/7.png"), "label"] = ""  # taken out
    (tmp_path / "photos.nlt").mkdir()
    file = tmp_path / "photos.nlt" / "clean.csv"
    write_csv(file, Clean(judged, "folder", data.classes, table, None, None))
    loaded = ImageList(path=str(file), root=str(judged), split_column="split").load(tmp_path / "root")
    assert loaded.train.files[0] == "train/cat/0.png" and loaded.train.labels_N.tolist() == [1] + [0] * 4 + [1] * 5
    assert loaded.test is not None and loaded.test.labels_N.tolist() == [0] * 5 + [1] * 4


def test_test_fraction_gives_each_class_a_share(top: Path) -> None:
    loaded = load(write(top, rows(top)), test_fraction=0.4)
    assert loaded.test is not None and loaded.test.labels_N.tolist() == [0, 0, 1, 1] and len(loaded.train) == 6
    with pytest.raises(BadInput, match=r"data.test_fraction: .*l.csv has rows of the split test already"):
        load(write(top, [*rows(top), "u.png,cat,test"]), split_column="part", test_fraction=0.2)


def spec(file: Path, kind: str = "image_list", **data: Any) -> Any:
    return check(tiny(data={"name": kind, "path": str(file), **data}, noise={"name": "none"}), "x.json")


def test_without_a_test_a_launch_says_how_to_get_one(top: Path) -> None:
    file = write(top, rows(top))
    with pytest.raises(
        BadInput, match=r"image_list has no test images.*that data.split_column names, or set data.test_fr"
    ):
        prepare(spec(file), 0, "cpu", top.parent / "root")
    with pytest.raises(BadInput, match=r"mark rows as test in the column 'part', or set data.test_fraction"):
        prepare(spec(file, split_column="part"), 0, "cpu", top.parent / "root")
    prepared = prepare(spec(file, test_fraction=0.2, image_size=8), 0, "cpu", top.parent / "root")
    assert len(prepared.train) == 8 and prepared.train.images_NCHW.shape[2:] == (8, 8)


def test_the_same_images_as_in_a_folder(top: Path) -> None:
    for name in ("ü t.png", "u.png"):
        (top / name).unlink()
    folder = ImageFolder(path=str(top), test_fraction=0.4, seed=3).load(top.parent / "root")
    listed = load(write(top.parent, [f"shots/{row}" for row in rows(top)]), test_fraction=0.4, seed=3)
    assert folder.digest == listed.digest


def test_bad_images_are_left_out_and_ids_stay(top: Path) -> None:
    (top / "cat" / "1.png").write_bytes(b"")
    file = write(top, [*rows(top), "u.png,cat,test"])
    with pytest.raises(BadInput, match=r"cat/1.png cannot be decoded"):
        load(file)
    loaded = load(file, on_bad_image="skip", split_column="part")
    assert loaded.train.ids_N.tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9] and loaded.left_out == (
        ("cat/1.png", "the file is empty"),
    )
    assert loaded.train.images_NCHW[:, 0, 0, 0].tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert loaded.test is not None and loaded.test.images_NCHW[0, 0, 0, 0] == 51


@pytest.mark.parametrize(
    ("lines", "settings", "match"),
    [
        (["cat/0.png,a,train"], {}, "l.csv lists training images of 1 classes: at least two are needed"),
        (["cat/0.png,a,x"], {"split_column": "part"}, "line 2 is of the split 'x': write train, test or val"),
        (["cat/0.png,a,train", "cat/1.png,b,train", "u.png,c,test"], {"split_column": "part"}, "no training image is of the class 'c'"),
        (["cat/0.png,a,"], {"split_column": "half"}, "has no column 'half', only 'path', 'label', 'part': set data.split_column"),
        (["cat/0.png,a,"], {"label_column": "class"}, "has no column 'class', .*: set data.label_column"),
        (["cat/0.png,a,"], {"path_column": "file"}, "has no column 'file', .*: set data.path_column"),
        ([], {}, "data.path: .*has a header and no rows"),
    ],
)  # fmt: skip
def test_list_that_will_not_do_is_named(top: Path, lines: list[str], settings: Any, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        load(write(top, lines), **settings)


# ---- npz without test arrays


def test_npz_without_a_test(tmp_path: Path) -> None:
    images = np.arange(10, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.arange(10) % 2)
    file = tmp_path / "a.npz"
    loaded = Npz(path=str(file)).load(tmp_path)
    assert loaded.test is None and loaded.train.images_NCHW[:, 0, 0, 0].tolist() == list(range(10))
    with pytest.raises(
        BadInput, match=r"npz has no test images.*add arrays test_images and test_labels to .*a.npz, or set"
    ):
        prepare(spec(file, "npz"), 0, "cpu", tmp_path)
    loaded = Npz(path=str(file), test_fraction=0.4).load(tmp_path)
    assert loaded.test is not None and loaded.test.labels_N.tolist().count(1) == 2 and len(loaded.test) == 4
    both = loaded.train.images_NCHW[:, 0, 0, 0].tolist() + loaded.test.images_NCHW[:, 0, 0, 0].tolist()
    assert sorted(both) == list(range(10))
    np.savez(
        file, train_images=images, train_labels=np.arange(10) % 2, test_images=images, test_labels=np.arange(10) % 2
    )
    with pytest.raises(BadInput, match=r"data.test_fraction: .*a.npz holds test_images already"):
        Npz(path=str(file), test_fraction=0.4).load(tmp_path)
    np.savez(file, train_images=images, train_labels=np.arange(10) % 2, test_labels=np.arange(10) % 2)
    with pytest.raises(BadInput, match=r"has no array test_images"):
        Npz(path=str(file)).load(tmp_path)


def test_older_specs_of_an_npz_keep_their_hash(tmp_path: Path) -> None:
    assert spec(tmp_path / "a.npz", "npz").data.deciding() == {
        "name": "npz", "path": str(tmp_path / "a.npz"), "classes": None, "limit": None, "val_fraction": 0.0, "seed": 0,
    }  # fmt: skip
