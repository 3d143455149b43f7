"""The files that a run leaves: weights, labels, losses, masks, what it has detected, images with steps, a model.

N training samples, E epochs, D of them epochs that make a mask.
"""

import copy
import csv
import io
import os
import tempfile
import uuid
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from nlt.checkpoint import write_whole
from nlt.data import Samples
from nlt.figures import Picture, image_grid
from nlt.run import EpochRecord, Prepared, Run
from nlt.train import Learner

GRID_IMAGES = 60  # most suspicious samples shown in detections.png
THUMBNAIL = 256  # pixels; what MLflow's own log_image makes


def write(folder: Path, run: Run, prepared: Prepared, epochs: list[EpochRecord]) -> None:
    """Write what a finished run leaves into its folder, and onto the disk."""
    save_weights(run.weights(), folder / "weights.safetensors")
    if run.best_val is not None:
        save_weights(run.best_val.weights, folder / "weights_at_best_val.safetensors")
    _labels(folder / "labels.npz", prepared.train, epochs)
    _losses(folder / "losses.npz", prepared.train, epochs)
    if masked := [epoch for epoch in epochs if epoch.keep_N is not None]:
        _masks(folder / "masks.npz", prepared.train, masked)
    if detecting := [epoch for epoch in epochs if epoch.detects]:
        _detections(folder, prepared, detecting[-1])
    for file in folder.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())


def _labels(path: Path, train: Samples, epochs: list[EpochRecord]) -> None:
    believed = next((epoch.labels_N for epoch in reversed(epochs) if epoch.labels_N is not None), None)
    labels = {"ids": train.ids_N, "given": train.labels_N, "clean": train.clean_N, "believed": believed}
    arrays: dict[str, Any] = {name: values.numpy() for name, values in labels.items() if values is not None}
    np.savez_compressed(path, **arrays)


def _losses(path: Path, train: Samples, epochs: list[EpochRecord]) -> None:
    # Half floats: 100 epochs of 20,000 samples are 4 MB. The largest half float is 65504.
    rows = [epoch.losses_N.clamp(-65504, 65504).half().numpy() for epoch in epochs]
    np.savez_compressed(path, losses=np.stack(rows), ids=train.ids_N.numpy())


def _masks(path: Path, train: Samples, masked: list[EpochRecord]) -> None:
    keep_DN = np.stack([epoch.keep_N.numpy() for epoch in masked if epoch.keep_N is not None])
    steps = np.array([epoch.step for epoch in masked])
    # np.unpackbits(keep, axis=1, count=len(ids)) gives the masks back
    np.savez_compressed(path, keep=np.packbits(keep_DN, axis=1), steps=steps, ids=train.ids_N.numpy())


def _detections(folder: Path, prepared: Prepared, epoch: EpochRecord) -> None:
    train, classes = prepared.train, prepared.dataset.classes
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


def log_model(uri: str, run_id: str, net: Learner, train: Samples) -> str:
    """Log an MLflow model with signature; return "", or a sentence where the server is away and there is none."""
    from mlflow.models import infer_signature

    images_BCHW = train.images_NCHW[:2].float().div(255)
    # torch.export packs weights that are not contiguous (channels-last) wrongly.
    network = copy.deepcopy(net.network).to(device="cpu", memory_format=torch.contiguous_format).eval()
    with torch.no_grad():
        signature = infer_signature(images_BCHW.numpy(), network(images_BCHW).numpy())
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None  # type: ignore[no-untyped-call]
    mlflow.set_tracking_uri(uri)
    try:
        with mlflow.start_run(run_id=run_id):
            mlflow.pytorch.log_model(
                network,
                name="model",
                signature=signature,
                input_example=images_BCHW.numpy(),
                pip_requirements=[f"torch=={version('torch')}"],  # inferring them would take 6 seconds
            )
            mlflow.end_run("RUNNING")  # FINISHED comes with the journal's last record
    except (MlflowException, OSError) as error:
        return (
            f"run {run_id} has no MLflow model, as the server was away ({type(error).__name__}); its "
            "weights are in weights.safetensors. "
        )
    finally:  # it sets MLFLOW_TRACKING_URI too, and the next launch would go where this one went
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it
    return ""


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Write a network's weights as safetensors."""
    # Not save_file, whose errors on a full disk are no OSError.
    write_whole(path, save({name: value.detach().cpu().contiguous() for name, value in weights.items()}))


def log_contents(client: mlflow.MlflowClient, run_id: str, contents: Mapping[str, bytes]) -> None:
    """Log artifacts that are in memory: artifact path -> content."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        client.log_artifacts(run_id, folder)


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
