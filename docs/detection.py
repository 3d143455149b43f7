"""How well wrong labels are found, and how many there are said to be: measures row by row, writes docs/detection.md.

    python docs/detection.py                                                     digits
    python docs/detection.py --cifar10 cifar10.npz --human human.npz             CIFAR-10 and CIFAR-4 too
    python docs/detection.py --only 'digits, symmetric*' --o2u                   some rows, and O2U-Net trained beside

Each (data set, noise, seed, score) is one line of --results, written when it is done; what stands there is not measured
again, so that an interrupted call goes on. Remove the file to measure anew. In the page only what lies between the two
markers is replaced. cifar10.npz holds train_images (50000, 32, 32, 3) uint8, train_labels and class_names, human.npz
CIFAR-10N's aggre_label, random_label1 and worse_label (50000), all in CIFAR-10's order.

N samples, D features, K classes; wrong_N is True where a label is wrong, which only the measures here know.
"""

import argparse
import csv
import fnmatch
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detection_page import DATA, HUMAN, NOISES, write_page
from numpy.typing import NDArray

from nlt.cleaning.decide import THRESHOLD
from nlt.cleaning.sample import draw_sample, estimate_rate
from nlt.data.digits import Digits
from nlt.detect import LabelErrors, find_label_errors, ranking_quality
from nlt.features import Lite0, Pixels, of_images
from nlt.noise import Asymmetric, InstanceDependent, NoNoise, PairFlip, Symmetric, corrupt, instance_dependent
from nlt.provenance import git_commit

