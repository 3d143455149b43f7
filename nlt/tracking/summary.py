"""The summary run of a sweep: it has trained nothing and holds the tables and figures of the runs that have."""

import time
from collections.abc import Mapping
from importlib.metadata import version

from nlt.figures import Picture
from nlt.provenance import git_commit
from nlt.tracking.artifacts import log_contents, stepped_image
from nlt.tracking.store import KIND_TAG, SWEEP_TAG, Store

LONGEST_TAG = 8000  # characters of a tag's value that MLflow's stores keep
LEGIBLE = 1600  # pixels: these figures have several panels, and are looked at without a click


def write_summary(
    store: Store,
    experiment_id: str,
    sweep: str,
    note: str,
    files: Mapping[str, bytes],
    pictures: Mapping[tuple[str, int], Picture],
) -> str:
    """Make the summary run of a sweep, or bring the one it has up to date; return its id.

    `note` is the run's description in Markdown. `files` maps artifact paths to contents, `pictures` maps (key, step)
    to an image that the UI shows with a slider through the steps.
    """
    client = store.client
    tags = {
        KIND_TAG: "summary",
        SWEEP_TAG: sweep,
        "mlflow.source.name": "nlt",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": note[:LONGEST_TAG],
        "mlflow.loggedImages": "True",  # makes the UI look for images by step
        "nlt.version": version("nlt"),
        "nlt.git_commit": git_commit(),
    }
    with store.starting():  # two launches of one sweep may end at the same time
        runs = client.search_runs([experiment_id], f"tags.`{KIND_TAG}` = 'summary'", max_results=1000)
        # Compared here, since a name with a quotation mark in it would break a filter.
        found = [run.info.run_id for run in runs if run.data.tags.get(SWEEP_TAG) == sweep]
        run_id = found[0] if found else client.create_run(experiment_id, run_name="summary", tags=tags).info.run_id
    for key, value in tags.items() if found else ():
        client.set_tag(run_id, key, value)
    contents = dict(files)
    for (key, step), picture in pictures.items():
        contents |= stepped_image(run_id, key, step, picture, LEGIBLE)
    log_contents(client, run_id, contents)
    client.set_terminated(run_id, "FINISHED", end_time=int(time.time() * 1000))
    return str(run_id)
