"""From findings to the output folder: decisions, labels.csv, the clean data set in four forms, whole or not there."""

import csv
import hashlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cleaning import Issue, Labelled, folder, judged, picture, tree, write_images
from fuzzing import assert_one_sentence
from PIL import Image

import nlt.cleaning.folder
from nlt.cleaning import decide, write_output
from nlt.cleaning.export import Clean, folder_names, write_labelstudio, write_npz
from nlt.cleaning.folder import built, check_place
from nlt.data.labelled import read_labelled
from nlt.settings import BadInput

PATHS = ["cat/1.png", "cat/2.png", "cat/old/1.png", "dog/1.png", "dog/2.png", "owl/1.png"]
SUGGESTED = {"cat/1.png": "dog", "dog/2.png": "cat", "owl/1.png": "dog"}


@pytest.fixture
def data(tmp_path: Path) -> Labelled:
    return folder(tmp_path / "photos", PATHS)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "photos.nlt"


def by_name(table: pd.DataFrame, column: str) -> dict[str, str]:
    return dict(zip(table.iloc[:, 0], table[column], strict=True))


# ---- decisions ----


def test_remove_takes_out_what_is_flagged_and_the_worst_stand_first(data):
    p = {"cat/1.png": 0.6, "dog/2.png": 0.99, "owl/1.png": 0.8, "cat/2.png": 0.5}
    table = decide(data, judged(data, SUGGESTED, p), [])
    assert list(table["path"]) == ["dog/2.png", "owl/1.png", "cat/1.png", "cat/2.png", "cat/old/1.png", "dog/1.png"]
    assert list(table["decision"]) == ["remove"] * 3 + ["keep"] * 3
    assert list(table["reason"]) == ["p_wrong"] * 3 + [""] * 3
    assert list(table["label"]) == ["", "", "", "cat", "cat", "dog"]
    assert list(table.index) == [4, 5, 0, 1, 2, 3]


def test_relabel_needs_a_suggestion_more_probable_than_all_others(data):
    errors = judged(data, SUGGESTED)
    errors.p_true_NK[0] = [0.1, 0.45, 0.45]
    table = decide(data, errors, [], "relabel")
    assert by_name(table, "decision")["cat/1.png"] == "remove"
    assert by_name(table, "reason")["cat/1.png"] == "p_wrong; no_confident_suggestion"
    assert by_name(table, "label")["dog/2.png"] == "cat" and by_name(table, "decision")["dog/2.png"] == "relabel"


def test_keep_changes_nothing_and_sends_to_review(data):
    table = decide(data, judged(data, SUGGESTED), [], "keep")
    assert by_name(table, "decision")["owl/1.png"] == "review"
    assert by_name(table, "label") == {path: path.split("/")[0] for path in PATHS}


def test_of_equal_images_with_different_labels_the_least_doubtful_stays_and_they_stand_first(data):
    issues = [Issue("duplicate_conflict", (1, 4), "the same image"), Issue("one_colour", (3,), "one colour")]
    errors = judged(data, {"owl/1.png": "dog"}, {"cat/2.png": 0.3, "dog/2.png": 0.2})
    table = decide(data, errors, issues, "relabel")
    assert list(table["path"])[:3] == ["cat/2.png", "dog/2.png", "owl/1.png"]
    assert list(table["decision"])[:3] == ["relabel", "keep", "relabel"]
    assert by_name(table, "label")["cat/2.png"] == "dog" and by_name(table, "suggested_label")["cat/2.png"] == "dog"
    assert by_name(table, "reason")["cat/2.png"] == "duplicate_conflict"
    assert by_name(table, "reason")["dog/1.png"] == "one_colour" and by_name(table, "decision")["dog/1.png"] == "keep"
    assert by_name(decide(data, errors, issues, "remove"), "decision")["cat/2.png"] == "remove"
    assert by_name(decide(data, errors, issues, "keep"), "decision")["cat/2.png"] == "review"


