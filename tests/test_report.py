"""Comparisons of made-up runs, whose numbers can be worked by hand."""

import csv
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Param, RunTag
from mlflow.entities import Metric as Point

from nlt.cli import main
from nlt.report import as_csv, as_json, compare, markdown
from nlt.report.collect import ACCURACY, Cell, Comparison, noise_title
from nlt.report.curves import Losses, Panel, by_truth, curve, histogram_steps, mean_losses, panels, stage_starts
from nlt.report.html import page
from nlt.report.plots import STYLE, _legend, axis_tops, drawings, file_names, lines, pdf, png
from nlt.report.statistics import paired_difference, ranks, summary
from nlt.report.summary import log_summary
from nlt.report.table import results, run_list
from nlt.settings import BadInput
from nlt.tracking import Store, experiment_id, open_store
from nlt.tracking.detection import write_detection

NAN = float("nan")
PUBLISHED = {"source": "Doe <b>2023</b>, Table 1", "n": 1, "test_accuracy": 0.796}
PUBLISHED_FOR = ("o2u", "CE", "symmetric 0.2")
# Seed -> last-epoch accuracy. Differences of o2u to standard at 0.2: 0.10, 0.20; at 0.6 seed 0 alone is in both.
ACCURACIES = {
    ("standard", "CE", "symmetric 0.2"): {0: 0.60, 1: 0.70},
    ("o2u", "CE", "symmetric 0.2"): {0: 0.70, 1: 0.90},
    ("o2u", "NCE+RCE", "symmetric 0.2"): {0: 0.75, 1: 0.85, 2: 0.80},
    ("standard", "CE", "symmetric 0.6"): {0: 0.30},
    ("o2u", "CE", "symmetric 0.6"): {0: 0.25, 1: 0.35},
}


@dataclass(frozen=True)
class Made:
    """A run of four epochs on four samples, of which the second has a wrong label; O2U: 1 + 2 + 1 epochs."""

    method: str = "standard"
    loss: str = "CE"
    noise: str = "symmetric 0.2"
    seed: int = 0
    accuracy: float = 0.5
    """After the last epoch; a quarter of it after the first, and so on."""
    name: str = ""
    """By default from method, loss and rate."""
    sha: str = ""
    """Of the spec; by default its name, so that runs of one name are seeds of one spec."""
    status: str = "FINISHED"
    tags: Mapping[str, str] = field(default_factory=dict)
    """Beside those that every run has, or in their place."""
    arrays: bool = False
    """Whether losses, labels and masks lie in its artifacts."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Further params."""
    digest: str = ""
    """Of its data; none is logged by default."""

    @property
    def detects(self) -> bool:
        return self.method == "o2u"

    def all_tags(self, name: str) -> dict[str, str]:
        own = {"nlt.spec_sha256": self.sha or name, "nlt.seed": str(self.seed), "nlt.noise": self.noise}
        return {"nlt.version": "0", "nlt.device": "cpu", "nlt.sweep": "first"} | own | dict(self.tags)

    def params(self) -> list[Param]:
        epochs = "1+2+1" if self.detects else "4"
        values = {"method": self.method, "loss": self.loss, "epochs": epochs, "seed": str(self.seed)}
        values |= dict(self.options)
        return [Param(key, value) for key, value in values.items()]

    def points(self) -> Iterator[Point]:
        yield Point("final/test_accuracy_last", self.accuracy, 0, 4)
        yield Point("final/train_seconds", 90.0, 0, 4)
        yield Point("noise/drawn_rate", 0.25, 0, 0)
        for step in (1, 2, 3, 4):
            yield Point("test/accuracy", self.accuracy * step / 4, 0, step)
            yield Point("optim/lr", 0.01 / step, 0, step)
        if self.detects:
            yield Point("noise/remaining", 0.2 + self.seed / 10, 0, 2)
            yield Point("noise/remaining", 0.1 + self.seed / 10, 0, 3)
            yield Point("final/noise_precision", 0.75, 0, 4)

    def write_arrays(self, folder: Path) -> None:
        ids = np.arange(4)
        removed = NAN if self.detects else 5  # by the last mask: the second sample
        losses = np.array([[2, 2, 2, 2], [1, 4, 1, 3], [0.5, 6, 1, 4], [0.5, removed, 1, 1]], np.float16)
        np.savez(folder / "losses.npz", losses=losses, ids=ids)
        np.savez(folder / "labels.npz", ids=ids, given=[0, 1, 0, 1], clean=[0, 0, 0, 1])
        if self.detects:
            keep = np.array([[1, 1, 1, 0], [1, 0, 1, 1]], bool)
            np.savez(folder / "masks.npz", keep=np.packbits(keep, axis=1), steps=[2, 3], ids=ids)


