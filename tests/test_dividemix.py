"""DivideMix against its paper: a step worked by hand, who divides for whom, the mixture, batches side by side."""

from typing import Any

import pytest
import torch
from conftest import Net, make_learner, make_run, samples
from torch import Tensor

from nlt.augment import CropFlipCutout
from nlt.data import Samples
from nlt.detect import p_small
from nlt.losses import CE
from nlt.methods.dividemix import DivideMix
from nlt.models import CNN9
from nlt.optim import Constant
from nlt.run import Split
from nlt.train import Diverged, Epoch, Stage, to_float

WHITE = torch.full((2, 1, 1, 1), 255, dtype=torch.uint8)
STILL = 1e-30  # a learning rate at which no weight changes


def stage(epochs: int, lr: float = 0.05, batch_size: int = 8) -> Stage:
    return Stage(epochs=epochs, batch_size=batch_size, loss=CE(), schedule=Constant(lr=lr))


def method(**changes: Any) -> DivideMix:
    return DivideMix(**({"warmup": stage(2), "training": stage(3)} | changes))


class OnePixel:
    """Linear networks of one pixel with weights 0: the first has logits (ln 3, 0), the second (0, ln 4)."""

    def __init__(self) -> None:
        self.biases = [[0.0, 1.3862944], [1.0986123, 0.0]]

    def build(self, C: int, H: int, W: int, K: int) -> torch.nn.Module:
        network = Net(C * H * W, K)
        torch.nn.init.zeros_(network.linear.weight)
        network.linear.bias.data = torch.tensor(self.biases.pop())
        return network


def test_a_step_by_hand():
    """One labelled sample of class 1 with w = 0.6, one unlabelled; the learner says p = (3/4, 1/4), the other (1/5, 4/5).

    Refined: 0.6 (0, 1) + 0.4 p = (0.3, 0.7), squared and scaled: (9, 49) / 58. Guessed: (0.475, 0.525), squared and scaled:
    (0.4501247, 0.5498753). At alpha = 0.001 lambda is 1: nothing is mixed. Gradients by the first logit, less the
    second's of opposite sign: of the cross-entropy p - t = 0.5948276; of the mean squared error over 2 rows and 2 classes
    1/2 * 2 d * 2 p_0 p_1 = 0.1124532 with d = 0.2998753; of KL(uniform || p) p - 1/2 = 0.25. In epoch 9 of a ramp of 16
    lambda_u is 25 * 8/16 = 12.5: in all 2.2504925, and 0.0001099 of weight decay.
    """
    run, _ = make_run(
        Samples(WHITE, torch.arange(2), torch.tensor([1, 0]), torch.tensor([1, 0])), K=2, model=OnePixel()
    )
    f, g = run.learner("f"), run.learner("g")
    f.set_lr(0.1)
    g.set_lr(0.1)
    epoch = Epoch(WHITE.permute(0, 2, 3, 1), run.labels_N, 8, run.generator, t=9)
    ((x, u),) = epoch.pairs(torch.tensor([True, False]), views=(None, None))
    method(alpha=0.001).learn(run, epoch, f, g, x, u, torch.tensor([[0.6]]))
    assert f.network.linear.bias.tolist() == pytest.approx([1.0986123 - 0.2250602, 0.2250493], abs=1e-6)
    assert g.network.linear.bias.tolist() == pytest.approx([0, 1.3862944])
    # What is told: the losses of the given labels, -ln 1/4 and -ln 0.475.
    assert epoch.losses_N.tolist() == pytest.approx([1.3862944, 0.7444405])


def test_the_squared_error_waits_for_the_first_epoch_to_be_over():
    """In epoch 1 what is guessed does not count, so the other network's opinion changes nothing."""
    biases = []
    for t in (1, 2):
        for other in ([0.0, 1.3862944], [5.0, 0.0]):
            run, _ = make_run(Samples(WHITE, torch.arange(2), torch.tensor([1, 0]), torch.tensor([1, 0])), K=2)
            f, g = make_learner(OnePixel().build(1, 1, 1, 2)), make_learner(OnePixel().build(1, 1, 1, 2))
            g.network.linear.bias.data = torch.tensor(other)
            f.set_lr(0.1)
            epoch = Epoch(WHITE.permute(0, 2, 3, 1), run.labels_N, 8, run.generator, t=t)
            ((x, u),) = epoch.pairs(torch.tensor([True, False]), views=(None, None))
            method(alpha=0.001).learn(run, epoch, f, g, x, u, torch.tensor([[0.6]]))
            biases.append(f.network.linear.bias.tolist())
    assert biases[0] == biases[1]
    assert biases[2] != biases[3]


