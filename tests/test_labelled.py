"""What `nlt detect PATH` judges: a folder, a list, an archive, own numbers; what is left out and what is refused."""

import csv
import hashlib
import io
import os
import pickle
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from nlt.data import looking as looking_module
from nlt.data.labelled import Labelled, read_labelled
from nlt.data.looking import one_colour
from nlt.data.numbers import read_numbers
from nlt.data.table import read_table
from nlt.settings import BadInput


def noise(size: tuple[int, int] = (12, 9), seed: int = 0) -> Image.Image:
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3))
    return Image.fromarray(pixels.astype(np.uint8))


def paint(file: Path, seed: int = 0, size: tuple[int, int] = (12, 9), **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    noise(size, seed).save(file, **options)


def refused(match: str, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(BadInput, match=match) as caught:
        read_labelled(*args, **kwargs)
    text = str(caught.value)
    assert text.isprintable() and "data." not in text, text  # no field of an experiment file
    return text


# ---- folders


ENDINGS = ("jpg", "png", "webp", "bmp", "tiff", "gif")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """cat: six formats, two of them in folders; dog: 2; a class whose name has to be escaped: 1."""
    top = tmp_path / "my pets"
    for seed, ending in enumerate(ENDINGS):
        paint(top / "cat" / ("2024/ü ö" if seed < 2 else "") / f"{seed}.{ending}", seed)
    paint(top / "dog" / "a b.png", 10)
    paint(top / "dog" / "ä.png", 11)
    paint(top / "<script>alert(1)<" / "x.png", 12)
    return top


def test_folder(pets: Path) -> None:
    data = read_labelled(pets)
    assert (data.source, data.kind, data.classes) == (pets, "folder", ("<script>alert(1)<", "cat", "dog"))
    assert data.names == (
        "<script>alert(1)</x.png", "cat/2.webp", "cat/2024/ü ö/0.jpg", "cat/2024/ü ö/1.png", "cat/3.bmp", "cat/4.tiff",
        "cat/5.gif", "dog/a b.png", "dog/ä.png",
    )  # fmt: skip
    assert data.labels_N.tolist() == [0] + [1] * 6 + [2, 2] and data.labels_N.dtype == np.int64
    assert data.sums == tuple(hashlib.sha256((pets / name).read_bytes()).digest() for name in data.names)
    assert (data.splits, data.clean_N, data.left_out, data.rows) == (None, None, (), None)
    assert (data.empty_classes, data.one_colour, data.notes, len(data)) == ((), (), (), 9)


def test_read_gives_the_centre_square_of_the_rows_asked_for(tmp_path: Path) -> None:
    for k, name in enumerate(("a", "b")):
        for i in range(3):
            level = 10 + 40 * (3 * k + i)
            wide = np.zeros((16, 48, 3), np.uint8)
            wide[:, 16:32] = (level, 1, 2)  # the centre square; beside it black
            file = tmp_path / "top" / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(wide).save(file)
    data = read_labelled(tmp_path / "top")
    images_BCHW = data.read(2, 5, 8)
    assert images_BCHW.shape == (3, 3, 8, 8) and images_BCHW.dtype == np.uint8
    assert images_BCHW[:, 0, 4, 4].tolist() == [90, 130, 170] and (images_BCHW[:, 1, 1:-1, 1:-1] == 1).all()
    assert np.array_equal(data.read(0, 6, 8)[2:5], images_BCHW)
    assert data.read(4, 99, 8).shape == (2, 3, 8, 8)
    whole = Image.open(tmp_path / "top" / "a" / "2.png").resize((8, 8), Image.Resampling.BILINEAR, box=(16, 0, 32, 16))
    assert np.array_equal(images_BCHW[0], np.asarray(whole).transpose(2, 0, 1))


def test_large_jpeg_is_reduced_while_it_is_decoded_and_looks_the_same(tmp_path: Path) -> None:
    smooth = Image.radial_gradient("L").resize((1600, 1200)).convert("RGB")
    for name in ("a", "b"):
        (tmp_path / "top" / name).mkdir(parents=True)
        smooth.save(tmp_path / "top" / name / "x.jpg", quality=95)
    smooth.save(tmp_path / "top" / "b" / "y.png")
    data = read_labelled(tmp_path / "top")
    jpeg, _, png = data.read(0, 3, 64).astype(int)
    assert abs(jpeg - png).max() <= 3
    assert data._open(0, 128).size == (200, 150) and data._open(2, 128).size == (1600, 1200)


def test_thumbnail_shows_the_whole_image_and_is_the_same_each_time(pets: Path) -> None:
    paint(pets / "dog" / "wide.jpg", 3, (400, 100), comment=b"secret" * 100)
    data = read_labelled(pets)
    row = data.names.index("dog/wide.jpg")
    first = data.thumbnail(row, 96)
    with Image.open(io.BytesIO(first)) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (96, 24), "RGB")
    assert first == data.thumbnail(row, 96) and b"secret" not in first
    with Image.open(io.BytesIO(data.thumbnail(0, 96))) as image:
        assert image.size == (12, 9)  # not enlarged


def test_modes_and_depths_are_all_read(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a").mkdir(parents=True)
    for mode in ("1", "L", "P", "RGBA", "CMYK"):
        noise().convert(mode).save(top / "a" / f"{mode}.tif")
    (top / "b").mkdir()
    ramp = np.arange(108).reshape(9, 12)
    Image.fromarray((ramp * 600).astype(np.uint16)).save(top / "b" / "16.png")
    Image.fromarray((ramp / 107).astype(np.float32)).save(top / "b" / "float.tif")
    Image.fromarray((ramp * 100.5).astype(np.float32)).save(top / "b" / "large.tif")
    data = read_labelled(top)
    assert len(data) == 7 and [(path, name) for path, _, name in data.left_out] == [("b/large.tif", "b")]
    assert "grey values from 0 to" in data.left_out[0][1] and "\n" not in data.left_out[0][1]
    row = data.names.index("b/16.png")
    square = np.asarray(data._open(row, 1)).transpose(2, 0, 1)
    assert square[0].tolist() == np.rint(ramp * 600 / 257).astype(int).tolist()  # 0..65535 become 0..255
    floats = np.asarray(data._open(data.names.index("b/float.tif"), 1))
    assert floats[..., 0].tolist() == np.rint((ramp / 107).astype(np.float32) * 255.0).astype(int).tolist()


@pytest.mark.parametrize("parts", [("train", "test"), ("Training", "validation"), ("train", "val", "test"), ("train",)])
def test_splits_are_all_judged(tmp_path: Path, parts: tuple[str, ...]) -> None:
    top = tmp_path / "top"
    for i, part in enumerate(parts):
        paint(top / part / "cat" / "a.png", i)
        paint(top / part / f"only{i}" / "b.png", 9 + i)
    data = read_labelled(top)
    words = {"Training": "train", "validation": "val"}
    expected = sorted(
        (f"{part}/{name}", words.get(part, part))
        for i, part in enumerate(parts)
        for name in ("cat/a.png", f"only{i}/b.png")
    )
    assert list(zip(data.names, data.splits or (), strict=True)) == expected
    assert data.classes == ("cat", *(f"only{i}" for i in range(len(parts))))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for seed, name in enumerate(("train", "car", "plane")):
        paint(tmp_path / "top" / name / "a.png", seed)
    data = read_labelled(tmp_path / "top")
    assert data.classes == ("car", "plane", "train") and data.splits is None


@pytest.mark.parametrize("part", ["train", "Validation"])
def test_a_folder_that_may_be_a_split_or_a_class_is_refused(tmp_path: Path, part: str) -> None:
    top = tmp_path / "photos"
    for seed, name in enumerate((f"{part}/cat", f"{part}/dog", "extra")):
        paint(top / name / "a.png", seed)
    text = refused(f"photos/{part} may be a split or, beside extra, a class", top)
    assert f"name {top / part} to judge the split" in text
    assert read_labelled(top / part).classes == ("cat", "dog")
    paint(top / part / "b.png", 3)  # an image of the class itself: no split has one beside its class folders
    data = read_labelled(top)
    assert data.classes == tuple(sorted((part, "extra"))) and data.splits is None and len(data) == 4


def test_what_lies_beside_splits_is_passed_over_with_a_note(tmp_path: Path) -> None:
    for seed, name in enumerate(("train/a", "train/b", "test/a", "models/a")):
        paint(tmp_path / "top" / name / "a.png", seed)
    (tmp_path / "top" / "train" / "a" / "notes.txt").touch()
    (tmp_path / "top" / "test" / "a" / "0.png").write_bytes(b"")
    data = read_labelled(tmp_path / "top")
    assert data.splits == ("test", "train", "train") and len(data.left_out) == 1
    assert data.names == ("test/a/a.png", "train/a/a.png", "train/b/a.png")
    assert data.notes == (
        "passed over models beside test, train: only these are taken for splits",
        "skipped 1 file that is no image (.txt 1)",
    )


@pytest.mark.parametrize("folders", [("train/a", "train/b", "test/a", "models"), ("train/a", "train/b")])
def test_an_image_beside_splits_is_refused(tmp_path: Path, folders: tuple[str, ...]) -> None:
    top = tmp_path / "top"
    for seed, name in enumerate(folders):
        paint(top / name / "a.png", seed)
    (top / "notes.txt").touch()
    (top / "._b.png").touch()
    assert read_labelled(top).classes == ("a", "b")
    paint(top / "c.PNG")
    assert str(top) in refused("c.PNG lies beside the splits: move it into a class folder of one or remove it", top)


def test_images_without_any_folder_are_refused(tmp_path: Path) -> None:
    paint(tmp_path / "top" / "a.png")
    refused("a.png lies beside the class folders: move it into one or remove it", tmp_path / "top")


def damaged(pets: Path) -> None:
    whole = noise((64, 64), 1)
    whole.save(pets / "dog" / "cut.jpg", quality=95)
    raw = (pets / "dog" / "cut.jpg").read_bytes()
    (pets / "dog" / "cut.jpg").write_bytes(raw[: len(raw) * 2 // 3])
    (pets / "cat" / "empty.png").write_bytes(b"")
    (pets / "fish").mkdir()
    (pets / "fish" / "junk.gif").write_bytes(b"no image")


@pytest.mark.parametrize("cached", [False, True])
def test_unreadable_files_are_left_out_and_the_rest_goes_on(
    pets: Path, tmp_path: Path, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = read_labelled(pets)
    damaged(pets)
    (pets / "bird").mkdir()
    cache = tmp_path / "cache" if cached else None
    data = read_labelled(pets, cache=cache)
    if cached:
        monkeypatch.setattr(looking_module, "open_upright", lambda *_, **__: pytest.fail("decoded again"))
        again = read_labelled(pets, cache=cache)
        assert (again.left_out, again.sums, again.names) == (data.left_out, data.sums, data.names)
        assert np.array_equal(again.small_NCHW, data.small_NCHW)
    assert (data.names, data.classes, data.sums) == (plain.names, plain.classes, plain.sums)
    assert [(path, name) for path, _, name in data.left_out] == [
        ("cat/empty.png", "cat"), ("dog/cut.jpg", "dog"), ("fish/junk.gif", "fish")
    ]  # fmt: skip
    assert data.small_NCHW is not None and np.array_equal(data.small_NCHW, data.read(0, 9, 16))
    assert data.left_out[0][1] == "the file is empty" and "truncated" in data.left_out[1][1]
    assert data.empty_classes == ("bird", "fish")


def other_arrays(file: Path) -> None:
    np.savez(file, bad_rows=[99], reasons=["x"], one_colour=[0], small_MCHW=np.zeros((11, 3, 16, 16), np.uint8))


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:500]), other_arrays])
def test_a_damaged_cache_is_made_anew(pets: Path, tmp_path: Path, damage: Any) -> None:
    damaged(pets)
    data = read_labelled(pets, cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    damage(file)
    again = read_labelled(pets, cache=tmp_path / "cache")
    assert again.left_out == data.left_out and np.array_equal(again.small_NCHW, data.small_NCHW)
    assert len(file.read_bytes()) == len(whole)


def test_the_cache_notices_another_content(pets: Path, tmp_path: Path) -> None:
    read_labelled(pets, cache=tmp_path / "cache")
    (pets / "dog" / "ä.png").write_bytes(b"")
    assert [path for path, _, _ in read_labelled(pets, cache=tmp_path / "cache").left_out] == ["dog/ä.png"]


def test_a_cache_that_cannot_be_written_is_a_warning(
    pets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").touch()
    assert len(read_labelled(pets, cache=tmp_path / "cache")) == 9
    assert capfd.readouterr().err.count("warning: cannot keep what was seen") == 1


def test_a_file_that_changes_is_named(pets: Path) -> None:
    data = read_labelled(pets)
    paint(pets / "dog" / "ä.png", 99)
    with pytest.raises(BadInput, match=r"dog/ä.png was changed while it was read: try again"):
        data.read(0, 9, 16)
    with pytest.raises(BadInput, match=r"dog/ä.png was changed"):
        data.thumbnail(8, 16)
    assert len(data.read(0, 8, 16)) == 8
    (pets / "dog" / "ä.png").unlink()
    with pytest.raises(BadInput, match=r"dog/ä.png cannot be read any more"):
        data.read(8, 9, 16)


def test_progress_is_told(pets: Path) -> None:
    told: list[tuple[str, int, int]] = []
    read_labelled(pets, progress=lambda *what: told.append(what))
    assert told[-1] == ("reading images", 9, 9)


def test_images_of_one_colour(tmp_path: Path) -> None:
    top = tmp_path / "top"
    paint(top / "a" / "1.png", 1)
    paint(top / "b" / "2.png", 2)
    Image.new("RGB", (640, 480), (90, 20, 30)).save(top / "a" / "black.jpg", quality=60)
    Image.new("L", (5, 5), 7).save(top / "b" / "grey.gif")
    (top / "a" / "0.png").write_bytes(b"")  # left out, so that rows are not places among the files
    chess = np.indices((64, 64)).sum(0) % 2 * 255  # the mean over 8 x 8 pixels is the same everywhere
    Image.fromarray(chess.astype(np.uint8)).save(top / "b" / "chess.jpg", quality=95)
    data = read_labelled(top)
    assert [data.names[row] for row in data.one_colour] == ["a/black.jpg", "b/grey.gif"]


def test_one_colour_by_hand() -> None:
    images_BCHW = np.full((4, 3, 2, 2), 100, np.uint8)
    images_BCHW[1, 2, 0, 0] = 104
    images_BCHW[2, 2, 1, 1] = 105
    images_BCHW[3, 0] = 0  # channels may differ
    assert one_colour(images_BCHW).tolist() == [True, True, False, True]


def one_class(pets: Path) -> None:
    for name in ("dog", "<script>alert(1)<"):
        for file in (pets / name).iterdir():
            file.unlink()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (one_class, "all 6 images that can be read are of the class 'cat': at least two"),
        (
            lambda top: [file.write_bytes(b"") for file in top.rglob("*.*")],
            r"all other images, 9 in all, cannot be read \(the file is empty\)",
        ),
        (lambda top: [file.unlink() for file in top.rglob("*.*")], "holds no image: put images into a folder for each"),
        (lambda top: top.rename(top.parent / "moved"), "is not there: name a folder of images, a CSV or an .npz"),
        (lambda top: (top / "dog" / "out").symlink_to("/etc"), "dog/out is a link that leaves"),
        (lambda top: (top / "dog" / "out.png").symlink_to("/etc/hostname"), "dog/out.png is a link that leaves"),
        (lambda top: (top / "out").symlink_to("/etc"), "out is a link that leaves"),
        (lambda top: (top / "dog" / "gone.png").symlink_to("nothing.png"), "gone.png is no file, or a link to nothing"),
        (lambda top: paint(top / "x.jpg"), "x.jpg lies beside the class folders: move it"),
        (lambda top: os.mkfifo(top / "dog" / "p.png"), "p.png is no file"),
    ],
)
def test_folder_that_will_not_do_is_named(pets: Path, change: Any, match: str) -> None:
    change(pets)
    assert str(pets) in refused(match, pets)


def test_path_that_cannot_be_looked_at() -> None:
    for path in ("a" * 300, "a\0b"):
        with pytest.raises(BadInput, match="is not there|cannot be read"):
            read_labelled(Path(path))


# ---- lists


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    top = tmp_path / "shots"
    for seed, name in enumerate(("a.png", "b c.png", "sub/ä.jpg", "sub/d.png")):
        paint(top / name, seed)
    return top


ROWS = [("b c.png", "NA", "1.0"), ("a.png", "dog, small", ""), ("sub/ä.jpg", "001", "x"), ("sub/d.png", "NA", "nan")]


def write(
    file: Path, rows: Any = ROWS, header: Any = ("path", "label", "score"), encoding: str = "utf-8", **form: Any
) -> Path:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, **form).writerows([header, *rows])
    file.write_bytes(buffer.getvalue().encode(encoding))
    return file