def add(store: Store, *runs: Made) -> None:
    """Log runs, one after the other, in the one experiment of the store."""
    found = store.client.get_experiment_by_name("made-up")
    experiment = found.experiment_id if found else store.client.create_experiment("made-up", str(store.artifacts))
    for made in runs:
        log(store.client, experiment, made)
        time.sleep(0.002)  # runs are ordered by their start, in milliseconds


def log(client: MlflowClient, experiment: str, made: Made) -> None:
    name = made.name or f"{made.method}_{made.loss}_{made.noise.split()[-1]}"
    run = client.create_run(experiment, run_name=name, tags=made.all_tags(name)).info.run_id
    client.log_batch(run, list(made.points()), made.params(), [RunTag("mlflow.user", "x")])
    if made.digest:
        client.log_inputs(run, [DatasetInput(Dataset("digits", made.digest, "nlt", "{}"))])
    if made.arrays:
        with TemporaryDirectory() as folder:
            made.write_arrays(Path(folder))
            client.log_artifacts(run, folder)
    client.set_terminated(run, made.status)


@pytest.fixture(scope="module")
def filled(template_store, tmp_path_factory) -> Store:
    """A store that tests only read."""
    folder = tmp_path_factory.mktemp("filled") / "store"
    shutil.copytree(template_store, folder)
    store = open_store(f"sqlite:///{folder / 'mlflow.db'}")
    for (method, loss, noise), seeds in ACCURACIES.items():
        tags = {"nlt.published": json.dumps(PUBLISHED)} if (method, loss, noise) == PUBLISHED_FOR else {}
        for seed, accuracy in seeds.items():
            add(store, Made(method, loss, noise, seed, accuracy, tags=tags, arrays=True))
    return store


def nlt(*args: object):
    return CliRunner().invoke(main, [str(a) for a in args], prog_name="nlt")


def cell_of(store: Store, label: str, noise: str) -> Cell:
    [comparison] = compare(store)
    cell = comparison.cell(label, noise)
    assert cell is not None
    return cell


# ---- arithmetic ----


def test_mean_and_sample_deviation():
    found = summary([0.6, 0.7])
    assert (found.n, found.mean) == (2, pytest.approx(0.65))
    assert found.sd == pytest.approx(0.0707107, abs=1e-6)  # sqrt(2 * 0.05^2 / 1)
    assert summary([0.5]).sd is None
    assert summary([]) is None


