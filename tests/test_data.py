"""Data sets: what each loads, in which order and under which label; what a user can get wrong; what stays the same."""

import hashlib
import json
import os
import pickle
import socket
import tarfile
import time
import urllib.error
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from pydantic import TypeAdapter, ValidationError

from nlt.data import Cifar4, Cifar10, Cifar100, Data, Digits, ImageFolder, Npz, Samples, hold_out
from nlt.data import cifar as cifar_module
from nlt.data.samples import HOLD_OUT_STREAM, LIMIT_STREAM, TEST_STREAM, _limited, _permutation, split_test
from nlt.reading import check
from nlt.settings import BadInput

# permutations of 8 with seed 0, streams 1, 2 and 3
GOLDEN = [[3, 1, 0, 4, 5, 6, 7, 2], [7, 5, 3, 2, 0, 1, 6, 4], [6, 0, 1, 7, 5, 2, 3, 4]]

# ---- settings


def parse(text: str) -> Any:
    return TypeAdapter(Data).validate_json(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"name": "digits"}', Digits),
        ('{"name": "cifar10", "val_fraction": 0}', Cifar10),
        ('{"name": "cifar100", "limit": 2}', Cifar100),
        ('{"name": "cifar4", "classes": ["deer", "cat"]}', Cifar4),
        ('{"name": "npz", "path": "a.npz", "seed": 3}', Npz),
        ('{"name": "image_folder", "path": "a", "image_size": 8}', ImageFolder),
    ],
)
def test_union_picks_by_name_and_survives_a_round_trip(text: str, kind: type) -> None:
    settings = parse(text)
    assert type(settings) is kind
    assert parse(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    "fields",
    [
        '"classes": ["1"]',
        '"classes": ["1", "1"]',
        '"limit": 1',
        '"val_fraction": 1.0',
        '"val_fraction": -0.1',
        '"seed": -1',
        '"image_size": 32',
    ],
)
def test_settings_reject(fields: str) -> None:
    with pytest.raises(ValidationError):
        parse(f'{{"name": "digits", {fields}}}')


def test_image_size_has_a_floor() -> None:
    with pytest.raises(ValidationError):
        parse('{"name": "image_folder", "path": "a", "image_size": 7}')


def test_every_field_is_described_in_the_schema() -> None:
    for definition in TypeAdapter(Data).json_schema()["$defs"].values():
        for name, field in definition["properties"].items():
            assert name == "name" or field.get("description"), (definition["title"], name)


# ---- digits, and what all data sets share


def test_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    loaded = Digits().load(tmp_path)
    assert (loaded.name, loaded.classes) == ("digits", tuple("0123456789"))
    assert loaded.train.images_NCHW.shape == (1400, 1, 8, 8)
    assert loaded.test.images_NCHW.shape == (397, 1, 8, 8)
    both = torch.cat([loaded.train.ids_N, loaded.test.ids_N])
    assert sorted(both.tolist()) == list(range(1797))
    # the documented split: the first numbers of RandomState(0).permutation(1797)
    assert {1081, 1707, 927, 713, 262} <= set(loaded.train.ids_N.tolist())
    assert {1653, 559, 684} <= set(loaded.test.ids_N.tolist())
    grey_of = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]  # value * 255 / 16
    for split in (loaded.train, loaded.test):
        assert torch.equal(split.ids_N, split.ids_N.sort().values)
        assert split.images_NCHW.dtype == torch.uint8 and split.images_NCHW.is_contiguous()
        assert split.labels_N.dtype == split.ids_N.dtype == torch.int64
        assert split.labels_N.tolist() == bunch.target[split.ids_N].tolist()
        assert split.clean_N is not None and torch.equal(split.clean_N, split.labels_N)
        expected = np.array(grey_of, np.uint8)[bunch.images[split.ids_N].astype(int)]
        assert np.array_equal(split.images_NCHW[:, 0].numpy(), expected)


