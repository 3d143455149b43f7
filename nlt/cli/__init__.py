"""The command line: parse, call, print. torch and mlflow are imported inside the commands, so `nlt --help` is quick."""

from nlt.cli import checks, detect, results, runs  # each adds its commands to `main`
from nlt.cli.options import main

__all__ = ["checks", "detect", "main", "results", "runs"]
