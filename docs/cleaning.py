"""Whether a cleaned data set trains a better classifier: measures cell by cell, writes docs/cleaning.md.

    python docs/cleaning.py --cifar4 cifar4.npz
    python docs/cleaning.py --cifar4 cifar4.npz --classifier linear --seeds 1

Each (data set, noise, seed, classifier, act) is one line of --results, written when it is done; what stands there is
not measured again, so that an interrupted call goes on. Remove the file to measure anew. In the page only what lies
between the two markers is replaced. cifar4.npz holds train_images (20000, 32, 32, 3) uint8,
train_labels, test_images, test_labels and class_names (cat, dog, horse, deer), in CIFAR-10's order.

N training samples, M test samples, D features, K classes.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cleaning_page import ACTS, CELLS, CLASSIFIERS, write_page
from detection import read_results
from numpy.typing import NDArray

from nlt.data import Samples
from nlt.detect import Acted, LabelErrors, act_on, find_label_errors
from nlt.features import Lite0, of_images
from nlt.prepare import prepare
from nlt.provenance import git_commit
from nlt.reading import check
from nlt.run import Prepared, Run, Split
from nlt.spec import Experiment
from nlt.train import evaluate, train_epoch

HERE = Path(__file__).parent
LIMIT = 4000  # training images, the same number of each class
WIDTH, EPOCHS, BATCH, LR = 0.25, 25, 64, 0.02  # of CNN9; the rate falls along half a cosine
GLANCE = 125  # test images that the training loop measures itself by
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2)  # C of the logistic regression; 1 / C is the penalty
FOLDS = 3  # in which one of them is chosen


class Cell(NamedTuple):
    """What one line measures."""

    data: str
    noise: str
    seed: int
    classifier: str
    act: str


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar4", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=HERE / "cleaning.jsonl")
    parser.add_argument("--page", type=Path, default=HERE / "cleaning.md")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder that keeps features")
    parser.add_argument("--classifier", choices=CLASSIFIERS, action="append", help="by default both")
    parser.add_argument("--data", choices=sorted({data for data, _ in CELLS}), action="append", help="by default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    arguments = parser.parse_args(argv)
    for cell in () if arguments.page_only else _cells(arguments.classifier or list(CLASSIFIERS), arguments.seeds):
        if arguments.data and cell.data not in arguments.data:
            continue
        # Read anew each time: another call may have measured it meanwhile.
        if cell in {Cell(*(line[field] for field in Cell._fields)) for line in read_results(arguments.results)}:
            continue
        began, cpu_began = time.perf_counter(), time.process_time()
        figures = (_cnn9 if cell.classifier == "cnn9" else _linear)(cell, arguments)
        line = cell._asdict() | figures
        line |= {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu_began}
        line |= {"commit": git_commit(), "date": time.strftime("%Y-%m-%d")}
        with arguments.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    write_page(arguments.page, read_results(arguments.results))


def _cells(classifiers: Sequence[str], seeds: int) -> Iterator[Cell]:
    """All cells, the first seed's of every row before those of the second."""
    for seed in range(seeds):
        for classifier in classifiers:
            for data, noise in CELLS:
                for act in ACTS:
                    yield Cell(data, noise, seed, classifier, act)


def _spec(cell: Cell, cifar4: Path) -> Experiment:
    """The experiment; `_cnn9` acts on the labels in its method's place, as `cleaned` does."""
    data: dict[str, Any] = {"name": "npz", "path": str(cifar4), "limit": LIMIT}
    if cell.data != "CIFAR-4":
        data["classes"] = cell.data.split(", ")
    training = {"epochs": EPOCHS, "batch_size": BATCH, "schedule": {"name": "cosine", "lr": LR}}
    return check(
        {
            "name": "cleaning",
            "about": "docs/cleaning.py",
            "data": data,
            "noise": {"name": "symmetric", "rate": int(cell.noise.split()[1]) / 100, "seed": cell.seed},
            "model": {"name": "cnn9", "width": WIDTH},
            "method": {"name": "standard", "training": training},
        },
        "docs/cleaning.py",
    )


@cache
def _found(cifar4: Path, data_root: Path, data: str, noise: str, seed: int) -> tuple[Prepared, LabelErrors]:
    """What is trained on, labels corrupted, and what the detector says of them."""
    prepared = prepare(_spec(Cell(data, noise, seed, "", "given"), cifar4), seed, "cpu", data_root)
    features_ND = of_images(Lite0(), prepared.train.images_NCHW.numpy(), prepared.cache)
    return prepared, find_label_errors(features_ND, prepared.train.labels_N.numpy(), classes=prepared.dataset.classes)


