"""scikit-learn's digits, the embedded default."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nlt.data.samples import Dataset, DataSettings, Samples, finish

DIGITS_TRAIN, DIGITS_SEED = 1400, 0


class Digits(DataSettings):
    """scikit-learn's 1,797 handwritten digits (8x8, one channel), which it carries along: no download.

    It has no official split; ours is `numpy.random.RandomState(0).permutation(1797)`: the first 1,400 train, the other
    397 test. Ids are indices in scikit-learn's order. The labels are taken as clean.
    """

    name: Literal["digits"] = "digits"

    def load(self, root: Path) -> Dataset:
        """Images (N, 1, 8, 8); the 17 grey values 0..16 are spread over 0..255. `root` is not used."""
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]

        bunch = load_digits()
        images_NCHW = torch.from_numpy(np.round(bunch.images * 255 / 16).astype(np.uint8)).unsqueeze(1)
        labels_N = torch.from_numpy(bunch.target.astype(np.int64))
        every = Samples(images_NCHW, torch.arange(len(labels_N)), labels_N, labels_N)
        rows = torch.from_numpy(np.random.RandomState(DIGITS_SEED).permutation(len(every)))
        train, test = (every.take(part.sort().values) for part in (rows[:DIGITS_TRAIN], rows[DIGITS_TRAIN:]))
        return finish(self, tuple("0123456789"), train, test, all_images=len(every))
