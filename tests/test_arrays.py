"""An npz as people have them: each form that is taken for what it can only be, by hand, and each that is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_data import arrays, write_npz

from nlt.data import arrays as arrays_module
from nlt.settings import BadInput

PLAIN = arrays()
TRAIN, TEST = PLAIN["train_images"], PLAIN["test_images"]  # (6, 2, 4, 3) of 0..143, (3, 2, 4, 3) of 0
LABELS = [0, 1, 2, 0, 1, 2]
ONE_HOT = np.eye(3)[LABELS]
WIDE = (
    (np.arange(6 * 6 * 5 * 3) % 251).astype(np.uint8).reshape(6, 6, 5, 3)
)  # no axis but the last is a number of channels
TWO = {
    "train_labels": np.array(LABELS) % 2,
    "test_labels": np.array([1, 1, 0]),
    "class_names": np.array(["cat", "dog"]),
}


def alpha(images: np.ndarray, value: int = 255) -> np.ndarray:
    return np.concatenate([images, np.full_like(images[..., :1], value)], -1)


@pytest.mark.parametrize(
    ("changed", "note"),
    [
        # labels
        ({"train_labels": np.array(LABELS)[:, None]}, "train_labels (6, 1) taken for (6,)"),
        ({"train_labels": np.array(LABELS)[None]}, "train_labels (1, 6) taken for (6,)"),
        ({"train_labels": np.array(LABELS, np.float32)}, "train_labels floats that are whole numbers taken for integers"),
        ({"test_labels": np.array([[2.0], [1.0], [0.0]])}, "test_labels (3, 1) taken for (3,); test_labels floats that are whole numbers taken for integers"),
        ({"train_labels": ONE_HOT}, "train_labels one-hot rows (6, 3) taken for labels in 0..2"),
        ({"train_labels": ONE_HOT.astype(bool)}, "train_labels one-hot rows (6, 3) taken for labels in 0..2"),
        ({"test_labels": ONE_HOT[[2, 1, 0]].astype(np.uint8)}, "test_labels one-hot rows (3, 3) taken for labels in 0..2"),
        ({"train_labels": np.array(["cat", "dog", "owl"] * 2)}, ""),
        ({"train_labels": np.array([b"cat", b"dog", b"owl"] * 2)}, "train_labels bytes taken for UTF-8"),
        ({"class_names": np.array([b"cat", b"dog", b"owl"])}, "class_names bytes taken for UTF-8"),
        # images: layout
        ({"train_images": alpha(WIDE), "test_images": WIDE[:3]}, "train_images taken without its alpha channel, 255 everywhere: RGB"),
        ({"train_images": alpha(WIDE[..., :1]), "test_images": WIDE[:3, ..., 0]}, "train_images taken without its alpha channel, 255 everywhere: grey"),
        ({"train_images": WIDE.transpose(0, 3, 1, 2), "test_images": WIDE[:3]}, "train_images (6, 3, 6, 5) taken for channels first, (N, C, H, W)"),
        ({"train_images": np.ascontiguousarray(WIDE[:, None, ..., 0]), "test_images": WIDE[:3, ..., 0]}, "train_images (6, 1, 6, 5) taken for channels first, (N, C, H, W)"),
        ({"train_images": alpha(WIDE).transpose(0, 3, 1, 2), "test_images": WIDE[:3]}, "train_images (6, 4, 6, 5) taken for channels first, (N, C, H, W); train_images taken without its alpha channel, 255 everywhere: RGB"),
        # images: values
        ({"train_images": TRAIN.astype(np.int64)}, "train_images int64 taken for uint8"),
        ({"train_images": TRAIN.astype(">u2")}, "train_images >u2 taken for uint8"),
        ({"train_images": TRAIN.astype(np.float16)}, "train_images floats that are whole numbers in 0..255 taken for uint8"),
        ({"train_images": TRAIN / 255}, "train_images floats in [0, 1] taken for 0..255"),
        ({"train_images": (TRAIN / 255).astype(np.float32)}, "train_images floats in [0, 1] taken for 0..255"),
        ({"train_images": (TRAIN / 255).astype(np.float16)}, "train_images floats in [0, 1] taken for 0..255"),
        ({"train_images": TRAIN / 255, "test_images": TEST.astype(float)}, "train_images floats in [0, 1] taken for 0..255"),
        ({"test_images": TEST.astype(float)}, ""),  # all 0, whatever the scale
        ({"test_images": TEST.astype(int)}, ""),
    ],
)  # fmt: skip
def test_what_is_unambiguous_is_taken_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], note: str
) -> None:
    """Each is the plain file in another form: nothing but the form may differ."""
    file = tmp_path / "mine.npz"
    loaded = write_npz(file, **changed).load(tmp_path)
    assert capsys.readouterr().err == (f"note: {file}: {note}\n" if note else "")
    assert loaded.classes == ("cat", "dog", "owl")
    assert loaded.train.labels_N.tolist() == LABELS and loaded.test.labels_N.tolist() == [2, 1, 0]
    grey = loaded.train.images_NCHW.shape[1] == 1
    expected = TRAIN if loaded.train.images_NCHW.shape[3] == 4 else WIDE[..., :1] if grey else WIDE
    for split, images in ((loaded.train, expected), (loaded.test, TEST if expected is TRAIN else expected[:3])):
        assert split.images_NCHW.dtype == torch.uint8 and split.images_NCHW.is_contiguous()
        assert np.array_equal(split.images_NCHW.permute(0, 2, 3, 1).numpy(), images)
        assert split.labels_N.dtype == torch.int64
    if expected is TRAIN:  # the digest is of what was taken
        assert loaded.digest == write_npz(tmp_path / "plain.npz").load(tmp_path).digest


@pytest.mark.parametrize(
    ("changed", "classes", "train", "test", "note"),
    [
        ({"class_names": None}, ("0", "1", "2"), LABELS, [2, 1, 0], "train_labels taken for classes named 0 to 2, as there are no class_names"),
        ({"class_names": None, "train_labels": np.array([0, 1, 0, 1, 0, 1]), "train_clean_labels": np.array(LABELS)}, ("0", "1", "2"), [0, 1, 0, 1, 0, 1], [2, 1, 0], "train_labels taken for classes named 0 to 2, as there are no class_names"),
        # a class that one-hot rows name and no image has
        ({"class_names": None, "train_labels": np.eye(4)[LABELS]}, ("0", "1", "2", "3"), LABELS, [2, 1, 0], "train_labels one-hot rows (6, 4) taken for labels in 0..3; train_labels taken for classes named 0 to 3, as there are no class_names"),
        ({"class_names": None, "train_labels": np.array([0, 1] * 3, bool), "test_labels": np.array([1, 1, 0])}, ("0", "1"), [0, 1] * 3, [1, 1, 0], "train_labels booleans taken for classes 0 (False) and 1 (True); train_labels taken for classes named 0 to 1, as there are no class_names"),
        (TWO | {"train_labels": np.array([0, 1] * 3, bool)}, ("cat", "dog"), [0, 1] * 3, [1, 1, 0], "train_labels booleans taken for classes 0 (False) and 1 (True)"),
        # texts in sorted order, not in that of their appearance; "10" before "9", as texts are
        ({"class_names": None, "train_labels": np.array(["owl", "cat", "owl", "cat", "eel", "eel"]), "test_labels": np.array(["owl", "eel", "owl"])}, ("cat", "eel", "owl"), [2, 0, 2, 0, 1, 1], [2, 1, 2], "train_labels taken for the names of 3 classes, in sorted order: cat, eel, owl"),
        ({"class_names": None, "train_labels": np.array(["9", "10"] * 3), "test_labels": np.array(["9", "9", "10"])}, ("10", "9"), [1, 0] * 3, [1, 1, 0], "train_labels taken for the names of 2 classes, in sorted order: 10, 9"),
        # a class that clean labels alone have
        ({"class_names": None, "train_labels": np.array(["owl", "cat"] * 3), "train_clean_labels": np.array(["owl", "bat"] * 3), "test_labels": np.array(["bat", "owl", "cat"])}, ("bat", "cat", "owl"), [2, 1] * 3, [0, 2, 1], "train_labels taken for the names of 3 classes, in sorted order: bat, cat, owl"),
        # class_names decide the order where they are given
        ({"class_names": np.array(["owl", "cat", "dog"]), "train_labels": np.array(["cat", "dog", "owl"] * 2), "test_labels": np.array([b"owl", b"owl", b"dog"])}, ("owl", "cat", "dog"), [1, 2, 0] * 2, [0, 0, 2], "test_labels bytes taken for UTF-8"),
    ],
)  # fmt: skip
def test_classes_of_an_npz(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], classes: Any, train: Any, test: Any, note: str
) -> None:  # fmt: skip
    loaded = write_npz(tmp_path / "mine.npz", **changed).load(tmp_path)
    assert loaded.classes == classes
    assert (loaded.train.labels_N.tolist(), loaded.test.labels_N.tolist()) == (train, test)
    assert capsys.readouterr().err == f"note: {tmp_path / 'mine.npz'}: {note}\n"


def test_clean_labels_go_through_the_same_door(tmp_path: Path) -> None:
    clean = np.array([[b"cat"], [b"dog"], [b"owl"], [b"dog"], [b"dog"], [b"owl"]])
    loaded = write_npz(tmp_path / "mine.npz", train_clean_labels=clean).load(tmp_path)
    assert loaded.train.clean_N is not None and loaded.train.clean_N.tolist() == [0, 1, 2, 1, 1, 2]


def test_every_level_comes_back_from_fractions_whatever_the_size_of_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays_module, "CHUNK", 100)  # 3 images of 32 pixels at a time, the last part is smaller
    levels = np.arange(256, dtype=np.uint8).reshape(8, 8, 4)
    for kind in (np.float16, np.float32, np.float64):
        settings = write_npz(tmp_path / "mine.npz", train_images=(levels / 255).astype(kind), test_images=levels[:3],
                             train_labels=np.arange(8) % 3)  # fmt: skip
        assert np.array_equal(settings.load(tmp_path).train.images_NCHW[:, 0].numpy(), levels)
    halves = np.arange(15 * 1024, dtype=np.uint16).view(np.float16)  # all of float16 from 0 to below 1
    settings = write_npz(tmp_path / "mine.npz", train_images=halves.reshape(15, 32, 32), train_labels=np.arange(15) % 3,
                         test_images=np.zeros((3, 32, 32), np.uint8))  # fmt: skip
    assert settings.load(tmp_path).train.images_NCHW.flatten().tolist() == [round(255 * float(x)) for x in halves]
    odd = levels.astype(float)
    odd[7, 7, 3] = 254.5  # in the last part
    settings = write_npz(tmp_path / "mine.npz", train_images=odd, test_images=levels[:3], train_labels=np.arange(8) % 3)
    with pytest.raises(BadInput, match="floats up to 254.5 that are no whole numbers"):
        settings.load(tmp_path)


def test_channels_last_as_ever_where_the_last_axis_may_be_channels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = np.arange(6 * 3 * 5 * 3, dtype=np.uint8).reshape(6, 3, 5, 3)
    loaded = write_npz(tmp_path / "mine.npz", train_images=both, test_images=both[:3]).load(tmp_path)
    assert loaded.train.images_NCHW.shape == (6, 3, 3, 5)
    assert torch.equal(loaded.train.images_NCHW, torch.from_numpy(both).permute(0, 3, 1, 2))
    assert capsys.readouterr().err == ""


def changed_at(images: np.ndarray, value: Any, kind: Any = float) -> np.ndarray:
    other = images.astype(kind)
    other[-1, -1, -1, -1] = value
    return other


FLOATS = TRAIN / 255


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        # labels
        ({"train_labels": np.array([0, 1, 2, 0, 1, 1.5])}, r"train_labels holds 1\.5, which is no whole number: save integers"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, np.nan])}, "train_labels holds nan, which is no whole number"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, np.inf])}, "train_labels holds inf, which is no whole number"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, 1e300])}, r"train_labels must lie in 0\.\.2"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, -1.0])}, r"train_labels must lie in 0\.\.2.*found -1"),
        ({"train_labels": ONE_HOT * 2}, "train_labels of shape .* must be one-hot, .*which row 0 is not: save one label"),
        ({"train_labels": ONE_HOT - np.eye(3)[[1, 2, 0, 1, 2, 0]]}, "train_labels .* must be one-hot, .*which row 0 is not"),
        ({"train_labels": np.vstack([ONE_HOT[:5], [[0.9, 0.1, 0]]])}, "train_labels .* must be one-hot, .*which row 5 is not"),
        ({"train_labels": np.vstack([ONE_HOT[:5], [[1, 0, 1]]])}, "train_labels .* must be one-hot, .*which row 5 is not"),
        ({"train_labels": np.vstack([ONE_HOT[:4], [[0, 0, 0]], ONE_HOT[5:]])}, "train_labels .* must be one-hot, .*which row 4 is not"),
        ({"train_labels": np.vstack([ONE_HOT[:5], [[0, np.nan, 1]]])}, "train_labels .* must be one-hot, .*which row 5 is not"),
        ({"train_labels": np.eye(4)[LABELS]}, "train_labels is of 4 classes, found 3 in the file"),
        ({"train_labels": ONE_HOT[:5]}, "train_labels must have one label for each of the 6 images, found 5"),
        ({"train_labels": np.array(LABELS * 2)[:, None]}, "train_labels must have one label for each of the 6 images, found 12"),
        ({"train_labels": np.array([["cat", "dog"]] * 6)}, r"train_labels must be class names of shape \(N,\), found <U3 of shape \(6, 2\)"),
        ({"train_labels": np.array(LABELS, bool)}, "train_labels is of 2 classes, found 3 in the file"),
        ({"train_labels": np.array(["cat", "dog", "owl", "cat", "dog", "emu"])}, "train_labels holds 'emu', which is none of the 3 classes: correct it"),
        ({"train_labels": np.array(["cat", "dog", "owl", "cat", "dog", ""])}, "train_labels holds '', which is none of the 3 classes"),
        ({"train_labels": np.array([b"cat", b"dog", b"owl", b"cat", b"dog", b"\xff"])}, "train_labels holds bytes that are not UTF-8"),
        ({"test_labels": np.array(["cat", "dog", "emu"])}, "test_labels holds 'emu', which is none of the 3 classes"),
        ({"train_labels": np.array(["cat"] * 6, object)}, r"train_labels holds pickled objects, which are never loaded: save a plain array, texts by \.astype\(str\)"),
        ({"train_labels": np.array(LABELS, "M8[s]")}, "train_labels must be integers of shape"),
        ({"train_clean_labels": np.array([0, 1, 2, 0, 1, 0.5])}, r"train_clean_labels holds 0\.5"),
        # class names
        ({"class_names": np.array([["cat"], ["dog"], ["owl"]])}, r"class_names must be \(K,\) strings .*shape \(3, 1\)"),
        ({"class_names": np.array([b"cat", b"dog", b"\xff"])}, "class_names holds bytes that are not UTF-8"),
        ({"class_names": None, "test_labels": np.array([0, 1, 3])}, r"test_labels must lie in 0\.\.2.*found 3"),
        ({"class_names": None, "train_labels": np.array(LABELS) + 1}, "train_labels goes up to 3 without 0, and there are no class_names: add them, or number"),
        ({"class_names": None, "train_labels": np.array([0, 1, 3] * 2)}, "train_labels goes up to 3 without 2, and there are no"),
        ({"class_names": None, "train_labels": np.array([0, 1, 2**64 - 1] * 2, np.uint64)}, "train_labels goes up to 18446744073709551615 without 2"),
        ({"class_names": None, "train_labels": np.array(LABELS) - 1}, "train_labels holds -1: number the classes from 0"),
        ({"class_names": None, "train_labels": np.zeros(6, int)}, "train_labels is of one class only"),
        ({"class_names": None, "train_labels": np.array(["cat", "dog"] * 3)}, "train_labels are class names and test_labels numbers: save both alike, or an array class_names"),
        ({"class_names": None, "test_labels": np.array(["0", "1", "2"])}, "test_labels are class names and train_labels numbers"),
        ({"class_names": None, "train_clean_labels": np.array(["cat", "dog"] * 3)}, "train_clean_labels are class names and train_labels numbers"),
        ({"class_names": None, "train_labels": ONE_HOT, "train_clean_labels": np.eye(4)[LABELS]}, "train_clean_labels is of 4 classes and train_labels of 3"),
        ({"class_names": None, "test_labels": np.eye(4)[[0, 1, 2]]}, "test_labels is of 4 classes, found 3 in the file"),
        ({"class_names": None, "train_labels": np.array(["cat", "d\nog"] * 3), "test_labels": np.array(["cat"] * 3)}, "train_labels holds a class name that is empty, no text or holds control"),
        ({"class_names": None, "train_labels": np.array(["cat", "\ud800"] * 3), "test_labels": np.array(["cat"] * 3)}, "train_labels holds a class name that is empty, no text"),
        ({"class_names": None, "train_labels": np.array(["cat", "dog"] * 3), "test_labels": np.array(["cat", "dog", "emu"])}, "test_labels holds 'emu', which is none of the 2 classes"),
        # images: layout
        ({"train_images": alpha(WIDE, 254), "test_images": WIDE[:3]}, "train_images has an alpha channel that is not 255 everywhere: composite the images"),
        ({"train_images": changed_at(alpha(WIDE), 0, np.uint8), "test_images": WIDE[:3]}, "train_images has an alpha channel that is not 255"),
        ({"train_images": changed_at(alpha(WIDE[..., :1]), 0, np.uint8)}, "train_images has an alpha channel that is not 255"),
        ({"train_images": np.zeros((6, 3, 5, 4), np.uint8)}, r"train_images must be of channels first or last, which this shape leaves open: save \(N, H, W, C\).*\(6, 3, 5, 4\)"),
        ({"train_images": np.zeros((6, 5, 5, 5), np.uint8)}, r"train_images must be uint8 of shape \(N, H, W, C\).*\(6, 5, 5, 5\)"),
        ({"train_images": np.zeros((6, 2, 4, 3), bool)}, "train_images must be uint8 .*found bool"),
        # images: values
        ({"train_images": changed_at(FLOATS, np.nan)}, "train_images holds NaN or infinity: replace such pixels"),
        ({"train_images": changed_at(TRAIN, np.inf)}, "train_images holds NaN or infinity"),
        ({"train_images": changed_at(FLOATS, -0.5)}, r"train_images holds -0\.5, which is negative: map the values to 0\.\.255 and save them as uint8"),
        ({"train_images": changed_at(TRAIN, -1, int)}, "train_images holds -1, which is negative"),
        ({"train_images": changed_at(TRAIN, 0.5)}, r"train_images holds floats up to 142 that are no whole numbers: map the values"),
        ({"train_images": changed_at(FLOATS, 1.001)}, r"train_images holds floats up to 1\.001 that are no whole numbers"),
        ({"train_images": changed_at(TRAIN, 256)}, "train_images holds 256, more than 255"),
        ({"train_images": changed_at(TRAIN, 4095, np.uint16)}, "train_images holds 4095, more than 255: map the values .*nothing is clipped"),
        ({"train_images": TRAIN.astype(int) % 2}, "train_images holds only 0 and 1, which may be black and white or nearly black: save"),
        ({"train_images": FLOATS, "test_images": changed_at(TEST, 9)}, r"train_images lies in \[0, 1\] and test_images in 0\.\.255, both as floats: save both"),
        ({"train_images": TRAIN.astype(float), "test_images": changed_at(TEST, 1)}, r"test_images lies in \[0, 1\] and train_images in 0\.\.255, both as floats"),
    ],
)  # fmt: skip
def test_what_could_be_two_things_or_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        write_npz(tmp_path / "mine.npz", **changed).load(tmp_path)
    assert str(tmp_path / "mine.npz") in str(caught.value) and "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""


def test_a_note_is_one_line_and_said_once_in_a_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = write_npz(tmp_path / "mi\nne.npz", train_labels=ONE_HOT)
    settings.load(tmp_path)
    settings.load(tmp_path)  # as each run of a sweep does
    assert capsys.readouterr().err.count("\n") == 1
