"""A user's data, damaged byte by byte and array by array: a data set comes out, or one sentence that names the file."""

import io
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from fuzzing import NASTY_NUMBERS, NASTY_TEXT, assert_one_sentence, corrupted, fuzz, sizes
from hypothesis import strategies as st
from PIL import Image

from nlt.data import Dataset, ImageFolder, ImageList, Npz, Samples
from nlt.data.labelled import Labelled, read_labelled
from nlt.data.numbers import read_numbers
from nlt.noise import Human, Matrix, with_noise_file
from nlt.reading import check
from nlt.settings import BadInput

# zipfile's about a member that stands twice, Pillow's about tags it skips
pytestmark = pytest.mark.filterwarnings("ignore")

# ---- npz ----


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.RandomState(0)
    return {
        "train_images": rng.randint(0, 256, (8, 4, 5, 3)).astype(np.uint8),
        "train_labels": np.arange(8) % 3,
        "test_images": rng.randint(0, 256, (4, 4, 5, 3)).astype(np.uint8),
        "test_labels": np.arange(4) % 3,
        "class_names": np.array(["cat", "dog", "owl"]),
        "train_clean_labels": np.arange(8) % 3,
    }


MEMBERS = {name: npy(array) for name, array in arrays().items()}
DTYPES = ["u1", "i1", "i8", ">i4", "u8", "f2", "f8", "c16", "?", "U3", "S3", "O", "M8[s]", "m8", "V3", "i4,f4", "U0"]
SHAPES = [(), (0,), (1,), (3,), (8,), (8, 1), (0, 4, 5), (8, 4, 5), (8, 4, 5, 1), (8, 4, 5, 2), (8, 5, 4, 3), (8, 0, 5, 3),
          (2, 2, 2, 2, 2), (10**12,), (2**62, 4), (-1,)]  # fmt: skip


