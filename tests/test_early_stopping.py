"""A stage that ends early by its accuracy on noisy validation samples: when, with which weights, resumed, as a run.

The network is made to predict one class for all images, a class for each epoch; its accuracy is that class's share.
"""

import copy
from typing import Any

import pytest
import torch
from conftest import make_run, samples, tiny
from test_every_method import equal, known

from nlt.data import Samples
from nlt.events import Finished, Progressed, Started
from nlt.launcher import Listener, Options, Result, launch, resume, unfinished_runs
from nlt.optim import Constant
from nlt.prepare import prepare
from nlt.reading import check
from nlt.run import EpochRecord, Run
from nlt.settings import BadInput
from nlt.spec import Experiment
from nlt.sweep import Job, plan
from nlt.terminal import Board, Ledger, Lines
from nlt.tracking import Store, Tracker
from nlt.train import Epoch, Learner, Stage


def of_classes(*shares: int) -> Samples:
    """Ten samples, so many of each class."""
    labels_N = torch.repeat_interleave(torch.arange(4), torch.tensor(shares))
    return Samples(samples(10).images_NCHW, torch.arange(10), labels_N, labels_N)


VAL, TEST = of_classes(1, 2, 3, 4), of_classes(4, 3, 2, 1)  # class 2: 0.3 of the former, 0.2 of the latter
CLASSES = [
    1,
    2,
    0,
    2,
    1,
    3,
]  # validation accuracies 0.2, 0.3, 0.1, 0.3, 0.2, 0.4: the second is the best of the first 5


def stage(epochs: int) -> Stage:
    return Stage(epochs=epochs, batch_size=40, schedule=Constant(lr=0.1))


def predict_one_class(run: Run, net: Learner, epoch: Epoch, k: int) -> None:
    for batch in epoch.batches():
        epoch.saw(batch, torch.zeros(len(batch.rows_B), 4), torch.zeros(len(batch.rows_B)))
    net.network.linear.weight.data.zero_()
    net.network.linear.bias.data.copy_(torch.eye(4)[k] * epoch.t)


def stopped(patience: int | None, stages: int = 1, **more: Any) -> tuple[dict[int, Any], list[EpochRecord], Run]:
    """Run stages of these classes; return the state after each epoch, what was told, and the run."""
    states: dict[int, Any] = {}
    run, told = make_run(
        val=VAL, test=TEST, steps=len(CLASSES) * stages,
        after_epoch=lambda step, state: states.update({step: copy.deepcopy(state())}), **more,
    )  # fmt: skip
    net = run.learner("net")
    for i in range(stages):
        for epoch in run.epochs(f"stage {i}", stage(len(CLASSES)), net, patience=patience):
            predict_one_class(run, net, epoch, CLASSES[epoch.t - 1])
    return states, told, run


def of(told: list[EpochRecord], key: str) -> list[float]:
    return [record.metrics[key] for record in told]


def test_it_ends_when_the_accuracy_has_not_risen_for_as_many_epochs_with_the_best_weights() -> None:
    """An equal accuracy, in epoch 4, is no rise: two epochs after the best one patience 2 is at an end."""
    _, told, run = stopped(2)
    assert of(told, "val/accuracy") == pytest.approx([0.2, 0.3, 0.1, 0.3])
    assert of(told, "test/accuracy") == pytest.approx([0.3, 0.2, 0.4, 0.2])
    assert run.weights()["linear.bias"].tolist() == [0, 0, 2, 0]  # of epoch 2, not of epoch 4
    assert run.best_val is not None and run.best_val.t == 2
    assert [record.steps for record in told] == [6, 6, 6, 4]
    assert (run.step, run.steps) == (4, 4)


def test_the_last_epoch_is_measured_with_the_weights_taken_back() -> None:
    """Epoch 5 predicts class 1 (0.2 and 0.3), the best, epoch 2, class 2 (0.3 and 0.2)."""
    _, told, run = stopped(3)
    assert len(told) == 5
    assert (told[-1].metrics["val/accuracy"], told[-1].metrics["test/accuracy"]) == pytest.approx((0.3, 0.2))
    assert run.weights()["linear.bias"].tolist() == [0, 0, 2, 0]


