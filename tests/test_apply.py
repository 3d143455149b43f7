"""Decisions in: merged, never lost, never doubled; the rate by Horvitz and Thompson, by hand and by simulation."""

import csv
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cleaning import Labelled, decisions_csv, folder, judged, tree
from fuzzing import NASTY_TEXT, assert_one_sentence, corrupted, fuzz, sizes
from hypothesis import strategies as st

from nlt.cleaning import apply, estimate_rate, write_output
from nlt.cleaning.page import percent
from nlt.cleaning.sample import Sample, draw_sample, variance
from nlt.data.labelled import read_labelled
from nlt.settings import BadInput

PATHS = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(6)] + ["owl/0.png"]
SUGGESTED = {"cat/0.png": "dog", "cat/1.png": "dog", "dog/0.png": "cat", "dog/1.png": "owl"}


@pytest.fixture
def data(tmp_path: Path) -> Labelled:
    return folder(tmp_path / "photos", PATHS)


@pytest.fixture
def out(data, tmp_path: Path) -> Path:
    write_output(tmp_path / "photos.nlt", data, judged(data, SUGGESTED), sample=8)
    return tmp_path / "photos.nlt"


def lines(**decisions: str) -> list[dict[str, str]]:
    """cat0="keep", dog0="owl": lines of a file."""
    told = []
    for short, said in decisions.items():
        word = said if said in ("keep", "remove", "unsure") else "relabel"
        told.append(
            {"path": f"{short[:-1]}/{short[-1]}.png", "decision": word, "label": said if word == "relabel" else ""}
        )
    return told


def labels(out: Path, column: str = "label") -> dict[str, str]:
    table = pd.read_csv(out / "labels.csv", dtype=str, keep_default_na=False)
    return dict(zip(table["path"], table[column], strict=True))


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


# ---- decisions ----


def test_decisions_stand_in_the_place_of_the_automatic_ones(out, tmp_path):
    told = lines(cat0="keep", cat1="owl", dog0="unsure", cat5="remove", owl0="dog")
    applied = apply(out, [decisions_csv(tmp_path / "decisions.csv", told)])
    found = labels(out)
    assert [found[name] for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "cat/5.png", "owl/0.png")] == [
        "cat", "owl", "", "", "", "dog"
    ]  # fmt: skip
    decision, reason = labels(out, "decision"), labels(out, "reason")
    assert (decision["cat/0.png"], reason["cat/0.png"]) == ("keep", "reviewed; p_wrong")
    assert (decision["dog/0.png"], reason["dog/0.png"]) == ("review", "unsure; p_wrong")
    assert (decision["dog/1.png"], reason["dog/1.png"]) == ("remove", "p_wrong")
    assert (decision["cat/5.png"], reason["cat/5.png"]) == ("remove", "reviewed")
    assert set(tree(out / "clean")) == {
        "cat/0.png", "cat/2.png", "cat/3.png", "cat/4.png", "owl/1.png", "dog/0.png", *(f"dog/{i}.png" for i in range(2, 6)),
    }  # fmt: skip  # owl/0.png moved to dog/, whose own 0.png is out
    assert (applied.decided, applied.kept, applied.relabelled, applied.removed, applied.unsure) == (5, 1, 2, 1, 1)
    assert applied.images == 10 and applied.disagreements == 0


def test_how_often_suggestions_were_right(out, tmp_path):
    told = lines(cat0="dog", cat1="owl", dog0="unsure", dog1="keep", cat5="dog")
    applied = apply(out, [decisions_csv(tmp_path / "decisions.csv", told)])
    assert (applied.suggestions, applied.suggestions_right) == (3, 1)


def test_what_is_applied_twice_changes_nothing(out, tmp_path):
    file = decisions_csv(tmp_path / "decisions.csv", lines(cat0="keep", cat1="owl"))
    first = apply(out, [file])
    before = tree(out)
    assert apply(out, [file, file]) == first and tree(out) == before
    assert apply(out) == first and tree(out) == before
    assert len(list((out / "decisions").iterdir())) == 1
    assert not list(out.parent.glob(".*"))


