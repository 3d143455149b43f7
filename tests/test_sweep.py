"""Many runs: what a launch has to do, runs side by side in processes, and what is shown of them."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import REPO, tiny
from PIL import Image
from safetensors.torch import save_file
from test_pretrained import TINY, weights_of

from nlt.cli import main
from nlt.data import Cifar4, Cifar10, Cifar100, Data, Digits, Npz
from nlt.events import Event, Failed, Finished, Incomplete, Noted, Progressed, Started
from nlt.launcher import Interrupted, Listener, Options, Unfinished, launch, resume, unfinished_runs
from nlt.reading import check, load_all
from nlt.report import compare
from nlt.run import EpochRecord, Run
from nlt.settings import BadInput
from nlt.spec import Experiment
from nlt.sweep import Job, plan, run_job, side_by_side
from nlt.sweep.plan import finished_before
from nlt.sweep.processes import device_of, threads_each
from nlt.terminal import Board, Ledger, Lines
from nlt.tracking import RunFolder, Store, Tracker, data_digest, finished_runs, open_store

STAGE = {"batch_size": 32, "schedule": {"name": "constant", "lr": 0.01}}
QUICK = {"name": "standard", "training": {"epochs": 2, **STAGE}}
LONG = {"name": "standard", "training": {"epochs": 400, **STAGE}}
DIVERGES = {"name": "standard", "training": {"epochs": 2, **STAGE, "schedule": {"name": "constant", "lr": 1e30}}}
WHERE = Options(device="cpu")


def spec(**changes: object):
    return check(tiny(**({"method": QUICK} | changes)), "test")


def write(folder: Path, **changes: object) -> str:
    path = folder / f"{changes['name']}.json"
    path.write_text(json.dumps(tiny(**({"method": QUICK} | changes))))
    return str(path)


def nlt(*args: str, cwd: Path, **more: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "nlt.cli", *args],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def runs(place: Path, summary: bool = False):
    store = open_store(f"sqlite:///{place / 'mlruns' / 'mlflow.db'}")
    found = store.client.search_runs([store.client.get_experiment_by_name("digits").experiment_id])
    return [run for run in found if ("nlt.kind" in run.data.tags) == summary]


# ---- several values of a key ----


def test_values_in_a_list_make_an_experiment_each_and_keys_their_product(tmp_path):
    file = write(tmp_path, name="a")
    found = load_all(file, ("noise.rate=0.1,0.3", "model.width=0.05,0.06", "about=one, two"))
    assert [(s.noise.rate, s.model.width) for s in found[::2]] == [
        (0.1, 0.05), (0.1, 0.06), (0.3, 0.05), (0.3, 0.06)
    ]  # fmt: skip
    assert [s.about for s in found[:2]] == ["one", "two"]
    assert found[0].name == "a rate 0.1 width 0.05 about one"


def test_values_that_would_be_called_alike_have_their_number(tmp_path):
    long = [f"/mnt/datasets/photographs/of/2026/{name}.npz" for name in ("one", "two")]
    data = ",".join(json.dumps({"name": "npz", "path": path}) for path in long)
    names = [found.name for found in load_all(write(tmp_path, name="a"), (f"data={data}",))]
    assert names == ["a data name-npz-path-mnt-datasets-pho 1", "a data name-npz-path-mnt-datasets-pho 2"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ('noise={"name":"none"},{"name":"symmetric","rate":0.2}', ["none", "symmetric"]),
        ("noise={\"name\":\"pair_flip\",\"rate\":0.1}", ["pair_flip"]),
    ],
)  # fmt: skip
def test_a_comma_inside_json_parts_nothing(tmp_path, override, expected):
    assert [s.noise.name for s in load_all(write(tmp_path, name="a"), (override,))] == expected


def test_a_json_string_and_a_json_list_are_one_value(tmp_path):
    step = ('method.training.schedule={"name":"step"}', "method.training.schedule.lrs=[0.1,0.01,0.001]")
    (found,) = load_all(write(tmp_path, name="a"), (*step, 'about="one, two"'))
    assert found.about == "one, two"
    assert found.name == "a"
    assert found.method.training.schedule.lrs == (0.1, 0.01, 0.001)


# ---- what there is to do ----


@pytest.fixture
def notes() -> list[str]:
    return []


def test_a_plan_runs_what_is_not_finished_and_adopts_what_is(store: Store, notes):
    a, b = spec(name="a"), spec(name="b", noise={"name": "symmetric", "rate": 0.2})
    first = plan(store, [a, b], (0, 1), None, False, notes.append)
    assert [(job.spec.name, job.seed, job.unfinished) for job in first.jobs] == [
        ("a", 0, None), ("a", 1, None), ("b", 0, None), ("b", 1, None)
    ]  # fmt: skip
    assert first.finished == []
    done = launch(a, seed=1, store=store, options=replace(WHERE, sweep="earlier"))
    then = plan(store, [a, b], (0, 1), None, False, notes.append)
    assert [(job.spec.name, job.seed) for job in then.jobs] == [("a", 0), ("b", 0), ("b", 1)]
    assert [(run.name, run.seed, run.run_id) for run in then.finished] == [("a", 1, done.run_id)]
    assert then.finished[0].metrics["final/test_accuracy_last"] == done.metrics["final/test_accuracy_last"]
    assert then.sweep == first.sweep != plan(store, [a], (0,), None, False, notes.append).sweep
    # It belongs to both sweeps now, and is adopted once only.
    plan(store, [a, b], (0, 1), None, False, notes.append)
    assert store.client.get_run(done.run_id).data.tags["nlt.sweep"] == f"earlier,{then.sweep}"
    again = plan(store, [a, b], (0, 1), "mine", True, notes.append)
    assert (len(again.jobs), again.finished, again.sweep) == (4, [], "mine")
    assert notes == []


def interrupt(a: Experiment, store: Store, seed: int = 0) -> Unfinished:
    """A run that was interrupted after its first epoch."""

    def stop(epoch: EpochRecord) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        launch(a, seed=seed, store=store, options=WHERE, listener=Listener(on_epoch=stop))
    return next(run for run in unfinished_runs(store) if run.seed == seed)


def test_an_interrupted_run_that_was_deleted_in_mlflow_is_left_alone(store: Store, notes, monkeypatch):
    a = spec(name="a")
    unfinished = interrupt(a, store)
    store.client.delete_run(unfinished.run_id)
    (job,) = plan(store, [a], (0,), "another sweep", False, notes.append).jobs
    assert job.unfinished is None
    assert notes == [
        f"run {unfinished.run_id} (a, seed 0) was interrupted, and then deleted in MLflow: it is left alone; delete "
        f"{unfinished.path}, too, or restore it there and it can go on."
    ]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    done = CliRunner().invoke(main, ["resume"])
    assert (done.exit_code, done.stdout) == (0, "nothing to resume\n")
    assert f"run {unfinished.run_id} was deleted in MLflow" in done.stderr
    store.client.restore_run(unfinished.run_id)
    (job,) = plan(store, [a], (0,), None, False, notes.append).jobs
    assert job.unfinished == unfinished


def test_a_run_that_is_stopped_once_more_while_its_end_is_delivered_has_begun(store: Store, monkeypatch):
    def emit(event: Event) -> None:
        if isinstance(event, Progressed):
            raise KeyboardInterrupt

    def close(tracker: Tracker, patience_s: float) -> str:
        tracker_close(tracker, patience_s)
        raise KeyboardInterrupt  # the second Ctrl-C

    tracker_close = Tracker.close
    monkeypatch.setattr(Tracker, "close", close)
    end = run_job(Job(spec(name="a"), 0), WHERE, emit, store=store)
    (run,) = unfinished_runs(store)
    assert end == Failed("interrupted", f"interrupted in run {run.run_id}", run.run_id)
    assert store.client.get_run(run.run_id).info.status == "KILLED"


def test_what_another_process_trains_is_told(store: Store, notes):
    a = spec(name="a")
    unfinished = interrupt(a, store)
    folder = RunFolder(unfinished.path)  # as a process has it that trains the run
    try:
        todo = plan(store, [a], (0, 1), None, False, notes.append)
    finally:
        folder.close()
    assert [(job.seed, job.unfinished) for job in todo.jobs] == [(0, None), (1, None)]
    assert notes == ["a, seed 0, is being trained by another process, and here once more."]


def test_a_run_that_goes_on_beside_others_has_no_more_threads_than_its_share(store: Store):
    told = []
    a = spec(name="a")
    torch.set_num_threads(2)
    try:
        unfinished = interrupt(a, store)
    finally:
        torch.set_num_threads(1)
    seen = []
    listener = Listener(told.append, on_epoch=lambda epoch: seen.append(torch.get_num_threads()))
    resume(unfinished, store=store, options=replace(WHERE, threads=1), listener=listener)
    assert set(seen) == {1}
    assert told == ["number of threads was 2 and is 1 now, which may change numbers."]


def test_a_run_on_a_cluster_goes_on_though_its_file_tells_another_text(store: Store):
    cluster = pytest.importorskip("nlt.sweep.cluster")
    unfinished = interrupt(spec(name="a"), store)
    for other, found in (
        (spec(name="b", about="Another text."), True),
        (spec(name="a", experiment="elsewhere"), False),
        (spec(name="a", noise={"name": "none"}), False),
    ):
        left = cluster._left_behind(Job(other, 0), store, frozenset())
        assert (None if left is None else left.run_id) == (unfinished.run_id if found else None)


def test_an_experiment_is_finished_in_its_own_mlflow_experiment_only(store: Store, notes):
    launch(spec(name="a"), store=store, options=WHERE)
    elsewhere = spec(name="a", experiment="elsewhere")
    assert len(plan(store, [elsewhere], (0,), None, False, notes.append).jobs) == 1


def test_what_is_the_same_but_for_its_name_runs_once_and_is_said(store: Store, notes):
    todo = plan(store, [spec(name="a"), spec(name="b", about="else")], (0, 0), None, False, notes.append)
    assert [job.spec.name for job in todo.jobs] == ["a"]
    assert notes == ["b, seed 0, is the same as a: it runs once."] * 2


# ---- the user's own data, changed under the same name ----


def write_data(folder: Path, kind: str, seed: int) -> dict[str, object]:
    """Random images of two classes, always of the same size and time; return the data settings."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    if kind == "npz":
        file = folder / "mine.npz"
        halves = {"train_images": images[:32], "train_labels": np.arange(32) % 2}
        np.savez(file, **halves, test_images=images[32:], test_labels=np.arange(8) % 2)
        os.utime(file, (1e9, 1e9))
        return {"name": "npz", "path": str(file)}
    for row, image in enumerate(images):
        file = folder / "mine" / ("train" if row < 32 else "test") / "ab"[row % 2] / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return {"name": "image_folder", "path": str(folder / "mine")}