HERE = Path(__file__).parent
OURS = ("default", "p_y", "margin")
CIFAR4 = ("cat", "dog", "horse", "deer")
FLIPS = {  # Patrini et al. 2017, section 5: MNIST's and CIFAR-10's classes that look alike
    "digits": {"2": "7", "3": "8", "5": "6", "6": "5", "7": "1"},
    "CIFAR-10": {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"},
    "CIFAR-4": {"deer": "horse", "cat": "dog", "dog": "cat"},
}
O2U_ROWS = ("symmetric 40 %", "pair flip 40 %")  # a minute of training each
FOLDS, STRENGTHS = 5, (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the logistic regression whose predictions cleanlab gets
DECISIONS, DRAWS = 100, 50


@dataclass(frozen=True)
class Data:
    """Images with their true labels, and what features of them are made of."""

    images_NCHW: NDArray[np.uint8]
    clean_N: NDArray[np.int64]
    classes: tuple[str, ...]
    backbone: Pixels | Lite0
    human: dict[str, NDArray[np.int64]]


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, then write the page."""
    arguments = _arguments(argv)
    lines = read_results(arguments.results)
    for name in DATA:
        if name == "digits" or arguments.cifar10:
            _measure_all(name, arguments, lines)
    write_page(arguments.page, lines)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "detection.jsonl")
    parser.add_argument("--page", type=Path, default=HERE / "detection.md")
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--human", type=Path)
    parser.add_argument("--only", action="append", help="rows, 'DATA SET, NOISE', * for anything; may be given again")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--features", type=Path, help="folder that keeps features; by default beside the results")
    parser.add_argument("--o2u", action="store_true", help="train O2U-Net on digits, two rows, a minute each")
    return parser.parse_args(argv)


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return what is measured; half a line that a crash left at the end is cut off."""
    if not path.exists():
        return []
    raw = path.read_bytes()
    if not raw.endswith(b"\n"):
        path.write_bytes(raw[: raw.rfind(b"\n") + 1])
    return [json.loads(line) for line in path.read_text().splitlines()]


def _measure_all(name: str, arguments: argparse.Namespace, lines: list[dict[str, Any]]) -> None:
    """Measure one data set's rows that are asked for and not there; nothing is loaded if there are none."""
    there = {(line["data"], line["noise"], line["seed"], line["score"]) for line in lines}
    kept = arguments.features or arguments.results.with_name("features")
    load = cache(lambda: _load(name, arguments))
    features = cache(lambda: of_images(load().backbone, load().images_NCHW, kept))
    for noise, seed, scores in _wanted(name, arguments):
        missing = {score for score in scores if (name, noise, seed, score) not in there}
        if not missing:
            continue
        labels_N = _labels(name, load(), noise, seed)
        wrong_N = labels_N != load().clean_N
        about = {
            "data": name, "noise": noise, "seed": seed, "images": len(labels_N), "true_rate": float(wrong_N.mean()),
            "commit": git_commit(), "date": time.strftime("%Y-%m-%d"),
        }  # fmt: skip
        for made_by in (_ours, _cleanlab, _o2u):
            for score, figures in made_by(missing, features, labels_N, wrong_N, load(), noise, seed):
                if score in missing:
                    line = about | {"score": score} | figures
                    with arguments.results.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    lines.append(line)
                    print(json.dumps(line), flush=True)


def _wanted(name: str, arguments: argparse.Namespace) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    human = name == "CIFAR-10" and arguments.human
    for seed in range(arguments.seeds):
        for noise in NOISES:
            if noise in HUMAN and not human:
                continue
            if not any(fnmatch.fnmatch(f"{name}, {noise}", only) for only in arguments.only or ["*"]):
                continue
            beside = ("cleanlab",) if seed == 0 and noise != "clean" and find_spec("cleanlab") else ()
            o2u = ("O2U",) if arguments.o2u and name == "digits" and seed == 0 and noise in O2U_ROWS else ()
            yield noise, seed, (*OURS, *beside, *o2u)


def _load(name: str, arguments: argparse.Namespace) -> Data:
    """Digits: the 1,400 for training; CIFAR: 8,000 or 4,000 of the 50,000, drawn by numpy's generator with seed 0."""
    if name == "digits":
        digits = Digits().load(Path())
        return Data(digits.train.images_NCHW.numpy(), digits.train.labels_N.numpy(), digits.classes, Pixels(), {})
    with np.load(arguments.cifar10) as arrays:
        names = tuple(str(label) for label in arrays["class_names"])
        images_NHWC, clean_N = arrays["train_images"], arrays["train_labels"].astype(np.int64)
    classes = CIFAR4 if name == "CIFAR-4" else names
    number_of = np.array([classes.index(label) if label in classes else -1 for label in names])
    rows = np.flatnonzero(number_of[clean_N] >= 0)
    rows = np.sort(np.random.default_rng(0).choice(rows, 4_000 if name == "CIFAR-4" else 8_000, replace=False))
    human: dict[str, NDArray[np.int64]] = {}
    if arguments.human and name == "CIFAR-10":
        with np.load(arguments.human) as labels:
            human = {noise: labels[key][rows].astype(np.int64) for noise, key in HUMAN.items()}
    images_NCHW = np.ascontiguousarray(images_NHWC[rows].transpose(0, 3, 1, 2))
    return Data(images_NCHW, number_of[clean_N[rows]], classes, Lite0(), human)


def _noise(name: str, noise: str, seed: int) -> NoNoise | Symmetric | PairFlip | Asymmetric | InstanceDependent:
    if noise == "clean":
        return NoNoise()
    kind, percent, _ = noise.rsplit(" ", 2)
    rate = int(percent) / 100
    if kind == "asymmetric":
        return Asymmetric(rate=rate, flips=FLIPS[name], seed=seed)
    if kind == "instance-dependent":
        return InstanceDependent(rate=rate, seed=seed)
    return Symmetric(rate=rate, seed=seed) if kind == "symmetric" else PairFlip(rate=rate, seed=seed)


def _labels(name: str, data: Data, noise: str, seed: int) -> NDArray[np.int64]:
    if noise in HUMAN:
        return data.human[noise]
    drawn, clean_N = _noise(name, noise, seed), torch.from_numpy(data.clean_N)
    if isinstance(drawn, InstanceDependent):
        images_NCHW = torch.from_numpy(data.images_NCHW)
        given_N = instance_dependent(images_NCHW, clean_N, len(data.classes), drawn.rate, seed)
    else:
        given_N = corrupt(clean_N, drawn.matrix(data.classes), seed)
    labels_N: NDArray[np.int64] = given_N.numpy()
    return labels_N


Features = Callable[[], NDArray[np.float16]]
Found = Iterator[tuple[str, dict[str, Any]]]


def _ours(
    missing: set[str], features: Features, labels_N: NDArray[np.int64], wrong_N: NDArray[np.bool_], data: Data,
    noise: str, seed: int,
) -> Found:  # fmt: skip
    """The default detector and its single scores."""
    if not missing & set(OURS):
        return
    features_ND = features()
    began, cpu_began = time.perf_counter(), time.process_time()
    errors = find_label_errors(features_ND, labels_N, classes=data.classes, seed=seed)
    seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu_began}
    flagged_N = errors.p_wrong_N > THRESHOLD
    yield (
        "default",
        ranked(errors.scores["posterior"], wrong_N)
        | {"f1": f1(flagged_N, wrong_N), "flagged": float(flagged_N.mean()), "accuracy": errors.accuracy}
        | rates(errors, wrong_N)
        | decided(errors, wrong_N)
        | seconds,
    )
    for score in ("p_y", "margin"):
        yield score, ranked(errors.scores[score], wrong_N)


def ranked(scores_N: NDArray[np.float64], wrong_N: NDArray[np.bool_]) -> dict[str, float]:
    """Measure an order: AUROC, average precision; of the n highest, n wrong labels being there, those that are right
    labels make precision less than 1, the wrong ones below are the false negatives."""
    n = int(wrong_N.sum())
    if not n:
        return {}
    hits = int(wrong_N[np.argsort(-scores_N, kind="stable")[:n]].sum())
    return ranking_quality(scores_N, wrong_N) | {"precision": hits / n, "false_negatives": n - hits}


def f1(flagged_N: NDArray[np.bool_], wrong_N: NDArray[np.bool_]) -> float | None:
    """Return 2 both / (flagged + wrong), the harmonic mean of precision and recall; None if no label is wrong."""
    if not wrong_N.any():
        return None
    return float(2 * (flagged_N & wrong_N).sum() / (flagged_N.sum() + wrong_N.sum()))


def rates(errors: LabelErrors, wrong_N: NDArray[np.bool_]) -> dict[str, Any]:
    """The estimated rate, and of how many classes the interval covers the truth."""
    true = [float(wrong_N[errors.given_N == k].mean()) for k in range(len(errors.classes))]
    inside = [rate.low <= at <= rate.high for rate, at in zip(errors.per_class, true, strict=True)]
    rate = errors.rate
    return {
        "rate": rate.point, "low": rate.low, "high": rate.high, "classes_covered": sum(inside), "classes": len(true),
        "unreliable": rate.reading.startswith("unreliable"),
    }  # fmt: skip


def decided(errors: LabelErrors, wrong_N: NDArray[np.bool_]) -> dict[str, float]:
    """What 100 right decisions on the stratified random sample make of the rate, over 50 samples."""
    within, covered, squared = 0, 0, 0.0
    for seed in range(DRAWS):
        sample = draw_sample(errors.p_wrong_N, DECISIONS, seed)
        estimate = estimate_rate(sample, {row: bool(wrong_N[row]) for row in sample.rows})
        assert estimate is not None, "every row of the sample is decided"
        within += abs(estimate.point - wrong_N.mean()) <= 0.03
        covered += estimate.low <= wrong_N.mean() <= estimate.high
        squared += float(estimate.point - wrong_N.mean()) ** 2
    return {
        "decided_error": (squared / DRAWS) ** 0.5, "decided_within": within / DRAWS, "decided_covered": covered / DRAWS
    }  # fmt: skip


def _cleanlab(
    missing: set[str], features: Features, labels_N: NDArray[np.int64], wrong_N: NDArray[np.bool_], data: Data,
    noise: str, seed: int,
) -> Found:  # fmt: skip
    """cleanlab on five folds of logistic regression, the weakest penalty that still lowers the cross-entropy."""
    if "cleanlab" not in missing:
        return
    from cleanlab.filter import find_label_issues  # type: ignore[import-untyped]
    from cleanlab.rank import get_label_quality_scores  # type: ignore[import-untyped]
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
    from sklearn.metrics import log_loss  # type: ignore[import-untyped]
    from sklearn.model_selection import StratifiedKFold, cross_val_predict  # type: ignore[import-untyped]
    from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]
    from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]

    features_ND = features().astype(np.float32)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    began, cpu_began = time.perf_counter(), time.process_time()
    best: tuple[float, float, Any] | None = None
    for C in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=200))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 200 steps may not be all; the order hardly changes any more
            p_NK = cross_val_predict(model, features_ND, labels_N, cv=folds, method="predict_proba")
        loss = float(log_loss(labels_N, p_NK))
        if best is not None and loss >= best[0]:
            break  # weaker penalties are slower, and worse yet
        best = loss, C, p_NK
    assert best is not None, "there are penalties"
    p_NK = best[2].astype(np.float64)
    score_N = 1 - get_label_quality_scores(labels_N, p_NK, method="self_confidence")
    flagged_N = find_label_issues(labels_N, p_NK, n_jobs=1)
    seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu_began}
    yield (
        "cleanlab",
        ranked(score_N, wrong_N)
        | {"f1": f1(flagged_N, wrong_N), "rate": float(flagged_N.mean()), "C": best[1]}
        | seconds,
    )


def _o2u(
    missing: set[str], features: Features, labels_N: NDArray[np.int64], wrong_N: NDArray[np.bool_], data: Data,
    noise: str, seed: int,
) -> Found:  # fmt: skip
    """Launch the quickstart's O2U-Net on the same labels, its last stage cut short, and read its scores."""
    if "O2U" not in missing:
        return
    drawn = _noise("digits", noise, seed).model_dump_json()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "nlt.cli", "launch", str(HERE.parent / "experiments/quickstart/o2u.json")]
        command += ["--set", f"noise={drawn}", "--set", "method.training.epochs=1"]
        command += ["--seed", "0", "--device", "cpu", "--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (file,) = Path(folder).rglob("detections.csv")
        with file.open(newline="") as rows:
            score_of = {int(row["id"]): float(row["score"]) for row in csv.DictReader(rows)}
    ids_N = Digits().load(Path()).train.ids_N.tolist()
    score_N = np.array([score_of[i] for i in ids_N])
    yield "O2U", ranked(score_N, wrong_N) | {"seconds": time.perf_counter() - began}


if __name__ == "__main__":
    main()