def test_the_page_shows_what_decisions_came_to(out, tmp_path):
    """By the answers on the whole random sample, and instead of what fewer of them said; the rest of it stays."""
    before = (out / "report.html").read_text()
    assert before.count("by people’s decisions") == 0
    apply(out, [decisions_csv(tmp_path / "first.csv", lines(cat0="keep", cat1="owl"))])
    early = (out / "report.html").read_text()
    assert "People’s decisions give no rate yet" in early
    assert "0 of 8 of the random sample are answered" in early
    assert "The suggested label was right for 0 of 2." in early
    names = manifest(out)["sample"]["names"]
    told = [{"path": name, "decision": "remove" if i == 0 else "keep", "label": "", "tab": "sample"}
            for i, name in enumerate(names)]  # fmt: skip
    applied = apply(out, [decisions_csv(tmp_path / "second.csv", told)])
    page = (out / "report.html").read_text()
    rate = applied.rate
    assert 0 < rate.low < rate.point < rate.high and f"{applied.decided} samples decided" in page
    assert f'<div class="big">{percent(rate.point)}</div>' in page and rate.reading in page
    assert f"<b>between {percent(rate.low)} and {percent(rate.high)}</b>" in page
    assert manifest(out)["reviewed"]["rate"]["point"] == round(rate.point, 6)
    assert "give no rate yet" not in page and page.count('id="reviewed"') == 1
    begins, ends = page.index('<section class="rate" id="reviewed">'), page.index("<!-- end of reviewed -->")
    assert page[:begins] + page[ends:] == before


def test_a_page_without_a_place_for_decisions_stays_as_it_is(out, tmp_path):
    page = out / "report.html"
    page.write_text(page.read_text().replace("<!-- end of reviewed -->", ""))
    before = page.read_text()
    apply(out, [decisions_csv(tmp_path / "first.csv", lines(cat0="keep"))])
    assert page.read_text() == before


def test_what_is_read_is_still_there_when_the_new_one_takes_its_place(data, out, tmp_path, monkeypatch):
    """Hashing many files takes minutes; another decision was lost, and another detection half of it, in these."""
    module, refused = sys.modules["nlt.cleaning.apply"], []
    check = module._check_files

    def meanwhile(*args: Any) -> None:
        monkeypatch.setattr(module, "_check_files", check)
        for other in (
            lambda: apply(out, [decisions_csv(tmp_path / "ann.csv", lines(cat1="keep"))]),
            lambda: write_output(out, data, judged(data, {"dog/5.png": "cat"}), sample=8),
        ):
            with pytest.raises(BadInput, match="is being written by another nlt") as error:
                other()
            refused.append(error)
        check(*args)

    monkeypatch.setattr(module, "_check_files", meanwhile)
    assert apply(out, [decisions_csv(tmp_path / "bob.csv", lines(cat0="keep"))]).decided == 1
    assert len(refused) == 2 and apply(out, [tmp_path / "ann.csv"]).decided == 2


def test_several_people_are_merged_and_what_they_disagree_in_is_listed(out, tmp_path):
    ann = decisions_csv(tmp_path / "ann.csv", lines(cat0="keep", cat1="dog", dog0="unsure", dog2="owl"))
    bob = decisions_csv(tmp_path / "bob.csv", lines(cat0="keep", cat1="owl", dog0="cat", dog3="remove"))
    apply(out, [ann])
    applied = apply(out, [bob])
    assert (applied.decided, applied.disagreements) == (4, 1)
    found, decision = labels(out), labels(out, "decision")
    assert (found["cat/0.png"], found["dog/0.png"], found["dog/2.png"], found["dog/3.png"]) == ("cat", "cat", "owl", "")
    assert (found["cat/1.png"], decision["cat/1.png"]) == ("", "review")
    listed = pd.read_csv(out / "disagreements.csv", dtype=str)
    assert set(listed["path"]) == {"cat/1.png"} and sorted(listed["label"]) == ["dog", "owl"]
    at_once = tree(out)
    write_output(
        out, folder(tmp_path / "photos", PATHS), judged(folder(tmp_path / "photos", PATHS), SUGGESTED), sample=8
    )
    assert not (out / "disagreements.csv").exists()
    apply(out, [bob, ann])
    assert tree(out) == at_once