def assert_the_list(data: Labelled) -> None:
    assert data.kind == "list" and data.classes == ("001", "NA", "dog, small")
    assert data.names == ("b c.png", "a.png", "sub/ä.jpg", "sub/d.png") and data.labels_N.tolist() == [1, 2, 0, 1]
    assert data.rows is not None and data.rows["score"].tolist() == ["1.0", "", "x", "nan"]
    assert data.rows["label"].tolist() == ["NA", "dog, small", "001", "NA"]
    assert list(data.rows.columns) == ["path", "label", "score"]


def test_folder_and_list(shots: Path, tmp_path: Path) -> None:
    assert_the_list(data := read_labelled(shots, write(tmp_path / "l.csv")))
    assert data.source == shots and data.sums[1] == hashlib.sha256((shots / "a.png").read_bytes()).digest()
    assert data.splits is None and data.notes == ()
    fitted = ImageOps.fit(noise(seed=0), (9, 9), Image.Resampling.BILINEAR)
    assert np.array_equal(data.read(1, 2, 9)[0], np.asarray(fitted).transpose(2, 0, 1))
    assert_the_list(data := read_labelled(write(shots / "labels.csv")))
    assert data.source == shots


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", ":", "^", "~"])
def test_any_encoding_and_delimiter(shots: Path, encoding: str, delimiter: str) -> None:
    assert_the_list(read_labelled(write(shots / "l.csv", encoding=encoding, delimiter=delimiter, lineterminator="\n")))
    assert_the_list(
        read_labelled(write(shots / "l.csv", encoding=encoding, delimiter=delimiter, quoting=csv.QUOTE_ALL))
    )