@pytest.mark.parametrize("kind", ["npz", "image_folder"])
def test_a_finished_run_is_no_longer_finished_when_its_data_are_others(store: Store, tmp_path, notes, kind):
    a = spec(name="a", data=write_data(tmp_path, kind, 0), noise={"name": "none"})
    b = a.model_copy(update={"evaluate": "before", "name": "b"})
    where = {"options": replace(WHERE, data_root=tmp_path / "root"), "store": store}

    def planned():
        todo = plan(store, [a, b], (0, 1), None, False, notes.append, tmp_path / "root")
        return {(run.name, run.seed): run.run_id for run in todo.finished}

    first = {("a", seed): launch(a, seed=seed, **where).run_id for seed in (0, 1)}
    assert planned() == first
    write_data(tmp_path, kind, 1)
    assert planned() == {}
    assert len(notes) == 1  # one line for both seeds
    assert (
        f"'{a.data.path}' is no longer what the finished run {first['a', 0]} (a, seed 0) and 1 more trained on"
        in notes[0]
    )
    assert notes[0].endswith("): they run anew.")
    tags = store.client.get_run(first["a", 0]).data.tags
    second = {("a", 0): launch(a, seed=0, **where).run_id}
    assert planned() == second
    assert "(a, seed 1) trained on" in notes[1] and notes[1].endswith("): it runs anew.")
    assert store.client.get_run(first["a", 0]).data.tags == tags  # not adopted
    assert store.client.get_run(second["a", 0]).data.tags["nlt.sweep"].count(",") == 1
    # Of the spec's runs those on the data of the latest one are compared: seed 1 was trained on others.
    ((cell,),) = [comparison.cells for comparison in compare(store)]
    assert {seed: run.info.run_id for seed, run in cell.runs.items()} == {0: second["a", 0]}


