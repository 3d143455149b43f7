"""Runs against real MLflow servers that fail: everything reaches MLflow, each thing once, and training goes on.

What MLflow holds is compared with what an undisturbed run of the same spec and seed left in the embedded store.
"""

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import tiny
from mlflow import MlflowClient
from reliability import tell
from servers import POSTGRES, MlflowServer, Postgres, Proxy, weather

import nlt
from nlt.cli import main
from nlt.launcher import Options
from nlt.reading import check
from nlt.tracking import Store, open_store

EPOCHS = {"pretraining": 10, "cyclical": 20, "training": 10}
SEED = 3
# What differs between any two runs: when and by which commit they were launched, and how long things took.
LAUNCH_TAGS = {"nlt.sweep", "nlt.git_commit", "nlt.launch_id", "nlt.folder"}
CLOCKS = re.compile("time/|final/train_seconds")

Held = Counter[tuple[str, ...]]
"""Every single thing that MLflow holds of a run, as often as it is there."""


def experiment(images: int = 100, times: int = 1, **changes: object) -> dict[str, object]:
    """Return an experiment of 40 * `times` epochs; with 100 images it takes 3 s, with 1000 10 s."""
    data = tiny(data={"name": "digits", "limit": images}, **changes)
    for stage, epochs in EPOCHS.items():
        data["method"][stage]["epochs"] = epochs * times  # type: ignore[index]
    return data


def held(client: MlflowClient, run_id: str) -> Held:
    run = client.get_run(run_id)
    things: list[tuple[str, ...]] = [("status", run.info.status)]
    things += [("param", key, value) for key, value in run.data.params.items()]
    things += [("tag", key, value) for key, value in run.data.tags.items() if key not in LAUNCH_TAGS]
    for key in run.data.metrics:
        for point in client.get_metric_history(run_id, key):
            things.append(("metric", key, str(point.step), "" if CLOCKS.match(key) else repr(point.value)))
    for made in run.inputs.dataset_inputs:
        tags = str([(tag.key, tag.value) for tag in made.tags])
        things.append(
            ("input", made.dataset.name, made.dataset.digest, made.dataset.source, made.dataset.profile, tags)
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(client.download_artifacts(run_id, "", name))
        for path in folder.rglob("*"):
            if path.is_file():
                # The name of a stepped image ends in an identifier that follows from the run's.
                shown = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", str(path.relative_to(folder)))
                things.append(("artifact", shown, digest(path)))
    return Counter(things)


def digest(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".npz":  # a zip archive holds the time it was written at
        with np.load(path) as arrays:
            content = repr([(k, a.dtype, a.shape, a.tobytes()) for k, a in sorted(arrays.items())]).encode()
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, template_store: Path) -> Callable[[dict], Held]:
    """What a run of a spec leaves in the embedded store."""
    known: dict[str, Held] = {}

    def launch(spec: dict) -> Held:
        key = json.dumps(spec)
        if key not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            shutil.copytree(template_store, folder / "store")
            uri = f"sqlite:///{folder / 'store' / 'mlflow.db'}"
            result = nlt.launch(check(spec, "undisturbed"), seed=SEED, options=Options(device="cpu", tracking_uri=uri))
            known[key] = held(open_store(uri).client, result.run_id)
        return known[key]

    return launch


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if not POSTGRES:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    cluster = Postgres()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def server_on(request, tmp_path_factory, template_store: Path) -> Iterator[Callable[[str], MlflowServer]]:
    """A running server per backend for all tests, since each start takes seconds."""
    servers: dict[str, MlflowServer] = {}

    def running(backend: str) -> MlflowServer:
        if backend not in servers:
            folder = tmp_path_factory.mktemp(backend)
            if backend == "postgresql":
                uri = request.getfixturevalue("postgres").uri
            else:
                shutil.copytree(template_store, folder / "database")
                uri = f"sqlite:///{folder / 'database' / 'mlflow.db'}"
            servers[backend] = MlflowServer(uri, folder / "server")
        if not servers[backend].is_running:
            servers[backend].start()
        return servers[backend]

    try:
        yield running
    finally:
        for server in servers.values():
            server.kill()


class Scene:
    """A server, the proxy before it, and `nlt` in a folder of its own that knows the proxy only."""

    def __init__(self, folder: Path, server: MlflowServer):
        self.folder, self.server, self.proxy = folder, server, Proxy(server.port)
        self.uri = self.proxy.uri.replace("://", "://somebody:secret@")  # which no output may show
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self, spec: dict, *options: str) -> str:
        """Start `nlt launch`, wait until its run has begun, and return the run's id."""
        (self.folder / "spec.json").write_text(json.dumps(spec))
        command = [
            sys.executable,
            "-c",
            "from nlt.cli import main; main(prog_name='nlt')",
            "launch",
            "spec.json",
            "--rerun",
        ]
        command += ["--seed", str(SEED), "--device", "cpu", "--tracking-uri", self.uri, *options]
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=out, stderr=err)
        return self.wait_for(r"run ([0-9a-f]{32})\n")

    def wait_for(self, pattern: str) -> str:
        """Wait until the run has printed it, and return what its group matched."""
        while not (found := re.search(pattern, (self.folder / "out").read_text())):
            assert self._process.poll() is None, (self.folder / "err").read_text()
            time.sleep(0.02)
        return found[1]

    def wait_for_epoch(self, epoch: int) -> None:
        self.wait_for(rf"\n +({epoch})/")

    def finish(self) -> str:
        """Wait for the end of a launch that must succeed, and return what it said on stderr."""
        code = self._process.wait(timeout=300)
        said = (self.folder / "err").read_text()
        assert code == 0, said
        assert "secret" not in said + (self.folder / "out").read_text()
        return said

    def sync(self) -> str:
        """Run `nlt sync`, which must succeed, in this process: a subprocess would take seconds to import torch."""
        with contextlib.chdir(self.folder):
            done = CliRunner().invoke(main, ["sync", "--tracking-uri", self.uri])
        assert done.exit_code == 0, done.output
        assert "secret" not in done.output
        return done.output

    def held(self, run_id: str) -> Held:
        return held(MlflowClient(tracking_uri=self.server.uri), run_id)

    def journals(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "mlruns" / "runs").iterdir())

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self.proxy.close()


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path, server_on: Callable[[str], MlflowServer]) -> Iterator[Scene]:
    """By default on SQLite; a test asks for PostgreSQL as an indirect parameter."""
    scene = Scene(tmp_path, server_on(getattr(request, "param", "sqlite")))
    try:
        yield scene
    finally:
        scene.close()


