"""Write scikit-learn's digits as a folder of images, a share of which lies in a wrong class: something to find.

    python docs/planted_digits.py digits
    nlt detect digits

Which ones are wrong stands in FOLDER.txt beside the folder; `nlt detect` never reads it.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

RATE = 0.1


def main(folder: Path) -> None:
    """Write the folder; nothing if it is there."""
    if folder.exists():
        return
    digits, generator = load_digits(), np.random.default_rng(0)
    planted = []
    for row, (image_HW, true) in enumerate(zip(digits.images, digits.target, strict=True)):
        given = (true + generator.integers(1, 10)) % 10 if generator.random() < RATE else true
        file = folder / f"digit {given}" / f"{row:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image_HW * 15.9).astype(np.uint8)).save(file)
        if given != true:
            planted.append(f"{file.relative_to(folder)} is digit {true}")
    folder.with_suffix(".txt").write_text("\n".join(planted) + "\n")
    print(f"{folder}: {len(digits.images):,} images, {len(planted)} of them in a wrong class")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