def test_a_finished_run_is_no_longer_finished_when_its_noise_is_read_from_another_file(store: Store, tmp_path, notes):
    file = tmp_path / "T.csv"
    a = spec(name="a", data={"name": "digits", "limit": 20, "classes": ["0", "1"]},
             noise={"name": "matrix", "path": str(file)})  # fmt: skip
    file.write_text("0.9,0.1\n0.1,0.9\n")
    done = launch(a, store=store, options=WHERE)
    assert [run.run_id for run in plan(store, [a], (0,), None, False, notes.append).finished] == [done.run_id]
    file.write_text("0.8,0.2\n0.1,0.9\n")
    assert plan(store, [a], (0,), None, False, notes.append).finished == []
    assert notes[0].startswith(f"noise.path '{file}' is no longer what the finished run {done.run_id}")


def test_data_that_are_gone_leave_a_finished_run_finished(store: Store, tmp_path, notes):
    a = spec(name="a", data=write_data(tmp_path, "npz", 0), noise={"name": "none"})
    done = launch(a, store=store, options=WHERE)
    os.remove(a.data.path)
    todo = plan(store, [a], (0,), None, False, notes.append)
    assert [run.run_id for run in todo.finished] == [done.run_id]
    (note,) = notes
    assert note.startswith("1 finished runs stay so, though their data cannot be compared") and "is not there" in note


