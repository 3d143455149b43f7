"""What a run leaves behind, first in its journal, from there in MLflow; `docs/mlflow.md` lists it.

N training samples, E epochs, D of them epochs that detect wrong labels.
"""

import base64
import contextlib
import copy
import csv
import io
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from nlt.checkpoint import write_whole
from nlt.data import Dataset, Samples
from nlt.figures import Picture, image_grid, loss_histogram
from nlt.hardware import find_compile
from nlt.run import EpochRecord, Run
from nlt.settings import BadInput
from nlt.spec import Experiment
from nlt.tracking.delivery import PATIENCE_S, Courier
from nlt.tracking.journal import Record, RunFolder, epoch_record, now
from nlt.tracking.shared import Prefix
from nlt.tracking.store import FOLDER_TAG, SWEEP_TAG, Store, experiment_id, refused, shown
from nlt.train import Learner

GRID_IMAGES = 60  # most suspicious samples shown in detections.png
AWAY_S, AWAY_PAUSE_S = 600.0, 15.0  # how long a sweep waits for a server before its next run
THUMBNAIL = 256  # pixels; what MLflow's own log_image makes


def _create_run(store: Store, experiment: str, name: str, tags: dict[str, str]) -> str:
    launch_id = uuid.uuid4().hex
    try:
        run = store.client.create_run(experiment, run_name=name, tags=tags | {"nlt.launch_id": launch_id})
    except MlflowException:
        # The run may have been made and the answer lost on its way.
        found = store.client.search_runs([experiment], f"tags.`nlt.launch_id` = '{launch_id}'")
        if not found:
            raise
        run = found[0]
    return str(run.info.run_id)


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

    @property
    def test(self) -> Samples:
        """What accuracy is measured on; `prepare` refuses data without it."""
        assert self.dataset.test is not None
        return self.dataset.test


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
        # A method's own settings by their names; its stages are summed up above.
        **{key: value for key, value in spec.method.deciding().items() if key not in ("name", *spec.stages())},
        "seed": facts.seed,
        "precision": facts.precision,
    }
    return {name: str(value) for name, value in values.items() if value != ""}