def test_of_one_person_the_latest_holds(out, tmp_path):
    said = [
        {"reviewer": "ann", "time": f"2026-01-0{day}"} | line
        for day, line in ((2, *lines(cat0="keep")), (1, *lines(cat0="dog")))
    ]
    apply(out, [decisions_csv(tmp_path / "a.csv", said)])
    assert labels(out)["cat/0.png"] == "cat"
    later = [{"reviewer": "ann", "time": "2026-01-03"} | lines(cat0="owl")[0]]
    applied = apply(out, [decisions_csv(tmp_path / "b.csv", later)])
    assert labels(out)["cat/0.png"] == "owl" and applied.disagreements == 0
    apply(out, [tmp_path / "a.csv"])  # the older file once more
    assert labels(out)["cat/0.png"] == "owl"


def test_what_a_person_takes_back_holds_no_more(out, tmp_path):
    def file(name: str, reviewer: str, time: str, **said: str) -> Path:
        told = [{"reviewer": reviewer, "time": time} | line for line in lines(**said)]
        told = [line | {"decision": "", "label": ""} if line["label"] == "back" else line for line in told]
        return decisions_csv(tmp_path / name, told)

    before = labels(out)
    apply(out, [file("a.csv", "ann", "2026-01-01", cat0="keep", cat1="owl")])
    assert apply(out, [file("unfilled.csv", "ann", "", cat0="back")]).decided == 2  # has no time, so says nothing
    assert apply(out, [file("other.csv", "bob", "2026-01-02", cat0="back")]).decided == 2  # bob had said nothing
    applied = apply(out, [file("b.csv", "ann", "2026-01-02", cat0="back", cat1="back")])
    assert (applied.decided, applied.disagreements) == (0, 0) and labels(out) == before
    assert apply(out, [tmp_path / "a.csv"]).decided == 0  # the older file once more
    assert (
        apply(out, [file("c.csv", "ann", "2026-01-03", cat0="dog")]).decided == 1 and labels(out)["cat/0.png"] == "dog"
    )
    for order in (("c.csv", "d.csv"), ("d.csv", "c.csv")):  # a cell emptied by hand keeps the time that the line had
        file("d.csv", "ann", "2026-01-03", cat0="back")
        assert apply(out, [tmp_path / name for name in order]).decided == 0


def test_a_file_that_names_nobody_is_corrected_by_removing_its_earlier_version(out, tmp_path):
    apply(out, [decisions_csv(tmp_path / "d.csv", lines(cat0="keep"))])
    (earlier,) = (out / "decisions").iterdir()
    applied = apply(out, [decisions_csv(tmp_path / "d.csv", lines(cat0="owl"))])
    assert (applied.decided, applied.disagreements) == (0, 1)  # for it may be another person's
    assert earlier.name in set(pd.read_csv(out / "disagreements.csv")["file"])
    earlier.unlink()
    applied = apply(out)
    assert (applied.decided, applied.disagreements) == (1, 0) and labels(out)["cat/0.png"] == "owl"


