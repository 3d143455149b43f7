"""Losses against numbers worked out by hand, at extreme logits, and for the symmetry that makes them robust.

B samples, K classes. By hand: logits = log p + 3 with p = (1/2, 1/4, 1/8, 1/8), so -log p = (1, 2, 3, 3) ln 2 and the
labels 0, 1, 2 have p_y = 1/2, 1/4, 1/8.
"""

import math
from typing import Any

import published
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from nlt.losses import APL, CE, GCE, MAE, NCE, NFL, NGCE, NMAE, NRCE, RCE, SCE, Focal, Loss, expected

LN2 = 0.69314718
LOGITS_BK = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().add(3).repeat(3, 1)
LABELS_B = torch.tensor([0, 1, 2])

VARIANTS = [
    CE(), NCE(), RCE(), RCE(A=-4.0), MAE(), GCE(), GCE(q=1.0), GCE(q=0.1), SCE(), Focal(), Focal(gamma=0.0),
    Focal(gamma=0.5), NFL(), NFL(gamma=0.0), NFL(gamma=2.0), NMAE(), NRCE(), NGCE(), NGCE(q=1.0),
    APL(active=NCE(), passive=RCE()), APL(active=NFL(), passive=MAE(), alpha=0.5, beta=10.0),
]  # fmt: skip
every_loss = pytest.mark.parametrize("loss", VARIANTS, ids=repr)


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (CE(), [LN2, 2 * LN2, 3 * LN2]),
        # The sum of all -log p is (1 + 2 + 3 + 3) ln 2 = 9 ln 2.
        (NCE(), [1 / 9, 2 / 9, 3 / 9]),
        # 1 - p_y = 1/2, 3/4, 7/8. A = ln 1e-4 = -9.2103404: 9.2103404 * 0.5, * 0.75, * 0.875
        (RCE(), [4.6051702, 6.9077553, 8.0590478]),
        (RCE(A=-4.0), [2, 3, 3.5]),
        # |1/2 - 1| + 1/4 + 1/8 + 1/8 = 1; 1/2 + |1/4 - 1| + 1/8 + 1/8 = 3/2; 1/2 + 1/4 + |1/8 - 1| + 1/8 = 7/4
        (MAE(), [1, 1.5, 1.75]),
        # 2 (1 - sqrt p_y), sqrt p_y = 0.7071068, 0.5, 0.3535534
        (GCE(q=0.5), [0.5857864, 1, 1.2928932]),
        # (1 - p_y^0.7) / 0.7, p_y^0.7 = 2^-0.7, 2^-1.4, 2^-2.1 = 0.6155722, 0.3789291, 0.2332582
        (GCE(), [0.5491826, 0.8872441, 1.0953454]),
        # 0.1 * CE = 0.0693147, 0.1386294, 0.2079442, plus 4 (1 - p_y) = 2, 3, 3.5
        (SCE(), [2.0693147, 3.1386294, 3.7079442]),
        # CE + 2 * 1 * (1 - p_y)
        (SCE(alpha=1.0, beta=2.0, A=-1.0), [LN2 + 1, 2 * LN2 + 1.5, 3 * LN2 + 1.75]),
        # (1/2)^2 ln 2, (3/4)^2 2 ln 2, (7/8)^2 3 ln 2
        (Focal(), [LN2 / 4, LN2 * 9 / 8, LN2 * 147 / 64]),
        (Focal(gamma=0.0), [LN2, 2 * LN2, 3 * LN2]),
        # (1 - p)(-log p) = (1/2, 3/2, 21/8, 21/8) ln 2, the sum is 58/8 ln 2: 4/58, 12/58, 21/58
        (NFL(gamma=1.0), [4 / 58, 12 / 58, 21 / 58]),
        # sqrt(1 - p)(-log p) = (0.7071068, 1.7320508, 2.8062430, 2.8062430) ln 2, the sum is 8.0516436 ln 2
        (NFL(), [0.0878214, 0.2151177, 0.3485304]),
        # (1 - p_y) / 3
        (NMAE(), [1 / 6, 1 / 4, 7 / 24]),
        (NRCE(), [1 / 6, 1 / 4, 7 / 24]),
        # 1 - sqrt p = (0.2928932, 0.5, 0.6464466, 0.6464466), the sum is 2.0857864
        (NGCE(q=0.5), [0.1404234, 0.2397178, 0.3099294]),
        # 1 - p^0.7 = (0.3844278, 0.6210709, 0.7667418, 0.7667418), the sum is 2.5389823
        (NGCE(), [0.1514102, 0.2446141, 0.3019878]),
        # NCE + RCE = 1/9 + 4.6051702, 2/9 + 6.9077553, 3/9 + 8.0590478
        (APL(active=NCE(), passive=RCE()), [4.7162813, 7.1299775, 8.3923811]),
        # NCE / 2 + 2 MAE = 1/18 + 2, 2/18 + 3, 3/18 + 3.5
        (APL(active=NCE(), passive=MAE(), alpha=0.5, beta=2.0), [2.0555556, 3.1111111, 3.6666667]),
        # Nested: (3 NCE + MAE) + 10 CE = 3/9 + 1 + 10 ln 2, 6/9 + 3/2 + 20 ln 2, 1 + 7/4 + 30 ln 2
        (
            APL(active=APL(active=NCE(), passive=MAE(), alpha=3.0), passive=CE(), beta=10.0),
            [4 / 3 + 10 * LN2, 13 / 6 + 20 * LN2, 11 / 4 + 30 * LN2],
        ),
    ],
    ids=repr,
)
def test_value_by_hand(loss: Any, by_hand: list[float]) -> None:
    assert loss(LOGITS_BK, LABELS_B).tolist() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        # softmax - one-hot
        (CE(), [-0.5, 0.25, 0.125, 0.125]),
        # (d log p_y * S - log p_y * dS) / S^2 with S = sum log p = -9 ln 2, d log p_y = onehot - p, dS = 1 - 4 p:
        # (0.5 * -9 + -1) / (81 ln 2), (-0.25 * -9 + 0) / (81 ln 2), (-0.125 * -9 + 0.5) / (81 ln 2)
        (NCE(), [-5.5 / (81 * LN2), 2.25 / (81 * LN2), 1.625 / (81 * LN2), 1.625 / (81 * LN2)]),
        # -2 p_y (onehot - p) = -(onehot - p)
        (MAE(), [-0.5, 0.25, 0.125, 0.125]),
        # 4 p_y (p - onehot)
        (RCE(A=-4.0), [-1, 0.5, 0.25, 0.25]),
    ],
    ids=repr,
)
def test_gradient_by_hand(loss: Any, by_hand: list[float]) -> None:
    logits_1K = LOGITS_BK[:1].clone().requires_grad_()
    loss(logits_1K, LABELS_B[:1]).sum().backward()
    assert logits_1K.grad is not None and logits_1K.grad[0].tolist() == pytest.approx(by_hand, rel=1e-5)