def test_where_all_labels_of_a_conflict_are_flagged_none_wins(data):
    errors = judged(data, {"cat/2.png": "owl", "dog/2.png": "owl"})
    table = decide(data, errors, [Issue("duplicate_conflict", (1, 4), "")], "relabel")
    assert by_name(table, "label")["cat/2.png"] == by_name(table, "label")["dog/2.png"] == "owl"


def test_of_copies_one_stays_though_another_label_is_as_probable_as_its_own(data):
    """A trained ranking leaves 1/2 to what it does not flag: with two classes the first one is suggested."""
    for row, name in ((4, "dog/2.png"), (3, "dog/1.png")):
        errors = judged(data, {"cat/2.png": "dog"}, {"cat/2.png": 0.6, "dog/1.png": 0.5, "dog/2.png": 0.5})
        errors.suggested_N[row] = 0
        table = decide(data, errors, [Issue("duplicate_conflict", (1, 3, 4), "")])
        kept = by_name(table, "decision")
        assert (kept["cat/2.png"], kept["dog/1.png"], kept["dog/2.png"]) == ("remove", "keep", "keep")
        assert by_name(table, "suggested_label")[name] == "dog"


def test_unreadable_files_are_listed_last_and_removed(data):
    table = decide(replace(data, left_out=(("cat/bad.png", "truncated", "cat"),)), judged(data), [])
    last = table.iloc[-1]
    assert (last["path"], last["decision"], last["reason"], last["label"]) == (
        "cat/bad.png",
        "remove",
        "unreadable",
        "",
    )
    assert len(table) == 7 and table.index[-1] == -1 and np.isnan(last["p_wrong"])


@pytest.mark.parametrize("wrong", [{"action": "burn"}, {"threshold": 1.5}, {"threshold": float("nan")}])
def test_unknown_actions_and_thresholds_are_refused(data, wrong):
    with pytest.raises(BadInput) as error:
        decide(data, judged(data), [], **wrong)
    assert_one_sentence(str(error.value), *wrong)


# ---- the folder ----


def test_labels_csv_holds_every_sample_with_six_digits(data, out):
    left = replace(data, left_out=(("cat/bad.png", "truncated", "cat"),))
    written = write_output(out, left, judged(data, SUGGESTED, {"cat/1.png": 2 / 3}))
    lines = list(csv.reader(io.StringIO((out / "labels.csv").read_text())))
    assert lines[0] == [
        "path",
        "sha256",
        "given_label",
        "suggested_label",
        "p_wrong",
        "p_y",
        "margin",
        "posterior",
        "decision",
        "reason",
        "label",
    ]
    worst = [line for line in lines if line[0] == "cat/1.png"]
    assert worst == [
        [
            "cat/1.png",
            data.sums[0].hex(),
            "cat",
            "dog",
            "0.666667",
            "0.600000",
            "0.166667",
            "0.666667",
            "remove",
            "p_wrong",
            "",
        ]
    ]
    assert lines[-1] == ["cat/bad.png", "", "cat", "", "", "", "", "", "remove", "unreadable", ""]
    assert (written.images, written.flagged, written.unreadable) == (6, 3, 1)


def test_the_same_input_gives_the_same_bytes_in_any_place(data, tmp_path):
    trees = []
    for name in ("one.nlt", "two.nlt"):
        write_output(tmp_path / name, data, judged(data, SUGGESTED), seed=3, settings={"backbone": "lite0"})
        trees.append(tree(tmp_path / name))
    assert trees[0] == trees[1] and len(trees[0]) > 6


def test_the_manifest_says_what_changed(data, out):
    write_output(out, data, judged(data, SUGGESTED), action="relabel", seed=5, settings={"backbone": "lite0"})
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["source"] == "../photos" and manifest["settings"] == {"backbone": "lite0"} and manifest["seed"] == 5
    assert manifest["decisions"] == {"keep": 3, "relabel": 3}
    assert manifest["given"] == {"cat": 3, "dog": 2, "owl": 1} and manifest["clean"] == {"cat": 3, "dog": 3, "owl": 0}
    assert {(c["name"], c["given_label"], c["label"]) for c in manifest["changes"]} == {
        ("cat/1.png", "cat", "dog"), ("dog/2.png", "dog", "cat"), ("owl/1.png", "owl", "dog")
    }  # fmt: skip


