"""Image folders: what is read, in which order, under which label; 16 bits; what is left out; the cache of pixels."""

import io
import json
import os
import shutil
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from PIL import Image
from test_data import cut, flip

from nlt.data import Dataset, ImageFolder
from nlt.data import decoding as decoding_module
from nlt.prepare import prepare
from nlt.reading import check
from nlt.settings import BadInput

# ---- image folder


def paint(file: Path, colour: tuple[int, int, int], size: tuple[int, int] = (10, 8), **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/: dog 2, cat 1, owl 1 images; test/: one dog."""
    top = tmp_path / "pets"
    paint(top / "train" / "dog" / "10.png", (10, 11, 12))
    paint(top / "train" / "dog" / "9.png", (9, 8, 7))
    paint(top / "train" / "cat" / "a.PNG", (1, 2, 3))
    paint(top / "train" / "owl" / "o.bmp", (4, 5, 6))
    paint(top / "test" / "dog" / "x.png", (99, 98, 97))
    (top / "train" / "dog" / ".hidden").touch()
    (top / "train" / "Thumbs.db").touch()
    (top / "train" / ".git").mkdir()
    (top / "notes.txt").touch()
    return top


def load_folder(top: Path, **settings: Any) -> Dataset:
    return ImageFolder(path=str(top), **settings).load(top.parent / "root")


def test_image_folder(folder: Path) -> None:
    loaded = load_folder(folder)
    assert loaded.classes == ("cat", "dog", "owl")
    assert loaded.train.files == ("train/cat/a.PNG", "train/dog/10.png", "train/dog/9.png", "train/owl/o.bmp")
    assert loaded.train.labels_N.tolist() == [0, 1, 1, 2] and loaded.test.labels_N.tolist() == [1]
    assert loaded.train.images_NCHW.shape == (4, 3, 8, 10) and loaded.train.images_NCHW.is_contiguous()
    assert loaded.train.images_NCHW[:, :, 7, 9].tolist() == [[1, 2, 3], [10, 11, 12], [9, 8, 7], [4, 5, 6]]
    assert loaded.test.images_NCHW[0, :, 0, 0].tolist() == [99, 98, 97]
    assert loaded.train.clean_N is None and loaded.test.files == ("test/dog/x.png",)
    picked = load_folder(folder, classes=("owl", "dog"))
    assert picked.train.files == ("train/dog/10.png", "train/dog/9.png", "train/owl/o.bmp")
    assert picked.train.ids_N.tolist() == [1, 2, 3] and picked.train.labels_N.tolist() == [1, 1, 0]


def test_second_load_reads_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_folder(folder)
    assert [cache.name[:9] for cache in (folder.parent / "root" / "cache").iterdir()] == ["images-2-"]
    monkeypatch.setattr(decoding_module, "_decode", lambda *_: pytest.fail("decoded again"))
    assert load_folder(folder).digest == first.digest
    os.utime(folder / "train" / "cat" / "a.PNG", ns=(1, 1))  # the bytes are the same
    assert load_folder(folder).digest == first.digest


@pytest.mark.parametrize(
    "damage", [cut, flip, lambda cache: np.savez(cache, images_MCHW=np.zeros((1, 3, 8, 10), np.uint8))]
)
def test_damaged_cache_is_made_anew(folder: Path, damage: Any) -> None:
    first = load_folder(folder)
    (cache,) = (folder.parent / "root" / "cache").iterdir()
    whole = cache.read_bytes()
    damage(cache)
    assert cache.read_bytes() != whole
    assert load_folder(folder).digest == first.digest
    assert cache.read_bytes()[:200] == whole[:200] and len(cache.read_bytes()) == len(whole)


def test_cache_that_cannot_be_written_is_a_warning(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder.parent / "root").touch()
    assert len(load_folder(folder).train) == 4
    warned = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert len(warned) == 1 and str(folder.parent / "root" / "cache") in warned[0]


def test_cache_under_a_name_that_no_file_can_have_is_a_warning(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert len(ImageFolder(path=str(folder)).load(Path("a" * 300)).train) == 4
    assert capfd.readouterr().err.count("warning: cannot keep decoded images") == 1


def test_image_size_takes_the_centre_and_smooths(folder: Path) -> None:
    stripes = np.zeros((16, 48, 3), np.uint8)
    stripes[:, 16:32:2] = 255  # the centre square: black and white columns by turns
    stripes[:, :16, 0] = 200  # beside it red
    Image.fromarray(stripes).save(folder / "train" / "cat" / "a.PNG")
    image_CHW = load_folder(folder, image_size=8).train.images_NCHW[0]
    assert image_CHW.shape == (3, 8, 8)
    # by turns black and white is grey where the filter is antialiased; plain bilinear sampling would keep stripes
    assert ((image_CHW[:, :, 1:-1].float() - 127.5).abs() < 2).all()
    # shorter side to 8, so 24 x 8, then the middle 8 columns
    whole = np.asarray(Image.fromarray(stripes).resize((24, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(image_CHW.numpy(), whole[:, 8:16].transpose(2, 0, 1))


def test_exif_orientation_palettes_and_grey(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    half = np.zeros((10, 8, 3), np.uint8).transpose(1, 0, 2)  # stored 10 wide, 8 high
    half[:, :5] = 255  # the left half white
    tall = folder.parent / "tall"
    for split in ("train", "test"):
        for name in ("a", "b"):
            paint(tall / split / name / "p.gif", (255, 0, 0), (8, 10))
    Image.fromarray(half).save(tall / "train" / "a" / "p.jpg", exif=exif, quality=100, subsampling=0)
    Image.new("L", (8, 10), 77).save(tall / "train" / "b" / "q.png")
    images_NCHW = load_folder(tall).train.images_NCHW
    assert images_NCHW.shape == (4, 3, 10, 8)
    assert images_NCHW[0, :, 0, 0].tolist() == [255, 0, 0]  # a/p.gif
    assert (images_NCHW[1, :, :5] > 240).all() and (images_NCHW[1, :, 5:] < 15).all()  # a/p.jpg: left has become top
    assert (images_NCHW[3] == 77).all()  # b/q.png


def bomb(file: Path) -> None:
    """A PNG of 20,000 x 20,000 pixels in a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def warned_bomb(file: Path) -> None:
    """100 million pixels: above Pillow's warning, below its error."""
    Image.new("1", (10_000, 10_000)).save(file, format="PNG")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(b""), "cannot be decoded"),
        (lambda file: file.write_bytes(file.read_bytes()[:40]), "cannot be decoded"),
        (lambda file: file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "cannot be decoded"),
        (bomb, "cannot be decoded .*exceeds limit"),
        (warned_bomb, "cannot be decoded .*exceeds limit"),
        (
            lambda file: Image.fromarray(np.full((8, 10), 999, np.uint16)).save(file),
            "more than 8 bits .*set data.depth",
        ),
        (lambda file: paint(file, (0, 0, 0), (10, 9)), "is 10x9 and the images before it 10x8: set data.image_size"),
        (lambda file: (file.unlink(), file.symlink_to("/etc/hostname")), "is a link that leaves"),
        (lambda file: (file.unlink(), file.symlink_to("absent.png")), "is no file, or a link to nothing: remove it"),
        (lambda file: (file.unlink(), os.mkfifo(file)), "is no file"),
    ],
)
def test_image_that_will_not_do_is_named(folder: Path, damage: Any, message: str) -> None:
    damage(folder / "train" / "dog" / "9.png")
    with pytest.raises(BadInput, match=message) as caught:
        load_folder(folder)
    assert str(folder / "train" / "dog" / "9.png") in str(caught.value)


