"""Data sets by name: each settings class loads into uint8 images, ids, given labels and clean labels if known."""

from typing import Annotated

from pydantic import Field

from nlt.data.cifar import Cifar4, Cifar10, Cifar100
from nlt.data.digits import Digits
from nlt.data.image_folder import ImageFolder
from nlt.data.image_list import ImageList
from nlt.data.npz import Npz
from nlt.data.samples import Dataset, Samples, hold_out

Data = Annotated[Digits | Cifar10 | Cifar100 | Cifar4 | Npz | ImageFolder | ImageList, Field(discriminator="name")]

__all__ = [
    "Cifar4", "Cifar10", "Cifar100", "Data", "Dataset", "Digits", "ImageFolder", "ImageList", "Npz", "Samples",
    "hold_out",
]  # fmt: skip
