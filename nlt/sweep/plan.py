"""What a launch has to do: a sweep may be interrupted and repeated, what is finished is not run again."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from nlt.events import Finished
from nlt.launcher import Unfinished, unfinished_runs, was_deleted
from nlt.reading import check
from nlt.settings import BadInput, brief
from nlt.spec import Experiment
from nlt.sweep.job import Job
from nlt.tracking import (
    SWEEP_TAG,
    Store,
    data_digest,
    finished_runs,
    forget_prefixes,
    in_progress,
    refused,
    shown,
    sync,
)

Key = tuple[str, str, int]
"""What makes two runs the same one: MLflow experiment, hash of the spec, seed."""


@dataclass(frozen=True)
class Plan:
    """What a launch has to do."""

    sweep: str
    jobs: list[Job]
    finished: list[Finished]
    """What an earlier launch has done of it."""
    prefixes: frozenset[str]
    """Those that several of its runs have: left for one another, and to be forgotten when all are over."""


def plan(
    store: Store,
    specs: list[Experiment],
    seeds: tuple[int, ...],
    sweep: str | None,
    rerun: bool,
    warn: Callable[[str], None],
    data_root: str | Path = "data",
) -> Plan:
    """Find out which of specs x seeds are finished, which go on, and which begin, and tag the former two.

    A finished run is compared with the user's own data, and files of weights, as they are now: if it was trained on
    others, it runs anew.

    Args:
        store: where to look.
        specs: one or more.
        seeds: one or more.
        sweep: the sweep's name; by default one that the same specs and seeds always get.
        rerun: begin all of them, whatever is there.
        warn: told of what is left out, and of data that have changed.
        data_root: folder of downloaded data sets and caches.

    Raises:
        BadInput: the store cannot be read.
    """
    wanted: dict[Key, Experiment] = {}
    for spec in specs:
        for seed in seeds:
            if wanted.setdefault(key_of(spec, seed), spec) is not spec:
                warn(f"{spec.name}, seed {seed}, is the same as {wanted[key_of(spec, seed)].name}: it runs once.")
    sweep = sweep or _name(wanted)
    found = [spec.prefix(seed) for (_, _, seed), spec in wanted.items()]
    prefixes = Counter(prefix[1] for prefix in found if prefix is not None)
    shared = frozenset(prefix for prefix, runs in prefixes.items() if runs > 1)
    if rerun:
        forget_prefixes(store.runs, prefixes)
        return Plan(sweep, [Job(spec, seed) for (_, _, seed), spec in wanted.items()], [], shared)
    for sentence in sync(store).complaints:  # a finished run that MLflow does not know of would run again
        warn(sentence)
    try:
        finished = _finished(store, wanted)
        for key in _on_other_weights(finished, wanted, warn):
            del finished[key]
        for key in _trained_on_other_data(finished, wanted, Path(os.path.expanduser(data_root)), warn):
            del finished[key]
        unfinished = _unfinished(store, wanted, warn)
        _tell_what_others_train(store, wanted.keys() - finished.keys(), warn)
        jobs = [Job(spec, key[2], unfinished.get(key)) for key, spec in wanted.items() if key not in finished]
        for run in finished.values():
            _adopt(store, run.info.run_id, run.data.tags.get(SWEEP_TAG, ""), sweep)
        for job in jobs:
            if job.unfinished:
                run_id = job.unfinished.run_id
                _adopt(store, run_id, store.client.get_run(run_id).data.tags.get(SWEEP_TAG, ""), sweep)
    except MlflowException as error:
        cannot = BadInput(f"the MLflow store {shown(store.uri)} cannot be read ({type(error).__name__}).")
        raise (refused(store.uri, error) or cannot) from None
    return Plan(sweep, jobs, [_outcome(run) for run in finished.values()], shared)


def finished_before(store: Store, job: Job, digest: str | None = None) -> Finished | None:
    """Return the latest finished run of a job's spec and seed; with `digest` None if that one had other data."""
    key = key_of(job.spec, job.seed)
    run = _finished(store, {key: job.spec}).get(key)
    return None if run is None or (digest and data_digest(run) not in (None, digest)) else _outcome(run)


def _outcome(run: MlflowRun) -> Finished:
    return Finished(run.info.run_name, int(run.data.tags["nlt.seed"]), run.info.run_id, dict(run.data.metrics))


def key_of(spec: Experiment, seed: int) -> Key:
    """Return what makes a run of this spec and seed the same as another."""
    return spec.experiment or spec.data.name, spec.sha256(), seed


def _name(wanted: dict[Key, Experiment]) -> str:
    names = list(dict.fromkeys(spec.name for spec in wanted.values()))
    text = "+".join(names)
    if len(text) > 40:
        text = names[0][:40] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    return f"{text} {hashlib.sha256(repr(sorted(wanted)).encode()).hexdigest()[:6]}"