def test_interval_of_three_pairs():
    """Differences 1, 2, 3: mean 2, deviation 1; t of 2 degrees of freedom is 4.30265, over sqrt(3) 2.48414."""
    found = paired_difference({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert (found.n, found.mean) == (3, 2.0)
    assert found.half == pytest.approx(2.48414, abs=1e-5)


def test_pairs_are_the_seeds_that_both_have():
    """Seeds 0 and 1: differences 0.10 and 0.07, mean 0.085, deviation 0.0212132; 12.7062 * that / sqrt(2) = 0.190593."""
    found = paired_difference({0: 0.80, 1: 0.82, 2: 0.90}, {3: 0.10, 1: 0.75, 0: 0.70})
    assert (found.n, found.mean) == (2, pytest.approx(0.085))
    assert found.half == pytest.approx(0.190593, abs=1e-5)


def test_one_pair_has_no_interval_and_none_no_difference():
    assert paired_difference({0: 0.5, 1: 0.6}, {1: 0.4, 2: 0.4}).half is None
    assert paired_difference({0: 0.5}, {1: 0.4}) is None


def test_equal_values_share_the_mean_of_their_places():
    assert ranks({"a": 0.5, "b": 0.9, "c": 0.5, "d": 0.1}) == {"b": 1, "a": 2.5, "c": 2.5, "d": 4}
    assert ranks({}) == {}


# ---- which runs make a cell ----


def test_order_labels_and_values(filled):
    [comparison] = compare(filled)
    assert comparison.methods == ["Standard, CE", "O2U, CE", "O2U, NCE+RCE"]
    assert comparison.noises == ["symmetric 0.2", "symmetric 0.6"]
    assert cell_of(filled, "O2U, NCE+RCE", "symmetric 0.2").values(ACCURACY) == {0: 0.75, 1: 0.85, 2: 0.80}
    assert comparison.cell("O2U, NCE+RCE", "symmetric 0.6") is None


def test_repetitions_unfinished_and_summary_runs_do_not_count(store):
    add(store, Made(accuracy=0.1), Made(accuracy=0.6))  # the later one counts
    add(store, Made(accuracy=0.9, status="FAILED"), Made(accuracy=0.8, tags={"nlt.kind": "summary"}))
    assert cell_of(store, "Standard, CE", "symmetric 0.2").values(ACCURACY) == {0: 0.6}


def test_specs_that_differ_otherwise_are_told_apart(store):
    add(store, Made(name="thin", sha="1"), Made(name="wide", sha="2"), Made(name="wide", sha="3456789"))
    add(store, Made(name="x", sha="4", noise="none"))
    [comparison] = compare(store)
    labels = {cell.label for cell in comparison.cells}
    assert labels == {"Standard, CE [thin]", "Standard, CE [wide 2]", "Standard, CE [wide 345678]", "Standard, CE"}
    assert list(comparison.baselines) == ["none"]  # no telling which of the others is the baseline


def test_a_method_that_is_told_the_rate_has_one_label_at_all_noises(store):
    for noise, nominal, told in (
        ("symmetric 0.2", "0.2", "0.25"),  # told what was drawn
        ("symmetric 0.6", "0.6", "0.6"),  # told what was asked for
        ("symmetric 0.6", "0.6", "0.2"),
        ("symmetric 0.6", "0.6", "estimate"),
        ("none", "", "0.25"),
    ):
        options = {"forget_rate": told} | ({"noise_rate": nominal} if nominal else {})
        add(store, Made("o2u", noise=noise, sha=noise + told, options=options))
    [comparison] = compare(store)
    assert {
        label: sorted(cell.noise for cell in comparison.cells if cell.label == label) for label in comparison.methods
    } == {
        "O2U, forget_rate noise rate": ["none", "symmetric 0.2", "symmetric 0.6"],
        "O2U, forget_rate 0.2": ["symmetric 0.6"],
        "O2U, forget_rate estimate": ["symmetric 0.6"],
    }


def test_long_tailed_data_have_a_row_and_a_baseline_of_their_own(store):
    add(store, Made(accuracy=0.6), Made("o2u", accuracy=0.7))
    tail = {"imbalance": "10"}
    add(store, Made(name="tail", options=tail, accuracy=0.4), Made("o2u", name="o2u tail", options=tail))
    [comparison] = compare(store)
    assert comparison.noises == ["symmetric 0.2", "symmetric 0.2, imbalance 10"]
    assert comparison.methods == ["Standard, CE", "O2U"]
    assert comparison.difference(comparison.cell("O2U", "symmetric 0.2, imbalance 10")).mean == pytest.approx(0.1)
    assert noise_title("symmetric 0.2, imbalance 10") == "symmetric noise, 20 %, imbalance 10"
    assert "symmetric 0.2, imbalance 10: test accuracy" in markdown([comparison])


def test_what_learned_other_labels_has_no_places_and_no_difference(store):
    """O2U had other data at one noise, another seed of the noise at the next, other flips at the third."""
    others = [{"digest": "2"}, {"options": {"noise_seed": "1"}}, {"options": {"noise_flips": "{}"}}, {}]
    for noise, other in zip(NOISES, others, strict=True):
        alike = {"noise": noise, "digest": "1"}
        add(store, Made(accuracy=0.5, **alike), Made("elr", accuracy=0.6, **alike))
        add(store, Made("o2u", accuracy=0.7, **(alike | other)))
    [comparison] = compare(store)
    assert comparison.mixed == list(NOISES[:3])
    differences = {(cell.method, cell.noise): comparison.difference(cell) for cell in comparison.cells}
    assert [differences["o2u", noise] for noise in NOISES[:3]] == [None] * 3
    assert differences["o2u", NOISES[3]].mean == pytest.approx(0.2)
    assert [differences["elr", noise].mean for noise in NOISES] == pytest.approx([0.1] * 4)
    last = NOISES[3]
    assert comparison.ranks() == {"Standard, CE": {last: 3}, "ELR": {last: 2}, "O2U": {last: 1}}
    assert Comparison("x", "1", [cell for cell in comparison.cells if cell.noise != last], {}).ranks() == {}
    table = results(comparison)
    assert [[entry.best for entry in row].index(True) for row in table.rows if any(entry.best for entry in row)] == [4]
    assert "At no noise added; pair flip noise, 40 %; symmetric noise, 20 % not all methods" in table.caption
    assert "the wrong labels are the same" not in table.caption
    assert "the wrong labels are the same" in results(compare(store, tags={"nlt.noise": last})[0]).caption


def test_a_run_belongs_to_each_of_its_sweeps(store):
    for seed, sweep in enumerate(("a", "a,b c", "ab", "b")):
        add(store, Made(seed=seed, tags={"nlt.sweep": sweep}))
    for sweep, seeds in (("a", [0, 1]), ("b c", [1]), ("b", [3]), ("ab", [2])):
        [comparison] = compare(store, sweep=sweep)
        assert list(comparison.cells[0].runs) == seeds
    with pytest.raises(BadInput, match="--sweep 'c': no finished run"):
        compare(store, sweep="c")
    [comparison] = compare(store, tags={"nlt.sweep": "a"})
    assert list(comparison.cells[0].runs) == [0]


def test_published_numbers_that_make_no_sense_are_passed_over(store):
    for seed, text in enumerate(("{", "[]", '{"test_accuracy": 1}', '{"source": "x", "test_accuracy": "many"}')):
        add(store, Made(name=str(seed), tags={"nlt.published": text}))
    assert [cell.published for cell in compare(store)[0].cells] == [None] * 4


def test_baseline_by_name_or_method(filled):
    [comparison] = compare(filled, baseline="o2u, ce")
    standard = comparison.cell("Standard, CE", "symmetric 0.2")
    assert comparison.difference(standard).mean == pytest.approx(-0.15)
    assert comparison.difference(comparison.cell("O2U, CE", "symmetric 0.2")) is None
    [comparison] = compare(filled, baseline="standard_CE_0.6")
    assert list(comparison.baselines) == ["symmetric 0.6"]


# ---- tables ----


def test_csv_by_hand(filled):
    rows = {(row["label"], row["noise"]): row for row in csv.DictReader(io.StringIO(as_csv(compare(filled))))}
    assert len(rows) == 5
    row = rows["O2U, CE", "symmetric 0.2"]
    assert (row["seeds"], row["test_accuracy_last_n"], row["baseline"]) == ("0 1", "2", "Standard, CE")
    assert float(row["test_accuracy_last_mean"]) == pytest.approx(0.8)
    assert float(row["test_accuracy_last_sd"]) == pytest.approx(0.141421, abs=1e-6)
    assert (float(row["published_test_accuracy"]), row["published_n"]) == (0.796, "1")
    # differences 0.1 and 0.2: mean 0.15, deviation 0.0707107, 12.7062 * that / sqrt(2) = 0.635310
    assert float(row["difference_low"]) == pytest.approx(0.15 - 0.635310, abs=1e-5)
    assert float(row["difference_high"]) == pytest.approx(0.15 + 0.635310, abs=1e-5)
    alone = rows["O2U, CE", "symmetric 0.6"]
    assert (alone["difference_n"], alone["difference_low"], alone["published_source"]) == ("1", "", "")
    assert rows["Standard, CE", "symmetric 0.2"]["difference_mean"] == ""


def test_json_has_each_seed(filled):
    cells = json.loads(as_json(compare(filled)))["cells"]
    [cell] = [c for c in cells if c["loss"] == "NCE+RCE"]
    assert cell["metrics"]["test_accuracy_last"]["by_seed"] == {"0": 0.75, "1": 0.85, "2": 0.8}
    assert len(cell["run_ids"]) == 3
    # 0.15, 0.15 of the pairs 0 and 1
    assert (cell["difference"]["n"], cell["difference"]["mean"]) == (2, pytest.approx(0.15))


def test_markdown_rows(filled):
    text = markdown(compare(filled))
    assert "| O2U, CE | 80.0 ± 14.1 (2) [79.6 (1)] | 75.0 ± 0.0 (2) | 30.0 ± 7.1 (2) | 75.0 ± 0.0 (2) |" in text
    assert "| symmetric 0.2 | O2U, NCE+RCE | 3 | +15.0 ± 0.0 (2) | 90 ± 0 |" in text
    assert "| symmetric 0.6 | O2U, CE | 2 | \N{MINUS SIGN}5.0 (1) | 90 ± 0 |" in text


def test_a_published_number_of_which_nobody_said_how_many_runs(store):
    """Runs of an nlt before `n`, and a number of runs that is none."""
    published = {"source": "Doe", "test_accuracy": 0.7}
    add(store, Made(name="unsaid", tags={"nlt.published": json.dumps(published)}))
    add(store, Made(name="many", tags={"nlt.published": json.dumps(published | {"n": "many"})}))
    text = markdown(compare(store))
    assert "[unsaid] | 50.0 (1) [70.0] |" in text
    assert "[many] | 50.0 (1) |" in text


def test_a_bar_in_a_name_does_not_end_its_column(store):
    add(store, Made(name="a|b"), Made(name="c"))
    assert "| Standard, CE [a\\|b] | 50.0 (1) |" in markdown(compare(store))


def test_noises_as_people_read_them():
    assert noise_title("pair_flip 0.45") == "pair flip noise, 45 %"
    assert noise_title("matrix") == "matrix noise"
    assert noise_title("matrix 2024") == "matrix noise (2024)"
    assert noise_title("human worse_label") == "human noise (worse_label)"
    assert noise_title("instance_dependent 0.4, imbalance 10") == "instance dependent noise, 40 %, imbalance 10"
    assert noise_title("none, imbalance 2.5") == "no noise added, imbalance 2.5"
    assert noise_title("none") == "no noise added"


# ---- what figures draw ----


def test_curve_by_hand():
    """Step 2 is missing in one seed; an empty history is of a run that did not measure it."""
    found = curve([{1: 0.2, 2: 0.5, 3: 0.4}, {3: 0.8, 1: 0.4}, {}])
    assert found.steps_E.tolist() == [1, 3]
    assert found.mean_E == pytest.approx([0.3, 0.6])
    assert found.sd_E == pytest.approx([0.141421, 0.282843], abs=1e-6)
    assert found.n == 2
    assert curve([{1: 0.2}]).sd_E is None
    assert curve([{}]) is None
    assert curve([]) is None


def test_where_stages_begin():
    assert stage_starts("15+20+25") == [1, 16, 36]
    assert stage_starts("60") == [1]


def test_losses_of_kept_and_removed_by_hand():
    losses = np.array([[9.0, 9, 9, 9], [1, 2, 3, NAN], [5, NAN, 7, NAN]])
    kept, removed = mean_losses(losses, np.array([True, False, True, False]), np.array([2, 3]))
    assert kept.tolist() == [2, 6]
    assert removed[0] == 2
    assert np.isnan(removed[1])  # none of the removed was seen


def test_losses_by_truth_leave_out_what_was_not_seen():
    losses = np.array([[1.0, 2, 3], [4, NAN, 6]])
    clean, wrong = by_truth(losses, np.array([0, 1, 1]), np.array([0, 1, 0]), [2, 1])
    assert [c.tolist() for c in clean] == [[4], [1, 2]]
    assert [w.tolist() for w in wrong] == [[6], [3]]


def test_epochs_of_the_histograms():
    assert histogram_steps(60) == [1, 16, 30, 45, 60]
    assert histogram_steps(3) == [1, 2, 3]
    assert histogram_steps(1) == [1]


def test_panels_by_hand(filled):
    [comparison] = compare(filled)
    low, high = panels(filled, comparison.cells)
    assert [a.label for a in low.accuracies] == comparison.methods
    assert low.accuracies[0].curve.mean_E == pytest.approx([0.1625, 0.325, 0.4875, 0.65])
    assert [a.last_stage for a in low.accuracies] == [1, 4, 4]
    # CE has two seeds and NCE+RCE three: not the same masks
    assert [d.labels for d in low.detections] == [["O2U, CE"], ["O2U, NCE+RCE"]]
    found = high.detections[0]
    assert found.kept.steps_E.tolist() == [2, 3]
    assert found.kept.mean_E == pytest.approx([5 / 3, 5.5 / 3])  # by the last mask: samples 0, 2, 3
    assert found.removed.mean_E.tolist() == [4, 6]
    assert found.lr.mean_E == pytest.approx([0.005, 0.01 / 3])
    assert found.remaining.mean_E == pytest.approx([0.25, 0.15])
    assert found.drawn_rate == 0.25
    row = low.losses[1]
    assert (row.label, row.seed, row.steps, row.stages) == ("O2U, CE", 0, [1, 2, 3, 4], [0, 1, 1, 2])
    assert [w.tolist() for w in row.wrong] == [[2], [4], [6], []]


def test_equal_masks_are_drawn_once(store):
    for loss in ("CE", "NCE+RCE"):
        for seed in (0, 1):
            add(store, Made("o2u", loss, seed=seed, arrays=True))
    [comparison] = compare(store)
    [panel] = panels(store, comparison.cells)
    assert [d.labels for d in panel.detections] == [["O2U, CE", "O2U, NCE+RCE"]]


def test_the_loss_axis_is_one_for_a_stage(filled):
    [comparison] = compare(filled)
    row = panels(filled, comparison.cells)[0].losses[1]
    # epochs 2 and 3 share one: 99.5 % between 4 and 6, the largest two of eight losses: 6 - 0.035 * 2
    assert axis_tops(row) == pytest.approx([2, 5.93, 5.93, 1], abs=0.01)


def test_the_loss_axis_is_named_where_the_last_method_has_fewer_epochs():
    once = np.array([0.5, 1.0])
    rows = [Losses(f"{n} epochs", 0, list(range(n)), [0] * n, [once] * n, [once] * n) for n in (3, 1)]
    [drawing] = drawings(Comparison("x", "1", [], {}), [Panel("none", [], [], rows)])
    assert "per-sample loss" in [ax.get_xlabel() for ax in drawing.figure.axes if ax.axison]


# ---- figures ----


def names_of(store: Store) -> list[str]:
    [comparison] = compare(store)
    return [drawing.name for drawing in drawings(comparison, panels(store, comparison.cells))]


def test_lines_differ_in_colour_dashes_or_marker():
    style = lines([str(i) for i in range(100)])
    assert len(set(style.values())) == 100


@pytest.fixture(scope="module")
def written(filled, tmp_path_factory) -> Path:
    """A folder with report.html and figures/."""
    folder = tmp_path_factory.mktemp("written") / "new"
    args = ("--format", "html", "--output", folder / "report.html", "--figures", folder / "figures")
    done = nlt("compare", *args, "--tracking-uri", filled.uri)
    assert (done.exit_code, done.output) == (0, "")
    return folder


def test_figures_of_two_noises(written):
    names = ["accuracy", "detection", "losses_symmetric_0.2", "losses_symmetric_0.6", "remaining"]
    files = sorted((written / "figures").iterdir())
    assert [f.name for f in files] == [f"{name}.{kind}" for name in names for kind in ("pdf", "png")]
    assert all(f.read_bytes().startswith(b"%PDF" if f.suffix == ".pdf" else b"\x89PNG") for f in files)


def test_figures_of_one_run_and_of_less(store):
    add(store, Made())
    assert names_of(store) == ["accuracy"]
    add(store, Made(arrays=True))
    assert names_of(store) == ["accuracy", "losses_symmetric_0.2"]
    [comparison] = compare(store)
    for drawing in drawings(comparison, panels(store, comparison.cells)):
        assert png(drawing) and pdf(drawing)
        assert "seed" in drawing.caption
    add(store, Made("o2u", arrays=True))
    assert names_of(store) == ["accuracy", "remaining", "detection", "losses_symmetric_0.2"]


def test_captions_say_how_many_seeds(filled):
    [comparison] = compare(filled)
    accuracy, *_, losses = drawings(comparison, panels(filled, comparison.cells))
    assert "mean over 1 to 3 seeds; the band is ± one sample standard deviation" in accuracy.caption
    assert "seed 0" in losses.caption


@pytest.mark.parametrize(("width", "columns"), [(3.5, 2), (7, 4), (1, 1)])
def test_a_legend_is_no_wider_than_its_figure(width, columns):
    with rc_context(STYLE):
        figure = Figure((width, 2.7))
        axes = figure.subplots()
        for method in ("Standard, CE", "Standard, 5*NCE+RCE", "O2U, CE", "O2U, 5*NCE+RCE"):
            axes.plot([0, 1], label=method)
        _legend(figure, [axes])
        FigureCanvasAgg(figure).draw()
    [legend] = figure.legends
    assert legend._ncols == columns
    assert width == 1 or 0 <= legend.get_window_extent().x0 <= legend.get_window_extent().x1 <= figure.bbox.width


# ---- the page ----


class References(HTMLParser):
    """Collects whatever a browser would fetch, and the texts."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            local = (value or "").startswith("#")
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster") and not local:
                self.outside.append(value)
            if "//" in (value or "") or ("url(" in (value or "") and "url(#" not in value):
                self.outside.append(value)

    def handle_data(self, data):
        self.text += data
        if "@import" in data or "url(" in data:
            self.outside.append(data)


@pytest.fixture(scope="module")
def read_page(written) -> References:
    parser = References()
    parser.feed((written / "report.html").read_text())
    return parser


def test_the_page_fetches_nothing(read_page):
    assert read_page.outside == []
    assert not {"link", "iframe", "img", "object", "base"} & set(read_page.tags)
    assert read_page.tags.count("script") == 1  # sorts the tables


def test_ids_of_figures_do_not_meet(read_page):
    """Two figures with one id for two clip paths would cut each other's lines off."""
    assert len(read_page.ids) == len(set(read_page.ids))
    assert read_page.tags.count("svg") == 5


def test_the_page_says_where_its_numbers_come_from(read_page, filled):
    text = read_page.text
    for run in filled.client.search_runs(["1"]):
        assert run.info.run_id in text
    for words in ("3 methods, 2 noise settings, 10 runs; seeds 0, 1, 2", "Doe <b>2023</b>, Table 1", "Figure 5.", "first",
                  "80.0 ± 14.1", "79.6 (1)", "baseline", "Student's t", "\N{MINUS SIGN}5.0 (1)"):  # fmt: skip
        assert words in text, words


def test_names_are_text_on_the_page(store):
    add(store, Made(name="<script>alert(1)</script>"), Made(name="b"))
    [comparison] = compare(store)
    parser = References()
    parser.feed(page([(comparison, [])]))
    assert parser.tags.count("script") == 1
    assert "<script>alert(1)</script>" in parser.text


def test_dollars_in_a_name_are_no_mathematics(store):
    names = ("trial $\\lr$ 5", "of $5 and $6", "b")
    add(store, *(Made(loss=f"L{i}", name=name, arrays=True) for i, name in enumerate(names)))
    log(store.client, store.client.get_experiment_by_name("made-up").experiment_id, Made(name="c", sha="other"))
    [comparison] = compare(store)
    for drawing in drawings(comparison, panels(store, comparison.cells)):
        assert png(drawing)


def test_names_of_files_are_all_different_and_lead_nowhere_else():
    names = ["human a-b", "human a/b", "human a_b", "../up", "..", "", "käse 1.5"]
    found = file_names(names)
    assert found == ["human_a-b", "human_a_b", "human_a_b_2", "_up", "_", "__2", "käse_1.5"]


def test_figures_of_an_experiment_stay_in_their_folder(store, tmp_path):
    for name in ("made-up", "../../up"):
        experiment = store.client.create_experiment(name, str(store.artifacts))
        log(store.client, experiment, Made())
    folder = tmp_path / "a" / "b" / "figures"
    done = nlt("compare", "--figures", folder, "--tracking-uri", store.uri)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in folder.iterdir()) == ["_.._up", "made-up"]
    assert not (tmp_path / "a" / "up").exists() and not (tmp_path / "up").exists()


def test_what_is_no_file_is_written_to_and_not_replaced(filled, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        done = nlt("compare", "made-up", "--format", "csv", "--output", tmp_path / "pipe", "--tracking-uri", filled.uri)
        read = reader.communicate(timeout=30)[0]
    assert done.exit_code == 0, done.output
    assert read.startswith(b"experiment,label")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "file")  # as /dev/stdout is one
    assert nlt("compare", "--format", "csv", "--output", tmp_path / "link", "--tracking-uri", filled.uri).exit_code == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text().startswith("experiment,label")


# ---- the summary run ----


def test_the_summary_run_is_made_once_and_brought_up_to_date(store):
    add(store, Made(seed=0, accuracy=0.6, tags={"nlt.sweep": "s,other"}, arrays=True))
    first = log_summary(store, "s")
    add(store, Made(seed=1, accuracy=0.7, tags={"nlt.sweep": "s"}, arrays=True))
    assert log_summary(store, "s") == first
    assert log_summary(store, "other") != first
    run = store.client.get_run(first)
    tags = run.data.tags
    assert (run.info.status, tags["nlt.kind"], tags["nlt.sweep"]) == ("FINISHED", "summary", "s")
    assert "| Standard, CE | 65.0 ± 7.1 (2) |" in tags["mlflow.note.content"]
    names = {file.path for file in store.client.list_artifacts(first)}
    assert names == {"report.html", "results.csv", "results.json", "figures", "images"}
    images = [file.path for file in store.client.list_artifacts(first, "images")]
    assert len(images) == 4  # two figures, each with its thumbnail: what was written twice is there once
    assert any(name.startswith("images/summary~accuracy+step+1+") for name in images)
    assert len(compare(store)[0].cells) == 1
    with pytest.raises(BadInput, match="no finished run"):
        log_summary(store, "none such")


def test_a_description_is_the_users_to_edit(store):
    key = "mlflow.note.content"
    made = experiment_id(store, "photos")
    assert 'nlt compare "photos"' in store.client.get_experiment(made).tags[key]
    store.client.set_experiment_tag(made, key, "mine")
    assert experiment_id(store, "photos") == made
    assert store.client.get_experiment(made).tags[key] == "mine"


# ---- the command ----


@pytest.mark.parametrize(
    ("kind", "begins"),
    [("md", "### made-up"), ("csv", "experiment,label"), ("json", "{\n"), ("table", "made-up")],
)
def test_output_is_what_would_be_printed(filled, tmp_path, kind, begins):
    args = ("compare", "made-up", "--format", kind, "--tracking-uri", filled.uri)
    printed = nlt(*args)
    assert printed.exit_code == 0, printed.output
    assert printed.stdout.startswith(begins)
    assert nlt(*args, "--output", tmp_path / "new" / "file").stdout == ""
    assert (tmp_path / "new" / "file").read_text() == printed.stdout


def test_what_is_wrong_is_one_sentence_and_nothing_is_written(filled, tmp_path):
    old = tmp_path / "old.html"
    old.write_text("as it was")
    (tmp_path / "folder").mkdir()
    bad = [
        (("--sweep", "frist"), "--sweep 'frist': no finished run in the experiment 'made-up' is of it"),
        (("--tag", "nlt.device=tpu"), "--tag 'nlt.device': no finished run in the experiment 'made-up' has it as 'tpu'; its values are 'cpu'."),
        (("--tag", "nlt.devise=cpu"), "none has such a tag"),
        (("--tag", "nlt.device"), "--tag nlt.device: write it as KEY=VALUE"),
        (("--baseline", "base"), "--baseline 'base': there is no such run or method; use one of ['Standard, CE', "),
        (("--format", "xml"), "--format"),
        (("--output", tmp_path / "folder"), "folder cannot be written"),
        (("--output", old / "x"), "x cannot be written"),
        (("--figures", old), "cannot be written"),
    ]  # fmt: skip
    for args, message in bad:
        done = nlt("compare", "made-up", "--output", old, *args, "--tracking-uri", filled.uri)
        assert done.exit_code == 2, (args, done.output)
        assert message in done.output, (args, done.output)
        assert "Traceback" not in done.output
        if "--figures" not in args:
            assert old.read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "old.html"]