def test_the_clean_folder_keeps_every_file_even_where_names_meet(data, out):
    write_output(out, data, judged(data, SUGGESTED), action="relabel")
    clean = tree(out / "clean")
    assert {name: PATHS[[picture_of(p) for p in range(6)].index(content)] for name, content in clean.items()} == {
        "cat/2.png": "cat/2.png", "cat/old/1.png": "cat/old/1.png", "cat/2-from-dog.png": "dog/2.png",
        "dog/1.png": "dog/1.png", "dog/1-from-cat.png": "cat/1.png", "dog/1-from-owl.png": "owl/1.png",
    }  # fmt: skip
    assert (out / "clean/cat/2.png").samefile(data.source / "cat/2.png")
    assert not (out / "clean/owl").exists()


def test_the_clean_folder_takes_folders_called_like_files_and_names_of_any_length(tmp_path):
    long = "x" * 245 + ".png"
    paths = ["cat/x.png", f"cat/{long}", "cat/y.png/1.png", "cat/z.png", "dog/x.png/1.png", f"dog/{long}", "dog/y.png"]
    data = folder(tmp_path / "photos", paths)
    suggested = {"cat/x.png": "dog", f"cat/{long}": "dog", "cat/y.png/1.png": "dog"}
    write_output(tmp_path / "out", data, judged(data, suggested), action="relabel")
    assert set(tree(tmp_path / "out/clean")) == {
        "cat/z.png", "dog/x.png/1.png", f"dog/{long}", "dog/y.png",
        "dog/x-from-cat.png", f"dog/{'x' * 242}-from-cat.png", "dog/y-from-cat.png/1.png",
    }  # fmt: skip


