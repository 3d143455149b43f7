"""What is wrong with a labelled data set before anything is trained: twins, empty classes, images of one colour, ...

Legend: N samples, D features, P numbers that features are projected to, K classes.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nlt.data.labelled import Labelled
from nlt.data.looking import one_colour
from nlt.events import Progress
from nlt.settings import brief

__all__ = ["Issue", "check_labelled", "encoded_copies", "near_duplicates", "one_colour"]

EXTREME = 20  # times as many samples in the largest class as in the smallest
ALIKE = 0.87  # cosine of centred features; see near_duplicates
SAME = 0.97  # cosine of small images less their mean; see encoded_copies
PROJECTED = 128
ROWS, COLUMNS = 512, 8192  # of a tile: 4 million cosines, 16 MB
EXACT = 4096  # pairs whose features are compared at a time
MOST = 3  # names in a sentence


@dataclass(frozen=True)
class Issue:
    """One thing to know about a data set."""

    kind: str
    """duplicate_conflict, duplicate, near_duplicate, one_colour, unreadable, empty_class, single_image, same_name,
    imbalance."""
    rows: tuple[int, ...]
    """Of `Labelled`, ascending; of copies all of them. Empty where no row is meant."""
    sentence: str
    """What is so, and what to do."""


def check_labelled(data: Labelled) -> list[Issue]:
    """All that can be said by content and names, certain errors first: copies of one image under different labels."""
    conflicts, copies = _duplicates(data)
    return [*conflicts, *copies, *_by_image(data), *_by_class(data)]


def _duplicates(data: Labelled) -> tuple[list[Issue], list[Issue]]:
    """(copies with different labels, copies with one label): rows whose bytes are the same, in the order of rows."""
    rows_of: dict[bytes, list[int]] = defaultdict(list)
    for row, found in enumerate(data.sums):
        rows_of[found].append(row)
    conflicts, copies = [], []
    thing = "samples" if data.kind == "features" else "images"
    for rows in rows_of.values():
        if len(rows) == 1:
            continue
        given = _class_names(data, rows)
        shown = _shown(data, rows)
        if len(given) > 1:
            conflicts.append(
                Issue(
                    "duplicate_conflict",
                    tuple(rows),
                    f"{shown} are equal {thing} with different labels ({_some(given)}): at most one of these is right",
                )
            )
        else:
            leak = _across(data, rows)
            copies.append(
                Issue("duplicate", tuple(rows), f"{shown} are equal {thing} with one label{leak}: keep one of them")
            )
    return conflicts, copies


def _by_image(data: Labelled) -> list[Issue]:
    issues = []
    if data.one_colour:
        rows = data.one_colour
        what = "1 image is" if len(rows) == 1 else f"{len(rows):,} images are"
        issues.append(
            Issue(
                "one_colour",
                rows,
                f"{what} of one colour, {_shown(data, rows)}: nothing can be told from it, remove it",
            )
        )
    if data.left_out:
        path, why, _ = data.left_out[0]
        files = "1 file" if len(data.left_out) == 1 else f"{len(data.left_out):,} files"
        issues.append(
            Issue("unreadable", (), f"{files} cannot be read, first {path} ({why}): replace or remove such files")
        )
    return issues


def _by_class(data: Labelled) -> list[Issue]:
    thing = "sample" if data.kind == "features" else "image"
    counts_K = np.bincount(data.labels_N, minlength=len(data.classes))
    issues = []
    for name in data.empty_classes:
        issues.append(Issue("empty_class", (), f"the class {brief(name)} has no {thing}: add some or remove it"))
    for k in np.flatnonzero(counts_K == 1).tolist():
        row = int((data.labels_N == k).argmax())
        text = f"the class {brief(data.classes[k])} has one {thing}, {data.names[row]}: add more or merge the class"
        issues.append(Issue("single_image", (row,), text))
    alike: dict[str, list[int]] = defaultdict(list)
    for k, name in enumerate(data.classes):
        alike[_plain(name)].append(k)
    for same in alike.values():
        if len(same) == 1:
            continue
        # the rarer spellings are what has to be looked at
        rows = tuple(np.flatnonzero(np.isin(data.labels_N, same)).tolist())
        spelled = ", ".join(f"{brief(data.classes[k])} ({counts_K[k]:,})" for k in same)
        most = brief(data.classes[max(same, key=lambda k: (counts_K[k], -k))])
        text = f"classes {spelled} differ only by case, blanks or how letters are composed: call all of them {most}"
        issues.append(Issue("same_name", rows, text))
    there = [k for k in range(len(counts_K)) if counts_K[k]]
    least, most_k = min(there, key=lambda k: counts_K[k]), max(there, key=lambda k: counts_K[k])
    if counts_K[most_k] >= EXTREME * counts_K[least]:
        text = (
            f"the classes are of very unequal size, from {counts_K[least]:,} ({brief(data.classes[least])}) to "
            f"{counts_K[most_k]:,} ({brief(data.classes[most_k])}): look at what is flagged of the small ones yourself"
        )
        issues.append(Issue("imbalance", (), text))
    return issues


def _plain(name: str) -> str:
    """A class name without what people do not see: case, blanks, composition of letters."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def _class_names(data: Labelled, rows: Sequence[int]) -> list[str]:
    return [data.classes[k] for k in sorted({int(data.labels_N[row]) for row in rows})]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(brief(name) for name in names[:MOST]) + f" and {len(names) - MOST:,} more" * (len(names) > MOST)


def _shown(data: Labelled, rows: Sequence[int]) -> str:
    return _some(data.names[row] for row in rows)