def test_an_experiment_without_launched_runs_is_named_beside_those_that_have_some(store):
    write_detection(store, "pets", "", {}, {}, ("pets", "0"), [], None)
    empty = r"no finished run of nlt launch in the experiment 'detect': launch one, e.g. nlt launch .*json\.$"
    with pytest.raises(BadInput, match=empty):
        compare(store, "detect")
    add(store, Made())
    store.client.create_experiment("empty")
    done = nlt("compare", "detect", "--tracking-uri", store.uri)
    assert done.exit_code == 2
    assert "no finished run of nlt launch in the experiment 'detect': compare another, e.g. 'made-up'." in done.output


# ---- many methods and noises ----

NOISES = ("none", "pair_flip 0.4", "symmetric 0.2", "symmetric 0.6")
# A row per method: its accuracy at each of the noises; None where it was not run. GCE rests on outside weights.
MANY = {
    ("standard", "CE"): (0.9, 0.5, 0.7, 0.4),
    ("standard", "GCE"): (0.95, 0.6, 0.7, 0.5),
    ("elr", "CE"): (0.8, 0.7, 0.8, None),
}


@pytest.fixture
def many(store):
    for (method, loss), accuracies in MANY.items():
        tags = {"nlt.outside_weights": "ImageNet"} if loss == "GCE" else {}
        for noise, accuracy in zip(NOISES, accuracies, strict=True):
            if accuracy is not None:
                add(store, Made(method, loss, noise, accuracy=accuracy, sha=f"{method} {loss} {noise}", tags=tags))
    [comparison] = compare(store)
    return comparison