def test_data_are_loaded_once_and_only_where_a_finished_run_is_found(store: Store, tmp_path, notes, monkeypatch):
    mine = spec(name="a", data=write_data(tmp_path, "npz", 0), noise={"name": "none"})
    plain = spec(name="digits")
    loaded = []
    load = Npz.load
    monkeypatch.setattr(Npz, "load", lambda self, root: loaded.append(self.path) or load(self, root))
    monkeypatch.setattr(Digits, "load", lambda self, root: pytest.fail("digits cannot change"))
    plan(store, [mine, plain], (0, 1), None, False, notes.append)
    assert loaded == []
    for seed in (0, 1):
        launch(mine, seed=seed, dataset=load(mine.data, tmp_path), store=store, options=WHERE)
    monkeypatch.undo()
    launch(plain, store=store, options=WHERE)
    monkeypatch.setattr(Npz, "load", lambda self, root: loaded.append(self.path) or load(self, root))
    monkeypatch.setattr(Digits, "load", lambda self, root: pytest.fail("digits cannot change"))
    todo = plan(store, [mine, plain], (0, 1), None, False, notes.append)
    assert (len(todo.finished), loaded, notes) == (3, [mine.data.path], [])


@pytest.mark.parametrize("kind", get_args(get_args(Data)[0]))
def test_every_data_set_is_compared_or_cannot_change_under_its_name(kind):
    """What has a `path` is compared; digits are scikit-learn's; of CIFAR's files `test_data.py` tests the MD5 sums."""
    assert ("path" in kind.model_fields) == (kind not in (Digits, Cifar10, Cifar100, Cifar4))