def _finished(store: Store, wanted: dict[Key, Experiment]) -> dict[Key, MlflowRun]:
    """Return the latest finished run of each that has one."""
    found: dict[Key, MlflowRun] = {}
    ids: dict[str, str | None] = {}
    for name, sha256 in dict.fromkeys((name, sha256) for name, sha256, _ in wanted):
        if name not in ids:
            experiment = store.client.get_experiment_by_name(name)
            ids[name] = None if experiment is None else experiment.experiment_id
        if (experiment_id := ids[name]) is None:
            continue
        for run in finished_runs(store, experiment_id, sha256):
            key = (name, sha256, int(run.data.tags["nlt.seed"]))
            if key in wanted:
                found.setdefault(key, run)
    return found


def _unfinished(store: Store, wanted: dict[Key, Experiment], warn: Callable[[str], None]) -> dict[Key, Unfinished]:
    """Return the interrupted run of each that has one; those that were deleted in MLflow are told and left out."""
    found = {}
    for run in unfinished_runs(store, warn):
        if (key := key_of(run.spec, run.seed)) not in wanted:
            continue
        if not was_deleted(store, run.run_id):
            found[key] = run
        else:
            warn(
                f"run {run.run_id} ({run.spec.name}, seed {run.seed}) was interrupted, and then deleted in MLflow: it "
                f"is left alone; delete {run.path}, too, or restore it there and it can go on."
            )
    return found


def _tell_what_others_train(store: Store, to_do: Set[Key], warn: Callable[[str], None]) -> None:
    for facts in in_progress(store.runs):
        with suppress(BadInput, KeyError):  # of another version of nlt
            spec, seed = check(facts["spec"], "run.json"), facts["seed"]
            if facts["store"] == store.name and key_of(spec, seed) in to_do:
                warn(f"{spec.name}, seed {seed}, is being trained by another process, and here once more.")


def _trained_on_other_data(
    finished: dict[Key, MlflowRun], wanted: dict[Key, Experiment], data_root: Path, warn: Callable[[str], None]
) -> list[Key]:
    """Return which finished runs are not of the data that their spec names now; say so, a line for each data set.

    Only data and noise of a `path` can be others under the same name: digits come with scikit-learn, and of CIFAR's
    files torchvision checks the MD5 sums. What cannot be loaded now cannot be compared: its runs stay finished.
    """
    by_data = defaultdict[str, list[Key]](list)
    for key, spec in wanted.items():
        files = [path for part in (spec.data, spec.noise) if (path := getattr(part, "path", None)) is not None]
        if key in finished and files and data_digest(finished[key]) is not None:
            by_data[spec.data_key()].append(key)
    outdated = list[Key]()
    for keys in by_data.values():
        spec = wanted[keys[0]]
        try:
            now = spec.load_data(data_root).digest  # not kept: a launch may name many data sets, and each is large
        except BadInput as error:
            warn(
                f"{len(keys)} finished runs stay so, though their data cannot be compared with those there now: {error}"
            )
            continue
        if changed := [key for key in keys if data_digest(finished[key]) != now]:
            outdated += changed
            which, anew = _in_words(changed, finished)
            parts = {"data.path": spec.data, "noise.path": spec.noise}
            named = [
                f"{what} {brief(path, 200)}" for what, part in parts.items() if (path := getattr(part, "path", None))
            ]
            warn(
                f"{' or '.join(named)} is no longer what {which} trained on "
                f"(digest {data_digest(finished[changed[0]])}, now {now}): {anew}."
            )
    return outdated


def _on_other_weights(
    finished: dict[Key, MlflowRun], wanted: dict[Key, Experiment], warn: Callable[[str], None]
) -> list[Key]:
    """Return which finished runs rest on another file of weights than their spec names now; say so, a line a spec.

    Where the file cannot be read they stay finished.
    """
    by_spec = defaultdict[str, list[Key]](list)
    for key in finished:
        if wanted[key].weight_files():
            by_spec[key[1]].append(key)
    outdated = list[Key]()
    for keys in by_spec.values():
        try:
            now = wanted[keys[0]].outside_weights()
        except BadInput as error:
            warn(f"{len(keys)} finished runs stay so, though their weights cannot be compared with those now: {error}.")
            continue
        then = {key: finished[key].data.tags.get("nlt.outside_weights", "") for key in keys}
        if changed := [key for key in keys if then[key] != now]:
            outdated += changed
            which, anew = _in_words(changed, finished)
            old, new = brief(then[changed[0]], 200), brief(now, 200)
            warn(f"{which} used other weights ({old}, now {new}): {anew}.")
    return outdated


def _in_words(changed: list[Key], finished: dict[Key, MlflowRun]) -> tuple[str, str]:
    """Return ("the finished run ID (NAME, seed 0) and 2 more", "they run anew")."""
    run = finished[changed[0]]
    which = f"the finished run {run.info.run_id} ({run.info.run_name}, seed {changed[0][2]})"
    return (f"{which} and {len(changed) - 1} more", "they run anew") if len(changed) > 1 else (which, "it runs anew")


def _adopt(store: Store, run_id: str, sweeps: str, sweep: str) -> None:
    """Add a sweep to those that a run belongs to."""
    if sweep not in sweeps.split(","):
        store.client.set_tag(run_id, SWEEP_TAG, f"{sweeps},{sweep}" if sweeps else sweep)