def test_expected_by_hand() -> None:
    """-log p = (1, 2, 3, 3) ln 2, weighed by (1/2, 1/4, 1/4, 0), (0, 0, 0, 1) and 1/4 each."""
    p_BK = torch.tensor([[0.5, 0.25, 0.25, 0], [0, 0, 0, 1], [0.25, 0.25, 0.25, 0.25]])
    assert expected(CE(), LOGITS_BK, p_BK).tolist() == pytest.approx([1.75 * LN2, 3 * LN2, 2.25 * LN2])


@every_loss
def test_expected_of_a_sure_label_is_the_loss(loss: Any) -> None:
    one_hot_BK = torch.nn.functional.one_hot(LABELS_B, 4).float()
    assert torch.equal(expected(loss, LOGITS_BK, one_hot_BK), loss(LOGITS_BK, LABELS_B))


@every_loss
def test_gradient_is_the_slope_of_the_value(loss: Any) -> None:
    """A detached denominator or a clamp in the wrong place leaves the value right and the gradient wrong."""
    logits_BK = torch.tensor([[0.3, -1.2, 0.9, 2.0], [-0.4, 0.1, 1.5, -2.0]], requires_grad=True)
    labels_B = torch.tensor([1, 2])
    loss(logits_BK, labels_B).sum().backward()
    h = 0.02
    slopes_BK = torch.zeros(2, 4)
    for k in range(4):
        step_K = h * torch.eye(4)[k]
        slopes_BK[:, k] = (loss(logits_BK + step_K, labels_B) - loss(logits_BK - step_K, labels_B)).detach() / (2 * h)
    torch.testing.assert_close(logits_BK.grad, slopes_BK, rtol=0.01, atol=1e-3)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_float32_number_per_sample(loss: Any, dtype: torch.dtype) -> None:
    """An average over the batch, or a loss computed in bfloat16 (3 digits), would spoil the ranking of samples."""
    logits_BK = torch.linspace(-3, 3, 20).reshape(5, 4).to(dtype)
    labels_B = torch.tensor([0, 1, 2, 3, 0])
    losses_B = loss(logits_BK, labels_B)
    assert losses_B.shape == (5,)
    assert losses_B.dtype == torch.float32
    alone_B = torch.cat([loss(logits_BK[i : i + 1].float(), labels_B[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(losses_B, alone_B)


@every_loss
@pytest.mark.parametrize("size", [100.0, -100.0, 1e4, -1e4])
@pytest.mark.parametrize("K", [2, 4])
def test_value_and_gradient_are_finite_at_extreme_logits(loss: Any, size: float, K: int) -> None:
    """Class 0 gets the logit `size`, the others 0 (rows 0 and 1) or -size; labels 0 and 1 in turn, right and wrong."""
    logits_BK = torch.zeros(4, K)
    logits_BK[2:] = -size
    logits_BK[:, 0] = size
    logits_BK.requires_grad_()
    losses_B = loss(logits_BK, torch.tensor([0, 1, 0, 1]))
    losses_B.sum().backward()
    assert losses_B.isfinite().all() and (losses_B >= 0).all()
    assert logits_BK.grad is not None and logits_BK.grad.isfinite().all()


@pytest.mark.parametrize("loss", [CE(), Focal(), SCE()], ids=repr)
def test_sure_and_wrong_still_pulls(loss: Any) -> None:
    """log(p + eps) instead of log-softmax would give a gradient of 0 here: p_y = exp(-1000)."""
    logits_1K = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    losses_1 = loss(logits_1K, torch.tensor([1]))
    losses_1.sum().backward()
    weight = 0.1 if isinstance(loss, SCE) else 1.0
    assert logits_1K.grad is not None and logits_1K.grad[0].tolist() == pytest.approx([weight, -weight])
    assert losses_1.item() == pytest.approx(weight * 1000 + (4 if isinstance(loss, SCE) else 0))


@pytest.mark.parametrize(
    ("loss", "per_other", "fixed"),  # the sum over all labels is per_other * (K - 1) + fixed
    [
        (NCE(), 0, 1),
        (NFL(), 0, 1),
        (NFL(gamma=2.0), 0, 1),
        (NMAE(), 0, 1),
        (NRCE(), 0, 1),
        (NGCE(), 0, 1),
        (MAE(), 2, 0),
        (GCE(q=1.0), 1, 0),
        (RCE(), 9.2103404, 0),
        (APL(active=NCE(), passive=RCE(A=-4.0), alpha=2.0), 4, 2),
    ],
    ids=repr,
)
@settings(deadline=None, max_examples=30, derandomize=True)
@given(logits=st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=7))
def test_robust_losses_are_symmetric(loss: Any, per_other: float, fixed: float, logits: list[float]) -> None:
    """The sum over all labels does not depend on the logits: what robustness rests on (Ma et al. 2020, section 3)."""
    K = len(logits)
    losses_K = loss(torch.tensor(logits).repeat(K, 1), torch.arange(K))
    assert losses_K.sum().item() == pytest.approx(per_other * (K - 1) + fixed, rel=1e-4)
    assert (losses_K >= 0).all()


@pytest.mark.parametrize("loss", [CE(), GCE(), SCE(), Focal()], ids=repr)
def test_the_other_losses_are_not_symmetric(loss: Any) -> None:
    """The contrast to the test above: 0 and 5 logits give different sums."""
    flat, steep = (loss(torch.tensor([[top, 0.0, 0.0]]).repeat(3, 1), torch.arange(3)).sum() for top in (0.0, 5.0))
    assert abs(flat - steep) > 0.05 * flat


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=7), st.data())
def test_normalized_losses_lie_in_0_1(logits: list[float], data: st.DataObject) -> None:
    label = data.draw(st.integers(0, len(logits) - 1))
    for loss in (NCE(), NFL(), NMAE(), NRCE(), NGCE()):
        value = loss(torch.tensor([logits]), torch.tensor([label])).item()
        assert 0 <= value <= 1, loss


def test_gce_at_q_1_is_half_the_mae() -> None:
    assert GCE(q=1.0)(LOGITS_BK, LABELS_B).tolist() == pytest.approx([0.5, 0.75, 0.875])


@pytest.mark.parametrize("q", [0.1, 0.01, 0.001])
def test_gce_approaches_ce(q: float) -> None:
    """(1 - exp(-q c)) / q = c - q c^2 / 2 + q^2 c^3 / 6 ... with c = CE."""
    ce_B = CE()(LOGITS_BK, LABELS_B)
    missing_B = ce_B - GCE(q=q)(LOGITS_BK, LABELS_B)
    assert (missing_B / (q * ce_B**2 / 2)).tolist() == pytest.approx([1, 1, 1], abs=0.1)


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (GCE(q=1e-6), LN2),  # CE
        (GCE(q=1e-9), LN2),
        (NGCE(q=1e-9), 1 / 9),  # NCE; 0 / 0 gives NaN
    ],
    ids=repr,
)
def test_gce_at_the_smallest_q(loss: Any, by_hand: float) -> None:
    assert loss(LOGITS_BK[:1], LABELS_B[:1]).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (CE(), "CE"),
        (NCE(), "NCE"),
        (RCE(), "RCE"),
        (MAE(), "MAE"),
        (GCE(), "GCE"),
        (SCE(), "SCE"),
        (Focal(), "focal"),
        (NFL(), "NFL"),
        (NMAE(), "NMAE"),
        (NRCE(), "NRCE"),
        (NGCE(), "NGCE"),
        (APL(active=NCE(), passive=RCE()), "NCE+RCE"),
        (APL(active=APL(active=NFL(), passive=MAE()), passive=CE()), "NFL+MAE+CE"),
    ],
    ids=repr,
)
def test_name_in_tables_and_round_trip_through_json(loss: Any, text: str) -> None:
    assert str(loss) == text
    assert TypeAdapter(Loss).validate_json(loss.model_dump_json()) == loss


