"""Label noise: labels are corrupted once, before training, from a seed of their own or by a file.

Each kind says by `asked(dataset)` which transition matrix it follows, None where labels depend on more than the class,
and by `draw_labels(dataset)` which label each training sample is given, -1 if none.

K classes, N samples, D numbers of an image. T_KK[i, j] = P(given label j | true class i); every row sums to 1 (paper,
section 2.1).
"""

import hashlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from nlt.data import Dataset
from nlt.data.label_file import read_label_file
from nlt.data.matrix_file import read_matrix
from nlt.data.samples import PathText, note, reason
from nlt.settings import BadInput, Seed, Settings, brief

Rate = Annotated[float, Field(ge=0, le=1)]
Draw = Literal["inverse_cdf", "per_sample_multinomial"]
SPREAD = 0.1  # standard deviation of a sample's flip rate (Xia et al. 2020, Algorithm 2)
CHUNK = 1024  # images projected at a time
MAX_BYTES = 2**30  # of a file that noise is read from; CIFAR-10N's has 2.4 million


class Drawn(Settings):
    """Settings of every kind of noise whose labels are drawn from the row of their class in a transition matrix."""

    added_later = frozenset({"draw"})

    seed: Seed = 0
    """Seed of the corruption, independent of the training seed."""
    draw: Draw = "inverse_cdf"
    """How a label is drawn from its row of T. `inverse_cdf`: one uniform number of torch's generator, looked up in the
    row's cumulative sums. `per_sample_multinomial`: one multinomial of `numpy.random.RandomState(seed)` after another,
    as Co-teaching's code and the paper's do, for `as_published`; the seed must be less than 2^32."""

    @model_validator(mode="after")
    def _fits(self) -> "Drawn":
        if self.draw == "per_sample_multinomial" and self.seed >= 2**32:
            raise ValueError("with draw per_sample_multinomial, seed must be less than 2^32")
        return self

    def matrix(self, classes: tuple[str, ...]) -> Tensor:
        """Return T, (K, K) float64."""
        raise NotImplementedError

    def asked(self, dataset: Dataset) -> Tensor:
        """Return T over the data set's classes, (K, K) float64."""
        return self.matrix(dataset.classes)

    def draw_labels(self, dataset: Dataset) -> Tensor:
        """Return given_N, int64, of the training samples."""
        return corrupt(dataset.train.labels_N, self.asked(dataset), self.seed, self.draw)


class NoNoise(Settings):
    """The labels as they come: clean ones, or a user's own wrong ones."""

    name: Literal["none"] = "none"

    def __str__(self) -> str:
        return self.name

    def matrix(self, classes: tuple[str, ...]) -> Tensor:
        """Return the (K, K) identity, float64."""
        return torch.eye(len(classes), dtype=torch.float64)

    def asked(self, dataset: Dataset) -> Tensor:
        """Return the (K, K) identity, float64."""
        return self.matrix(dataset.classes)

    def draw_labels(self, dataset: Dataset) -> Tensor:
        """Return the labels of the training samples as they are."""
        return dataset.train.labels_N


class Symmetric(Drawn):
    """Every wrong class is equally likely: T_ij = rate / (K - 1), T_ii = 1 - rate (paper, section 2.1).

    The true class is never drawn as a wrong one, so `rate` is the real share of wrong labels. DivideMix's
    "symmetric" redraws among all K classes and reaches only rate * (K - 1) / K.
    """

    name: Literal["symmetric"] = "symmetric"
    rate: Rate
    """Noise rate: the probability that a label is wrong, in [0, 1]."""

    def __str__(self) -> str:
        return f"{self.name} {self.rate:g}"

    def matrix(self, classes: tuple[str, ...]) -> Tensor:
        """Return T, (K, K) float64."""
        K = len(classes)
        T_KK = torch.full((K, K), self.rate / (K - 1), dtype=torch.float64)
        return T_KK.fill_diagonal_(1 - self.rate)


class PairFlip(Drawn):
    """Class i turns into class i + 1, the last into the first (Co-teaching, Han et al. 2018, section 4)."""

    name: Literal["pair_flip"] = "pair_flip"
    rate: Rate
    """Noise rate: the probability that a label is wrong, in [0, 1]."""

    def __str__(self) -> str:
        return f"{self.name} {self.rate:g}"

    def matrix(self, classes: tuple[str, ...]) -> Tensor:
        """Return T, (K, K) float64."""
        eye_KK = torch.eye(len(classes), dtype=torch.float64)
        return (1 - self.rate) * eye_KK + self.rate * eye_KK.roll(1, dims=1)


