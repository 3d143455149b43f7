"""What methods are handed, and what reports say."""

import dataclasses

import pytest
import torch
from conftest import make_run, samples

from nlt.backbones import Lite0
from nlt.losses import CE
from nlt.optim import Constant
from nlt.run import Run
from nlt.settings import BadInput
from nlt.train import Diverged, Stage, evaluate, train_epoch


def stage(epochs=1, lr=0.1, batch_size=16):
    return Stage(epochs=epochs, batch_size=batch_size, schedule=Constant(lr=lr))


def one_epoch(run, **report):
    net = run.learner("net")
    for epoch in run.epochs("training", stage(), net):
        losses_N = train_epoch(net, epoch, CE())
        epoch.report(**report)
    return net, losses_N


def told_losses(epoch, losses_N, keep_N=None):
    """Go through an epoch without training, with these losses."""
    for batch in epoch.batches(keep_N):
        epoch.saw(batch, torch.zeros(len(batch.rows_B), 4), losses_N[batch.rows_B])


def test_a_method_sees_no_clean_label():
    """Whatever a method can reach by public names holds neither the clean labels nor which ones are wrong."""
    train = samples(wrong=15)
    run, _ = make_run(train)
    epoch = next(run.epochs("training", stage(), run.learner("net")))
    (batch, *_) = epoch.batches()
    reachable = [
        value for thing in (run, epoch, batch) for name, value in vars(thing).items() if not name.startswith("_")
    ]
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
        "train/loss", "train/accuracy", "train/images_seen", "test/accuracy", "optim/lr", "time/epoch_seconds",
        "time/images_per_second",
    }  # fmt: skip
    assert metrics["train/loss"] == pytest.approx(float(losses_N.mean()))
    assert metrics["optim/lr"] == 0.1
    test = run._held_out["test"]
    assert metrics["test/accuracy"] == evaluate([net], test.images_NHWC, test.labels_N)
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


def test_average_precision_by_hand_passes_over_samples_without_a_score():
    """The two wrong labels are at ranks 1 and 3 of four: (1/1 + 2/3) / 2; of four pairs one is out of order."""
    run, told = make_run(samples(wrong=2))
    scores_N = torch.full((40,), torch.nan)
    scores_N[[0, 1, 7, 20, 30]] = torch.tensor([9.0, 4.0, 5.0, 1.0, torch.nan])
    one_epoch(run, scores_N=scores_N)
    assert told[0].metrics["noise/average_precision"] == pytest.approx(5 / 6)
    assert told[0].metrics["noise/auc"] == pytest.approx(3 / 4)


def test_images_seen_are_those_that_a_step_went_back_through():
    """40 samples in two views by net, and by other 3 of a batch of 8; what is only looked at does not count."""
    run, told = make_run(samples())
    net, other = run.learner("net"), run.learner("other")
    for epoch in run.epochs("training", Stage(epochs=2, batch_size=8), net):
        for batch in epoch.batches(views=(None, None)):
            logits_BK = net(torch.cat(batch.views))[: len(batch.rows_B)]
            with torch.no_grad():
                other(batch.images_BCHW)
            other.step(other(batch.images_BCHW[:3]).mean())
            losses_B = logits_BK.logsumexp(1)
            net.step(losses_B.mean())
            epoch.saw(batch, logits_BK, losses_B)
        run.predict(net)
    assert [record.metrics["train/images_seen"] for record in told] == [80 + 15, 2 * (80 + 15)]
    for record in told:  # the rate is of the same images
        rate, seconds = (record.metrics[f"time/{name}"] for name in ("images_per_second", "epoch_seconds"))
        assert rate * seconds == pytest.approx(80 + 15)


def test_no_noise_metrics_where_the_truth_is_unknown():
    run, told = make_run(dataclasses.replace(samples(), clean_N=None))
    one_epoch(run, keep_N=torch.arange(40) > 3)
    assert not any(name.startswith("noise/") for name in told[0].metrics)


def test_loss_is_the_mean_over_the_samples_trained_on():
    run, told = make_run()
    keep_N = torch.arange(40) < 4
    for epoch in run.epochs("training", stage(), run.learner("net")):
        told_losses(epoch, torch.tensor([1.0, 2.0, 3.0, 6.0, *[9.0] * 36]), keep_N)
    assert told[0].metrics["train/loss"] == 3.0


def test_evaluate_before_scores_the_weights_the_epoch_began_with():
    """The published code's order: the first epoch shows the untrained network, the last is never scored."""
    accuracies = []
    for before in (False, True):
        run, told = make_run(before=before)
        net = run.learner("net")
        for epoch in run.epochs("training", stage(5, lr=1.0, batch_size=8), net):
            train_epoch(net, epoch, CE())
        accuracies.append([epoch.metrics["test/accuracy"] for epoch in told])
    a, b = accuracies
    assert b[1:] == a[:-1]
    assert len(set(a)) > 1


