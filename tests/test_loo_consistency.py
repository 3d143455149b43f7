"""Leave-one-out consistency: one batch worked by hand, and the mistakes that are easily made."""

import pytest
import torch
from conftest import make_run
from pydantic import ValidationError
from test_methods import clear_samples, stage
from torch import nn

from nlt.augment import CropFlipCutout
from nlt.backbones import Pixels
from nlt.data import Samples
from nlt.detect import LabelErrors, find_label_errors
from nlt.losses import MAE
from nlt.methods import loo_consistency
from nlt.methods.loo_consistency import LeaveOneOutConsistency
from nlt.run import Run
from nlt.train import Diverged, Stage, equally_often

GREY = CropFlipCutout(pad=0, flip=False, cutout=12)  # nothing is left of an image of 6 x 6 pixels
PLAIN = CropFlipCutout(pad=0, flip=False)
STILL = 1e-30  # a learning rate


class Hidden(nn.Module):
    """A hidden layer, so that features depend on weights; notes how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.linear = nn.Linear(36, 8), nn.Linear(8, 4)
        self.calls: list[tuple[bool, bool, torch.Tensor]] = []

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        self.calls.append((self.training, torch.is_grad_enabled(), images_BCHW.detach().clone()))
        return self.linear(self.hidden(images_BCHW.flatten(1)).tanh())


class HiddenModel:
    def build(self, C: int, H: int, W: int, K: int) -> nn.Module:
        return Hidden()


def method(strong: CropFlipCutout, warmup: Stage, training: Stage, **more: float) -> LeaveOneOutConsistency:
    return LeaveOneOutConsistency(strong=strong, warmup=warmup, training=training, **more)


def images_of(run) -> torch.Tensor:
    return torch.from_numpy(run._images_NCHW).float() / 255


def judged(run: Run, features_ND) -> LabelErrors:
    return find_label_errors(features_ND, run.labels_N.numpy(), steps=100)


def targets_of(found: LabelErrors, run: Run, others_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each sample should learn, and whether its label is trusted."""
    trusted_N = torch.from_numpy(found.p_true_NK)[torch.arange(run.N), run.labels_N] > 0.5
    return torch.where(trusted_N[:, None], torch.eye(run.K)[run.labels_N], others_NK), trusted_N


