"""The ready-made comparison view of an experiment in the MLflow UI: which charts, columns and order it opens with.

MLflow keeps such a view in an experiment tag `mlflow.sharedViewState.KEY` and opens it by `viewStateShareKey=KEY`. The
format is undocumented, read from the state that MLflow 3.17's own interface writes; a version that does not know it
ignores the tag and shows its default charts.
"""

import base64
import json
import zlib
from typing import Any

KEY = "nlt"
TAG = f"mlflow.sharedViewState.{KEY}"


def link(base: str, experiment_id: str) -> str:
    """Return the address that opens an experiment on its comparison view."""
    query = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={KEY}"
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def description(experiment: str) -> str:
    """Return the description of a new experiment, Markdown; nlt never overwrites it."""
    return f"""Image classifiers trained on noisy labels by **nlt**: one run per experiment file and seed.

- **Charts**: `nlt ui` prints the link that opens this experiment on its comparison view; sliders go through the epochs.
- **Summary**: the run named `summary` of a sweep has the tables as its description, and all figures in `report.html`.
- **Numbers**: `nlt compare "{experiment}"`, with `--format html|md|csv|json` for a report, a paper or a program.
- **Metrics**: `final/test_accuracy_last` is the last epoch's, not the best one's (measured after it; before it under
  `evaluate: before`); `noise/precision` is the share of wrong labels among the removed ones, `noise/remaining` among
  the kept; fractions lie in [0, 1].
"""


def comparison_view() -> str:
    """Return the comparison view, as the value of the tag `TAG`."""
    sections = [  # uuid, title, charts in a row, their height in pixels
        ("summary", "Summary of the sweep", 2, 620),
        ("accuracy", "Accuracy", 2, 340),
        ("noise", "Wrong labels found", 2, 340),
        ("losses", "Per-sample losses, by epoch", 1, 640),
    ]
    histogram = "train/loss_histogram"
    figures = ("summary/accuracy", "summary/remaining_noise", "summary/detection", "summary/losses")
    charts = [
        *(_images("summary", key, step=1) for key in figures),
        _line("accuracy", "test/accuracy"),
        _line("accuracy", "train/accuracy"),
        _chart("BAR", "accuracy", "final/test_accuracy_last", metricKey="final/test_accuracy_last"),
        _line("accuracy", "train/loss"),
        _line("noise", "noise/precision"),
        _line("noise", "noise/remaining"),
        _chart("BAR", "noise", "final/noise_precision", metricKey="final/noise_precision"),
        _line("noise", "optim/lr"),
        _images("losses", histogram, step=20),
    ]
    columns = [
        "metrics.`final/test_accuracy_last`",
        "metrics.`final/noise_precision`",
        *(f"metrics.`final/{name}`" for name in ("noise_recall", "noise_remaining", "train_seconds")),
        *(f"params.`{name}`" for name in ("method", "loss", "noise", "noise_rate", "seed")),
        *(f"tags.`nlt.{name}`" for name in ("sweep", "profile", "device", "kind")),
        *(f"attributes.`{name}`" for name in ("Dataset", "Models", "Description")),
    ]
    # Summary runs first, then the latest: image charts take the first ten of the list, whatever they have.
    return _packed(sections, charts, columns, "tags.`nlt.kind`")


def detection_description() -> str:
    """Return the description of the experiment that collects detections, Markdown."""
    return """What **nlt detect** found in data sets: one run each time.

- **`detect/rate`** is the share of wrong labels, between `detect/rate_low` and `detect/rate_high`; `detect/flagged` the
  share of labels that are more probably wrong than right; all in [0, 1]. `report.html` among the artifacts says how to
  read them.
- **`detect/worst`**: the most suspicious images with the given and the suggested label.
"""


def detection_view() -> str:
    """Return the view of the experiment that collects detections."""
    sections = [("rate", "Wrong labels", 2, 340), ("worst", "The most suspicious images", 1, 640)]
    charts = [
        *(_chart("BAR", "rate", name, metricKey=name) for name in ("detect/rate", "detect/flagged")),
        _images("worst", "detect/worst", step=0),
    ]
    columns = [
        *(f"metrics.`detect/{name}`" for name in ("rate", "rate_low", "rate_high", "flagged", "accuracy", "seconds")),
        *(f"params.`{name}`" for name in ("images", "classes", "features", "action")),
        *(f"attributes.`{name}`" for name in ("Dataset", "Description")),
    ]
    return _packed(sections, charts, columns, "attributes.`Created`")


def _packed(sections: list[tuple[str, str, int, int]], charts: list[Any], columns: list[str], order: str) -> str:
    """Return a view as the value of `TAG`; of each section uuid, title, charts in a row, their height in pixels."""
    state = {
        "searchFilter": "",
        "orderByKey": order,
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "runsHiddenMode": "SHOWALL",
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": False,
        "isAccordionReordered": True,
        "compareRunsMode": "CHART",
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "selectedColumns": columns,
        "compareRunSections": [
            {
                "uuid": uuid,
                "name": name,
                "columns": in_a_row,
                "cardHeight": height,
                "display": True,
                "isReordered": True,
            }
            | _KEPT
            for uuid, name, in_a_row, height in sections
        ],
        "compareRunCharts": charts,
    }
    packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)
    return "deflate;" + base64.b64encode(packed).decode()


_KEPT = {"deleted": False, "isGenerated": False}


def _chart(kind: str, section: str, title: str, **more: Any) -> dict[str, Any]:
    chart = {"uuid": f"{kind}-{title}", "type": kind, "runsCountToCompare": 20, "metricSectionId": section}
    return chart | _KEPT | {"displayName": title} | more


def _images(section: str, key: str, **more: Any) -> dict[str, Any]:
    return _chart("IMAGE", section, key, imageKeys=[key], showRunParams=False, **more)


def _line(section: str, metric: str) -> dict[str, Any]:
    axes = {"xAxisScaleType": "linear", "scaleType": "linear", "xAxisKey": "step", "yAxisKey": "metric", "range": {}}
    smoothing = {
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": True,
        "useGlobalXaxisKey": True,
        "ignoreOutliers": False,
    }
    keys = {"metricKey": metric, "selectedMetricKeys": [metric], "selectedXAxisMetricKey": "", "yAxisExpressions": []}
    return _chart("LINE", section, metric, **axes, **smoothing, **keys)