def test_steps_count_through_all_stages():
    run, told = make_run()
    net = run.learner("net")
    for name, epochs in (("one", 2), ("two", 3)):
        for epoch in run.epochs(name, stage(epochs), net):
            told_losses(epoch, torch.ones(40) * epoch.t)
    assert [(e.step, e.stage, e.t) for e in told] == [
        (1, "one", 1), (2, "one", 2), (3, "two", 1), (4, "two", 2), (5, "two", 3)
    ]  # fmt: skip


def rows_of(run, epochs=1, keep_N=None):
    """The rows of each epoch, in order."""
    found = []
    for epoch in run.epochs("training", stage(epochs, batch_size=7), run.learner("net")):
        found.append([])
        for batch in epoch.batches(keep_N):
            found[-1] += batch.rows_B.tolist()
            epoch.saw(batch, torch.zeros(len(batch.rows_B), 4), torch.zeros(len(batch.rows_B)))
    return found


def test_an_epoch_of_which_nothing_was_seen_is_a_mistake_of_the_method():
    run, told = make_run()
    with pytest.raises(RuntimeError, match="no sample was trained on"):
        list(run.epochs("training", stage(2), run.learner("net")))
    assert told == []


def test_a_loss_that_is_not_finite_fails_any_method():
    """Twenty of forty, which a mean over the finite ones would hide."""
    run, told = make_run()
    epochs = run.epochs("training", stage(), run.learner("net"))
    told_losses(next(epochs), torch.tensor([1.0, torch.nan] * 20))
    with pytest.raises(Diverged, match="the loss of 20 of 40 samples is not finite"):
        next(epochs)
    assert told == []


def test_what_cannot_be_restored_is_refused_at_once():
    run, _ = make_run()
    net = run.learner("net")
    run.buffer("scores_N", torch.zeros(40))
    with pytest.raises(RuntimeError, match="'net' is registered twice"):
        run.learner("net")
    with pytest.raises(RuntimeError, match="'scores_N' is registered twice"):
        run.buffer("scores_N", torch.zeros(40))
    with pytest.raises(RuntimeError, match="'u_N' needs a gradient"):
        run.buffer("u_N", torch.zeros(40, requires_grad=True))
    with pytest.raises(RuntimeError, match="names no learner"):
        next(run.epochs("training", stage()))
    epochs = run.epochs("training", stage(), net)
    next(epochs)
    with pytest.raises(RuntimeError, match="'late' is registered inside the stage 'training'"):
        run.buffer("late", torch.zeros(40))
    epochs.close()
    run.buffer("between", torch.zeros(40))  # no stage is in progress


