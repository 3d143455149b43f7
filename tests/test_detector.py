"""`nlt detect --detector`: any method of an experiment file, or O2U-Net, ranks the labels under the detector's rate."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import REPO
from sklearn.datasets import load_digits

from nlt.backbones import Pixels
from nlt.cleaning import trained
from nlt.cleaning.judge import Judged, judge
from nlt.cli import main
from nlt.data.labelled import read_labelled
from nlt.detect import Rate, find_label_errors, ranked_by
from nlt.detect.ranked import LEAST
from nlt.reading import load

N, WRONG = 200, 40


@pytest.fixture
def run(tmp_path: Path, store_uri: str) -> Any:
    def run(*arguments: object) -> Result:
        where = ("--tracking-uri", store_uri, "--data-root", str(tmp_path / "data"), "--backbone", "pixels")
        return CliRunner().invoke(main, ["detect", *map(str, arguments), *where])

    return run


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """200 digits 0 to 3, the first 40 of them labelled one too high."""
    digits = load_digits()
    rows = np.flatnonzero(digits.target < 4)[:N]
    clean_N = digits.target[rows]
    labels_N = clean_N.copy()
    labels_N[:WRONG] = (labels_N[:WRONG] + 1) % 4
    images = (digits.images[rows] * 15.9).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", train_images=images, train_labels=labels_N, train_clean_labels=clean_N)
    return tmp_path / "digits.npz"


def experiment(file: Path, method: dict[str, Any], **more: Any) -> Path:
    spec = {
        "name": "mine", "about": "a detector", "data": {"name": "cifar10"},
        "noise": {"name": "symmetric", "rate": 0.9}, "model": {"name": "cnn9", "width": 0.1}, "method": method,
    }  # fmt: skip
    file.write_text(json.dumps(spec | more))
    return file


STAGE = {"epochs": 2, "batch_size": 16, "schedule": {"name": "constant", "lr": 0.05}}
O2U = {
    "name": "o2u", "forget_rate": 0.2, "pretraining": STAGE, "training": STAGE | {"epochs": 1},
    "cyclical": STAGE | {"epochs": 4, "schedule": {"name": "cyclical", "r1": 0.05, "r2": 0.005, "period": 2}},
}  # fmt: skip


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "labels.csv").open(encoding="utf-8")))


# ---- the arithmetic ----


def found():
    generator = np.random.default_rng(0)
    p_NK = generator.dirichlet((1, 1, 1), 12)
    return find_label_errors(None, generator.integers(0, 3, 12), probabilities_NK=p_NK)


def test_the_order_is_the_scores_and_the_probabilities_are_dealt_out_anew():
    errors = found()
    scores_N = np.arange(12.0)[::-1].copy()
    wrong_N = np.arange(12) < 5
    mine = ranked_by(errors, "mine", scores_N, wrong_N)
    assert mine.order().tolist() == list(range(12))
    assert mine.p_wrong_N[:5].tolist() == np.sort(errors.p_wrong_N)[::-1][:5].clip(LEAST, 1).tolist()
    assert mine.p_wrong_N[5:].tolist() == np.sort(errors.p_wrong_N)[::-1][5:].clip(0, 0.5).tolist()
    assert mine.rate == errors.rate
    np.testing.assert_array_equal(mine.scores["mine"], scores_N)
    # What is not the given label's is shared among the others as before.
    k, (i, j) = errors.given_N[0], [c for c in range(3) if c != errors.given_N[0]]
    assert mine.p_true_NK[0, k] == pytest.approx(1 - mine.p_wrong_N[0])
    assert mine.p_true_NK[0, i] / mine.p_true_NK[0, j] == pytest.approx(
        errors.p_true_NK[0, i] / errors.p_true_NK[0, j], rel=1e-4
    )
    assert mine.p_true_NK.sum(1).tolist() == pytest.approx([1.0] * 12)


def test_what_is_flagged_stands_first_whatever_its_score_and_a_changed_label_is_flagged_and_suggested():
    errors = found()
    labels_N = errors.given_N.copy()
    labels_N[7] = (labels_N[7] + 1) % 3
    wrong_N = np.arange(12) == 3
    mine = ranked_by(errors, "mine", np.where(np.arange(12) < 2, np.nan, np.arange(12.0)), wrong_N, labels_N)
    assert mine.order().tolist() == [7, 3, 11, 10, 9, 8, 6, 5, 4, 0, 1, 2]  # not scored: as the lowest
    assert np.flatnonzero(mine.p_wrong_N > 0.5).tolist() == [3, 7]
    assert mine.suggested_N[7] == labels_N[7]
    assert mine.p_true_NK[7, labels_N[7]] == pytest.approx(mine.p_wrong_N[7])


def test_without_a_mask_as_many_are_flagged_as_the_rate_says():
    labels_N = np.arange(400) % 2
    p_N = np.where(np.arange(400) < 80, 0.05, 0.95)  # of the given label: a fifth is wrong
    p_NK = np.stack([np.where(labels_N == 0, p_N, 1 - p_N), np.where(labels_N == 1, p_N, 1 - p_N)], 1)
    errors = replace(find_label_errors(None, labels_N, probabilities_NK=p_NK), rate=Rate(0.2, 0.1, 0.3, ""))
    mine = ranked_by(errors, "mine", np.arange(400.0))
    flagged = np.flatnonzero(mine.p_wrong_N > 0.5)
    assert flagged.tolist() == list(range(320, 400))
    assert (mine.suggested_N[flagged] == 1 - labels_N[flagged]).all()  # of two classes: the other one


# ---- the command ----


def test_an_experiment_files_method_ranks_the_labels_and_a_second_call_trains_nothing(
    run, archive, tmp_path, monkeypatch
):
    file = experiment(tmp_path / "mine.json", O2U)
    result = run(archive, "--detector", file, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["ranking"] == "o2u"
    assert found["auroc"] > 0.7  # six epochs; by chance 0.5
    assert found["flagged"] == 40  # its own forget_rate
    rows = rows_of(tmp_path / "out")
    assert [float(row["o2u"]) for row in rows] == sorted((float(row["o2u"]) for row in rows), reverse=True)
    assert [row["decision"] for row in rows] == ["remove"] * 40 + ["keep"] * 160
    before = (tmp_path / "out" / "labels.csv").read_bytes()

    def trains(*arguments: Any, **more: Any) -> None:
        raise AssertionError("it is trained again")

    monkeypatch.setattr(trained, "Run", trains)
    result = run(archive, "--detector", file, "--out", tmp_path / "again", "--action", "relabel")
    assert result.exit_code == 0, result.output
    assert "o2u's training" in result.output
    relabelled = rows_of(tmp_path / "again")
    assert {row["decision"] for row in relabelled[:40]} <= {"relabel", "remove"}
    assert before.count(b"\n") == len(relabelled) + 1
    (tmp_path / "mine.csv").write_text(f"id,decision,label\n{rows[0]['id']},keep,\n")
    done = CliRunner().invoke(main, ["apply", str(tmp_path / "out"), str(tmp_path / "mine.csv")])
    assert done.exit_code == 0, done.output
    assert list(rows_of(tmp_path / "out")[0]) == list(rows[0])


# ---- without the command ----


@pytest.fixture
def judged(archive: Path) -> Judged:
    data = read_labelled(archive)
    return judge(data, [Pixels()])


def trained_by(judged: Judged, detector: Any, data_root: Path, **more: Any) -> Judged:
    return judged.by_training(detector, "mine", side=None, data_root=data_root, device="cpu", seed=0, **more)


def test_interrupted_it_goes_on_and_ends_alike(judged, tmp_path, monkeypatch):
    spec = load(experiment(tmp_path / "mine.json", O2U | {"pretraining": STAGE | {"epochs": 1}}))
    whole = trained_by(judged, spec, tmp_path / "whole").errors
    save, steps = trained.checkpoint.save, []

    def interrupted(folder: Path, step: int, state: Any) -> None:
        save(folder, step, state)
        steps.append(step)
        if len(steps) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(trained.checkpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained_by(judged, spec, tmp_path / "data")
    # All that is left is the last stage, which reports nothing of samples.
    again = trained_by(judged, spec, tmp_path / "data").errors
    assert steps == list(range(1, 7))
    np.testing.assert_array_equal(again.p_wrong_N, whole.p_wrong_N)
    np.testing.assert_array_equal(again.scores["o2u"], whole.scores["o2u"])
    (folder,) = (tmp_path / "data" / "trained").iterdir()
    assert [file.name for file in folder.iterdir()] == ["checkpoint-000006.pt"]


def test_another_seed_side_or_label_is_trained_anew(judged, tmp_path):
    method = {"name": "cleaned", "backbone": {"name": "pixels"}, "training": STAGE | {"epochs": 1}}
    spec = load(experiment(tmp_path / "mine.json", method))
    for seed, side, label in ((0, 8, 0), (1, 8, 0), (0, 9, 0), (0, 8, 1), (0, 8, 0)):
        judged.data.labels_N[0] = label
        judged.by_training(spec, "mine", side=side, data_root=tmp_path / "data", device="cpu", seed=seed)
    assert len(list((tmp_path / "data" / "trained").iterdir())) == 4


def test_a_method_that_relabels_suggests_its_labels(judged, tmp_path):
    method = {"name": "cleaned", "backbone": {"name": "pixels"}, "act": "relabel", "training": STAGE | {"epochs": 1}}
    mine = trained_by(judged, load(experiment(tmp_path / "mine.json", method)), tmp_path / "data")
    assert mine.errors.ranking == "cleaned"
    flagged_N = judged.errors.flagged()
    np.testing.assert_array_equal(mine.errors.p_wrong_N > 0.5, flagged_N)
    np.testing.assert_array_equal(mine.errors.suggested_N[flagged_N], judged.errors.suggested_N[flagged_N])
    assert mine.quality(0.5)["auroc"] == pytest.approx(judged.quality(0.5)["auroc"], abs=0.01)


def test_o2u_flags_as_many_as_the_rate_says(judged, tmp_path, monkeypatch):
    def shorter(images: int, rate: float) -> Any:
        spec = whole(images, rate)
        stages = {key: stage.model_copy(update={"epochs": 2}) for key, stage in spec.stages().items()}
        return spec.model_copy(update={"method": spec.method.model_copy(update=stages)})

    whole = trained.o2u
    monkeypatch.setattr(trained, "o2u", shorter)
    told = []
    errors = trained_by(judged, "o2u", tmp_path / "data", progress=lambda *what: told.append(what)).errors
    assert 0.1 < errors.rate.point < 0.3
    assert int((errors.p_wrong_N > 0.5).sum()) == int(errors.rate.point * N)
    assert told == [("training O2U", step, 6) for step in range(7)]


def test_where_nothing_can_be_kept_it_is_trained_all_the_same(judged, tmp_path):
    method = {"name": "cleaned", "backbone": {"name": "pixels"}, "training": STAGE | {"epochs": 1}}
    (tmp_path / "data").write_text("a file")
    notes: list[str] = []
    spec = load(experiment(tmp_path / "mine.json", method))
    mine = trained_by(judged, spec, tmp_path / "data", note=notes.append)
    assert mine.errors.ranking == "cleaned"
    assert len(notes) == 1 and "an interrupt would lose it" in notes[0]


def test_o2u_has_the_papers_epochs_up_to_its_20000_images():
    def epochs(N: int) -> list[int]:
        method = trained.o2u(N, 0.2).method
        return [method.pretraining.epochs, method.cyclical.epochs, method.training.epochs]

    assert epochs(100) == epochs(20_000) == [30, 20, 1]
    assert epochs(60_000) == [10, 10, 1]
    assert epochs(1_000_000) == [5, 10, 1]
    assert trained.o2u(100, 1.0).method.forget_rate == 0.95


def test_a_method_without_scores_is_refused_before_anything_is_done(run, archive, tmp_path):
    file = experiment(tmp_path / "mine.json", {"name": "standard", "training": STAGE})
    result = run(archive, "--detector", file, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "the method standard gives samples no scores" in result.output
    assert not (tmp_path / "data").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--detector", "o2"), "--detector 'o2': use loo, o2u, or an experiment file"),
        (("--detector", "missing.json"), "missing.json: there is no such file"),
        (("--detector", REPO / "nlt" / "schema.json"), "schema.json"),
        (("--detector", "o2u", "--image-size", "3"), "--detector o2u: model cnn9 needs images of at least 4 x 4"),
        (("--detector", "o2u", "--image-size", "0"), "--image-size 0"),
    ],
)
def test_bad_input_is_one_sentence(run, archive, tmp_path, arguments, sentence):
    result = run(archive, *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert sentence in result.output
    assert not (tmp_path / "out").exists()


def test_numbers_cannot_be_trained_on(run, tmp_path):
    result = run("--features", "f.npy", "--labels", "l.csv", "--detector", "o2u")
    assert result.exit_code == 2
    assert "trains on images" in result.output


def test_training_that_diverges_is_one_sentence(run, archive, tmp_path):
    fast = STAGE | {"schedule": {"name": "constant", "lr": 1e30}}
    result = run(archive, "--detector", experiment(tmp_path / "mine.json", O2U | {"pretraining": fast}), "--out", "x")
    assert result.exit_code == 2, result.output
    assert "lower the learning rate" in result.output
