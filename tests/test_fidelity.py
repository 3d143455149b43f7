"""docs/fidelity.md: the figures in the last column of its tables are those that nlt computes now.

`python tests/test_fidelity.py` writes the column anew.
"""

import re
from collections.abc import Callable
from typing import Any

import published
import pytest
import torch
from conftest import REPO, make_run, samples
from test_losses import LABELS_B, LOGITS_BK, gradients

from nlt.data.cifar import CIFAR4_CLASSES
from nlt.detect import mask_quality, number_kept
from nlt.losses import CE, GCE, MAE, NCE, NFL, NGCE, NMAE, NRCE, RCE, SCE, Focal
from nlt.methods.o2u import O2U
from nlt.methods.standard import Standard
from nlt.optim import Constant, Cyclical, Step
from nlt.reading import load
from nlt.spec import Experiment
from nlt.train import Stage, evaluate, to_float

PAGE = REPO / "docs" / "fidelity.md"
CORRECTED, AS_PUBLISHED = (
    load(REPO / "experiments" / folder / "o2u_20.json") for folder in (".", "as_published")
)  # fmt: skip
ROW = re.compile(r"^\| (?P<name>[^|]+) \|(?P<middle>.*)\| (?P<figure>[^|]*) \|$", re.MULTILINE)


def both(of: Callable[[Experiment], Any]) -> str:
    """Return a figure of `corrected`, then of `as_published`."""
    return f"{of(CORRECTED)}; {of(AS_PUBLISHED)}"


def network() -> str:
    built = CORRECTED.model.build(3, 32, 32, 4)
    return f"{sum(parameter.numel() for parameter in built.parameters()):,} parameters at K = 4"


def dropout_at_test_time() -> str:
    """How many of the logits of two passes in evaluation mode over the same images differ."""

    def differing(spec: Experiment) -> str:
        torch.manual_seed(0)
        built = spec.model.model_copy(update={"width": 0.1}).build(1, 32, 32, 4).eval()
        images_BCHW = to_float(samples(32, 4, 32).images_NCHW.permute(0, 2, 3, 1))
        with torch.no_grad():
            differ_BK = built(images_BCHW) != built(images_BCHW)
        return f"{100 * differ_BK.double().mean():.0f} % of logits differ between two passes"

    return both(differing)


def pixels() -> str:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    floats = to_float(every)
    return f"0, 1, ..., 255 become {floats.min():g}, {floats.flatten()[1]:.6f}, ..., {floats.max():g}"


def transition_matrix() -> str:
    T_KK = CORRECTED.noise.matrix(CIFAR4_CLASSES)
    return f"at τ = 0.2: {T_KK[0, 0]:.4f} and {T_KK[0, 1]:.4f}"


def rates(schedule: Constant | Step | Cyclical, epochs: int) -> str:
    return " ".join(f"{schedule.at(t, epochs):g}" for t in range(1, epochs + 1))


def steps(of: Step, epochs: int) -> str:
    changes = [t for t in range(2, epochs + 1) if of.at(t, epochs) != of.at(t - 1, epochs)]
    return f"epochs {changes[0]} and {changes[1]} of {epochs}"


def momentum_between_stages() -> str:
    """How many parameters have a momentum when each stage begins."""
    run, _ = make_run()
    stage = Stage(epochs=1, batch_size=8, schedule=Constant(lr=0.05))
    held, epochs = [], run.epochs

    def watched(name: str, *rest: Any) -> Any:
        held.append(len(run.learners["net"].optimizer.state))
        return epochs(name, *rest)

    run.epochs = watched  # type: ignore[method-assign]
    O2U(forget_rate=0.25, pretraining=stage, cyclical=stage, training=stage).train(run)
    return f"momenta held when the stages begin: {', '.join(map(str, held))}"


def score() -> str:
    """The largest difference between a reported score and the sum of (loss - mean of the epoch)."""
    run, told = make_run()
    stage = Stage(epochs=1, batch_size=8, schedule=Constant(lr=0.05))
    cyclical = Stage(epochs=4, batch_size=4, schedule=Cyclical(period=2))
    O2U(forget_rate=0.25, pretraining=stage, cyclical=cyclical, training=stage).train(run)
    detecting = [epoch for epoch in told if epoch.scores_N is not None]
    total_N = sum(epoch.losses_N.double() - epoch.losses_N.double().mean() for epoch in detecting)
    off = (detecting[-1].scores_N - total_N).abs().max()
    return f"differs by less than 1e-5 after {len(detecting)} epochs: {'yes' if off < 1e-5 else 'no'}"