def test_of_many_noises_the_first_table_has_accuracy_and_mean_rank_by_hand(many):
    table = results(many)
    assert [column.name for column in table.columns] == [
        "method", "no noise added", "pair flip, 40 %", "symmetric, 20 %", "symmetric, 60 %", "mean rank"
    ]  # fmt: skip
    texts = [[entry.text for entry in row] for row in table.rows]
    # Places of CE 1, 2, 2 and of ELR 2, 1, 1, where both were run; GCE has no rival on outside weights.
    assert texts == [
        ["Standard, CE", "90.0", "50.0", "70.0", "40.0", "1.7 (3)"],
        ["ELR", "80.0", "70.0", "80.0", "", "1.3 (3)"],
        ["Standard, GCE", "95.0", "60.0", "70.0", "50.0", ""],
    ]
    assert table.groups == (("from these data alone", 2), ("on outside weights", 1))
    assert "1 of each" in table.caption and "Mean rank" in table.caption
    assert [entry.best for entry in table.rows[1]] == [False, False, True, True, False, False]


def test_places_are_told_from_three_methods_and_noises_on(filled):
    [comparison] = compare(filled)
    assert comparison.ranks() == {}
    assert "rank" not in results(comparison).caption


def test_a_date_is_sorted_as_a_text(filled):
    [comparison] = compare(filled)
    table = run_list(comparison)
    at = [column.name for column in table.columns].index("begun (UTC)")
    assert table.columns[at].text and not any(column.text for column in table.columns[3:at])
    assert [row[at].text[4] for row in table.rows] == ["-"] * len(table.rows)
    assert "begun and ended (UTC)" in page([(comparison, [])])