def picture_of(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def test_removed_ones_are_not_in_the_clean_folder_and_the_input_is_untouched(data, out):
    before = tree(data.source)
    write_output(out, data, judged(data, SUGGESTED))
    assert set(tree(out / "clean")) == {"cat/2.png", "cat/old/1.png", "dog/1.png"}
    assert tree(data.source) == before


def test_names_and_splits_are_made_once_not_once_a_file() -> None:
    """Of 100,000 files that was the difference between a minute and an hour."""
    clean = Clean(Path(), "folder", ("a", "b"), pd.DataFrame({"path": ["a/1.png", "b/2.png"]}), None, None)
    assert clean.names == ["a/1.png", "b/2.png"]
    assert clean.names is clean.names
    assert clean.splits is clean.splits


def test_files_are_copied_where_links_are_not_possible(data, out, monkeypatch):
    def link(*args, **more):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    write_output(out, data, judged(data, SUGGESTED))
    assert (out / "clean/cat/2.png").read_bytes() == picture_of(1)
    assert not (out / "clean/cat/2.png").samefile(data.source / "cat/2.png")


def test_splits_stay_apart(tmp_path):
    paths = ["train/cat/1.png", "train/dog/1.png", "validation/cat/1.png", "validation/dog/1.png"]
    data = folder(tmp_path / "photos", paths, splits=("train", "train", "val", "val"))
    write_output(tmp_path / "out", data, judged(data, {"train/cat/1.png": "dog"}), action="relabel")
    assert set(tree(tmp_path / "out/clean")) == {
        "train/dog/1.png", "train/dog/1-from-cat.png", "validation/cat/1.png", "validation/dog/1.png"
    }  # fmt: skip
    assert "split" in pd.read_csv(tmp_path / "out/labels.csv").columns


def listed(tmp_path: Path) -> Labelled:
    top = tmp_path / "photos"
    paths = ["a/1.png", "a/2.png", "b/1.png"]
    write_images(top, paths)
    rows = pd.DataFrame(
        {"id": ["007", "008", "009"], "target": ["cat ", "up/down", "cat"], "file": paths, "note": ['x,"y"', "", "z"]}
    )
    sums = tuple(hashlib.sha256((top / path).read_bytes()).digest() for path in paths)
    return Labelled(top, "list", ("cat", "up/down"), np.array([0, 1, 0]), tuple(paths), sums, rows=rows, label_column=1)


def test_the_csv_keeps_the_users_rows_and_columns(tmp_path):
    data = listed(tmp_path)
    write_output(tmp_path / "out", data, judged(data, {"b/1.png": "up/down"}), action="relabel", export="csv")
    found = pd.read_csv(tmp_path / "out/clean.csv", dtype=str, keep_default_na=False)
    assert found.to_dict("list") == {**data.rows.to_dict("list"), "target": ["cat ", "up/down", "up/down"]}
    write_output(tmp_path / "out", data, judged(data, {"b/1.png": "up/down"}), action="remove", export="csv")
    assert list(pd.read_csv(tmp_path / "out/clean.csv", dtype=str)["id"]) == ["007", "008"]
    assert not (tmp_path / "out/clean").exists()


def test_the_column_that_was_read_is_the_one_that_is_corrected(tmp_path):
    write_images(tmp_path / "photos", ["1.png", "2.png", "3.png"])
    text = "path,original,Label\n1.png,cat,cat\n2.png,cat,cat\n3.png,dog,dog\n"
    (tmp_path / "labels.csv").write_text(text)
    data = read_labelled(tmp_path / "photos", tmp_path / "labels.csv")
    write_output(tmp_path / "out", data, judged(data, {"1.png": "dog"}), action="relabel", export="csv")
    assert (tmp_path / "out/clean.csv").read_text() == text.replace("1.png,cat,cat", "1.png,cat,dog")
    assert json.loads((tmp_path / "out/manifest.json").read_text())["label_column"] == 2


def test_a_list_becomes_folders_though_its_classes_are_no_folder_names(tmp_path):
    data = listed(tmp_path)
    write_output(tmp_path / "out", data, judged(data))
    assert set(tree(tmp_path / "out/clean")) == {"cat/a/1.png", "up%2Fdown/a/2.png", "cat/b/1.png"}
    assert json.loads((tmp_path / "out/manifest.json").read_text())["folders"] == {"up/down": "up%2Fdown"}


def test_names_of_folders_are_safe_and_all_different():
    names = [
        "cat",
        "Cat",
        "..",
        ".",
        ".hidden",
        "a/b",
        "a%2Fb",
        "x" * 300,
        "x" * 299 + "y",
        " ",
        "<script>",
        "日本",
        "con\n",
        "a\0b",
    ]
    found = folder_names(names)
    assert list(found) == names and len({name.casefold() for name in found.values()}) == len(names)
    for folder_name in found.values():
        assert "/" not in folder_name and "\0" not in folder_name and not folder_name.startswith(".")
        assert 0 < len(folder_name.encode()) <= 255 and folder_name.strip()
    assert found["cat"] == "cat" or found["Cat"] == "Cat"
    assert found["日本"] == "日本"


def archive(tmp_path: Path) -> Labelled:
    images = np.arange(5 * 4 * 4).reshape(5, 4, 4).astype(np.uint8)
    file = tmp_path / "scans.npz"
    np.savez(
        file,
        train_images=images[:3],
        train_labels=[0, 1, 0],
        test_images=images[3:],
        test_labels=[1, 1],
        class_names=["cat", "dog"],
    )
    return read_labelled(file)


def test_an_npz_comes_back_as_one_or_as_pictures_or_as_a_table(tmp_path):
    data = archive(tmp_path)
    errors = judged(data, {"train/1": "cat", "test/1": "cat"}, {"test/1": 0.95})
    images = np.load(data.source)
    write_output(tmp_path / "out", data, errors, export="npz")
    with np.load(tmp_path / "out/clean.npz") as found:
        assert found["train_images"][..., 0].tolist() == images["train_images"][[0, 2]].tolist()
        assert found["train_labels"].tolist() == [0, 0] and found["test_labels"].tolist() == [1]
        assert found["test_images"][..., 0].tolist() == images["test_images"][[0]].tolist()
        assert found["class_names"].tolist() == ["cat", "dog"]
    write_output(tmp_path / "out", data, errors, action="relabel", export="folder")
    assert set(tree(tmp_path / "out/clean")) == {
        "train/cat/0.png", "train/cat/1.png", "train/cat/2.png", "test/dog/3.png", "test/cat/4.png"
    }  # fmt: skip
    assert np.asarray(Image.open(tmp_path / "out/clean/test/cat/4.png")).tolist() == images["test_images"][1].tolist()
    write_output(tmp_path / "out", data, errors, action="relabel", export="csv")
    assert (
        (tmp_path / "out/clean.csv").read_text()
        == "id,split,label\ntrain/0,train,cat\ntrain/1,train,cat\ntrain/2,train,cat\ntest/0,test,dog\ntest/1,test,cat\n"
    )


def test_a_folder_becomes_an_npz(data, out):
    write_output(out, data, judged(data, SUGGESTED), export="npz")
    with np.load(out / "clean.npz") as found:
        assert found["train_images"].shape == (3, 224, 224, 3)  # of different sizes
        assert found["train_labels"].tolist() == [0, 0, 1]


def test_an_npz_holds_the_pixels_that_were_judged(tmp_path):
    """Of grey images of 16 bits nearly all were white."""
    for number, name in enumerate(("cat/1.png", "cat/2.png", "dog/1.png")):
        deep = np.random.RandomState(number).randint(0, 65536, (9, 9)).astype(np.uint16)
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(deep).save(tmp_path / "photos" / name)
    data = read_labelled(tmp_path / "photos")
    write_output(tmp_path / "out", data, judged(data), export="npz")
    with np.load(tmp_path / "out/clean.npz") as found:
        assert (found["train_images"].transpose(0, 3, 1, 2) == data.read(0, 3, 9)).all()


@pytest.mark.parametrize("kind", ["list", "npz"])
def test_an_npz_is_written_in_the_memory_of_its_images(tmp_path, kind):
    pixels_NCHW = np.zeros((40, 3, 700, 700), np.uint8)
    Image.fromarray(pixels_NCHW[0].transpose(1, 2, 0)).save(tmp_path / "a.bmp")
    table = pd.DataFrame({"path": ["a.bmp"] * 40, "given_label": "a", "label": "a"})
    clean = Clean(tmp_path, kind, ("a",), table, None, None if kind == "list" else pixels_NCHW)
    tracemalloc.start()
    try:
        write_npz(tmp_path / "clean.npz", clean)
        assert tracemalloc.get_traced_memory()[1] < 1.6 * pixels_NCHW.nbytes
    finally:
        tracemalloc.stop()


def test_label_studio_gets_tasks_with_predictions(data, out):
    odd = replace(data, classes=("cat", 'd"o<g', "owl"))
    write_output(out, odd, judged(odd, {"cat/1.png": 'd"o<g'}), export="labelstudio")
    tasks = json.loads((out / "labelstudio.json").read_text())
    assert len(tasks) == 6 and tasks[0]["data"]["image"] == "/data/local-files/?d=photos/cat/1.png"
    assert tasks[0]["predictions"] == [
        {"model_version": "nlt", "score": 0.9, "result": [
            {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ['d"o<g']}}]}
    ]  # fmt: skip
    text = (out / "labelstudio.json").read_text()
    assert text == json.dumps(tasks, ensure_ascii=False, indent=1) + "\n"
    from xml.etree import ElementTree

    choices = ElementTree.parse(out / "labelstudio.xml").findall(".//Choice")
    assert [choice.get("value") for choice in choices] == ["cat", 'd"o<g', "owl"]


