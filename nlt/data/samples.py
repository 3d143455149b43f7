"""What all data sets share: samples with ids, `classes`, `limit`, the hold-outs, the digest.

Everything random here is drawn from numpy's frozen legacy stream (NEP 19), so that the same seed names the same samples
with every version of numpy and torch.

Legend: N samples of one split, C channels (1 or 3), H height, W width, K classes.
"""

import hashlib
import json
import re
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, field_validator
from torch import Tensor

from nlt.settings import BadInput, Seed, Settings, brief, one_line

MAX_CLASSES = 10_000  # a transition matrix of 800 MB
LIMIT_STREAM, HOLD_OUT_STREAM, TEST_STREAM, TAIL_STREAM = 1, 2, 3, 4  # one seed, unrelated permutations


@dataclass(frozen=True)
class Samples:
    """One split; row i of every field is the same sample."""

    images_NCHW: Tensor
    """uint8 in [0, 255], on the CPU, contiguous."""
    ids_N: Tensor
    """int64: place in the complete, official split, before `classes` and `limit`; never changes."""
    labels_N: Tensor
    """int64 in [0, K): the given labels."""
    clean_N: Tensor | None
    """int64 in [0, K): the true labels where known, else None. Methods never see them."""
    files: tuple[str, ...] | None = None
    """Of image files only: path relative to their folder, e.g. "train/cat/2024/7.png"."""

    def __len__(self) -> int:
        return len(self.ids_N)

    @property
    def wrong_N(self) -> Tensor | None:  # noqa: N802  # a tensor carries its shape as a suffix
        """True where the given label is not the true one; None where nobody knows. Methods never see it."""
        return None if self.clean_N is None else self.clean_N != self.labels_N

    def take(self, rows: Tensor) -> "Samples":
        """The samples at `rows` (int64, any length, any order), in that order; the tensors are copies."""
        return Samples(
            images_NCHW=self.images_NCHW[rows],
            ids_N=self.ids_N[rows],
            labels_N=self.labels_N[rows],
            clean_N=None if self.clean_N is None else self.clean_N[rows],
            files=None if self.files is None else tuple(self.files[row] for row in rows.tolist()),
        )


@dataclass(frozen=True)
class Dataset:
    """A training and, where the data have one, a test split over the same K classes."""

    name: str
    classes: tuple[str, ...]
    train: Samples
    test: Samples | None
    digest: str
    """16 hex digits over images, ids, labels and clean labels of both splits and the class names, as loaded."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Of image files only: (path, reason) of each image that could not be decoded, before `classes` and `limit`."""
    test_mend: str = ""
    """Without a test split: how to get one, the end of a sentence."""
    all_classes: tuple[str, ...] = ()
    """Of the complete data set, by their official numbers, before `classes`; () if there are no others."""
    all_images: int | None = None
    """Training images of the complete data set, whose ids are 0 to all_images - 1; None where nobody knows."""
    noise_file: bytes | None = None
    """The file that the noise is read from, where it is read from one; the digest covers it then."""


def hold_out(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples | None]:
    """Split off round(N * fraction) random samples: (train, val), both in ascending row order.

    A fraction of 0 gives (samples, None). BadInput if either side would be empty.
    """
    if fraction == 0:
        return samples, None
    N, V = len(samples), round(len(samples) * fraction)
    if not 0 < V < N:
        raise BadInput(f"data.val_fraction {fraction} holds out {V} of {N} training images: neither side may be empty")
    is_val_N = torch.zeros(N, dtype=torch.bool)
    is_val_N[torch.from_numpy(_permutation(N, seed, HOLD_OUT_STREAM)[:V])] = True
    return samples.take((~is_val_N).nonzero().squeeze(1)), samples.take(is_val_N.nonzero().squeeze(1))


def split_test(
    names: tuple[str, ...], train: Samples, fraction: float, seed: int, wanted: tuple[str, ...] | None
) -> tuple[Samples, Samples]:
    """Apply `test_fraction` to data that have no test split: (train, test), both in ascending row order.

    Stratified: of the N_k samples given label k, fraction * N_k, rounded (halves up), are held out at random. What is
    held out of a class does not depend on the other ones, nor on clean labels, nor on `classes`.

    Args:
        names: of all K classes.
        train: all samples, complete.
        fraction: in (0, 1).
        seed: of the choice.
        wanted: the classes that will be kept; null keeps all.

    Raises:
        BadInput: a class in `wanted` would have no sample on one side.
    """
    order, labels_N = _permutation(len(train), seed, TEST_STREAM), train.labels_N.numpy()
    is_test_N = np.zeros(len(train), dtype=bool)
    for name, rows in zip(names, _by_class(order, labels_N, len(names)), strict=True):
        n = int(fraction * len(rows) + 0.5)
        if not 0 < n < len(rows) and (wanted is None or name in wanted):
            mend = f"set it between {1 / len(rows):.3g} and {1 - 1 / len(rows):.3g}, " if len(rows) > 1 else ""
            raise BadInput(
                f"data.test_fraction {fraction} holds out {n} of the {len(rows)} images of {brief(name)}, and each "
                f"class needs one on both sides: {mend}add images or leave the class out with data.classes"
            )
        is_test_N[rows[:n]] = True
    is_test = torch.from_numpy(is_test_N)
    return train.take((~is_test).nonzero().squeeze(1)), train.take(is_test.nonzero().squeeze(1))