def test_columns_in_any_order_and_what_spreadsheets_write(shots: Path) -> None:
    turned = [(score, label, path) for path, label, score in ROWS]
    data = read_labelled(write(shots / "l.csv", turned, ("score", "Label ", "PATH")))
    assert data.names[0] == "b c.png" and data.classes == ("001", "NA", "dog, small")
    text = "sep=;\r\n" + write(shots / "l.csv", delimiter=";").read_bytes().decode()
    (shots / "l.csv").write_bytes(text.encode())
    assert_the_list(read_labelled(shots / "l.csv"))
    (shots / "l.csv").write_text("path, label\n\na.png, cat\nb c.png, dog\n\n")
    assert read_labelled(shots / "l.csv").classes == ("cat", "dog")
    (shots / "l.csv").write_text("path,label\na.png,cat,,\nb c.png,dog\n")
    assert read_labelled(shots / "l.csv").classes == ("cat", "dog")


@pytest.mark.parametrize(
    "form", ["{top}/a.png", ".\\a.png", "./sub/../a.png", "sub\\..\\a.png", " a.png ", "sub//../a.png"]
)
def test_paths_are_understood(shots: Path, form: str) -> None:
    rows = [(form.format(top=shots), "cat"), ("sub\\d.png", "dog")]
    assert read_labelled(shots, write(shots / "l.csv", rows, ("path", "label"))).names == ("a.png", "sub/d.png")