def remove(*files: Path) -> None:
    for file in files:
        file.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda top: paint(top / "train" / "x.jpg", (1, 1, 1)), "train/x.jpg lies beside the class folders: move it"),
        (lambda top: (top / "train" / "emu" / "notes").mkdir(parents=True), "train/emu holds no image"),
        (
            lambda top: ((top / "train" / "emu").mkdir(), (top / "train" / "emu" / "a.txt").touch()),
            "train/emu holds no",
        ),
        (lambda top: paint(top / "test" / "emu" / "e.png", (1, 1, 1)), "test/emu: no such class in .*train"),
        (lambda top: (top / "train" / "emu").mkdir(), "train/emu holds no image"),
        (lambda top: remove(top / "test" / "dog" / "x.png"), "test holds no image"),
        (lambda top: top.rename(top.parent / "moved"), "data.path: cannot read .*pets "),
        (lambda top: (top / "train").rename(top / "Train"), "pets/Train is there and .*pets/train is not: name"),
        (lambda top: (top / "train").rename(top / "kept"), "pets/test is there and .*pets/train is not"),
        (lambda top: (top / "train" / "out").symlink_to("/etc"), "train/out is a link that leaves"),
        (lambda top: (top / "train" / "dog" / "out").symlink_to("/etc"), "train/dog/out is a link that leaves"),
        (lambda top: (top / "train" / "dog" / "on").symlink_to(top / "train" / "dog"), "dog/on is a link to a folder"),
        (
            lambda top: ((top / "test").rename(top.parent / "t"), (top / "test").symlink_to(top.parent / "t")),
            "pets/test is a link that leaves",
        ),
        (lambda top: paint(Path(os.fsdecode(bytes(top / "train" / "dog") + b"/\xff.png")), (1, 1, 1)), "UTF-8"),
    ],
)
def test_folder_that_will_not_do_is_named(folder: Path, change: Any, message: str) -> None:
    change(folder)
    with pytest.raises(BadInput, match=message) as caught:
        load_folder(folder)
    json.dumps(str(caught.value)).encode()
    str(caught.value).encode()  # printable, whatever the file name