def test_tasks_are_written_one_by_one(tmp_path):
    """All at once those of 100,000 images took 35 s and 0.6 GB."""
    N = 2000
    fixed = {"sha256": "0" * 64, "given_label": "a", "suggested_label": "b", "decision": "keep", "label": "a"}
    table = pd.DataFrame({"path": [f"a/{i}.png" for i in range(N)], "p_wrong": np.linspace(0, 1, N), **fixed})
    tracemalloc.start()
    try:
        write_labelstudio(tmp_path, Clean(Path("photos"), "folder", ("a", "b"), table, None, None))
        assert tracemalloc.get_traced_memory()[1] < 1500 * N
    finally:
        tracemalloc.stop()
    tasks = json.loads((tmp_path / "labelstudio.json").read_text())
    assert [task["data"]["path"] for task in tasks] == [f"a/{i}.png" for i in reversed(range(N))]


@pytest.mark.parametrize(("kind", "export"), [("features", "folder"), ("features", "npz"), ("npz", "labelstudio")])
def test_exports_without_images_or_files_are_refused(tmp_path, kind, export):
    data = replace(archive(tmp_path), kind=kind)
    with pytest.raises(BadInput) as error:
        write_output(tmp_path / "out", data, judged(data), export=export)
    assert_one_sentence(str(error.value), "--export")
    assert not (tmp_path / "out").exists()