def _across(data: Labelled, rows: Sequence[int]) -> str:
    """Say where copies stand in several splits: a test on them measures memory."""
    splits = sorted({data.splits[row] for row in rows}) if data.splits is not None else []
    return f" in {' and '.join(splits)}" if len(splits) > 1 else ""


# ---- near duplicates


def near_duplicates(
    features_ND: NDArray[np.floating],
    data: Labelled,
    *,
    threshold: float = ALIKE,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Issue]:
    """Groups of rows whose features are nearly the same: an image encoded anew, resized, or taken a moment later.

    Two rows belong together if the cosine of their centred features is at least `threshold`; a group is what is
    connected so. Exact copies (`data.sums`) alone make no group. All pairs are compared by a random projection to 128
    numbers, whose cosine is off by (1 - cos^2) / sqrt(128) (standard deviation; Johnson and Lindenstrauss, 1984), and
    what comes within four of these of the threshold, by all D: at 0.87 a pair is missed once in 30,000 times. Memory:
    4 (D + 128) N bytes and 150 MB.

    Args:
        features_ND: (N, D) of a pretrained network; the pixels of small scans say little about copies.
        data: The same N rows.
        threshold: In (0, 1).
        seed: Of the projection.
        progress: Is told what is done, how many rows are, of how many.
    """
    unit_ND = np.array(features_ND, np.float32)
    unit_ND -= unit_ND.mean(0, dtype=np.float64).astype(np.float32)  # what a network finds in all images
    groups = _alike(_normalized(unit_ND), threshold, seed, "comparing features", progress)
    return [_near(data, rows) for rows in groups if len({data.sums[row] for row in rows}) > 1]


def encoded_copies(data: Labelled, *, seed: int = 0, progress: Progress | None = None) -> list[Issue]:
    """Groups of images that are one picture, encoded anew or resized, by their centre squares at 16 x 16 pixels.

    Two belong together if the cosine of these, each less its mean, is at least 0.97: of 300 images of CIFAR, encoded
    as JPEG of quality 50 or 90 or at 3/4 or twice their size, all are, and of 3,500 different ones two pairs, which
    are one picture, too. Images of one colour are not compared. Pairs are found as by `near_duplicates`.
    """
    if data.small_NCHW is None:
        return []
    unit_ND = data.small_NCHW.reshape(len(data), -1).astype(np.float32)
    unit_ND -= unit_ND.mean(1, keepdims=True)
    unit_ND[list(data.one_colour)] = 0
    groups = _alike(_normalized(unit_ND), SAME, seed, "comparing images", progress)
    return [_near(data, rows) for rows in groups if len({data.sums[row] for row in rows}) > 1]


def _alike(
    unit_ND: NDArray[np.float32], threshold: float, seed: int, what: str, progress: Progress | None
) -> list[list[int]]:
    """Groups of rows of length 1, sorted, that are connected by cosines of at least `threshold`."""
    N, D = unit_ND.shape
    if D > PROJECTED:
        draws = np.random.RandomState(seed % 2**32).standard_normal((D, PROJECTED)).astype(np.float32)
        short_NP = _normalized(unit_ND @ draws)
        least = threshold - 4 * (1 - threshold**2) / PROJECTED**0.5
    else:
        short_NP, least = unit_ND, threshold - 1e-4
    groups = _Groups(np.arange(N), {})
    for first in range(0, N, ROWS):
        for start in range(first, N, COLUMNS):
            cosines = short_NP[first : first + ROWS] @ short_NP[start : start + COLUMNS].T
            i, j = np.nonzero(cosines >= least)
            i, j = i + first, j + start
            keep = i < j
            _connect(unit_ND, i[keep], j[keep], threshold, groups)
        if progress is not None:
            progress(what, min(first + ROWS, N), N)
    return sorted(sorted(rows) for rows in groups.members.values())


class _Groups(NamedTuple):
    """Rows that are connected."""

    of_N: NDArray[np.int64]
    """The group of each row."""
    members: dict[int, list[int]]
    """Of groups of more than one row."""

    def join(self, one: int, other: int) -> None:
        """Make one group of those of two rows: the smaller one gets the number of the larger, so that N log N do."""
        small, large = int(self.of_N[one]), int(self.of_N[other])
        if small == large:
            return
        few, many = self.members.pop(small, [small]), self.members.pop(large, [large])
        if len(few) > len(many):
            small, large, few, many = large, small, many, few
        self.of_N[few] = large
        many += few
        self.members[large] = many


def _normalized(values_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths_N1 = np.sqrt(np.einsum("nd,nd->n", values_ND, values_ND))[:, None]
    values_ND /= np.maximum(lengths_N1, np.float32(1e-12))
    return values_ND


def _connect(
    unit_ND: NDArray[np.float32], i: NDArray[np.int64], j: NDArray[np.int64], threshold: float, groups: _Groups
) -> None:
    """Join the groups of the pairs (i, j) that are alike; pairs of one group are not looked at."""
    for start in range(0, len(i), EXACT):
        a, b = i[start : start + EXACT], j[start : start + EXACT]
        apart = groups.of_N[a] != groups.of_N[b]
        a, b = a[apart], b[apart]
        alike = np.einsum("nd,nd->n", unit_ND[a], unit_ND[b]) >= threshold
        for one, other in zip(a[alike].tolist(), b[alike].tolist(), strict=True):
            groups.join(one, other)


def _near(data: Labelled, rows: list[int]) -> Issue:
    given = _class_names(data, rows)
    labels = f" with different labels ({_some(given)})" if len(given) > 1 else ""
    return Issue(
        "near_duplicate",
        tuple(rows),
        f"{_shown(data, rows)} are nearly the same{labels}{_across(data, rows)}: look at them side by side",
    )
