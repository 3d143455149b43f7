"""The tables of docs/cleaning.md, by hand."""

from pathlib import Path

import pytest
from conftest import REPO


def test_differences_are_paired_over_seeds_and_the_text_around_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(REPO / "docs"))
    import cleaning_page

    accuracies = {"given": (0.70, 0.60, 0.65), "remove_at_random": (0.68, 0.58), "remove": (0.74, 0.60)}
    lines = [
        {"data": "CIFAR-4", "noise": "symmetric 20 %", "classifier": "cnn9", "act": act, "seed": seed, "images": 4000,
         "test_accuracy": accuracy, "wrong": 0.2, "date": "2026-11-26", "commit": "0123456789"}
        for act, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]  # fmt: skip
    page = tmp_path / "page.md"
    page.write_text(f"before\n{cleaning_page.BEGIN}\nold\n{cleaning_page.END}\nafter\n")
    for _ in range(2):
        cleaning_page.write_page(page, lines)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    accuracy, difference, left = (line for line in text.splitlines() if line.startswith("| CIFAR-4, symmetric 20 %"))
    assert accuracy == ("| CIFAR-4, symmetric 20 % | 65.0 ± 5.0 (3) | 63.0 ± 7.1 (2) | 67.0 ± 9.9 (2) | - | - |")
    # .74 - .70 and .60 - .60; .74 - .68 and .60 - .58: the third seed has no partner.
    assert difference == "| CIFAR-4, symmetric 20 % | +2.0 ± 2.8 (2) | - | - | +4.0 ± 2.8 (2) | - | - |"
    assert left == "| CIFAR-4, symmetric 20 % | 4,000, 20.0 % | 4,000, 20.0 % | 4,000, 20.0 % | - | - |"