def removed() -> str:
    paper = [f"{N - number_kept(N, f, 'as_code'):,}" for N, f in ((20_000, 0.2), (20_000, 0.6))]
    pairs = [(N, f / 100) for f in range(1, 100) for N in range(1000, 1200)]
    more = [published.number_removed(N, f) - (N - number_kept(N, f)) for N, f in pairs]
    return f"{' and '.join(paper)} in the paper's cells; one more in {100 * sum(more) / len(more):.0f} % of (N, f)"


def noise_accuracy() -> str:
    keep_N, wrong_N = torch.tensor([False] * 4 + [True] * 6), torch.tensor([True] * 3 + [False] * 7)
    return f"3 of 4 removed are wrong: {mask_quality(keep_N, wrong_N)['noise/precision']:g}"


def start_of_stage_3() -> str:
    """Whether the third stage begins at the weights with which the first one ended."""
    run, _ = make_run()
    stage = Stage(epochs=1, batch_size=8, schedule=Constant(lr=0.05))
    weights, epochs = {}, run.epochs

    def watched(name: str, *rest: Any) -> Any:
        weights[f"before {name}"] = run.learners["net"].network.linear.weight.detach().clone()
        return epochs(name, *rest)

    run.epochs = watched  # type: ignore[method-assign]
    O2U(forget_rate=0.25, pretraining=stage, cyclical=stage, training=stage).train(run)
    equal = torch.equal(weights["before cyclical"], weights["before training"])
    moved = not torch.equal(weights["before pretraining"], weights["before cyclical"])
    return f"equal to stage 1's end: {'yes' if equal and moved else 'no'}"


def accuracy_of_an_epoch() -> str:
    """Which of the weights before and after the only epoch its reported accuracy is of."""

    def scored(spec: Experiment) -> str:
        run, told = make_run(seed=1, before=spec.evaluate == "before")
        accuracies = []
        epochs = run.epochs

        def watched(name: str, stage: Stage, net: Any, patience: int | None) -> Any:
            split = run._held_out["test"]
            accuracies.append(evaluate([net], split.images_NHWC, split.labels_N))
            return epochs(name, stage, net, patience=patience)

        run.epochs = watched  # type: ignore[method-assign]
        Standard(training=Stage(epochs=1, batch_size=4, schedule=Constant(lr=0.3))).train(run)
        split = run._held_out["test"]
        accuracies.append(evaluate(run.nets, split.images_NHWC, split.labels_N))
        assert accuracies[0] != accuracies[1]  # else this would tell nothing
        return ("of the weights before", "of the weights after")[accuracies.index(told[0].metrics["test/accuracy"])]

    return both(scored)


def logged_loss() -> str:
    run, told = make_run()
    Standard(training=Stage(epochs=1, batch_size=8)).train(run)
    equal = abs(told[0].metrics["train/loss"] - float(told[0].losses_N.double().mean())) < 1e-12
    return f"equal to the mean of the per-sample losses: {'yes' if equal else 'no'}"


def ratio(theirs: Any, ours: Any) -> str:
    found = (theirs(LOGITS_BK, LABELS_B) / ours(LOGITS_BK, LABELS_B)).tolist()
    assert max(found) - min(found) < 1e-4 * max(found)  # one number for all samples
    return f"{found[0]:.4g}"


def gradient_ratios(theirs: Any, ours: Any) -> str:
    """Norm of nlt's gradient over theirs."""
    norms = [gradients(loss, LOGITS_BK, LABELS_B).norm(dim=1) for loss in (ours, theirs)]
    return "gradient, nlt over theirs: " + ", ".join(f"{ratio:.2f}" for ratio in norms[0] / norms[1])


def ce_and_nce() -> str:
    log_p_BK = LOGITS_BK.double().softmax(1).log()
    log_p_y_B = log_p_BK.gather(1, LABELS_B[:, None]).squeeze(1)
    expected = (-log_p_y_B, log_p_y_B / log_p_BK.sum(1))
    found = [loss(LOGITS_BK, LABELS_B) for loss in (CE(), NCE())]
    return ", ".join(f"{(a / b).mean():.4g}" for a, b in zip(expected, found, strict=True))


