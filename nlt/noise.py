"""Label noise as a transition matrix; labels are corrupted once, before training, from a seed of their own.

K classes, N samples. T_KK[i, j] = P(given label j | true class i); every row sums to 1 (paper, section 2.1).
"""

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from nlt.settings import BadInput, Seed, Settings, brief

Rate = Annotated[float, Field(ge=0, le=1)]
Draw = Literal["inverse_cdf", "per_sample_multinomial"]


class Drawn(Settings):
    """Settings of every kind of noise that draws labels."""

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


class NoNoise(Settings):
    """The labels as they come: clean ones, or a user's own wrong ones."""

    name: Literal["none"] = "none"

    def __str__(self) -> str:
        return self.name

    def matrix(self, classes: tuple[str, ...]) -> Tensor:
        """Return the (K, K) identity, float64."""
        return torch.eye(len(classes), dtype=torch.float64)


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
    """Any transition matrix, given row by row (rows = true class)."""

    name: Literal["matrix"] = "matrix"
    rows: tuple[tuple[Rate, ...], ...]
    """T: rows[i][j] = P(given label j | true class i), each row sums to 1."""

    def __str__(self) -> str:
        return self.name

    def matrix(self, classes: tuple[str, ...]) -> Tensor:
        """Return T, (K, K) float64.

        Raises:
            BadInput: the matrix is not K x K, or a row does not sum to 1 within 1e-6.
        """
        K = len(classes)
        if len(self.rows) != K or any(len(row) != K for row in self.rows):
            raise BadInput(
                f"noise.rows has {len(self.rows)} rows of {sorted({len(row) for row in self.rows})} numbers: "
                f"give {K} rows of {K} numbers, one per class of the data set ({', '.join(classes)})."
            )
        T_KK = torch.tensor(self.rows, dtype=torch.float64)
        for i, total in enumerate(T_KK.sum(1).tolist()):
            if abs(total - 1) > 1e-6:
                raise BadInput(f"noise.rows: row {i} sums to {total:.6g}: each row must sum to 1.")
        return T_KK / T_KK.sum(1, keepdim=True)  # else the last class would get what rounding left over


Noise = Annotated[NoNoise | Symmetric | PairFlip | Asymmetric | Matrix, Field(discriminator="name")]


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


def empirical_matrix(clean_N: Tensor, given_N: Tensor, K: int) -> Tensor:
    """Return the drawn T, (K, K) float64: counts of (true, given), each row divided by its sum.

    A class without samples has a row of zeros.
    """
    counts_KK = torch.bincount(clean_N * K + given_N, minlength=K * K).reshape(K, K).double()
    return counts_KK / counts_KK.sum(1, keepdim=True).clamp(min=1)