def test_features_need_no_images(tmp_path):
    data = replace(archive(tmp_path), kind="features", splits=None, names=tuple("01234"), pixels_NCHW=None)
    write_output(tmp_path / "out", data, judged(data, {"1": "cat"}), export="csv")
    assert (tmp_path / "out/clean.csv").read_text() == "id,label\n0,cat\n2,cat\n3,dog\n4,dog\n"
    assert not (tmp_path / "out/worst.png").exists() and (tmp_path / "out/report.html").exists()


def test_the_worst_are_drawn_as_a_grid(data, out):
    write_output(out, data, judged(data, SUGGESTED))
    grid = np.asarray(Image.open(out / "worst.png"))
    cell = Image.open(io.BytesIO(data.thumbnail(0, 96))).convert("RGB").resize((96, 96), Image.Resampling.NEAREST)
    assert grid.shape == (96 + 32 + 16, 10 * 104 + 8, 3)
    assert (grid[8:104, 8:104] == np.asarray(cell)).all()


# ---- where it may be written ----


@pytest.mark.parametrize("place", ["photos", "photos/out", "photos/cat/out", ".", "taken", "file", "link"])
def test_what_is_not_ours_is_never_written_over(data, tmp_path, place):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("more work")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    before = tree(tmp_path)
    with pytest.raises(BadInput) as error:
        write_output(tmp_path / place, data, judged(data))
    assert_one_sentence(str(error.value), "--out")
    assert tree(tmp_path) == before and not list(tmp_path.glob(".*"))


def test_where_one_stands_is_not_replaced(data, out, monkeypatch):
    write_output(out, data, judged(data))
    before = tree(out)
    monkeypatch.chdir(out / "detected")
    for place in ("..", out):
        with pytest.raises(BadInput) as error:
            write_output(Path(place), data, judged(data))
        assert_one_sentence(str(error.value), f"--out {place} holds the working directory")
    assert tree(out) == before


def test_an_output_of_another_data_set_is_not_replaced(data, out, tmp_path):
    write_output(out, data, judged(data))
    other = folder(tmp_path / "others", PATHS)
    with pytest.raises(BadInput, match="holds the result of .*photos, not of .*others"):
        write_output(out, other, judged(other))