# ---- the APL paper's code


@pytest.mark.parametrize(
    ("ours", "theirs", "ratio"),  # theirs / ours
    [
        (RCE(), published.rce, 1),
        (MAE(), published.mae, 1 / 2),
        (NMAE(), published.nmae, 1 / 2),
        # 9.2103404 (1 - p_y) (K - 1) / 4 over (1 - p_y) / (K - 1), K = 4: 9.2103404 * 9 / 4
        (NRCE(), published.nrce, 20.723266),
        (GCE(), published.gce, 1),
        (SCE(A=-9.2103404), published.sce, 1),
    ],
    ids=lambda case: repr(case) if isinstance(case, MAE | NMAE | RCE | NRCE | GCE | SCE) else "",
)
def test_ratio_to_the_apl_papers_code(ours: Any, theirs: Any, ratio: float) -> None:
    ratios = theirs(LOGITS_BK, LABELS_B) / ours(LOGITS_BK, LABELS_B)
    assert ratios.tolist() == pytest.approx([ratio] * 3, rel=1e-5)


def test_sce_takes_the_papers_a_and_the_apl_papers_code_another() -> None:
    """Less 0.1 CE, which both have: 9.2103404 / 4."""
    parts = [loss(LOGITS_BK, LABELS_B) - 0.1 * CE()(LOGITS_BK, LABELS_B) for loss in (published.sce, SCE())]
    assert (parts[0] / parts[1]).tolist() == pytest.approx([2.3025851] * 3, rel=1e-5)