def test_what_is_mixed_is_targets_and_images_alike(monkeypatch):
    """The larger share stays with a row's own image; the targets are those of the images, row by row."""
    import nlt.methods.dividemix as module

    seen: list[tuple[Any, Any]] = []
    real = module.mixup

    def watched(images_BCHW: Tensor, targets_BK: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        seen.append(((images_BCHW, targets_BK, *more), real(images_BCHW, targets_BK, *more)))
        return seen[-1][1]

    monkeypatch.setattr(module, "mixup", watched)
    run, _ = make_run()
    method(training=stage(1)).train(run)
    for (images, targets, alpha, generator, larger_first), (mixed, _) in seen:
        assert alpha == 4
        assert generator is run.generator
        assert larger_first
        assert len(images) == len(targets) == len(mixed)
        torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
        B = next(
            n for n in range(1, len(images)) if torch.equal(images[:n], images[n : 2 * n])
        )  # two equal plain views
        assert torch.equal(targets[:B], targets[B : 2 * B])
        U = (len(images) - 2 * B) // 2
        assert torch.equal(images[2 * B : 2 * B + U], images[2 * B + U :])
        assert torch.equal(targets[2 * B : 2 * B + U], targets[2 * B + U :])


def divisions(monkeypatch: Any, method: DivideMix, run: Any) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """Run a method; return of each step the learner's name, rows of labelled and unlabelled samples, and the w."""
    steps = []
    real = DivideMix.learn

    def watched(self, run, epoch, net, other, x, u, w_B1):
        names = {learner: name for name, learner in run.learners.items()}
        assert {names[net], names[other]} == {"f", "g"}
        steps.append((names[net], x.rows_B, u.rows_B, w_B1))
        return real(self, run, epoch, net, other, x, u, w_B1)

    monkeypatch.setattr(DivideMix, "learn", watched)
    method.train(run)
    return steps


def test_each_network_learns_from_what_the_other_divides(monkeypatch):
    """Small losses are labelled, by the other network's loss; w by hand from the networks that the warm-up leaves."""
    run, told = make_run(samples(60, wrong=20))
    steps = divisions(monkeypatch, method(warmup=stage(3, lr=0.5), training=stage(1, lr=STILL)), run)
    losses = {name: CE()(run.predict(net), run.labels_N) for name, net in run.learners.items()}
    w = {name: p_small(losses_N) for name, losses_N in losses.items()}
    assert not torch.equal(w["f"] > 0.5, w["g"] > 0.5)  # else nothing is tested
    for name, other in (("f", "g"), ("g", "f")):
        mine = [step for step in steps if step[0] == name]
        labelled = torch.cat([rows for _, rows, _, _ in mine])
        unlabelled = torch.cat([rows for _, _, rows, _ in mine])
        assert sorted(labelled.tolist()) == (w[other] > 0.5).nonzero().flatten().tolist()
        assert set(unlabelled.tolist()) <= set((w[other] <= 0.5).nonzero().flatten().tolist())
        torch.testing.assert_close(torch.cat([w_B1 for *_, w_B1 in mine]).flatten(), w[other][labelled])
        assert losses[other][labelled].max() < losses[other][unlabelled].min() + 1
    (record,) = told[3:]
    mean_N = (w["f"] + w["g"]) / 2
    assert torch.equal(record.keep_N, mean_N > 0.5)
    torch.testing.assert_close(record.scores_N, (losses["f"] + losses["g"]) / 2)
    guessed_N = run.predict(*run.learners.values()).argmax(1)
    assert torch.equal(record.labels_N, torch.where(mean_N > 0.5, run.labels_N, guessed_N))
    assert record.metrics["method/labelled"] == pytest.approx(float((mean_N > 0.5).float().mean()))


@pytest.mark.parametrize(("strong", "augmented"), [(True, False), (False, True), (False, False)])
def test_weak_views_judge_and_strong_ones_are_learned_from(monkeypatch, strong, augmented):
    """All images are white, and the augmentation in question makes them grey: 128 / 255."""
    train = samples(20)
    train.images_NCHW.fill_(255)
    grey = CropFlipCutout(pad=0, flip=False, cutout=8)
    run, _ = make_run(train, augmentation=grey if augmented else None)
    seen: dict[bool, set[int]] = {True: set(), False: set()}  # by whether it is learned from
    real = DivideMix.learn

    def watched(self, run, epoch, net, other, *more):
        hooks = [
            learner.network.register_forward_hook(
                lambda _, images, out: seen[torch.is_grad_enabled()].update(
                    (images[0] * 255).round().long().unique().tolist()
                )
            )
            for learner in (net, other)
        ]
        real(self, run, epoch, net, other, *more)
        for hook in hooks:
            hook.remove()

    monkeypatch.setattr(DivideMix, "learn", watched)
    method(strong=grey if strong else None).train(run)
    assert seen[False] == {128 if augmented else 255}
    assert seen[True] == {128 if augmented or strong else 255}


def test_the_other_network_guesses_in_evaluation_mode_and_the_learner_in_training_mode():
    modes = []
    run, _ = make_run()
    f, g = run.learner("f"), run.learner("g")
    for name, net in (("f", f), ("g", g)):
        net.network.train()
        net.network.register_forward_hook(lambda net, *_, name=name: modes.append((name, net.training)))
    epoch = Epoch(run._train.images_NHWC, run.labels_N, 64, run.generator)
    ((x, u),) = epoch.pairs(run.labels_N > 1, views=(None, None))
    method().learn(run, epoch, f, g, x, u, torch.ones(len(x.rows_B), 1))
    assert modes == [("f", True), ("g", False), ("f", True)]
    assert g.network.training


def test_the_confidence_penalty_by_hand():
    """p = (3/4, 1/4), label 1. Gradient of CE by the first logit 0.75; of sum p log p: p_0 p_1 (log p_0 - log p_1)
    = 0.1875 * 1.0986123 = 0.2059898. With weight 2: 1.1619796, and 0.0001099 of weight decay; lr 0.1."""
    ends = []
    for penalty in (0.0, 2.0):
        run, _ = make_run(
            Samples(WHITE[:1], torch.arange(1), torch.tensor([1]), torch.tensor([1])), K=2, model=OnePixel()
        )
        method(confidence_penalty=penalty, warmup=stage(1, lr=0.1), training=stage(1, lr=STILL)).train(run)
        ends.append(run.learners["f"].network.linear.bias.tolist())
    assert ends[0] == pytest.approx([1.0986123 - 0.0750110, 0.075], abs=1e-6)
    assert ends[1] == pytest.approx([1.0986123 - 0.1162090, 0.1161980], abs=1e-6)


# ---- parts that would be empty, batches of one ----


def test_equal_losses_set_no_sample_apart_and_all_are_guessed_besides(monkeypatch):
    same = Samples(WHITE[:1].repeat(9, 1, 1, 1), torch.arange(9), torch.zeros(9).long(), torch.zeros(9).long())
    run, told = make_run(same, K=2)
    steps = divisions(monkeypatch, method(warmup=stage(1), training=stage(2, batch_size=4)), run)
    assert all(record.keep_N.all() for record in told[1:])
    assert {row for _, rows, _, _ in steps for row in rows.tolist()} == set(range(9))
    assert {row for _, _, rows, _ in steps for row in rows.tolist()} == set(range(9))
    assert all((w_B1 == 1).all() for *_, w_B1 in steps)


@pytest.mark.parametrize("labelled", [0, 1, 17, 39, 40])
def test_any_number_of_labelled_samples_can_be_learned_from(monkeypatch, labelled):
    """With batch norm over single pixels, which one sample by itself breaks; at 17 of 40 the last batches hold one."""
    import nlt.methods.dividemix as module

    monkeypatch.setattr(module, "p_small", lambda losses_N: (torch.arange(len(losses_N)) < labelled).float())
    run, told = make_run(samples(40, side=4), model=CNN9(width=0.02))
    method(warmup=stage(1), training=stage(1)).train(run)
    assert int(told[1].keep_N.sum()) == labelled
    assert told[1].losses_N[: labelled or 40].isfinite().all()


def test_without_belief_in_a_label_it_counts_for_nothing():
    """w = 0: targets are the learner's own prediction, so other labels leave the same weights; w = 1 does not."""
    ends = []
    for w, shift in ((0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1)):
        train = samples(20)
        train.labels_N.copy_((train.labels_N + shift) % 4)
        run, _ = make_run(train)
        f, g = run.learner("f"), run.learner("g")
        f.set_lr(0.5)
        epoch = Epoch(run._train.images_NHWC, run.labels_N, 64, run.generator, t=20)
        ((x, u),) = epoch.pairs(torch.arange(20) < 10, views=(None, None))
        method().learn(run, epoch, f, g, x, u, torch.full((10, 1), w))
        ends.append(f.network.linear.weight)
    assert torch.equal(ends[0], ends[1])
    assert not torch.allclose(ends[2], ends[3])


# ---- the mixture ----


def test_the_mixture_gives_the_posterior_of_the_gaussians_that_it_was_drawn_from():
    """3/4 of N(1, 0.2), 1/4 of N(3, 0.5); at x the posterior of the first by Bayes."""
    generator = torch.Generator().manual_seed(0)
    low_N, noise_N = torch.rand(20_000, generator=generator) < 0.75, torch.randn(20_000, generator=generator)
    losses_N = torch.where(low_N, 1 + 0.2 * noise_N, 3 + 0.5 * noise_N)
    widening = 5e-4 * float(losses_N.max() - losses_N.min()) ** 2  # the least variance, added to each
    density = []
    for share, mean, variance in ((0.75, 1, 0.04 + widening), (0.25, 3, 0.25 + widening)):
        density.append(share * variance**-0.5 * (-((losses_N - mean) ** 2) / variance / 2).exp())
    torch.testing.assert_close(p_small(losses_N), density[0] / (density[0] + density[1]), atol=0.05, rtol=0)


@pytest.mark.parametrize("low_share", [0.2, 0.8])
def test_the_mixture_finds_the_small_ones_whether_they_are_many_or_few(low_share):
    """Whichever component the fit happens to put first."""
    losses_N = torch.where(torch.arange(100) < 100 * low_share, 0.1, 2.0) + torch.arange(100) * 1e-3
    assert torch.equal(p_small(losses_N) > 0.5, losses_N < 1)
    assert torch.equal(p_small(losses_N), p_small(losses_N))
    torch.testing.assert_close(p_small(losses_N * 8 + 4), p_small(losses_N))


@pytest.mark.parametrize("losses", [[0.7], [0.7, 0.7, 0.7], [0.7, float("nan")], [0.7, float("inf")]])
def test_equal_losses_and_such_as_are_not_finite_set_no_sample_apart(losses):
    assert p_small(torch.tensor(losses)).tolist() == [1.0] * len(losses)


# ---- batches side by side ----


def epoch_of(N: int = 40, size: int = 8) -> Epoch:
    split = Split(samples(N), torch.device("cpu"))
    return Epoch(split.images_NHWC, split.labels_N, size, torch.Generator().manual_seed(3))


def test_pairs_take_each_kept_sample_once_and_the_others_round_and_round():
    epoch, keep_N = epoch_of(), torch.arange(40) < 30
    images_NHWC = Split(samples(40), torch.device("cpu")).images_NHWC
    kept, others = [], []
    for batch, other in epoch.pairs(keep_N, views=(None, None)):
        assert torch.equal(other.views[1], to_float(images_NHWC[other.rows_B]))
        kept += batch.rows_B.tolist()
        others.append(other.rows_B.tolist())
        for each in (batch, other):
            epoch.saw(each, torch.zeros(len(each.rows_B), 4), torch.ones(len(each.rows_B)))
    assert sorted(kept) == list(range(30))
    assert [len(rows) for rows in others] == [8, 2, 8, 2]  # of 10 others, twice
    rounds = [others[0] + others[1], others[2] + others[3]]
    assert [sorted(rows) for rows in rounds] == [list(range(30, 40))] * 2
    assert rounds[0] != rounds[1]
    assert epoch.accuracy() >= 0  # all that was handed out was seen


def test_pairs_stop_with_the_kept_samples_and_take_no_batch_too_many():
    epoch = epoch_of()
    pairs = [(len(a.rows_B), len(b.rows_B)) for a, b in epoch.pairs(torch.arange(40) < 10)]
    assert pairs == [(8, 8), (2, 8)]
    assert epoch._handed_out == 4


@pytest.mark.parametrize("kept", [0, 40])
def test_a_part_of_a_pair_that_would_be_empty_is_made_of_all_samples(kept):
    pairs = list(epoch_of().pairs(torch.arange(40) < kept))
    for part in zip(*pairs, strict=True):
        assert sorted(torch.cat([batch.rows_B for batch in part]).tolist()) == list(range(40))


def test_a_loss_that_was_not_finite_is_noticed_although_the_sample_was_seen_again():
    epoch = epoch_of()
    for poison in (float("nan"), 1.0):
        for batch in epoch.batches():
            epoch.saw(batch, torch.zeros(8, 4), torch.where(batch.rows_B == 7, poison, 1.0))
    with pytest.raises(Diverged, match="the loss of 1 of 40 samples is not finite"):
        epoch.accuracy()
