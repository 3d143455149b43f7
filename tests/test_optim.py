"""Learning rates and optimizer steps against numbers worked out by hand and against the published code's rule."""

import json
from typing import Any

import published
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from nlt.optim import SGD, AdamW, Constant, Cosine, Cyclical, Optimizer, Schedule, Step


@pytest.mark.parametrize(
    ("offset", "t", "by_hand"),
    [
        # s = 1/10: 0.9 * 0.01 + 0.1 * 0.001; s = 1/2: 0.005 + 0.0005; s = 1: r2
        (0, 1, 0.0091),
        (0, 2, 0.0082),
        (0, 5, 0.0055),
        (0, 9, 0.0019),
        (0, 10, 0.001),
        (0, 11, 0.0091),
        (0, 250, 0.001),
        # The published code is one epoch further: the first round has 9 epochs.
        (1, 1, 0.0082),
        (1, 9, 0.001),
        (1, 10, 0.0091),
        (1, 19, 0.001),
        (1, 250, 0.0091),
    ],
)
def test_cyclical_by_hand(offset: int, t: int, by_hand: float) -> None:
    assert Cyclical(r1=0.01, r2=0.001, period=10, offset=offset).at(t, 250) == pytest.approx(by_hand, rel=1e-12)


def test_cyclical_defaults_are_the_papers() -> None:
    assert Cyclical() == Cyclical(r1=0.01, r2=0.001, period=10, offset=0)


def test_cyclical_of_period_1_stays_at_the_minimum() -> None:
    assert [Cyclical(period=1).at(t, 5) for t in (1, 2, 5)] == pytest.approx([0.001] * 3)


def test_step_default_over_100_epochs() -> None:
    rates = [Step().at(t, 100) for t in range(1, 101)]
    assert rates == [0.01] * 25 + [0.005] * 25 + [0.001] * 50


@pytest.mark.parametrize(("n", "fractions"), [(100, (0.2424, 0.4949)), (30, (0.2413, 0.4827)), (50, (0.2448, 0.4897))])
def test_fractions_of_as_published_give_the_published_rates(n: int, fractions: tuple[float, ...]) -> None:
    """The published code runs `for epoch in range(1, n)`, so n - 1 epochs, and compares `epoch` with fractions of n."""
    step = Step(fractions=fractions)
    assert [step.at(t, n - 1) for t in range(1, n)] == [published.step_lr(epoch, n) for epoch in range(1, n)]


def test_each_step_of_the_published_code_comes_one_epoch_before_the_defaults() -> None:
    changes = [[t for t in range(2, 100) if at(t) != at(t - 1)] for at in (
        lambda t: published.step_lr(t, 100), lambda t: Step().at(t, 100))]  # fmt: skip
    assert changes == [[25, 50], [26, 51]]


def test_offset_1_gives_the_published_cyclical_rates() -> None:
    rates = [Cyclical(offset=1).at(t, 19) for t in range(1, 20)]
    assert rates == pytest.approx([published.cyclical_lr(epoch) for epoch in range(1, 20)], rel=1e-12)


@pytest.mark.parametrize("percent", range(1, 100))
def test_step_changes_exactly_where_the_fraction_is_over(percent: int) -> None:
    """0.29 * 100 is 28.999999999999996: the change must not slip by an epoch."""
    rates = [Step(lrs=(2.0, 1.0), fractions=(percent / 100,)).at(t, 100) for t in range(1, 101)]
    assert rates == [2.0] * percent + [1.0] * (100 - percent)


def test_step_in_a_stage_of_one_epoch_takes_the_first_rate() -> None:
    assert Step().at(1, 1) == 0.01


@pytest.mark.parametrize(
    "fields",
    [
        {"lrs": (0.1, 0.01)},  # two fractions by default
        {"lrs": (0.1,), "fractions": (0.5,)},
        {"fractions": (0.5, 0.25)},
        {"fractions": (0.5, 0.5)},
        {"fractions": (0.5, 1.0)},
        {"fractions": (0.0, 0.5)},
        {"lrs": (), "fractions": ()},
        {"lrs": (0.1, 0.0, 0.1)},
    ],
)
def test_step_that_does_not_fit_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Step(**fields)


@pytest.mark.parametrize(
    ("t", "by_hand"),
    [
        (1, 0.2),  # cos 0 = 1
        (4, 0.1525),  # cos 60 degrees = 1/2: 0.01 + 0.19 * 0.75
        (7, 0.0575),  # cos 120 degrees = -1/2: 0.01 + 0.19 * 0.25
        (9, 0.01 + 0.19 * 0.0301537),  # cos 160 degrees = -0.9396926
    ],
)
def test_cosine_by_hand(t: int, by_hand: float) -> None:
    assert Cosine(lr=0.2, final_lr=0.01).at(t, 9) == pytest.approx(by_hand, rel=1e-6)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    """Epoch 6 of 10: 5 of 10 are over, cos 90 degrees = 0. The default ends at 0, one epoch after the last."""
    assert Cosine(lr=0.1).at(6, 10) == pytest.approx(0.05)
    assert Cosine(lr=0.1).at(11, 10) == pytest.approx(0)