def gradients(loss: Any, logits_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    logits_BK = logits_BK.clone().requires_grad_()
    loss(logits_BK, labels_B).sum().backward()
    assert logits_BK.grad is not None
    return logits_BK.grad


@pytest.mark.parametrize(
    ("gamma", "by_hand"),
    [
        # 1 - gamma p log p / (1 - p): p = 1/2: 1 + gamma ln 2; 1/4: 1 + gamma 2/3 ln 2; 1/8: 1 + gamma 3/7 ln 2
        (0.5, [1.3465736, 1.2310491, 1.1485315]),
        (2.0, [2.3862944, 1.9241962, 1.5941262]),
    ],
)
def test_focals_gradient_beside_one_that_takes_the_factor_for_a_constant(gamma: float, by_hand: list[float]) -> None:
    ours = gradients(Focal(gamma=gamma), LOGITS_BK, LABELS_B)
    theirs = gradients(lambda logits, labels: published.focal(logits, labels, gamma), LOGITS_BK, LABELS_B)
    assert (ours / theirs).T.tolist() == [pytest.approx(by_hand, rel=1e-4)] * 4  # the direction is the same


def test_nfls_gradient_beside_one_that_takes_the_factors_for_constants() -> None:
    """The values are equal, the gradients are not. f_k = -(1 - p_k)^g log p_k has the slopes a_k (p_j - [k = j]) with
    a_k = (1 - p_k)^g, and here a_k = (1 - p_k)^g - g p_k (1 - p_k)^(g - 1) log p_k; f_y / S has, with S = sum_k f_k,
    (a_y (p_j - [y = j]) S - f_y sum_k a_k (p_j - [k = j])) / S^2, whose norms at g = 1/2 have these ratios."""
    torch.testing.assert_close(NFL()(LOGITS_BK, LABELS_B), published.nfl(LOGITS_BK, LABELS_B))
    ours, theirs = (gradients(loss, LOGITS_BK, LABELS_B).norm(dim=1) for loss in (NFL(), published.nfl))
    assert (ours / theirs).tolist() == pytest.approx([1.3017718, 1.2256945, 1.1595247], rel=1e-4)


def test_ngces_clamp_matters_at_q_0_1() -> None:
    """p = (1/2, 1/2, 0), label 0: 1 - 2^-0.1 = 0.0669670 over 2 * 0.0669670 + 1, or, with 1e-7^0.1 = 0.1995262 for the
    third class, over 2 * 0.0669670 + 0.8004738: 0.0590569 and 0.0716679."""
    logits_1K, label_1 = torch.tensor([[0.0, 0.0, -200.0]]), torch.tensor([0])
    assert NGCE(q=0.1)(logits_1K, label_1).item() == pytest.approx(0.0590569, rel=1e-5)
    assert published.ngce(logits_1K, label_1).item() == pytest.approx(0.0716679, rel=1e-5)
    # With ever more such classes the ratio goes to 1 / 0.8004738.
    many_1K = torch.tensor([[0.0, 0.0, *[-200.0] * 2000]])
    ratio = published.ngce(many_1K, label_1) / NGCE(q=0.1)(many_1K, label_1)
    assert 1.2 < ratio.item() < 1.2493
    # Label 2, p_y = 0: no gradient there, one here.
    logits_1K = torch.tensor([[0.0, 0.0, -20.0]])
    assert gradients(published.ngce, logits_1K, torch.tensor([2]))[0, 2].abs() < 1e-8
    assert gradients(NGCE(q=0.1), logits_1K, torch.tensor([2]))[0, 2].abs() > 1e-3


def test_gce_pairs_ignore_their_weight_in_the_apl_papers_code() -> None:
    theirs = [published.gce_and_mae(LOGITS_BK, LABELS_B, alpha, 1.0) for alpha in (1.0, 10.0)]
    assert torch.equal(*theirs)
    ours = [APL(active=GCE(), passive=MAE(), alpha=alpha)(LOGITS_BK, LABELS_B) for alpha in (1.0, 10.0)]
    assert (ours[1] - ours[0]).tolist() == pytest.approx((9 * GCE()(LOGITS_BK, LABELS_B)).tolist(), rel=1e-5)


def test_default_for_log_0_is_log_1e_4() -> None:
    assert math.exp(RCE().A) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "gce", "q": 0}',
        '{"name": "gce", "q": 1.5}',
        '{"name": "rce", "A": 0}',
        '{"name": "focal", "gamma": -1}',
        '{"name": "apl", "active": {"name": "nce"}}',
        '{"name": "apl", "active": {"name": "nce"}, "passive": {"name": "rce"}, "beta": 0}',
        '{"name": "nce", "gamma": 1}',
    ],
)
def test_settings_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Loss).validate_json(text)
