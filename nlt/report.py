"""Tables out of MLflow: methods against noise, mean and standard deviation over seeds."""

from collections import defaultdict
from dataclasses import dataclass
from statistics import mean, stdev

from mlflow.entities import Run as MlflowRun
from rich.table import Table

from nlt.settings import BadInput
from nlt.tracking import Store, shown

PAGE = 1000  # runs asked for at a time
ACCURACY, PRECISION = "final/test_accuracy_last", "final/noise_precision"


@dataclass(frozen=True)
class Cell:
    """The finished runs of one spec, one per seed."""

    spec_name: str
    sha256: str
    method: str
    noise: str
    values: dict[str, list[float]]
    """Metric -> one number per seed."""


def cells(store: Store, experiment: str | None) -> dict[str, list[Cell]]:
    """Group the finished runs of one MLflow experiment, or of all, by spec.

    Of several runs with the same spec and seed the latest counts: they are repetitions, not further samples.

    Returns:
        experiment name -> cells.

    Raises:
        BadInput: there is no such experiment, or no finished run.
    """
    names = {e.experiment_id: e.name for e in store.client.search_experiments()}
    if experiment is not None:
        names = {key: name for key, name in names.items() if name == experiment}
        if not names:
            raise BadInput(
                f"there is no MLflow experiment {experiment!r} in {shown(store.uri)}: "
                "run `nlt compare` without a name to see all."
            )
    result: dict[str, list[Cell]] = {}
    for key, name in names.items():
        by_spec: dict[str, dict[str, MlflowRun]] = defaultdict(dict)
        for run in _runs(store, key):
            by_spec[run.data.tags["nlt.spec_sha256"]].setdefault(run.data.tags["nlt.seed"], run)
        if by_spec:
            result[name] = [_cell(list(runs.values())) for runs in by_spec.values()]
    if not result:
        raise BadInput(
            f"there is no finished run in {shown(store.uri)}: launch one, e.g. "
            "nlt launch experiments/quickstart/*.json."
        )
    return result


def _runs(store: Store, experiment_id: str) -> list[MlflowRun]:
    """Return the finished runs of nlt, the latest first."""
    found: list[MlflowRun] = []
    token = None
    while True:
        page = store.client.search_runs(
            [experiment_id],
            filter_string="attributes.status = 'FINISHED' and tags.`nlt.version` LIKE '%'",
            order_by=["attributes.start_time DESC"],
            max_results=PAGE,
            page_token=token,
        )
        found += page
        token = page.token
        if not token:
            return found


def _cell(runs: list[MlflowRun]) -> Cell:
    data = runs[0].data
    values = {m: [r.data.metrics[m] for r in runs if m in r.data.metrics] for m in (ACCURACY, PRECISION)}
    method = f"{data.params['method']} {data.params['loss']}"
    return Cell(runs[0].info.run_name, data.tags["nlt.spec_sha256"], method, data.tags["nlt.noise"], values)


def table(title: str, group: list[Cell]) -> Table:
    """Lay out one experiment: a row per method, and per noise the last-epoch test accuracy and the noise precision.

    Specs that would fall into the same place (the same method and loss with other settings) get rows of their own,
    named by their runs, and where these are called alike by the beginning of the spec's hash.
    """
    noises = sorted({cell.noise for cell in group})
    taken: dict[tuple[str, str], int] = defaultdict(int)
    for cell in group:
        taken[cell.method, cell.noise] += 1
    rows: dict[str, dict[str, Cell]] = defaultdict(dict)
    for cell in sorted(group, key=lambda c: (c.method.split()[0] != "standard", c.method, c.spec_name)):
        label = cell.method if taken[cell.method, cell.noise] == 1 else f"{cell.method} [{cell.spec_name}]"
        if cell.noise in rows[label]:
            label = f"{cell.method} [{cell.spec_name} {cell.sha256[:6]}]"
        rows[label][cell.noise] = cell
    result = Table(title=title, title_justify="left", caption_justify="left")
    result.caption = "last epoch, %; mean ± standard deviation over seeds (number of seeds)"
    result.add_column("method")
    for noise in noises:
        result.add_column(f"{noise}\ntest accuracy", justify="right")
        result.add_column(f"{noise}\nnoise precision", justify="right")
    for label, row in rows.items():
        values = [_show(row[n].values[m]) if n in row else "" for n in noises for m in (ACCURACY, PRECISION)]
        result.add_row(label, *values)
    return result


def _show(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread} ({len(values)})"
