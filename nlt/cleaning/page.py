"""The page of a result: what was found and how to read it, and the review, in one file that works offline.

The page's text is `templates/review.html`; names reach it as escaped text or as JSON, never as markup.
Legend: N samples, K classes.
"""

import base64
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, Template

from nlt.cleaning.sample import Sample

if TYPE_CHECKING:
    from nlt.cleaning.apply import Applied
    from nlt.data.checks import Issue
    from nlt.data.labelled import Labelled
    from nlt.detect import LabelErrors, Rate

REVIEWED_BEGINS, REVIEWED_ENDS = "<!-- reviewed -->", "<!-- end of reviewed -->"  # no name can hold a "<"
THUMBNAIL = 160  # pixels on the longer side
BARS = 40  # of the histogram: 0.5 is an edge
MOST_CLASSES = 30  # in the heat map; of more the largest cells are listed
MOST_LISTED = 30


def thumbnails(data: "Labelled", rows: Sequence[int], side: int = THUMBNAIL) -> list[bytes]:
    """Return a JPEG of each row, at most `side` pixels wide and high, made by several threads.

    Raises:
        BadInput: an image is no longer what it was.
    """
    # Each sets warning filters, which all threads share, and sets back those that it met: put right in the end.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        return list(pool.map(lambda row: data.thumbnail(int(row), side), rows))


def review_page(
    data: "Labelled",
    table: pd.DataFrame,
    errors: "LabelErrors",
    issues: Sequence["Issue"],
    sample: Sample,
    digest: str,
    review: int,
    threshold: float,
    pictures: Mapping[int, bytes],
) -> str:
    """Return the page.

    Args:
        data: what was judged.
        table: as `decide` returns it.
        errors: what was found.
        issues: listed above the review.
        sample: the random one, for the rate.
        digest: of the result; state and decisions belong to it.
        review: how many of the worst are shown.
        threshold: drawn into the histogram.
        pictures: row -> JPEG of the rows that `shown_rows` gives; none where there are no images.
    """
    readable = table[table.index >= 0]
    flagged = readable["decision"] != "keep"
    return _template("review.html").render(
        title=Path(os.path.abspath(data.source)).name,
        rate=errors.rate,
        percent=percent,
        images=len(readable),
        flagged=int(flagged.sum()),
        unreadable=[path for path, _, _ in sorted(data.left_out)],
        accuracy=errors.accuracy,
        features=errors.features,
        issues=[
            (issue.kind.replace("_", " "), len(issue.rows), issue.sentence)
            for issue in issues
            if issue.kind != "unreadable"
        ],
        most=MOST_LISTED,
        reviewed_begins=REVIEWED_BEGINS,
        reviewed_ends=REVIEWED_ENDS,
        matrix=heat_map(errors.T_KK, errors.classes),
        largest=largest_cells(errors.T_KK, errors.classes),
        per_class=_per_class(errors, readable, flagged),
        histogram=histogram(errors.p_wrong_N, threshold),
        threshold=threshold,
        data=page_data(readable, errors.classes, sample, digest, review, pictures),
    )


def with_review(page: str, applied: "Applied") -> str:
    """Return a page with what people's decisions came to, in the place of what earlier ones did.

    A page of an older nlt, which has no place for it, stays as it is.
    """
    before, begins, rest = page.partition(REVIEWED_BEGINS)
    _, ends, after = rest.partition(REVIEWED_ENDS)
    if not ends:
        return page
    block = _template("reviewed.html").render(done=applied, rate=applied.rate, percent=percent)
    return f"{before}{begins}\n{block}{ends}{after}"


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("nlt.cleaning"), autoescape=True, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    return environment.get_template(name)


def shown_rows(readable: pd.DataFrame, sample: Sample, review: int) -> list[int]:
    """Return the rows that the page shows: the worst, then those of the random sample that are none of them."""
    worst = [int(row) for row in readable.index[:review]]
    return worst + sorted(set(sample.rows) - set(worst))


def page_data(
    readable: pd.DataFrame,
    classes: Sequence[str],
    sample: Sample,
    digest: str,
    review: int,
    pictures: Mapping[int, bytes],
) -> dict[str, Any]:
    """Return what the page's script works on: the worst samples and the random ones, column by column."""
    shown = shown_rows(readable, sample, review)
    place = {row: i for i, row in enumerate(shown)}
    lines = readable.loc[shown]
    class_place = {name: k for k, name in enumerate(classes)}
    return {
        "digest": digest,
        "id": str(readable.columns[0]),
        "classes": list(classes),
        "ids": [str(name) for name in lines.iloc[:, 0]],
        "sums": list(lines["sha256"]),
        "given": [class_place[name] for name in lines["given_label"]],
        "suggested": [class_place[name] for name in lines["suggested_label"]],
        "p": [round(float(p), 4) for p in lines["p_wrong"]],
        "reasons": list(lines["reason"]),
        "images": [base64.b64encode(pictures[row]).decode() for row in shown] if pictures else [],
        "review": list(range(min(review, len(readable)))),
        "sample": [place[row] for row in sample.rows],
    }


def heat_map(T_KK: np.ndarray, classes: Sequence[str]) -> list[tuple[str, list[tuple[str, float, bool]]]] | None:
    """Return (true class, cells (text, shade in [0, 1], on the diagonal)) row by row; None for too many classes."""
    if len(classes) > MOST_CLASSES:
        return None
    return [
        (name, [(_cell(value), round(math.sqrt(min(1.0, max(0.0, value))), 3), k == i) for i, value in enumerate(row)])
        for k, (name, row) in enumerate(zip(classes, T_KK.tolist(), strict=True))
    ]


def _cell(value: float) -> str:
    return "" if value < 0.0005 else f"{100 * value:.1f}" if value < 0.0995 else f"{100 * value:.0f}"


def largest_cells(T_KK: np.ndarray, classes: Sequence[str]) -> list[tuple[str, str, float]]:
    """Return the largest (true class, given class, share) beside the diagonal."""
    off_KK = np.where(np.eye(len(classes), dtype=bool), -1.0, T_KK)
    order = np.argsort(-off_KK, axis=None, kind="stable")[:MOST_LISTED]
    cells = [divmod(int(cell), len(classes)) for cell in order]
    return [(classes[t], classes[g], float(T_KK[t, g])) for t, g in cells if t != g and T_KK[t, g] > 0]


def histogram(p_wrong_N: np.ndarray, threshold: float) -> list[tuple[float, float, int, float, float, bool]]:
    """Return one bar per bin: (left edge, height in [0, 1] on a logarithmic scale, count, from, to, flagged)."""
    counts, edges = np.histogram(np.clip(p_wrong_N, 0, 1), bins=BARS, range=(0, 1))
    top = math.log1p(max(1, counts.max()))
    return [
        (i / BARS, round(math.log1p(n) / top, 4), int(n), float(edges[i]), float(edges[i + 1]), edges[i] >= threshold)
        for i, n in enumerate(counts)
    ]


def _per_class(errors: "LabelErrors", readable: pd.DataFrame, flagged: pd.Series) -> list[tuple[str, int, "Rate", int]]:
    images, found = readable["given_label"].value_counts(), readable["given_label"][flagged].value_counts()
    return [
        (name, int(images.get(name, 0)), rate, int(found.get(name, 0)))
        for name, rate in zip(errors.classes, errors.per_class, strict=True)
    ]


def percent(share: float) -> str:
    """Write a share in [0, 1] as a percentage, with a digit more where it is small."""
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"