class Asymmetric(Drawn):
    """Some classes turn into one look-alike each, e.g. {"cat": "dog", "dog": "cat"} (Patrini et al. 2017, section 5).

    All flips are decided from the true label at once. HanxunH's CIFAR-10 code flips labels it has flipped before,
    which turns a nominal 40 % into 24 % for cats.
    """

    name: Literal["asymmetric"] = "asymmetric"
    rate: Rate
    """Probability that a label of a class in `flips` is wrong, in [0, 1]; the other classes stay clean."""
    flips: dict[str, str] = Field(min_length=1)
    """Class map: true class -> the class it is mistaken for."""

    def __str__(self) -> str:
        return f"{self.name} {self.rate:g}"

    def matrix(self, classes: tuple[str, ...]) -> Tensor:
        """Return T, (K, K) float64.

        Raises:
            BadInput: a class in `flips` is not in the data set, or a class is mapped to itself.
        """
        T_KK = torch.eye(len(classes), dtype=torch.float64)
        for true, given in self.flips.items():
            for name in (true, given):
                if name not in classes:
                    raise BadInput(
                        f"noise.flips names the class {brief(name)}, which is not in the data set: "
                        f"use classes out of {', '.join(classes)}."
                    )
            if true == given:
                raise BadInput(f"noise.flips maps {brief(true)} to itself: map it to another class or leave it out.")
            i, j = classes.index(true), classes.index(given)
            T_KK[i, i], T_KK[i, j] = 1 - self.rate, self.rate
        return T_KK


class Matrix(Drawn):
    """Any transition matrix (rows = true class), given row by row or by a file."""

    added_later = Drawn.added_later | {"rows", "path"}

    name: Literal["matrix"] = "matrix"
    rows: tuple[tuple[Rate, ...], ...] | None = None
    """T: rows[i][j] = P(given label j | true class i), each row sums to 1; or null, with `path`."""
    path: PathText | None = None
    """A file with T: a CSV of K rows of K numbers without names, or an .npy (K, K); null with `rows`."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "Matrix":
        if (self.rows is None) == (self.path is None):
            raise ValueError("give rows or path, one of the two")
        return self

    def __str__(self) -> str:
        return self.name if self.path is None else f"{self.name} {_word(Path(self.path).stem)}"

    def matrix(self, classes: tuple[str, ...], content: bytes | None = None) -> Tensor:
        """Return T, (K, K) float64.

        Args:
            classes: of the data set.
            content: of the file at `path`; it is read if not given.

        Raises:
            BadInput: the file cannot be read, the matrix is not K x K, or a row does not sum to 1 within 1e-6.
        """
        K, where = len(classes), "noise.rows"
        rows: Sequence[Sequence[float]] | None = self.rows
        if self.path is not None:
            file = Path(os.path.expanduser(self.path))
            where, rows = str(file), read_matrix(file, read_whole(file) if content is None else content)
        assert rows is not None, "rows or path is given"
        if len(rows) != K or any(len(row) != K for row in rows):
            raise BadInput(
                f"{where} has {len(rows)} rows of {sorted({len(row) for row in rows})} numbers: "
                f"give {K} rows of {K} numbers, one per class of the data set ({', '.join(classes)})."
            )
        T_KK = torch.tensor(rows, dtype=torch.float64)
        for i, total in enumerate(T_KK.sum(1).tolist()):
            if abs(total - 1) > 1e-6:
                raise BadInput(f"{where}: row {i} sums to {total:.6g}: each row must sum to 1.")
        return T_KK / T_KK.sum(1, keepdim=True)  # else the last class would get what rounding left over

    def asked(self, dataset: Dataset) -> Tensor:
        """Return T over the data set's classes, (K, K) float64, of the file that was read with the data set if any."""
        return self.matrix(dataset.classes, dataset.noise_file)


class InstanceDependent(Settings):
    """Part-dependent label noise: what a sample looks like decides how likely it is mislabelled, and as what.

    Xia et al. 2020, Algorithm 2: sample i is wrong with a probability q_i of its own, normal about `rate`, and then
    takes class j with the probability softmax(x_i W_y)_j over the wrong classes, W_y being a D x K matrix of standard
    normal numbers for each true class y. So images that look alike are mislabelled alike. Differences: q_i is cut off
    on both sides at min(rate, 1 - rate) from `rate`, not at 0 and 1, so that its mean is the rate (theirs is 20.6 % for
    20); the generator is numpy's frozen one, in another order.
    """

    name: Literal["instance_dependent"] = "instance_dependent"
    rate: Rate
    """Mean probability that a label is wrong, in [0, 1]."""
    seed: Seed = 0
    """Seed of the flip rates, the projections and the labels, independent of the training seed."""

    def __str__(self) -> str:
        return f"{self.name} {self.rate:g}"

    def asked(self, dataset: Dataset) -> None:
        """Return None: labels depend on more than the class."""

    def draw_labels(self, dataset: Dataset) -> Tensor:
        """Return given_N, int64, of the training samples."""
        train = dataset.train
        return instance_dependent(train.images_NCHW, train.labels_N, len(dataset.classes), self.rate, self.seed)