@pytest.mark.parametrize(("disk", "listed"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_letters_may_be_composed_otherwise(shots: Path, disk: str, listed: str) -> None:
    on_disk = unicodedata.normalize(disk, "é.png")
    paint(shots / on_disk, 9)
    rows = [(unicodedata.normalize(listed, "é.png"), "cat"), ("a.png", "dog")]
    assert read_labelled(shots, write(shots / "l.csv", rows, ("path", "label"))).names == (on_disk, "a.png")


def test_odd_class_names_stay_as_they_are(shots: Path) -> None:
    names = ["<script>alert('x')</script>", "a,b", "two\nlines", unicodedata.normalize("NFD", "é")]
    rows = [(path, name) for (path, _, _), name in zip(ROWS, names, strict=True)]
    data = read_labelled(write(shots / "l.csv", rows, ("path", "label")))
    assert [data.classes[k] for k in data.labels_N] == names


def test_a_column_of_splits(shots: Path) -> None:
    rows = [(*row[:2], word) for row, word in zip(ROWS, ("Train", "test", "valid", "train"), strict=True)]
    data = read_labelled(write(shots / "l.csv", rows, ("path", "label", "split")))
    assert data.splits == ("train", "test", "val", "train")
    rows[2] = (*rows[2][:2], "left")
    data = read_labelled(write(shots / "l.csv", rows, ("path", "label", "split")))
    assert data.splits is None and "column split is not taken for splits, as it holds 'left'" in data.notes[0]


def test_files_without_a_row_and_rows_twice_are_noted(shots: Path) -> None:
    data = read_labelled(write(shots / "l.csv", [*ROWS[:3], ROWS[0]]))
    assert data.names == ("b c.png", "a.png", "sub/ä.jpg") and data.rows is not None and len(data.rows) == 3
    assert data.notes == (
        f"{shots / 'l.csv'}: 1 rows name a file once more, with the same label: the first counts",
        f"1 images in {shots} are in no row of {shots / 'l.csv'}, first sub/d.png",
    )


def test_unreadable_files_of_a_list_take_their_rows_along(shots: Path) -> None:
    (shots / "a.png").write_bytes(b"")
    data = read_labelled(write(shots / "l.csv"))
    assert data.left_out == (("a.png", "the file is empty", "dog, small"),) and data.empty_classes == ("dog, small",)
    assert data.rows is not None and data.rows["path"].tolist() == list(data.names) == [
        "b c.png",
        "sub/ä.jpg",
        "sub/d.png",
    ]
    assert data.rows.index.tolist() == [0, 1, 2] and data.labels_N.tolist() == [1, 0, 1]


def test_only_what_a_list_names_is_read(shots: Path) -> None:
    (shots / "junk").symlink_to("/etc")
    (shots / "other.png").write_bytes(b"")
    (shots / ".hidden").mkdir()
    paint(shots / ".hidden" / "h.png", 8)
    (shots / "a.png").rename(shots / "img_001")
    rows = [(".hidden/h.png", "cat"), ("img_001", "dog")]
    data = read_labelled(write(shots / "l.csv", rows, ("path", "label")))
    assert data.names == (".hidden/h.png", "img_001") and data.left_out == ()


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (
            [("a.png", "x"), ("no.png", "x"), ("nor.png", "y")],
            "2 rows name files that are not in .*first 'no.png' on line 3",
        ),
        ([("a.png", "x"), ("b c.png", " ")], "line 3 has no label: write one or remove the line"),
        ([("a.png", "x"), ("", "y")], "line 3 has no path"),
        (
            [("a.png", "x"), ("b c.png", "y"), ("./a.png", "z")],
            "lines 2 and 4 give 'a.png' the labels 'x' and 'z': remove one",
        ),
        ([("a.png", "x"), ("b c.png", "x")], "all 2 images that can be read are of the class 'x'"),
        ([("a.png", "x"), ("../a.png", "y")], "line 3 names '../a.png', which leaves"),
        ([("a.png", "x"), ("/etc/hostname", "y")], "a row names a file that is not in .*'/etc/hostname' on line 3"),
        ([("a.png", "x"), ("out.png", "y")], "out.png is a link that leaves"),
        ([("a.png", "x"), ("etc/hostname", "y")], "etc/hostname is a link that leaves"),
        ([("a.png", "x"), ("gone.png", "y")], "a row names a file that is not in .*'gone.png'"),
        ([("a.png", "x"), ("sub", "y")], "a row names a file that is not in"),
        ([("a.png", "x", "1")], "line 2 has 3 cells and the header 2: put texts that hold ',' into quotes"),
        ([], "has a header and no rows"),
    ],
)
def test_list_that_will_not_do_is_named(shots: Path, rows: Any, match: str) -> None:
    (shots / "out.png").symlink_to("/etc/hostname")
    (shots / "gone.png").symlink_to("nothing.png")
    (shots / "etc").symlink_to("/etc")
    refused(match, write(shots / "l.csv", rows, ("path", "label")))


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "l.csv is empty"),
        (b"\xef\xbb\xbf\n\n", "l.csv is empty"),
        (
            b"file,class\na.png,x\n",
            "has no column 'path', only 'file', 'class': write path into the header, above the files' paths",
        ),
        (b"path,class\na.png,x\n", "has no column 'label', only 'path', 'class'"),
        (b"path,Label,LABEL \na.png,x,y\n", "has 2 columns called 'label': rename all but one"),
        (b"path,label,label\na.png,x,y\n", "has 2 columns called 'label': rename all but one"),
        ("path,label\nä.png,x\n".encode("cp1252"), "byte 11 is not UTF-8: save it as UTF-8"),
        (b'path,label\n"a.png,x\n', "line 2 is no line of a CSV"),
        (b"path,label\na\0.png,x\n", r"holds the character \\u0000"),
        (b"path,label\n\na.png,x\n\nb c.png,\n", "line 5 has no label"),
        (b"\xff\xfep", "byte 2 is not UTF-16"),
    ],
)
def test_file_that_is_no_list_is_named(shots: Path, raw: bytes, match: str) -> None:
    (shots / "l.csv").write_bytes(raw)
    assert str(shots / "l.csv") in refused(match, shots, shots / "l.csv")


