"""The only file that writes to MLflow. `docs/mlflow.md` lists what a run leaves there.

N training samples, E epochs, D of them epochs that detect wrong labels.
"""

import copy
import csv
import json
import logging
import os
import sqlite3
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
import numpy as np
import torch
from filelock import FileLock
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from safetensors.torch import save_file
from sqlalchemy.exc import SQLAlchemyError
from torch import Tensor

from nlt.data import Dataset, Samples
from nlt.figures import image_grid, loss_histogram
from nlt.run import Epoch
from nlt.settings import BadInput
from nlt.spec import Experiment
from nlt.train import Learner
from nlt.view import TAG, comparison_view

GRID_IMAGES = 60  # most suspicious samples shown in detections.png
HTTP_PROBE_SECONDS = 5.0  # an unreachable server is noticed by MLflow itself only after minutes of retries
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Store:
    """An MLflow tracking store that has been found usable."""

    uri: str
    client: mlflow.MlflowClient
    artifacts: Path | None
    """Where the embedded store keeps artifacts; None where a server decides."""


def shown(uri: str) -> str:
    """Return a tracking URI without the user name and password in it."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]).geturl()


def open_store(uri: str | None = None) -> Store:
    """Open the store: `uri`, else MLFLOW_TRACKING_URI, else SQLite under `mlruns/` of the current folder, made if new.

    Raises:
        BadInput: the store cannot be reached or written.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlruns').absolute() / 'mlflow.db'}"
    scheme = urlsplit(uri).scheme
    if scheme == "sqlite":
        return _open_sqlite(uri)
    if scheme in ("http", "https"):
        _probe(uri)
    elif not scheme.startswith(("postgresql", "mysql", "mssql", "databricks")):
        raise BadInput(
            f"tracking URI {shown(uri)}: MLflow keeps no runs there; use sqlite:///PATH/mlflow.db, an "
            "http(s):// server or a postgresql:// database, or leave it out for the embedded store."
        )
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # database drivers raise what they like, and their texts may hold the password
        raise BadInput(f"tracking URI {shown(uri)}: cannot be used ({type(error).__name__}).") from None
    return Store(uri, client, None)


def _open_sqlite(uri: str) -> Store:
    # sqlite:///relative.db and sqlite:////absolute.db, as SQLAlchemy reads them
    path = Path(uri.removeprefix("sqlite:///")).absolute()
    if not uri.startswith("sqlite:///") or path.is_dir() or uri == "sqlite:///":
        raise BadInput(f"tracking URI {uri}: name a file, as in sqlite:///mlruns/mlflow.db.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # MLflow's own migrations crash when several processes run them on a fresh file at once.
        with FileLock(path.parent / ".nlt.lock"):
            fresh = not path.exists()
            client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}")
            client.search_experiments(max_results=1)
            with sqlite3.connect(path) as database:
                if fresh:
                    database.execute("PRAGMA journal_mode=WAL")  # readers no longer wait for a writer
                database.execute("BEGIN IMMEDIATE")  # fails where the file cannot be written
                database.rollback()
        artifacts = path.parent / "artifacts"
        artifacts.mkdir(exist_ok=True)
        if not os.access(artifacts, os.W_OK):
            raise PermissionError(f"{artifacts} is read-only")
    except (OSError, sqlite3.Error, SQLAlchemyError, MlflowException) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"the MLflow store {path} cannot be written ({reason}): make it writable, or name another with "
            "--tracking-uri or MLFLOW_TRACKING_URI."
        ) from None
    return Store(f"sqlite:///{path}", client, artifacts)