def test_decisions_outlive_another_detection(data, out, tmp_path):
    result = manifest(out)["result"]
    told = [
        {"result": result, "tab": "sample"} | line
        for line in lines(**{path[:3] + path[4]: "keep" for path in PATHS} | {"dog4": "owl"})
    ]
    apply(out, [decisions_csv(tmp_path / "a.csv", told)])
    write_output(out, data, judged(data, SUGGESTED | {"cat/4.png": "owl"}), action="relabel", seed=1, sample=8)
    assert manifest(out)["result"] != result
    assert labels(out)["cat/0.png"] == "dog" and len(list((out / "decisions").iterdir())) == 1
    applied = apply(out)
    assert labels(out)["cat/0.png"] == "cat" and labels(out)["dog/4.png"] == "owl"
    assert applied.sample_answered == 0  # of another random sample
    with pytest.raises(BadInput, match="line 2: result .* is not the one in this folder"):
        apply(out, [tmp_path / "a.csv"])


def test_another_action_keeps_the_result_to_which_decisions_belong(data, out):
    before = manifest(out)["result"]
    write_output(out, data, judged(data, SUGGESTED), action="relabel", export="csv", review=3, sample=8)
    assert manifest(out)["result"] == before


def test_a_table_keeps_its_columns_whatever_they_are_called(tmp_path):
    top = tmp_path / "photos"
    one = folder(top, ["a/1.png", "b/1.png"])
    columns = ["path", "kind", "site", "site", ""]
    rows = pd.DataFrame([["a/1.png", "cat", "01", "NA", "x"], ["b/1.png", "dog", "", "1.0", '"\n']], columns=columns)
    data = Labelled(
        top, "list", ("cat", "dog"), np.array([0, 1]), tuple(rows["path"]), one.sums, rows=rows, label_column=1
    )
    write_output(tmp_path / "out", data, judged(data), export="csv")
    before = (tmp_path / "out/clean.csv").read_text()
    told = [{"path": "a/1.png", "decision": "relabel", "label": "dog"}]
    apply(tmp_path / "out", [decisions_csv(tmp_path / "d.csv", told)])
    assert (tmp_path / "out/clean.csv").read_text() == before.replace("1.png,cat", "1.png,dog") != before


def test_an_output_that_does_not_say_where_labels_were_is_told_so(tmp_path):
    """Of an earlier nlt; it was not changed by anybody."""
    one = folder(tmp_path / "photos", ["a/1.png", "b/1.png"])
    rows = pd.DataFrame([["a/1.png", "cat"], ["b/1.png", "dog"]], columns=["path", "label"])
    data = Labelled(
        one.source, "list", ("cat", "dog"), np.array([0, 1]), one.names, one.sums, rows=rows, label_column=1
    )
    out = tmp_path / "out"
    write_output(out, data, judged(data), export="csv")
    found = json.loads((out / "manifest.json").read_text())
    del found["label_column"]
    (out / "manifest.json").write_text(json.dumps(found))
    told = [{"path": "a/1.png", "decision": "relabel", "label": "dog"}]
    with pytest.raises(BadInput, match="was written by an earlier nlt, .*: run nlt detect again, decisions stay"):
        apply(out, [decisions_csv(tmp_path / "d.csv", told)])


def test_a_carriage_return_is_a_sign_like_any_other(tmp_path):
    """Python 3.11 leaves it bare, and a bare one ends the line."""
    one = folder(tmp_path / "photos", ["a/1\r.png", "a/2.png", "b/1.png"])
    columns = ["file", "kind", "a\rnote"]
    lines = [["a/1\r.png", "cat", "x"], ["a/2.png", "cat", "\r"], ["b/1.png", "dog", "x\r\ny"]]
    rows = pd.DataFrame(lines, columns=columns)
    data = Labelled(one.source, "list", ("cat", "dog"), np.array([0, 0, 1]), one.names, one.sums, rows=rows,
                    label_column=1)  # fmt: skip
    out = tmp_path / "out"
    write_output(out, data, judged(data), export="csv")
    for reviewer, label in (("ann", "dog"), ("bob", "cat")):
        told = {"path": "a/1\r.png", "decision": "relabel", "label": label, "reviewer": reviewer}
        pd.DataFrame([told]).to_csv(tmp_path / "d.csv", index=False, quoting=csv.QUOTE_ALL)
        apply(out, [tmp_path / "d.csv"])
        first = [["a/1\r.png", "dog", "x"]] if reviewer == "ann" else []  # people disagree
        with (out / "clean.csv").open(newline="") as opened:
            assert list(csv.reader(opened)) == [columns, *first, *lines[1:]]
    with (out / "disagreements.csv").open(newline="") as opened:
        assert [line[0] for line in csv.reader(opened)] == ["path", "a/1\r.png", "a/1\r.png"]


