"""What holds for every method of the union: a new one is tested the day it is added.

Each is run as its experiment file on digits says, but for three epochs a stage and on 40 random images of 6 x 6 pixels with
a linear network. `python tests/test_every_method.py NAME ...` records the golden losses of these methods.
"""

import copy
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import REPO, make_run, samples

from nlt.losses import MAE
from nlt.methods.o2u import O2U
from nlt.optim import Constant
from nlt.reading import load
from nlt.run import EpochRecord
from nlt.spec import Method
from nlt.train import Stage, train_epoch

NAMES = [get_args(kind.model_fields["name"].annotation)[0] for kind in get_args(get_args(Method)[0])]
SIDE = 6
GOLDEN = Path(__file__).parent / "golden"
every_method = pytest.mark.parametrize("name", NAMES)


@cache
def experiment_files() -> dict[str, Path]:
    """Method -> an experiment file that runs it on digits."""
    files = sorted((REPO / "experiments").glob("quickstart/*.json")) + sorted(
        (REPO / "experiments").glob("digits/*.json")
    )
    return {load(file).method.name: file for file in reversed(files)}


def small(name: str) -> Any:
    method = load(experiment_files()[name]).method
    stages = {key: stage for key, stage in method if isinstance(stage, Stage)}
    return method.model_copy(
        update={key: stage.model_copy(update={"epochs": 3, "batch_size": 8}) for key, stage in stages.items()}
    )


def state_by_step(method: Any, **more: Any) -> tuple[dict[int, Any], list[EpochRecord]]:
    """Run a method; return what a checkpoint would hold after each epoch, and what was told of each."""
    states: dict[int, Any] = {}
    run, told = make_run(
        samples(wrong=12, side=SIDE),
        after_epoch=lambda step, state: states.update({step: copy.deepcopy(state())}),
        **more,
    )
    method.train(run)
    return states, told


def equal(one: Any, other: Any) -> bool:
    """To the last bit, NaN being equal to itself."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def known(record: EpochRecord) -> dict[str, Any]:
    """A record without what the clock says."""
    metrics = {key: value for key, value in record.metrics.items() if not key.startswith("time/")}
    return vars(record) | {"metrics": metrics}


@every_method
def test_the_same_seed_gives_the_same_numbers_and_another_one_others(name: str) -> None:
    (states, told), (again, told_again), (other, _) = (state_by_step(small(name), seed=seed) for seed in (0, 0, 1))
    assert equal(states, again)
    assert equal(list(map(known, told)), list(map(known, told_again)))
    assert not equal(states[max(states)]["learners"], other[max(other)]["learners"])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in NAMES),
        ("o2u", {"restart": "fresh", "act": "relabel"}),
        ("cleaned", {"act": "remove_at_random"}),
        ("cleaned", {"act": "soften"}),
    ],
    ids=[*NAMES, "o2u, fresh, relabel", "cleaned, at random", "cleaned, soften"],
)
def test_resumed_after_any_epoch_it_ends_as_if_nothing_had_happened(name: str, changes: dict[str, Any]) -> None:
    """What a method forgets to register, or registers too late, shows here."""
    method = small(name).model_copy(update=changes)
    states, told = state_by_step(method)
    assert list(states) == [record.step for record in told] == list(range(1, len(told) + 1))
    for step, state in states.items():
        resumed, told_again = state_by_step(method, resume=copy.deepcopy(state))
        assert list(resumed) == list(range(step + 1, len(told) + 1))
        off = [f"{what}.{key}" for later in resumed for what in ("learners", "buffers") for key in states[later][what]
               if not equal(resumed[later][what].get(key), states[later][what][key])]  # fmt: skip
        same = equal(resumed, {later: states[later] for later in resumed})
        assert same, f"resumed after epoch {step}, {sorted(set(off))} end otherwise: is all registered that they need?"
        assert equal(list(map(known, told_again)), list(map(known, told[step:])))


@every_method
def test_golden_losses(name: str) -> None:
    """A linear network in fp32: processors differ in the seventh digit. And it reports scores unless it says not to."""
    file = GOLDEN / f"{name}.json"
    assert file.exists(), f"python tests/test_every_method.py {name} records it"
    golden = json.loads(file.read_text())
    _, told = state_by_step(small(name))
    assert [record.metrics["train/loss"] for record in told] == pytest.approx(golden, rel=1e-4)
    scored = any(record.scores_N is not None for record in told)
    assert scored == getattr(small(name), "reports_scores", True), "`nlt detect --detector` asks for reports_scores"


@every_method
def test_it_has_a_section_in_the_documentation_and_an_experiment_on_digits(name: str) -> None:
    assert f"\n## `{name}`\n" in (REPO / "docs" / "methods.md").read_text()
    assert name in experiment_files()


@every_method
def test_it_never_reaches_for_what_a_run_keeps_to_itself(name: str) -> None:
    """Clean labels may be anything: no number of the training depends on them."""
    plain = samples(wrong=12, side=SIDE)
    lied = samples(wrong=12, side=SIDE)
    lied.clean_N.copy_(lied.clean_N.flip(0))
    ends = []
    for train in (plain, lied):
        run, told = make_run(train)
        small(name).train(run)
        ends.append((run.weights(), [(r.losses_N, r.keep_N, r.scores_N, r.labels_N) for r in told]))
    assert equal(*ends)


# ---- stages in common ----


def another(value: Any) -> Any:
    """A setting unlike the given one, in all that a stage has."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value / 2 if isinstance(value, float) else value + 1
    assert isinstance(value, Stage), "say here how a setting of this kind may differ"
    return Stage(epochs=value.epochs + 1, batch_size=value.batch_size + 3, loss=MAE(), schedule=Constant(lr=0.07))


def reads_early(method: Any) -> list[str]:
    """Which of the settings that are said to be read by the last stage alone change what comes before it."""
    *earlier, _ = [value for _, value in method if isinstance(value, Stage)]
    before = sum(stage.epochs for stage in earlier)
    states, told = state_by_step(method)
    found = []
    for key in sorted(getattr(method, "read_by_last_stage_alone", ())):
        other_states, other_told = state_by_step(method.model_copy(update={key: another(getattr(method, key))}))
        same = equal(states[before], other_states[before])
        if not same or not equal(*([known(r) for r in records[:before]] for records in (told, other_told))):
            found.append(key)
    return found


@every_method
def test_what_the_last_stage_alone_reads_is_read_by_it_alone(name: str) -> None:
    early = reads_early(small(name))
    assert early == [], f"read_by_last_stage_alone names {early}, which change the epochs before the last stage"


class ReadsEarly(O2U):
    """The fault: a first stage that trains with the loss of the last one."""

    def train(self, run: Any) -> None:
        net = run.learner("net")
        for epoch in run.epochs("pretraining", self.pretraining, net):
            train_epoch(net, epoch, self.training.loss)
        for name, stage in (("cyclical", self.cyclical), ("training", self.training)):
            for epoch in run.epochs(name, stage, net):
                train_epoch(net, epoch, stage.loss)


def test_a_first_stage_that_reads_a_setting_of_the_last_is_noticed() -> None:
    assert reads_early(ReadsEarly(**dict(small("o2u")))) == ["training"]


if __name__ == "__main__":
    for method_name in sys.argv[1:]:
        losses = [float(f"{record.metrics['train/loss']:.7g}") for record in state_by_step(small(method_name))[1]]
        (GOLDEN / f"{method_name}.json").write_text(json.dumps(losses) + "\n")