class Human(Settings):
    """Labels that people gave, out of a file, such as CIFAR-10N's and CIFAR-100N's (Wei et al. 2022).

    A sample takes the label that the file has for its id, the place in the complete official training split, so they
    fit any choice of `data.classes` and `data.limit`. A sample whose label is another class than `data.classes` is left
    out, and a note says how many are: somebody who labels these classes alone could not have given it. The data set's
    own labels are taken for the true ones.
    """

    name: Literal["human"] = "human"
    path: PathText
    """A .pt or .npy (one array, or a dict of them), an .npz, or a CSV with a column id; relative to the current folder,
    ~ is expanded. Nothing but arrays is ever unpickled."""
    key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Which of several arrays, or of a CSV's columns, e.g. "worse_label"; null for the only one, in a CSV `label`."""
    class_names: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """The names of the classes 0, 1, ... of the file; null for the data set's own, before `data.classes`."""

    def __str__(self) -> str:
        return f"{self.name} {_word(self.key or Path(self.path).stem)}"

    def asked(self, dataset: Dataset) -> None:
        """Return None: labels depend on more than the class."""

    def draw_labels(self, dataset: Dataset) -> Tensor:
        """Return given_N, int64, of the training samples, -1 where the label is none of the data set's classes.

        Raises:
            BadInput: the file cannot be read, is not of this data set, or has no label for a sample.
        """
        file = Path(os.path.expanduser(self.path))
        content = read_whole(file) if dataset.noise_file is None else dataset.noise_file
        names = self.class_names or dataset.all_classes or dataset.classes
        labels = read_label_file(file, content, self.key, names)
        train, place_of = dataset.train, {name: k for k, name in enumerate(dataset.classes)}
        rows_N = labels.rows(train.ids_N.numpy(), dataset.all_images)
        place_K = np.array([place_of.get(name, -1) for name in names], np.int64)
        labels.check_truth(rows_N, train.ids_N.numpy(), [dataset.classes[k] for k in train.labels_N.tolist()])
        given_N = torch.from_numpy(place_K[labels.values[rows_N]])
        outside = int((given_N < 0).sum())
        if outside == len(given_N):
            raise BadInput(
                f"{file} gives no training image a label of {', '.join(dataset.classes)}: name its classes in "
                "noise.class_names"
            )
        if outside:
            note(
                f"{file}: left out {outside:,} of {len(given_N):,} training images, whose label is none of "
                f"{', '.join(dataset.classes)}"
            )
        return given_N


Noise = Annotated[
    NoNoise | Symmetric | PairFlip | Asymmetric | Matrix | InstanceDependent | Human, Field(discriminator="name")
]


def _word(text: str) -> str:
    """A user's text as one short word for tags and figures."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-")[:40] or "file"


# ---- the file that noise is read from


def with_noise_file(dataset: Dataset, noise: Noise) -> Dataset:
    """The data set with the file that the noise is read from, which its digest covers then; itself if there is none.

    Raises:
        BadInput: the file cannot be read.
    """
    path: str | None = getattr(noise, "path", None)
    if path is None or dataset.noise_file is not None:
        return dataset
    content = read_whole(Path(os.path.expanduser(path)))
    digest = hashlib.sha256(f"{dataset.digest} {hashlib.sha256(content).hexdigest()}".encode()).hexdigest()[:16]
    return replace(dataset, noise_file=content, digest=digest)


def read_whole(file: Path) -> bytes:
    """Read the file at `noise.path`; BadInput if that cannot be."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe would keep us waiting
            raise BadInput(f"noise.path: {file} {'is a folder' if file.is_dir() else 'is no file'}: name a file")
        if file.stat().st_size > MAX_BYTES:
            raise BadInput(f"noise.path: {file} is larger than {MAX_BYTES:,} bytes: no labels are")
        return file.read_bytes()
    except FileNotFoundError as error:
        raise BadInput(f"noise.path: {file} is not there: name a file that is") from error
    except (OSError, ValueError) as error:
        raise BadInput(f"noise.path: {file} cannot be read ({reason(error)}): name another file") from error