def test_the_page_of_many_groups_rows_and_draws_the_ranks(many):
    drawn = drawings(many, [])
    assert [drawing.name for drawing in drawn] == ["ranks"]
    parser = References()
    parser.feed(page([(many, drawn)]))
    text = parser.text
    assert text.index("from these data alone") < text.index("ELR") < text.index("on outside weights")
    assert parser.tags.count("tbody") == 2 + 4 + 1 + 1  # groups of methods, noises, provenance, runs
    assert parser.outside == []


def test_the_page_of_many_folds_the_figures_of_one_noise(store):
    for noise in NOISES:
        add(store, Made("o2u", noise=noise, sha=noise, arrays=True))
    [comparison] = compare(store)
    drawn = drawings(comparison, panels(store, comparison.cells))
    each = ["none", "pair_flip_0.4", "symmetric_0.2", "symmetric_0.6"]
    names = [f"{kind}_{noise}" for kind in ("detection", "losses") for noise in each]
    assert [drawing.name for drawing in drawn] == ["accuracy", "remaining", *names]
    text = page([(comparison, drawn)])
    assert text.count("<details>") == text.count("</details>") == 8
    before, folded = text.split("<details>", 1)
    assert "Test accuracy by epoch" in before and "Remaining noise" in before and "Training samples" not in before
    assert "</b> Training samples by loss, pair flip noise, 40 %</summary>" in folded
