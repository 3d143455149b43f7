"""A sweep on a Ray cluster of two nodes on this machine, one of which dies on the way."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, tiny
from crashing import APL, O2U, STAGE
from servers import free_port

from nlt.tracking import open_store

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")

METHODS = {
    "base": {"name": "standard", "training": {"epochs": 30, **STAGE}},
    "apl": {"name": "standard", "training": {"epochs": 30, **STAGE, "loss": APL}},
    "o2u": O2U | {"training": {"epochs": 20, **STAGE}},
    "o2u_apl": O2U | {"training": {"epochs": 20, **STAGE, "loss": APL}},
}
SWEEP = ["--seed", "0", "--seed", "1", "--seed", "2", "--set", "noise.rate=0.2,0.6", "--device", "cpu"]


CLIENT_PORT = free_port()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> "Iterator[ray.cluster_utils.Cluster]":
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(REPO))  # the nodes' workers inherit it
    monkeypatch.setenv("RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S", "60")  # s; by itself 30
    head = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": CLIENT_PORT}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


def specs(place: Path, methods: dict[str, object]) -> list[str]:
    files = []
    for name, method in methods.items():
        path = place / f"{name}.json"
        path.write_text(json.dumps(tiny(name=name, method=method)))
        files.append(str(path))
    return files


def nlt(place: Path, *args: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "nlt.cli", *args],
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def numbers(place: Path) -> dict[tuple[str, str, str], list[float]]:
    """Method, noise and seed -> all test accuracies and losses of its finished run, by epoch."""
    client = open_store(f"sqlite:///{place / 'mlruns' / 'mlflow.db'}").client
    found = {}
    for run in client.search_runs(
        [client.get_experiment_by_name("digits").experiment_id], "attributes.status = 'FINISHED'"
    ):
        tags = run.data.tags
        if "nlt.seed" not in tags:
            continue
        key = (tags["nlt.method"] + " " + run.data.params["loss"], tags["nlt.noise"], tags["nlt.seed"])
        assert key not in found, "a run was made twice"
        histories = [client.get_metric_history(run.info.run_id, name) for name in ("test/accuracy", "train/loss")]
        points = [sorted((m.step, m.value) for m in history) for history in histories]
        assert all(len(history) == len({step for step, _ in history}) for history in points), (
            "an epoch was logged twice"
        )
        found[key] = [value for history in points for _, value in history]
    return found


def folders(place: Path) -> list[Path]:
    return list((place / "mlruns" / "runs").glob("*/journal.jsonl"))


def test_a_sweep_gives_the_same_numbers_in_processes_and_on_a_cluster_of_which_a_node_dies(tmp_path, cluster):
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    on_ray, here = tmp_path / "ray", tmp_path / "here"
    for place in (on_ray, here):
        place.mkdir()
    process = nlt(on_ray, "launch", *specs(on_ray, METHODS), *SWEEP, "--ray", cluster.address)
    deadline = time.monotonic() + 300
    # Both nodes train a run that has some epochs behind it.
    while sum(len(path.read_bytes().splitlines()) > 4 for path in folders(on_ray)) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    cluster.remove_node(node, allow_graceful=False)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, out + err
    assert "goes on after" in out, "the run of the node that died began from nothing"
    assert "24/24 runs over" in out

    process = nlt(here, "launch", *specs(here, METHODS), *SWEEP, "--jobs", "2")
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, out + err
    a, b = numbers(on_ray), numbers(here)
    assert len(a) == len(b) == 24
    assert a == b
    # Seeds and noise rates do make a difference, so that equal is not trivially so.
    assert all(a[x] != a[y] for x, y in itertools.combinations(a, 2))


def test_a_cluster_elsewhere_trains_on_data_that_it_does_not_have(tmp_path, cluster):
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_{what}": rng.integers(0, top, shape, dtype=kind)
        for split, N in (("train", 64), ("test", 32))
        for what, top, shape, kind in (("images", 256, (N, 8, 8, 1), np.uint8), ("labels", 2, (N,), np.int64))
    }
    np.savez(tmp_path / "mine.npz", class_names=np.array(["a", "b"]), **arrays)
    mine = {"name": "npz", "path": str(tmp_path / "mine.npz")}
    spec = tmp_path / "mine.json"
    spec.write_text(json.dumps(tiny(name="mine", data=mine, method=METHODS["base"])))
    process = nlt(tmp_path, "launch", str(spec), "--device", "cpu", "--ray", f"ray://127.0.0.1:{CLIENT_PORT}")
    out, err = process.communicate(timeout=300)
    logs = [path.read_text() for path in Path(cluster.head_node.get_logs_dir_path()).glob("ray_client_server*.err")]
    assert process.returncode == 0, "\n".join([out + err, *logs])
    assert "finished mine · seed 0" in out


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_one_sentence(tmp_path, address):
    process = nlt(tmp_path, "launch", *specs(tmp_path, {"base": METHODS["base"]}), "--ray", address)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2, out + err
    assert err.count("Error: ") == 1
    assert f"--ray '{address}': no Ray cluster can be reached there" in err
    assert "Traceback" not in err
    assert folders(tmp_path) == []


def test_a_gpu_that_the_machine_does_not_have_is_one_sentence(tmp_path):
    process = nlt(
        tmp_path, "launch", *specs(tmp_path, {"base": METHODS["base"]}), "--ray", "local", "--gpus-per-run", "64"
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2, out + err
    assert "--gpus-per-run 64: this machine has " in err


def test_ctrl_c_stops_the_runs_on_the_cluster_and_a_repeated_launch_goes_on(tmp_path):
    long = {"base": {"name": "standard", "training": {"epochs": 300, **STAGE}}}
    command = ("launch", *specs(tmp_path, long), "--device", "cpu", "--seed", "0", "--ray", "local")
    process = nlt(tmp_path, *command)
    deadline = time.monotonic() + 200
    while not any(len(path.read_bytes().splitlines()) > 3 for path in folders(tmp_path)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(2)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130, out + err
    client = open_store(f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}").client
    ids = [client.get_experiment_by_name("digits").experiment_id]
    (run,) = client.search_runs(ids)
    assert run.info.status == "KILLED"
    process = nlt(tmp_path, *command)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    assert "goes on after" in out
    (again,) = client.search_runs(ids, "attributes.status = 'FINISHED'")
    assert again.info.run_id == run.info.run_id