def test_labels_that_do_not_fit_the_path(shots: Path, tmp_path: Path) -> None:
    file = write(shots / "l.csv")
    refused("l.csv is no folder: leave --labels out", file, file)
    refused("no.csv is not there: name a CSV file", shots, tmp_path / "no.csv")
    refused("is a folder: name a CSV file", shots, shots)


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.tuples(TEXTS, TEXTS, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)),
        min_size=1,
        max_size=5,
    ),
    delimiter=st.sampled_from([",", ";", "\t", "|", ":", " ", "^", "#"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    order=st.permutations(range(3)),
)
def test_every_cell_comes_back(
    tmp_path_factory: Any, rows: Any, delimiter: str, quoting: Any, end: str, encoding: str, order: Any
) -> None:
    file = tmp_path_factory.getbasetemp() / "round trip.csv"
    turned = [tuple(row[i] for i in order) for row in rows]
    header = tuple(("path", "label", "note")[i] for i in order)
    if quoting == csv.QUOTE_MINIMAL and any(set(cell) & {'"', "\n", "\r"} for row in turned for cell in row):
        quoting = csv.QUOTE_ALL
    write(file, turned, header, encoding, delimiter=delimiter, quoting=quoting, lineterminator=end)
    table = read_table(file, ("path", "label"))
    assert [tuple(row) for row in table.rows] == turned
    assert table.column("path", "") == [path for path, _, _ in rows]
    assert table.column("label", "") == [label for _, label, _ in rows]


# ---- npz


def arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.RandomState(0)
    whole = {
        "train_images": rng.randint(0, 256, (6, 8, 10, 3)).astype(np.uint8),
        "train_labels": np.array([0, 2, 2, 0, 2, 0]),
        "class_names": np.array(["owl", "emu", "cat"]),
    } | changes
    return {name: array for name, array in whole.items() if array is not None}


def test_npz_without_a_test(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays(train_clean_labels=np.array([0, 2, 0, 0, 2, 2])))
    data = read_labelled(tmp_path / "a.npz")
    assert (data.kind, data.classes, data.empty_classes) == ("npz", ("owl", "cat"), ("emu",))
    assert data.names == ("0", "1", "2", "3", "4", "5") and data.splits is None
    assert data.labels_N.tolist() == [0, 1, 1, 0, 1, 0]
    assert data.clean_N is not None and data.clean_N.tolist() == [0, 1, 0, 0, 1, 1]
    pixels = arrays()["train_images"].transpose(0, 3, 1, 2)
    assert data.sums[1] == hashlib.sha256(pixels[1].tobytes()).digest() and len(set(data.sums)) == 6
    assert np.array_equal(data.read(1, 2, 8)[0], pixels[1][:, :, 1:9])
    with Image.open(io.BytesIO(data.thumbnail(1, 99))) as image:
        assert image.size == (10, 8)


def test_npz_with_a_test_is_judged_whole(tmp_path: Path) -> None:
    images = np.zeros((2, 8, 10), np.uint8)
    images[0] = 9
    np.savez(
        tmp_path / "a.npz",
        **arrays(
            train_images=arrays()["train_images"][..., 0], train_clean_labels=np.array([0, 2, 0, 0, 2, 2]),
            test_images=images, test_labels=np.array([2, 2]),
        ),
    )  # fmt: skip
    data = read_labelled(tmp_path / "a.npz")
    assert data.names[5:] == ("train/5", "test/0", "test/1") and data.splits == ("train",) * 6 + ("test",) * 2
    assert data.labels_N.tolist() == [0, 1, 1, 0, 1, 0, 1, 1]
    assert data.clean_N is not None and data.clean_N.tolist() == [0, 1, 0, 0, 1, 1, -1, -1]
    assert data.small_NCHW is not None and np.array_equal(data.small_NCHW, data.read(0, 8, 16))
    assert data.one_colour == (6, 7) and (data.read(6, 7, 8) == 9).all()  # grey is three channels


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"train_labels": np.zeros(6, int)}, "a.npz: all labels are 'owl': at least two classes are needed"),
        ({"test_images": np.zeros((1, 8, 10, 3), np.uint8)}, "a.npz has no array test_labels"),
        ({"train_labels": None}, "a.npz has no array train_labels: it must hold train_images, train_labels"),
        ({"train_labels": np.array([0, 1])}, "train_labels must have one label for each of the 6 images, found 2"),
    ],
)
def test_npz_that_will_not_do_is_named(tmp_path: Path, changes: Any, match: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    refused(match, tmp_path / "a.npz")
    refused("a.npz is no folder: leave --labels out", tmp_path / "a.npz", tmp_path / "l.csv")


# ---- own numbers


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    np.save(tmp_path / "f.npy", np.random.RandomState(0).standard_normal((4, 5)).astype(np.float16))
    np.save(tmp_path / "p.npy", np.array([[0.2, 0.5, 0.3], [1, 0, 0], [1, 0, 0], [0, 0, 1.0]]))
    (tmp_path / "l.csv").write_text("id;label\nx;NA\ny;1\nz;1\nw;10\n")
    (tmp_path / "n.csv").write_text("label\n2\n0\n0\n1\n")
    return tmp_path


def test_features_with_a_list(numbers: Path) -> None:
    found = read_numbers(numbers / "l.csv", features=numbers / "f.npy")
    assert found.probabilities_NK is None and found.features_ND is not None and found.features_ND.dtype == np.float16
    data = found.data
    assert (data.kind, data.names, data.classes) == ("features", ("x", "y", "z", "w"), ("1", "10", "NA"))
    assert data.labels_N.tolist() == [2, 0, 0, 1] and len(set(data.sums)) == 4
    assert data.sums[1] == hashlib.sha256(np.load(numbers / "f.npy")[1].tobytes()).digest()
    for refuse in (lambda: data.read(0, 1, 8), lambda: data.thumbnail(0, 8)):
        with pytest.raises(BadInput, match="f.npy holds numbers, no images"):
            refuse()


def test_columns_of_probabilities_are_numbers_or_in_sorted_order(numbers: Path) -> None:
    found = read_numbers(numbers / "n.csv", probabilities=numbers / "p.npy")
    assert found.data.classes == ("0", "1", "2") and found.data.labels_N.tolist() == [2, 0, 0, 1]
    assert found.data.names == ("0", "1", "2", "3") and len(set(found.data.sums)) == 4  # sure ones are no copies
    found = read_numbers(numbers / "l.csv", probabilities=numbers / "p.npy")
    assert found.data.classes == ("1", "10", "NA") and "in sorted order: 1, 10, NA" in found.data.notes[0]
    np.save(numbers / "wide.npy", np.full((4, 12), 1 / 12, np.float16))
    (numbers / "n.csv").write_text("label\n2\n10\n9\n9\n")
    found = read_numbers(numbers / "n.csv", probabilities=numbers / "wide.npy")
    assert found.data.labels_N.tolist() == [2, 10, 9, 9] and len(found.data.classes) == 12
    assert found.data.empty_classes == ("0", "1", "3", "4", "5", "6", "7", "8", "11")


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (np.array([3, 1, 3, 10]), ("1", "3", "10"), [1, 0, 1, 2]),
        (np.array(["b", "a", "b", "10"]), ("10", "a", "b"), [2, 1, 2, 0]),
        (np.array([[1.0], [0], [1], [1]]), ("0", "1"), [1, 0, 1, 1]),
    ],
)
def test_labels_as_an_array(numbers: Path, labels: Any, classes: tuple[str, ...], expected: list[int]) -> None:
    np.save(numbers / "l.npy", labels)
    data = read_numbers(numbers / "l.npy", features=numbers / "f.npy").data
    assert data.classes == classes and data.labels_N.tolist() == expected