def test_a_run_on_another_file_of_weights_is_neither_finished_nor_gone_on_with(store: Store, tmp_path, notes):
    def put(seed):
        state = weights_of()
        next(iter(state.values())).mul_(1 + 0.1 * seed)
        save_file(state, file)

    file = str(tmp_path / "w.safetensors")
    put(0)
    model = {"name": "timm", "architecture": TINY, "weights": file, "image_size": 16}
    a = spec(name="a", model=model)
    done = launch(a, store=store, options=WHERE)

    def planned():
        todo = plan(store, [a], (0,), None, False, notes.append)
        return [run.run_id for run in todo.finished]

    assert (planned(), notes) == ([done.run_id], [])
    put(1)
    assert planned() == []
    assert notes[0].startswith(f"the finished run {done.run_id} (a, seed 0) used other weights ('w.safetensors, SHA")
    assert notes[0].endswith("): it runs anew.")

    class Stopped(Exception):
        pass

    def stop(epoch):
        raise Stopped

    with pytest.raises(Stopped):
        launch(a, store=store, options=WHERE, listener=Listener(on_epoch=stop))
    put(2)
    (unfinished,) = unfinished_runs(store)
    with pytest.raises(BadInput, match="its file of outside weights is no longer the one it was launched with"):
        resume(unfinished, store=store, options=WHERE)
    Path(file).unlink()
    with pytest.raises(BadInput, match=r"w\.safetensors' cannot be read"):
        resume(unfinished, store=store, options=WHERE)
    notes.clear()
    assert planned() == [done.run_id]
    assert notes[0].startswith("1 finished runs stay so, though their weights cannot be compared")


def test_a_finished_run_of_a_job_on_other_data_is_not_it(store: Store):
    a = spec(name="a")
    done = launch(a, store=store, options=WHERE)
    digest = data_digest(store.client.get_run(done.run_id))
    found = [finished_before(store, Job(a, 0), wanted) for wanted in (None, digest, "0" * 16)]
    assert [run and run.run_id for run in found] == [done.run_id, done.run_id, None]


def test_a_run_of_a_version_that_logged_no_digest_stays_finished(store: Store, tmp_path, notes, monkeypatch):
    a = spec(name="a", data=write_data(tmp_path, "npz", 0), noise={"name": "none"})
    monkeypatch.setattr("nlt.tracking.delivery._dataset_input", lambda record: None)
    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", lambda self, run_id, datasets: None)
    launch(a, store=store, options=WHERE)
    write_data(tmp_path, "npz", 1)
    assert (len(plan(store, [a], (0,), None, False, notes.append).finished), notes) == (1, [])


def test_a_repeated_launch_says_that_the_data_have_changed_and_runs_anew(killer, place):
    file = write(place, name="a", data=write_data(place, "npz", 0), noise={"name": "none"})
    command = ("launch", file, "--device", "cpu")
    assert killer(*command, cwd=place)[0] == 0
    size = (place / "mine.npz").stat().st_size
    write_data(place, "npz", 1)
    assert (place / "mine.npz").stat().st_size == size
    code, text = killer(*command, cwd=place)
    assert code == 0, text
    assert "is no longer what the finished run" in text and "finished already" not in text
    assert text.count("a · seed 0 · run ") == 1
    store = open_store(f"sqlite:///{place / 'mlruns' / 'mlflow.db'}")
    (experiment,) = [e for e in store.client.search_experiments() if e.name == "npz"]
    assert len(finished_runs(store, experiment.experiment_id)) == 2


