"""What is to become of every sample: kept, removed, relabelled, or left to a person; the worst first.

Legend: N samples, K classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd

from nlt.settings import BadInput

if TYPE_CHECKING:
    from nlt.data.checks import Issue
    from nlt.data.labelled import Labelled
    from nlt.detect import LabelErrors

Action = Literal["remove", "relabel", "keep"]
THRESHOLD = 0.5  # a label is flagged that is more probably wrong than right
CONFLICT = "duplicate_conflict"


def decide(
    data: "Labelled",
    errors: "LabelErrors",
    issues: Sequence["Issue"],
    action: Action = "remove",
    threshold: float = THRESHOLD,
) -> pd.DataFrame:
    """Return one row per sample and per file that could not be read, the worst first.

    The index is the sample's row in `data`, -1 for unreadable files. Columns: `path` (`id` where there are no files),
    `split` if there are splits, `sha256`, `given_label`, `suggested_label`, `p_wrong` and the scores (NaN where
    unreadable), `decision`, `reason`, and `label`: the one in the clean data set, "" where the sample is not in it.

    Flagged is p_wrong > `threshold`. `remove` takes flagged samples out. `relabel` gives them the suggested label where
    it is more probable than all others together, else takes them out. `keep` changes nothing and sends them to review.
    Of samples with the same content and different labels at most one label is right: the one that is least probably
    wrong stays if it is not flagged, the others count as flagged whatever their p_wrong, and stand first.

    Raises:
        BadInput: an unknown action, or a threshold outside [0, 1].
    """
    if action not in get_args(Action):
        raise BadInput(f"action: {action!r} is none of remove, relabel, keep: name one")
    if not 0 <= threshold <= 1:
        raise BadInput(f"threshold: {threshold} is no probability: choose one in [0, 1]")
    if len(errors.given_N) != len(data.names):
        raise ValueError(f"{len(errors.given_N)} judged labels for {len(data.names)} samples")
    classes = np.array(errors.classes, dtype=object)
    suggested_N, group_N = _conflicts(errors, issues, threshold)
    flagged_N = (errors.p_wrong_N > threshold) | ((group_N >= 0) & (suggested_N != errors.given_N))
    rows = np.arange(len(flagged_N))
    confident_N = (errors.p_true_NK[rows, suggested_N] > 0.5) | (suggested_N != errors.suggested_N)
    confident_N &= suggested_N != errors.given_N
    changed = {
        "remove": np.full(len(rows), "remove", dtype=object),
        "relabel": np.where(confident_N, "relabel", "remove").astype(object),
        "keep": np.full(len(rows), "review", dtype=object),
    }[action]
    decision_N = np.where(flagged_N, changed, "keep")
    table = pd.DataFrame({"path" if data.kind in ("folder", "list") else "id": list(data.names)}, dtype=object)
    if data.splits is not None:
        table["split"] = list(data.splits)
    table["sha256"] = [digest.hex() for digest in data.sums]
    table["given_label"] = classes[errors.given_N]
    table["suggested_label"] = classes[suggested_N]
    table["p_wrong"] = errors.p_wrong_N
    for name, score_N in errors.scores.items():
        table[name] = score_N
    table["decision"] = decision_N
    table["reason"] = _reasons(
        errors.p_wrong_N > threshold, group_N, flagged_N & (decision_N == "remove"), issues, action
    )
    table["label"] = final_labels(table, action)
    order = np.lexsort((rows, -table[errors.ranking].to_numpy(), -errors.p_wrong_N, _first(group_N)))
    return pd.concat([table.iloc[order], _unreadable(table, data)])


def numbers(table: pd.DataFrame) -> list[str]:
    """Return the columns that hold numbers: p_wrong and the scores."""
    columns = list(table.columns)
    return columns[columns.index("p_wrong") : columns.index("decision")]


def final_labels(table: pd.DataFrame, action: Action) -> list[str]:
    """Return each sample's label in the clean data set, "" where it is not in it.

    What waits for review stays as given, unless the action is to remove: nothing doubtful comes back unseen.
    """
    waiting = "" if action == "remove" else None
    return [
        {"keep": given, "relabel": suggested, "remove": ""}.get(decision, given if waiting is None else waiting)
        for given, suggested, decision in zip(
            table["given_label"], table["suggested_label"], table["decision"], strict=True
        )
    ]


def _conflicts(errors: "LabelErrors", issues: Sequence["Issue"], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(suggested_N, in a conflict the winner's label if that is trusted, group_N: number of the conflict or -1)."""
    suggested_N, group_N = errors.suggested_N.copy(), np.full(len(errors.given_N), -1)
    for number, issue in enumerate(issue for issue in issues if issue.kind == CONFLICT):
        rows = np.array(issue.rows)
        group_N[rows] = number
        winner = rows[np.argmin(errors.p_wrong_N[rows])]
        if errors.p_wrong_N[winner] <= threshold:  # else no label of the group is trusted, and all are flagged
            label = errors.given_N[winner]
            # A label that is as probably wrong as right may have another one suggested, which does not flag it.
            followers = (errors.given_N[rows] != label) | (errors.p_wrong_N[rows] <= threshold)
            suggested_N[rows[followers]] = label
    return suggested_N, group_N


def _first(group_N: np.ndarray) -> np.ndarray:
    """A sort key: conflicts by number, then everything else."""
    return np.where(group_N >= 0, group_N, len(group_N))


def _reasons(
    over_N: np.ndarray, group_N: np.ndarray, removed_N: np.ndarray, issues: Sequence["Issue"], action: Action
) -> list[str]:
    """All that speaks against each sample, joined by "; ": issues by kind, p_wrong, and why it was not relabelled."""
    found: list[list[str]] = [[] for _ in over_N]
    for issue in issues:
        for row in issue.rows:
            if issue.kind not in found[row]:
                found[row].append(issue.kind)
    for row in np.flatnonzero(over_N).tolist():
        found[row].append("p_wrong")
    if action == "relabel":
        for row in np.flatnonzero(removed_N).tolist():
            found[row].append("no_confident_suggestion")
    return ["; ".join(sorted(kinds, key=lambda kind: kind != CONFLICT)) for kinds in found]


def _unreadable(table: pd.DataFrame, data: "Labelled") -> pd.DataFrame:
    left_out = sorted(data.left_out)
    lines: list[dict[str, object]] = []
    for path, _, given in left_out:
        line: dict[str, object] = dict.fromkeys(table.columns, "")
        line |= {table.columns[0]: path, "given_label": given, "decision": "remove", "reason": "unreadable"}
        line |= dict.fromkeys(numbers(table), float("nan"))
        lines.append(line)
    found = pd.DataFrame(lines, columns=table.columns, index=[-1] * len(lines))
    return found.astype(table.dtypes.to_dict())