def gce() -> str:
    pairs = [published.gce_and_mae(LOGITS_BK, LABELS_B, alpha, 1.0) for alpha in (1.0, 10.0)]
    return f"{ratio(published.gce, GCE())}; its pair at alpha 10 over alpha 1: {(pairs[1] / pairs[0]).mean():g}"


def sce() -> str:
    parts = [loss(LOGITS_BK, LABELS_B) - 0.1 * CE()(LOGITS_BK, LABELS_B) for loss in (published.sce, SCE())]
    return f"{(parts[0] / parts[1]).mean():.4g} without the CE part"


def ngce() -> str:
    logits_1K, label_1 = torch.tensor([[0.0, 0.0, -200.0]]), torch.tensor([0])
    found = published.ngce(logits_1K, label_1) / NGCE(q=0.1)(logits_1K, label_1)
    return f"{found.item():.3f} at p = (1/2, 1/2, 0), label 0"


FIGURES: dict[str, Callable[[], str]] = {
    "network": network,
    "dropout at test time": dropout_at_test_time,
    "classes of CIFAR-4": lambda: ", ".join(CIFAR4_CLASSES),
    "pixels": pixels,
    "optimizer": lambda: both(lambda spec: f"{spec.optimizer.weight_decay:g}"),
    "precision": lambda: both(lambda spec: spec.precision),
    "noise transition matrix": transition_matrix,
    "draw of the wrong labels": lambda: both(lambda spec: f"`{spec.noise.draw}`"),
    "batch size": lambda: both(lambda spec: " ".join(str(s.batch_size) for s in spec.stages().values())),
    "rate in pre-training": lambda: both(
        lambda spec: " ".join(
            dict.fromkeys(rates(spec.method.pretraining.schedule, spec.method.pretraining.epochs).split())
        )
    ),
    "cyclical rate": lambda: both(
        lambda spec: (
            rates(spec.method.cyclical.schedule, spec.method.cyclical.epochs).split()[0]
            + f" first, 0.001 in epoch {rates(spec.method.cyclical.schedule, 19).split().index('0.001') + 1}"
        )
    ),
    "rates of stage 3, base, APL": lambda: both(
        lambda spec: steps(spec.method.training.schedule, spec.method.training.epochs)
    ),
    "epochs": lambda: both(lambda spec: " + ".join(str(s.epochs) for s in spec.stages().values())),
    "optimizer between stages": momentum_between_stages,
    "score of a sample": score,
    "number removed": removed,
    "noise accuracy": noise_accuracy,
    "start of stage 3": start_of_stage_3,
    "accuracy of an epoch": accuracy_of_an_epoch,
    "logged loss": logged_loss,
    "runs in a cell of Table 1": lambda: both(lambda spec: spec.published.n),
    "CE, NCE": ce_and_nce,
    "RCE": lambda: ratio(published.rce, RCE()),
    "MAE": lambda: ratio(published.mae, MAE()),
    "NMAE": lambda: ratio(published.nmae, NMAE()),
    "NRCE": lambda: ratio(published.nrce, NRCE()),
    "GCE": gce,
    "SCE": sce,
    "focal, gamma 0.5": lambda: gradient_ratios(published.focal, Focal(gamma=0.5)),
    "NFL, gamma 0.5": lambda: gradient_ratios(published.nfl, NFL()),
    "NGCE, q 0.1": ngce,
}


def rows() -> dict[str, str]:
    """Return the page's rows but the heads: component -> figure."""
    found = {row["name"]: row["figure"] for row in ROW.finditer(PAGE.read_text())}
    return {name: figure for name, figure in found.items() if name not in ("component", "loss")}


def test_the_page_has_a_row_for_each_figure_and_a_figure_for_each_row() -> None:
    assert list(rows()) == list(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_current(name: str) -> None:
    assert rows().get(name) == FIGURES[name](), "see the head of this file"


if __name__ == "__main__":
    computed = {name: of() for name, of in FIGURES.items()}
    PAGE.write_text(
        ROW.sub(
            lambda row: f"| {row['name']} |{row['middle']}| {computed.get(row['name'], row['figure'])} |",
            PAGE.read_text(),
        )
    )
