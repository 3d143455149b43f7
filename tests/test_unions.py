"""Whoever adds to a union (loss, schedule, noise, data set, model, method, command) is told what else it takes."""

import subprocess
import sys
from typing import Any, get_args

import pytest
import test_losses
import test_noise
import test_noise_of_samples
import test_optim
from conftest import REPO

from nlt.augment import Augmentation
from nlt.cli import main
from nlt.data import Data
from nlt.losses import Loss
from nlt.models import Model
from nlt.noise import Noise
from nlt.optim import Optimizer, Schedule
from nlt.spec import Method

UNIONS = {
    "data": Data, "noise": Noise, "augmentation": Augmentation, "model": Model, "method": Method, "loss": Loss,
    "schedule": Schedule, "optimizer": Optimizer,
}  # fmt: skip


def members(union: Any) -> list[type]:
    return list(get_args(get_args(union)[0]))


def name_of(kind: Any) -> str:
    return str(get_args(kind.model_fields["name"].annotation)[0])


EVERY = [(what, kind) for what, union in UNIONS.items() for kind in members(union)]
every_member = pytest.mark.parametrize(("what", "kind"), EVERY, ids=[f"{w}-{name_of(k)}" for w, k in EVERY])


@every_member
def test_it_is_documented(what: str, kind: Any) -> None:
    page = (REPO / "docs" / "experiment-files.md").read_text()
    assert f"`{name_of(kind)}`" in page, f"name `{name_of(kind)}` in docs/experiment-files.md"


@every_member
def test_it_says_what_it_is_and_so_does_each_of_its_fields(what: str, kind: Any) -> None:
    assert kind.__doc__ and len(kind.__doc__) > 20
    bare = [name for name, field in kind.model_fields.items() if name != "name" and not field.description]
    assert bare == []


OF_EVERY_RUN = {
    "data", "train_images", "noise", "model", "method", "loss", "epochs", "batch_size", "lr", "weight_decay", "seed",
    "precision", "imbalance", "optimizer",
}  # fmt: skip


def fields(union: Any, prefix: str = "") -> set[str]:
    return {f"{prefix}{field}" for kind in members(union) for field in kind.model_fields if field != "name"}


def test_no_two_params_of_a_run_have_one_name() -> None:
    """Those of noise, model and method stand side by side in MLflow with those that every run has."""
    of_noise, of_model, of_method = fields(Noise, "noise_"), fields(Model), fields(Method)
    assert not of_noise & of_model | of_noise & of_method | of_model & of_method
    assert not (of_noise | of_model | of_method) & OF_EVERY_RUN


@pytest.mark.parametrize("kind", [*members(Noise), *members(Model)], ids=name_of)
def test_every_noise_and_model_says_in_a_tag_what_it_is(kind: Any) -> None:
    assert "__str__" in vars(kind)


@pytest.mark.parametrize("kind", members(Method), ids=name_of)
def test_every_method_has_a_title_of_its_own(kind: Any) -> None:
    assert [other.title for other in members(Method)].count(kind.title) == 1


@every_member
def test_no_other_kind_has_its_name(what: str, kind: Any) -> None:
    assert [name_of(other) for other in members(UNIONS[what])].count(name_of(kind)) == 1


def values(function: Any, name: str) -> list[Any]:
    """What a test is parametrized with under this name."""
    (mark,) = [mark for mark in function.pytestmark if mark.name == "parametrize" and name in mark.args[0]]
    first = [case.values if hasattr(case, "values") and not isinstance(case, dict) else case for case in mark.args[1]]
    return [case[0] if isinstance(case, tuple) else case for case in first]


def test_every_loss_has_a_value_by_hand_and_is_among_those_tested_at_the_extremes() -> None:
    assert {type(loss) for loss in values(test_losses.test_value_by_hand, "by_hand")} == set(members(Loss))
    assert {type(loss) for loss in test_losses.VARIANTS} == set(members(Loss))


def test_every_noise_has_a_matrix_by_hand_or_none_and_labels_by_hand() -> None:
    assert {type(noise) for noise, _ in test_noise.CASES} == {
        kind for kind in members(Noise) if hasattr(kind, "matrix")
    }
    tests = " ".join(name for name in vars(test_noise_of_samples) if name.startswith("test_"))
    assert [
        name_of(kind) for kind in members(Noise) if not hasattr(kind, "matrix") and name_of(kind) not in tests
    ] == []


def test_every_schedule_has_a_rate_by_hand() -> None:
    """Each is named in its own test of tests/test_optim.py."""
    tests = " ".join(name for name in vars(test_optim) if name.startswith("test_"))
    assert [name_of(kind) for kind in members(Schedule) if name_of(kind) not in tests] == []


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_is_in_the_readme_and_helps(command: str) -> None:
    documents = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
    assert any(f"nlt {command}" in document.read_text() for document in documents)
    done = subprocess.run(
        [sys.executable, "-m", "nlt.cli", command, "--help"], capture_output=True, text=True, cwd=REPO
    )
    assert done.returncode == 0
    assert "\n  nlt " in done.stdout, "the help text has no example"