def bad_row(row: int, value: float) -> Any:
    values = np.random.RandomState(0).standard_normal((4, 5))
    values[row, 3] = value
    return values


@pytest.mark.parametrize(
    ("kind", "values", "match"),
    [
        ("features", np.ones((5, 2)), "l.csv has 4 labels and .*x.npy 5 rows: give one label for each row"),
        ("features", bad_row(2, np.nan), r"x.npy: row 2 \(from 0\) holds NaN or infinity"),
        ("features", bad_row(3, np.inf), "row 3 .*holds NaN or infinity"),
        ("probabilities", bad_row(1, np.nan), "row 1 .*holds NaN"),
        ("features", np.ones(4), r"x.npy must hold \(N, D\) features, as floats, found float64 of shape \(4,\)"),
        ("features", np.array([["a"]] * 4), "must hold .*found <U1"),
        ("features", np.array([{}] * 4), "x.npy holds pickled objects, which are never loaded"),
        ("probabilities", np.eye(4)[:, :3], r"row 3 \(from 0\) is no row of probabilities, .* sums to 0: save softmax"),
        ("probabilities", np.eye(4)[:, :3] * 2, "row 0 .*is no row of probabilities"),
        ("probabilities", np.array([[1.5, -0.5]] * 4), "is no row of probabilities, it lies in -0.5 .. 1.5"),
        ("probabilities", np.eye(4), "l.csv holds 3 classes and .*x.npy has 4 columns"),
    ],
)
def test_numbers_that_will_not_do_are_named(numbers: Path, kind: str, values: Any, match: str) -> None:
    np.save(numbers / "x.npy", values)
    with pytest.raises(BadInput, match=match):
        read_numbers(numbers / "l.csv", **{kind: numbers / "x.npy"})


