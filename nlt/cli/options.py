"""The command `nlt` itself, and what its commands have in common."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from nlt.events import Incomplete, Stopped
from nlt.settings import BadInput

COMPLETION = 'Shell completion: eval "$(_NLT_COMPLETE=bash_source nlt)" (or zsh_source, fish_source).'


EXIT_CODES: dict[type[Exception], int] = {Incomplete: 1, BadInput: 2, Stopped: 130}
"""How a command ends that has not done all it was asked for; click itself ends with 2 for a command it cannot parse."""


def friendly(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command end with a sentence and the exit code of what stopped it, and never with a traceback."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except tuple(EXIT_CODES) as error:
            if sentence := str(error):
                click.echo(f"Error: {sentence}", err=True)
            raise SystemExit(EXIT_CODES[type(error)]) from None
        except KeyboardInterrupt:  # with nothing to tell of: click would end with 1
            click.echo("Error: interrupted", err=True)
            raise SystemExit(EXIT_CODES[Stopped]) from None

    return wrapped


class Number(click.FloatRange):
    """A number in a range; NaN, which is neither below nor above it, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or have click refuse it."""
        number = super().convert(value, param, ctx)
        if number != number:
            self.fail("nan is not a number.", param, ctx)
        return number


class Place(click.Path):
    """A path, ~ expanded. The empty text, as of a variable that is not set, is none; Path("") is the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, or have click refuse it."""
        if value == "":
            self.fail("it is empty: name a file or folder.", param, ctx)
        try:
            os.fspath(value).encode()
        except UnicodeEncodeError:
            self.fail("its name is not in UTF-8: rename it.", param, ctx)
        return super().convert(os.path.expanduser(value), param, ctx)


FILE = Place(path_type=Path)
specs_argument = click.argument("specs", nargs=-1, required=True, type=click.Path(), metavar="SPEC...")
set_option = click.option(
    "overrides", "--set", metavar="KEY=VALUE[,VALUE...]", multiple=True,
    help="Change a key, e.g. --set method.training.epochs=10; several values make several experiments.",
)  # fmt: skip
jobs_option = click.option(
    "--jobs", type=click.IntRange(1, 256), default=None,
    help="Runs at a time, each in a process of its own; by default one after the other in this one.",
)  # fmt: skip
data_root_option = click.option(
    "--data-root", envvar="NLT_DATA_ROOT", default="data", show_default=True, type=FILE,
    help="Folder of data sets and caches (NLT_DATA_ROOT).",
)  # fmt: skip
tracking_option = click.option(
    "--tracking-uri", metavar="URI", default=None, help="MLflow store; default MLFLOW_TRACKING_URI, else mlruns/ here."
)
ray_option = click.option(
    "--ray", "address", metavar="ADDRESS", default=None,
    help="Run on a Ray cluster: local, auto or ray://HOST:PORT (pip install 'nlt[ray]').",
)  # fmt: skip
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:0, ...")


@contextmanager
def needs_ray() -> Iterator[None]:
    """Say in a sentence that Ray is not installed, where what is imported inside needs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise BadInput("--ray: Ray is not installed: pip install 'nlt[ray]'.") from None


@click.group(epilog=COMPLETION, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nlt")
def main() -> None:
    """Train image classifiers on noisy labels, find the wrong ones, and compare methods in MLflow.

    \b
    nlt launch experiments/quickstart/*.json    four methods on digits, a minute or two
    nlt compare                                 the table of what was run
    nlt ui                                      the MLflow UI, opened on the comparison
    """
    os.umask(os.umask(0) | 0o022)  # what runs leave is nobody else's to change