def _probe(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=HTTP_PROBE_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise BadInput(f"the MLflow server {shown(uri)} answers {error.code}: look at its log.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise BadInput(
            f"the MLflow server {shown(uri)} does not answer ({reason}): start it, or unset MLFLOW_TRACKING_URI "
            "to use the embedded store."
        ) from None


def experiment_id(store: Store, name: str) -> str:
    """Return the id of the experiment, made with its comparison view if it is new."""
    found = store.client.get_experiment_by_name(name)
    if found is None:
        location = None if store.artifacts is None else str(store.artifacts)
        try:
            created: str = store.client.create_experiment(name, artifact_location=location)
        except MlflowException:  # another process was faster
            found = store.client.get_experiment_by_name(name)
            if found is None:
                raise
        else:
            about = "Runs of nlt. `nlt compare` prints the table; the link that `nlt ui` prints opens the charts."
            store.client.set_experiment_tag(created, "mlflow.note.content", about)
            store.client.set_experiment_tag(created, TAG, comparison_view())
            return created
    if found.lifecycle_stage != "active":
        raise BadInput(
            f"the MLflow experiment {name!r} is deleted: restore it, or name another in the spec's `experiment`."
        )
    if found.tags.get(TAG) != comparison_view():  # the view of an older version of nlt
        store.client.set_experiment_tag(found.experiment_id, TAG, comparison_view())
    return str(found.experiment_id)


@dataclass(frozen=True)
class Facts:
    """What a run is known by besides its spec."""

    seed: int
    device: torch.device
    precision: Literal["fp32", "bf16"]
    dataset: Dataset
    train: Samples
    """What is trained on, corrupted labels and all."""
    T_KK: Tensor
    """The transition matrix that was asked for."""
    empirical_T_KK: Tensor | None
    """The one that was drawn, where the clean labels are known."""


def params(spec: Experiment, facts: Facts) -> dict[str, str]:
    """Return what a person compares runs by; the whole spec is in spec.json."""
    stages = list(spec.stages().values())
    noise = spec.noise.model_dump()
    values: dict[str, Any] = {
        "data": spec.data.name,
        "train_images": len(facts.train),
        "noise": spec.noise.name,
        "noise_rate": noise.get("rate", ""),
        "model": spec.model.name,
        "width": spec.model.model_dump().get("width", ""),
        "method": spec.method.name,
        "loss": str(stages[-1].loss),
        "epochs": "+".join(str(stage.epochs) for stage in stages),
        "batch_size": "/".join(str(stage.batch_size) for stage in stages),
        "lr": "/".join(f"{stage.schedule.at(1, stage.epochs):g}" for stage in stages),
        "weight_decay": spec.optimizer.weight_decay,
        "forget_rate": spec.method.model_dump().get("forget_rate", ""),
        "seed": facts.seed,
        "precision": facts.precision,
    }
    return {name: str(value) for name, value in values.items() if value != ""}


class Tracker:
    """One MLflow run, from its start to its end."""

    def __init__(self, store: Store, spec: Experiment, facts: Facts, sweep: str):
        self._store, self._client, self._spec, self._facts = store, store.client, spec, facts
        clean_N = facts.train.clean_N
        self._wrong_N = None if clean_N is None else clean_N != facts.train.labels_N
        self._epochs: list[Epoch] = []
        self._tops: dict[str, float] = {}
        experiment = experiment_id(store, spec.experiment or spec.data.name)
        rate = spec.noise.model_dump().get("rate")
        tags = {
            "mlflow.source.name": "nlt",
            "mlflow.source.type": "LOCAL",
            "mlflow.note.content": spec.about,
            "nlt.method": spec.method.name,
            "nlt.dataset": spec.data.name,
            "nlt.noise": spec.noise.name if rate is None else f"{spec.noise.name} {rate:g}",
            "nlt.seed": str(facts.seed),
            "nlt.sweep": sweep,
            "nlt.profile": spec.profile,
            "nlt.spec_sha256": spec.sha256(),
            "nlt.git_commit": _git_commit(),
            "nlt.device": str(facts.device),
            "nlt.version": version("nlt"),
        }
        run = self._client.create_run(experiment, run_name=spec.name, tags=tags)
        self.run_id: str = run.info.run_id
        self.experiment_id = experiment
        named = [Param(name, value) for name, value in params(spec, facts).items()]
        rates = []
        if self._wrong_N is not None:
            drawn_rate = float(self._wrong_N.double().mean())
            rates = [Metric("noise/drawn_rate", drawn_rate, _now(), 0)]
        self._client.log_batch(self.run_id, metrics=rates, params=named)
        self._client.log_inputs(self.run_id, datasets=[self._dataset_input()])
        resolved = spec.resolved() | {"seed": facts.seed}
        self._client.log_text(self.run_id, json.dumps(resolved, indent=2) + "\n", "spec.json")
        matrices = {"classes": facts.dataset.classes, "asked": facts.T_KK.tolist()}
        if facts.empirical_T_KK is not None:
            matrices["drawn"] = facts.empirical_T_KK.tolist()
        self._client.log_text(self.run_id, json.dumps(matrices, indent=1) + "\n", "transition_matrix.json")

    def _dataset_input(self) -> DatasetInput:
        dataset = self._facts.dataset
        profile = {"train": len(self._facts.train), "test": len(dataset.test), "classes": dataset.classes}
        source = json.dumps(self._spec.data.model_dump(mode="json"))
        entity = DatasetEntity(dataset.name, dataset.digest, "nlt", source, profile=json.dumps(profile))
        return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])

    def log_epoch(self, epoch: Epoch) -> None:
        """Log an epoch's metrics and its histogram of per-sample losses."""
        self._epochs.append(epoch)
        now = _now()
        metrics = [Metric(name, value, now, epoch.step) for name, value in epoch.metrics.items()]
        self._client.log_batch(self.run_id, metrics=metrics)
        # One axis for a whole stage, from its first epoch, so that sliding through the epochs shows the losses move.
        seen = epoch.losses_N[epoch.losses_N.isfinite()]
        top = self._tops.setdefault(epoch.stage, max(float(np.quantile(seen.numpy(), 0.999)) * 1.25, 1e-3))
        title = f"epoch {epoch.step}: {epoch.stage} {epoch.t}"
        picture = loss_histogram(epoch.losses_N, self._wrong_N, top, title)
        self._client.log_image(self.run_id, picture, key="train/loss_histogram", step=epoch.step)

    def finish(self, net: Learner, log_model: bool) -> dict[str, float]:
        """Log the final metrics and artifacts, mark the run FINISHED, and return the final metrics."""
        final = final_metrics(self._epochs)
        now, last = _now(), self._epochs[-1].step
        self._client.log_batch(self.run_id, metrics=[Metric(k, v, now, last) for k, v in final.items()])
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            weights = {k: v.detach().cpu().contiguous() for k, v in net.network.state_dict().items()}
            save_file(weights, folder / "weights.safetensors")
            self._write_losses(folder / "losses.npz")
            detecting = [epoch for epoch in self._epochs if epoch.keep_N is not None]
            if detecting:
                self._write_masks(folder / "masks.npz", detecting)
                self._write_detections(folder, detecting[-1])
            self._client.log_artifacts(self.run_id, str(folder))
        if log_model:
            self._log_model(net)
        self._client.set_terminated(self.run_id, "FINISHED")
        return final

    def stop(self, status: Literal["FAILED", "KILLED"], why: str) -> None:
        """Mark the run as failed or killed, and say why in the tag `nlt.stopped`."""
        self._client.log_batch(self.run_id, tags=[RunTag("nlt.stopped", why[:4000])])
        self._client.set_terminated(self.run_id, status)

    def _write_losses(self, path: Path) -> None:
        # Half floats: 100 epochs of 20,000 samples are 4 MB. The largest half float is 65504.
        rows = [epoch.losses_N.clamp(-65504, 65504).half().numpy() for epoch in self._epochs]
        np.savez_compressed(path, losses=np.stack(rows), ids=self._facts.train.ids_N.numpy())

    def _write_masks(self, path: Path, detecting: list[Epoch]) -> None:
        keep_DN = np.stack([epoch.keep_N.numpy() for epoch in detecting if epoch.keep_N is not None])
        steps = np.array([epoch.step for epoch in detecting])
        # np.unpackbits(keep, axis=1, count=len(ids)) gives the masks back
        np.savez_compressed(path, keep=np.packbits(keep_DN, axis=1), steps=steps, ids=self._facts.train.ids_N.numpy())

    def _write_detections(self, folder: Path, epoch: Epoch) -> None:
        train, classes = self._facts.train, self._facts.dataset.classes
        assert epoch.keep_N is not None
        scores_N = epoch.losses_N if epoch.scores_N is None else epoch.scores_N
        order = scores_N.argsort(descending=True, stable=True).tolist()
        head = ["id", *(["file"] if train.files else []), "given_label", "score", "removed"]
        with (folder / "detections.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(head + ([] if train.clean_N is None else ["clean_label"]))
            for i in order:
                row: list[Any] = [int(train.ids_N[i]), *([train.files[i]] if train.files else [])]
                row += [classes[int(train.labels_N[i])], f"{float(scores_N[i]):.6g}", int(not epoch.keep_N[i])]
                writer.writerow(row + ([] if train.clean_N is None else [classes[int(train.clean_N[i])]]))
        captions = []
        for i in order[:GRID_IMAGES]:
            text = f"given {classes[int(train.labels_N[i])]}"
            wrong = train.clean_N is not None and bool(train.clean_N[i] != train.labels_N[i])
            if train.clean_N is not None:
                text += f"\ntrue {classes[int(train.clean_N[i])]}"
            captions.append((text, wrong))
        images_NHWC = train.images_NCHW[order[:GRID_IMAGES]].permute(0, 2, 3, 1)
        from PIL import Image

        Image.fromarray(image_grid(images_NHWC, captions)).save(folder / "detections.png")

    def _log_model(self, net: Learner) -> None:
        from mlflow.models import infer_signature

        images_BCHW = self._facts.train.images_NCHW[:2].float().div(255)
        # torch.export packs weights that are not contiguous (channels-last) wrongly.
        network = copy.deepcopy(net.network).to(device="cpu", memory_format=torch.contiguous_format).eval()
        with torch.no_grad():
            signature = infer_signature(images_BCHW.numpy(), network(images_BCHW).numpy())
        mlflow.set_tracking_uri(self._store.uri)
        with mlflow.start_run(run_id=self.run_id):
            mlflow.pytorch.log_model(
                network,
                name="model",
                signature=signature,
                input_example=images_BCHW.numpy(),
                pip_requirements=[f"torch=={version('torch')}"],  # inferring them would take 6 seconds
            )


def final_metrics(epochs: list[Epoch]) -> dict[str, float]:
    """Return a run's headline numbers.

    `final/test_accuracy_last`: after the last epoch; `_mean10`: mean over the last ten epochs of the last stage (all of
    them, if fewer); `_at_best_val`: in the last stage's first epoch of the highest validation accuracy, where there is
    a validation split. `final/noise_*`: the last mask's measures. `final/train_seconds`: the epochs, less evaluation.
    """
    last_stage = [epoch.metrics for epoch in epochs if epoch.stage == epochs[-1].stage]
    final = {
        "final/test_accuracy_last": last_stage[-1]["test/accuracy"],
        "final/test_accuracy_mean10": float(np.mean([m["test/accuracy"] for m in last_stage[-10:]])),
        "final/train_seconds": sum(epoch.metrics["time/epoch_seconds"] for epoch in epochs),
    }
    if "val/accuracy" in last_stage[-1]:
        best = max(last_stage, key=lambda m: m["val/accuracy"])
        final["final/test_accuracy_at_best_val"] = best["test/accuracy"]
    masks = [epoch.metrics for epoch in epochs if epoch.keep_N is not None]
    if masks:
        final |= {f"final/noise_{k[6:]}": v for k, v in masks[-1].items() if k.startswith("noise/")}
    return final


def _now() -> int:
    return int(time.time() * 1000)


def _git_commit() -> str:
    """Return the commit of the checkout that nlt runs from, with `-dirty` if it is changed, or "unknown".

    The container image has neither a checkout nor git; its build leaves the commit in NLT_GIT_COMMIT.
    """
    if commit := os.environ.get("NLT_GIT_COMMIT"):
        return commit
    source = Path(__file__).parent
    if "site-packages" in source.parts:  # git would tell of whatever repository the environment lies in
        return "unknown"
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
