"""Runs out of MLflow, grouped into cells: one spec, one number per seed."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from mlflow.entities import Run as MlflowRun

from nlt.report.statistics import Difference, Summary, paired_difference, ranks, summary
from nlt.settings import BadInput, brief
from nlt.spec import Method
from nlt.tracking import SWEEP_TAG, Store, data_digest, finished_runs, shown


@dataclass(frozen=True)
class Metric:
    """A column of the tables."""

    key: str
    """Its name in MLflow."""
    column: str
    """Its name in CSV and JSON."""
    heading: str
    """Its name for people."""
    seconds: bool = False
    """Whether it is a time; all others are fractions, shown in per cent."""


ACCURACY = Metric("final/test_accuracy_last", "test_accuracy_last", "last epoch")
PRECISION = Metric("final/noise_precision", "noise_precision", "noise precision")
METRICS = (
    ACCURACY,
    Metric("final/test_accuracy_mean10", "test_accuracy_mean10", "mean of last 10"),
    Metric("final/test_accuracy_at_best_val", "test_accuracy_at_best_val", "at best val."),
    PRECISION,
    Metric("final/noise_recall", "noise_recall", "noise recall"),
    Metric("final/noise_remaining", "noise_remaining", "remaining noise"),
    Metric("final/noise_auc", "noise_auc", "AUROC of scores"),
    Metric("final/noise_average_precision", "noise_average_precision", "average precision"),
    Metric("final/train_seconds", "train_seconds", "time", seconds=True),
)


IMBALANCE = ", imbalance "  # behind the noise of long-tailed data
OF_A_FILE = ("matrix", "human")  # noises that are told by a file's or key's name, not by a rate
DRAWN_BY = ("noise_seed", "noise_draw", "noise_flips", "noise_rows")  # params that decide which labels are wrong
RANKED = 3  # methods and noises, from which on places are told
MANY_NOISES = 4
KINDS = {kind.model_fields["name"].default: kind for kind in get_args(get_args(Method)[0])}
"""Methods by name."""
MOST_TOLD = 3
"""Params in a label; cells that differ in more are told by the names of their runs."""


@dataclass(frozen=True)
class Published:
    """What a paper says of the same cell; fractions."""

    source: str
    n: int | None
    """How many runs a number is the mean of, where that is known."""
    test_accuracy: float | None
    noise_precision: float | None

    def of(self, metric: Metric) -> float | None:
        """Return the published number of a metric, if there is one."""
        return {ACCURACY.key: self.test_accuracy, PRECISION.key: self.noise_precision}.get(metric.key)


@dataclass(frozen=True)
class Cell:
    """The finished runs of one spec on the same data, one per seed."""

    label: str
    """Method and what tells it from the others, for people; no other cell of the same noise has it."""
    spec_name: str
    sha256: str
    method: str
    loss: str
    noise: str
    plain: bool
    """Whether none of the method's `told_if_set` is set: cross-entropy with mixup is no baseline."""
    published: Published | None
    outside: str
    """The weights of outside origin that it rests on, "" for none."""
    learned: tuple[str | None, ...]
    """Digest of the data and what the wrong labels were drawn by: cells that differ in it learned other labels."""
    runs: dict[int, MlflowRun]
    """Seed -> run, by seed."""

    def values(self, metric: Metric) -> dict[int, float]:
        """Return seed -> value, without the runs that have none."""
        return {seed: r.data.metrics[metric.key] for seed, r in self.runs.items() if metric.key in r.data.metrics}

    def summary(self, metric: Metric) -> Summary | None:
        """Return the metric's mean and deviation over seeds, or None if no run has it."""
        return summary(list(self.values(metric).values()))


