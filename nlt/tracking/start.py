"""A run's beginning: what it is known by, its place in MLflow and its folder here."""

import base64
import contextlib
import csv
import io
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from typing import Any

import torch
from mlflow.exceptions import MlflowException

from nlt.provenance import git_commit
from nlt.run import Prepared
from nlt.settings import BadInput, Settings
from nlt.spec import Experiment
from nlt.tracking.journal import Record, RunFolder, now
from nlt.tracking.shared import Prefix
from nlt.tracking.store import FOLDER_TAG, SWEEP_TAG, Store, experiment_id, refused, shown

LONGEST_PARAM = 500  # characters, of a noise transition matrix; MLflow refuses 6,001, and spec.json has it all
AWAY_S, AWAY_PAUSE_S = 600.0, 15.0  # how long a sweep waits for a server before its next run


def params(spec: Experiment, prepared: Prepared) -> dict[str, str]:
    """Return what a person compares runs by; the whole spec is in spec.json.

    The settings of noise, model and method stand under their own names, those of the noise as noise_NAME; a method's
    stages are summed up, one value each.
    """
    stages = list(spec.stages().values())
    values: dict[str, Any] = {
        "data": spec.data.name,
        "train_images": len(prepared.train),
        **({"imbalance": f"{spec.data.imbalance:g}"} if spec.data.imbalance > 1 else {}),
        "noise": spec.noise.name,
        **{f"noise_{key}": value for key, value in _own(spec.noise)},
        "model": spec.model.name,
        **dict(_own(spec.model)),
        "method": spec.method.name,
        "loss": str(stages[-1].loss),
        "epochs": "+".join(str(stage.epochs) for stage in stages),
        "batch_size": "/".join(str(stage.batch_size) for stage in stages),
        "lr": "/".join(f"{stage.schedule.at(1, stage.epochs):g}" for stage in stages),
        **({"optimizer": spec.optimizer.name} if spec.optimizer.name != "sgd" else {}),
        "weight_decay": spec.optimizer.weight_decay,
        **{key: value for key, value in _own(spec.method) if key not in spec.stages()},
        "seed": prepared.seed,
        "precision": prepared.precision,
    }
    return {name: str(value)[:LONGEST_PARAM] for name, value in values.items()}


def _own(settings: Settings) -> Iterator[tuple[str, Any]]:
    """Yield the settings by name; one that has settings of its own in words."""
    for key in settings.deciding():
        if key != "name":
            yield key, getattr(settings, key)


def start_run(
    store: Store,
    spec: Experiment,
    prepared: Prepared,
    sweep: str,
    launched: dict[str, Any],
    warn: Callable[[str], None] | None = None,
    prefix: Prefix | None = None,
) -> RunFolder:
    """Make the run in MLflow and its folder here.

    Args:
        store: where.
        spec: what runs.
        prepared: the same, resolved.
        sweep: the tag `nlt.sweep`.
        launched: how it was launched; `run.json` keeps it for a resumption.
        warn: if given, a server that is away is waited for, `AWAY_S` at most, and this is told.
        prefix: what it begins with, if another run has trained its first stages.

    Raises:
        BadInput: MLflow does not take the run, or the folder cannot be written: then the run is marked FAILED.
    """
    tags, start = _tags(store, spec, prepared, sweep, prefix), _start_record(spec, prepared)
    with store.starting():
        experiment, run_id = _create_run(store, spec, tags, warn)
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


def _tags(store: Store, spec: Experiment, prepared: Prepared, sweep: str, prefix: Prefix | None) -> dict[str, str]:
    return {
        "mlflow.source.name": "nlt",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": spec.about,
        "mlflow.loggedImages": "True",  # makes the UI look for images by step
        "nlt.method": spec.method.name,
        "nlt.dataset": spec.data.name,
        "nlt.noise": str(spec.noise),
        "nlt.model": str(spec.model),
        "nlt.seed": str(prepared.seed),
        SWEEP_TAG: sweep,
        "nlt.profile": spec.profile,
        "nlt.spec_sha256": spec.sha256(),
        "nlt.git_commit": git_commit(),
        "nlt.device": str(prepared.device),
        "nlt.compile": "on" if prepared.compiled else "off",
        "nlt.threads": str(torch.get_num_threads()),  # on it depend a CPU's last digits
        "nlt.version": version("nlt"),
        **({} if spec.published is None else {"nlt.published": spec.published.model_dump_json(exclude_none=True)}),
        **({"nlt.outside_weights": outside} if (outside := spec.outside_weights()) else {}),
        **({} if prefix is None else {"nlt.first_stages": prefix.run_id}),
        **({} if store.artifacts is None else {FOLDER_TAG: str(store.runs)}),
    }


def _start_record(spec: Experiment, prepared: Prepared) -> Record:
    """Return the journal's first record: params, the data set's entry, and the files that are known already."""
    matrices: dict[str, Any] = {"classes": prepared.dataset.classes}
    if prepared.T_KK is not None:
        matrices["asked"] = prepared.T_KK.tolist()
    if prepared.empirical_T_KK is not None:
        matrices["drawn"] = prepared.empirical_T_KK.tolist()
    wrong_N, dataset = prepared.train.wrong_N, prepared.dataset
    data = {"spec.json": spec.resolved() | {"seed": prepared.seed}, "transition_matrix.json": matrices}
    texts = {name: json.dumps(value, indent=1) + "\n" for name, value in data.items()}
    if dataset.left_out:
        texts["left_out.csv"] = _table(["file", "reason"], dataset.left_out)
    # MLflow keeps one entry for each name and digest, the first one: only what the digest covers may stand in it.
    sizes = {"train": len(dataset.train), "test": len(prepared.test), "classes": dataset.classes}
    source = spec.data.model_dump(mode="json", exclude={"val_fraction"})
    return {
        "kind": "start",
        "time": now(),
        "params": params(spec, prepared),
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


def _create_run(
    store: Store, spec: Experiment, tags: dict[str, str], warn: Callable[[str], None] | None
) -> tuple[str, str]:
    """Make the run in MLflow and return its experiment's id and its own; with `warn` wait for a server that is away."""
    deadline = time.monotonic() + (0.0 if warn is None else AWAY_S)
    name = spec.experiment or spec.data.name
    while True:
        try:
            experiment = experiment_id(store, name)
            return experiment, _create_once(store, experiment, spec.name, tags)
        except MlflowException as error:
            if refusal := refused(store.uri, error, name):
                raise refusal from None
            sentence = f"the MLflow store {shown(store.uri)} does not take a new run ({type(error).__name__})"
            if warn is None or store.artifacts is not None or time.monotonic() > deadline:
                raise BadInput(f"{sentence}: look at its log, or at the disk it is on.") from None
            warn(f"{sentence}; trying again.")
            time.sleep(AWAY_PAUSE_S)


def _create_once(store: Store, experiment: str, name: str, tags: dict[str, str]) -> str:
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


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table as CSV."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([head, *rows])
    return text.getvalue()