def assert_whole_and_once(expected: Held, got: Held, what: str, backend: str, kinds: Counter[str]) -> None:
    lost, doubled = expected - got, got - expected
    points = sum(count for thing, count in got.items() if thing[0] == "metric")
    files = sum(count for thing, count in got.items() if thing[0] == "artifact")
    tell(
        what=what, backend=backend, kinds=dict(kinds), runs=1, metric_points=points, artifacts=files,
        lost=lost.total(), duplicated=doubled.total(),
    )  # fmt: skip
    assert (sorted(lost.elements()), sorted(doubled.elements())) == ([], [])


slow = pytest.mark.slow


# ---- the comparison itself ----


def test_the_comparison_sees_a_point_logged_twice_and_a_file_that_is_missing_or_changed(store: Store):
    spec = tiny(method={"name": "standard", "training": {"epochs": 2, "batch_size": 32}})
    result = nlt.launch(check(spec, "x"), options=Options(device="cpu", tracking_uri=store.uri))
    whole = held(store.client, result.run_id)
    point = store.client.get_metric_history(result.run_id, "train/loss")[1]
    store.client.log_metric(result.run_id, point.key, point.value, timestamp=point.timestamp + 1, step=point.step)
    (losses,) = store.artifacts.rglob("losses.npz")
    losses.unlink()
    (text,) = store.artifacts.rglob("spec.json")
    text.write_text("{}")
    now = held(store.client, result.run_id)
    assert list((now - whole).elements()) == [
        ("metric", "train/loss", "2", repr(point.value)), ("artifact", "spec.json", digest(text)),
    ]  # fmt: skip
    assert sorted(thing[:2] for thing in (whole - now).elements()) == [
        ("artifact", "losses.npz"),
        ("artifact", "spec.json"),
    ]


# ---- servers that fail for moments ----