def test_an_npz_is_read_again_and_must_be_the_same(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (6, 4, 5)).astype(np.uint8)
    file = tmp_path / "scans.npz"
    arrays = {
        "train_images": images[:4],
        "train_labels": [0, 1, 0, 1],
        "test_images": images[4:],
        "test_labels": [1, 0],
    }
    np.savez(file, **arrays, class_names=["cat", "dog"])
    data = read_labelled(file)
    write_output(tmp_path / "out", data, judged(data, {"train/1": "cat"}), export="npz")
    told = decisions_csv(tmp_path / "d.csv", [{"id": "test/0", "decision": "relabel", "label": "cat"}])
    apply(tmp_path / "out", [told])
    with np.load(tmp_path / "out/clean.npz") as found:
        assert found["train_images"][..., 0].tolist() == images[[0, 2, 3]].tolist()
        assert found["train_labels"].tolist() == [0, 0, 1] and found["test_labels"].tolist() == [0, 0]
    again = read_labelled(tmp_path / "out/clean.npz")
    assert again.sums == tuple(data.sums[i] for i in (0, 2, 3, 4, 5))
    arrays["test_images"] = images[:2]
    np.savez(file, **arrays, class_names=["cat", "dog"])
    with pytest.raises(BadInput, match="has changed since"):
        apply(tmp_path / "out", [told])


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ({"path": "cat/77.png"}, "'cat/77.png'"),
        ({"decision": "burn"}, "'burn'"),
        ({"decision": "relabel", "label": "fox"}, "'fox'"),
        ({"decision": "relabel"}, "''"),
        ({"decision": "keep", "label": "dog"}, "'dog'"),
        ({"result": "beef"}, "'beef'"),
        ({"sha256": "00"}, "sha256"),
        ({"given_label": "owl"}, "given_label 'owl'"),
        ({"path": "\x1b[31m" * 300}, "line 3"),
    ],
)
def test_what_does_not_fit_is_refused_by_line_and_nothing_is_written(out, tmp_path, line, names):
    before = tree(out)
    good = {"path": "cat/1.png", "decision": "keep", "label": "", "result": "", "sha256": "", "given_label": ""}
    file = decisions_csv(tmp_path / "d.csv", [good, good | {"path": "cat/0.png"} | line])
    with pytest.raises(BadInput) as error:
        apply(out, [file])
    assert_one_sentence(str(error.value), "d.csv line 3", names)
    assert tree(out) == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"a,b\n1,2\n",
        b"path,decision,decision\n",
        b"path,decision\ncat/0.png\n",
        b'path,decision\n"cat',
        None,
    ],
)
def test_what_is_no_table_of_decisions_is_refused(out, tmp_path, content):
    file = tmp_path / "d.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadInput) as error:
        apply(out, [file])
    assert_one_sentence(str(error.value), "d.csv")


def test_nlts_own_table_is_not_what_people_decided(out):
    before = tree(out)
    for table in (out / "labels.csv", out / "detected" / "labels.csv"):
        with pytest.raises(BadInput) as error:
            apply(out, [table])
        assert_one_sentence(
            str(error.value), str(table), "p_wrong", "name the decisions.csv that report.html downloads"
        )
    assert tree(out) == before
    taken = out / "decisions" / "0123456789abcdef.csv"  # by an earlier nlt
    taken.write_bytes((out / "labels.csv").read_bytes())
    with pytest.raises(BadInput) as error:
        apply(out)
    assert_one_sentence(str(error.value), str(taken), "remove it")


