"""Forward correction: T from anchor points and one batch by hand."""

import pytest
import torch
from conftest import OnePixel, make_run, samples

from nlt.data import Samples
from nlt.losses import CE
from nlt.methods import forward_correction
from nlt.methods.forward_correction import ForwardCorrection, anchor_matrix
from nlt.optim import Constant
from nlt.train import Stage, train_epoch


def stage(epochs: int, lr: float, batch_size: int = 8) -> Stage:
    return Stage(epochs=epochs, batch_size=batch_size, loss=CE(), schedule=Constant(lr=lr))


def test_each_row_of_t_is_the_prediction_of_its_classs_anchor() -> None:
    """Five samples: 100 takes the most certain of each class; 97 of five is the fourth (0.97 * 4 = 3.88), 50 the third."""
    p_NK = torch.tensor([[0.9, 0.08, 0.02], [0.7, 0.1, 0.2], [0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.25, 0.15, 0.6]])
    rows = {100.0: [0, 3, 4], 97.0: [1, 2, 3], 50.0: [4, 4, 2]}  # of two that are equal the later one comes later
    for percentile, expected in rows.items():
        torch.testing.assert_close(anchor_matrix(p_NK, percentile), p_NK[expected])


def test_a_percentile_that_is_a_sample_is_that_sample() -> None:
    """58 of 51 is the 30th: 0.58 * 50 would be 28.999999999999996."""
    p_N = torch.linspace(0.1, 0.9, 51)
    assert torch.equal(anchor_matrix(torch.stack([p_N, 1 - p_N], 1), 58.0)[0, 0], p_N[29])


def test_the_percentile_is_the_authors_sample_or_its_neighbour() -> None:
    """Their rule on 1,000 samples without ties: the largest p_i below the 97th percentile, rounded up to a sample."""
    p_NK = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    ours = anchor_matrix(p_NK, 97.0)
    for i in range(4):
        ascending = p_NK[:, i].sort().values
        threshold = torch.quantile(p_NK[:, i], 0.97, interpolation="higher")
        theirs = p_NK[:, i][p_NK[:, i] < threshold].max()
        assert float(ours[i, i]) in (float(theirs), float(ascending[(ascending == theirs).nonzero()[0, 0] + 1]))


def test_one_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Label 1, T = (0.8 0.2; 0.3 0.7): p T = (0.675, 0.325), loss -ln 0.325 = 1.1239301.

    Its derivative by p is -(0.2, 0.7) / 0.325, by the logits p0 p1 (-0.2 + 0.7) / 0.325 = 0.2884615 (1, -1). Weight
    decay adds 1e-4 * 1.0986123 to the first; with a learning rate of 0.1 the biases go to 1.0986123 - 0.0288571 and
    0.0288462. The score is 1 - 0.25 * 0.7 / 0.325 = 0.4615385.
    """
    T_KK = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    monkeypatch.setattr(forward_correction, "anchor_matrix", lambda p_NK, percentile: T_KK)
    white = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    one = torch.tensor([1])
    run, told = make_run(Samples(white, torch.tensor([0]), one, one), K=2, model=OnePixel())
    ForwardCorrection(estimation=stage(1, lr=5.0), training=stage(1, lr=0.1)).train(run)
    record = told[1]
    assert record.losses_N.tolist() == pytest.approx([1.1239301], abs=1e-6)
    assert run.learners["net"].network.linear.bias.tolist() == pytest.approx([1.0697552, 0.0288462], abs=1e-6)
    assert record.scores_N is not None
    assert record.scores_N.tolist() == pytest.approx([0.4615385], abs=1e-6)
    assert record.metrics["method/estimated_rate"] == pytest.approx(0.4615385, abs=1e-6)


def test_stages_networks_and_what_t_is_read_from() -> None:
    """T is the first network's, after its stage; the second one begins anew and the first one stays as it is."""
    run, told = make_run()
    method = ForwardCorrection(anchor_percentile=90.0, estimation=stage(2, lr=0.5), training=stage(3, lr=0.5))
    method.train(run)
    assert [(e.stage, e.t) for e in told] == [
        ("estimation", 1),
        ("estimation", 2),
        *(("training", t) for t in (1, 2, 3)),
    ]
    estimator, net = run.learners["estimator"], run.learners["net"]
    torch.testing.assert_close(run.buffers["T_KK"], anchor_matrix(run.predict(estimator).exp(), 90.0))
    alone, _ = make_run()
    learner = alone.learner("estimator")
    for epoch in alone.epochs("estimation", stage(2, lr=0.5), learner):
        train_epoch(learner, epoch, CE())
    torch.testing.assert_close(estimator.network.linear.weight, learner.network.linear.weight)
    assert run.nets == (net,)
    assert [e.scores_N is not None for e in told] == [False, False, True, True, True]


def test_a_given_label_that_t_rules_out_has_a_finite_loss() -> None:
    """A network that is certain of class 0 whatever it sees: both rows of T are (1, 0), and (p T)_1 counts as 1e-7."""
    run, told = make_run(samples(8, K=2), K=2, model=OnePixel((200.0, 0.0)))
    ForwardCorrection(anchor_percentile=100.0, estimation=stage(1, 1e-30), training=stage(1, 1e-30)).train(run)
    assert float(told[1].losses_N.max()) == pytest.approx(16.1180957, abs=1e-4)  # 7 ln 10
    assert float(told[1].losses_N.min()) == pytest.approx(0.0, abs=1e-6)