@pytest.mark.parametrize(
    ("scene", "schedule", "images", "rounds"),
    [
        ("sqlite", 0, 100, 2),
        pytest.param("sqlite", 1, 400, 1_000, marks=slow),
        pytest.param("postgresql", 0, 100, 1_000, marks=slow),
        pytest.param("postgresql", 1, 400, 1_000, marks=slow),
    ],
    indirect=["scene"],
)
def test_a_run_through_faults_of_every_kind_ends_well_and_is_in_mlflow_whole_and_once(scene, schedule, images, rounds, undisturbed, request):  # fmt: skip
    spec, backend = experiment(images), request.node.callspec.params["scene"]
    run_id = scene.launch(spec)
    with weather(scene.proxy, schedule, rounds=rounds):
        scene.finish()
    assert len(scene.proxy.counts) >= 5, f"too short to meet most faults: {scene.proxy.counts}"
    scene.sync()
    assert_whole_and_once(undisturbed(spec), scene.held(run_id), "faults", backend, scene.proxy.counts)
    assert scene.journals() == []


@slow
@pytest.mark.parametrize(("scene", "schedule"), [("sqlite", 3), ("postgresql", 3)], indirect=["scene"])
def test_a_run_during_which_server_and_database_restart_is_in_mlflow_whole_and_once(scene, schedule, undisturbed, request):  # fmt: skip
    spec, backend = experiment(1000, times=3), request.node.callspec.params["scene"]
    run_id = scene.launch(spec)
    blows = [(12.0, scene.server.restart)]
    if backend == "postgresql":
        database = request.getfixturevalue("postgres")
        blows += [(after, lambda: database.restart("immediate")) for after in (1.0, 4.0, 8.0)]
        blows += [(6.0, lambda: database.restart("fast"))]
    with weather(scene.proxy, schedule, ("lost_response", "cut_response"), tuple(blows)):
        scene.finish()
    scene.sync()
    kinds = scene.proxy.counts | Counter(server_restart=1, database_restart=len(blows) - 1)
    assert_whole_and_once(undisturbed(spec), scene.held(run_id), "restarts", backend, kinds)


@slow
@pytest.mark.parametrize("scene", ["postgresql"], indirect=True)
def test_a_run_straight_into_postgresql_that_restarts_is_there_whole_and_once(scene, postgres, undisturbed, monkeypatch):  # fmt: skip
    """Without a server between them, in an MLflow experiment of its own; its artifacts lie in the current folder."""
    spec = experiment(1000, experiment="direct")
    scene.uri = postgres.uri.replace("nlt@", "nlt:secret@")  # trusted without, but no output may show it
    run_id = scene.launch(spec)
    for epoch, mode in ((5, "immediate"), (15, "fast"), (25, "immediate")):
        scene.wait_for_epoch(epoch)
        postgres.restart(mode)
    said = scene.finish()
    assert "have not reached MLflow" not in said
    monkeypatch.chdir(scene.folder)
    got = held(MlflowClient(tracking_uri=postgres.uri), run_id)
    kinds = Counter(database_restart=3)
    assert_whole_and_once(undisturbed(spec), got, "restarts, no server", "postgresql", kinds)


@slow
def test_a_launch_whose_new_run_is_made_but_not_answered_for_leaves_one_run(scene, undisturbed):
    scene.proxy.only, scene.proxy.mode = b"/runs/create", "lost_response"
    spec = experiment(experiment="unanswered")
    run_id = scene.launch(spec)
    scene.finish()
    assert scene.proxy.counts["lost_response"] == 1
    client = MlflowClient(tracking_uri=scene.server.uri)
    experiment_id = client.get_experiment_by_name("unanswered").experiment_id
    assert [run.info.run_id for run in client.search_runs([experiment_id])] == [run_id]
    shown = CliRunner().invoke(main, ["ui", "--tracking-uri", scene.uri]).output
    assert f"unanswered: {scene.proxy.uri}/#/experiments/" in shown  # the password is left out here too
    assert_whole_and_once(undisturbed(spec), scene.held(run_id), "create_run", "sqlite", scene.proxy.counts)


# ---- outages ----