def test_semicolons_blank_lines_and_a_byte_order_mark_are_understood(out, tmp_path):
    (tmp_path / "d.csv").write_bytes(
        "\ufeffpath;decision;label\r\n\r\ncat/0.png;relabel;owl\r\ncat/1.png;;\r\n".encode()
    )
    assert apply(out, [tmp_path / "d.csv"]).decided == 1 and labels(out)["cat/0.png"] == "owl"


def test_a_folder_that_is_none_of_ours_or_changed_is_refused(data, out, tmp_path):
    file = decisions_csv(tmp_path / "d.csv", lines(cat0="keep"))
    for place in (tmp_path / "nowhere", data.source):
        with pytest.raises(BadInput, match=r"no output folder"):
            apply(place, [file])
    with pytest.raises(BadInput, match="has no decisions yet"):
        apply(out)
    (data.source / "cat/2.png").write_bytes(b"another image")
    with pytest.raises(BadInput, match=r"cat/2\.png has changed"):
        apply(out, [file])
    detected = (out / "detected/labels.csv").read_text()
    (out / "detected/labels.csv").write_text(detected.replace("0.9", "0.8"))
    with pytest.raises(BadInput, match="was changed since"):
        apply(out, [file])
    whole = manifest(out)
    for damage in ({"sample": 3}, {"classes": None}, {"kind": "pie"}):
        (out / "manifest.json").write_text(json.dumps(whole | damage))
        with pytest.raises(BadInput):
            apply(out, [file])
    (out / "manifest.json").write_text("{")
    with pytest.raises(BadInput, match="damaged"):
        apply(out, [file])


@pytest.mark.parametrize("place", [".", "..", "link"])
def test_an_output_is_applied_to_whatever_it_is_called(out, tmp_path, monkeypatch, place):
    monkeypatch.chdir(out / "clean" if place == ".." else out if place == "." else tmp_path)
    (tmp_path / "link").symlink_to(out)
    file = decisions_csv(tmp_path / "d.csv", lines(cat0="keep"))
    assert apply(Path(place), [file]).decided == 1
    if place != "link":
        with pytest.raises(BadInput, match="the working directory is no longer there"):
            apply(Path(place), [file])
    os.chdir(tmp_path)
    assert labels(out)["cat/0.png"] == "cat" and (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "photos.nlt", "link", "d.csv"}


# ---- the rate ----

SIX = Sample(rows=(0, 10, 1, 11, 2, 12), strata=(0, 1, 0, 1, 0, 1), sizes=(9, 3))


def test_horvitz_and_thompson_by_hand():
    # N = 12. Stratum 0: 9 samples, 3 answered, 1 wrong, each stands for 3; stratum 1: all 3 answered, 2 wrong.
    answers = {0: True, 1: False, 2: False, 10: True, 11: True, 12: False}
    found = estimate_rate(SIX, answers)
    assert found.point == pytest.approx((1 * 3 + 2 * 1) / 12) and found.decided == 6
    # (9/12)^2 (1 - 3/9) (1/3)(2/3) / 2 + 0, which is 0.5625 * 0.6667 * 0.2222 / 2
    assert variance((9, 3), (1, 2), (3, 3)) == pytest.approx(0.5625 * (2 / 3) * (2 / 9) / 2)
    # Wilson's interval for 1/3 with n = 3 / (1 - 3/9) = 4.5; the whole stratum 1 adds nothing
    z2, n, p = 1.959963984540054**2, 4.5, 1 / 3
    middle, half = (
        (p + z2 / 9) / (1 + z2 / n),
        math.sqrt(z2) / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)),
    )
    assert found.low == pytest.approx(5 / 12 - 0.75 * (p - (middle - half)))
    assert found.high == pytest.approx(5 / 12 + 0.75 * (middle + half - p))


