"""What is said of a data set before training: copies, twins, odd classes, images of one colour; worked by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nlt.data.checks import ALIKE, check_labelled, encoded_copies, near_duplicates
from nlt.data.labelled import Labelled, read_labelled


def labelled(labels: list[int], classes: tuple[str, ...] = ("cat", "dog"), **more: Any) -> Labelled:
    N = len(labels)
    fields = {
        "names": tuple(f"{i}.png" for i in range(N)),
        "sums": tuple(bytes([i // 256, i % 256]) for i in range(N)),
    } | more
    return Labelled(Path("top"), "folder", classes, np.array(labels), **fields)


def test_nothing_to_say() -> None:
    assert check_labelled(labelled([0, 1, 0, 1])) == []


def test_copies_with_different_labels_come_first() -> None:
    sums = (b"a", b"b", b"a", b"c", b"c", b"d", b"b")
    data = labelled([0, 1, 0, 0, 1, 1, 1], sums=sums, splits=("train", "test", "test", *["train"] * 4))
    issues = check_labelled(data)
    assert [(issue.kind, issue.rows) for issue in issues] == [
        ("duplicate_conflict", (3, 4)), ("duplicate", (0, 2)), ("duplicate", (1, 6))
    ]  # fmt: skip
    assert issues[0].sentence == (
        "'3.png', '4.png' are equal images with different labels ('cat', 'dog'): at most one of these is right"
    )
    assert issues[1].sentence == "'0.png', '2.png' are equal images with one label in test and train: keep one of them"


def test_many_copies_are_one_issue_that_names_three() -> None:
    (issue,) = check_labelled(labelled([0, 1, 0, 0, 0, 0, 1], sums=(b"a", b"b", *[b"a"] * 4, b"c")))
    assert issue.rows == (0, 2, 3, 4, 5) and issue.sentence.startswith("'0.png', '2.png', '3.png' and 2 more are equal")


def kinds(data: Labelled) -> dict[str, tuple[int, ...]]:
    return {issue.kind: issue.rows for issue in check_labelled(data)}


def test_classes_of_none_one_and_many() -> None:
    data = labelled([0] * 20 + [1], empty_classes=("emu",))
    assert kinds(data) == {"empty_class": (), "single_image": (20,), "imbalance": ()}
    sentences = [issue.sentence for issue in check_labelled(data)]
    assert sentences[0] == "the class 'emu' has no image: add some or remove it"
    assert "the class 'dog' has one image, 20.png" in sentences[1]
    assert "from 1 ('dog') to 20 ('cat')" in sentences[2]
    assert "imbalance" not in kinds(labelled([0] * 19 + [1])) and "imbalance" in kinds(labelled([0] * 40 + [1] * 2))


@pytest.mark.parametrize(
    ("names", "same"),
    [
        (("Cat", "cat", "dog"), True), (("cat", "cat ", "dog"), True), (("a  b", "a b", "dog"), True), (("é", "é", "dog"), True),
        (("STRASSE", "straße", "dog"), True), (("cat", "cats", "dog"), False), (("a-b", "a b", "dog"), False),
    ],
)  # fmt: skip
def test_names_that_look_the_same(names: tuple[str, ...], same: bool) -> None:
    found = kinds(labelled([0, 1, 2, 1, 1, 2, 0], names))
    assert found == ({"same_name": (0, 1, 3, 4, 6)} if same else {})
    if same:
        (issue,) = check_labelled(labelled([0, 1, 2, 1, 1, 2, 0], names))
        assert f"{names[0]!r} (2), {names[1]!r} (3) differ only" in issue.sentence
        assert issue.sentence.endswith(f"call all of them {names[1]!r}")


def test_what_was_seen_of_the_files() -> None:
    data = labelled([0, 1, 0, 1], one_colour=(1, 3), left_out=(("x.png", "empty", "cat"), ("y.png", "cut", "dog")))
    found = {issue.kind: issue for issue in check_labelled(data)}
    assert (
        found["one_colour"].rows == (1, 3)
        and "2 images are of one colour, '1.png', '3.png'" in found["one_colour"].sentence
    )
    assert (
        found["unreadable"].rows == () and "2 files cannot be read, first x.png (empty)" in found["unreadable"].sentence
    )


def test_real_files(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    for name in ("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.randint(0, 256, (9, 9, 3)).astype(np.uint8)).save(tmp_path / name)
    (tmp_path / "dog" / "e.png").write_bytes((tmp_path / "cat" / "a.png").read_bytes())
    Image.new("RGB", (9, 9)).save(tmp_path / "cat" / "z.png")
    (tmp_path / "emu").mkdir()
    data = read_labelled(tmp_path)
    assert data.names == ("cat/a.png", "cat/b.png", "cat/z.png", "dog/c.png", "dog/d.png", "dog/e.png")
    assert [(issue.kind, issue.rows) for issue in check_labelled(data)] == [
        ("duplicate_conflict", (0, 5)), ("one_colour", (2,)), ("empty_class", ())
    ]  # fmt: skip


# ---- near duplicates


def pairs_by_hand(features_ND: np.ndarray, threshold: float) -> set[tuple[int, int]]:
    centred = features_ND.astype(np.float64) - features_ND.astype(np.float64).mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    near = np.triu(centred @ centred.T >= threshold, 1)
    return {(int(i), int(j)) for i, j in zip(*near.nonzero(), strict=True)}


def with_twins(N: int, D: int, seed: int = 0, offset: float = 3.0) -> np.ndarray:
    """The first and the last fifth are near, row by row; the second and the last but one at a cosine of about 0.7."""
    rng = np.random.RandomState(seed)
    features_ND = rng.standard_normal((N, D))
    for i in range(N // 5):
        features_ND[N - N // 5 + i] = features_ND[i] + 0.2 * rng.standard_normal(D)
        features_ND[N - 2 * (N // 5) + i] = features_ND[i + N // 5] + rng.standard_normal(D)
    return (features_ND + offset).astype(np.float16)


@pytest.mark.parametrize(("N", "D"), [(50, 20), (1300, 400), (8300, 130)])
def test_the_same_pairs_as_by_brute_force(N: int, D: int) -> None:
    features_ND = with_twins(N, D)
    data = labelled([i % 2 for i in range(N)])
    issues = near_duplicates(features_ND, data)
    expected = pairs_by_hand(features_ND, ALIKE)
    assert {issue.rows for issue in issues} == expected and len(expected) >= N // 5
    assert [issue.rows for issue in issues] == sorted(expected)
    assert near_duplicates(features_ND, data, seed=1) == issues
    assert {issue.kind for issue in issues} == {"near_duplicate"}


def test_what_is_connected_is_one_group_and_labels_and_splits_are_told() -> None:
    rng = np.random.RandomState(0)
    features_ND = rng.standard_normal((40, 30)).astype(np.float32)
    for row, of in ((7, 3), (21, 7), (30, 29)):
        features_ND[row] = features_ND[of] + 0.05 * rng.standard_normal(30)
    data = labelled([0] * 21 + [1] * 19, splits=("train",) * 30 + ("test",) * 10)
    first, second = near_duplicates(features_ND, data)
    assert first.rows == (3, 7, 21) and second.rows == (29, 30)
    assert "are nearly the same with different labels ('cat', 'dog'): look" in first.sentence
    assert "'29.png', '30.png' are nearly the same in test and train: look" in second.sentence


def test_copies_alone_are_no_near_duplicates() -> None:
    features_ND = np.random.RandomState(0).standard_normal((30, 30)).astype(np.float32)
    features_ND[5] = features_ND[2]
    features_ND[9] = features_ND[8]
    data = labelled([0, 1] * 15)
    sums = list(data.sums)
    sums[5] = sums[2]
    assert [issue.rows for issue in near_duplicates(features_ND, labelled([0, 1] * 15, sums=tuple(sums)))] == [(8, 9)]


def test_the_threshold_is_the_cosine_of_centred_features() -> None:
    """Four rows around (5, 5): angles 0, 60, 180 and 240 degrees; the mean is (5, 5) itself."""
    angles = np.radians([0, 60, 180, 240])
    features_ND = 5 + np.stack([np.cos(angles), np.sin(angles)], 1)
    data = labelled([0, 1, 0, 1])
    assert [issue.rows for issue in near_duplicates(features_ND, data, threshold=0.499)] == [(0, 1), (2, 3)]
    assert near_duplicates(features_ND, data, threshold=0.501) == []


def test_all_alike_is_one_group_in_bounded_time() -> None:
    N = 6000
    rng = np.random.RandomState(0)
    features_ND = rng.standard_normal((1, 200)) + 0.01 * rng.standard_normal((N, 200))
    features_ND[: N // 2] *= -1  # so that the mean is not all there is
    groups = [issue.rows for issue in near_duplicates(features_ND.astype(np.float32), labelled([0, 1] * (N // 2)))]
    assert groups == [tuple(range(N // 2)), tuple(range(N // 2, N))]


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    near_duplicates(with_twins(700, 20), labelled([0, 1] * 350), progress=lambda *what: told.append(what))
    assert told == [("comparing features", 512, 700), ("comparing features", 700, 700)]


def test_one_picture_encoded_anew_is_found(tmp_path: Path) -> None:
    """Twelve pictures; one as JPEG of quality 50, one at twice its size, one in another split and class."""
    rng = np.random.RandomState(0)
    for i in range(12):
        coarse = Image.fromarray(rng.randint(0, 256, (6, 6, 3)).astype(np.uint8))
        picture = coarse.resize((48, 48), Image.Resampling.BICUBIC)
        for part in ("train/a", "train/b", "test/a"):
            (tmp_path / part).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / ("train/a" if i < 6 else "train/b") / f"{i:02}.png")
        if i == 1:
            picture.save(tmp_path / "train/a" / "x.jpg", quality=50)
        if i == 7:
            picture.resize((96, 96), Image.Resampling.BICUBIC).save(tmp_path / "test/a" / "y.webp", quality=80)
        if i == 4:  # flat and bright
            picture.point(lambda level: level * 0.5 + 100).save(tmp_path / "train/a" / "z.png")
    for name in ("p.png", "q.bmp"):  # of one colour, all but 3 levels
        Image.fromarray((np.indices((48, 48))[0] // 16).astype(np.uint8)).save(tmp_path / "train/b" / name)
    data = read_labelled(tmp_path)
    first, second, third = encoded_copies(data)
    assert len(data.one_colour) == 2
    assert [data.names[row] for row in third.rows] == ["train/a/04.png", "train/a/z.png"]
    assert [data.names[row] for row in first.rows] == ["test/a/y.webp", "train/b/07.png"]
    assert [data.names[row] for row in second.rows] == ["train/a/01.png", "train/a/x.jpg"]
    assert "nearly the same with different labels ('a', 'b') in test and train" in first.sentence
    assert encoded_copies(labelled([0, 1])) == []  # own numbers
