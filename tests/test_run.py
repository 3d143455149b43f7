"""What methods are handed, and what reports say."""

import dataclasses

import pytest
import torch
from conftest import make_run, samples

from nlt.losses import CE
from nlt.train import evaluate, train_epoch


def one_epoch(run, **report):
    net = run.learner("net")
    net.set_lr(0.1)
    for _ in run.epochs("training", 1, net):
        losses_N = train_epoch(net, run.batches(16), CE())
        run.report(losses_N=losses_N, **report)
    return net, losses_N


def test_a_method_sees_no_clean_label():
    """Whatever a method can reach by public names holds neither the clean labels nor which ones are wrong."""
    train = samples(wrong=15)
    run, _ = make_run(train)
    batches = run.batches(8)
    reachable = [value for thing in (run, batches) for name, value in vars(thing).items() if not name.startswith("_")]
    tensors = [value for value in reachable if isinstance(value, torch.Tensor)]
    assert tensors  # the given labels at least
    for tensor in tensors:
        assert not torch.equal(tensor, train.clean_N)
        assert not torch.equal(tensor, train.clean_N != train.labels_N)


def test_metrics_of_an_epoch_without_detection():
    run, told = make_run(samples(wrong=10))
    net, losses_N = one_epoch(run)
    metrics = told[0].metrics
    assert set(metrics) == {
        "train/loss", "train/accuracy", "test/accuracy", "optim/lr", "time/epoch_seconds", "time/images_per_second"
    }  # fmt: skip
    assert metrics["train/loss"] == pytest.approx(float(losses_N.mean()))
    assert metrics["optim/lr"] == 0.1
    test = run._held_out["test"]
    assert metrics["test/accuracy"] == evaluate(net, test.images_NHWC, test.labels_N)
    assert metrics["time/images_per_second"] == pytest.approx(40 / metrics["time/epoch_seconds"])


def test_detection_metrics_by_hand():
    """40 samples, the first 10 wrong. Removed: 0..5 and 10, 11, so 6 of 8 are wrong, 6 of 10 found, 4 of 32 remain."""
    run, told = make_run(samples(wrong=10))
    keep_N = torch.ones(40, dtype=torch.bool)
    keep_N[[0, 1, 2, 3, 4, 5, 10, 11]] = False
    one_epoch(run, keep_N=keep_N, scores_N=torch.arange(40.0).flip(0))
    metrics = told[0].metrics
    assert metrics["noise/precision"] == 6 / 8
    assert metrics["noise/recall"] == 6 / 10
    assert metrics["noise/remaining"] == 4 / 32
    assert metrics["noise/auc"] == 1.0  # the first ten have the highest scores


def test_no_noise_metrics_where_the_truth_is_unknown():
    run, told = make_run(dataclasses.replace(samples(), clean_N=None))
    one_epoch(run, keep_N=torch.arange(40) > 3)
    assert not any(name.startswith("noise/") for name in told[0].metrics)


def test_loss_is_the_mean_over_the_samples_trained_on():
    run, told = make_run()
    net = run.learner("net")
    for _ in run.epochs("training", 1, net):
        losses_N = torch.full((40,), torch.nan)
        losses_N[:4] = torch.tensor([1.0, 2.0, 3.0, 6.0])
        run.report(losses_N=losses_N)
    assert told[0].metrics["train/loss"] == 3.0
    assert told[0].metrics["time/images_per_second"] == pytest.approx(4 / told[0].metrics["time/epoch_seconds"])


def test_evaluate_before_scores_the_weights_the_epoch_began_with():
    """The published code's order: the first epoch shows the untrained network, the last is never scored."""
    accuracies = []
    for before in (False, True):
        run, told = make_run(before=before)
        net = run.learner("net")
        net.set_lr(1.0)
        for _ in run.epochs("training", 5, net):
            run.report(losses_N=train_epoch(net, run.batches(8), CE()))
        accuracies.append([epoch.metrics["test/accuracy"] for epoch in told])
    a, b = accuracies
    assert b[1:] == a[:-1]
    assert len(set(a)) > 1


def test_steps_count_through_all_stages():
    run, told = make_run()
    net = run.learner("net")
    for stage, epochs in (("one", 2), ("two", 3)):
        for t in run.epochs(stage, epochs, net):
            run.report(losses_N=torch.ones(40) * t)
    assert [(e.step, e.stage, e.t) for e in told] == [
        (1, "one", 1), (2, "one", 2), (3, "two", 1), (4, "two", 2), (5, "two", 3)
    ]  # fmt: skip


def test_an_epoch_without_a_report_is_a_mistake_of_the_method():
    run, _ = make_run()
    with pytest.raises(RuntimeError, match="exactly once"):
        list(run.epochs("training", 2, run.learner("net")))


def test_every_epoch_has_each_sample_once_in_a_new_order():
    run, _ = make_run()
    first, second = run.batches(7).rows_M, run.batches(7).rows_M
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(40))
    assert first.tolist() != second.tolist()


def test_a_mask_leaves_out_what_it_should():
    run, _ = make_run()
    keep_N = torch.arange(40) % 4 != 0
    rows_M = run.batches(7, keep_N).rows_M
    assert sorted(rows_M.tolist()) == [i for i in range(40) if i % 4]


def test_the_seed_decides_weights_and_order_and_nothing_else_does():
    def draws(seed):
        run, _ = make_run(seed=seed)
        return run.learner("net").network.linear.weight.flatten().tolist(), run.batches(7).rows_M.tolist()

    once = draws(5)
    torch.rand(17)
    assert draws(5) == once
    weights, order = draws(6)
    assert weights != once[0]
    assert order != once[1]


def test_what_a_report_keeps_does_not_change_with_the_methods_own_tensors():
    """`scores_N += ...` in the next epoch must not rewrite the last epoch's record."""
    run, told = make_run()
    net = run.learner("net")
    scores_N, keep_N = torch.zeros(40), torch.ones(40, dtype=torch.bool)
    for t in run.epochs("cyclical", 2, net):
        scores_N += t
        keep_N[t] = False
        run.report(losses_N=torch.ones(40), keep_N=keep_N, scores_N=scores_N)
    assert told[0].scores_N.tolist() == [1.0] * 40
    assert int(told[0].keep_N.sum()) == 39