def start_run(
    store: Store,
    spec: Experiment,
    facts: Facts,
    sweep: str,
    launched: dict[str, Any],
    warn: Callable[[str], None] | None = None,
    prefix: Prefix | None = None,
) -> RunFolder:
    """Make the run in MLflow and its folder here.

    Args:
        store: where.
        spec: what runs.
        facts: what else it is known by.
        sweep: the tag `nlt.sweep`.
        launched: how it was launched; `run.json` keeps it for a resumption.
        warn: if given, a server that is away is waited for, `AWAY_S` at most, and this is told.
        prefix: what it begins with, if another run has trained its first stages.

    Raises:
        BadInput: MLflow does not take the run, or the folder cannot be written: then the run is marked FAILED.
    """
    rate = spec.noise.model_dump().get("rate")
    tags = {
        "mlflow.source.name": "nlt",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": spec.about,
        "mlflow.loggedImages": "True",  # makes the UI look for images by step
        "nlt.method": spec.method.name,
        "nlt.dataset": spec.data.name,
        "nlt.noise": spec.noise.name if rate is None else f"{spec.noise.name} {rate:g}",
        "nlt.seed": str(facts.seed),
        SWEEP_TAG: sweep,
        "nlt.profile": spec.profile,
        "nlt.spec_sha256": spec.sha256(),
        "nlt.git_commit": git_commit(),
        "nlt.device": str(facts.device),
        "nlt.compile": find_compile(spec.compile, facts.device, spec.optimizer_steps(len(facts.train)))[1],
        "nlt.threads": str(torch.get_num_threads()),  # on it depend a CPU's last digits
        "nlt.version": version("nlt"),
        **({} if spec.published is None else {"nlt.published": spec.published.model_dump_json(exclude_none=True)}),
        **({} if prefix is None else {"nlt.first_stages": prefix.run_id}),
        **({} if store.artifacts is None else {FOLDER_TAG: str(store.runs)}),
    }
    matrices = {"classes": facts.dataset.classes, "asked": facts.T_KK.tolist()}
    if facts.empirical_T_KK is not None:
        matrices["drawn"] = facts.empirical_T_KK.tolist()
    wrong_N, dataset = facts.train.wrong_N, facts.dataset
    data = {"spec.json": spec.resolved() | {"seed": facts.seed}, "transition_matrix.json": matrices}
    texts = {name: json.dumps(value, indent=1) + "\n" for name, value in data.items()}
    if dataset.left_out:
        texts["left_out.csv"] = _table(["file", "reason"], dataset.left_out)
    # MLflow keeps one entry for each name and digest, the first one: only what the digest covers may stand in it.
    sizes = {"train": len(dataset.train), "test": len(facts.test), "classes": dataset.classes}
    source = spec.data.model_dump(mode="json", exclude={"val_fraction"})
    start: Record = {
        "kind": "start",
        "time": now(),
        "params": params(spec, facts),
        "metrics": {} if wrong_N is None else {"noise/drawn_rate": float(wrong_N.double().mean())},
        "input": {
            "name": dataset.name,
            "digest": dataset.digest,
            "source_type": "nlt",
            "source": json.dumps(source),
            "profile": json.dumps(sizes),
        },
        "files": {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()},
    }
    deadline = time.monotonic() + (0.0 if warn is None else AWAY_S)
    name = spec.experiment or spec.data.name
    with store.starting():
        while True:
            try:
                experiment = experiment_id(store, name)
                run_id = _create_run(store, experiment, spec.name, tags)
                break
            except MlflowException as error:
                if refusal := refused(store.uri, error, name):
                    raise refusal from None
                sentence = f"the MLflow store {shown(store.uri)} does not take a new run ({type(error).__name__})"
                if warn is None or store.artifacts is not None or time.monotonic() > deadline:
                    raise BadInput(f"{sentence}: look at its log, or at the disk it is on.") from None
                warn(f"{sentence}; trying again.")
                time.sleep(AWAY_PAUSE_S)
        known = {"run_id": run_id, "experiment_id": experiment, "store": store.name, "spec": spec.resolved()}
        try:
            if prefix is None:
                return RunFolder.create(store.runs, run_id, known | launched, [start])
            epochs = [record | {"steps": spec.steps()} for record in prefix.epochs]
            return RunFolder.create(store.runs, run_id, known | launched, [start, *epochs], prefix.saved)
        except OSError as error:
            with contextlib.suppress(MlflowException):
                store.client.set_terminated(run_id, "FAILED")
            raise BadInput(
                f"{store.runs} cannot be written ({error.strerror}): make room there or make it writable."
            ) from None