def test_folder_of_one_class(folder: Path) -> None:
    for name in ("cat", "owl"):
        remove(*(folder / "train" / name).iterdir())
        (folder / "train" / name).rmdir()
    with pytest.raises(BadInput, match="at least two classes, found 1"):
        load_folder(folder)


def test_links_within_the_folder_are_fine(folder: Path) -> None:
    (folder / "train" / "dog" / "link.png").symlink_to(folder / "train" / "dog" / "9.png")
    (folder.parent / "alias").symlink_to(folder)
    assert len(load_folder(folder.parent / "alias").train) == 5


# ---- what lies in folders besides images


def told(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("note: ")]


def test_debris_and_files_that_are_no_images_are_passed_over(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plain = load_folder(folder)
    for name in ("notes.txt", "b.TXT", "desktop.ini", "README.md", "._9.png", ".DS_Store", "LICENSE", "x.\x1b[1m"):
        (folder / "train" / "dog" / name).touch()
    (folder / "train" / "list.csv").touch()
    (folder / "test" / "b.txt").touch()
    (folder / "test" / "dog" / "gone.txt").symlink_to("/nowhere")  # a link that is not read
    for debris in ("__MACOSX", ".ipynb_checkpoints", "@eaDir", "$RECYCLE.BIN", "System Volume Information"):
        paint(folder / "train" / debris / "x.png", (0, 0, 0))
        paint(folder / "train" / "dog" / debris / "x.png", (0, 0, 0))
        paint(folder / debris / "x.png", (0, 0, 0))
    capfd.readouterr()
    messy = load_folder(folder)
    assert (messy.digest, messy.train.files, messy.left_out) == (plain.digest, plain.train.files, ())
    line = "skipped 9 files that are no images (.txt 4, .csv 1, .ini 1, .md 1, other 2)"
    assert told(capfd) == [f"note: {folder}: {line}"]
    load_folder(folder)  # as the next run of a sweep does
    assert told(capfd) == []


def test_clean_folders_are_not_talked_about(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_folder(folder)
    assert told(capfd) == []


# ---- layouts


def test_nested_folders_are_read(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paint(folder / "train" / "cat" / "2024" / "b" / "a.PNG", (7, 7, 7))
    paint(folder / "train" / "cat" / "2025" / "a.PNG", (8, 8, 8))
    paint(folder / "test" / "dog" / "2024" / "x.png", (9, 9, 9))
    loaded = load_folder(folder)
    assert loaded.train.files == (
        "train/cat/2024/b/a.PNG", "train/cat/2025/a.PNG", "train/cat/a.PNG", "train/dog/10.png", "train/dog/9.png",
        "train/owl/o.bmp",
    )  # fmt: skip
    assert loaded.train.ids_N.tolist() == list(range(6)) and loaded.train.labels_N.tolist() == [0, 0, 0, 1, 1, 2]
    assert loaded.train.images_NCHW[:, 0, 0, 0].tolist() == [7, 8, 1, 10, 9, 4]
    assert loaded.test is not None and loaded.test.files == ("test/dog/2024/x.png", "test/dog/x.png")
    capfd.readouterr()
    flat = load_folder(folder, recursive=False)
    assert flat.train.files == ("train/cat/a.PNG", "train/dog/10.png", "train/dog/9.png", "train/owl/o.bmp")
    assert told(capfd) == [f"note: {folder}: skipped 3 folders inside classes (data.recursive is false)"]


def test_many_links_to_one_folder_are_not_followed(folder: Path) -> None:
    """Each level would double the work."""
    top = folder / "train" / "dog"
    for level in range(10):
        (top / f"{level}").mkdir()
        for link in "ab":
            (top / f"{level}" / link).symlink_to(top / f"{level + 1}")
    (top / "10").mkdir()
    with pytest.raises(BadInput, match="is a link to a folder that its class holds already"):
        load_folder(folder)


@pytest.fixture
def unsplit(tmp_path: Path) -> Path:
    """Classes without splits: 10 cats and 5 dogs, each with its own colour."""
    top = tmp_path / "photos"
    for i in range(10):
        paint(top / "cat" / f"{i}" / "x.png", (i, 0, 0))
    for i in range(5):
        paint(top / "dog" / f"{i}.png", (100 + i, 0, 0))
    return top


def spec_of(top: Path, **data: Any) -> Any:
    settings = {"name": "image_folder", "path": str(top), **data}
    return check(tiny(data=settings, noise={"name": "none"}), "x.json")


def prepared(top: Path, **data: Any) -> Any:
    return prepare(spec_of(top, **data), 0, "cpu", top.parent / "root")


def test_classes_without_splits_are_training_images_only(unsplit: Path) -> None:
    loaded = load_folder(unsplit)
    assert loaded.test is None and loaded.classes == ("cat", "dog")
    assert loaded.train.files is not None and loaded.train.files[:2] == ("cat/0/x.png", "cat/1/x.png")
    assert loaded.train.labels_N.tolist() == [0] * 10 + [1] * 5
    assert loaded.train.images_NCHW[:, 0, 0, 0].tolist() == [*range(10), *range(100, 105)]
    with pytest.raises(
        BadInput, match=r"data: image_folder has no test images.*set data.test_fraction, e.g. 0.2, or move"
    ):
        prepared(unsplit)
    whole = load_folder(unsplit, test_fraction=0.4)
    assert whole.test is not None and whole.digest != loaded.digest


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_in_place_of_test(folder: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "test").rename(folder / name)
    paint(folder / "train" / "dog" / "w.png", (2, 2, 2))
    loaded = load_folder(folder)
    assert loaded.test is None and len(loaded.train) == 5
    assert told(capfd) == [f"note: {folder}: skipped {name}/ (only train/ and test/ are read)"]
    with pytest.raises(BadInput, match=rf"rename .*pets/{name} to .*pets/test, or set data.test_fraction, e.g. 0.2"):
        prepared(folder)
    (folder / name).rename(folder / "test")
    assert len(load_folder(folder).test or ()) == 1


def test_what_lies_beside_train_and_test_is_told(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paint(folder / "val" / "dog" / "w.png", (2, 2, 2))
    for name in (".git", "__MACOSX", *"abcdef"):
        (folder / name).mkdir()
    (folder / "notes.txt").touch()
    load_folder(folder)
    assert told(capfd) == [f"note: {folder}: skipped a/, b/, c/, d/, e/, f/, ... (only train/ and test/ are read)"]
    paint(folder / "w.png", (2, 2, 2))
    with pytest.raises(BadInput, match=r"pets/w.png lies beside the splits: move it into a class folder of one or"):
        load_folder(folder)


def test_train_alone(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    assert load_folder(folder).test is None
    with pytest.raises(BadInput, match=r"put test images into .*pets/test, or set data.test_fraction"):
        prepared(folder)


def test_held_out_test_images(unsplit: Path) -> None:
    loaded = load_folder(unsplit, test_fraction=0.25)  # of 10: 2.5 -> 3; of 5: 1.25 -> 1
    assert loaded.test is not None
    assert torch.bincount(loaded.test.labels_N).tolist() == [3, 1]
    assert sorted([*loaded.train.ids_N.tolist(), *loaded.test.ids_N.tolist()]) == list(range(15))
    for side in (loaded.train, loaded.test):
        assert side.ids_N.tolist() == sorted(side.ids_N.tolist()) and side.files is not None
        colours = [i if i < 10 else 90 + i for i in side.ids_N.tolist()]
        assert side.images_NCHW[:, 0, 0, 0].tolist() == colours
        assert side.labels_N.tolist() == [int(file.startswith("dog")) for file in side.files]
    other = load_folder(unsplit, test_fraction=0.25, seed=1).test
    assert other is not None and other.ids_N.tolist() != loaded.test.ids_N.tolist()


def test_test_fraction_beside_a_test_split(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"data.test_fraction: .*pets/test is there already: remove one of the two"):
        load_folder(folder, test_fraction=0.2)


def test_older_specs_keep_their_hash(folder: Path) -> None:
    assert spec_of(folder).data.deciding() == {
        "name": "image_folder", "path": str(folder), "image_size": None, "classes": None, "limit": None,
        "val_fraction": 0.0, "seed": 0,
    }  # fmt: skip
    assert spec_of(folder, depth=8, recursive=False).data.deciding().items() >= {"depth": 8, "recursive": False}.items()


# ---- images that cannot be decoded


def broken(folder: Path) -> None:
    (folder / "train" / "dog" / "10.png").write_bytes(b"")
    whole = (folder / "train" / "dog" / "9.png").read_bytes()
    (folder / "train" / "dog" / "a.png").write_bytes(whole[:40])
    (folder / "train" / "cat" / "Z.jpg").write_bytes(b"no image")
    paint(folder / "test" / "dog" / "y.png", (97, 0, 0))
    (folder / "test" / "dog" / "x.png").write_bytes(whole[:50])


def test_bad_images_are_left_out_and_ids_stay(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(folder)
    with pytest.raises(BadInput, match=r'cannot be decoded .*"on_bad_image": "skip"'):
        load_folder(folder)
    (folder / "train" / "cat" / "Z.jpg").rename(folder / "train" / "owl" / "z.jpg")
    with pytest.raises(BadInput, match=r"dog/10.png cannot be decoded \(the file is empty\)"):
        load_folder(folder)
    capfd.readouterr()
    for _ in range(2):  # decoded, and from the cache
        loaded = load_folder(folder, on_bad_image="skip")
        assert loaded.train.files == ("train/cat/a.PNG", "train/dog/9.png", "train/owl/o.bmp")
        assert loaded.train.ids_N.tolist() == [0, 2, 4] and loaded.train.labels_N.tolist() == [0, 1, 2]
        assert loaded.train.images_NCHW[:, 0, 0, 0].tolist() == [1, 9, 4]
        assert loaded.test is not None and loaded.test.ids_N.tolist() == [1]
        assert loaded.test.images_NCHW[0, 0, 0, 0] == 97
        paths = ["train/dog/10.png", "train/dog/a.png", "train/owl/z.jpg", "test/dog/x.png"]
        assert [path for path, _ in loaded.left_out] == paths and all(why for _, why in loaded.left_out)
        monkeypatch.setattr(decoding_module, "_decode", lambda *_: pytest.fail("decoded again"))
    start = f"note: {folder}: left out 4 of 8 images, which cannot be decoded (train/dog/10.png: the file is empty)"
    assert told(capfd) == [f"{start}: left_out.csv among a run's artifacts lists them"]


def test_ids_and_hold_out_with_bad_images(unsplit: Path) -> None:
    (unsplit / "cat" / "3" / "x.png").write_bytes(b"")
    loaded = load_folder(unsplit, on_bad_image="skip", test_fraction=0.4)
    assert loaded.test is not None
    ids = sorted([*loaded.train.ids_N.tolist(), *loaded.test.ids_N.tolist()])
    assert ids == [0, 1, 2, *range(4, 15)]
    for side in (loaded.train, loaded.test):
        assert side.images_NCHW[:, 0, 0, 0].tolist() == [i if i < 10 else 90 + i for i in side.ids_N.tolist()]


@pytest.mark.parametrize("file", ["train/owl/o.bmp", "test/dog/x.png"])
def test_a_class_that_loses_all_its_images(folder: Path, file: str) -> None:
    (folder / file).write_bytes(b"")
    with pytest.raises(BadInput, match=rf"{file} and all other images of its class cannot be decoded: replace some"):
        load_folder(folder, on_bad_image="skip")


def test_nothing_that_can_be_decoded(folder: Path) -> None:
    for file in folder.glob("*/*/*.*"):
        file.write_bytes(b"")
    with pytest.raises(BadInput, match=r"none of 5 images can be decoded"):
        load_folder(folder, on_bad_image="skip")


def test_skipping_is_for_what_cannot_be_decoded_only(folder: Path) -> None:
    paint(folder / "train" / "dog" / "9.png", (0, 0, 0), (10, 9))
    with pytest.raises(BadInput, match="is 10x9 and the images before it 10x8"):
        load_folder(folder, on_bad_image="skip")
    Image.fromarray(np.zeros((8, 10), np.uint16)).save(folder / "train" / "dog" / "9.png")
    with pytest.raises(BadInput, match="set data.depth"):
        load_folder(folder, on_bad_image="skip")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "AVIF"])
def test_a_truncated_file_is_bad_in_every_format(folder: Path, kind: str) -> None:
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (8, 10, 3)).astype(np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, kind)
    suffix = {"JPEG": "JFIF", "TIFF": "TIF"}.get(kind, kind)
    file = folder / "train" / "dog" / f"b.{suffix}"
    file.write_bytes(buffer.getvalue())
    assert load_folder(folder).train.files[3] == f"train/dog/b.{suffix}"  # type: ignore[index]
    file.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) * 3 // 4])
    assert [path for path, _ in load_folder(folder, on_bad_image="skip").left_out] == [f"train/dog/b.{suffix}"]


# ---- HEIC


def test_heic(folder: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    pixels = np.zeros((8, 10, 3), np.uint8)
    pixels[:, :5] = 255
    heif.from_bytes("RGB", (10, 8), pixels.tobytes()).save(folder / "train" / "cat" / "b.HEIC", quality=-1)
    image_CHW = load_folder(folder).train.images_NCHW[1]
    assert image_CHW.shape == (3, 8, 10)
    assert (image_CHW[:, :, :4] > 245).all() and (image_CHW[:, :, 6:] < 10).all()
    shutil.copy(folder / "train" / "cat" / "b.HEIC", folder / "train" / "cat" / "c.jpg")  # by another name
    with pytest.raises(BadInput, match=r"c.jpg cannot be decoded"):
        load_folder(folder)


def test_heic_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (folder / "train" / "cat" / "b.heif").touch()
    with pytest.raises(BadInput, match=r"b.heif can only be read with pillow-heif: pip install 'nlt\[heic\]', or"):
        load_folder(folder)


# ---- more than 8 bits


def save_grey(values: Any, kind: str = "<u2") -> Callable[[Path], None]:
    return lambda file: Image.fromarray(np.array(values).astype(kind)).save(file, format="TIFF")


def png16(values_HWC: Any) -> bytes:
    """A PNG of 16 bits with 1 (grey), 2 (and alpha), 3 (RGB) or 4 channels, which Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    values = np.asarray(values_HWC, ">u2")
    H, W, C = values.shape
    ihdr = struct.pack(">IIBBBBB", W, H, 16, {1: 0, 2: 4, 3: 2, 4: 6}[C], 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """Two classes, one image of 1 x 4 pixels each, the first one to be replaced."""
    top = tmp_path / "deep"
    for name in ("train/a/x.tif", "train/b/y.png", "test/a/z.png"):
        paint(top / name, (50, 50, 50), (4, 1))
    return top


@pytest.mark.parametrize(
    ("depth", "kind", "values", "expected"),  # v * 255 / (2^depth - 1), by hand
    [
        (16, "<u2", [0, 128, 129, 65535], [0, 0, 1, 255]),  # 257 a step: 128 / 257 < 0.5 < 129 / 257
        (16, ">u2", [257, 32767, 32768, 65406], [1, 127, 128, 254]),  # 127.498, 127.502, 254.498
        (12, "<u2", [0, 8, 9, 4095], [0, 0, 1, 255]),  # 0.498, 0.560
        (12, "<u2", [2047, 2048, 4000, 4087], [127, 128, 249, 255]),  # 127.47, 127.53, 249.08, 254.502
        (8, "<i4", [0, 1, 254, 255], [0, 1, 254, 255]),
        (32, "<i4", [0, 8421505, 2**31 - 1, 1], [0, 1, 127, 0]),  # 16843009 a step: 0.50000003, 127.49999997
        (1, "<f4", [0.0, 0.25, 0.5, 1.0], [0, 64, 128, 255]),  # 63.75, 127.5 to the even one
        (16, "<f4", [0.0, 128.25, 128.75, 65535.0], [0, 0, 1, 255]),  # 128.5 would be half a step
    ],
)  # fmt: skip
def test_deep_grey_is_scaled_exactly(deep: Path, depth: int, kind: str, values: list[Any], expected: list[int]) -> None:
    save_grey([values], kind)(deep / "train" / "a" / "x.tif")
    images_NCHW = load_folder(deep, depth=depth).train.images_NCHW
    assert images_NCHW[0, :, 0].tolist() == [expected] * 3
    assert (images_NCHW[1] == 50).all()  # 8 bits are left alone


def test_unsigned_32_bits(deep: Path) -> None:
    """Pillow reads them as signed."""
    file = deep / "train" / "a" / "x.tif"
    save_grey([[0, 1, 2**31 - 1, 2**31 - 1]], "<i4")(file)
    raw = file.read_bytes()
    # The tag for signed values becomes that for unsigned ones, and the last value the largest there is.
    signed, pixels = struct.pack("<HHIHH", 339, 3, 1, 2, 0), struct.pack("<4i", 0, 1, 2**31 - 1, 2**31 - 1)
    assert raw.count(signed) == raw.count(pixels) == 1
    raw = raw.replace(signed, struct.pack("<HHIHH", 339, 3, 1, 1, 0))
    file.write_bytes(raw.replace(pixels, struct.pack("<4I", 0, 1, 2**31, 2**32 - 1)))
    assert load_folder(deep, depth=32).train.images_NCHW[0, 0, 0].tolist() == [0, 0, 128, 255]


@pytest.mark.parametrize(
    ("depth", "kind", "values", "message"),
    [
        (12, "<u2", [0, 4096, 1, 2], r"from 0 to 4096, outside 0 .. 4095, the range of data.depth 12: set it to 13, or"),
        (8, "<i4", [0, -1, 1, 2], r"from -1 to 2, outside 0 .. 255, the range of data.depth 8: replace or remove"),
        (1, "<f4", [0, 1.5, 1, 0], r"from 0 to 1.5, outside 0 .. 1, .*: set it to 2, or"),
        (1, "<f4", [0, -0.5, 1, 0], r"from -0.5 to 1, outside 0 .. 1, .*: replace or remove"),
        (1, "<f4", [0, np.nan, 1, 0], r"from nan to nan, outside 0 .. 1, .*: replace or remove"),
        (16, "<f4", [0, np.inf, 1, 0], r"from 0 to inf, outside 0 .. 65535, .*: replace or remove"),
        (None, "<u2", [0, 1, 2, 3], r"more than 8 bits \(Pillow's mode I;16\): set data.depth .* e.g. 16, or 12"),
        (None, "<f4", [0, 1, 0, 1], r"more than 8 bits \(Pillow's mode F\): set data.depth"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_values_out_of_range_are_never_clipped(
    deep: Path, depth: int | None, kind: str, values: list[Any], message: str, on_bad_image: str
) -> None:
    save_grey([values], kind)(deep / "train" / "a" / "x.tif")
    with pytest.raises(BadInput, match=message) as caught:
        load_folder(deep, depth=depth, on_bad_image=on_bad_image)
    assert str(deep / "train" / "a" / "x.tif") in str(caught.value)


def test_white_is_zero_is_refused_where_pillow_forgets_it(deep: Path) -> None:
    """Pillow turns 8 bits round, and 16 not: the image would be a negative."""
    file = deep / "train" / "a" / "x.tif"
    Image.fromarray(np.zeros((1, 4), np.uint16)).save(file, tiffinfo={262: 0})
    with pytest.raises(BadInput, match="of which 0 is white: save it with 0 as black"):
        load_folder(deep, depth=16)
    Image.fromarray(np.full((1, 4), 255, np.uint8)).save(file, tiffinfo={262: 0})
    assert (load_folder(deep).train.images_NCHW[0] == 255).all()


def test_depth_of_pgm_png_and_turned_images(deep: Path) -> None:
    (deep / "train" / "a" / "w.pgm").write_bytes(b"P5 4 1 4095\n" + struct.pack(">4H", 0, 8, 9, 4095))
    (deep / "train" / "a" / "v.png").write_bytes(png16([[[0], [8], [9], [4095]]]))
    images_NCHW = load_folder(deep, depth=12).train.images_NCHW
    assert images_NCHW[:2, 0, 0].tolist() == [[0, 0, 1, 255]] * 2
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    for kind in ("PNG", "TIFF"):  # whatever it is called
        file = deep / "train" / "a" / "x.tif"
        Image.fromarray(np.array([[0], [257], [514], [771]], np.uint16)).save(file, format=kind, exif=exif)
        turned_CHW = load_folder(deep, depth=12).train.images_NCHW[2]
        assert turned_CHW.shape == (3, 1, 4)
        assert turned_CHW[0, 0].tolist() == [48, 32, 16, 0]  # 257 * 255 / 4095 = 16.0


def test_deep_grey_is_resized_after_it_was_scaled(deep: Path) -> None:
    values = np.random.RandomState(0).randint(0, 4096, (40, 30))
    save_grey(values)(deep / "train" / "a" / "x.tif")
    eight = Image.fromarray(((values * 510 + 4095) // 8190).astype(np.uint8))
    eight.save(deep / "train" / "a" / "y.tif")
    images_NCHW = load_folder(deep, depth=12, image_size=8).train.images_NCHW
    assert torch.equal(images_NCHW[0], images_NCHW[1]) and len(images_NCHW[0].unique()) > 9


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colour_keeps_the_high_byte(deep: Path, channels: int) -> None:
    """Pillow does so by itself: scaled, at most one grey value too dark, not clipped; `depth` is about grey only."""
    values = np.repeat(np.array([[0, 255, 32768, 65535]])[:, :, None], channels, 2)
    (deep / "train" / "b" / "y.png").write_bytes(png16(values))
    assert load_folder(deep).train.images_NCHW[1, :, 0].tolist() == [[0, 0, 128, 255]] * 3


# ---- the cache


def pixel(folder: Path) -> int:
    return int(load_folder(folder).train.images_NCHW[0, 0, 0, 0])


def two_classes(top: Path, kind: str, colour: int) -> Path:
    noise = np.random.RandomState(colour).randint(0, 256, (8, 10, 3)).astype(np.uint8)
    for name in ("train/a", "train/b", "test/a"):
        (top / name).mkdir(parents=True)
        noise[0, 0] = colour
        Image.fromarray(noise).save(top / name / f"x.{kind}")
    return top


def same_from_outside(first: Path, second: Path) -> None:
    """Give every file of `second` the size (bytes behind the image's end) and times of its like in `first`."""
    for file in second.rglob("x.*"):
        like = first / file.relative_to(second)
        size = max(file.stat().st_size, like.stat().st_size)
        for one in (file, like):
            one.write_bytes(one.read_bytes().ljust(size, b"\0"))
            os.utime(one, ns=(1_000_000_000, 1_000_000_000))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (like.stat().st_size, like.stat().st_mtime_ns)


@pytest.mark.parametrize("kind", ["bmp", "png", "jpg"])
def test_two_folders_that_look_the_same_from_outside(tmp_path: Path, kind: str) -> None:
    """Equal relative paths, sizes and times: the second one was given the first one's images."""
    one, two = two_classes(tmp_path / "one", kind, 10), two_classes(tmp_path / "two", kind, 200)
    same_from_outside(one, two)
    images = [load_folder(top).train.images_NCHW for top in (one, two, one)]
    for top, images_NCHW in zip((one, two, one), images, strict=True):
        with Image.open(top / "train" / "a" / f"x.{kind}") as image:
            assert np.array_equal(images_NCHW[0].numpy(), np.asarray(image).transpose(2, 0, 1))
    assert not torch.equal(images[0], images[1])
    assert len(list((tmp_path / "root" / "cache").iterdir())) == 2


@pytest.mark.parametrize("kind", ["bmp", "png", "jpg"])
def test_a_picture_replaced_in_place(tmp_path: Path, kind: str) -> None:
    one, two = two_classes(tmp_path / "one", kind, 10), two_classes(tmp_path / "two", kind, 200)
    same_from_outside(one, two)
    first = load_folder(one)
    shutil.copy2(two / "train" / "a" / f"x.{kind}", one / "train" / "a" / f"x.{kind}")
    second = load_folder(one)
    assert second.digest != first.digest
    assert not torch.equal(second.train.images_NCHW[0], first.train.images_NCHW[0])
    assert torch.equal(second.train.images_NCHW[1], first.train.images_NCHW[1])


def test_each_setting_and_decoder_has_its_own_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = folder.parent / "root" / "cache"
    for count, settings in enumerate([{}, {"image_size": 8}, {"depth": 16}, {"on_bad_image": "skip"}], start=1):
        load_folder(folder, **settings)
        assert len(list(caches.iterdir())) == count
    monkeypatch.setattr(decoding_module, "version", lambda name: "99")
    load_folder(folder)
    assert len(list(caches.iterdir())) == 5


def test_caches_of_other_versions_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = folder.parent / "root" / "cache"
    monkeypatch.setattr(decoding_module, "CACHE_VERSION", 1)
    load_folder(folder)
    (first,) = caches.iterdir()
    with np.load(first) as archive:
        wrong = {**archive, "images_MCHW": 255 - archive["images_MCHW"]}
    np.savez(first, **wrong)
    shutil.copy(first, caches / "image_folder-0123456789abcdef.npz")
    assert pixel(folder) == 254  # the cache was read
    monkeypatch.undo()
    assert pixel(folder) == 1


def test_a_file_that_changes_between_two_readings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_folder(folder)
    paint(folder / "train" / "cat" / "a.PNG", (2, 2, 2))  # so that it is decoded anew
    read, seen = decoding_module._read, []

    def changing(file: Path) -> bytes:
        raw = read(file)
        seen.append(file.name)
        if seen.count("9.png") == 1 and file.name == "9.png":  # right after the first reading
            paint(file, (3, 3, 3))
        return raw

    monkeypatch.setattr(decoding_module, "_read", changing)
    with pytest.raises(BadInput, match=r"dog/9.png was changed while it was read: try again"):
        load_folder(folder)
    assert len(list((folder.parent / "root" / "cache").iterdir())) == 1


def test_files_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = decoding_module._read, []
    monkeypatch.setattr(decoding_module, "_read", lambda file: (seen.append(file), read(file))[1])
    for _ in range(2):  # decoded, and from the cache
        seen.clear()
        load_folder(folder)
        assert len(seen) == len(set(seen)) == 5


def test_a_file_that_cannot_be_read_is_not_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(file: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(BadInput, match=r"a.PNG cannot be read .*Input/output error.*: make it readable or remove it"):
        load_folder(folder, on_bad_image="skip")


def test_too_little_memory_is_not_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", greedy)
    with pytest.raises(BadInput, match=r"a.PNG cannot be decoded for want of memory"):
        load_folder(folder, on_bad_image="skip")


def test_after_an_error_the_rest_is_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(50 * decoding_module.AT_ONCE):
        os.link(folder / "train" / "dog" / "9.png", folder / "train" / "dog" / f"more{i}.png")
    (folder / "train" / "cat" / "a.PNG").write_bytes(b"")
    decode, seen = decoding_module._decode, []

    def slow(*given: Any) -> Any:
        seen.append(given)
        time.sleep(0.001)
        return decode(*given)

    monkeypatch.setattr(decoding_module, "_decode", slow)
    with pytest.raises(BadInput, match="a.PNG cannot be decoded") as caught:  # whose frames live on
        load_folder(folder)
    count = len(seen)
    assert count < 45 * decoding_module.AT_ONCE
    time.sleep(0.05)
    assert len(seen) == count and caught.value, "threads are still at it"