def header(descr: str, shape: str, version: bytes = b"\x01\x00") -> bytes:
    """An array file by hand, so that it can claim what numpy would not write."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text) & 0xFFFF) + text


@st.composite
def other_arrays(draw: st.DrawFn, name: str) -> bytes:
    """Another array in the place of that one: of another kind or shape, with odd values, or a header that lies."""
    good = arrays()[name]
    kinds = ["dtype", "shape", "values", "names", "form", "form", "claim", "pickle", "bytes", "raw", "raw"]
    match draw(st.sampled_from(kinds)):
        case "dtype":
            kind = np.dtype(draw(st.sampled_from(DTYPES)))
            return npy(np.zeros(draw(st.sampled_from([good.shape, *SHAPES[:13]])), kind))
        case "shape":
            return npy(np.resize(good, draw(st.sampled_from(SHAPES[:13]))))
        case "values" if good.dtype.kind == "i":
            odd = draw(st.sampled_from([x for x in NASTY_NUMBERS if isinstance(x, int) and abs(x) < 2**63]))
            return npy(np.array([odd, *good[1:].tolist()]))
        case "names":
            if draw(st.integers(0, 9)) == 0:
                return npy(np.arange(100_000).astype(str))
            count = draw(st.sampled_from([2, 3, 4, 200]))
            texts = st.one_of(st.sampled_from([*NASTY_TEXT, "ow\ud800"]), st.text(max_size=5))
            beyond = draw(
                st.sampled_from([b"", b"", b"l\0\x11\0", b"\xff\xff\xff\x7f"])
            )  # no character has this number
            whole = npy(np.array([draw(texts) for _ in range(count)]))
            return whole[: len(whole) - len(beyond)] + beyond
        case "claim":
            descr = draw(
                st.sampled_from([*(repr(d) for d in DTYPES), "'U999999999999'", "[]", "'<f8' * 9", "__import__('os')"])
            )
            shape = draw(
                st.sampled_from([str(s) for s in SHAPES] + ["(True,)", "('a',)", "8", "(9**9**9,)", "(" * 300])
            )
            return header(descr, shape, draw(st.sampled_from([b"\x01\x00", b"\x03\x00", b"\x09\x09"]))) + good.tobytes()
        case "form" if good.ndim == 4:  # taken for what it is, or nearly
            value = draw(st.sampled_from([0, 1, 0.5, 254.5, 256, -1, np.nan, np.inf]))
            array = good / draw(st.sampled_from([1, 2, 255, 254, 1e-300]))
            array[0, 0, 0, 0] = draw(st.sampled_from([value, array[0, 0, 0, 0]]))
            array = array.astype(draw(st.sampled_from(["f2", "f4", "f8", "g", "i8", "u8", "i1", ">u2"])))
            array = array[..., draw(st.sampled_from([[0], [0, 1], [0, 1, 2], [0, 1, 2, 0]]))]
            return npy(array.transpose(0, 3, 1, 2) if draw(st.booleans()) else array)
        case "form":
            numbers = good.dtype.kind == "i"
            array = np.eye(draw(st.sampled_from([3, 3, 4])))[good] if numbers else good
            array = draw(st.sampled_from([array, array, good, good[:, None], good[None]]))
            return npy(array.astype(draw(st.sampled_from(["U9", "S9", *(["?", "f2", "f8", "u1"] if numbers else [])]))))
        case "pickle":
            return npy(np.array([{"a": 1}, Path("x")], dtype=object))
        case "bytes":
            return draw(st.binary(max_size=200))
    # Damage that no checksum notices: names that are no text, labels and headers that are off by a bit.
    return draw(corrupted(MEMBERS[name]))


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """An npz with members replaced, missing, doubled and added, and in half of the cases damaged as a whole."""
    members = dict(MEMBERS)
    extra: list[tuple[str, bytes]] = []
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(MEMBERS)))
        match draw(st.sampled_from(["other", "other", "other", "missing", "twice", "slip", "bare"])):
            case "other":
                members[name] = draw(other_arrays(name))
            case "missing":
                members.pop(name, None)
            case "twice":
                extra.append((f"{name}.npy", draw(other_arrays(name))))
            case "slip":
                path = draw(
                    st.sampled_from(
                        ["../slip.npy", "/tmp/slip.npy", "..\\slip", "a/b.npy", "", "train_images", "\udcff.npy"]
                    )
                )
                extra.append((path.encode(errors="replace").decode(), b"x"))
            case "bare" if name in members:
                extra.append((name, members.pop(name)))  # a member that does not end in .npy
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        for name, data in [*((f"{name}.npy", data) for name, data in members.items()), *extra]:
            archive.writestr(zipfile.ZipInfo(name), data)
    return draw(corrupted(buffer.getvalue())) if draw(st.booleans()) else buffer.getvalue()


def assert_usable(dataset: Dataset) -> None:
    K = len(dataset.classes)
    assert K >= 2 and len(set(dataset.classes)) == K
    "".join(dataset.classes).encode()  # they are written to files and to MLflow
    for split in filter(None, (dataset.train, dataset.test)):
        N, C, H, W = split.images_NCHW.shape
        assert N and C in (1, 3) and H and W
        assert split.images_NCHW.dtype == torch.uint8
        for labels_N in (split.labels_N, split.clean_N):
            if labels_N is not None:
                assert labels_N.shape == (N,) and labels_N.dtype == torch.int64
                assert int(labels_N.min()) >= 0 and int(labels_N.max()) < K


@sizes(60, 440)
def test_a_damaged_npz_is_a_data_set_or_one_sentence(tmp_path: Path, cases: int) -> None:
    file = tmp_path / "data" / "mine.npz"
    file.parent.mkdir()

    def check_one(raw: bytes) -> None:
        file.write_bytes(raw)
        try:
            assert_usable(Npz(path=str(file)).load(tmp_path))
        except BadInput as error:
            assert_one_sentence(str(error), "mine.npz")
        assert [entry.name for entry in tmp_path.rglob("*")] == ["data", "mine.npz"], "something was unpacked"

    fuzz("npz", cases, archives(), check_one)


# ---- images ----


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.radial_gradient("L").resize((width, height)).convert(mode)


def encoded(kind: str, image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


KINDS = {
    "png": "PNG",
    "jpg": "JPEG",
    "gif": "GIF",
    "bmp": "BMP",
    "webp": "WEBP",
    "tif": "TIFF",
    "ppm": "PPM",
    "pgm": "PPM",
    "avif": "AVIF",
}
IMAGES = {ending: encoded(kind, picture(12, 9)) for ending, kind in KINDS.items()}
SIDES = [0, 1, 2, 9, 12, 1000, 9000, 30_000, 65_535, 2**31 - 1]


def png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@st.composite
def image_files(draw: st.DrawFn) -> tuple[str, bytes, dict[str, Any]]:
    """(ending, bytes, settings): damaged, of another kind than its name says, of odd size, or lying about its size."""
    ending, other = draw(st.sampled_from(sorted(KINDS))), draw(st.sampled_from(sorted(KINDS)))
    settings: dict[str, Any] = {"image_size": draw(st.sampled_from([None, None, 8, 9, 16]))}
    settings |= {"depth": draw(st.sampled_from([None, 1, 8, 16, 32]))}
    settings |= {"on_bad_image": draw(st.sampled_from(["error", "error", "skip"]))}
    width, height = draw(st.sampled_from(SIDES)), draw(st.sampled_from(SIDES))
    match draw(st.sampled_from(["damage"] * 6 + ["kind", "mode", "sides", "lie", "lie", "junk"])):
        case "damage":
            return ending, draw(corrupted(IMAGES[ending])), settings
        case "kind":
            return ending, IMAGES[other], settings
        case "mode":
            mode = draw(st.sampled_from(["1", "L", "P", "LA", "RGBA", "CMYK", "I", "F", "I;16", "YCbCr"]))
            kind = "TIFF" if mode not in ("LA", "RGBA", "P") else "PNG"
            return ending, encoded(kind, picture(12, 9, mode)), settings
        case "sides":
            thin = (draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 500, 20_000])))
            return ending, encoded("PNG", picture(*(thin if draw(st.booleans()) else thin[::-1]))), settings
        case "lie" if ending == "png":
            return ending, png_of(width, height), settings
        case "lie" if ending in ("gif", "bmp"):
            data = bytearray(IMAGES[ending])
            where, form = (6, "<HH") if ending == "gif" else (18, "<ii")
            struct.pack_into(form, data, where, min(width, 65_535), min(height, 65_535))
            return ending, bytes(data), settings
        case "lie":
            number = draw(st.sampled_from([str(width), "-1", "9" * 30, "1e9", ""]))
            return ending, f"P6 {number} {height} 255\n".encode() + b"\0" * 99, settings
    return ending, draw(st.binary(max_size=60)), settings


@sizes(40, 360)
def test_a_damaged_image_is_an_image_or_one_sentence(tmp_path: Path, cases: int) -> None:
    top, root = tmp_path / "pets", tmp_path / "root"
    for name in ("train/cat", "train/dog", "test/cat"):
        (top / name).mkdir(parents=True)
        (top / name / "good.png").write_bytes(IMAGES["png"])

    def check_one(case: tuple[str, bytes, dict[str, Any]]) -> None:
        ending, raw, settings = case
        file = top / "train" / "dog" / f"odd.{ending}"
        file.write_bytes(raw)
        try:
            dataset = ImageFolder(path=str(top), **settings).load(root)
            assert_usable(dataset)
            odd = f"train/dog/odd.{ending}"
            left_out = [path for path, _ in dataset.left_out]
            assert left_out in ([], [odd]) and (settings["on_bad_image"] == "skip" or not left_out)
            assert dataset.train.files == ("train/cat/good.png", "train/dog/good.png", *([] if left_out else [odd]))
        except BadInput as error:
            assert_one_sentence(str(error), str(file))
        finally:
            file.unlink()
            shutil.rmtree(root, ignore_errors=True)  # a cache would hide what the next case holds

    fuzz("image", cases, image_files(), check_one)


# ---- lists, and what `nlt detect` judges ----


def assert_judgeable(data: Labelled, N: int) -> None:
    K = len(data.classes)
    assert K >= 2 and len(set(data.classes)) == K and len(set(data.names)) == len(data.names) == len(data.sums)
    assert len(data.labels_N) + len(data.left_out) <= N and data.labels_N.dtype == np.int64
    assert int(data.labels_N.min()) >= 0 and int(data.labels_N.max()) < K
    assert data.rows is None or len(data.rows) == len(data.names)
    "".join((*data.classes, *data.names, *data.notes)).encode()


CSV = 'path,label,note\r\na.png,cat,1\r\n"b c.png",dog,\r\nsub/ä.png,"owl, brown",x\r\n'
ODD_PATHS = [
    "a.png",
    "b c.png",
    "sub\\ä.png",
    "./a.png",
    "../a.png",
    "/etc/passwd",
    "/",
    ".",
    "..",
    "sub",
    "out.png",
    "gone.png",
]


@st.composite
def lists(draw: st.DrawFn) -> bytes:
    """A CSV that is damaged, or has odd cells, signs, quotes, ends of lines and encodings."""
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "utf-32"]))
    if draw(st.booleans()):
        raw = CSV.encode(encoding)
        return draw(corrupted(raw)) if draw(st.booleans()) else raw
    texts = st.one_of(
        st.sampled_from([*ODD_PATHS, *NASTY_TEXT]), st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    )
    rows = [["path", "label", "note"][: draw(st.sampled_from([1, 2, 2, 3]))]]
    rows += draw(st.lists(st.lists(texts, max_size=4), max_size=4))
    rows += [["a.png", "cat"], ["b c.png", draw(texts)]] * draw(st.booleans())
    sign, quote, end = (
        draw(st.sampled_from(',;\t|: ^"')),
        draw(st.sampled_from(["", '"', "'"])),
        draw(st.sampled_from(["\n", "\r\n", "\r"])),
    )
    text = end.join(sign.join(quote + cell + quote for cell in row) for row in rows)
    return (draw(st.sampled_from(["", "", "sep=;\n"])) + text).encode(encoding, errors="replace")


@sizes(80, 800)
def test_a_damaged_list_is_a_data_set_or_one_sentence(tmp_path: Path, cases: int) -> None:
    top = tmp_path / "shots"
    (top / "sub").mkdir(parents=True)
    for name in ("a.png", "b c.png", "sub/ä.png"):
        (top / name).write_bytes(IMAGES["png"])
    (top / "out.png").symlink_to("/etc/hostname")
    (top / "gone.png").symlink_to("nothing.png")
    before = sorted(tmp_path.rglob("*"))

    def check_one(raw: bytes) -> None:
        file = tmp_path / "mine.csv"
        file.write_bytes(raw)
        refusals = []
        for read in (
            lambda: assert_judgeable(read_labelled(top, file), 3),
            lambda: assert_usable(ImageList(path=str(file), root=str(top)).load(tmp_path / "root")),
        ):
            try:
                read()
            except BadInput as error:
                refusals.append(str(error))
                assert_one_sentence(str(error), "mine.csv" if "mine.csv" in str(error) else str(top))
        assert len(refusals) in (0, 2), f"one takes it and the other does not: {refusals}"
        file.unlink()
        shutil.rmtree(tmp_path / "root", ignore_errors=True)
        assert sorted(tmp_path.rglob("*")) == before

    fuzz("list", cases, lists(), check_one)


@sizes(60, 500)
def test_damaged_numbers_are_numbers_or_one_sentence(tmp_path: Path, cases: int) -> None:
    good = np.random.RandomState(0).dirichlet([1, 1, 1], 6).astype(np.float32)
    whole = {
        "numbers.npy": npy(good),
        "labels.npy": npy(np.arange(6) % 3),
        "labels.csv": b"id,label\n" + b"".join(b"%d,%d\n" % (i, i % 3) for i in range(6)),
    }

    def check_one(case: tuple[str, bytes, str, str]) -> None:
        name, raw, labels, kind = case
        for each, content in whole.items():
            (tmp_path / each).write_bytes(raw if each == name else content)
        try:
            found = read_numbers(tmp_path / labels, **{kind: tmp_path / "numbers.npy"})
            assert_judgeable(found.data, 10**6)
            values = found.features_ND if kind == "features" else found.probabilities_NK
            assert values is not None and len(values) == len(found.data) and np.isfinite(values).all()
        except BadInput as error:
            assert_one_sentence(str(error), "labels." if "labels." in str(error) else "numbers.npy")

    damaged = st.sampled_from(sorted(whole)).flatmap(lambda name: st.tuples(st.just(name), corrupted(whole[name])))
    odd = other_arrays("train_labels").map(lambda raw: ("labels.npy", raw)) | other_arrays("train_images").map(
        lambda raw: ("numbers.npy", raw)
    )
    cases_of = st.tuples(
        damaged | odd, st.sampled_from(["labels.npy", "labels.csv"]), st.sampled_from(["features", "probabilities"])
    )
    fuzz("numbers", cases, cases_of.map(lambda case: (*case[0], *case[1:])), check_one)


# ---- what noise is read from ----


def noise_files() -> dict[str, bytes]:
    """Labels of ten images and a matrix of three classes, in each form."""
    arrays = {"worse": np.arange(10) % 3, "words": np.array(["cat", "dog", "owl"])[np.arange(10) % 3]}
    files = {f"h{i}.pt": io.BytesIO() for i in range(3)} | {name: io.BytesIO() for name in ("h.npy", "h.npz", "T.npy")}
    torch.save(arrays, files["h0.pt"])
    torch.save(arrays, files["h1.pt"], _use_new_zipfile_serialization=False)
    torch.save({"worse": torch.from_numpy(arrays["worse"])}, files["h2.pt"])
    np.save(files["h.npy"], np.array(arrays), allow_pickle=True)
    np.savez(files["h.npz"], **arrays)
    np.save(files["T.npy"], np.eye(3))
    return {name: file.getvalue() for name, file in files.items()} | {
        "h.csv": b"id,worse\n" + b"".join(b"%d,%d\n" % (i, i % 3) for i in range(10)),
        "T.csv": b"0.5,0.25,0.25\n0,1,0\n0.1,0.1,0.8\n",
    }


@sizes(40, 600)
def test_a_damaged_file_of_noise_gives_labels_or_one_sentence(tmp_path: Path, cases: int) -> None:
    whole, labels_N = noise_files(), torch.arange(10) % 3
    train = Samples(torch.zeros(10, 1, 1, 1, dtype=torch.uint8), torch.arange(10), labels_N, labels_N)
    data = Dataset("mine", ("cat", "dog", "owl"), train, train, "0" * 16, all_images=10)

    def check_one(case: tuple[str, bytes, str | None]) -> None:
        name, raw, key = case
        (tmp_path / name).write_bytes(raw)
        path = str(tmp_path / name)
        try:
            noise = Human(path=path, key=key) if name.startswith("h") else Matrix(path=path)
            given_N = noise.draw_labels(with_noise_file(data, noise))
            assert given_N.shape == (10,) and given_N.dtype == torch.int64
            assert int(given_N.min()) >= 0 and int(given_N.max()) < 3
        except BadInput as error:
            assert_one_sentence(str(error), name)
        assert [entry.name for entry in tmp_path.iterdir()] == [name], "something was made"
        (tmp_path / name).unlink()

    damaged = st.sampled_from(sorted(whole)).flatmap(lambda name: st.tuples(st.just(name), corrupted(whole[name])))
    odd = other_arrays("train_labels").map(lambda raw: ("h.npy", raw)) | lists().map(lambda raw: ("h.csv", raw))
    keys = st.sampled_from(["worse", "worse", "words", None])
    fuzz("noise file", cases, st.tuples(damaged | damaged | odd, keys).map(lambda case: (*case[0], case[1])), check_one)


# ---- paths ----


@sizes(20, 130)
def test_an_odd_path_is_refused_in_one_sentence(tmp_path: Path, cases: int) -> None:
    texts = st.one_of(
        st.sampled_from([*NASTY_TEXT, "/dev/zero", "/dev/stdin", "/proc/self/mem", "/"]), st.text(max_size=30)
    )
    kinds = st.sampled_from(["npz", "image_folder", "image_list", "matrix", "human"])

    def check_one(case: tuple[str, str, str]) -> None:
        kind, path, below = case
        part = "noise" if kind in ("matrix", "human") else "data"
        with pytest.raises(BadInput) as caught:
            check(tiny(**{part: {"name": kind, "path": path + below}}), "x.json").load_data(tmp_path)
        assert_one_sentence(str(caught.value), f"{part}.path")

    fuzz("data path", cases, st.tuples(kinds, texts, st.sampled_from(["", "", "/a", "\0", "/" + "b" * 300])), check_one)
