"""What the tests of nlt.cleaning share: small folders of real images, judged by hand."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from nlt.data.checks import Issue
from nlt.data.labelled import Labelled
from nlt.detect import LabelErrors, Rate

__all__ = ["Issue", "Labelled", "decisions_csv", "folder", "judged", "picture", "tree", "write_images"]


def picture(number: int, side: int = 12) -> Image.Image:
    pixels = np.random.RandomState(number).randint(0, 256, (side, side + number % 3, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def write_images(top: Path, paths: list[str], side: int = 12) -> None:
    for number, path in enumerate(paths):
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        picture(number, side).save(top / path)


def folder(top: Path, paths: list[str], **more: Any) -> Labelled:
    """Images in top/CLASS/** (top/SPLIT/CLASS/** with `splits`), as nlt.data.labelled gives them."""
    write_images(top, paths)
    depth = 1 if more.get("splits") else 0
    given = [path.split("/")[depth] for path in paths]
    classes = tuple(sorted(set(given) | set(more.pop("classes", ()))))
    sums = tuple(hashlib.sha256((top / path).read_bytes()).digest() for path in paths)
    labels_N = np.array([classes.index(name) for name in given])
    return Labelled(top, "folder", classes, labels_N, tuple(paths), sums, **more)


def judged(data: Labelled, suggested: dict[str, str] | None = None, p: dict[str, float] | None = None) -> LabelErrors:
    """Findings by hand: name -> suggested label (others as given), name -> p_wrong (others .9 or .1)."""
    K, N = len(data.classes), len(data.names)
    wanted = [(suggested or {}).get(name, data.classes[k]) for name, k in zip(data.names, data.labels_N, strict=True)]
    suggested_N = np.array([data.classes.index(name) for name in wanted])
    p_wrong_N = np.where(suggested_N != data.labels_N, 0.9, 0.1)
    for name, value in (p or {}).items():
        p_wrong_N[data.names.index(name)] = value
    p_true_NK = np.zeros((N, K), np.float32)
    p_true_NK[np.arange(N), suggested_N] = p_wrong_N
    p_true_NK[np.arange(N), data.labels_N] = 1 - p_wrong_N
    rate = Rate(float(p_wrong_N.mean()), 0.05, 0.45, "Holds for noise that depends on the class alone.")
    T_KK = np.full((K, K), 0.1 / max(1, K - 1))
    np.fill_diagonal(T_KK, 0.9)
    scores = {"p_y": p_wrong_N * 0.9, "margin": p_wrong_N - 0.5, "posterior": p_wrong_N}
    return LabelErrors(data.names, data.classes, data.labels_N, suggested_N, p_wrong_N, scores, p_true_NK, T_KK, rate,
                       (rate,) * K, "lite0", {"lite0": 0.5}, 0.83)  # fmt: skip


def tree(top: Path) -> dict[str, bytes]:
    """Path -> content of every file."""
    return {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}


def decisions_csv(file: Path, lines: list[dict[str, str]]) -> Path:
    pd.DataFrame(lines).to_csv(file, index=False)
    return file
