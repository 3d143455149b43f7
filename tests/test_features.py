"""Features: what a backbone makes of images, by hand or by timm's own network, and what is kept of it between calls."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from test_pretrained import TINY, weights_of, wheel

from nlt import features, pretrained
from nlt.backbones import median_distance
from nlt.features import Backbone, Lite0, Pixels, Timm, extract, parse, seconds_for
from nlt.settings import BadInput

SMALL = Pixels(image_size=2, features=16)


def pictures(N: int, side: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (N, 3, side, side), dtype=np.uint8)


def sums_of(images: NDArray[np.uint8]) -> list[bytes]:
    return [hashlib.sha256(image.tobytes()).digest() for image in images]


class Reader:
    """Reads rows of an array, and remembers which."""

    def __init__(self, images: NDArray[np.uint8]):
        self.images, self.rows = images, []

    def __call__(self, first: int, last: int) -> NDArray[np.uint8]:
        self.rows += range(first, last)
        return self.images[first:last]


def never(first: int, last: int) -> NDArray[np.uint8]:
    raise AssertionError(f"rows {first} to {last} were read again")


def run(backbone: Any, images: NDArray[np.uint8], cache: Path | None = None, read: Any = None, **more: Any) -> Any:
    return extract(backbone, read or Reader(images), sums_of(images), cache, **more)


# ---- lite0 and timm


@torch.no_grad()
def test_lite0_features_are_those_of_timms_network_on_pixels_from_minus_1_to_1() -> None:
    images = pictures(3, 64)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    state = torch.load(wheel() / pretrained.LITE0_FILE, weights_only=True)
    given = iter(tensor for name, tensor in state.items() if "num_batches" not in name)
    network.load_state_dict({n: t if "num_batches" in n else next(given) for n, t in network.state_dict().items()})
    x = torch.from_numpy(images).double() / 127.5 - 1
    expected = network.double().forward_features(x).mean((2, 3))
    found = run(Lite0(image_size=64), images)
    assert found.shape == (3, 1280) and found.dtype == np.float16
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-3, atol=1e-4)  # a half float has 11 bits


def save_tiny(tmp_path: Path, seed: int = 0) -> str:
    """A file of weights that make features of about 1."""
    save_file(weights_of(seed=seed), tmp_path / f"tiny{seed}.safetensors")
    return str(tmp_path / f"tiny{seed}.safetensors")


@torch.no_grad()
def test_a_networks_own_mean_and_deviation_are_used(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=0).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    images = pictures(2, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = network((torch.from_numpy(images) / 255 - mean) / std)
    found = run(Timm(architecture="resnet10t", weights=str(tmp_path / "w.safetensors"), image_size=32), images)
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-3, atol=1e-4)


def test_features_that_are_no_finite_half_floats_are_refused(tmp_path: Path) -> None:
    state = weights_of()
    state["bn1.bias"][:] = torch.nan
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BadInput, match="network test_resnet gives features that are not finite"):
        run(Timm(architecture=TINY, weights=str(tmp_path / "w.safetensors"), image_size=32), pictures(2, 32))


def test_the_side_is_that_of_the_networks_training_unless_it_is_set() -> None:
    assert Timm(architecture=TINY).side() == 160
    assert Timm(architecture=TINY, image_size=64).side() == 64
    with pytest.raises(BadInput, match="image_size 64: the network test_vit takes images of 160 pixels"):
        Timm(architecture="test_vit", image_size=64).side()


# ---- pixels


def test_pixel_features_by_hand() -> None:
    """Three images of one pixel: grey 0, 3 and 9 in one channel. Distances 3, 6, 9: the median is 6, sigma 3."""
    images = np.zeros((3, 3, 1, 1), np.uint8)
    images[:, 0, 0, 0] = [0, 3, 9]
    found = run(Pixels(image_size=1, features=20_000, bandwidth=0.5), images).astype(float)
    assert found.shape == (3, 20_000)
    # Products estimate exp(-d^2 / (2 * 9)) with a standard deviation of at most sqrt(1 / 20,000) = 0.007.
    kernel = [[1, np.exp(-0.5), np.exp(-4.5)], [np.exp(-0.5), 1, np.exp(-2)], [np.exp(-4.5), np.exp(-2), 1]]
    np.testing.assert_allclose(found @ found.T, kernel, atol=0.03)


def test_pixel_features_follow_the_formula() -> None:
    images = pictures(5, 2)
    x = images.reshape(5, 12).astype(float)
    generator = np.random.default_rng(7)
    distances = [np.linalg.norm(x[i] - x[j]) for i in range(5) for j in range(i)]
    W = generator.standard_normal((12, 16)) / (2 * np.median(distances))
    b = generator.uniform(0, 2 * np.pi, 16)
    found = run(Pixels(image_size=2, features=16, bandwidth=2.0, seed=7), images)
    np.testing.assert_allclose(found, np.sqrt(2 / 16) * np.cos(x @ W + b), atol=3e-4)


@pytest.mark.parametrize("N", [1, 2, 1500])
def test_images_that_are_all_alike_have_a_scale_too(N: int) -> None:
    assert median_distance(np.full((N, 12), 200, np.float16)) == 1
    assert np.isfinite(run(SMALL, np.full((N, 3, 2, 2), 200, np.uint8))).all()


def test_the_scale_comes_from_rows_spread_over_all() -> None:
    """2,000 rows, sorted: 0 in the first half and 4 in the second; the first 1,000 alone would all be alike."""
    assert median_distance(np.repeat([[0.0], [4.0]], 1000, axis=0).astype(np.float16)) == 4


# ---- the cache


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "PART", 4)
    monkeypatch.setattr(features, "BATCH", 2)


BACKBONES: list[Callable[[Path], Any]] = [
    lambda folder: Pixels(image_size=32, features=16),
    lambda folder: Timm(architecture=TINY, weights=save_tiny(folder), image_size=32),
]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("make", BACKBONES, ids=["pixels", "timm"])
def test_features_are_kept_and_nothing_is_read_again(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    backbone, images, told = make(tmp_path), pictures(11, 32), []
    reader = Reader(images)
    first = run(backbone, images, tmp_path / "a" / "b", reader, progress=lambda done, of: told.append((done, of)))
    assert sorted(reader.rows) == list(range(11))
    assert told == [(0, 11), (2, 11), (4, 11), (6, 11), (8, 11), (10, 11), (11, 11)]
    told.clear()
    second = run(backbone, images, tmp_path / "a" / "b", never, progress=lambda done, of: told.append((done, of)))
    assert told == [(11, 11)]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, run(backbone, images))
    assert len(os.listdir(tmp_path / "a" / "b")) == 3


@pytest.mark.usefixtures("small_parts")
def test_rows_are_in_the_order_of_the_images(tmp_path: Path) -> None:
    """Whatever is kept: the pixels come back where they were."""
    images = pictures(11, 2)
    keep_all = Pixels.finish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pixels, "finish", lambda self, pixels_NP: pixels_NP)
        run(SMALL, images[:4], tmp_path)
        found = run(SMALL, images, tmp_path)
    assert Pixels.finish is keep_all
    np.testing.assert_array_equal(found, images.reshape(11, 12))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("row", [4, 5, 7])
def test_only_the_part_of_a_changed_image_is_made_again(tmp_path: Path, row: int) -> None:
    images = pictures(11, 2)
    run(SMALL, images, tmp_path)
    images = images.copy()
    images[row, 0, 0, 0] ^= 1
    reader = Reader(images)
    np.testing.assert_array_equal(run(SMALL, images, tmp_path, reader), run(SMALL, images))
    assert sorted(reader.rows) == [4, 5, 6, 7]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "numbers", "folder", "other"])
def test_a_damaged_part_is_made_again(tmp_path: Path, harm: str) -> None:
    images = pictures(11, 2)
    whole = run(SMALL, images, tmp_path)
    names = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    last = min(tmp_path.iterdir(), key=lambda file: file.stat().st_size)  # three rows
    raw = bytearray(last.read_bytes())
    if harm == "flip":
        raw[-40] ^= 1
        last.write_bytes(raw)
    elif harm == "cut":
        last.write_bytes(raw[:-5])
    elif harm == "empty":
        last.write_bytes(b"")
    elif harm == "numbers":
        np.save(last, np.zeros((3, 12), np.float16))
    elif harm == "folder":
        last.unlink()
        last.mkdir()
    else:
        last.write_bytes(next(value for name, value in names.items() if name != last.name))
    reader, notes = Reader(images), []
    np.testing.assert_array_equal(run(SMALL, images, tmp_path, reader, note=notes.append), whole)
    assert reader.rows == [8, 9, 10]
    if harm == "folder":
        assert "features are not kept" in notes[0] and len(notes) == 1
    else:
        assert notes == [] and last.read_bytes() == names[last.name]


def test_a_kept_part_is_an_npy_file_that_numpy_reads(tmp_path: Path) -> None:
    images = pictures(3, 2)
    run(SMALL, images, tmp_path)
    (file,) = tmp_path.iterdir()
    np.testing.assert_array_equal(np.load(file), images.reshape(3, 12))


def test_other_settings_weights_and_images_have_parts_of_their_own(tmp_path: Path) -> None:
    images = pictures(2, 32)
    backbones = [
        Pixels(image_size=32, features=16),
        Timm(architecture=TINY, weights=save_tiny(tmp_path), image_size=32),
        Timm(architecture=TINY, weights=save_tiny(tmp_path, seed=1), image_size=32),
    ]
    for n, backbone in enumerate(backbones, start=1):
        run(backbone, images, tmp_path / "cache")
        assert len(os.listdir(tmp_path / "cache")) == n
    for backbone in backbones[:2]:  # the same files, decoded at another side
        other = backbone.model_copy(update={"image_size": 48})
        extract(other, Reader(pictures(2, 48)), sums_of(images), tmp_path / "cache")
    run(backbones[0], images[::-1], tmp_path / "cache")
    assert len(os.listdir(tmp_path / "cache")) == 6
    # What only the end is made with is no part of the name: another kernel needs no image.
    wider = Pixels(image_size=32, features=32, bandwidth=2, seed=5)
    assert run(wider, images, tmp_path / "cache", never).shape == (2, 32)


def test_weights_that_changed_in_their_file_make_new_features(tmp_path: Path) -> None:
    images, backbone = pictures(2, 32), Timm(architecture=TINY, weights=save_tiny(tmp_path), image_size=32)
    first = run(backbone, images, tmp_path / "cache")
    os.replace(save_tiny(tmp_path, seed=1), str(backbone.weights))
    assert not np.array_equal(run(backbone, images, tmp_path / "cache"), first)


@pytest.mark.usefixtures("small_parts")
def test_an_interrupt_keeps_the_parts_that_are_finished(tmp_path: Path) -> None:
    images = pictures(11, 2)

    def interrupted(first: int, last: int) -> NDArray[np.uint8]:
        if first >= 8:
            raise KeyboardInterrupt
        return images[first:last]

    with pytest.raises(KeyboardInterrupt):
        run(SMALL, images, tmp_path, interrupted)
    reader = Reader(images)
    np.testing.assert_array_equal(run(SMALL, images, tmp_path, reader), run(SMALL, images))
    assert reader.rows == [8, 9, 10]


KILLED = """
import hashlib, os, signal, sys
from pathlib import Path
import numpy as np
from nlt import features
features.PART, features.BATCH = 4, 2
images = np.random.default_rng(0).integers(0, 256, (11, 3, 2, 2), dtype=np.uint8)
def progress(done, of):
    if done == 8:
        os.kill(os.getpid(), signal.SIGKILL)