def _acted(cell: Cell, prepared: Prepared, found: LabelErrors, generator: torch.Generator) -> Acted:
    """As the method `cleaned` acts; `given` removes nothing."""
    labels_N, wrong_N = prepared.train.labels_N, torch.from_numpy(found.flagged())
    act: Any = cell.act if cell.act != "given" else "remove"
    return act_on(act, labels_N, wrong_N & (cell.act != "given"), torch.from_numpy(found.p_true_NK), generator)


def _cnn9(cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """CNN9 at a quarter of its width, from scratch: only the features that judge labels are pretrained.

    The test images are looked at once, after the last epoch; meanwhile an epoch is measured on a few of them.
    """
    prepared, found = _found(arguments.cifar4, arguments.data_root, cell.data, cell.noise, cell.seed)
    some = torch.arange(GLANCE)
    glance = Samples(prepared.test.images_NCHW[some], prepared.test.ids_N[some], prepared.test.labels_N[some], None)
    run = Run(replace(prepared, test=glance), lambda epoch: None)
    acted = _acted(cell, prepared, found, run.generator)
    labels_N, keep_N, weights_N = (run.buffer(name, value) for name, value in acted._asdict().items())
    stage = _spec(cell, arguments.cifar4).method.training
    net = run.learner("net")
    for epoch in run.epochs("training", stage, net):
        train_epoch(net, epoch, stage.loss, keep_N, labels_N, weights_N)
        fitted = epoch.accuracy()
    test = Split(prepared.test, run.device)
    accuracy = evaluate((net,), test.images_NHWC, test.labels_N)
    return {"test_accuracy": accuracy, "train_accuracy": fitted} | _left(prepared, acted)


def _linear(cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """Logistic regression on lite0's features, standardized.

    The penalty has the greatest accuracy in `FOLDS` folds against the given labels of all samples, whatever the act
    made of them: under such noise the more accurate of two models stays the one that agrees more with noisy labels.
    What an act kept or changed would not do: it was chosen by its agreement with a linear model of the same features.
    """
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
    from sklearn.model_selection import StratifiedKFold  # type: ignore[import-untyped]
    from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]

    prepared, found = _found(arguments.cifar4, arguments.data_root, cell.data, cell.noise, cell.seed)
    acted = _acted(cell, prepared, found, torch.Generator().manual_seed(cell.seed))
    train_ND, test_MD = (
        of_images(Lite0(), split.images_NCHW.numpy(), prepared.cache).astype(np.float32)
        for split in (prepared.train, prepared.test)
    )
    scaler = StandardScaler().fit(train_ND)
    train_ND, test_MD = scaler.transform(train_ND), scaler.transform(test_MD)
    given_N = prepared.train.labels_N.numpy()
    keep_N, labels_N, weights_N = acted.keep_N.numpy(), acted.labels_N.numpy(), acted.weights_N.numpy()

    def fit(C: float, rows: NDArray[np.int64]) -> Any:
        on = rows[keep_N[rows]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 200 steps may not be all; the predictions hardly change any more
            return LogisticRegression(C=C, max_iter=200).fit(train_ND[on], labels_N[on], weights_N[on])

    hits = dict.fromkeys(STRENGTHS, 0)
    for rest, held_out in StratifiedKFold(FOLDS, shuffle=True, random_state=cell.seed).split(train_ND, given_N):
        for C in STRENGTHS:
            hits[C] += int((fit(C, rest).predict(train_ND[held_out]) == given_N[held_out]).sum())
    chosen = max(STRENGTHS, key=lambda C: hits[C])  # of equals the strongest penalty
    accuracy = float((fit(chosen, np.arange(len(given_N))).predict(test_MD) == prepared.test.labels_N.numpy()).mean())
    return {"test_accuracy": accuracy, "C": chosen} | _left(prepared, acted)


def _left(prepared: Prepared, acted: Acted) -> dict[str, Any]:
    """How many samples are trained on, and the share of wrong labels among them by weight, which no method knows."""
    assert prepared.train.clean_N is not None, "the noise was drawn here"
    wrong_N = (acted.labels_N != prepared.train.clean_N).double()
    weights_N = acted.weights_N.double() * acted.keep_N
    return {"images": int(acted.keep_N.sum()), "wrong": float((wrong_N * weights_N).sum() / weights_N.sum())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