class Tracker:
    """One run's record: first in its journal, from there in MLflow."""

    def __init__(self, store: Store, folder: RunFolder, facts: Facts):
        self._store, self._folder, self._facts = store, folder, facts
        self._wrong_N = facts.train.wrong_N
        self._tops: dict[str, float] = {}
        self._complaint = ""
        self.epochs = folder.epochs()
        """All epochs so far, those before a resumption too."""
        for epoch in self.epochs:
            self._top(epoch)
        self._courier = Courier(store, folder)
        self._courier.wake()

    def log_resumption(self) -> None:
        """Note that the run goes on."""
        self._append({"kind": "resume", "time": now()})

    def log_epoch(self, epoch: EpochRecord) -> None:
        """Log an epoch's metrics, per-sample losses and their histogram.

        Nothing happens if it was logged before: a run that was killed between journal and checkpoint repeats an epoch.
        """
        if epoch.step <= len(self.epochs):
            return
        title = f"epoch {epoch.step}: {epoch.stage} {epoch.t}"
        picture = loss_histogram(epoch.losses_N, self._wrong_N, self._top(epoch), title)
        self._append(
            epoch_record(epoch, stepped_image(self._folder.run_id, "train/loss_histogram", epoch.step, picture))
        )
        self.epochs.append(epoch)

    def finish(self, run: Run, log_model: bool) -> dict[str, float]:
        """Log the final metrics and artifacts, mark the run FINISHED, and return the final metrics."""
        folder = self._folder.path / "artifacts"
        save_weights(run.weights(), folder / "weights.safetensors")
        if run.best_val is not None:
            save_weights(run.best_val.weights, folder / "weights_at_best_val.safetensors")
        self._write_labels(folder / "labels.npz")
        self._write_losses(folder / "losses.npz")
        masked = [epoch for epoch in self.epochs if epoch.keep_N is not None]
        if masked:
            self._write_masks(folder / "masks.npz", masked)
        detecting = [epoch for epoch in self.epochs if epoch.detects]
        if detecting:
            self._write_detections(folder, detecting[-1])
        for file in folder.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        if log_model:
            self._log_model(run.nets[0])
        final = final_metrics(self.epochs)
        end = {"kind": "end", "time": now(), "status": "FINISHED", "over": True}
        self._append(end | {"step": self.epochs[-1].step, "metrics": final})
        return final

    def stop(self, status: Literal["FAILED", "KILLED"], why: str, over: bool) -> None:
        """Mark the run as failed or killed and say why in the tag `nlt.stopped`; `over`: going on is of no use."""
        if self._folder.is_over():  # Ctrl-C came when it had just been finished
            return
        tags = {"nlt.stopped": why[:4000]}
        end = {"kind": "end", "time": now(), "status": status, "over": over, "tags": tags}
        with contextlib.suppress(OSError):  # a full disk is why we stop, perhaps
            self._append(end)

    def close(self, patience_s: float = PATIENCE_S) -> str:
        """Wait for what is under way to MLflow and let go of the run; return what to tell the user, or ""."""
        complaint = self._complaint
        try:
            drained = self._courier.drain(patience_s)
        except KeyboardInterrupt:  # nobody wants to wait: `nlt sync` delivers the rest
            drained = False
        if not drained:
            complaint += (
                f"{self._folder.waiting()} records of run {self._folder.run_id} have not reached MLflow "
                f"({self._courier.complaint()}): they are safe in {self._folder.path}, and `nlt sync` delivers them."
            )
        self._courier.stop()
        self._folder.close()
        return complaint

    def _append(self, record: Record) -> None:
        self._folder.journal.append(record)
        self._courier.wake()

    def _top(self, epoch: EpochRecord) -> float:
        """One axis for a whole stage, from its first epoch, so that sliding through epochs shows the losses move."""
        seen = epoch.losses_N[epoch.losses_N.isfinite()]
        return self._tops.setdefault(epoch.stage, max(float(np.quantile(seen.numpy(), 0.999)) * 1.25, 1e-3))

    def _write_labels(self, path: Path) -> None:
        train = self._facts.train
        believed = next((epoch.labels_N for epoch in reversed(self.epochs) if epoch.labels_N is not None), None)
        labels = {"ids": train.ids_N, "given": train.labels_N, "clean": train.clean_N, "believed": believed}
        arrays: dict[str, Any] = {name: values.numpy() for name, values in labels.items() if values is not None}
        np.savez_compressed(path, **arrays)

    def _write_losses(self, path: Path) -> None:
        # Half floats: 100 epochs of 20,000 samples are 4 MB. The largest half float is 65504.
        rows = [epoch.losses_N.clamp(-65504, 65504).half().numpy() for epoch in self.epochs]
        np.savez_compressed(path, losses=np.stack(rows), ids=self._facts.train.ids_N.numpy())

    def _write_masks(self, path: Path, masked: list[EpochRecord]) -> None:
        keep_DN = np.stack([epoch.keep_N.numpy() for epoch in masked if epoch.keep_N is not None])
        steps = np.array([epoch.step for epoch in masked])
        # np.unpackbits(keep, axis=1, count=len(ids)) gives the masks back
        np.savez_compressed(path, keep=np.packbits(keep_DN, axis=1), steps=steps, ids=self._facts.train.ids_N.numpy())

    def _write_detections(self, folder: Path, epoch: EpochRecord) -> None:
        train, classes = self._facts.train, self._facts.dataset.classes
        scores_N = epoch.losses_N if epoch.scores_N is None else epoch.scores_N
        order = scores_N.argsort(descending=True, stable=True).tolist()
        head = ["id", *(["file"] if train.files else []), "given_label", "score", "removed"]
        with (folder / "detections.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(head + ([] if train.clean_N is None else ["clean_label"]))
            for i in order:
                row: list[Any] = [int(train.ids_N[i]), *([train.files[i]] if train.files else [])]
                row += [classes[int(train.labels_N[i])], f"{float(scores_N[i]):.6g}"]
                row.append("" if epoch.keep_N is None else int(not epoch.keep_N[i]))
                writer.writerow(row + ([] if train.clean_N is None else [classes[int(train.clean_N[i])]]))
        captions = []
        for i in order[:GRID_IMAGES]:
            text = f"given {classes[int(train.labels_N[i])]}"
            wrong = train.clean_N is not None and bool(train.clean_N[i] != train.labels_N[i])
            if train.clean_N is not None:
                text += f"\ntrue {classes[int(train.clean_N[i])]}"
            captions.append((text, wrong))
        images_NHWC = train.images_NCHW[order[:GRID_IMAGES]].permute(0, 2, 3, 1)
        Image.fromarray(image_grid(images_NHWC, captions)).save(folder / "detections.png")

    def _log_model(self, net: Learner) -> None:
        """Log an MLflow model; where the server is away there is none, which `close` says."""
        from mlflow.models import infer_signature

        images_BCHW = self._facts.train.images_NCHW[:2].float().div(255)
        # torch.export packs weights that are not contiguous (channels-last) wrongly.
        network = copy.deepcopy(net.network).to(device="cpu", memory_format=torch.contiguous_format).eval()
        with torch.no_grad():
            signature = infer_signature(images_BCHW.numpy(), network(images_BCHW).numpy())
        before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None  # type: ignore[no-untyped-call]
        mlflow.set_tracking_uri(self._store.uri)
        try:
            with mlflow.start_run(run_id=self._folder.run_id):
                mlflow.pytorch.log_model(
                    network,
                    name="model",
                    signature=signature,
                    input_example=images_BCHW.numpy(),
                    pip_requirements=[f"torch=={version('torch')}"],  # inferring them would take 6 seconds
                )
                mlflow.end_run("RUNNING")  # FINISHED comes with the journal's last record
        except (MlflowException, OSError) as error:
            self._complaint = (
                f"run {self._folder.run_id} has no MLflow model, as the server was away ({type(error).__name__}); its "
                "weights are in weights.safetensors. "
            )
        finally:  # it sets MLFLOW_TRACKING_URI too, and the next launch would go where this one went
            mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it


def final_metrics(epochs: list[EpochRecord]) -> dict[str, float]:
    """Return a run's headline numbers.

    `final/test_accuracy_last`: the last epoch's, measured after it, or before it under `evaluate: before` (which never
    scores the last weights); `_mean10`: mean over the last ten epochs of the last stage (all of them, if fewer);
    `_at_best_val`: in the last stage's first epoch of the highest validation accuracy, where there is a validation
    split. `final/noise_*`: the last mask's measures. `final/train_seconds`: the epochs, less evaluation.
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
    masks = [epoch.metrics for epoch in epochs if epoch.detects]
    if masks:
        final |= {f"final/noise_{k[6:]}": v for k, v in masks[-1].items() if k.startswith("noise/")}
    return final


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table as CSV."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([head, *rows])
    return text.getvalue()


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Write a network's weights as safetensors."""
    # Not save_file, whose errors on a full disk are no OSError.
    write_whole(path, save({name: value.detach().cpu().contiguous() for name, value in weights.items()}))


def stepped_image(run_id: str, key: str, step: int, picture: Picture, thumbnail: int = THUMBNAIL) -> dict[str, bytes]:
    """Return the files of an image that the UI shows with a slider through the steps: artifact path -> content.

    Their names are those of MLflow's log_image, as its UI reads them, but for the random part: here it follows from run
    and step, so that an image sent twice is still one.
    """
    image = Image.fromarray(picture)
    small = image.copy()
    small.thumbnail((thumbnail, thumbnail))
    unique = uuid.uuid5(uuid.UUID(run_id), f"{key} {step}")
    name = f"images/{key.replace('/', '~')}+step+{step}+timestamp+{step}+{unique}"
    files = {}
    for path, pixels in ((f"{name}.png", image), (f"{name}+compressed.webp", small)):
        content = io.BytesIO()
        pixels.save(content, path.rpartition(".")[2])
        files[path] = content.getvalue()
    return files


@cache  # of the code as it was imported
def git_commit() -> str:
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
