"""The command behind docs/detection.md: measured once, gone on with, and its page says which goals are missed."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import REPO

ROW = "digits, symmetric 40 %"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPO / "docs"))
    import detection

    monkeypatch.setattr(detection, "STRENGTHS", (1e-3,))  # cleanlab's input is the slow part
    monkeypatch.setattr(detection, "FOLDS", 2)
    monkeypatch.setattr(detection, "DRAWS", 10)
    return detection


def test_a_second_call_measures_nothing_and_writes_the_same_page(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import detection_page

    results, page = tmp_path / "results.jsonl", tmp_path / "page.md"
    page.write_text(f"# Text\n\n{detection_page.BEGIN}\nold\n{detection_page.END}\n\nMore text.\n")
    call = ["--results", str(results), "--page", str(page), "--only", ROW, "--seeds", "1"]
    script.main(call)
    measured, written = results.read_bytes(), page.read_text()

    lines = {line["score"]: line for line in map(json.loads, measured.splitlines())}
    assert set(lines) == {"default", "p_y", "margin", "cleanlab"}
    default = lines["default"]
    assert abs(default["true_rate"] - 0.4) < 0.03 and default["images"] == 1400
    assert default["auroc"] > 0.998 and default["average_precision"] > 0.997 and default["f1"] > 0.9
    assert default["false_negatives"] == round((1 - default["precision"]) * default["true_rate"] * 1400)
    assert default["low"] <= default["true_rate"] <= default["high"]
    assert default["decided_error"] < 0.03
    assert 0.9 < lines["cleanlab"]["auroc"] < default["auroc"]
    assert lines["cleanlab"]["f1"] > 0.8
    assert written.startswith("# Text\n") and written.endswith("\n\nMore text.\n") and "old" not in written
    assert "### digits, 1,400 images" in written
    (row,) = (line for line in written.splitlines() if line.startswith("| symmetric 40 % | 1 |"))
    assert f"{default['auroc']:.4f}"[1:] in row

    def refused(*args: Any, **options: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(script, "find_label_errors", refused)
    monkeypatch.setattr(script, "of_images", refused)
    results.write_bytes(measured + b'{"data": "digits", "noi')  # a crash
    script.main(call)
    assert results.read_bytes() == measured
    assert page.read_text() == written

    lost = b"".join(line for line in measured.splitlines(keepends=True) if b'"default"' not in line)
    results.write_bytes(lost)
    with pytest.raises(AssertionError, match="measured again"):
        script.main(call)


def test_orders_are_measured_as_by_hand(script: ModuleType) -> None:
    wrong_N = np.array([True, False, True, False, False, True])
    measured = script.ranked(np.array([6.0, 5, 4, 3, 2, 1]), wrong_N)
    # Of the 9 pairs of a wrong and a right label 3 + 2 + 0 are in order; the wrong ones are at ranks 1, 3 and 6.
    precision = (1 + 2 / 3 + 3 / 6) / 3
    expected = {"auroc": 5 / 9, "average_precision": precision, "precision": 2 / 3, "false_negatives": 1}
    assert measured == pytest.approx(expected)
    assert script.ranked(np.arange(5.0), np.zeros(5, bool)) == {}
    assert script.f1(np.array([True, True, False, False, False, False]), wrong_N) == pytest.approx(2 / 5)
    assert script.f1(wrong_N, np.zeros(6, bool)) is None


def test_human_and_asymmetric_labels_are_those_of_their_row(script: ModuleType, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    clean_N = np.tile(np.arange(10), 1000)
    np.savez(
        tmp_path / "cifar.npz", class_names=names, train_labels=clean_N,
        train_images=generator.integers(0, 255, (10_000, 2, 2, 3)).astype(np.uint8),
    )  # fmt: skip
    np.savez(
        tmp_path / "human.npz", aggre_label=clean_N, random_label1=(clean_N + 1) % 10, worse_label=(clean_N + 2) % 10
    )
    options = ["--cifar10", str(tmp_path / "cifar.npz"), "--human", str(tmp_path / "human.npz")]
    arguments = script._arguments(options)
    ten, four = (script._load(name, arguments) for name in ("CIFAR-10", "CIFAR-4"))
    assert ten.images_NCHW.shape == (8000, 3, 2, 2) and len(four.clean_N) == 4000
    assert four.classes == ("cat", "dog", "horse", "deer") and set(four.clean_N) == {0, 1, 2, 3}
    for noise, shift in (("human, aggregate", 0), ("human, random 1", 1), ("human, worst", 2)):
        assert ((script._labels("CIFAR-10", ten, noise, 0) - ten.clean_N) % 10 == shift).all()
    given_N = script._labels("CIFAR-10", ten, "asymmetric 40 %", 0)
    moved = {(names[true], names[given]) for true, given in zip(ten.clean_N, given_N, strict=True) if true != given}
    assert moved == {("truck", "automobile"), ("bird", "airplane"), ("deer", "horse"), ("cat", "dog"), ("dog", "cat")}
    assert abs((given_N != ten.clean_N)[ten.clean_N == 3].mean() - 0.4) < 0.06
    given_N = script._labels("CIFAR-10", ten, "instance-dependent 40 %", 1)
    assert abs((given_N != ten.clean_N).mean() - 0.4) < 0.03
    assert not np.array_equal(given_N, script._labels("CIFAR-10", ten, "instance-dependent 40 %", 0))
    rows = {(noise, seed): scores for noise, seed, scores in script._wanted("CIFAR-10", arguments)}
    assert len(rows) == 3 * 15 and "cleanlab" not in rows["human, worst", 1]


def line(noise: str, score: str, seed: int = 0, **figures: Any) -> dict[str, Any]:
    own = {"rate": 0.2, "low": 0.15, "high": 0.25, "flagged": 0.2, "decided_error": 0.01, "true_rate": 0.2}
    return (
        {"data": "CIFAR-10", "noise": noise, "seed": seed, "score": score}
        | (own if score == "default" else {})
        | figures
    )


def test_a_missed_goal_is_seen_and_a_met_one_is_not(script: ModuleType) -> None:
    import detection_page as page

    def missed(*lines: dict[str, Any]) -> set[str]:
        (row,) = page.rows_of(list(lines))
        return {goal.__name__ for goal in page.GOALS.values() if goal(row) is False}

    good = line("symmetric 20 %", "default", auroc=0.97)
    assert (
        missed(good, line("symmetric 20 %", "p_y", auroc=0.9749), line("symmetric 20 %", "cleanlab", auroc=0.96))
        == set()
    )
    assert missed(good, line("symmetric 20 %", "p_y", auroc=0.9), line("symmetric 20 %", "margin", auroc=0.9751)) == {
        "near_the_best_single_score"
    }
    assert missed(good, line("symmetric 20 %", "cleanlab", auroc=0.97)) == {"above_cleanlab"}
    assert missed(good | {"auroc": 0.9699}) == {"auroc_high_enough"}
    assert missed(good | {"data": "digits", "auroc": 0.9}) == set()
    assert missed(good, good | {"seed": 1, "rate": 0.231}) == {"rate_close"}
    of_images = line("instance-dependent 20 %", "default", auroc=0.9, rate=0.25)
    assert missed(of_images) == set(), "the rate is that of noise by class"
    assert missed(good, good | {"seed": 1, "low": 0.201}) == {"covered"}
    assert missed(line("clean", "default", true_rate=0, rate=0, low=0, flagged=0.0201)) == {"few_flagged"}
    human = line("human, worst", "default", auroc=0.91, rate=0.1)
    assert missed(human) == set()
    assert missed(human | {"decided_error": 0.031}) == {"decided_close"}
