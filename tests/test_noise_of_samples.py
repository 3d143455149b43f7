"""Noise that depends on more than the class, or comes out of a file; and long-tailed data.

N samples, K classes, D numbers of an image, L labels in a file.
"""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from nlt.data import Dataset, Digits, Npz, Samples
from nlt.data.label_file import read_label_file
from nlt.data.samples import long_tailed
from nlt.noise import Human, InstanceDependent, Matrix, Noise, flip_rates, instance_dependent, label_chances
from nlt.prepare import fingerprint, prepare
from nlt.reading import check
from nlt.settings import BadInput
from nlt.spec import Experiment

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOUR = ("cat", "dog", "horse", "deer")
# Images 0 to 9 of a data set with ten classes; its cats, dogs, horses and deer are CIFAR-4.
TRUE = [3, 6, 5, 7, 4, 3, 0, 5, 7, 4]
GIVEN = [3, 6, 3, 7, 9, 5, 0, 5, 6, 4]


def dataset(classes: tuple[str, ...] = TEN, true: list[int] | None = None) -> Dataset:
    """CIFAR-10 in small, or of it the images of some classes."""
    kept = [i for i, k in enumerate(TRUE if true is None else true) if TEN[k] in classes]
    labels_N = torch.tensor([classes.index(TEN[(true or TRUE)[i]]) for i in kept])
    train = Samples(torch.zeros(len(kept), 1, 2, 2, dtype=torch.uint8), torch.tensor(kept), labels_N, labels_N)
    return Dataset("cifar", classes, train, train, "0" * 16, (), "", TEN, 10)


# ---- instance_dependent


def test_label_chances_by_hand() -> None:
    """x W = (?, ln 1, ln 3) and (?, ln 4, ln 1): softmax without class 0 is (1/4, 3/4) and (4/5, 1/5), times q."""
    W_DK = torch.tensor([[7.0, 0.0, math.log(3)], [9.0, math.log(4), 0.0]], dtype=torch.float64)
    q_B = torch.tensor([0.4, 0.1], dtype=torch.float64)
    p_BK = label_chances(torch.eye(2, dtype=torch.float64), W_DK, 0, q_B)
    assert p_BK.tolist() == [pytest.approx([0.6, 0.1, 0.3]), pytest.approx([0.9, 0.08, 0.02])]
    p_BK = label_chances(torch.eye(2, dtype=torch.float64)[:1], W_DK, 2, q_B[:1])
    assert p_BK[0].tolist() == pytest.approx([0.4 * math.exp(7) / (math.exp(7) + 1), 0.4 / (math.exp(7) + 1), 0.6])


def test_flip_rates_by_hand() -> None:
    """N(.5, .1^2): the quantile at .8413 lies one deviation above; cut off at .2 and .0 it ends two and none away."""
    assert flip_rates(np.array([0.5, 0.841345, 0.0, 1.0]), 0.5) == pytest.approx([0.5, 0.6, 0.0, 1.0], abs=1e-6)
    assert flip_rates(np.array([0.0, 0.5, 1.0]), 0.2) == pytest.approx([0.0, 0.2, 0.4])
    # Between -2 and 2 deviations lies .9545; a quarter of it below -.5 ... : Phi(z) = .02275 + .25 * .9545 = .261375
    assert flip_rates(np.array([0.25]), 0.2) == pytest.approx([0.2 - 0.1 * 0.639105], abs=1e-5)
    assert flip_rates(np.array([0.1, 0.9]), 0.0).tolist() == [0, 0]
    assert flip_rates(np.array([0.1, 0.9]), 1.0).tolist() == [1, 1]


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.4, 0.9])
def test_mean_and_deviation_of_the_flip_rates(rate: float) -> None:
    q_N = flip_rates(np.random.RandomState(0).random_sample(20_000), rate)
    assert q_N.min() >= 0 and q_N.max() <= 1
    assert abs(q_N.mean() - rate) < 4 * 0.1 / math.sqrt(20_000)
    assert rate != 0.4 or abs(q_N.std() - 0.1) < 0.003