def test_only_the_beginning_without_a_gap_counts():
    answers = {0: True, 10: False, 1: False, 2: False, 12: True}  # 11 is missing
    assert estimate_rate(SIX, answers).point == pytest.approx(0.75 * 0.5)
    assert estimate_rate(SIX, answers, counted=2).point == pytest.approx(0.75)
    assert estimate_rate(SIX, answers, counted=1) is None  # nothing of stratum 1
    assert estimate_rate(SIX, {}) is None


def test_who_cannot_tell_widens_the_interval():
    sure = {0: True, 10: True, 1: False, 11: True, 2: False, 12: False}
    one, other = estimate_rate(SIX, sure), estimate_rate(SIX, sure | {2: None})
    assert other.low == pytest.approx(one.low) and other.high > one.high + 0.1
    assert other.decided == 5 and other.point == pytest.approx(0.75 * 0.5 + 0.25 * 2 / 3)
    assert "1 that nobody could tell" in other.reading


def test_a_sample_is_stratified_without_repetition_and_may_end_early():
    p = np.random.RandomState(0).beta(0.3, 1.2, 5000)
    sample = draw_sample(p, 100, seed=4)
    assert len(sample.rows) == len(set(sample.rows)) == 100 and sum(sample.sizes) == 5000
    assert draw_sample(p, 100, seed=4) == sample != draw_sample(p, 100, seed=5)
    edges = [0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 1.01]
    for h in range(7):
        assert sample.sizes[h] == ((p >= edges[h]) & (p < edges[h + 1])).sum()
        assert all(
            edges[h] <= p[row] < edges[h + 1] for row, of in zip(sample.rows, sample.strata, strict=True) if of == h
        )
        assert sample.strata.count(h) >= 4
    assert len(set(sample.strata[:25])) == 7
    everything = draw_sample(p[:20], 100, seed=0)
    assert sorted(everything.rows) == list(range(20))


