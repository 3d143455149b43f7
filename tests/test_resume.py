"""Stopping, going on, and what is said when that cannot be done. `test_crash.py` compares the numbers."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, tiny
from crashing import DATA, METHODS, contents, spec_file
from recorded import differences, recorded

import nlt
from nlt.launcher import Listener, Options, _hint, resume, unfinished_runs
from nlt.reading import check
from nlt.settings import BadInput
from nlt.tracking import open_store


def uri_of(place: Path) -> str:
    return f"sqlite:///{place / 'mlruns' / 'mlflow.db'}"


@pytest.fixture
def killed(killer, place):
    """A place with one O2U run that was killed after its fourth epoch."""
    code, text = killer("launch", spec_file(place, "o2u"), "--device", "cpu", cwd=place, die={"at": "after-checkpoint", "n": 4})  # fmt: skip
    assert code == -9, text
    return place


def run_json(place: Path) -> Path:
    (path,) = (place / "mlruns" / "runs").glob("*/run.json")
    return path


def test_resume_without_ids_says_what_it_goes_on_with(killer, killed, peaceful):
    run_id = run_json(killed).parent.name
    code, text = killer("resume", cwd=killed)
    assert code == 0
    assert f"tiny · seed 0 · run {run_id}" in text
    assert "goes on after 4 of 10 epochs" in text
    assert " 5/10 cyclical      2 " in text
    assert differences(peaceful("o2u"), contents(killed)) == []
    assert killer("resume", cwd=killed) == (0, "nothing to resume\n")


def test_resume_by_id(killer, killed):
    run_id = run_json(killed).parent.name
    code, text = killer("resume", run_id, run_id, cwd=killed)  # named twice it goes on once
    assert (code, text.count(run_id)) == (0, 2)
    code, text = killer("resume", run_id, cwd=killed)
    assert code == 2
    assert "it is over and delivered, or it was launched from another folder" in text


def test_a_repeated_launch_goes_on_with_the_unfinished_run_of_the_same_spec_and_seed(killer, killed, peaceful):
    run_id = run_json(killed).parent.name
    code, text = killer("launch", spec_file(killed, "o2u"), "--device", "cpu", cwd=killed)
    assert code == 0
    assert f"tiny · seed 0 · run {run_id}" in text
    assert "goes on after 4 of 10 epochs" in text
    assert differences(peaceful("o2u"), contents(killed)) == []


@pytest.mark.slow
def test_rerun_begins_another_run_and_so_does_another_seed(killer, killed):
    run_id = run_json(killed).parent.name
    for more in (("--rerun",), ("--seed", "1")):
        code, text = killer("launch", spec_file(killed, "o2u"), "--device", "cpu", *more, cwd=killed)
        assert code == 0
        assert "goes on" not in text
        assert run_id not in text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda facts: facts["spec"]["noise"].update(rate=0.3), "spec"),
        (lambda facts: facts["spec"].update(methd=1), "methd"),
        pytest.param(lambda facts: facts["same"].update({"data set": "0" * 16}), "data set", marks=pytest.mark.slow),
        (lambda facts: facts["same"].update({"set of training labels": "0" * 64}), "set of training labels"),
    ],
)
def test_what_no_longer_fits_is_refused_by_name_and_nothing_is_touched(killer, killed, change, named):
    path = run_json(killed)
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    before = sorted((p.name, p.stat().st_size) for p in path.parent.iterdir())
    code, text = killer("resume", path.parent.name, cwd=killed)
    assert code == 2, text
    assert named in text
    assert "Traceback" not in text
    assert sorted((p.name, p.stat().st_size) for p in path.parent.iterdir()) == before


def test_changed_data_are_refused(killer, place):
    rng = np.random.default_rng(0)
    arrays = dict(
        train_images=rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8), train_labels=rng.integers(0, 3, 60),
        test_images=rng.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8), test_labels=rng.integers(0, 3, 20),
        class_names=np.array(["a", "b", "c"]),
    )  # fmt: skip
    np.savez(place / "mine.npz", **arrays)
    spec = place / "spec.json"
    data = {"name": "npz", "path": str(place / "mine.npz")}
    spec.write_text(json.dumps(tiny(method=METHODS["standard"], data=data, noise={"name": "none"})))
    code, text = killer("launch", str(spec), "--device", "cpu", cwd=place, die={"at": "after-checkpoint", "n": 2})
    assert code == -9, text
    arrays["train_images"][0, 0, 0, 0] ^= 1
    before = (place / "mine.npz").stat()
    np.savez(place / "mine.npz", **arrays)
    os.utime(place / "mine.npz", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (place / "mine.npz").stat().st_size == before.st_size
    code, text = killer("resume", cwd=place)
    assert code == 2
    assert "its data set is no longer the one it was launched with" in text
    arrays["train_images"][0, 0, 0, 0] ^= 1
    np.savez(place / "mine.npz", **arrays)
    code, text = killer("resume", cwd=place)
    assert code == 0, text


def test_what_may_change_numbers_is_said(killer, killed):
    path = run_json(killed)
    facts = json.loads(path.read_text())
    facts["alike"] |= {"torch": "1.0", "git commit": "abc"}
    path.write_text(json.dumps(facts))
    code, text = killer("resume", cwd=killed)
    assert code == 0
    assert f"torch was 1.0 and is {torch.__version__} now" in text
    assert "git commit was abc" in text


def test_a_run_in_progress_is_left_alone(killed):
    store = open_store(uri_of(killed))
    (unfinished,) = unfinished_runs(store)
    from nlt.tracking import RunFolder

    folder = RunFolder(unfinished.path)  # as the process that trains it does
    assert unfinished_runs(store) == []
    with pytest.raises(BadInput, match="in progress in another process"):
        resume(unfinished, options=Options(tracking_uri=uri_of(killed)))
    folder.close()


def test_a_damaged_newest_checkpoint_costs_one_epoch_and_is_told(killer, killed, peaceful):
    newest = sorted(run_json(killed).parent.glob("checkpoint-*.pt"))[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    code, text = killer("resume", cwd=killed)
    assert code == 0
    assert "is damaged and passed over" in text
    assert "goes on after 3 of 10 epochs" in text
    assert differences(peaceful("o2u"), contents(killed)) == []


def test_a_launch_that_dies_before_anything_is_computed_is_marked_killed_by_resume(killer, place):
    code, _ = killer("launch", spec_file(place, "o2u"), "--device", "cpu", cwd=place, die={"at": "after-creation", "n": 1})  # fmt: skip
    assert code == -9
    code, text = killer("resume", cwd=place)
    assert code == 0
    assert "was killed before anything was computed and is marked KILLED" in text
    client = open_store(uri_of(place)).client
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"]


# ---- Ctrl-C and SIGTERM ----


def launch_in_background(place: Path, **changes: object) -> subprocess.Popen:
    (place / "long.json").write_text(json.dumps(tiny(data=DATA) | changes))
    command = [sys.executable, "-c", "from nlt.cli import main; main()", "launch", "long.json", "--device", "cpu"]
    command.append("--rerun")  # whatever a process beside it has finished
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_stopped_once_the_epoch_is_finished_and_the_line_to_go_on_is_printed(place):
    long = {"name": "standard", "training": {"epochs": 30, "batch_size": 8}}
    process = launch_in_background(place, method=long)
    for line in process.stdout:
        if "3/30" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    run_id = run_json(place).parent.name
    done = int(err.split("interrupted after ")[1].split()[0])
    assert f"run {run_id} is marked KILLED; nlt resume {run_id} goes on with it." in err
    assert "stopping after this epoch; Ctrl-C again stops at once" in err
    assert "Traceback" not in err
    store = open_store(uri_of(place))
    assert store.client.get_run(run_id).info.status == "KILLED"
    assert len(store.client.get_metric_history(run_id, "test/accuracy")) == done
    assert (run_json(place).parent / f"checkpoint-{done:06}.pt").exists()


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_after_the_epoch_and_resume_ends_as_if_nothing_had_happened(killer, place, peaceful, times):
    """In the fourth epoch, whose steps are the first of the cyclical stage."""
    # 80 images in batches of 32 are 3 steps in each of the first three.
    stop = {"interrupted_in_step": 3 * 3 + 2, "times": times}
    code, text = killer("launch", spec_file(place, "o2u"), "--device", "cpu", cwd=place, die=stop)
    run_id = run_json(place).parent.name
    assert code == 130, text
    assert "stopping after this epoch; Ctrl-C again stops at once" in text
    assert "interrupted after 4 of 10 epochs" in " ".join(text.split())
    assert f"run {run_id} is marked KILLED; nlt resume {run_id} goes on with it." in " ".join(text.split())
    run = open_store(uri_of(place)).client.get_run(run_id)
    assert (run.info.status, "nlt.stopped" in run.data.tags) == ("KILLED", True)
    code, text = killer("resume", run_id, cwd=place)
    assert code == 0, text
    assert differences(peaceful("o2u"), contents(place)) == []  # status and tags too: nothing says that it was stopped


@pytest.mark.slow
def test_stopped_twice_it_stops_at_once(place):
    slow = {"name": "standard", "training": {"epochs": 2, "batch_size": 1}}  # minutes for an epoch
    process = launch_in_background(place, method=slow, data={"name": "digits"}, model={"name": "cnn9", "width": 1.0})
    for line in process.stdout:
        if "training images" in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert "stopping after this epoch" in process.stderr.readline() + process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted after 0 of 2 epochs" in err
    assert "Traceback" not in err


# ---- one store for many, and who may write ----


@pytest.mark.slow
def test_eight_processes_share_one_sqlite_store_and_nothing_is_lost(tmp_path):
    processes = []
    for _ in range(8):
        processes.append(launch_in_background(tmp_path, method=METHODS["standard"]))
    for process in processes:
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, err + out
        assert "locked" not in err
        assert "note:" not in err
    store = open_store(uri_of(tmp_path))
    runs = store.client.search_runs([store.client.get_experiment_by_name("digits").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 8
    one, *others = (recorded(store, run.info.run_id, tmp_path / run.info.run_id) for run in runs)
    for other in others:
        assert differences(one, other) == []


@pytest.mark.slow
def test_nothing_is_writable_by_the_group_or_the_world(place):
    before = os.umask(0)
    try:
        process = launch_in_background(place, method={"name": "standard", "training": {"epochs": 1}})
        process.communicate(timeout=300)
    finally:
        os.umask(before)
    made = [p for p in (place / "mlruns").rglob("*") if p.name not in ("mlflow.db", ".nlt.lock", "artifacts")]
    assert made
    assert [p for p in made if not p.is_symlink() and p.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)] == []


def test_out_of_memory_and_a_full_disk_name_the_mend():
    assert "lower batch_size or model.width" in _hint(torch.OutOfMemoryError("CUDA out of memory"), 3)
    assert "lower batch_size" in _hint(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), 3)
    assert _hint(RuntimeError("anything else"), 3) is None
    assert "is full (No space left on device): make room, then `nlt resume`" in _hint(
        OSError(28, "No space left on device"), 3
    )
    assert "fails (Input/output error): mend it, then `nlt resume`" in _hint(OSError(5, "Input/output error"), 3)
    assert "fails (cannot mmap): mend it" in _hint(OSError("cannot mmap"), 3)
    assert "lower batch_size" in _hint(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), 3)
    assert "lower batch_size" in _hint(RuntimeError("CUDA error: out of memory"), 3)


def test_best_validation_weights_are_those_of_that_epoch(place):
    """With a falling validation accuracy (lr far too high later) they are not the last ones."""
    from safetensors.torch import load_file

    schedule = {"name": "step", "lrs": [0.01, 3.0], "fractions": [0.5]}
    method = {"name": "standard", "training": {"epochs": 6, "batch_size": 16, "schedule": schedule}}
    spec = check(tiny(method=method, data={"name": "digits", "limit": 300, "val_fraction": 0.3}, noise={"name": "none"}), "x")  # fmt: skip
    result = nlt.launch(spec, options=Options(device="cpu", tracking_uri=uri_of(place)))
    client = open_store(uri_of(place)).client
    last, best = (
        load_file(client.download_artifacts(result.run_id, name, str(place)))
        for name in ("weights.safetensors", "weights_at_best_val.safetensors")
    )
    accuracies = [epoch.metrics["val/accuracy"] for epoch in result.epochs]
    assert accuracies.index(max(accuracies)) < 5
    assert not torch.equal(last["linear.weight"], best["linear.weight"])
    from nlt.data import hold_out
    from nlt.run import Split
    from nlt.train import Learner, evaluate

    data = spec.data.load(Path("data"))
    _, val = hold_out(data.train, 0.3, 0)
    network = spec.model.build(1, 8, 8, 10)
    network.load_state_dict(best)
    net = Learner(network, spec.optimizer, torch.device("cpu"), "fp32")
    split = Split(val, torch.device("cpu"))
    assert evaluate([net], split.images_NHWC, split.labels_N) == max(accuracies)


def test_deterministic_holds_during_the_run_and_no_longer(place):
    seen = []
    spec = check(tiny(method={"name": "standard", "training": {"epochs": 1}}, deterministic=True), "x")
    nlt.launch(
        spec,
        options=Options(device="cpu", tracking_uri=uri_of(place)),
        listener=Listener(on_epoch=lambda epoch: seen.append(torch.are_deterministic_algorithms_enabled())),
    )
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
def test_on_a_gpu_a_deterministic_run_resumes_to_equal_numbers(place):
    """Stopped after its fourth epoch by an error of the caller, then gone on with."""
    spec = check(tiny(method=METHODS["o2u"], data=DATA, deterministic=True, precision="bf16"), "x")
    whole = nlt.launch(spec, options=Options(device="cuda", tracking_uri=uri_of(place)))

    def stop(epoch):
        if epoch.step == 5:  # journaled, not yet in a checkpoint
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        nlt.launch(spec, options=Options(device="cuda", tracking_uri=uri_of(place)), listener=Listener(on_epoch=stop))
    (unfinished,) = unfinished_runs(open_store(uri_of(place)))
    again = resume(unfinished, options=Options(tracking_uri=uri_of(place)))
    for one, other in zip(whole.epochs, again.epochs, strict=True):
        assert str(one.losses_N.tolist()) == str(other.losses_N.tolist())
        assert one.metrics["test/accuracy"] == other.metrics["test/accuracy"]


# ---- several runs in one command ----


def test_stopped_in_the_last_epoch_of_a_run_the_next_one_is_not_begun(killer, place):
    """The run is finished, since all was done; the rest of the command is not."""
    spec = spec_file(place, "standard")
    last = {"interrupted_in_step": 7 * 3 + 1, "times": 1}  # of 8 epochs; 80 images in batches of 32 are 3 steps
    code, text = killer("launch", spec, "--device", "cpu", "--seed", "0", "--seed", "1", cwd=place, die=last)
    assert code == 130, text
    assert "interrupted; the run in progress was finished, 1 were not begun." in text
    client = open_store(uri_of(place)).client
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert [(run.info.status, run.data.params["seed"]) for run in runs] == [("FINISHED", "0")]


def test_a_run_that_cannot_go_on_does_not_keep_others_from_it(killer, killed):
    """Two interrupted runs; of the older one the spec was tampered with."""
    first = run_json(killed)
    code, text = killer(
        "launch", spec_file(killed, "standard"), "--device", "cpu", cwd=killed, die={"at": "after-checkpoint", "n": 2}
    )
    assert code == -9, text
    facts = json.loads(first.read_text())
    facts["spec"]["noise"]["rate"] = 0.3
    first.write_text(json.dumps(facts))
    os.utime(first, (0, 0))
    code, text = killer("resume", cwd=killed)
    assert code == 2
    said = " ".join(text.split())
    assert f"Error: run {first.parent.name}: its spec is no longer the one it was launched with" in said
    assert f"delete {first.parent} to give the run up" in said
    assert text.count("goes on after") == 1
    assert [path.name for path in (killed / "mlruns" / "runs").iterdir()] == [first.parent.name]


def test_a_failed_run_stops_no_other(place, killer):
    diverges = tiny(name="diverges", data=DATA, method={"name": "standard", "training": {"epochs": 1, "batch_size": 8, "schedule": {"name": "constant", "lr": 1e30}}})  # fmt: skip
    (place / "diverges.json").write_text(json.dumps(diverges))
    code, text = killer("launch", "diverges.json", spec_file(place, "standard"), "--device", "cpu", cwd=place)
    assert code == 1
    assert text.count("is not finite: lower the learning rate") == 1
    assert "│ tiny" in text


def test_the_number_of_threads_is_that_of_the_beginning(killer, killed):
    """On it depends in which order numbers are added up."""
    facts = json.loads(run_json(killed).read_text())
    assert facts["alike"]["number of threads"] == "1"
    seen = []
    (unfinished,) = unfinished_runs(open_store(uri_of(killed)))
    torch.set_num_threads(2)
    try:
        resume(
            unfinished,
            options=Options(tracking_uri=uri_of(killed)),
            listener=Listener(on_epoch=lambda epoch: seen.append(torch.get_num_threads())),
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert set(seen) == {1}
    assert not (killed / "mlruns" / "runs" / unfinished.run_id).exists()


@pytest.mark.slow
def test_a_listener_that_leaves_costs_the_run_nothing(place):
    (place / "long.json").write_text(json.dumps(tiny(data=DATA, method=METHODS["standard"])))
    command = f"{sys.executable} -c 'from nlt.cli import main; main()' launch long.json --device cpu | head -2"
    done = subprocess.run(command, shell=True, cwd=place, env=os.environ | {"PYTHONPATH": str(REPO)}, capture_output=True, text=True)  # fmt: skip
    assert "Error" not in done.stderr
    assert "Traceback" not in done.stderr
    client = open_store(uri_of(place)).client
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"]


def test_a_mask_that_leaves_one_image_is_refused_where_batch_norm_cannot_take_it():
    from nlt.prepare import prepare

    spec = check(tiny(data={"name": "digits", "limit": 10}, model={"name": "resnet18"}), "x")
    prepare(spec, 0, "cpu", "data")
    method = spec.resolved()["method"] | {"forget_rate": 0.9}
    spec = check(tiny(data={"name": "digits", "limit": 10}, model={"name": "resnet18"}, method=method), "x")
    with pytest.raises(BadInput, match="batch norm cannot take single images"):
        prepare(spec, 0, "cpu", "data")


def test_what_was_begun_after_a_twin_had_finished_goes_on(killer, place):
    """`--rerun` of a finished run, killed: what was asked for is not done."""
    spec = spec_file(place, "standard")
    assert killer("launch", spec, "--device", "cpu", cwd=place)[0] == 0
    code, _ = killer("launch", spec, "--device", "cpu", "--rerun", cwd=place, die={"at": "after-checkpoint", "n": 2})
    assert code == -9
    code, text = killer("resume", cwd=place)
    assert code == 0 and "goes on after 2 of" in text


def test_a_run_whose_twin_has_finished_is_left(killer, killed):
    """Two launches of the same at once: both begin, one is killed. The numbers are there; named, it goes on."""
    run_id = run_json(killed).parent.name
    code, text = killer("launch", spec_file(killed, "o2u"), "--device", "cpu", "--rerun", cwd=killed)
    assert code == 0, text
    code, text = killer("resume", cwd=killed)
    said = " ".join(text.split())
    assert code == 0 and "nothing to resume" in said
    assert f"run {run_id} (tiny, seed 0) is left, as run " in said and f"nlt resume {run_id} goes on." in said
    code, text = killer("resume", run_id, cwd=killed)
    assert code == 0 and "goes on after 4 of 10 epochs" in text