def pictures(N: int = 3000, K: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images_NCHW = torch.randint(0, 256, (N, 3, 2, 2), generator=generator, dtype=torch.uint8)
    return images_NCHW, torch.randint(0, K, (N,), generator=generator)


def test_instance_dependent_is_algorithm_2_sample_by_sample() -> None:
    """The paper's loop: of each sample its flip rate, its projection by the matrix of its class, and its label."""

    def stream(number: int) -> np.random.RandomState:
        return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([7, number])))

    images_NCHW, clean_N = pictures(60)
    q_N, uniform_N = flip_rates(stream(0).random_sample(60), 0.5), stream(1).random_sample(60)
    W_KDK = [stream(2 + k).standard_normal((12, 5)) for k in range(5)]
    given = []
    for i in range(60):
        y = int(clean_N[i])
        logits = [sum(images_NCHW[i].flatten()[d].item() / 255 * W_KDK[y][d][k] for d in range(12)) for k in range(5)]
        weights = [0 if k == y else math.exp(logits[k]) for k in range(5)]
        p = [1 - q_N[i] if k == y else q_N[i] * weights[k] / sum(weights) for k in range(5)]
        given.append(next(k for k in range(5) if uniform_N[i] < sum(p[: k + 1])))
    assert instance_dependent(images_NCHW, clean_N, 5, 0.5, 7).tolist() == given
    assert 20 < sum(a != b for a, b in zip(given, clean_N.tolist(), strict=True)) < 40


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.2, 0.6, 1.0])
def test_instance_dependent_rate_is_the_share_of_wrong_labels(rate: float) -> None:
    """Cut off at 0 and 1, as the authors have it, 5 % would become 10 and 20 % 20.6."""
    images_NCHW, clean_N = pictures(20_000)
    given_N = instance_dependent(images_NCHW, clean_N, 5, rate, 1)
    share = (given_N != clean_N).double().mean().item()
    assert abs(share - rate) <= 4 * math.sqrt(rate * (1 - rate) / 20_000)
    assert given_N.dtype == torch.int64 and 0 <= int(given_N.min()) <= int(given_N.max()) < 5


def test_images_that_look_alike_are_mislabelled_alike() -> None:
    images_NCHW, clean_N = pictures(2)
    images_NCHW, clean_N = images_NCHW.repeat_interleave(2000, 0), torch.zeros(4000, dtype=torch.int64)
    given_N = instance_dependent(images_NCHW, clean_N, 5, 1.0, 3)
    one_K, other_K = (torch.bincount(given_N[half], minlength=5) / 2000 for half in (slice(2000), slice(2000, None)))
    assert abs(one_K - other_K).max() > 0.1, "both images are taken for the same classes"
    again_N = instance_dependent(images_NCHW, clean_N, 5, 1.0, 3)
    assert torch.equal(given_N, again_N)


def test_instance_dependent_labels_depend_on_seed_image_and_place_alone() -> None:
    images_NCHW, clean_N = pictures(1000)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    given_N = instance_dependent(images_NCHW, clean_N, 5, 0.5, 0)
    assert torch.equal(before, torch.get_rng_state())
    other_N = instance_dependent(images_NCHW, clean_N, 5, 0.5, 1)
    assert 0.2 < (given_N == other_N).double().mean() < 0.6
    changed_N, changed_NCHW = clean_N.clone(), images_NCHW.clone()
    changed_N[::2], changed_NCHW[::2] = 4, 0
    assert torch.equal(instance_dependent(changed_NCHW, changed_N, 5, 0.5, 0)[1::2], given_N[1::2])


def test_instance_dependent_labels_stay_what_they_were() -> None:
    """A published corruption must come out the same in the next version of this project."""
    images_NCHW, clean_N = pictures(16)
    assert clean_N.tolist() == [1, 0, 2, 4, 2, 2, 2, 4, 4, 3, 0, 1, 4, 3, 3, 4]
    assert instance_dependent(images_NCHW, clean_N, 5, 0.5, 0).tolist() == [
        3,
        1,
        2,
        4,
        2,
        3,
        4,
        3,
        4,
        4,
        4,
        3,
        4,
        4,
        1,
        0,
    ]


# ---- matrix from a file