def test_classes_relabel_in_the_order_given_and_ids_survive(tmp_path: Path) -> None:
    whole = Digits().load(tmp_path).train
    picked = Digits(classes=("7", "0", "3"), limit=20).load(tmp_path)
    assert picked.classes == ("7", "0", "3")
    assert torch.bincount(picked.train.labels_N).tolist() == [7, 7, 6]  # 20 = 3 * 6 + 2, the rest to the first two
    assert picked.train.ids_N.tolist() == sorted(picked.train.ids_N.tolist())
    row_of = {int(id_): row for row, id_ in enumerate(whole.ids_N)}
    for row, id_ in enumerate(picked.train.ids_N.tolist()):
        assert [7, 0, 3][picked.train.labels_N[row]] == whole.labels_N[row_of[id_]]
        assert torch.equal(picked.train.images_NCHW[row], whole.images_NCHW[row_of[id_]])
    assert len(picked.test) == len(Digits(classes=("0", "3", "7")).load(tmp_path).test)  # limit does not cut it
    assert set(picked.test.labels_N.tolist()) == {0, 1, 2}


def test_limit_is_seeded_and_random(tmp_path: Path) -> None:
    first, again, other = (Digits(limit=50, seed=seed).load(tmp_path) for seed in (1, 1, 2))
    assert first.train.ids_N.tolist() == again.train.ids_N.tolist()
    assert first.train.ids_N.tolist() != other.train.ids_N.tolist()
    assert first.train.ids_N.max() > 1000  # not merely the first of each class
    assert (first.digest == again.digest, first.digest == other.digest) == (True, False)


def small(labels: list[int], clean: list[int] | None = None) -> Samples:
    N = len(labels)
    images_NCHW = torch.arange(N, dtype=torch.uint8).reshape(N, 1, 1, 1).expand(N, 1, 2, 2).contiguous()
    return Samples(images_NCHW, torch.arange(N), torch.tensor(labels), None if clean is None else torch.tensor(clean))


@pytest.mark.parametrize(
    ("labels", "largest"),  # by hand: the largest L with L // K + (k < L % K) images of every class k
    [
        ([0, 0, 0, 1, 1], 5),  # 5 -> 3 + 2
        ([0, 0, 1, 1, 1], 4),  # 5 would need 3 of class 0
        ([0, 0, 0, 0, 1, 1, 2, 2], 7),  # 7 -> 3 + 2 + 2; 8 would need 3 of class 1
        ([0, 0, 0, 0, 1, 1, 1, 2, 2], 8),  # 8 -> 3 + 3 + 2; 9 would need 3 of class 2
    ],
)
def test_largest_limit(labels: list[int], largest: int) -> None:
    names = ("a", "b", "c")[: max(labels) + 1]
    assert len(_limited(small(labels), names, largest, seed=0)) == largest
    with pytest.raises(BadInput, match=rf"data.limit {largest + 1} .*set data.limit to at most {largest}$"):
        _limited(small(labels), names, largest + 1, seed=0)


def test_limit_beyond_64_bits() -> None:
    with pytest.raises(BadInput, match="data.limit 1000000000000000000000 needs .*set data.limit to at most 2$"):
        _limited(small([0, 1]), ("a", "b"), 10**21, seed=0)


def test_limit_with_an_empty_class() -> None:
    with pytest.raises(BadInput, match="needs 1 images of 'a', which has 0: leave data.limit out"):
        _limited(small([1, 1, 1]), ("a", "b"), 2, seed=0)


def test_unknown_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="data.classes: digits has no class 'ten', only 0, 1, 2"):
        Digits(classes=("1", "ten")).load(tmp_path)


def test_take_keeps_rows_together() -> None:
    samples = Samples(**{**vars(small([0, 1, 0], [1, 1, 0])), "files": ("a", "b", "c")})
    taken = samples.take(torch.tensor([2, 0]))
    assert (taken.ids_N.tolist(), taken.labels_N.tolist(), taken.files) == ([2, 0], [0, 0], ("c", "a"))
    assert taken.clean_N is not None and taken.clean_N.tolist() == [0, 1]
    assert taken.images_NCHW[:, 0, 0, 0].tolist() == [2, 0] and len(taken) == 2


def test_hold_out() -> None:
    samples = small([0] * 11)
    train, val = hold_out(samples, 0.25, seed=0)  # 2.75 -> 3
    assert val is not None and (len(train), len(val)) == (8, 3)
    assert sorted(train.ids_N.tolist() + val.ids_N.tolist()) == list(range(11))
    for side in (train, val):
        assert side.ids_N.tolist() == sorted(side.ids_N.tolist())
        assert side.images_NCHW[:, 0, 0, 0].tolist() == side.ids_N.tolist()
    held = [hold_out(samples, 0.25, seed)[1] for seed in (0, 1, 2, 3)]
    assert held[0] is not None and held[0].ids_N.tolist() == val.ids_N.tolist()
    assert len({tuple(side.ids_N.tolist()) for side in held if side is not None}) > 1
    assert hold_out(samples, 0, seed=0) == (samples, None)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_hold_out_leaves_no_side_empty(fraction: float) -> None:
    with pytest.raises(BadInput, match=rf"data.val_fraction {fraction} holds out \d+ of 11"):
        hold_out(small([0] * 11), fraction, seed=0)