sums = [hashlib.sha256(image.tobytes()).digest() for image in images]
backbone = features.Pixels(image_size=2, features=16)
features.extract(backbone, lambda a, b: images[a:b], sums, Path(sys.argv[1]), progress=progress)
"""


@pytest.mark.usefixtures("small_parts")
def test_a_killed_extraction_goes_on_from_its_parts(tmp_path: Path) -> None:
    """Killed when the second part is made and before it is kept."""
    root = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=os.environ | {"PYTHONPATH": root})
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    reader, images = Reader(pictures(11, 2)), pictures(11, 2)
    np.testing.assert_array_equal(run(SMALL, images, tmp_path, reader), run(SMALL, images))
    assert reader.rows == list(range(4, 11))


@pytest.mark.usefixtures("small_parts")
def test_a_full_disk_is_noted_once_and_stops_nothing(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    images, notes = pictures(11, 2), []
    for first in range(0, 11, 4):
        name = features.part_name(SMALL.identity() | {"device": "cpu"}, sums_of(images)[first : first + 4])
        (tmp_path / f".{name}.part").symlink_to("/dev/full")  # where write_whole writes first
    np.testing.assert_array_equal(run(SMALL, images, tmp_path, note=notes.append), run(SMALL, images))
    (sentence,) = notes
    assert "No space left on device" in sentence and str(tmp_path) in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_a_folder_is_noted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    notes: list[str] = []
    run(SMALL, pictures(2, 2), tmp_path / "file", note=notes.append)
    assert len(notes) == 1 and "features are not kept" in notes[0]


def test_what_read_gives_is_checked() -> None:
    with pytest.raises(ValueError, match=r"uint8 of \(2, 3, 3, 3\), not uint8 of \(2, 3, 2, 2\)"):
        run(SMALL, pictures(2, 3))
    with pytest.raises(ValueError, match="float64"):
        run(SMALL, pictures(2, 2).astype(np.float64))


def test_an_error_in_reading_is_not_lost(tmp_path: Path) -> None:
    def broken(first: int, last: int) -> NDArray[np.uint8]:
        raise BadInput("the folder changed")

    with pytest.raises(BadInput, match="the folder changed"):
        run(SMALL, pictures(2, 2), tmp_path, broken)


def test_no_images_have_no_features() -> None:
    assert len(run(SMALL, pictures(0, 2))) == 0


@pytest.mark.usefixtures("small_parts")
def test_time_is_told_for_what_is_not_kept(tmp_path: Path) -> None:
    images = pictures(11, 2)
    sums = sums_of(images)
    run(SMALL, images[:8], tmp_path)
    reader = Reader(images)
    assert seconds_for(SMALL, reader, sums, tmp_path) > 0
    assert reader.rows == [8, 9, 10]  # and nothing that is kept
    run(SMALL, images, tmp_path)
    assert seconds_for(SMALL, never, sums, tmp_path) == 0


@pytest.mark.usefixtures("small_parts")
def test_the_network_is_loaded_once_and_where_all_is_kept_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cleaning import folder

    from nlt.cleaning.judge import judge

    loaded, encoder = [], Pixels.encoder
    monkeypatch.setattr(Pixels, "encoder", lambda self, device: (loaded.append(self), encoder(self, device))[1])
    data = folder(tmp_path / "photos", [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(6)])
    judge(data, [SMALL], cache=tmp_path / "cache")
    assert loaded == [SMALL]
    judge(data, [SMALL], cache=tmp_path / "cache")
    assert loaded == [SMALL]


@pytest.mark.usefixtures("small_parts")
def test_features_come_from_a_maker_in_pieces_of_any_order(tmp_path: Path) -> None:
    """Parts of 4 in batches of 2, of which the second part is kept: the third comes first, the first in two pieces."""
    images, asked = pictures(11, 2), []
    run(SMALL, images[4:8], tmp_path)
    part = features.part_name(SMALL.identity() | {"device": "cpu"}, sums_of(images)[4:8])
    assert os.listdir(tmp_path) == [part]

    def maker(backbone: Any, read: Any, spans: Any) -> Any:
        asked.extend(spans)
        encode = backbone.encoder(torch.device("cpu"))
        for first, last in ((8, 11), (2, 4), (0, 2)):
            yield first, encode(read(first, last))

    made = run(SMALL, images, tmp_path, maker=maker)
    assert asked == [(0, 4), (8, 11)]
    np.testing.assert_array_equal(made, run(SMALL, images))
    np.testing.assert_array_equal(run(SMALL, images, tmp_path, never), made)


# ---- settings


def test_the_command_lines_names() -> None:
    assert parse("auto") == (Pixels(), Lite0())
    assert parse("auto", image_size=96) == (Pixels(), Lite0(image_size=96))
    assert parse("pixels", image_size=16) == (Pixels(image_size=16),)
    assert parse("lite0", image_size=160) == parse("timm:lite0", image_size=160) == (Lite0(image_size=160),)
    assert parse("timm:resnet18", "w.pth", 64) == (Timm(architecture="resnet18", weights="w.pth", image_size=64),)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("resnet50",), "--backbone 'resnet50': use auto, pixels, lite0 or timm:NAME"),
        (("timm:",), "use auto, pixels"),
        (("timm:resnot18",), "timm .* has no network 'resnot18': did you mean resnet18?"),
        (("lite0", "w.pth"), "--weights goes with --backbone timm:NAME"),
        (("timm:lite0", "w.pth"), "lite0 brings its own weights"),
        (("lite0", None, 0), "--image-size 0: use a side of 1 to 4096 pixels"),
        (("lite0", None, 5000), "--image-size 5000"),
        # 3 S S x 2,000 doubles: 0.995 GB at 144, 1.009 at 145
        (("pixels", None, 145), "--image-size 145: with --backbone pixels use a side of 1 to 144 pixels"),
    ],
)
def test_what_is_no_backbone(arguments: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        parse(*arguments)


def test_backbones_are_told_apart_by_name_and_say_whose_weights_they_have() -> None:
    adapter = TypeAdapter(Backbone)
    for backbone in (Pixels(seed=3), Lite0(image_size=64), Timm(architecture="resnet18.a1_in1k")):
        assert adapter.validate_json(adapter.dump_json(backbone)) == backbone
    assert Pixels().outside_weights is None
    assert Lite0().outside_weights == "ImageNet-1k (timm tf_efficientnet_lite0)"
    assert Timm(architecture="resnet18.a1_in1k").outside_weights == "timm resnet18.a1_in1k"
    with pytest.raises(ValidationError):
        adapter.validate_python({"name": "pixels", "bandwidth": 0})
    adapter.validate_python({"name": "pixels", "image_size": 144})
    with pytest.raises(ValidationError, match="image_size 145 is too large for 2000 features: set it to 144 or less"):
        adapter.validate_python({"name": "pixels", "image_size": 145})
    with pytest.raises(ValidationError, match="set it to 20 or less"):  # 0.96 GB
        adapter.validate_python({"name": "pixels", "image_size": 21, "features": 100_000})