def _no_nul(path: str) -> str:
    if "\0" in path:  # the one character that no system takes in a path; Python raises ValueError for it, not OSError
        raise ValueError("a path cannot hold the character \\u0000")
    return path


PathText = Annotated[str, AfterValidator(_no_nul)]
TestFraction = Annotated[float, Field(ge=0, lt=1)]


class DataSettings(Settings):
    """What every data set can be asked for."""

    added_later = frozenset({"imbalance"})

    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """Only these classes, relabelled 0, 1, ... in the order given; null keeps all."""
    limit: int | None = Field(None, ge=2)
    """Training images to keep, the same number of each class; null keeps all. The test set is never cut."""
    imbalance: float = Field(1.0, ge=1)
    """Long-tailed training images: how many times as many of the first class as of the last are kept, exponentially
    fewer from class to class (Cui et al. 2019, section 5.1); after `limit`. The test set is never cut."""
    val_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the training images held out for validation, after label noise is drawn."""
    seed: Seed = 0
    """Seed of the choice under `limit` and `imbalance` and of what is held out for validation or test."""

    @field_validator("classes")
    @classmethod
    def _no_repeats(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if classes is not None and len(set(classes)) < len(classes):
            raise ValueError("a class is named twice")
        return classes


def finish(
    settings: Any,
    names: tuple[str, ...],
    train: Samples,
    test: Samples | None,
    left_out: tuple[tuple[str, str], ...] = (),
    test_mend: str = "",
    *,
    all_classes: tuple[str, ...] = (),
    all_images: int | None = None,
) -> Dataset:
    """Apply `test_fraction`, `classes`, `limit` and `imbalance` to complete splits over the classes `names`."""
    all_classes = all_classes or names
    if test is None and settings.test_fraction:
        train, test = split_test(names, train, settings.test_fraction, settings.seed, settings.classes)
    if len(names) > MAX_CLASSES:
        where = getattr(settings, "path", settings.name)
        raise BadInput(f"data: {where} has {len(names):,} classes, at most {MAX_CLASSES:,} are possible: merge some")
    if settings.classes is not None:
        if unknown := [name for name in settings.classes if name not in names]:
            raise BadInput(f"data.classes: {settings.name} has no class {brief(unknown[0])}, only {', '.join(names)}")
        train = pick(train, names, settings.classes)
        test = None if test is None else pick(test, names, settings.classes)
        names = settings.classes
        for split, samples in (("training", train), ("test", test)):
            if samples is not None and not len(samples):
                raise BadInput(f"data.classes: no {split} image is of {', '.join(names)}: name other classes")
    if settings.limit is not None:
        train = _limited(train, names, settings.limit, settings.seed)
    if settings.imbalance > 1:
        train = long_tailed(train, names, settings.imbalance, settings.seed)
    digest, mend = _digest(names, train, test), test_mend if test is None else ""
    return Dataset(settings.name, names, train, test, digest, left_out, mend, all_classes, all_images)


def pick(samples: Samples, names: tuple[str, ...], wanted: tuple[str, ...]) -> Samples:
    """The samples given a label in `wanted`, relabelled by its order.

    A sample whose clean label lies outside `wanted` is dropped too: its truth has no number among the new labels, and
    a stand-in would make every count of wrong labels a guess. unpack_cifar10.py drops the mirror case likewise.
    """
    to_new_K = torch.full((len(names),), -1)
    to_new_K[[names.index(name) for name in wanted]] = torch.arange(len(wanted))
    labels_N = to_new_K[samples.labels_N]
    clean_N = None if samples.clean_N is None else to_new_K[samples.clean_N]
    kept_N = labels_N >= 0 if clean_N is None else (labels_N >= 0) & (clean_N >= 0)
    rows = kept_N.nonzero().squeeze(1)
    return replace(samples.take(rows), labels_N=labels_N[rows], clean_N=None if clean_N is None else clean_N[rows])


def _limited(samples: Samples, names: tuple[str, ...], limit: int, seed: int) -> Samples:
    """limit // K random samples of each given label, one more of each of the first limit % K; rows stay in order."""
    K, labels_N = len(names), samples.labels_N.numpy()
    have_K = np.bincount(labels_N, minlength=K)
    need_K = [limit // K + (k < limit % K) for k in range(K)]  # Python's integers: a limit may be of any size
    if lacking := [k for k in range(K) if need_K[k] > have_K[k]]:
        k = lacking[0]
        # label k takes part in the remainder only if limit % K > k, so have * K + k is the last limit it can serve
        largest = int((have_K * K + np.arange(K)).min())
        mend = f"set data.limit to at most {largest}" if largest >= 2 else "leave data.limit out"
        raise BadInput(f"data.limit {limit} needs {need_K[k]} images of {names[k]!r}, which has {have_K[k]}: {mend}")
    order = _permutation(len(samples), seed, LIMIT_STREAM)
    rows = np.concatenate([rows[:n] for rows, n in zip(_by_class(order, labels_N, K), need_K, strict=True)])
    return samples.take(torch.from_numpy(np.sort(rows)))


def long_tailed(samples: Samples, names: tuple[str, ...], imbalance: float, seed: int) -> Samples:
    """Of given label k of K keep n_max * imbalance^(-k / (K - 1)) random samples, rounded (halves up), or all it has.

    n_max is the size of the largest class (Cui et al. 2019, section 5.1); rows stay in order.

    Raises:
        BadInput: that leaves no sample of a class.
    """
    K, labels_N = len(names), samples.labels_N.numpy()
    n_max = int(np.bincount(labels_N, minlength=K).max())
    order = _permutation(len(samples), seed, TAIL_STREAM)
    kept = []
    for k, (name, rows) in enumerate(zip(names, _by_class(order, labels_N, K), strict=True)):
        rows = rows[: int(n_max * imbalance ** (-k / (K - 1)) + 0.5)]
        if not len(rows):
            raise BadInput(f"data.imbalance {imbalance:g} leaves no training image of {brief(name)}: set a smaller one")
        kept.append(rows)
    return samples.take(torch.from_numpy(np.sort(np.concatenate(kept))))


def _by_class(order_N: NDArray[np.int64], labels_N: NDArray[np.int64], K: int) -> list[NDArray[np.int64]]:
    """The rows given each of K labels, in the order of `order_N`."""
    sorted_N = order_N[labels_N[order_N].argsort(kind="stable")]
    return np.split(sorted_N, np.bincount(labels_N, minlength=K).cumsum()[:-1])


def _permutation(n: int, seed: int, stream: int) -> NDArray[np.int64]:
    """A random order of range(n); another `stream` gives an unrelated one for the same seed."""
    bits = np.random.MT19937(np.random.SeedSequence([seed, stream]))
    return np.random.RandomState(bits).permutation(n).astype(np.int64)


def _digest(names: tuple[str, ...], train: Samples, test: Samples | None) -> str:
    sha = hashlib.sha256(json.dumps(names).encode())
    for split in (train, test):
        if split is None:
            sha.update(b"no test split")
            continue
        for tensor in (split.images_NCHW, split.ids_N, split.labels_N, split.clean_N):
            # the shape goes in as well, else bytes could move from one field to the next unseen
            sha.update(b"None" if tensor is None else f"{tuple(tensor.shape)}".encode())
            if tensor is not None:
                sha.update(tensor.numpy().data)
    return sha.hexdigest()[:16]


@cache  # the runs of a sweep load the same data: each sentence once per process
def note(sentence: str) -> None:
    """Say on stderr what was made of a user's data; `--jobs` hands such lines on."""
    print(one_line(f"note: {sentence}"), file=sys.stderr)


def reason(error: BaseException) -> str:
    """Put an exception into a few words, for a sentence in brackets."""
    words = re.sub(r"<[\w.]+ object at 0x[0-9a-f]+>", "?", " ".join(str(error).split()))
    return words.rstrip(".")[:200] or type(error).__name__


def check_file(file: Path, what: str) -> None:
    """Raise BadInput unless a file is there, and is one; `what` it should be: "a CSV file".

    Raises:
        OSError, ValueError: one may not look, or the name is none.
    """
    if not file.is_file():  # a pipe would keep us waiting
        found = "is a folder" if file.is_dir() else "is no file" if file.exists() else "is not there"
        raise BadInput(f"{file} {found}: name {what}")
