"""Which code made a number."""

import os
import subprocess
from functools import cache
from pathlib import Path


@cache  # of the code as it was imported
def git_commit() -> str:
    """Return the commit of the checkout that nlt runs from, with `-dirty` if it is changed, or "unknown".

    The container image has neither a checkout nor git; its build leaves the commit in NLT_GIT_COMMIT.
    """
    if commit := os.environ.get("NLT_GIT_COMMIT"):
        return commit
    source = Path(__file__).parent
    if "site-packages" in source.parts:  # git would tell of whatever repository the environment lies in
        return "unknown"
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