def test_an_epoch_more_patience_reaches_the_next_rise() -> None:
    _, told, run = stopped(4)
    assert of(told, "val/accuracy") == pytest.approx([0.2, 0.3, 0.1, 0.3, 0.2, 0.4])
    assert (run.step, run.steps, told[-1].steps) == (6, 6, 6)
    assert run.weights()["linear.bias"].tolist() == [0, 0, 0, 6]


def test_a_stage_that_runs_all_its_epochs_takes_the_best_weights_back_too() -> None:
    run, told = make_run(val=VAL, test=TEST, steps=3)
    net = run.learner("net")
    for epoch in run.epochs("training", stage(3), net, patience=5):
        predict_one_class(run, net, epoch, CLASSES[epoch.t - 1])
    assert of(told, "val/accuracy") == pytest.approx([0.2, 0.3, 0.3])
    assert of(told, "test/accuracy") == pytest.approx([0.3, 0.2, 0.2])
    assert run.weights()["linear.bias"].tolist() == [0, 0, 2, 0]


def test_without_patience_nothing_is_taken_back() -> None:
    run, told = make_run(val=VAL, test=TEST, steps=3)
    net = run.learner("net")
    for epoch in run.epochs("training", stage(3), net):
        predict_one_class(run, net, epoch, CLASSES[epoch.t - 1])
    assert of(told, "test/accuracy") == pytest.approx([0.3, 0.2, 0.4])
    assert run.weights()["linear.bias"].tolist() == [3, 0, 0, 0]


@pytest.mark.parametrize("stages", [1, 2])
def test_resumed_after_any_epoch_it_ends_alike(stages: int) -> None:
    """After the last epoch too, from which nothing is left to train; and with a stage behind it that ended early."""
    states, told, _ = stopped(3, stages)
    assert list(states) == list(range(1, 5 * stages + 1))
    assert [record.steps for record in told] == [6 * stages] * 4 + [6 * stages - 1] * (1 + 4 * (stages - 1)) + [10] * (stages - 1)  # fmt: skip
    for step, state in states.items():
        resumed, told_again, run = stopped(3, stages, resume=copy.deepcopy(state))
        assert equal(resumed, {later: states[later] for later in range(step + 1, 5 * stages + 1)})
        assert equal(list(map(known, told_again)), list(map(known, told[step:])))
        assert (run.step, run.steps) == (5 * stages, 5 * stages)
        assert run.weights()["linear.bias"].tolist() == [0, 0, 2, 0]


def test_two_learners_take_back_the_weights_of_both() -> None:
    run, _ = make_run(val=VAL, test=TEST, steps=3)
    f, g, bystander = run.learner("f"), run.learner("g"), run.learner("bystander")
    before = bystander.network.linear.weight.clone()
    for epoch in run.epochs("training", stage(3), f, g, patience=1):
        predict_one_class(run, f, epoch, CLASSES[epoch.t - 1])
        g.network.linear.bias.data.fill_(epoch.t)
        g.network.linear.weight.data.zero_()
    weights = run.weights()
    assert weights["f.linear.bias"].tolist() == [0, 0, 2, 0]
    assert weights["g.linear.bias"].tolist() == [2, 2, 2, 2]
    assert torch.equal(bystander.network.linear.weight, before)


def test_a_checkpoint_of_nlt_0_1_still_loads() -> None:
    states, told, _ = stopped(None)
    state = states[3]
    del state["skipped"], state["best_val"]["t"]
    _, told_again, _ = stopped(None, resume=state)
    assert equal(list(map(known, told_again)), list(map(known, told[3:])))


# ---- as a run ----