T = [[0.75, 0.25], [0.125, 0.875]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("T.csv", b"0.75,0.25\n0.125,0.875\n"),
        ("T.csv", b"\xef\xbb\xbf0.75; 0.25\r\n\r\n 0.125 ;0.875"),
        ("T.CSV", b"0.75\t0.25\n0.125  0.875\n"),
    ],
)
def test_a_matrix_out_of_a_csv(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    noise = Matrix(path=str(tmp_path / name))
    assert noise.matrix(("a", "b")).tolist() == T
    assert str(noise) == "matrix T"


def test_a_matrix_out_of_an_npy_draws_the_labels_of_its_rows(tmp_path: Path) -> None:
    K = 4
    rows = tuple(tuple(0.7 if i == j else 0.1 for j in range(K)) for i in range(K))
    np.save(tmp_path / "T.npy", np.array(rows))
    data, by_file = dataset(FOUR), Matrix(path=str(tmp_path / "T.npy"), seed=5)
    assert torch.equal(by_file.draw_labels(data), Matrix(rows=rows, seed=5).draw_labels(data))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("T.csv", b"0.75,0.25\n", r"T.csv has 1 rows of \[2\] numbers: give 2 rows of 2 numbers, one per .*\(a, b\)"),
        ("T.csv", b"0.75,0.25\n0.1,0.8\n", "T.csv: row 1 sums to 0.9: each row must sum to 1"),
        ("T.csv", b"a,b\n0.75,0.25\n0,1\n", "T.csv: line 1 holds 'a', which is no number: leave names out"),
        ("T.csv", b"1.5,-0.5\n0,1\n", r"T.csv: row 0, column 0 \(from 0\) is 1.5: write a probability"),
        ("T.csv", b"nan,0.5\n0,1\n", r"T.csv: row 0, column 0 \(from 0\) is nan"),
        ("T.csv", b"\n", "T.csv is empty: write a row"),
        ("T.csv", b"\xff\xff", "T.csv: byte 0 is not UTF-8"),
        ("T.npy", b"PK", r"T.npy cannot be read \(.*\): write it with numpy.save"),
        ("T.txt", b"1", r"noise.path: .*T.txt is no .csv and no .npy"),
        (None, b"", r"noise.path: .*T.none is not there: name a file"),
    ],
)
def test_a_matrix_file_that_will_not_do(tmp_path: Path, name: str | None, content: bytes, message: str) -> None:
    if name is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        Matrix(path=str(tmp_path / (name or "T.none"))).matrix(("a", "b"))


def test_an_npy_of_another_form_is_no_matrix(tmp_path: Path) -> None:
    for values in (np.eye(2).astype("U9"), np.zeros(4), np.zeros((0, 0)), np.array([[{}]], object)):
        np.save(tmp_path / "T.npy", values)
        with pytest.raises(BadInput, match=r"T.npy (must hold a matrix of numbers, found|cannot be read)"):
            Matrix(path=str(tmp_path / "T.npy")).matrix(("a", "b"))


def test_rows_or_a_path_one_of_the_two(tmp_path: Path) -> None:
    for text in ('{"name": "matrix"}', '{"name": "matrix", "rows": [[1]], "path": "x.csv"}'):
        with pytest.raises(ValidationError, match="give rows or path, one of the two"):
            TypeAdapter(Noise).validate_json(text)
    assert Matrix(rows=((1.0, 0.0), (0.0, 1.0))).deciding().keys() == {"name", "rows", "seed"}  # as before `path`


# ---- human


def write(file: Path, arrays: Any) -> Path:
    """Labels in the form that the file's suffix names."""
    match file.suffix:
        case ".pt":
            torch.save(arrays, file, _use_new_zipfile_serialization="old" not in file.name)
        case ".npy":
            np.save(file, arrays, allow_pickle=True)
        case ".npz":
            np.savez(file, **arrays)
        case ".csv":
            (key,) = (key for key in arrays if key != "clean_label")
            rows = [f"{i},{k}\n" for i, k in enumerate(arrays[key].tolist())]
            file.write_text(f"id,{key}\n" + "".join(rows[::-1]))
    return file


ARRAYS = {"worse_label": np.array(GIVEN), "clean_label": np.array(TRUE)}
every_form = pytest.mark.parametrize("name", ["new.pt", "old.pt", "h.npy", "h.npz", "h.csv"])


