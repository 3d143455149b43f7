"""`nlt detect` and `nlt apply`, from the command line to the output folder and MLflow, on digits as PNG files."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cleaning import decisions_csv, judged
from click.testing import CliRunner, Result
from PIL import Image
from sklearn.datasets import load_digits

from nlt.cleaning import write_output
from nlt.cli import main
from nlt.cli.detect import beside
from nlt.data.labelled import read_labelled
from nlt.settings import BadInput
from nlt.tracking import open_store

PIXELS = ("--backbone", "pixels")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """600 digits as files, a folder for each given label, 60 of them wrong; and the paths of the wrong ones."""
    top = tmp_path_factory.mktemp("planted") / "digits"
    digits = load_digits()
    generator = np.random.default_rng(0)
    labels_N = digits.target[:600].copy()
    wrong_rows = generator.choice(600, 60, replace=False)
    labels_N[wrong_rows] = (labels_N[wrong_rows] + generator.integers(1, 10, 60)) % 10
    for row, (image_HW, label) in enumerate(zip(digits.images[:600], labels_N, strict=True)):
        (top / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((image_HW * 15.9).astype(np.uint8)).save(top / str(label) / f"{row:03}.png")
    return top, {f"{labels_N[row]}/{row:03}.png" for row in wrong_rows}


@pytest.fixture
def run(tmp_path: Path, store_uri: str) -> Any:
    def run(*arguments: object) -> Result:
        where = ("--tracking-uri", store_uri, "--data-root", str(tmp_path / "data"))
        return CliRunner().invoke(main, [*map(str, arguments), *(where if arguments[0] == "detect" else ())])

    return run


def listing(folder: Path) -> dict[str, str]:
    """Path -> hash of what it holds."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def every_fourth(top: Path) -> str:
    """A table of labels, those of the folders, for a quarter of the images."""
    names = sorted(str(file.relative_to(top)) for file in top.rglob("*.png"))[::4]
    return "path,label\n" + "".join(f"{name},{name[0]}\n" for name in names)


def test_planted_errors_are_found_and_the_data_set_comes_back_clean(planted, run, tmp_path, store_uri):
    top, wrong = planted
    before, out = listing(top), tmp_path / "out"
    result = run("detect", top, *PIXELS, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["images"], found["features"], found["out"]) == (600, "pixels", str(out))
    assert found["rate_low"] <= 0.1 <= found["rate_high"]
    assert listing(top) == before
    rows = list(csv.DictReader((out / "labels.csv").open(encoding="utf-8")))
    assert len(rows) == 600
    flagged = {row["path"] for row in rows if row["decision"] == "remove"}
    assert len(flagged) == found["flagged"]
    assert len(flagged & wrong) >= 45
    assert len(flagged - wrong) <= 12
    assert {row["path"] for row in rows[:30]} <= wrong  # worst first
    kept = {str(file.relative_to(out / "clean")) for file in (out / "clean").rglob("*.png")}
    assert kept == {row["path"] for row in rows} - flagged
    store = open_store(store_uri)
    mlflow_run = store.client.get_run(found["run_id"])
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.metrics["detect/rate"] == found["rate"]
    names = {file.path for file in store.client.list_artifacts(found["run_id"])}
    assert {"report.html", "labels.csv", "manifest.json", "images"} <= names


def test_the_same_input_gives_the_same_bytes_from_the_cache_too(planted, run, tmp_path):
    top, _ = planted
    outputs = []
    for name, more in (("a", ()), ("b", ()), ("c", ("--data-root", tmp_path / "fresh"))):
        result = run("detect", top, *PIXELS, "--out", tmp_path / name / "out", *more)
        assert result.exit_code == 0, result.output
        outputs.append(listing(tmp_path / name / "out"))
    assert outputs[0] == outputs[1] == outputs[2]


