"""The experiment file: everything that decides a run's numbers but the seed, in one self-contained JSON file."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from nlt.augment import Augmentation
from nlt.data import Data, Dataset
from nlt.hardware import Compile, Precision
from nlt.methods.cleaned import Cleaned
from nlt.methods.coteaching import CoTeaching
from nlt.methods.dividemix import DivideMix
from nlt.methods.elr import ELR
from nlt.methods.forward_correction import ForwardCorrection
from nlt.methods.loo_consistency import LeaveOneOutConsistency
from nlt.methods.o2u import O2U
from nlt.methods.sop import SOP
from nlt.methods.ssr import SSR
from nlt.methods.standard import Standard
from nlt.models import CNN9, Model
from nlt.noise import Noise, NoNoise, with_noise_file
from nlt.optim import SGD, Optimizer
from nlt.settings import Settings
from nlt.train import Stage

Method = Annotated[
    Standard | O2U | CoTeaching | ELR | Cleaned | SOP | ForwardCorrection | SSR | DivideMix | LeaveOneOutConsistency,
    Field(discriminator="name"),
]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+-]*$")]

# What a run is called and what it is for; two files that differ only here are the same experiment.
DESCRIPTIVE = {"schema_", "name", "about", "experiment", "profile", "published", "checkpoint_every", "compile"}


class Published(Settings):
    """What a publication reports for an experiment; reports show it beside the numbers of the runs."""

    source: str = Field(min_length=1, max_length=200)
    """Where it stands: authors, year, table."""
    n: int | None = Field(None, ge=1)
    """How many runs each number is the mean of, 1 if it is that of a single run; null if it is not said."""
    test_accuracy: float | None = Field(None, ge=0, le=1)
    """Test accuracy, in [0, 1]."""
    noise_precision: float | None = Field(None, ge=0, le=1)
    """Wrong labels among the removed ones, in [0, 1]."""


class Experiment(Settings):
    """One experiment: data, noise, model, method, and how they are run. The seed is given at launch."""

    added_later = frozenset({"augmentation"})

    schema_: str | None = Field(None, alias="$schema")
    """Where `schema.json` lies, so that editors complete this file."""
    name: Name
    """Name of the runs."""
    about: str = Field(min_length=1, max_length=2000)
    """What the run is for, and which published number it should meet."""
    experiment: Name | None = None
    """MLflow experiment that collects the runs; by default the name of the data set."""
    profile: Literal["corrected", "as_published", "custom"] = "custom"
    """`corrected`: the paper's text; `as_published`: its code, bugs included; `custom`: anything else."""
    published: Published | None = None
    """The published numbers that the runs are compared with."""
    data: Data
    """The data set."""
    noise: Noise = NoNoise()
    """How the training labels are corrupted, once, before training."""
    augmentation: Augmentation | None = None
    """What is done to training images at random; by default nothing, as in the paper's code."""
    model: Model = CNN9()
    """The network."""
    optimizer: Optimizer = SGD()
    """The optimizer; each stage of the method sets its learning rate."""
    method: Method
    """How the network is trained."""
    precision: Precision = "auto"
    """`bf16` (autocast), `fp32`, or `auto`: bf16 where the device has it in hardware."""
    compile: Compile = "auto"
    """Whether to compile the network (`torch.compile`, with CUDA graphs): `on`, `off`, or `auto`, which is off:
    on a CPU it loses a tenth of the speed, on a GPU it was not measured. Changes numbers no more than rounding does."""
    deterministic: bool = False
    """On a GPU: only kernels that give the same numbers each time, slower; a CPU does so anyway."""
    checkpoint_every: int = Field(1, ge=1, le=100_000)
    """Epochs between two checkpoints; a killed run repeats what came after the last one."""
    evaluate: Literal["after", "before"] = "after"
    """Whether an epoch's accuracies are measured after it or before it, as the published code does."""

    def stages(self) -> dict[str, Stage]:
        """Return the method's stages by name, in the order they run."""
        return {name: stage for name, stage in self.method if isinstance(stage, Stage)}

    def steps(self) -> int:
        """Return the epochs of all stages together."""
        return sum(stage.epochs for stage in self.stages().values())

    def load_data(self, root: Path) -> Dataset:
        """Load the data set, and with it the file that the noise is read from, if there is one.

        Raises:
            BadInput: one of the two cannot be read.
        """
        return with_noise_file(self.data.load(root), self.noise)

    def data_key(self) -> str:
        """Return what `load_data` depends on: experiments of the same key load the same."""
        return f"{self.data.model_dump_json()} {getattr(self.noise, 'path', None)}"

    def outside_weights(self) -> str:
        """Return where weights of outside origin come from that the model or the method rests on, "" if none do."""
        return "; ".join(dict.fromkeys(filter(None, self._of_networks("outside_weights"))))

    def weight_files(self) -> list[str]:
        """Return the files of weights that are named: what lies there may change under the same name."""
        return list(filter(None, self._of_networks("weights")))

    def _of_networks(self, attribute: str) -> Iterator[str | None]:
        return (getattr(part, attribute, None) for part in (self.model, *(value for _, value in self.method)))

    def resolved(self) -> dict[str, Any]:
        """Return the whole spec, defaults filled in, as JSON-ready data; loading it gives the same Experiment."""
        return self.model_dump(mode="json", by_alias=True, exclude={"schema_"})

    def sha256(self) -> str:
        """Return a hash of all that decides the numbers: everything but the descriptive fields."""
        return _hash(self.deciding(DESCRIPTIVE))

    def prefix(self, seed: int) -> tuple[int, str] | None:
        """Return the number of epochs before the method's last stage, and a hash of all that decides their numbers.

        Runs of equal hash train these epochs alike: O2U-Net and O2U-Net & APL, say, up to the mask. None for a method
        that does not say which of its settings its last stage alone reads.
        """
        alone: frozenset[str] = getattr(self.method, "read_by_last_stage_alone", frozenset())
        if not alone:
            return None
        if unknown := alone - type(self.method).model_fields.keys():
            raise RuntimeError(f"{self.method.name}.read_by_last_stage_alone names {sorted(unknown)}, no fields of it")
        data = self.deciding(DESCRIPTIVE) | {"seed": seed, "compile": self.compile == "on"}
        data["method"] = {key: value for key, value in data["method"].items() if key not in alone}
        *earlier, _ = self.stages().values()
        return sum(stage.epochs for stage in earlier), _hash(data)


def _hash(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of an experiment file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Experiment.model_json_schema()}
