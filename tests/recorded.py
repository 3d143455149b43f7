"""Everything that MLflow holds of a run, so that two runs can be compared number by number."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from nlt.tracking import Store

# What differs between two runs of the same spec and seed, however well they went.
OF_THE_CLOCK = ("time/", "final/train_seconds")
OF_THE_RUN = {"nlt.sweep", "nlt.launch_id", "nlt.folder", "nlt.git_commit", "mlflow.user", "mlflow.runName"}


def recorded(store: Store, run_id: str, folder: Path) -> dict[str, Any]:
    """Return status, params, tags, inputs, every point of every metric, and every artifact's content.

    Points keep their number: one that was logged twice is there twice. Artifacts are downloaded to `folder`. Pictures are
    counted by step; arrays are compared bit by bit.
    """
    run = store.client.get_run(run_id)
    points: Counter[str] = Counter()
    for key in run.data.metrics:
        for metric in store.client.get_metric_history(run_id, key):
            value = "some" if key.startswith(OF_THE_CLOCK) else repr(metric.value)
            points[f"{key} @{metric.step} = {value}"] += 1
    folder.mkdir(parents=True, exist_ok=True)
    root = Path(store.client.download_artifacts(run_id, "", str(folder)))
    files: Counter[str] = Counter()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            files[_content(path.relative_to(root), path)] += 1
    return {
        "status": run.info.status,
        "params": dict(run.data.params),
        "tags": {k: v for k, v in run.data.tags.items() if k not in OF_THE_RUN},
        "inputs": [(i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs],
        "points": dict(points),
        "files": dict(files),
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Say in what two such dictionaries differ; an empty list if they are equal."""
    found = []
    for key in one:
        if one[key] == other[key]:
            continue
        if isinstance(one[key], dict):
            names = sorted(set(one[key]) | set(other[key]))
            found += [
                f"{key}: {name}: {one[key].get(name)!r} != {other[key].get(name)!r}"
                for name in names
                if one[key].get(name) != other[key].get(name)
            ]
        else:
            found.append(f"{key}: {one[key]!r} != {other[key]!r}")
    return found


def _content(name: Path, path: Path) -> str:
    if name.parts[0] == "images":  # images/KEY+step+N+timestamp+...: the last part names the run
        return f"{name.name.split('+timestamp+')[0]}{'+compressed' * ('+compressed' in name.name)}{name.suffix}"
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return f"{name} {[(key, arrays[key].shape, hash(arrays[key].tobytes())) for key in sorted(arrays.files)]}"
    if path.suffix == ".safetensors":
        weights = load_file(path)
        return f"{name} {[(key, hash(weights[key].tobytes())) for key in sorted(weights)]}"
    if path.suffix == ".json":
        return f"{name} {json.loads(path.read_text())}"
    return f"{name} {hash(path.read_bytes())}"