def test_features_and_probabilities_of_ones_own_go_through_the_same_detector(run, tmp_path):
    digits = load_digits()
    labels_N = digits.target[:400].copy()
    labels_N[:20] = (labels_N[:20] + 1) % 10
    np.save(tmp_path / "features.npy", digits.data[:400].astype(np.float32))
    (tmp_path / "labels.csv").write_text("label\n" + "\n".join(map(str, labels_N)) + "\n")
    result = run("detect", "--features", tmp_path / "features.npy", "--labels", tmp_path / "labels.csv",
                 "--out", tmp_path / "out", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "out" / "labels.csv").open()))
    assert len({int(row["id"]) for row in rows[:15]} & set(range(20))) >= 13
    assert (tmp_path / "out" / "clean.csv").exists()
    p_NK = np.full((400, 10), 0.01, np.float32)
    p_NK[np.arange(400), digits.target[:400]] = 0.91
    np.save(tmp_path / "p.npy", p_NK)
    result = run("detect", "--probabilities", tmp_path / "p.npy", "--labels", tmp_path / "labels.csv",
                 "--out", tmp_path / "p", "--json", "--action", "relabel")  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "p" / "labels.csv").open()))
    assert {int(row["id"]) for row in rows[:20]} == set(range(20))
    assert all(int(row["label"]) == digits.target[int(row["id"])] for row in rows)


def archive(file: Path, clean_N: np.ndarray) -> Path:
    digits = load_digits()
    labels_N = digits.target[:300].copy()
    labels_N[:30] = (labels_N[:30] + 3) % 10
    images = (digits.images[:300] * 15.9).astype(np.uint8)
    np.savez(file, train_images=images, train_labels=labels_N, train_clean_labels=clean_N)
    return file


def test_clean_labels_are_measured_against_and_nothing_else(run, tmp_path):
    """Lying ones change the measures and no finding."""
    truth_N = load_digits().target[:300]
    found = []
    for name, clean_N in (("true", truth_N), ("lie", (truth_N + np.arange(300) % 2) % 10)):
        file = archive(tmp_path / f"{name}.npz", clean_N)
        result = run("detect", file, *PIXELS, "--out", tmp_path / name, "--json")
        assert result.exit_code == 0, result.output
        found.append((json.loads(result.stdout), (tmp_path / name / "labels.csv").read_bytes()))
    (true, labels), (lie, same_labels) = found
    assert labels == same_labels
    assert true["rate"] == lie["rate"]
    assert true["auroc"] > 0.97 > lie["auroc"]
    assert true["recall"] > 0.4
    assert true["precision"] > 0.7
    assert true["rate_error"] == pytest.approx(true["rate"] - 0.1)


def test_decisions_are_taken_in(planted, run, tmp_path):
    top, _ = planted
    out = tmp_path / "out"
    assert run("detect", top, *PIXELS, "--out", out).exit_code == 0
    worst = next(csv.DictReader((out / "labels.csv").open(encoding="utf-8")))
    (tmp_path / "mine.csv").write_text(f"path,decision,label\n{worst['path']},keep,\n")
    for _ in range(2):  # the second time changes nothing
        result = run("apply", out, tmp_path / "mine.csv", "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["kept"] == 1
    assert (out / "clean" / worst["path"]).is_file()
    result = run("apply", out, tmp_path / "mine.csv")
    assert "1 samples decided: 1 kept" in result.output
    result = run("detect", top, *PIXELS, "--out", out)  # judges anew, and says that what people decided waits
    assert f"what people decided is kept, and is no part of this result: nlt apply {out} takes it in." in result.output
    assert not (out / "clean" / worst["path"]).exists()
    assert run("apply", out).exit_code == 0
    assert (out / "clean" / worst["path"]).is_file()


def test_a_csv_alone_has_its_output_beside_its_folder(planted, store_uri, tmp_path, monkeypatch):
    """The second call, too, in whose folder nlt's own ones lie by then: only images of the CSV's rows are judged."""
    digits, table = tmp_path / "digits", tmp_path / "digits" / "labels.csv"
    shutil.copytree(planted[0], digits)
    table.write_text(every_fourth(digits))
    monkeypatch.chdir(digits)
    for action in ("remove", "keep"):
        command = ["detect", "labels.csv", *PIXELS, "--action", action, "--tracking-uri", store_uri]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    assert len(list(csv.DictReader((tmp_path / "digits.nlt" / "labels.csv").open(encoding="utf-8")))) == 150


def test_other_labels_of_the_same_images_do_not_replace_a_result(planted, run, tmp_path):
    top, _ = planted
    for who in ("ann", "bob"):
        (tmp_path / f"{who}.csv").write_text(every_fourth(top))
    call = ("detect", top, *PIXELS, "--out", tmp_path / "out", "--labels")
    assert run(*call, tmp_path / "ann.csv").exit_code == 0
    before = listing(tmp_path / "out")
    for other, what in (((*call, tmp_path / "bob.csv"), "bob.csv"), (call[:-1], "labels in the folders")):
        result = run(*other)
        assert result.exit_code == 2, result.output
        assert "ann.csv, not of" in result.output and what in result.output
        assert listing(tmp_path / "out") == before
    assert run(*call, tmp_path / "ann.csv").exit_code == 0


def test_from_within_the_images_nothing_is_written_among_them(planted, tmp_path, monkeypatch):
    shutil.copytree(planted[0], tmp_path / "digits")
    before = listing(tmp_path)
    monkeypatch.chdir(tmp_path / "digits")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for more in ((), ("--data-root", str(tmp_path / "data"))):
        result = CliRunner().invoke(main, ["detect", ".", *PIXELS, *more])
        assert result.exit_code == 2, result.output
        assert "/ would lie in the input ., which is never touched: run nlt in the folder above" in result.output
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "said"), [(("",), "it is empty"), ((".", "--seed", str(2**32)), "0<=x<=4294967295")]
)
def test_what_click_refuses(run, arguments, said):
    result = run("detect", *arguments)
    assert result.exit_code == 2 and said in result.output


