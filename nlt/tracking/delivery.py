"""Delivery of a run's journal to MLflow, in the background; training never waits for MLflow.

What is sent twice does no harm: a metric keeps the time it was journaled at, and MLflow holds equal points once;
params, tags and inputs of equal value are the same ones; a file goes to the same place. So delivery repeats what it is
not sure of.
"""

import base64
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun

from nlt.tracking.journal import Record, RunFolder, opened
from nlt.tracking.store import FOLDER_TAG, Store, without_credentials

SLICE = 50  # records whose metrics go into one call
METRICS_A_CALL = 1000  # MLflow's limit
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # between tries; doubled each time
PATIENCE_S = 20.0  # how long the end of a run waits while nothing gets through


def deliver(client: MlflowClient, folder: RunFolder, stopped: Callable[[], bool] = lambda: False) -> None:
    """Send everything in the journal that has not been sent, in order, until `stopped`.

    Raises:
        Exception: whatever MLflow raises; what was sent until then is noted, and the next call goes on there.
    """
    while folder.delivered < folder.journal.end and not stopped():
        waiting = list(islice(folder.journal.read(folder.delivered), SLICE))
        metrics = [
            Metric(key, value, record["time"], record.get("step", 0))
            for record, _ in waiting
            for key, value in record.get("metrics", {}).items()
        ]
        for first in range(0, len(metrics), METRICS_A_CALL):
            client.log_batch(folder.run_id, metrics=metrics[first : first + METRICS_A_CALL])
        for record, offset in waiting:
            if stopped():
                return
            _send(client, folder, record)
            folder.set_delivered(offset)  # after each, so that a slow server still sees the end of it


def _send(client: MlflowClient, folder: RunFolder, record: Record) -> None:
    """Send what a record holds besides metrics."""
    run_id = folder.run_id
    named = [Param(key, value) for key, value in record.get("params", {}).items()]
    tags = [RunTag(key, value) for key, value in record.get("tags", {}).items()]
    if named or tags:
        client.log_batch(run_id, params=named, tags=tags)
    if "input" in record:
        client.log_inputs(run_id, datasets=[_dataset_input(record["input"])])
    if "files" in record:
        _send_files(client, run_id, record["files"])
    if record["kind"] == "resume":
        if "nlt.stopped" in client.get_run(run_id).data.tags:
            client.delete_tag(run_id, "nlt.stopped")
        client.update_run(run_id, "RUNNING")
    elif record["kind"] == "end":
        if any((folder.path / "artifacts").iterdir()):
            client.log_artifacts(run_id, str(folder.path / "artifacts"))
        client.set_terminated(run_id, record["status"], record["time"])  # last: FINISHED means all is there


def _send_files(client: MlflowClient, run_id: str, files: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        for path, content in files.items():
            target = Path(name) / path
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(base64.b64decode(content))
        client.log_artifacts(run_id, name)


def _dataset_input(record: dict[str, Any]) -> DatasetInput:
    return DatasetInput(DatasetEntity(**record), [InputTag("mlflow.data.context", "training")])


def data_digest(run: MlflowRun) -> str | None:
    """Return `Dataset.digest` of the data that a run of nlt was trained on; None if MLflow holds none."""
    logged = run.inputs.dataset_inputs if run.inputs else []
    return next((given.dataset.digest for given in logged if given.dataset.source_type == "nlt"), None)


class Courier:
    """A thread that delivers a journal as it grows."""

    def __init__(self, store: Store, folder: RunFolder):
        self._client, self._uri, self._folder = store.client, store.uri, folder
        self._wake, self._closing, self._stopped = threading.Event(), threading.Event(), False
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="nlt delivery", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Say that the journal has grown."""
        self._wake.set()

    def drain(self, patience_s: float = PATIENCE_S) -> bool:
        """Wait until all is delivered, or until nothing has got through for `patience_s`; return whether all is."""
        self._closing.set()
        self.wake()
        seen, since = self._folder.delivered, time.monotonic()
        while self._folder.delivered < self._folder.journal.end and time.monotonic() - since < patience_s:
            time.sleep(0.01)
            if self._folder.delivered != seen:
                seen, since = self._folder.delivered, time.monotonic()
        return self._folder.delivered == self._folder.journal.end

    def stop(self) -> None:
        """End the thread; if it waits for an answer, it sends nothing more afterwards."""
        self._stopped = True
        self._closing.set()
        self.wake()
        self._thread.join(1.0)

    def complaint(self) -> str:
        """Say why something is not delivered, without the password that an error's text may hold."""
        if self.error is None:
            return "MLflow does not answer"
        text = str(self.error).strip().partition("\n")[0].replace(self._uri, without_credentials(self._uri))
        return f"{type(self.error).__name__}: {text[:300]}"

    def _work(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopped:
                return
            try:
                deliver(self._client, self._folder, lambda: self._stopped)
            except Exception as error:  # a server, a database and a disk fail in many ways; none may stop training
                self.error = error
                if self._closing.wait(pause):  # somebody waits for the end, so the pauses stay short
                    time.sleep(FIRST_PAUSE_S)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                self._wake.set()
            else:
                self.error, pause = None, FIRST_PAUSE_S


def kill_orphans(store: Store) -> list[str]:
    """Mark runs as KILLED that died between their creation in the embedded store and their folder here."""
    if store.artifacts is None:
        return []
    with store.starting():
        experiments = [experiment.experiment_id for experiment in store.client.search_experiments()]
        running = store.client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000)
        # Runs that came through a server in front of the same database have their folders elsewhere. Compared here,
        # since a path with a quotation mark in it would break a filter.
        ours = [run.info.run_id for run in running if run.data.tags.get(FOLDER_TAG) == str(store.runs)]
        dead = [run_id for run_id in ours if not (store.runs / run_id).exists()]
        for run_id in dead:
            store.client.set_terminated(run_id, "KILLED")
    return dead


@dataclass(frozen=True)
class Synced:
    """What `sync` did."""

    runs: int
    """How many runs had something to deliver."""
    complaints: list[str]
    """A sentence for each run that could not be delivered whole."""
    elsewhere: Counter[str]
    """Other stores that runs in the same folder wait for, with their number."""


def sync(store: Store) -> Synced:
    """Deliver what runs of this store have left undelivered; runs in progress see to it themselves."""
    runs, complaints = 0, list[str]()
    elsewhere = Counter[str]()
    for folder in opened(store.runs, complaints.append):
        if folder.facts["store"] != store.name:
            elsewhere[folder.facts["store"]] += 1
        elif folder.waiting():
            runs += 1
            courier = Courier(store, folder)
            if not courier.drain():
                complaints.append(
                    f"run {folder.run_id}: {folder.waiting()} records wait ({courier.complaint()}); "
                    f"to give them up, delete {folder.path}."
                )
            courier.stop()
    return Synced(runs, complaints, elsewhere)