def p_of(net, images_BCHW: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net.network.eval()(images_BCHW).softmax(1)


def test_one_step_by_hand():
    """All samples are one batch, strong views are grey, and mixup with this alpha mixes nothing.

    With P the detector's posterior and q the average's prediction for the plain image the target t is the label y where
    P_y > 1/2, else (P + q) / 2, in the warm-up P of the pixels; the loss -sum t log(prediction), its gradient by the
    last bias the mean of prediction - t; the momentum holds 0.9 of the warm-up's. The average goes a fifth of the way.
    """
    run, told = make_run(clear_samples(60), model=HiddenModel())
    whole = {"epochs": 1, "batch_size": 200}
    method(GREY, stage(lr=STILL, **whole), stage(lr=0.1, **whole), memory=0.8, mixing=1e-4).train(run)
    net, average = run.learners["net"].network, run.learners["average"].network
    after_K, mean_K = net.linear.bias.data.clone(), average.linear.bias.data.clone()
    (_, _, warm_BCHW), (_, _, seen_BCHW) = net.calls
    weak_BCHW = average.calls[-2][2]  # the last call is the test set's, once for each epoch
    row_of = {image.numpy().tobytes(): i for i, image in enumerate(images_of(run))}

    fresh, _ = make_run(clear_samples(60), model=HiddenModel())
    start = fresh.learner("start")  # as `net` began, and still was when the labels were judged
    b_K = start.network.linear.bias.data
    by_pixels = judged(run, run.features(Pixels()))
    first_NK, first_trusted_N = targets_of(by_pixels, run, torch.from_numpy(by_pixels.p_true_NK))
    assert 0.2 < float((~first_trusted_N).float().mean()) < 0.4
    is_plain_B = [image.numpy().tobytes() in row_of for image in warm_BCHW]
    plain_rows = torch.tensor([row_of[image.numpy().tobytes()] for image in warm_BCHW[torch.tensor(is_plain_B)]])
    assert not any(is_plain_B[1::2])
    assert 50 < len(plain_rows) < 100
    assert first_trusted_N[plain_rows].all()
    shown_NCHW = torch.full_like(warm_BCHW, 128 / 255).index_copy(0, plain_rows, images_of(run)[plain_rows])
    warm_losses_N = -(first_NK * p_of(start, shown_NCHW).log()).sum(1)
    torch.testing.assert_close(told[0].losses_N, warm_losses_N, atol=1e-5, rtol=0)

    found = judged(run, fresh.embed(start).numpy())
    P_NK = torch.from_numpy(found.p_true_NK)
    t_NK, trusted_N = targets_of(found, run, (P_NK + p_of(start, images_of(run))) / 2)
    assert 0.2 < float((~trusted_N).float().mean()) < 0.4
    rows_B = torch.tensor([row_of[image.numpy().tobytes()] for image in weak_BCHW])
    is_plain_B = torch.tensor([place % 2 == 0 and bool(trusted_N[i]) for place, i in enumerate(rows_B)])
    expected_BCHW = torch.where(is_plain_B[:, None, None, None], weak_BCHW, 128 / 255)
    torch.testing.assert_close(seen_BCHW, expected_BCHW)

    p_BK = p_of(start, seen_BCHW)
    losses_B = -(t_NK[rows_B] * p_BK.log()).sum(1)
    torch.testing.assert_close(told[1].losses_N[rows_B], losses_B, atol=1e-5, rtol=0)
    was_K = p_of(start, warm_BCHW).mean(0) - first_NK.mean(0) + 1e-4 * b_K
    expected_K = b_K - 0.1 * (0.9 * was_K + (p_BK - t_NK[rows_B]).mean(0) + 1e-4 * b_K)
    torch.testing.assert_close(after_K, expected_K, atol=1e-5, rtol=0)
    torch.testing.assert_close(mean_K, 0.8 * b_K + 0.2 * after_K, atol=1e-6, rtol=0)
    assert torch.equal(told[1].keep_N, trusted_N)
    assert told[1].scores_N.tolist() == pytest.approx(found.scores["posterior"].tolist(), rel=1e-3, abs=1e-3)
    assert told[1].metrics["method/estimated_rate"] == pytest.approx(found.rate.point)


def test_the_average_judges_teaches_and_is_measured(monkeypatch: pytest.MonkeyPatch):
    """A warm-up of two epochs takes the two apart; then the network stands still and the average goes half the way."""
    run, told = make_run(clear_samples(60), model=HiddenModel(), augmentation=GREY)
    drawn = []
    monkeypatch.setattr(
        loo_consistency, "equally_often", lambda *given: drawn.append(equally_often(*given)) or drawn[-1]
    )
    method(GREY, stage(2, lr=0.5, batch_size=20), stage(1, lr=STILL, batch_size=200), memory=0.5, mixing=1e-4).train(
        run
    )
    assert run.nets == (run.learners["average"],)
    average, net = run.learners["average"].network, run.learners["net"].network
    weights = {k: 2 * v - net.state_dict()[k] for k, v in average.state_dict().items()}  # before its last step
    assert max(float((v - net.state_dict()[k]).abs().max()) for k, v in weights.items()) > 0.01
    average.load_state_dict(weights)
    found = judged(run, run.embed(run.learners["average"]).numpy())
    assert told[2].scores_N.tolist() == pytest.approx(found.scores["posterior"].tolist(), rel=1e-2, abs=1e-2)
    # Each image is grey, and nothing is mixed.
    grey_BCHW = torch.full((1, 1, 6, 6), 128 / 255)
    q_K, p_K = (p_of(run.learners[name], grey_BCHW)[0] for name in ("average", "net"))
    t_NK, _ = targets_of(found, run, (torch.from_numpy(found.p_true_NK) + q_K) / 2)
    mean_K = t_NK[drawn[0] > 0].mean(0)  # the loss of a sample that comes twice is noted once
    assert told[2].metrics["train/loss"] == pytest.approx(float(-(mean_K * p_K.log()).sum()), abs=1e-4)


def test_a_rare_class_is_learned_as_often_as_the_others():
    """Of class 3 there are ten samples, of the others fifty each; the average is shown each image that comes.

    Classes are counted by what is most probable of each sample: some labels are wrong.
    """
    every = clear_samples(20)
    few_N = (every.clean_N < 3) | (torch.arange(200) < 40)
    few = Samples(*(tensor_N[few_N] for tensor_N in (every.images_NCHW, every.ids_N, every.labels_N, every.clean_N)))
    run, _ = make_run(few, model=HiddenModel())
    method(PLAIN, stage(4, lr=0.1, batch_size=20), stage(1, lr=STILL, batch_size=160)).train(run)
    row_of = {image.numpy().tobytes(): i for i, image in enumerate(images_of(run))}
    weak_BCHW = run.learners["average"].network.calls[-2][2]
    believed_N = run.buffers["P_NK"].argmax(1)
    assert int((believed_N != few.labels_N).sum()) > 10
    shown_B = believed_N[torch.tensor([row_of[image.numpy().tobytes()] for image in weak_BCHW])]
    assert shown_B.bincount().tolist() == [40] * 4


def test_the_average_follows_faster_in_the_first_epochs():
    """In epoch 1 it is the network, in epoch 2 it keeps a half, whatever the memory."""
    run, _ = make_run(clear_samples(60), model=HiddenModel())
    method(GREY, stage(1, lr=0.5, batch_size=20), stage(1, lr=STILL, batch_size=200), memory=0.99).train(run)
    for a, b in zip(
        run.learners["net"].network.parameters(), run.learners["average"].network.parameters(), strict=True
    ):
        torch.testing.assert_close(a, b)
    biases = []
    for epochs in (1, 2):
        run, _ = make_run(clear_samples(60), model=HiddenModel())
        method(GREY, stage(epochs, lr=0.5, batch_size=200), stage(1, lr=STILL, batch_size=200), memory=0.9).train(run)
        biases.append(run.learners["net"].network.linear.bias.data)
    average_K = 0.9 * (biases[0] + biases[1]) / 2 + 0.1 * biases[1]
    torch.testing.assert_close(run.learners["average"].network.linear.bias.data, average_K)


def test_images_and_targets_are_mixed_alike_and_a_sample_keeps_the_larger_part():
    """White is class 1, black class 0: a mixed pixel is the mixed target."""
    colour_N = torch.arange(40) % 2
    images = (colour_N * 255).to(torch.uint8)[:, None, None, None].expand(40, 1, 6, 6).contiguous()
    run, told = make_run(Samples(images, torch.arange(40), colour_N, colour_N), model=HiddenModel())
    method(PLAIN, stage(1, lr=STILL, batch_size=40), stage(1, lr=STILL, batch_size=40)).train(run)
    calls = run.learners["net"].network.calls
    losses_N, order = told[0].losses_N, []
    for training, _, mixed_BCHW in calls[:1]:
        assert training
        v_B = mixed_BCHW[:, 0, 0, 0]
        log_p_BK = run.learners["net"].network(mixed_BCHW).log_softmax(1).detach()
        expected_B = -(v_B * log_p_BK[:, 1] + (1 - v_B) * log_p_BK[:, 0])
        order = sorted(expected_B.tolist())
        assert ((v_B > 0.01) & (v_B < 0.99)).any()
        assert len({round(min(v, 1 - v), 5) for v in v_B.tolist()} - {0.0}) == 1  # one lambda a batch
    assert sorted(losses_N.tolist()) == pytest.approx(order, abs=1e-5)
    # Samples of loss on the white side are white.
    log_p_K = run.learners["net"].network(torch.stack([torch.zeros(1, 6, 6), torch.ones(1, 6, 6)])).log_softmax(1)
    assert log_p_K.isfinite().all()
    v_of = {round(float(e), 4): float(v) for e, v in zip(expected_B, v_B, strict=True)}
    assert all((v_of[round(float(loss), 4)] >= 0.5) == bool(c) for loss, c in zip(losses_N, colour_N, strict=True))


def test_the_network_learns_in_training_mode_and_the_average_teaches_in_evaluation_mode():
    run, _ = make_run(clear_samples(60), model=HiddenModel())
    method(GREY, stage(1, batch_size=50), stage(2, batch_size=50)).train(run)
    assert {(training, grad) for training, grad, _ in run.learners["net"].network.calls} == {(True, True)}
    assert {(training, grad) for training, grad, _ in run.learners["average"].network.calls} == {(False, False)}


def test_labels_are_judged_every_so_many_epochs_from_the_first():
    run, told = make_run(clear_samples(60), model=HiddenModel())
    method(GREY, stage(1), stage(5, batch_size=50), refresh=2).train(run)
    assert [e.scores_N is not None for e in told] == [False, True, False, True, False, True]


def test_it_finds_planted_wrong_labels_and_does_not_learn_them():
    run, told = make_run(clear_samples(60), model=HiddenModel())
    method(PLAIN, stage(4, lr=0.1), stage(8, lr=0.1)).train(run)
    assert told[-2].metrics["noise/auc"] > 0.99
    right = run.predict(run.learners["average"]).argmax(1) == torch.arange(200) % 4
    assert right.float().mean() > 0.97


def test_wrong_labels_are_not_learned_in_the_warm_up_either():
    """Rate, momentum and time would do for all of them: cross-entropy learns most of the planted ones."""
    run, _ = make_run(clear_samples(60), model=HiddenModel())
    method(PLAIN, stage(30, lr=0.3), stage(1, lr=STILL)).train(run)
    net = run.learners["net"]
    assert (run.predict(net).argmax(1) == torch.arange(200) % 4).float().mean() > 0.97


@pytest.mark.parametrize("which", ["warmup", "training"])
def test_other_losses_are_refused(which: str) -> None:
    with pytest.raises(ValidationError, match="loss must be ce"):
        LeaveOneOutConsistency(**{which: Stage(loss=MAE())})


def test_features_that_are_not_finite_are_a_divergence() -> None:
    run, _ = make_run(clear_samples(40), model=HiddenModel())
    net = run.learner("net")
    with torch.no_grad():
        net.network.hidden.weight.fill_(torch.nan)
    with pytest.raises(Diverged, match="features are not finite"):
        run.label_errors(net)