@pytest.mark.slow
def test_nobody_listens_and_the_work_is_done_all_the_same(planted, tmp_path):
    command = [sys.executable, "-m", "nlt.cli", "detect", str(planted[0]), *PIXELS, "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait(timeout=300) == 0, process.stderr.read()
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a folder of images"),
        (("{tmp}/nowhere",), "nowhere is not there"),
        (("{top}", "--features", "{tmp}/x.npy"), "name images or numbers, not both"),
        (("--features", "{tmp}/x.npy"), "needs --labels"),
        (("{top}", "--out", "{tmp}"), "{tmp}"),
        (("{top}", "--out", "{top}/inside"), "inside"),
        (("{top}", "--backbone", "resnet"), "--backbone 'resnet'"),
        (("{top}", "--weights", "w.pt"), "--weights goes with"),
        (("{top}", "--image-size", "0"), "--image-size 0"),
        (("{top}", "--device", "tpu"), "--device tpu"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_leaves_nothing(planted, run, tmp_path, arguments, said):
    top, _ = planted
    (tmp_path / "mine.txt").write_text("mine")
    before = set(listing(tmp_path))
    result = run("detect", *(a.format(top=top, tmp=tmp_path) for a in arguments))
    assert result.exit_code == 2, result.output
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    assert said.format(top=top, tmp=tmp_path) in result.output
    assert set(listing(tmp_path)) == before


def test_a_tracking_server_that_goes_away_loses_nothing(planted, run, tmp_path, monkeypatch):
    from mlflow.exceptions import MlflowException

    def away(*_: object, **__: object) -> str:
        raise MlflowException("away")

    monkeypatch.setattr("nlt.tracking.detection.write_detection", away)
    result = run("detect", planted[0], *PIXELS, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "MLflow has no run of it" in result.output
    assert (tmp_path / "out" / "report.html").exists()


def test_an_estimate_that_is_unreliable_removes_nothing(run, tmp_path):
    """Pixels of noise know nothing of their labels: nearly all look wrong, and the data set would be gone."""
    generator = np.random.default_rng(0)
    for row in range(60):
        file = tmp_path / "noise" / "ab"[row % 2] / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
    result = run("detect", tmp_path / "noise", *PIXELS, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "unreliable: the predictions agree with" in result.stdout
    assert "the estimate is unreliable: nothing is removed" in result.stderr
    assert len(list((tmp_path / "out" / "clean").rglob("*.png"))) == 60
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["action"] == "keep"
    result = run("detect", tmp_path / "noise", *PIXELS, "--out", tmp_path / "out", "--action", "remove")
    kept = {file.parent.name for file in (tmp_path / "out" / "clean").rglob("*.png")}
    assert len(kept) < 2  # by no means what anybody wants
    emptied = ", ".join(f"'{name}'" for name in sorted({"a", "b"} - kept))
    assert f"the clean data set has no sample of {emptied}: look before you use it." in result.stderr


def test_whatever_ails_mlflow_costs_no_result(planted, run, tmp_path, store_uri):
    """The experiment of detections is deleted: runs cannot be made in it."""
    top, _ = planted
    store = open_store(store_uri)
    store.client.delete_experiment(store.client.create_experiment("detect"))
    result = run("detect", top, *PIXELS, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["run_id"] is None and (tmp_path / "out" / "labels.csv").exists()
    assert "MLflow has no run of it (the MLflow experiment 'detect' is deleted: restore it" in result.stderr


def test_an_export_that_cannot_be_is_refused_before_the_work(run, tmp_path):
    np.savez(tmp_path / "a.npz", train_images=np.zeros((12, 8, 8), np.uint8), train_labels=np.arange(12) % 2)
    result = run("detect", tmp_path / "a.npz", *PIXELS, "--export", "labelstudio")
    assert result.exit_code == 2 and "needs image files and the input is an npz" in result.output
    assert not (tmp_path / "data").exists()


def test_a_tilde_is_the_home_folder(planted, store_uri, tmp_path, monkeypatch):
    top, _ = planted
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = ("--out=~/out", "--data-root=~/cache", "--tracking-uri", store_uri)
    result = CliRunner().invoke(main, ["detect", str(top), *PIXELS, *options])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "labels.csv").exists() and (tmp_path / "cache").exists()
    assert not (tmp_path / "~").exists()


def test_a_name_that_is_not_in_utf_8_is_refused(run, tmp_path):
    folder = os.fsdecode(bytes(tmp_path) + b"/ph\xff")
    os.mkdir(folder)
    result = run("detect", folder)
    assert result.exit_code == 2 and "its name is not in UTF-8: rename it" in result.output


def test_a_name_does_not_steer_the_terminal(planted, run, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(planted[0], tmp_path / "in" / split)
    (tmp_path / "in" / "evil\x1b[2J\x1b]0;me\x07").mkdir()
    result = run("detect", tmp_path / "in", *PIXELS)
    assert result.exit_code == 0, result.output
    assert "\\x1b[2J" in result.stderr and "\x1b" not in result.output


def test_an_interrupt_leaves_nothing_half_written_and_the_caches(planted, run, tmp_path, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nlt.cleaning.write_output", interrupt)
        result = run("detect", planted[0], *PIXELS, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert "the same command goes on from its caches" in result.output
    assert not (tmp_path / "out").exists()
    kept = listing(tmp_path / "data")
    assert any(name.startswith("features/") for name in kept)
    assert run("detect", planted[0], *PIXELS, "--out", tmp_path / "out").exit_code == 0
    assert listing(tmp_path / "data") == kept  # nothing was made twice


@pytest.mark.parametrize(
    ("source", "out"),
    [("photos", "photos.nlt"), ("photos/", "photos.nlt"), ("a/b.npz", "a/b.npz.nlt"), (".", "{here}.nlt"),
     ("x/..", "{here}.nlt")],
)  # fmt: skip
def test_the_output_lies_beside_the_input(source, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    assert str(beside(Path(source))) == out.format(here=tmp_path)


def test_the_root_has_nothing_beside_it():
    with pytest.raises(BadInput, match="--out"):
        beside(Path("/"))


def test_heic_is_exported_by_a_process_that_has_judged_none(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    for number, name in enumerate(("cat/1", "cat/2", "dog/1")):
        pixels_HWC = np.random.RandomState(number).randint(0, 256, (16, 16, 3)).astype(np.uint8)
        (file := tmp_path / "photos" / f"{name}.heic").parent.mkdir(parents=True, exist_ok=True)
        heif.from_bytes("RGB", (16, 16), pixels_HWC.tobytes()).save(file, quality=90)
    data = read_labelled(tmp_path / "photos")
    write_output(tmp_path / "out", data, judged(data), export="npz")
    told = decisions_csv(tmp_path / "d.csv", [{"path": "cat/1.heic", "decision": "remove"}])
    command = [sys.executable, "-c", "from nlt.cli import main; main()", "apply", str(tmp_path / "out"), str(told)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out/clean.npz") as found:
        assert (found["train_images"].transpose(0, 3, 1, 2) == data.read(1, 3, 16)).all()
