"""A detection in MLflow: a run that has trained nothing and holds what `nlt detect` found of a data set."""

import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
from PIL import Image

from nlt.provenance import git_commit
from nlt.tracking.artifacts import log_contents, stepped_image
from nlt.tracking.store import FOLDER_TAG, KIND_TAG, Store, experiment_id
from nlt.view import detection_description, detection_view

EXPERIMENT = "detect"
LEGIBLE = 1600  # pixels of the grid of the worst, which is looked at without a click


def write_detection(
    store: Store,
    name: str,
    note: str,
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    dataset: tuple[str, str],
    files: list[Path],
    grid: Path | None,
) -> str:
    """Make a run of what was found in a data set and return its id.

    Args:
        store: where.
        name: of the run.
        note: its description, Markdown.
        params: what was asked for.
        metrics: what was found.
        dataset: name and digest of what was judged.
        files: logged as artifacts.
        grid: a picture that the UI shows.
    """
    client = store.client
    with store.starting():
        experiment = experiment_id(store, EXPERIMENT, detection_view(), detection_description())
        tags = {
            KIND_TAG: "detection",
            "mlflow.source.name": "nlt",
            "mlflow.source.type": "LOCAL",
            "mlflow.note.content": note,
            "mlflow.loggedImages": "True",  # makes the UI look for images by step
            "nlt.version": version("nlt"),
            "nlt.git_commit": git_commit(),
            **({} if store.artifacts is None else {FOLDER_TAG: str(store.runs)}),
        }
        run_id = str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
    now = int(time.time() * 1000)
    try:
        client.log_batch(
            run_id,
            metrics=[mlflow.entities.Metric(key, value, now, 0) for key, value in metrics.items()],
            params=[mlflow.entities.Param(key, value) for key, value in params.items()],
        )
        data = mlflow.entities.Dataset(dataset[0], dataset[1], "nlt", "{}", schema=None, profile=None)
        client.log_inputs(run_id, datasets=[mlflow.entities.DatasetInput(dataset=data, tags=[])])
        for file in files:
            client.log_artifact(run_id, str(file))
        if grid is not None:
            picture = np.asarray(Image.open(grid).convert("RGB"))
            log_contents(client, run_id, stepped_image(run_id, "detect/worst", 0, picture, LEGIBLE))
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")
    return run_id