def test_given_labels_cannot_be_overwritten_by_what_a_method_makes_of_them():
    """`labels_N = run.buffer("labels_N", run.labels_N)`, then written in place, is how one corrects labels."""
    train = samples(wrong=10)
    before_N = train.labels_N.clone()
    run, told = make_run(train)
    labels_N = run.buffer("labels_N", run.labels_N)
    net = run.learner("net")
    for epoch in run.epochs("training", stage(2), net):
        labels_N[:] = 0
        run.labels_N[:] = 1
        train_epoch(net, epoch, CE())
        epoch.report(labels_N=labels_N)
    assert torch.equal(train.labels_N, before_N) and torch.equal(run._train.labels_N, before_N)
    assert told[1].metrics["labels/wrong"] == float((train.clean_N != 0).double().mean())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep_N": torch.ones(40, dtype=torch.int64)}, "keep_N must be a tensor of bool, one for each of 40 samples, found torch.int64"),
        ({"keep_N": torch.ones(7, dtype=torch.bool)}, r"keep_N must be .* found torch.bool of shape \(7,\)"),
        ({"labels_N": torch.zeros(40)}, "labels_N must be a tensor of int64"),
        ({"labels_N": torch.full((40,), 4)}, r"labels_N must lie in \[0, 4\)"),
        ({"scores_N": torch.zeros(40, dtype=torch.int64)}, "scores_N must be a tensor of floats"),
        ({"scores_N": [0.0] * 40}, "scores_N must be a tensor of floats, one for each of 40 samples, found list"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"rate": torch.zeros(3)}, "rate must be one number"),
        ({"rate": "0.3"}, "rate must be one number"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_not_reported(given, message):
    run, told = make_run()
    with pytest.raises(RuntimeError, match=message):
        one_epoch(run, **given)
    assert told == []


def test_a_checkpoint_of_another_version_of_a_method_is_refused_by_name():
    def trained(buffers, **more):
        states = []
        run, _ = make_run(after_epoch=lambda step, state: states.append(state()), **more)
        net = run.learner("net")
        for name, N in buffers.items():
            run.buffer(name, torch.zeros(N))
        for epoch in run.epochs("training", stage(), net):
            train_epoch(net, epoch, CE())
        return states

    (state,) = trained({"a": 4})
    with pytest.raises(BadInput, match=r"holds \['a', 'net'\] and the method registers \['b', 'net'\]"):
        trained({"b": 4}, resume=state)
    with pytest.raises(BadInput, match=r"'a' has the shape \(4,\) in the checkpoint and \(1,\) in the method"):
        trained({"a": 1}, resume=state)


def test_all_that_a_method_reports_is_measured_and_kept():
    """Scores without a mask, changed labels, and numbers of its own; 10 of 40 given labels are wrong."""
    train = samples(wrong=10)
    run, told = make_run(train)
    labels_N = train.labels_N.clone()
    labels_N[:4] = train.clean_N[:4]  # four mended
    labels_N[30] = (labels_N[30] + 1) % 4  # one spoilt
    one_epoch(run, scores_N=torch.arange(40.0).flip(0), labels_N=labels_N, remember_rate=0.75, lam=torch.tensor(2.0))
    (record,) = told
    assert record.metrics["noise/auc"] == 1.0
    assert "noise/precision" not in record.metrics
    assert record.metrics["labels/changed"] == 5 / 40
    assert record.metrics["labels/wrong"] == 7 / 40
    assert (record.metrics["method/remember_rate"], record.metrics["method/lam"]) == (0.75, 2.0)
    assert record.keep_N is None and record.detects
    assert torch.equal(record.labels_N, labels_N)


def test_several_learners_are_judged_by_their_mean_prediction_and_saved_by_name():
    run, told = make_run()
    f, g = run.learner("f"), run.learner("g")
    for epoch in run.epochs("training", stage(lr=1e-30), f, g):
        told_losses(epoch, torch.zeros(40))
    test = run._held_out["test"]
    assert told[0].metrics["test/accuracy"] == evaluate([f, g], test.images_NHWC, test.labels_N)
    assert torch.equal(run.weights()["g.linear.weight"], g.network.linear.weight)
    assert list(run.weights()) == ["f.linear.weight", "f.linear.bias", "g.linear.weight", "g.linear.bias"]


def test_predict_is_of_the_images_as_they_are():
    run, _ = make_run()
    net = run.learner("net")
    images_BCHW = run._train.images_NHWC.permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(run.predict(net), net.network(images_BCHW).log_softmax(1))


def test_every_learner_has_the_rate_and_the_mode_of_the_stage():
    run, _ = make_run()
    net, teacher = run.learner("net"), run.learner("teacher")
    teacher.network.eval()
    for _ in run.epochs("training", stage(lr=0.3), net):
        assert (net.lr, teacher.lr, net.network.training, teacher.network.training) == (0.3, 0.3, True, True)
        break


def test_every_epoch_has_each_sample_once_in_a_new_order():
    first, second = rows_of(make_run()[0], epochs=2)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


def test_a_mask_leaves_out_what_it_should():
    (rows,) = rows_of(make_run()[0], keep_N=torch.arange(40) % 4 != 0)
    assert sorted(rows) == [i for i in range(40) if i % 4]


def test_the_seed_decides_weights_and_order_and_nothing_else_does():
    def draws(seed):
        run, _ = make_run(seed=seed)
        rows = rows_of(run)
        return run.learners["net"].network.linear.weight.flatten().tolist(), rows

    once = draws(5)
    torch.rand(17)
    assert draws(5) == once
    weights, order = draws(6)
    assert weights != once[0]
    assert order != once[1]


def test_features_that_are_made_draw_nothing_of_what_comes_after(tmp_path):
    """From a cache nothing is drawn; of a network that is built the weights are, before the trained ones replace them."""
    drawn = []
    for _ in range(2):
        of, _ = make_run()
        run = Run(dataclasses.replace(of._prepared, cache=tmp_path), lambda epoch: None)
        run.features(Lite0(image_size=32))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_what_a_report_keeps_does_not_change_with_the_methods_own_tensors():
    """`scores_N += ...` in the next epoch must not rewrite the last epoch's record."""
    run, told = make_run()
    scores_N, keep_N = torch.zeros(40), torch.ones(40, dtype=torch.bool)
    for epoch in run.epochs("cyclical", stage(2), run.learner("net")):
        told_losses(epoch, torch.ones(40))
        scores_N += epoch.t
        keep_N[epoch.t] = False
        epoch.report(keep_N=keep_N, scores_N=scores_N)
    assert told[0].scores_N.tolist() == [1.0] * 40
    assert int(told[0].keep_N.sum()) == 39