@dataclass(frozen=True)
class Comparison:
    """The cells of one MLflow experiment, each to be read beside the baseline of its noise."""

    experiment: str
    experiment_id: str
    cells: list[Cell]
    """Sorted: the methods in the same order at every noise."""
    baselines: dict[str, Cell]
    """Noise -> the cell that the others are compared with, where there is one."""

    @property
    def methods(self) -> list[str]:
        """The labels, each once, in order."""
        return list(dict.fromkeys(cell.label for cell in self.cells))

    @property
    def noises(self) -> list[str]:
        """The noises, each once, sorted."""
        return sorted({cell.noise for cell in self.cells})

    @property
    def many_noises(self) -> bool:
        """Whether there are too many to show all of each: accuracy alone comes first, figures are folded."""
        return len(self.noises) >= MANY_NOISES

    def at(self, noise: str) -> list[Cell]:
        """Return the cells of one noise."""
        return [cell for cell in self.cells if cell.noise == noise]

    def cell(self, label: str, noise: str) -> Cell | None:
        """Return one cell, if it was run."""
        return next((cell for cell in self.at(noise) if cell.label == label), None)

    def outside(self, label: str) -> str:
        """Return the weights of outside origin that a method rests on, "" for none."""
        return next((cell.outside for cell in self.cells if cell.label == label and cell.outside), "")

    @property
    def mixed(self) -> list[str]:
        """The noises whose cells learned other data or other wrong labels than one another."""
        return [noise for noise in self.noises if _is_mixed(self.at(noise))]

    def ranks(self) -> dict[str, dict[str, float]]:
        """Return label -> noise -> place by mean last-epoch accuracy, 1 for the highest.

        Methods from these data alone and those on outside weights have places among their own. Empty for fewer than
        three methods or noises, or where no noise counts: one counts where two or more methods were run, all of them
        on the same labels.
        """
        if len(self.methods) < RANKED or len(self.noises) < RANKED:
            return {}
        found: dict[str, dict[str, float]] = {label: {} for label in self.methods}
        for noise in self.noises:
            for means in self.rivals(noise):
                for label, rank in ranks(means).items() if len(means) > 1 else ():
                    found[label][noise] = rank
        return found if any(found.values()) else {}

    def rivals(self, noise: str) -> list[dict[str, float]]:
        """Return label -> mean last-epoch accuracy at a noise, of methods from these data alone and of the others.

        Nothing where not all of them learned the same labels.
        """
        found: list[dict[str, float]] = [{}, {}]
        if _is_mixed(at := self.at(noise)):
            return found
        for cell in at:
            if of := cell.summary(ACCURACY):
                found[cell.outside != ""][cell.label] = of.mean
        return found

    def metrics(self) -> list[Metric]:
        """Return the metrics that any run has."""
        return [metric for metric in METRICS if any(cell.values(metric) for cell in self.cells)]

    def sources(self) -> list[str]:
        """Return where the published numbers come from."""
        return sorted({cell.published.source for cell in self.cells if cell.published})

    def difference(self, cell: Cell) -> Difference | None:
        """Return the cell's last-epoch accuracy less its baseline's; None for the baseline itself, and where it learned
        other labels."""
        baseline = self.baselines.get(cell.noise)
        if baseline is None or baseline is cell or baseline.learned != cell.learned:
            return None
        return paired_difference(cell.values(ACCURACY), baseline.values(ACCURACY))


def _is_mixed(cells: list[Cell]) -> bool:
    return len({cell.learned for cell in cells}) > 1


