"""What the tests share: a small real experiment on digits, a fresh store per test, a template database.

A fresh MLflow database costs seconds of migrations; it is migrated once per session and copied.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# One thread: the tests' networks are tiny, and equality to the last bit must not depend on how many cores are there.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)  # the developer's own store is not the tests'

import pytest
import torch

from nlt.augment import Augmentation
from nlt.data import Dataset, Samples
from nlt.optim import SGD, Optimizer
from nlt.run import EpochRecord, Prepared, Run
from nlt.tracking import Store, open_store
from nlt.train import Learner

torch.set_num_threads(1)

REPO = Path(__file__).parent.parent


def tiny(**changes: object) -> dict[str, object]:
    """Return an experiment on 100 digits that takes a second: O2U, 2 + 3 + 2 epochs."""
    stage = {"batch_size": 32, "schedule": {"name": "constant", "lr": 0.01}}
    return {
        "name": "tiny",
        "about": "a test",
        "data": {"name": "digits", "limit": 100},
        "noise": {"name": "symmetric", "rate": 0.4},
        "model": {"name": "cnn9", "width": 0.03},
        "method": {
            "name": "o2u",
            "forget_rate": 0.4,
            "pretraining": {"epochs": 2, **stage},
            "cyclical": {"epochs": 3, **stage, "batch_size": 16, "schedule": {"name": "cyclical", "period": 3}},
            "training": {"epochs": 2, **stage},
        },
        "precision": "fp32",
    } | changes


@pytest.fixture(scope="session")
def template_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    open_store(f"sqlite:///{folder / 'mlflow.db'}")
    return folder


@pytest.fixture
def store_uri(template_store: Path, tmp_path: Path) -> str:
    """A fresh embedded store, as a tracking URI."""
    shutil.copytree(template_store, tmp_path / "store")
    return f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"


@pytest.fixture
def store(store_uri: str) -> Store:
    return open_store(store_uri)


class Net(torch.nn.Module):
    """A linear network without dropout or batch norm, so that a batch can be worked by hand."""

    def __init__(self, inputs: int, K: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(inputs, K)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.linear(images_BCHW.flatten(1))


class LinearModel:
    """Stands where a model's settings stand."""

    def build(self, C: int, H: int, W: int, K: int) -> torch.nn.Module:
        return Net(C * H * W, K)


@dataclass
class OnePixel:
    """A linear model with weights 0 and these logits for any image: (ln 3, 0) is p = (3/4, 1/4)."""

    logits: tuple[float, ...] = (1.0986123, 0.0)

    def build(self, C: int, H: int, W: int, K: int) -> torch.nn.Module:
        network = Net(C * H * W, K)
        torch.nn.init.zeros_(network.linear.weight)
        network.linear.bias.data = torch.tensor(self.logits)
        return network


def samples(N: int = 40, K: int = 4, side: int = 2, seed: int = 0, wrong: int = 0) -> Samples:
    """Return N random samples of one channel; the first `wrong` labels are wrong ones."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (N, 1, side, side), generator=generator, dtype=torch.uint8)
    clean = torch.randint(0, K, (N,), generator=generator)
    given = clean.clone()
    given[:wrong] = (given[:wrong] + 1) % K
    return Samples(images, torch.arange(N) * 3, given, clean)


def make_run(
    train: Samples | None = None,
    *,
    seed: int = 0,
    before: bool = False,
    K: int = 4,
    model: Any = None,
    optimizer: Optimizer | None = None,
    augmentation: Augmentation | None = None,
    val: Samples | None = None,
    test: Samples | None = None,
    steps: int = 1,
    **more: Any,
) -> tuple[Run, list[EpochRecord]]:
    """Return a run of the linear model on random samples, and the list that its epochs go to."""
    told: list[EpochRecord] = []
    train = train or samples()
    test = test or samples(20, seed=1, side=train.images_NCHW.shape[-1])
    identity_KK = torch.eye(K, dtype=torch.float64)
    prepared = Prepared(
        seed=seed,
        device=torch.device("cpu"),
        precision="fp32",
        compiled=False,
        dataset=Dataset("random", tuple(f"class {k}" for k in range(K)), train, test, "0" * 16),
        train=train,
        val=val,
        test=test,
        T_KK=identity_KK,
        empirical_T_KK=None,
        model=model or LinearModel(),
        optimizer=optimizer or SGD(),
        augmentation=augmentation,
        evaluate="before" if before else "after",
        steps=steps,
    )
    return Run(prepared, told.append, **more), told


def make_learner(network: torch.nn.Module, **sgd: float) -> Learner:
    return Learner(network, SGD(**sgd), torch.device("cpu"), "fp32")


@pytest.fixture(scope="session")
def killer():
    """Runs commands that die on demand; see killer.py."""
    from crashing import Killer

    killer = Killer()
    yield killer
    killer.process.stdin.close()
    killer.process.wait(timeout=30)


@pytest.fixture
def place(tmp_path: Path, template_store: Path) -> Path:
    """A folder with a fresh embedded store in mlruns/."""
    shutil.copytree(template_store, tmp_path / "mlruns")
    return tmp_path


@pytest.fixture(scope="session")
def peaceful(killer, tmp_path_factory, template_store):
    """Method -> what a run of it leaves that was never interrupted."""
    from crashing import contents, spec_file

    known = {}

    def of(method: str, **changes: object) -> dict[str, object]:
        key = f"{method} {changes}"
        if key not in known:
            place = tmp_path_factory.mktemp("peaceful")
            shutil.copytree(template_store, place / "mlruns")
            code, text = killer("launch", spec_file(place, method, **changes), "--device", "cpu", cwd=place)
            assert code == 0, text
            known[key] = contents(place)
        return known[key]

    return of