def test_a_mistake_in_a_method_stops_no_other_run(place, monkeypatch):
    real, calls = Run.epochs, []

    def broken(run, *given, **more):
        calls.append(run)
        if len(calls) == 1:
            raise ZeroDivisionError("a mistake")
        return real(run, *given, **more)

    monkeypatch.setattr(Run, "epochs", broken)
    monkeypatch.chdir(place)
    command = ["launch", write(place, name="a"), "--seed", "3", "--seed", "4", "--device", "cpu"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "ZeroDivisionError: a mistake" in result.output and "in broken" in result.output
    assert result.output.rstrip().endswith("1 of 2 runs failed: a, seed 3")
    assert {run.data.tags["nlt.seed"]: run.info.status for run in runs(place)} == {"3": "FAILED", "4": "FINISHED"}


def test_gpus_are_taken_in_turn_unless_one_is_named():
    assert [device_of("auto", slot, 2) for slot in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [device_of("cuda", 1, 4), device_of("cuda:3", 1, 4), device_of("cpu", 1, 4)] == ["cuda:1", "cuda:3", "cpu"]
    assert [device_of("auto", 1, 1), device_of("auto", 1, 0), device_of(None, 1, 2)] == ["auto", "auto", None]


def test_threads_of_runs_side_by_side_never_outnumber_the_cores():
    assert [threads_each(at_once, 8, 8) for at_once in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    assert threads_each(2, 2, 2) == 1  # also when OMP_NUM_THREADS asks for two each
    assert threads_each(2, 8, 1) == 1  # fewer are the user's choice


# ---- side by side ----


def test_runs_side_by_side_give_the_numbers_of_runs_alone_and_one_that_fails_stops_none(place):
    files = [write(place, name="bad", method=DIVERGES), write(place, name="a")]
    process = nlt("launch", *files, "--seed", "1", "--jobs", "2", "--device", "cpu", cwd=place)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert err.endswith("1 of 2 runs failed: bad, seed 1\n")
    assert "(bad, seed 1) failed: in epoch 1 the loss of " in err
    assert "finished a · seed 1" in out
    assert "2/2 runs over · 1 failed" in out
    found = {run.info.run_name: run for run in runs(place)}
    assert {name: run.info.status for name, run in found.items()} == {"a": "FINISHED", "bad": "FAILED"}
    assert len({run.data.tags["nlt.sweep"] for run in found.values()}) == 1
    alone = launch(
        spec(name="a"), seed=1, options=replace(WHERE, tracking_uri=f"sqlite:///{place / 'alone' / 'mlflow.db'}")
    )
    for key in ("final/test_accuracy_last", "train/loss"):
        assert found["a"].data.metrics[key] == (alone.metrics | alone.epochs[-1].metrics)[key]


@pytest.mark.slow
def test_what_was_taken_for_what_in_the_data_is_said_once(store: Store, tmp_path):
    data = write_data(tmp_path, "npz", 0)
    with np.load(data["path"]) as archive:
        arrays = dict(archive)
    np.savez(data["path"], **arrays | {"train_labels": arrays["train_labels"][:, None]})
    once = {"name": "standard", "training": {"epochs": 1, **STAGE}}
    jobs = [Job(spec(name="a", data=data, noise={"name": "none"}, method=once), seed) for seed in (0, 1)]
    told: list[object] = []
    side_by_side(jobs, Options("cpu", tmp_path, store.uri, store.runs), lambda index, event: told.append(event), 1)
    assert [event.name for event in told if isinstance(event, Finished)] == ["a", "a"]
    (note,) = [event.sentence for event in told if isinstance(event, Noted)]
    assert note.startswith(f"{data['path']}: train_labels (32, 1) taken for (32,); ")


def journaled(place: Path) -> dict[Path, int]:
    return {p.parent: len(p.read_bytes().splitlines()) for p in (place / "mlruns" / "runs").glob("*/journal.jsonl")}


def wait_for_epochs(place: Path, more: int, runs: int, before: dict[Path, int] | None = None) -> None:
    """Wait until so many runs have more than so many lines in their journals than before."""
    deadline = time.monotonic() + 300
    while sum(lines - (before or {}).get(path, 0) > more for path, lines in journaled(place).items()) < runs:
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(p) for p in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()]


def workers_of(process: subprocess.Popen) -> list[int]:
    """They are children of the process that has done the imports."""
    return [pid for child in children(process.pid) for pid in children(child)]


@pytest.mark.slow
def test_a_process_that_is_killed_is_reported_and_its_run_goes_on_when_the_launch_is_repeated(place):
    long = write(place, name="long", method={"name": "standard", "training": {"epochs": 40, **STAGE}})
    command = ("launch", long, "--seed", "0", "--seed", "1", "--jobs", "2", "--device", "cpu")
    process = nlt(*command, cwd=place)
    wait_for_epochs(place, 3, 2)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert "its process was killed by SIGKILL: out of memory, perhaps (lower --jobs)." in err
    assert out.count("finished long") == 1
    process = nlt(*command, cwd=place)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "goes on after" in out
    found = runs(place)
    assert [run.info.status for run in found] == ["FINISHED"] * 2
    for run in found:
        alone = launch(
            load_all(long)[0],
            seed=int(run.data.tags["nlt.seed"]),
            options=replace(WHERE, tracking_uri=f"sqlite:///{place / 'alone' / 'm.db'}"),
        )
        assert run.data.metrics["final/test_accuracy_last"] == alone.metrics["final/test_accuracy_last"]


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_all_runs_and_each_can_go_on(place, times):
    command = ("launch", write(place, name="long", method=LONG), "--jobs", "2", "--device", "cpu", "--seed", "0", "--seed", "1", "--seed", "2")  # fmt: skip
    process = nlt(*command, cwd=place)
    wait_for_epochs(place, 2, 2)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "interrupted; 2 runs were stopped, 1 not begun: the same command goes on." in err
    assert "Traceback" not in err
    assert workers_of(process) == []
    nlt("sync", cwd=place).communicate(timeout=300)  # the second Ctrl-C does not wait for MLflow
    assert [run.info.status for run in runs(place)] == ["KILLED"] * 2
    before = journaled(place)
    process = nlt("resume", "--jobs", "2", cwd=place)
    wait_for_epochs(place, 2, 2, before)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert out.count("goes on after") == 2


@pytest.mark.slow
def test_runs_end_after_their_epoch_when_the_launching_process_is_killed(place):
    process = nlt("launch", write(place, name="long", method=LONG), "--jobs", "1", "--device", "cpu", cwd=place)
    wait_for_epochs(place, 2, 1)
    (worker,) = workers_of(process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()
    assert [run.info.status for run in runs(place)] == ["KILLED"]


class Bomb(Options):
    """Ends the process that it arrives in, as a GPU driver that aborts does."""

    def __reduce__(self):
        return os._exit, (7,)


def test_a_process_that_ends_by_itself_or_has_a_bug_is_reported_with_its_last_words(tmp_path):
    told: list[tuple[int, Failed]] = []
    bug = Options("cpu", tmp_path, tracking_uri=5)  # type: ignore[arg-type]
    for how in (Bomb("cpu", tmp_path, "", tmp_path), bug):
        side_by_side([Job(spec(), 0)], how, lambda *event: told.append(event), 1)
    assert told[0] == (0, Failed("died", "its process ended with exit code 7."))
    index, failed = told[1]
    assert (index, failed.kind) == (0, "died")
    assert failed.sentence.startswith("it ended with an error.\nTraceback ")
    assert failed.sentence.endswith("AttributeError: 'int' object has no attribute 'decode'")


# ---- what is shown ----


def epoch(step: int, accuracy: float = 0.5) -> Progressed:
    metrics = {"test/accuracy": accuracy, "train/loss": 1.0, "train/accuracy": 0.4, "time/images_per_second": 1234.0}
    return Progressed(step, 4, "training", step, metrics)


FINAL = {"final/test_accuracy_last": 0.625, "final/test_accuracy_mean10": 0.61}


def test_events_survive_the_way_between_processes():
    for event in (
        Started("id", "data", 0, 4),
        epoch(1),
        Noted("n"),
        Finished("a", 0, "id", FINAL),
        Failed("died", "x"),
    ):
        assert pickle.loads(pickle.dumps(event)) == event


@pytest.fixture
def ledger() -> Ledger:
    return Ledger([Job(spec(name="a"), 0), Job(spec(name="b"), 7)], [Finished("c", 1, "c" * 32, FINAL)])


def test_off_a_terminal_the_board_prints_what_ends(ledger, capsys):
    with Board(ledger) as show:
        for index, event in [
            (0, Started("a" * 32, "digits", 1, 4)), (1, Started("b" * 32, "digits", 0, 4)), (0, epoch(2)),
            (0, Finished("a", 0, "a" * 32, FINAL)), (1, epoch(1, 0.25)), (1, Failed("died", "its process was killed.")),
        ]:  # fmt: skip
            ledger.take(index, event)
            show(index, event)
    out, err = capsys.readouterr()
    assert out.splitlines()[:2] == [
        "a · seed 0 goes on after 1 of 4 epochs", f"finished a · seed 0 · run {'a' * 32} · test 62.5%",
    ]  # fmt: skip
    assert "  1/2 runs over · " in out
    assert err == "Error: b, seed 7: its process was killed.\n"
    with pytest.raises(Incomplete, match=r"^$"):  # said already
        ledger.conclude()
    out, err = capsys.readouterr()
    assert out.count("62.5%") == 2  # the earlier one stands in the table too
    assert err == "1 of 2 runs failed: b, seed 7\n"


def test_on_a_terminal_the_board_is_a_table_that_is_redrawn(ledger, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    board = Board(ledger)
    with board as show:
        show(0, Started("a" * 32, "digits", 0, 4))
        show(0, epoch(2))
    out = capsys.readouterr().out
    for text in ("test accuracy", "2/4", "training", "50.0%", "1,234", "0/2 runs over"):
        assert text in out


def test_a_job_that_goes_on_has_less_left(store):
    unfinished = Unfinished(Path("x"), "x", spec(), 0, 1, 2)
    assert Board(Ledger([Job(spec(), 0, unfinished), Job(spec(), 1)], []))._steps == 3


def test_a_job_whose_first_stages_another_has_trained_has_less_left(capsys):
    board = Board(Ledger([Job(spec(name="a"), 0), Job(spec(name="b"), 1)], []))
    with board as show:
        show(1, Started("b" * 32, "digits", 1, 2, shared=True))
    assert board._steps == 3
    assert capsys.readouterr().out == "b · seed 1 begins after 1 of 2 epochs, which another run has trained\n"


def test_lines_count_what_is_left_from_where_a_run_goes_on(ledger, capsys):
    with Lines(ledger.jobs) as show:
        show(1, Started("b" * 32, "digits: 100 images", 2, 4))
        show(1, epoch(3))
    first, second, third, line = capsys.readouterr().out.splitlines()
    assert (first, second, third) == (f"b · seed 7 · run {'b' * 32}", "  digits: 100 images", "  goes on after 2 of 4 epochs")  # fmt: skip
    assert line.startswith("  3/4 training")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--gpus-per-run", "0.5"), "--gpus-per-run goes with --ray"),
        (("--ray", "local", "--gpus-per-run", "1.5"), "--gpus-per-run 1.5: Ray deals out whole GPUs"),
        (("--ray", "local", "--gpus-per-run", "0.00001"), "--gpus-per-run 1e-05: Ray"),
        (("--set", "noise.rate=0.1", "--set", "noise.rate=0.2"), "--set noise.rate=...: it undoes --set noise.rate"),
        (("--set", "model.width=1", "--set", 'model={"name": "cnn9"}'), "--set model=...: it undoes --set model.width"),
        (("--ray", "local", "--jobs", "2"), "--jobs and --ray"),
        (("--sweep", "a,b"), "--sweep 'a,b': use up to 100 letters"),
        (("--jobs", "0"), "0 is not in the range"),
    ],
)
def test_options_that_do_not_go_together(place, args, sentence, monkeypatch):
    from click.testing import CliRunner

    from nlt.cli import main

    monkeypatch.chdir(place)
    done = CliRunner().invoke(main, ["launch", write(place, name="a"), *args])
    assert done.exit_code == 2
    assert sentence in done.output
    assert "Traceback" not in done.output


def test_a_launch_of_several_runs_ends_with_their_summary_and_one_of_a_single_run_does_not(place, monkeypatch):
    from click.testing import CliRunner

    from nlt.cli import main

    monkeypatch.chdir(place)
    command = ["launch", write(place, name="a"), "--device", "cpu", "--sweep", "mine"]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert (len(runs(place)), runs(place, summary=True)) == (1, [])
    done = CliRunner().invoke(main, [*command, "--seed", "0", "--seed", "1"])
    assert done.exit_code == 0, done.output
    (summary,) = runs(place, summary=True)
    assert f"sweep mine: tables and figures in run {summary.info.run_id}" in done.output
    assert summary.data.tags["nlt.sweep"] == "mine"