def test_random_choices_stay_the_same_for_ever() -> None:
    """Golden: another numpy or torch must not silently change who is in a validation split."""
    assert _permutation(8, 0, LIMIT_STREAM).tolist() == GOLDEN[0]
    assert _permutation(8, 0, HOLD_OUT_STREAM).tolist() == GOLDEN[1]
    assert _permutation(8, 0, TEST_STREAM).tolist() == GOLDEN[2]


LABELS = [0] * 10 + [1] * 5 + [2] * 2  # of what a test split is held out of


@pytest.mark.parametrize(
    ("fraction", "held"),  # by hand: fraction * (10, 5, 2), halves up
    [(0.25, [3, 1, 1]), (0.3, [3, 2, 1]), (0.5, [5, 3, 1]), (0.7, [7, 4, 1])],
)
def test_split_test_is_stratified(fraction: float, held: list[int]) -> None:
    samples = small(LABELS)
    train, test = split_test(("a", "b", "c"), samples, fraction, 0, None)
    assert torch.bincount(test.labels_N).tolist() == held
    assert sorted(train.ids_N.tolist() + test.ids_N.tolist()) == list(range(17))
    for side in (train, test):
        assert side.ids_N.tolist() == sorted(side.ids_N.tolist())
        assert side.images_NCHW[:, 0, 0, 0].tolist() == side.ids_N.tolist()
        assert side.labels_N.tolist() == [LABELS[i] for i in side.ids_N.tolist()]
    again = [split_test(("a", "b", "c"), samples, fraction, seed, None)[1].ids_N.tolist() for seed in range(4)]
    assert again[0] == test.ids_N.tolist() and len(set(map(tuple, again))) > 1


def test_split_test_does_not_look_at_clean_labels_or_classes() -> None:
    names = ("a", "b", "c")
    held = split_test(names, small(LABELS), 0.3, 0, None)[1].ids_N.tolist()
    assert split_test(names, small(LABELS, LABELS[::-1]), 0.3, 0, None)[1].ids_N.tolist() == held
    assert split_test(names, small(LABELS), 0.3, 0, ("b", "a"))[1].ids_N.tolist() == held
    fewer = split_test(names, small([*LABELS[:15], 0, 0]), 0.3, 0, ("a", "b"))[1]  # what else there is does not matter
    assert [i for i in fewer.ids_N.tolist() if 10 <= i < 15] == [i for i in held if 10 <= i < 15]


@pytest.mark.parametrize(
    ("fraction", "count", "message"),
    [
        (0.2, 2, r"data.test_fraction 0.2 holds out 0 of the 2 images of 'c', .*: set it between 0.5 and 0.5, add"),
        (0.1, 4, r"holds out 0 of the 4 images of 'c', .*: set it between 0.25 and 0.75, add images or leave"),
        (0.9, 4, r"holds out 4 of the 4 images of 'c'"),
        (0.5, 1, r"holds out 1 of the 1 images of 'c', and each class needs one on both sides: add images or leave"),
    ],
)
def test_split_test_leaves_each_class_on_both_sides(fraction: float, count: int, message: str) -> None:
    samples = small([0] * 10 + [1] * 10 + [2] * count)
    with pytest.raises(BadInput, match=message):
        split_test(("a", "b", "c"), samples, fraction, 0, None)
    train, test = split_test(("a", "b", "c"), samples, fraction, 0, ("a", "b"))  # the class is not asked for
    assert {0, 1} <= set(train.labels_N.tolist()) & set(test.labels_N.tolist())


# ---- CIFAR, from small files in the official format

NAMES10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
LABELS10 = [7, 3, 0, 5, 4, 9, 3, 4, 5, 7]  # of every batch


