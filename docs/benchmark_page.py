from pathlib import Path
from typing import Any


def write_page(page: Path, lines: list[dict[str, Any]]) -> None:
    """x"""