def spec(patience: int | None = 2, lr: float = 1e-9, val_fraction: float = 0.2, **changes: Any) -> Experiment:
    """Standard, at most 9 epochs on 100 digits; at this learning rate no epoch is better than the first."""
    training = {"epochs": 9, "batch_size": 32, "schedule": {"name": "constant", "lr": lr}}
    method = {"name": "standard", "early_stopping": patience, "training": training}
    data = {"name": "digits", "limit": 100, "val_fraction": val_fraction}
    return check(tiny(method=method, data=data, checkpoint_every=2, **changes), "test")


def run(store: Store, **more: Any) -> Result:
    return launch(spec(), store=store, options=Options(device="cpu"), listener=Listener(**more))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"val_fraction": 0.0}, "data.val_fraction: the method stops by its accuracy on held-out"),
        ({"evaluate": "before"}, 'evaluate: "before" never measures the last weights'),
    ],
)
def test_what_it_needs_is_asked_for_before_the_run(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        prepare(spec(**wrong), 0, "cpu", "data")
    prepare(spec(patience=None, **wrong), 0, "cpu", "data")


def kill(*_: object) -> None:
    """What stops a run at once."""
    raise KeyboardInterrupt


def assert_finished_everywhere(store: Store, result: Result) -> None:
    logged = store.client.get_run(result.run_id)
    assert logged.info.status == "FINISHED"
    assert [point.step for point in store.client.get_metric_history(result.run_id, "test/accuracy")] == [1, 2, 3]
    final = logged.data.metrics
    assert final["final/test_accuracy_last"] == final["final/test_accuracy_at_best_val"]
    assert (logged.data.params["epochs"], logged.data.params["early_stopping"]) == ("9", "2")
    assert unfinished_runs(store) == []
    assert not (store.runs / result.run_id).exists()  # nothing is left to deliver
    again = plan(store, [spec()], (0,), None, False, pytest.fail)
    assert (again.jobs, [found.run_id for found in again.finished]) == ([], [result.run_id])


def test_a_run_that_stops_early_is_finished_whatever_interrupts_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped when the last epoch is journaled and not saved; and when it is saved and the end not noted."""
    whole = run(store)
    assert [(epoch.step, epoch.steps) for epoch in whole.epochs] == [(1, 9), (2, 9), (3, 3)]
    assert_finished_everywhere(store, whole)
    for saved in (2, 3):
        with monkeypatch.context() as patch:
            if saved == 3:
                patch.setattr(Tracker, "finish", kill)
            with pytest.raises(KeyboardInterrupt, match="interrupted after 3 of 3 epochs"):
                run(store, on_epoch=lambda epoch, saved=saved: epoch.step == saved + 1 and kill())
        (unfinished,) = unfinished_runs(store)
        told: list[EpochRecord] = []
        result = resume(unfinished, store=store, options=Options(device="cpu"), listener=Listener(on_epoch=told.append))
        assert [epoch.step for epoch in told] == list(range(saved + 1, 4))
        assert equal(list(map(known, result.epochs)), list(map(known, whole.epochs)))
        assert result.metrics.keys() == whole.metrics.keys()
        assert all(result.metrics[key] == whole.metrics[key] for key in whole.metrics if "seconds" not in key)
        assert_finished_everywhere(store, result)


def test_displays_count_what_is_left_by_what_was_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    _, told, _ = stopped(3)
    shown = [Progressed(e.step, e.steps + 3 * (e.step < 5), e.stage, e.t, e.metrics) for e in told]
    jobs = [Job(spec(), seed) for seed in (0, 1)]
    with Lines(jobs) as show:
        for event in (Started("a" * 32, "digits", 0, 9), *shown):
            show(0, event)
    *_, fourth, last = capsys.readouterr().out.splitlines()
    assert fourth.startswith("  4/9 stage 0") and last.startswith("  5/5 stage 0")
    assert last.endswith("0:00 left")
    board = Board(Ledger(jobs, []))
    with board as show:
        for event in (Started("a" * 32, "digits", 0, 9), *shown, Finished("x", 0, "a" * 32, {})):
            show(0, event)
    assert (board._steps, board._done) == (5 + 9, 5)