# ---- drawing


def corrupt(clean_N: Tensor, T_KK: Tensor, seed: int, draw: Draw = "inverse_cdf") -> Tensor:
    """Return given_N, int64: a label for each sample, drawn from the row of T_KK (float64) of its class in clean_N.

    The draw depends on no random state but `seed`. Both kinds of `draw` (see `Drawn.draw`) have the same distribution,
    but not the same labels.
    """
    if draw == "per_sample_multinomial":
        # The published code's order of calls decides its labels: sample after sample, in the data set's order.
        generator, rows_KK = np.random.RandomState(seed), T_KK.numpy()
        given = [int(generator.multinomial(1, rows_KK[k]).argmax()) for k in clean_N.tolist()]
        return torch.tensor(given, dtype=torch.int64)
    # One uniform number per sample, sorted into its row's cumulative sums: the draw of a sample depends on its place
    # alone. The last sum is set to 1 since rounding may leave it below the number drawn.
    draws_N1 = torch.rand(len(clean_N), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    edges_KK = T_KK.cumsum(1)
    edges_KK[:, -1] = 1
    return torch.searchsorted(edges_KK[clean_N], draws_N1, right=True).squeeze(1)


def instance_dependent(images_NCHW: Tensor, clean_N: Tensor, K: int, rate: float, seed: int) -> Tensor:
    """Return given_N, int64, by `InstanceDependent`'s rule.

    The flip rate and the number a label is drawn by depend on a sample's place and the seed alone, and the matrix W of
    a class on that class and the seed alone, so that other samples change nothing about this one.

    Args:
        images_NCHW: uint8; they are projected as numbers in [0, 1].
        clean_N: true classes in [0, K).
        K: at least 2.
        rate: in [0, 1].
        seed: of everything random.
    """
    N, labels_N = len(clean_N), clean_N.numpy()
    q_N = torch.from_numpy(flip_rates(_stream(seed, 0).random_sample(N), rate))
    draws_N1 = torch.from_numpy(_stream(seed, 1).random_sample(N)).unsqueeze(1)
    pixels_ND = images_NCHW.reshape(N, -1)
    given_N = clean_N.clone()
    for y in np.unique(labels_N).tolist():
        W_DK = torch.from_numpy(_stream(seed, 2 + y).standard_normal((pixels_ND.shape[1], K)))
        for rows_B in torch.from_numpy(np.flatnonzero(labels_N == y)).split(CHUNK):
            edges_BK = label_chances(pixels_ND[rows_B].double() / 255, W_DK, y, q_N[rows_B]).cumsum(1)
            edges_BK[:, -1] = 1  # rounding may leave it below the number drawn
            given_N[rows_B] = torch.searchsorted(edges_BK, draws_N1[rows_B], right=True).squeeze(1)
    return given_N


def label_chances(x_BD: Tensor, W_DK: Tensor, y: int, q_B: Tensor) -> Tensor:
    """Return p_BK, float64: how likely each label is for samples x of the true class y with the flip rates q."""
    logits_BK = x_BD @ W_DK
    logits_BK[:, y] = -torch.inf
    p_BK = q_B[:, None] * logits_BK.softmax(1)
    p_BK[:, y] = 1 - q_B
    return p_BK


def flip_rates(uniform_N: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """Return q_N: the quantiles at `uniform_N` of N(rate, 0.1^2) cut off at min(rate, 1 - rate) on both sides.

    That keeps q in [0, 1] and its mean at `rate`, at 0 and 1 too, where nothing is left to be random.
    """
    reach = min(rate, 1 - rate)
    tail = torch.special.ndtr(torch.tensor(-reach / SPREAD, dtype=torch.float64))
    quantiles_N = torch.special.ndtri(tail + torch.from_numpy(uniform_N) * (1 - 2 * tail))
    q_N: NDArray[np.float64] = (rate + SPREAD * quantiles_N).clamp(rate - reach, rate + reach).numpy()
    return q_N


def _stream(seed: int, stream: int) -> np.random.RandomState:
    """numpy's frozen generator (NEP 19); another `stream` gives unrelated numbers for the same seed."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, stream])))


def empirical_matrix(clean_N: Tensor, given_N: Tensor, K: int) -> Tensor:
    """Return the drawn T, (K, K) float64: counts of (true, given), each row divided by its sum.

    A class without samples has a row of zeros.
    """
    counts_KK = torch.bincount(clean_N * K + given_N, minlength=K * K).reshape(K, K).double()
    return counts_KK / counts_KK.sum(1, keepdim=True).clamp(min=1)