def test_what_is_no_npy_is_not_called_pickles(numbers: Path) -> None:
    np.savez(numbers / "z.npz", np.ones((4, 5)))
    (numbers / "z.npz").rename(numbers / "z.npy")
    (numbers / "empty.npy").touch()
    (numbers / "pickle.npy").write_bytes(pickle.dumps([1, 2, 3, 4]))
    for name in ("l.csv", "z.npy", "empty.npy", "pickle.npy"):
        with pytest.raises(BadInput, match=f"{name} is no .npy file: write one array with numpy.save"):
            read_numbers(numbers / "l.csv", features=numbers / name)
    (numbers / "text.npy").write_bytes((numbers / "l.csv").read_bytes())
    with pytest.raises(BadInput, match=r"text.npy is no .npy file"):
        read_numbers(numbers / "text.npy", features=numbers / "f.npy")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("label\na\nb\n\nc\n", "has 3 labels"),
        ("label,id\na,1\n ,2\nb,3\nc,4\n", "line 3 has no label"),
        ("label,id\na,1\nb,2\nb,1\nc,4\n", "the id '1' stands in 2 rows"),
        ("label\na\na\na\na\n", "all labels are 'a': at least two classes"),
        ("class\na\na\nb\na\n", "has no column 'label', only 'class'"),
    ],
)
def test_labels_of_numbers_that_will_not_do_are_named(numbers: Path, text: str, match: str) -> None:
    (numbers / "x.csv").write_text(text)
    with pytest.raises(BadInput, match=match):
        read_numbers(numbers / "x.csv", features=numbers / "f.npy")


def test_labels_outside_the_columns_and_files_that_are_missing(numbers: Path) -> None:
    (numbers / "n.csv").write_text("label\n1\n2\n3\n3\n")
    with pytest.raises(BadInput, match="holds the label 3 and .*p.npy has columns 0 to 2"):
        read_numbers(numbers / "n.csv", probabilities=numbers / "p.npy")
    with pytest.raises(BadInput, match="no.npy is not there: name an .npy file"):
        read_numbers(numbers / "n.csv", features=numbers / "no.npy")
    (numbers / "cut.npy").write_bytes((numbers / "f.npy").read_bytes()[:-8])
    with pytest.raises(BadInput, match="cut.npy cannot be read"):
        read_numbers(numbers / "n.csv", features=numbers / "cut.npy")
    with pytest.raises(BadInput, match="give one of the two"):
        read_numbers(numbers / "n.csv")