def test_labels_of_folders_and_of_a_file_do_not_replace_each_other(data, out, tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\n")
    listed = replace(data, labels=tmp_path / "labels.csv")
    write_output(out, data, judged(data))
    with pytest.raises(BadInput, match=r"holds the result of labels in the folders, not of .*labels\.csv"):
        write_output(out, listed, judged(listed))
    write_output(tmp_path / "other", listed, judged(listed))
    with pytest.raises(BadInput, match=r"holds the result of .*labels\.csv, not of labels in the folders"):
        write_output(tmp_path / "other", data, judged(data))


def test_ours_is_replaced_and_what_people_put_there_stays(data, out):
    write_output(out, data, judged(data, SUGGESTED))
    (out / "decisions.csv").write_text("path,decision\ncat/1.png,keep\n")
    (out / "decisions" / "abc.csv").write_text("path,decision\ncat/2.png,keep\n")
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("mine")
    write_output(out, data, judged(data, SUGGESTED), action="relabel", export="csv")
    assert (out / "decisions.csv").read_text().endswith("cat/1.png,keep\n")
    assert (out / "decisions" / "abc.csv").read_text().endswith("cat/2.png,keep\n")
    assert (out / "notes" / "mine.txt").read_text() == "mine"
    assert (out / "clean.csv").exists() and not (out / "clean").exists()
    assert not list(out.parent.glob(".*"))


def test_hidden_files_of_people_stay_too(data, out):
    write_output(out, data, judged(data))
    (out / ".git").mkdir()
    (out / ".git" / "config").write_text("[core]")
    (out / ".notes.txt").write_text("mine")
    (out / "decisions" / ".ann.csv").write_text("path,decision\n")
    write_output(out, data, judged(data), export="csv")
    kept = tree(out)
    assert (kept[".git/config"], kept[".notes.txt"]) == (b"[core]", b"mine") and "decisions/.ann.csv" in kept


def test_a_folder_of_people_is_carried_over_as_it_is_at_the_swap(data, out, monkeypatch):
    """What is written into it between the copy and the swap, too; a socket, as git's, is passed over."""
    write_output(out, data, judged(data))
    (out / ".git").mkdir()
    (out / ".git" / "config").write_text("[core]")
    swap = nlt.cleaning.folder._swap

    def late(part, out):
        (out / ".git" / "late").write_text("a commit")
        swap(part, out)

    monkeypatch.setattr("nlt.cleaning.folder._swap", late)
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(out / ".git")  # a socket's path has 108 bytes at most
        listening.bind("fsmonitor")
        monkeypatch.chdir(out.parent)
        write_output(out, data, judged(data), export="csv")
    assert sorted(path.name for path in (out / ".git").iterdir()) == ["config", "late"]


def test_decisions_are_there_at_the_moment_of_the_swap(data, out, monkeypatch):
    write_output(out, data, judged(data, SUGGESTED))
    (out / "decisions.csv").write_text("path,decision\n")
    swap, seen = nlt.cleaning.folder._swap, []
    monkeypatch.setattr("nlt.cleaning.folder._swap", lambda part, out: (swap(part, out), seen.append(tree(out))))
    write_output(out, data, judged(data, SUGGESTED))
    assert "decisions.csv" in seen[0]


def test_an_error_in_the_middle_leaves_the_old_one_whole_and_nothing_beside(data, out, monkeypatch):
    write_output(out, data, judged(data, SUGGESTED))
    before = tree(out)
    (data.source / "cat/2.png").unlink()
    with pytest.raises(BadInput, match=r"cat/2\.png cannot be read any more"):
        write_output(out, data, judged(data, SUGGESTED))
    monkeypatch.setattr("nlt.cleaning.output.thumbnails", lambda data, rows: [b""] * len(rows))
    monkeypatch.setattr("nlt.cleaning.output.worst_grid", lambda *args: None)
    monkeypatch.setattr("nlt.cleaning.output.review_page", lambda *args: "")
    with pytest.raises(BadInput, match=r"cat/2\.png is no longer there"):  # only the clean data set meets it
        write_output(out, data, judged(data, SUGGESTED))
    assert tree(out) == before and not list(out.parent.glob(".*"))


def test_each_image_is_decoded_once_for_the_page_and_the_grid(data, tmp_path, monkeypatch):
    """All are among the sixty worst, two are on the page as the worst and some more as random ones."""
    rows, thumbnail = [], Labelled.thumbnail
    monkeypatch.setattr(
        Labelled, "thumbnail", lambda self, row, size: (rows.append(row), thumbnail(self, row, size))[1]
    )
    write_output(tmp_path / "new", data, judged(data, SUGGESTED), review=2, sample=5)
    assert sorted(rows) == list(range(len(data)))


def test_two_cannot_write_one_output_at_a_time(data, out):
    with built(out), pytest.raises(BadInput, match="is being written by another nlt"), built(out):
        pass
    assert out.is_dir()


def test_nobody_gets_at_the_old_one_while_it_is_cleared(data, out, monkeypatch):
    write_output(out, data, judged(data))
    swap = nlt.cleaning.folder._swap

    def swap_and_try(part: Path, place: Path) -> None:
        swap(part, place)
        with pytest.raises(BadInput, match="is being written by another nlt"), built(out):
            pass

    monkeypatch.setattr("nlt.cleaning.folder._swap", swap_and_try)
    write_output(out, data, judged(data), export="csv")
    assert (out / "clean.csv").exists() and not list(out.parent.glob(".*"))


def test_who_begins_when_the_first_one_has_its_place_keeps_what_he_writes(out, monkeypatch):
    swap, second = nlt.cleaning.folder._swap, built(out)

    def swap_and_begin(part: Path, place: Path) -> None:
        swap(part, place)
        monkeypatch.setattr("nlt.cleaning.folder._swap", swap)
        (second.__enter__() / "labels.csv").write_text("second")

    monkeypatch.setattr("nlt.cleaning.folder._swap", swap_and_begin)
    with built(out) as part:
        (part / "labels.csv").write_text("first")
    assert tree(out) == {"labels.csv": b"first"}
    second.__exit__(None, None, None)
    assert tree(out) == {"labels.csv": b"second"} and not list(out.parent.glob(".*"))


def test_without_an_exchange_of_names_two_steps_do_it(data, out, monkeypatch):
    import ctypes

    write_output(out, data, judged(data, SUGGESTED))
    (out / "decisions.csv").write_text("path,decision\n")
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **more: object())
    write_output(out, data, judged(data, SUGGESTED), export="csv")
    assert (out / "clean.csv").exists() and (out / "decisions.csv").exists() and not list(out.parent.glob(".*"))
    os.rename(out, out.with_name(f".{out.name}.before"))  # killed between them
    write_output(out, data, judged(data, SUGGESTED))
    assert (out / "decisions.csv").exists() and not list(out.parent.glob(".*"))