def compare(
    store: Store,
    experiment: str | None = None,
    *,
    sweep: str | None = None,
    tags: Mapping[str, str] | None = None,
    baseline: str | None = None,
) -> list[Comparison]:
    """Group the finished runs by MLflow experiment and spec.

    Of several runs with the same spec and seed the latest counts: they are repetitions, not further samples. Where the
    data of a spec have changed under its name, only runs on the latest ones count.

    Args:
        store: where the runs are.
        experiment: only this one.
        sweep: only runs of this sweep.
        tags: only runs that carry all of these.
        baseline: the run name or the method's label, in any case, of the cells that others are compared with; by
            default the standard method with cross-entropy, where there is exactly one such cell at a noise.

    Raises:
        BadInput: there is no such experiment, sweep, tag or baseline, or no finished run.
    """
    everything = {e.experiment_id: e.name for e in store.client.search_experiments()}
    names = everything
    if experiment is not None:
        names = {key: name for key, name in everything.items() if name == experiment}
        if not names:
            raise BadInput(
                f"there is no MLflow experiment {brief(experiment)} in {shown(store.uri)}: "
                "run `nlt compare` without a name to see all."
            )
    found = {key: finished_runs(store, key) for key in names}
    where = f"the experiment {brief(experiment)}" if experiment else shown(store.uri)
    if not any(found.values()):
        others = [name for key, name in everything.items() if key not in names and finished_runs(store, key)]
        mend = "launch one, e.g. nlt launch experiments/quickstart/*.json."
        if others:
            mend = f"compare another, e.g. {', '.join(map(brief, others[:3]))}."
        raise BadInput(f"there is no finished run of nlt launch in {where}: {mend}")
    if sweep is not None:
        known = sorted({name for runs in found.values() for run in runs for name in sweeps_of(run)})
        found = {key: [run for run in runs if sweep in sweeps_of(run)] for key, runs in found.items()}
        if not any(found.values()):
            raise BadInput(
                f"--sweep {brief(sweep)}: no finished run in {where} is of it; the last ones are "
                f"{', '.join(map(brief, known[-3:]))}."
            )
    for tag, value in (tags or {}).items():
        known = sorted({run.data.tags[tag] for runs in found.values() for run in runs if tag in run.data.tags})
        found = {key: [run for run in runs if run.data.tags.get(tag) == value] for key, runs in found.items()}
        if not any(found.values()):
            there = f"its values are {', '.join(brief(v) for v in known[:5])}" if known else "none has such a tag"
            raise BadInput(f"--tag {brief(tag)}: no finished run in {where} has it as {brief(value)}; {there}.")
    result = []
    for key, runs in found.items():
        if runs:
            grouped = cells(runs)
            result.append(Comparison(names[key], key, grouped, _baselines(grouped, baseline)))
    if baseline is not None and not any(comparison.baselines for comparison in result):
        labels = list(dict.fromkeys(label for comparison in result for label in comparison.methods))
        raise BadInput(f"--baseline {brief(baseline)}: there is no such run or method; use one of {labels}.")
    return result


def noise_title(noise: str) -> str:
    """Return a noise as people read it: "pair flip noise, 45 %" for the tag "pair_flip 0.45"."""
    noise, _, tail = noise.partition(IMBALANCE)
    kind, _, which = noise.partition(" ")
    title = "no noise added" if kind == "none" else f"{kind.replace('_', ' ')} noise"
    if which:
        title += f" ({which})" if kind in OF_A_FILE else f", {100 * float(which):.3g} %"
    return title + (f", imbalance {tail}" if tail else "")


def noise_of(run: MlflowRun) -> str:
    """Return the tag of a run's noise and, where its data are long-tailed, how much so: what rows are told apart by."""
    tail = run.data.params.get("imbalance")
    return run.data.tags["nlt.noise"] + (f"{IMBALANCE}{tail}" if tail else "")


def sweeps_of(run: MlflowRun) -> list[str]:
    """Return the sweeps that a run belongs to: a later launch adopts what an earlier one has finished."""
    return [name for name in run.data.tags.get(SWEEP_TAG, "").split(",") if name]


def cells(runs: list[MlflowRun]) -> list[Cell]:
    """Group one experiment's runs, the latest first, by spec and seed.

    Specs that would share label and noise get their run's name into the label, and where these are alike too the
    beginning of the spec's hash.
    """
    by_spec: dict[str, dict[int, MlflowRun]] = defaultdict(dict)
    data_of: dict[str, str] = {}
    weights_of: dict[str, str] = {}
    for run in runs:
        digest, sha = data_digest(run), run.data.tags["nlt.spec_sha256"]
        if digest and data_of.setdefault(sha, digest) != digest:
            continue
        outside = run.data.tags.get("nlt.outside_weights", "")
        if weights_of.setdefault(sha, outside) != outside:
            continue
        by_spec[sha].setdefault(int(run.data.tags["nlt.seed"]), run)
    groups = [dict(sorted(seeds.items())) for seeds in by_spec.values()]
    firsts = [next(iter(group.values())) for group in groups]
    noises = [noise_of(run) for run in firsts]
    names = [str(run.info.run_name) for run in firsts]
    labels = _labels(firsts, noises)
    taken = Counter(zip(labels, noises, strict=True))
    named = Counter(zip(labels, noises, names, strict=True))
    result = []
    for group, run, label, noise, name in zip(groups, firsts, labels, noises, names, strict=True):
        sha = run.data.tags["nlt.spec_sha256"]
        if named[label, noise, name] > 1:
            label = f"{label} [{name} {sha[:6]}]"
        elif taken[label, noise] > 1:
            label = f"{label} [{name}]"
        method, loss = run.data.params["method"], run.data.params["loss"]
        latest = max(group.values(), key=lambda r: r.info.start_time)
        unset, outside = not _set_options(run), latest.data.tags.get("nlt.outside_weights", "")
        learned = (data_of.get(sha), *(latest.data.params.get(key) for key in DRAWN_BY))
        result.append(Cell(label, name, sha, method, loss, noise, unset, _published(latest), outside, learned, group))
    # The standard method and plain cross-entropy first, as papers have it, what rests on outside weights last.
    return sorted(
        result,
        key=lambda c: (
            c.outside != "",
            c.method != "standard",
            c.method,
            c.loss != "CE",
            c.loss,
            not c.plain,
            c.spec_name,
            c.noise,
        ),
    )