@slow
@pytest.mark.parametrize(("scene", "kind"), [("sqlite", "black_hole"), ("postgresql", "database")], indirect=["scene"])
def test_an_outage_of_60_seconds_in_the_middle_is_caught_up_with(scene, kind, undisturbed, request):  # fmt: skip
    spec, backend = experiment(1000, times=6), request.node.callspec.params["scene"]
    run_id = scene.launch(spec)
    scene.wait_for_epoch(5)
    if kind == "database":
        request.getfixturevalue("postgres").stop()
        time.sleep(60)
        request.getfixturevalue("postgres").start()
    else:
        scene.proxy.mode = "black_hole"
        time.sleep(60)
        scene.proxy.mode = "pass"
    if "have not reached MLflow" in scene.finish():  # where the outage outlasted the run, and its patience
        scene.sync()
    assert scene.journals() == []
    kinds = scene.proxy.counts or Counter(database_outage=1)
    assert_whole_and_once(undisturbed(spec), scene.held(run_id), "outage of 60 s", backend, kinds)


@slow
def test_a_server_that_goes_for_good_costs_nothing_that_nlt_sync_cannot_deliver_to_its_successor(scene, undisturbed):
    spec = experiment()
    run_id = scene.launch(spec)
    scene.wait_for_epoch(5)
    scene.server.kill()
    said = scene.finish()
    assert re.search(rf"\d+ records of run {run_id} have not reached MLflow .*`nlt sync` delivers them", said)
    assert scene.journals() == [run_id]
    with contextlib.chdir(scene.folder):
        down = CliRunner().invoke(main, ["sync", "--tracking-uri", scene.proxy.uri])
    assert down.exit_code == 2
    assert "does not answer" in down.output
    assert scene.journals() == [run_id]
    scene.server.start()
    assert scene.sync() == "delivered what 1 runs had left\n"
    got = scene.held(run_id)
    assert_whole_and_once(undisturbed(spec), got, "server gone", "sqlite", Counter(server_restart=1))
    assert scene.sync() == "nothing to deliver\n"
    assert scene.held(run_id) == got


@slow
def test_what_is_delivered_a_second_time_changes_nothing(scene, undisturbed, tmp_path):
    """The note of what was delivered is lost, as in a crash before it reached the disk."""
    spec = experiment()
    run_id = scene.launch(spec)
    scene.wait_for_epoch(5)
    scene.proxy.mode = "refuse"
    scene.finish()
    kept = tmp_path / "kept"
    shutil.copytree(scene.folder / "mlruns" / "runs" / run_id, kept)
    scene.proxy.mode = "pass"
    scene.sync()
    once = scene.held(run_id)
    (kept / "delivered").unlink(missing_ok=True)
    shutil.copytree(kept, scene.folder / "mlruns" / "runs" / run_id)
    assert scene.sync() == "delivered what 1 runs had left\n"
    assert scene.held(run_id) == once
    assert_whole_and_once(undisturbed(spec), once, "delivered twice", "sqlite", scene.proxy.counts)


@slow
def test_a_model_that_cannot_be_logged_fails_no_run(scene, undisturbed):
    spec = experiment()
    run_id = scene.launch(spec, "--log-model")
    scene.wait_for_epoch(5)
    scene.proxy.mode = "refuse"
    said = scene.finish()
    assert f"run {run_id} has no MLflow model, as the server was away" in said
    scene.proxy.mode = "pass"
    scene.sync()
    assert_whole_and_once(undisturbed(spec), scene.held(run_id), "no model", "sqlite", scene.proxy.counts)


@slow
@pytest.mark.parametrize("kind", ["black_hole", "delay"])
def test_a_server_that_does_not_answer_slows_no_epoch_and_the_end_waits_seconds(scene, kind):
    trained, ended = {}, {}
    for mode in ("pass", kind):
        scene.launch(experiment())
        scene.proxy.delay, scene.proxy.mode = 5.0, mode
        began = time.monotonic()
        scene.wait_for_epoch(sum(EPOCHS.values()))
        trained[mode] = time.monotonic() - began
        if kind == "delay":  # slow is not away: the end would wait as long as anything gets through
            scene.proxy.mode = "pass"
        scene.finish()
        ended[mode] = time.monotonic() - began - trained[mode]
    tell(
        what="slow server", kind=kind, epochs_s=round(trained[kind], 1), epochs_clean_s=round(trained["pass"], 1),
        end_s=round(ended[kind], 1), end_clean_s=round(ended["pass"], 1),
    )  # fmt: skip
    assert trained[kind] < 1.5 * trained["pass"] + 3  # two busy cores: timings scatter
    assert ended[kind] < ended["pass"] + 25