WRITER = """
import os, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from pathlib import Path
from cleaning import folder, judged
from nlt.cleaning import write_output
top = Path(sys.argv[2])
data = folder(top / "photos", [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(150)])
errors = judged(data, {"cat/1.png": "dog"})
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        for turn in range(int(line), 1000):
            write_output(top / "out", data, errors, export=("folder", "csv")[turn % 2], action=("remove", "relabel")[turn % 2], review=20, sample=5)
    print(pid, flush=True)
    os.waitpid(pid, 0)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_old_or_the_new_one_is_whole(tmp_path):
    """Twenty kills by the clock, while the folder is replaced again and again; decisions survive them all."""
    draw, seen, halves = random.Random(0), set(), 0
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parents[1]), str(tmp_path)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for turn in range(21):
        print(turn, file=writer.stdin, flush=True)
        pid = int(writer.stdout.readline())
        deadline = time.monotonic() + 60
        while not (tmp_path / "out").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        if turn == 1:
            (tmp_path / "out" / "decisions.csv").write_text("path,decision\ncat/1.png,keep\n")
        time.sleep(draw.uniform(0.1, 1.5))
        os.kill(pid, signal.SIGKILL)
        halves += (tmp_path / ".out.part").exists()
        found = tree(tmp_path / "out")
        manifest = json.loads(found["manifest.json"])
        clean = [name for name in found if name.startswith("clean")]
        assert len(clean) == (299 if manifest["export"] == "folder" else 1), (turn, manifest["export"], len(clean))
        assert b"</html>" in found["report.html"]
        assert turn < 1 or found["decisions.csv"].endswith(b"cat/1.png,keep\n")
        seen.add(manifest["export"])
    writer.stdin.close()
    writer.wait(timeout=30)
    assert seen == {"folder", "csv"} and halves > 3


def test_a_place_that_no_folder_can_have_is_known_at_once(data, tmp_path):
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(
        BadInput, match=r"file\.txt/out cannot be written in .*file\.txt \(Not a directory\): make that"
    ):
        check_place(tmp_path / "file.txt" / "out", data.source)
    assert (tmp_path / "file.txt").read_text() == "mine"