def batch(first: int, labels: list[int], key: str) -> dict[str, Any]:
    """Image i is i in red, its label in green and its row number in blue."""
    rows = np.repeat(np.arange(32), 32)
    planes = [[np.full(1024, first + i), np.full(1024, label), rows] for i, label in enumerate(labels)]
    return {"data": np.array(planes, np.uint8).reshape(-1, 3072), key: labels}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def urlopen(request: Any, *_: Any, **__: Any) -> None:
        asked.append(getattr(request, "full_url", request))
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def write_cifar(root: Path, kind: str, contents: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    from torchvision import datasets

    cifar = getattr(datasets, kind)
    folder = root / str(cifar.base_folder)
    folder.mkdir(parents=True)
    md5 = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    for which in ("train_list", "test_list"):
        monkeypatch.setattr(cifar, which, [[name, md5[name]] for name, _ in getattr(cifar, which)])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": md5[cifar.meta["filename"]]})
    return folder


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    batches = {f"data_batch_{b + 1}": batch(10 * b, LABELS10, "labels") for b in range(5)}
    test = {"test_batch": batch(100, LABELS10[::-1], "labels")}
    write_cifar(tmp_path, "CIFAR10", batches | test | {"batches.meta": {"label_names": NAMES10}}, monkeypatch)
    return tmp_path


def test_cifar10_from_disk_without_network(cifar10: Path, no_network: list[str]) -> None:
    loaded = Cifar10().load(cifar10)
    assert loaded.classes == tuple(NAMES10)
    assert loaded.train.images_NCHW.shape == (50, 3, 32, 32) and loaded.train.images_NCHW.is_contiguous()
    assert loaded.train.labels_N.tolist() == LABELS10 * 5 and loaded.test.labels_N.tolist() == LABELS10[::-1]
    assert loaded.train.images_NCHW[:, 0, 5, 6].tolist() == loaded.train.ids_N.tolist() == list(range(50))
    assert loaded.train.images_NCHW[:, 1, 5, 6].tolist() == LABELS10 * 5
    assert loaded.train.images_NCHW[8, 2, :, 3].tolist() == list(range(32))
    assert loaded.train.clean_N is not None and torch.equal(loaded.train.clean_N, loaded.train.labels_N)
    assert no_network == []


def test_cifar4_is_cat_dog_horse_deer(cifar10: Path) -> None:
    loaded = Cifar4().load(cifar10)
    assert (loaded.name, loaded.classes) == ("cifar4", ("cat", "dog", "horse", "deer"))
    # by hand from LABELS10: horse cat - dog deer - cat deer dog horse
    assert loaded.train.labels_N.tolist() == [2, 0, 1, 3, 0, 3, 1, 2] * 5
    assert loaded.train.ids_N.tolist()[:9] == [0, 1, 3, 4, 6, 7, 8, 9, 10]
    assert loaded.train.clean_N is not None and torch.equal(loaded.train.clean_N, loaded.train.labels_N)
    assert loaded.test.ids_N.tolist() == [0, 1, 2, 3, 5, 6, 8, 9]
    two = Cifar4(classes=("deer", "cat")).load(cifar10)
    assert two.train.ids_N.tolist()[:4] == [1, 4, 6, 7] and two.train.labels_N.tolist()[:4] == [1, 0, 1, 0]
    with pytest.raises(BadInput, match="cifar4 has no class 'ship', only cat, dog, horse, deer"):
        Cifar4(classes=("cat", "ship")).load(cifar10)


def test_cifar100_takes_the_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = [f"fine{k}" for k in range(100)]
    train = batch(0, [99, 5], "fine_labels") | {"coarse_labels": [1, 2]}
    meta = {"fine_label_names": fine, "coarse_label_names": ["coarse"]}
    write_cifar(tmp_path, "CIFAR100", {"train": train, "test": train, "meta": meta}, monkeypatch)
    loaded = Cifar100().load(tmp_path)
    assert loaded.classes == tuple(fine) and loaded.train.labels_N.tolist() == [99, 5]


def test_absent_cifar_that_cannot_be_downloaded(
    tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        Cifar10().load(Path("absent"))
    message = str(caught.value)
    assert str(tmp_path / "absent" / "cifar-10-batches-py") in message and "no route to host" in message
    assert all(word in message for word in ("cifar-10-python.tar.gz", "--data-root", "NLT_DATA_ROOT"))
    assert "\n" not in message and no_network


@pytest.mark.parametrize("broken", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_damaged_cifar_is_never_unpickled(cifar10: Path, no_network: list[str], broken: str, how: str) -> None:
    file = cifar10 / "cifar-10-batches-py" / broken
    file.unlink()
    if how == "changed":
        file.write_bytes(b"cos\nmkdir\n(V" + str(cifar10 / "executed").encode() + b"\ntR.")
    with pytest.raises(BadInput, match="looked for the intact files of CIFAR10 in .*no route to host"):
        Cifar10().load(cifar10)
    assert not (cifar10 / "executed").exists()


@pytest.mark.parametrize("changed", ["data_batch_3", "test_batch", "batches.meta"])
def test_cifar_changed_under_the_same_name_is_refused_by_its_md5_sum(
    cifar10: Path, no_network: list[str], changed: str
) -> None:
    """Other pixels or names in an intact pickle of the same size and time."""
    Cifar10().load(cifar10)
    file = cifar10 / "cifar-10-batches-py" / changed
    before, content = file.stat(), pickle.loads(file.read_bytes())
    if "data" in content:
        content["data"][0, 0] ^= 1
    else:
        content["label_names"] = ["airplanf", *content["label_names"][1:]]
    file.write_bytes(pickle.dumps(content))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    with pytest.raises(BadInput, match="looked for the intact files of CIFAR10 in .*no route to host"):
        Cifar10().load(cifar10)


@pytest.mark.parametrize("broken", ["data_batch_3", "batches.meta"])
def test_missing_cifar_is_downloaded_once(cifar10: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    from torchvision.datasets import CIFAR10

    (cifar10 / "served").mkdir()
    served = cifar10 / "served" / "cifar-10-python.tar.gz"
    with tarfile.open(served, "w:gz") as tar:
        tar.add(cifar10 / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(served.read_bytes()).hexdigest())
    (cifar10 / "cifar-10-batches-py" / broken).unlink()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=served.parent)) as server:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{served.name}")
        Thread(target=server.serve_forever).start()
        try:
            assert Cifar10().load(cifar10).train.labels_N.tolist() == LABELS10 * 5
        finally:
            server.shutdown()
    assert len(Cifar10().load(cifar10).train) == 50  # the server is gone


def test_a_silent_server_ends_in_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.getsockname()[1]}/cifar-10-python.tar.gz")
        monkeypatch.setattr(cifar_module, "DOWNLOAD_TIMEOUT_S", 0.2)
        before, began = socket.getdefaulttimeout(), time.monotonic()
        with pytest.raises(BadInput, match="timed out"):
            Cifar10().load(tmp_path)
        assert socket.getdefaulttimeout() == before and time.monotonic() - began < 5


def test_cifar_root_that_cannot_be_written(tmp_path: Path, no_network: list[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"could not download them \(.*(Not a directory|File exists)"):
        Cifar10().load(tmp_path / "file" / "root")
    assert no_network == []


# ---- npz


def arrays(**changed: Any) -> dict[str, Any]:
    """Six training and three test images 2x4 of cat, dog and owl; None leaves an array out."""
    every = {
        "train_images": np.arange(6 * 2 * 4 * 3, dtype=np.uint8).reshape(6, 2, 4, 3),
        "train_labels": np.array([0, 1, 2, 0, 1, 2], np.int32),
        "test_images": np.zeros((3, 2, 4, 3), np.uint8),
        "test_labels": np.array([2, 1, 0], np.uint8),
        "class_names": np.array(["cat", "dog", "owl"]),
    } | changed
    return {name: array for name, array in every.items() if array is not None}


def write_npz(file: Path, **changed: Any) -> Npz:
    np.savez(file, **arrays(**changed))
    return Npz(path=str(file))


def test_npz(tmp_path: Path) -> None:
    loaded = write_npz(tmp_path / "a.npz", train_clean_labels=np.array([0, 1, 2, 0, 1, 1])).load(tmp_path)
    assert (loaded.name, loaded.classes) == ("npz", ("cat", "dog", "owl"))
    assert loaded.train.images_NCHW.shape == (6, 3, 2, 4) and loaded.train.images_NCHW.is_contiguous()
    assert loaded.train.images_NCHW[1, 2, 1, 3] == 24 + 2 + 3 * (4 * 1 + 3)  # sample, channel, row, column
    assert loaded.train.labels_N.tolist() == [0, 1, 2, 0, 1, 2] and loaded.test.labels_N.tolist() == [2, 1, 0]
    assert loaded.train.labels_N.dtype == loaded.test.labels_N.dtype == torch.int64
    assert loaded.train.clean_N is not None and loaded.train.clean_N.tolist() == [0, 1, 2, 0, 1, 1]
    assert loaded.test.clean_N is None and loaded.train.files is None


def test_npz_without_channels_or_clean_labels(tmp_path: Path) -> None:
    grey = {"train_images": np.ones((6, 2, 4), np.uint8), "test_images": np.ones((3, 2, 4, 1), np.uint8)}
    loaded = write_npz(tmp_path / "a.npz", **grey).load(tmp_path)
    assert loaded.train.images_NCHW.shape == (6, 1, 2, 4) and loaded.train.clean_N is None


def test_npz_classes_go_by_given_label_and_drop_inexpressible_truths(tmp_path: Path) -> None:
    settings = write_npz(tmp_path / "a.npz", train_clean_labels=np.array([0, 2, 0, 1, 1, 2]))
    picked = settings.model_copy(update={"classes": ("owl", "cat")}).load(tmp_path)
    # given owl or cat: samples 0, 2, 3, 5; sample 3 is a dog in truth
    assert picked.train.ids_N.tolist() == [0, 2, 5]
    assert picked.train.labels_N.tolist() == [1, 0, 0]
    assert picked.train.clean_N is not None and picked.train.clean_N.tolist() == [1, 1, 0]


def test_npz_path_is_relative_and_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(tmp_path / "a.npz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Npz(path="a.npz").load(Path("/nowhere")).digest == Npz(path="~/a.npz").load(Path("/nowhere")).digest


def test_digest_covers_everything_and_nothing_else(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"train_labels": np.array([0, 1, 2, 0, 1, 1])},
        {"test_labels": np.array([2, 1, 1])},
        {"train_clean_labels": np.array([0, 1, 2, 0, 1, 2])},
        {"train_clean_labels": np.array([0, 1, 2, 0, 1, 1])},
        {"test_images": np.ones((3, 2, 4, 3), np.uint8)},
        {"train_images": np.arange(6 * 2 * 4 * 3, dtype=np.uint8).reshape(6, 4, 2, 3), "test_images": np.zeros((3, 4, 2, 3), np.uint8)},
        {"class_names": np.array(["cat", "dog", "emu"])},
    ]  # fmt: skip
    digests = [write_npz(tmp_path / f"{i}.npz", **change).load(tmp_path).digest for i, change in enumerate(changes)]
    plain = write_npz(tmp_path / "plain.npz")
    digests += [plain.load(tmp_path).digest, plain.model_copy(update={"limit": 3}).load(tmp_path).digest]
    assert len(set(digests)) == len(digests) and all(len(digest) == 16 for digest in digests)
    same = write_npz(tmp_path / "same.npz", train_labels=np.array([0, 1, 2, 0, 1, 2], np.int8))
    assert same.load(tmp_path).digest == plain.load(tmp_path).digest


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_labels": None}, "has no array train_labels"),
        ({"class_names": np.array(["a", "b", "c"], object)}, "class_names holds pickled objects"),
        ({"class_names": np.array([1, 2, 3])}, r"class_names must be \(K,\) strings .*found int64 of shape \(3,\)"),
        ({"class_names": np.array("cat")}, r"class_names must be .*shape \(\)"),
        ({"class_names": np.array(["cat", "dog", "cat"])}, "class_names holds 'cat' more than once"),
        ({"class_names": np.array(["cat"])}, "class_names must be .*at least 2"),
        ({"class_names": np.array(["cat", "dog", ""])}, r"class_names\[2\] is empty, no text or holds control"),
        ({"class_names": np.array(["cat", "dog\nowl", "emu"])}, r"class_names\[1\] is empty, no text or holds control"),
        ({"class_names": np.array(["cat", "\ud800", "emu"])}, r"class_names\[1\] is empty, no text or holds control"),
        ({"class_names": np.arange(10_001).astype(str)}, "mine.npz has 10,001 classes, at most 10,000"),
        ({"train_images": np.zeros((6, 2, 4, 3), complex)}, "train_images must be uint8 .*found complex128 of shape"),
        ({"train_images": np.zeros((6, 2), np.uint8)}, r"train_images must be .*shape \(6, 2\)"),
        ({"test_images": np.zeros((3, 3, 2, 4), np.uint8)}, r"test_images must be .*C 1 or 3.*\(3, 3, 2, 4\)"),
        ({"test_images": np.zeros((3, 2, 5, 3), np.uint8)}, r"test_images must be of the size.*\(3, 2, 5, 3\)"),
        ({"test_images": np.zeros((3, 2, 4, 1), np.uint8)}, r"test_images must be of the size.*\(3, 2, 4, 1\)"),
        ({"train_images": np.zeros((0, 2, 4, 3), np.uint8)}, "train_images must be .*not empty"),
        ({"test_images": np.zeros((3, 0, 4, 3), np.uint8)}, "test_images must be .*not empty"),
        ({"train_labels": np.zeros(6, complex)}, "train_labels must be integers .*found complex128"),
        ({"train_labels": np.zeros((6, 1, 1), int)}, r"train_labels must be integers .*shape \(6, 1, 1\)"),
        ({"train_labels": np.zeros(5, int)}, "train_labels must have one label for each of the 6 images, found 5"),
        ({"test_labels": np.array([0, 1, 3])}, r"test_labels must lie in 0\.\.2.*found 3"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, -1])}, r"train_labels must lie in 0\.\.2.*found -1"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, 2**63], np.uint64)}, "train_labels must lie .*found 9223372036854775808"),
        ({"train_clean_labels": np.array([0, 1, 2, 0, 1, 3])}, "train_clean_labels must lie .*found 3"),
        ({"train_clean_labels": np.zeros(7, int)}, "train_clean_labels must have one label .*found 7"),
    ],
)  # fmt: skip
def test_npz_names_file_and_array(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        write_npz(tmp_path / "mine.npz", **changed).load(tmp_path)
    assert str(tmp_path / "mine.npz") in str(caught.value)


def test_class_name_with_a_number_that_no_character_has(tmp_path: Path) -> None:
    """numpy reads it, and Python's own functions on strings then raise SystemError."""
    names = np.array([*"ca", *"do", *"ow"]).view(np.uint32)
    names[-1] = 0x110000
    with pytest.raises(BadInput, match=r"class_names\[2\] is empty, no text"):
        write_npz(tmp_path / "mine.npz", class_names=names.view("U2")).load(tmp_path)


@pytest.mark.parametrize("kind", ["npz", "image_folder"])
def test_path_that_no_system_takes(tmp_path: Path, kind: str) -> None:
    with pytest.raises(BadInput, match="x.json: data.path: a path cannot hold the character"):
        check(tiny(data={"name": kind, "path": "a\0b"}), "x.json")
    with pytest.raises(BadInput, match="(?i)cannot .*read .*file name too long"):
        parse(json.dumps({"name": kind, "path": "a" * 300})).load(tmp_path)


def test_cifar_where_no_file_can_be_made_does_not_wait_for_ever() -> None:
    with pytest.raises(BadInput, match="could not download"):
        Cifar10().load(Path("/proc"))


def test_npz_that_is_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(BadInput, match="pipe.npz is no file"):
        Npz(path=str(tmp_path / "pipe.npz")).load(tmp_path)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[300] ^= 255  # a pixel of train_images, the first member: its CRC no longer fits
    file.write_bytes(content)


def save_npy(file: Path) -> None:
    with file.open("wb") as out:
        np.save(out, np.zeros(3))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "is not there"),
        (lambda file: (file.unlink(), file.mkdir()), "is a folder"),
        (lambda file: file.write_bytes(b""), "not a complete, readable .npz"),
        (lambda file: file.write_text("label,file"), "not a complete, readable .npz"),
        (save_npy, "not a complete, readable .npz"),
        (cut, "not a complete, readable .npz"),
        (flip, "train_images cannot be read"),
    ],
)
def test_npz_that_cannot_be_read(tmp_path: Path, damage: Any, message: str) -> None:
    settings = write_npz(tmp_path / "mine.npz")
    damage(tmp_path / "mine.npz")
    with pytest.raises(BadInput, match=message) as caught:
        settings.load(tmp_path)
    assert str(tmp_path / "mine.npz") in str(caught.value)


def test_npz_classes_without_any_image(tmp_path: Path) -> None:
    settings = write_npz(tmp_path / "a.npz", test_labels=np.array([2, 2, 2]))
    with pytest.raises(BadInput, match="data.classes: no test image is of cat, dog"):
        settings.model_copy(update={"classes": ("cat", "dog")}).load(tmp_path)