@every_form
def test_human_labels_by_hand(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of CIFAR-4 in small the images 0, 2, 3, 4, 5, 7, 8, 9: a dog is called a cat, a cat a dog, a deer a truck and a
    horse a frog, and these two labels nobody who knows four classes could give."""
    noise = Human(path=str(write(tmp_path / name, ARRAYS)), key="worse_label")
    assert noise.draw_labels(dataset()).tolist() == GIVEN
    assert capsys.readouterr().err == ""
    #                                        ids: 0  2  3  4   5  7  8   9
    assert noise.draw_labels(dataset(FOUR)).tolist() == [0, 0, 2, -1, 1, 1, -1, 3]
    told = capsys.readouterr().err
    assert f"{name}: left out 2 of 8 training images, whose label is none of cat, dog, horse, deer" in told
    assert noise.asked(dataset()) is None and str(noise) == "human worse_label"


def test_a_single_array_needs_no_key_and_tensors_are_arrays(tmp_path: Path) -> None:
    for name, arrays in (("h.npy", np.array(GIVEN, np.uint8)), ("h.pt", torch.tensor(GIVEN)), ("h.npz", {"x": GIVEN})):
        noise = Human(path=str(write(tmp_path / name, arrays)))
        assert noise.draw_labels(dataset()).tolist() == GIVEN
        assert str(noise) == "human h"


def test_human_labels_by_name_and_of_other_numbers(tmp_path: Path) -> None:
    words = np.array([TEN[k] for k in GIVEN])
    noise = Human(path=str(write(tmp_path / "words.csv", {"label": words})))
    assert noise.draw_labels(dataset()).tolist() == GIVEN
    backwards = Human(path=str(write(tmp_path / "back.npy", 9 - np.array(GIVEN))), class_names=TEN[::-1])
    assert backwards.draw_labels(dataset()).tolist() == GIVEN
    assert backwards.draw_labels(dataset(FOUR)).tolist() == [0, 0, 2, -1, 1, 1, -1, 3]


def test_big_endian_columns_and_texts_are_unpickled_too(tmp_path: Path) -> None:
    columns = {"a": np.array(GIVEN, ">i4"), "b": np.asfortranarray(np.array(GIVEN)[:, None]), "c": np.array(TEN)[GIVEN]}
    for name in ("h.npy", "h.pt"):
        file = write(tmp_path / name, columns)
        for key in columns:
            assert read_label_file(file, file.read_bytes(), key, TEN).values.tolist() == GIVEN


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("name", ["new.pt", "old.pt", "h.npy"])
def test_nothing_but_arrays_is_unpickled(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, ARRAYS | {"evil": Touch(tmp_path / "made")})
    with pytest.raises(BadInput, match=f"{name} cannot be read as labels .*never loaded"):
        Human(path=str(file), key="worse_label").draw_labels(dataset())
    assert not (tmp_path / "made").exists()
    write(tmp_path / name, {"worse_label": np.array([{}, 1], object)})
    with pytest.raises(BadInput, match="holds objects, which are no labels"):
        Human(path=str(file), key="worse_label").draw_labels(dataset())


@pytest.mark.parametrize(
    ("name", "content", "more", "message"),
    [
        ("h.npy", ARRAYS, {}, r"noise.key: .*h.npy holds 'worse_label', 'clean_label': say which one"),
        ("h.pt", ARRAYS, {"key": "worst"}, r"noise.key: .*h.pt has no array 'worst', it holds 'worse_label'"),
        ("h.npy", np.array(GIVEN), {"key": "x"}, "has no array 'x', it holds one array without a name"),
        ("h.npy", np.array(GIVEN[:9]), {}, "h.npy holds 9 labels and the data set 10 training images"),
        ("h.npy", np.array([*GIVEN[:9], 10]), {}, r"its array holds the class 10 and there are 10 .*noise.class_names"),
        ("h.npy", np.array([*GIVEN[:9], -1]), {}, "its array holds the class -1"),
        ("h.npy", np.array(GIVEN) + 0.5, {}, "which is no whole number"),
        ("h.npy", np.array(3), {}, "is no array of labels"),
        ("h.npy", np.array(["cow"] * 10), {}, "holds 'cow', which is none of the classes 'airplane'"),
        ("h.npz", ARRAYS | {"clean_label": np.array([3, 5, *TRUE[2:]])}, {"key": "worse_label"},
         "h.npz: clean_label says that image 1 is 'dog' and the data set that it is 'frog'"),
        ("h.npy", np.zeros(10, int), {"class_names": ("x", "y")}, "gives no training image a label of airplane"),
        ("h.csv", b"id,label\n0,cat\n", {}, "h.csv has no label for 9 of 10 training images, of the id 1 first"),
        ("h.csv", b"id,label\n0,cat\n0,dog\n", {}, "h.csv: lines 2 and 3 have one id, 0: keep one"),
        ("h.csv", b"id,label\n-1,cat\n", {}, "line 2 has the id '-1': write a whole number from 0"),
        ("h.csv", b"id,label\n1,\n", {}, "line 2 has no label: write one"),
        ("h.csv", b"id,label\n1,cow\n", {}, "label holds 'cow', which is none of the classes"),
        ("h.csv", b"nr,label\n1,cat\n", {}, "has no column 'id', only 'nr', 'label': write id into the header"),
        ("h.csv", b"id,worst\n1,cat\n", {}, "has no column 'label', only 'id', 'worst': set noise.key"),
        ("h.bin", b"x", {}, "h.bin is no file of labels by its name: name a .pt, .npy, .npz or .csv file"),
        ("h.pt", b"x", {}, r"h.pt cannot be read as labels \("),
        ("h.npz", b"PK", {}, r"h.npz cannot be read as labels \("),
        ("h.npy", b"", {}, r"h.npy cannot be read as labels \("),
    ],
)  # fmt: skip
def test_human_labels_that_will_not_do(
    tmp_path: Path, name: str, content: Any, more: dict[str, Any], message: str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        write(tmp_path / name, content)
    with pytest.raises(BadInput, match=message):
        Human(path=str(tmp_path / name), **more).draw_labels(dataset())


def spec_of(tmp_path: Path, noise: dict[str, Any], **data: Any) -> Experiment:
    return check(tiny(data={"name": "npz", "path": str(tmp_path / "mine.npz"), **data}, noise=noise), "x.json")


def save_part(tmp_path: Path, **more: Any) -> None:
    """CIFAR-4 in small as an npz."""
    four = dataset(FOUR)
    images_NHW = np.arange(len(four.train) * 64, dtype=np.uint8).reshape(-1, 8, 8)
    labels_N = four.train.labels_N.numpy()
    np.savez(tmp_path / "mine.npz", train_images=images_NHW, train_labels=labels_N, test_images=images_NHW,
             test_labels=labels_N, class_names=np.array(FOUR), **more)  # fmt: skip


def test_human_labels_of_a_part_of_cifar_by_train_ids(tmp_path: Path) -> None:
    write(tmp_path / "h.npy", ARRAYS)
    noise = {"name": "human", "path": str(tmp_path / "h.npy"), "key": "worse_label", "class_names": list(TEN)}
    save_part(tmp_path)
    with pytest.raises(BadInput, match="h.npy holds 10 labels and the data set 8 training images.*train_ids"):
        prepare(spec_of(tmp_path, noise), 0, "cpu", "data")
    save_part(tmp_path, train_ids=dataset(FOUR).train.ids_N.numpy())
    prepared = prepare(spec_of(tmp_path, noise), 0, "cpu", "data")
    assert prepared.train.ids_N.tolist() == [0, 2, 3, 5, 7, 9]
    assert prepared.train.labels_N.tolist() == [0, 0, 2, 1, 1, 3]
    assert prepared.train.clean_N is not None and prepared.train.clean_N.tolist() == [0, 1, 2, 0, 1, 3]
    assert prepared.T_KK is None
    assert prepared.empirical_T_KK is not None and prepared.empirical_T_KK[0].tolist() == [0.5, 0.5, 0, 0]
    two = prepare(spec_of(tmp_path, noise, classes=["deer", "dog"]), 0, "cpu", "data").train
    assert (two.ids_N.tolist(), two.labels_N.tolist()) == ([7, 9], [1, 0])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1], r"train_ids must be \(8,\) integers, one for each training image"),
        (np.arange(8) / 2, "train_ids must be"),
        ([0, 1, 2, 3, 4, 5, 6, -7], "train_ids holds -7: ids are whole numbers from 0"),
        ([0, 1, 2, 3, 4, 5, 6, 6], "train_ids holds 6 more than once"),
    ],
)
def test_train_ids_that_will_not_do(tmp_path: Path, ids: Any, message: str) -> None:
    save_part(tmp_path, train_ids=np.array(ids))
    with pytest.raises(BadInput, match=message):
        Npz(path=str(tmp_path / "mine.npz")).load(tmp_path)


@pytest.mark.parametrize("kind", ["human", "matrix"])
def test_a_changed_file_is_another_experiments(tmp_path: Path, kind: str) -> None:
    save_part(tmp_path)
    if kind == "human":
        noise = {"name": "human", "path": str(write(tmp_path / "h.npz", {"a": np.zeros(8, int)}))}
    else:
        noise = {"name": "matrix", "path": str(tmp_path / "T.csv")}
        (tmp_path / "T.csv").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    spec = spec_of(tmp_path, noise)
    plain = spec_of(tmp_path, {"name": "none"}).load_data(tmp_path)
    before, first = spec.load_data(tmp_path), fingerprint(spec, prepare(spec, 0, "cpu", tmp_path))
    assert before.digest != plain.digest and first["data set"] == before.digest
    path = Path(noise["path"])
    path.write_bytes(path.read_bytes() + (b"\n" if kind == "matrix" else b"\0"))  # the same labels all the same
    after = fingerprint(spec, prepare(spec, 0, "cpu", tmp_path))
    assert after["data set"] != first["data set"] and after["set of training labels"] == first["set of training labels"]
    # What was read with the data is what counts, on a machine that has no such file too.
    path.unlink()
    assert fingerprint(spec, prepare(spec, 0, "cpu", tmp_path, before)) == first
    with pytest.raises(BadInput, match="noise.path: .* is not there"):
        spec.load_data(tmp_path)


# ---- long-tailed data


def test_long_tailed_by_hand() -> None:
    """n_max = 8 of class 0, imbalance 4, K = 3: 8 * 4^(-k/2) = 8, 4, 2; class 1 has but 3 of its 4."""
    labels = [0, 1, 2, 0, 2, 0, 1, 0, 2, 0, 0, 1, 0, 2, 0, 2]
    every = Samples(torch.arange(16, dtype=torch.uint8).view(16, 1, 1, 1), torch.arange(16), torch.tensor(labels), None)
    tail = long_tailed(every, ("a", "b", "c"), 4.0, 0)
    assert torch.bincount(tail.labels_N).tolist() == [8, 3, 2]
    assert tail.ids_N.tolist() == sorted(tail.ids_N.tolist())
    assert all(labels[i] == k for i, k in zip(tail.ids_N.tolist(), tail.labels_N.tolist(), strict=True))
    others = {tuple(long_tailed(every, ("a", "b", "c"), 4.0, seed).ids_N.tolist()) for seed in range(8)}
    assert len(others) > 1
    with pytest.raises(BadInput, match="data.imbalance 40 leaves no training image of 'c': set a smaller one"):
        long_tailed(every, ("a", "b", "c"), 40.0, 0)


def test_imbalance_of_a_data_set_comes_after_limit_and_leaves_the_test_set() -> None:
    plain, tail = (Digits(limit=1000, imbalance=rho).load(Path()) for rho in (1.0, 10.0))
    # 100 * 10^(-k/9), rounded
    assert torch.bincount(tail.train.labels_N).tolist() == [100, 77, 60, 46, 36, 28, 22, 17, 13, 10]
    assert set(tail.train.ids_N.tolist()) < set(plain.train.ids_N.tolist())
    assert tail.test is not None and plain.test is not None and torch.equal(tail.test.ids_N, plain.test.ids_N)
    assert tail.digest != plain.digest == Digits(limit=1000).load(Path()).digest
    assert torch.equal(Digits(limit=1000, imbalance=10.0).load(Path()).train.ids_N, tail.train.ids_N)
    assert "imbalance" not in Digits().deciding() and Digits(imbalance=10.0).deciding()["imbalance"] == 10


def test_noise_is_drawn_on_what_the_long_tail_left() -> None:
    data = {"name": "digits", "imbalance": 10.0}
    prepared = prepare(check(tiny(data=data, noise={"name": "symmetric", "rate": 0.4}), "x.json"), 0, "cpu", "data")
    assert prepared.train.clean_N is not None
    counts_K = torch.bincount(prepared.train.clean_N).tolist()
    assert counts_K[0] > 9 * counts_K[9] and counts_K == sorted(counts_K, reverse=True)


# ---- a data set as it comes


def test_human_labels_and_instance_dependent_ones_are_measured_against_the_data_sets_own() -> None:
    drawn = prepare(
        check(tiny(data={"name": "digits"}, noise={"name": "instance_dependent", "rate": 0.2}), "x.json"),
        0,
        "cpu",
        "data",
    )
    data = Digits().load(Path())
    assert drawn.train.clean_N is not None and torch.equal(drawn.train.clean_N, data.train.labels_N)
    assert torch.equal(drawn.train.labels_N, InstanceDependent(rate=0.2).draw_labels(data))
    assert drawn.T_KK is None and drawn.empirical_T_KK is not None
    assert replace(data, noise_file=b"").digest == data.digest