def test_constant() -> None:
    assert [Constant(lr=0.03).at(t, 9) for t in (1, 5, 9)] == [0.03] * 3


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"name": "constant", "lr": 0.1}, Constant),
        ({"name": "step", "lrs": [0.1, 0.01], "fractions": [0.5]}, Step),
        ({"name": "cosine", "lr": 0.1}, Cosine),
        ({"name": "cyclical", "offset": 1}, Cyclical),
    ],
)
def test_union_picks_by_name_and_survives_a_round_trip(fields: dict[str, Any], kind: type) -> None:
    schedule: Any = TypeAdapter(Schedule).validate_json(json.dumps(fields))
    assert type(schedule) is kind
    assert TypeAdapter(Schedule).validate_json(schedule.model_dump_json()) == schedule


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "constant", "lr": 0}',
        '{"name": "cosine", "lr": 0.1, "final_lr": -0.1}',
        '{"name": "cyclical", "period": 0}',
        '{"name": "cyclical", "r2": 0}',
        '{"name": "constant", "lr": 1e300}',
        '{"name": "cosine", "lr": 0.1, "final_lr": 1e300}',
    ],
)
def test_schedules_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Schedule).validate_json(text)


@pytest.mark.parametrize(
    "fields", [{"momentum": 1.0}, {"momentum": -0.1}, {"weight_decay": -1e-4}, {"weight_decay": 1e300}]
)
def test_sgd_out_of_range_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SGD(**fields)  # type: ignore[arg-type]


def test_sgd_two_steps_by_hand() -> None:
    """Weight w = 1 without bias, loss 2 w (gradient 2), learning rate 0.1, momentum 0.5, weight decay 0.1.

    Step 1: gradient 2 + 0.1 * 1 = 2.1, velocity 2.1, w = 1 - 0.21 = 0.79.
    Step 2: gradient 2 + 0.1 * 0.79 = 2.079, velocity 0.5 * 2.1 + 2.079 = 3.129, w = 0.79 - 0.3129 = 0.4771.
    (With Nesterov's momentum step 1 would already give 1 - 0.1 * (2.1 + 0.5 * 2.1) = 0.685.)
    """
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    optimizer = SGD(momentum=0.5, weight_decay=0.1).build(network)
    weights = []
    for _ in range(2):
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.zero_grad()
        (2 * network(torch.ones(1, 1))).sum().backward()
        optimizer.step()
        weights.append(network.weight.item())
    assert weights == pytest.approx([0.79, 0.4771], rel=1e-6)


def test_adamw_two_steps_by_hand() -> None:
    """Weight w = 1 without bias, gradients 2 and -1, learning rate 0.1, weight decay 0.5.

    Step 1: w = 1 - 0.1 * 0.5 * 1 = 0.95; both means, corrected for their start at 0, are the gradient and its square:
    w = 0.95 - 0.1 * 2 / 2 = 0.85.
    Step 2: w = 0.85 * 0.95 = 0.8075; m = (0.9 * 0.2 - 0.1) / 0.19 = 0.4210526,
    v = (0.999 * 0.004 + 0.001) / 0.001999 = 2.4992496: w = 0.8075 - 0.1 * 0.4210526 / 1.5809015 = 0.7808663.
    (With the decay in the gradient, as Adam has it, step 1 would give 0.9.)
    """
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    optimizer = AdamW(weight_decay=0.5).build(network)
    weights = []
    for gradient in (2, -1):
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.zero_grad()
        (gradient * network(torch.ones(1, 1))).sum().backward()
        optimizer.step()
        weights.append(network.weight.item())
    assert weights == pytest.approx([0.85, 0.7808663], rel=1e-6)


@pytest.mark.parametrize("settings", [SGD(), AdamW()], ids=lambda settings: settings.name)
def test_it_stands_still_until_a_schedule_sets_its_rate(settings: Optimizer) -> None:
    network = torch.nn.Linear(1, 1)
    before = network.weight.item()
    optimizer = settings.build(network)
    network(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert network.weight.item() == before


@pytest.mark.parametrize("settings", [SGD(), AdamW()], ids=lambda settings: settings.name)
def test_it_moves_every_parameter(settings: Optimizer) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.Flatten())
    optimizer = settings.build(network)
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in network.parameters()}


def test_sgd_is_the_papers() -> None:
    assert SGD() == SGD(momentum=0.9, weight_decay=1e-4)  # section 3