def _labels(runs: list[MlflowRun], noises: list[str]) -> list[str]:
    """Name each run by its method and the params in which runs of that method differ at one and the same noise.

    A method whose settings class names params in `told_by` is always told by these: the standard method is its loss.
    Those of `told_if_set` that a run has set stand in its label in the words given there, and only runs that have set
    the same ones are told by what else they differ in.
    """
    options, told_params = [tuple(_set_options(run)) for run in runs], [_params(run) for run in runs]
    beside: dict[tuple[str, tuple[str, ...], str], list[dict[str, str]]] = defaultdict(list)
    for params, words, noise in zip(told_params, options, noises, strict=True):
        beside[params["method"], words, noise].append(params)
    differing: dict[tuple[str, tuple[str, ...]], dict[str, None]] = defaultdict(dict)  # -> params, in their order
    for (method, words, _), several in beside.items():
        keys = dict.fromkeys(key for params in several for key in params if key != "seed")
        differing[method, words] |= {key: None for key in keys if len({params.get(key) for params in several}) > 1}
    labels = []
    for params, words in zip(told_params, options, strict=True):
        kind, method = KINDS.get(params["method"]), params["method"]  # None: of another version of nlt
        always = dict.fromkeys(getattr(kind, "told_by", ()))
        beyond = differing[method, words]
        keys = always | (beyond if len(beyond) <= MOST_TOLD else {})
        told = [params.get(key, "none") if key == "loss" else f"{key} {params.get(key, 'none')}" for key in keys]
        labels.append(", ".join([getattr(kind, "title", method), *told, *words]))
    return labels


def _params(run: MlflowRun) -> dict[str, str]:
    """Return a run's params for labels: a `forget_rate` that is the rate of wrong labels is called that.

    So a method that is told the rate has one label at all noises.
    """
    params = dict(run.data.params)
    told, drawn = params.get("forget_rate", ""), run.data.metrics.get("noise/drawn_rate")
    if told == params.get("noise_rate") or (drawn is not None and told == str(round(drawn, 4))):
        params["forget_rate"] = "noise rate"
    return params


def _set_options(run: MlflowRun) -> list[str]:
    """Return the options of its method that a run has set, in words."""
    params = run.data.params
    words: Mapping[str, str] = getattr(KINDS.get(params["method"]), "told_if_set", {})
    return [f"{word} {float(params[key]):g}" for key, word in words.items() if key in params]


def _published(run: MlflowRun) -> Published | None:
    try:
        given = json.loads(run.data.tags["nlt.published"])
        n, *numbers = (given.get(key) for key in ("n", "test_accuracy", "noise_precision"))
        accuracy, precision = (None if number is None else float(number) for number in numbers)
        return Published(str(given["source"]), None if n is None else int(n), accuracy, precision)
    except (KeyError, ValueError, TypeError, AttributeError):  # tags can be edited in the UI
        return None


def _baselines(group: list[Cell], wanted: str | None) -> dict[str, Cell]:
    chosen: dict[str, Cell] = {}
    for noise in {cell.noise for cell in group}:
        at = [cell for cell in group if cell.noise == noise]
        if wanted is None:
            fits = [cell for cell in at if cell.method == "standard" and cell.loss == "CE" and cell.plain]
            if len(fits) == 1:
                chosen[noise] = fits[0]
            continue
        asked = wanted.casefold()
        fits = [cell for cell in at if asked in (cell.label.casefold(), cell.spec_name.casefold())]
        if len(fits) > 1:
            raise BadInput(
                f"--baseline {brief(wanted)}: {len(fits)} cells of {noise} are called so; name one of "
                f"{[cell.label for cell in fits]}."
            )
        if fits:
            chosen[noise] = fits[0]
    return chosen