def human(seed: int, N: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """(what a detector says, which labels are wrong): it finds a third of the wrong ones, and misses all of a kind."""
    rng = np.random.RandomState(seed)
    hard = rng.rand(N) < 0.25
    wrong = rng.rand(N) < np.where(hard, 0.45, 0.06)
    p = np.where(wrong & ~hard, rng.beta(4, 2, N), rng.beta(0.4, 5, N))
    return p, wrong


def simulate(p: np.ndarray, wrong: np.ndarray, size: int, times: int, counted: int | None = None) -> list[Any]:
    found = []
    for seed in range(times):
        sample = draw_sample(p, size, seed)
        found.append(estimate_rate(sample, {row: bool(wrong[row]) for row in sample.rows}, counted))
    return found


@pytest.mark.parametrize("counted", [None, 60])
def test_the_rate_is_unbiased_whatever_the_noise_and_its_interval_holds_95_in_100(counted):
    for p, wrong in (human(0), (human(1)[0], human(1)[0] < 0.01), (human(2)[0], human(2)[1] & (human(2)[0] > 0.5))):
        found, truth = simulate(p, wrong, 100, 600, counted), wrong.mean()
        points = np.array([each.point for each in found])
        assert abs(points.mean() - truth) < 3.5 * points.std() / math.sqrt(len(points)), (points.mean(), truth)
        covered = np.mean([each.low <= truth <= each.high for each in found])
        assert covered >= 0.93, covered


def test_the_formula_of_the_variance_is_the_variance_of_simulated_rates():
    p, wrong = human(0)
    found, told = [], []
    for seed in range(600):
        sample = draw_sample(p, 100, seed)
        answers = {row: bool(wrong[row]) for row in sample.rows}
        found.append(estimate_rate(sample, answers).point)
        y = [sum(answers[row] for row, of in zip(sample.rows, sample.strata, strict=True) if of == h) for h in range(7)]
        told.append(variance(sample.sizes, y, [sample.strata.count(h) for h in range(7)]))
    assert np.mean(told) == pytest.approx(np.var(found), rel=0.2)


def test_the_random_sample_narrows_the_interval_in_the_output(data, out, tmp_path):
    told = manifest(out)["sample"]
    sample = Sample(tuple(told["rows"]), tuple(told["strata"]), tuple(told["sizes"]))
    assert told["inclusion"] == [round(sample.strata.count(h) / size, 6) for h, size in enumerate(sample.sizes)]
    assert told["names"] == [PATHS[row] for row in sample.rows]
    wrong = set(told["names"]) & {"cat/0.png", "dog/0.png", "cat/3.png"}
    said = [
        {"path": name, "decision": "remove" if name in wrong else "keep", "tab": "sample", "reviewer": "ann"}
        for name in told["names"]
    ]
    applied = apply(out, [decisions_csv(tmp_path / "d.csv", said)])
    by_hand = estimate_rate(sample, {row: PATHS[row] in wrong for row in sample.rows})
    assert applied.rate == by_hand and applied.sample_answered == applied.sample_size == 8
    assert manifest(out)["reviewed"]["rate"]["point"] == round(by_hand.point, 6)


def test_answers_outside_the_random_sample_are_no_fair_choice_of_it(out, tmp_path):
    names = manifest(out)["sample"]["names"]
    said = [{"path": name, "decision": "keep", "tab": "review"} for name in names]
    assert apply(out, [decisions_csv(tmp_path / "d.csv", said)]).rate is None
    said[4]["tab"] = "sample"
    applied = apply(out, [decisions_csv(tmp_path / "e.csv", said)])
    assert applied.sample_answered == 5


# ---- anything at all ----

GOOD = b"path,sha256,given_label,decision,label,tab,time,reviewer,result\n" + b"".join(
    f'{name},,{name[:3]},{word},{label},sample,2026-01-0{i + 1},ann,\n'.encode()
    for i, (name, word, label) in enumerate([("cat/0.png", "keep", ""), ("dog/0.png", "relabel", "owl"), ("owl/0.png", "unsure", "")])
)  # fmt: skip


def tables() -> st.SearchStrategy[bytes]:
    field = st.one_of(
        st.sampled_from(
            [
                "cat/0.png",
                "dog/1.png",
                "owl/0.png",
                "cat",
                "dog",
                "owl",
                "keep",
                "relabel",
                "remove",
                "unsure",
                "sample",
            ]
        ),
        st.sampled_from([text for text in NASTY_TEXT if len(text) < 1000]),
        st.text(max_size=8),
    )
    columns = st.lists(
        st.sampled_from(["path", "decision", "label", "given_label", "sha256", "time", "result", "odd"]), unique=True
    )
    quote = lambda text: '"' + text.replace('"', '""') + '"'  # noqa: E731

    def table(head: list[str]) -> st.SearchStrategy[bytes]:
        row = st.lists(field, min_size=len(head), max_size=len(head))
        return st.lists(row, max_size=4).map(
            lambda rows: "\n".join(",".join(map(quote, line)) for line in [head, *rows]).encode(errors="replace")
        )

    return st.one_of(
        corrupted(GOOD),
        columns.flatmap(table),
        columns.map(lambda c: [*{*c, "path", "decision"}]).flatmap(table),
        st.binary(max_size=60),
    )


@sizes(60, 3000)
def test_any_file_of_decisions_is_applied_or_refused_in_one_sentence(out, tmp_path, cases):
    file = tmp_path / "decisions.csv"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        for earlier in (out / "decisions").iterdir():
            earlier.unlink()
        try:
            applied = apply(out, [file])
        except BadInput as error:
            assert_one_sentence(str(error), "decisions.csv")
        else:
            assert applied.decided <= len(PATHS) and (out / "manifest.json").exists()

    fuzz("decisions", cases, tables(), check)
