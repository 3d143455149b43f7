"""What the commands print: a line per epoch, a table of runs, notes, errors; and how one run follows another."""

import io
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from nlt.settings import BadInput

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nlt.launcher import Prepared, Result
    from nlt.run import Epoch

WIDTH = 160  # columns, off a terminal: rich would wrap at 80, in the middle of run ids


def failure(message: str, exit_code: int) -> click.ClickException:
    """Return what click prints as one sentence on stderr before it exits with that code: never a traceback."""
    error = click.ClickException(message)
    error.exit_code = exit_code  # type: ignore[misc]  # declared on the class, read from the instance
    return error


def warn(sentence: str) -> None:
    """Print a note on stderr."""
    click.echo(f"note: {sentence}", err=True)


def run_all(starts: "list[Callable[[], Result]]") -> None:
    """Run one after the other, whatever happens to one of them, and print the table of those that finished."""
    from nlt.launcher import Interrupted, RunFailed

    results: list[Result] = []
    errors: list[RunFailed | BadInput] = []
    try:
        for left, start in reversed(list(enumerate(reversed(starts)))):
            try:
                results.append(start())
            except (RunFailed, BadInput) as error:
                if str(error) not in map(str, errors):  # what is wrong with the data is wrong for every seed
                    click.echo(f"Error: {error}", err=True)
                errors.append(error)
                continue
            if results[-1].undelivered:
                warn(results[-1].undelivered)
            if results[-1].stop_asked and left:
                raise failure(f"interrupted; the run in progress was finished, {left} were not begun.", 130)
    except Interrupted as error:
        if error.undelivered:
            warn(error.undelivered)
        raise failure(f"{error}; nlt resume {error.run_id} goes on with it.", 130) from None
    except KeyboardInterrupt:
        raise failure("interrupted before the run began.", 130) from None
    finally:
        if results:
            print_results(results)
    if errors:
        raise SystemExit(1 if any(isinstance(error, RunFailed) for error in errors) else 2)


def _say(line: str) -> None:
    try:
        click.echo(line)
    except BrokenPipeError:  # nobody listens any more, as after `nlt launch ... | head`: the run goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class Progress:
    """One line per epoch on stdout."""

    def __init__(self, name: str):
        self._name = name

    def start(self, run_id: str, prepared: "Prepared", done: int) -> None:
        """Say what the run is about to train on, `done` epochs being behind it."""
        facts, self._done = prepared.facts, done
        wrong = ""
        if (wrong_N := facts.train.wrong_N) is not None:
            wrong = f", {float(wrong_N.double().mean()):.1%} wrong labels"
        sizes = f"{len(facts.train):,} training images{wrong}, {len(facts.dataset.test):,} test images"
        _say(f"{self._name} · seed {facts.seed} · run {run_id}")
        _say(f"  {facts.dataset.name}: {sizes} · {facts.device} {facts.precision}")
        if done:
            _say(f"  goes on after {done} of {prepared.steps} epochs")
        self._began = time.perf_counter()

    def epoch(self, epoch: "Epoch") -> None:
        """Print the line of an epoch."""
        m = epoch.metrics
        # Stages differ in cost per epoch, so what is left is only about right until the last one is under way.
        spent = time.perf_counter() - self._began
        left = spent / (epoch.step - self._done) * (epoch.steps - epoch.step)
        parts = [
            f"  {epoch.step:>{len(str(epoch.steps))}}/{epoch.steps} {epoch.stage:<11} {epoch.t:>3}",
            f"loss {m['train/loss']:.4f}",
            f"train {m['train/accuracy']:6.1%}",
            *([f"val {m['val/accuracy']:6.1%}"] if "val/accuracy" in m else []),
            f"test {m['test/accuracy']:6.1%}",
            *([f"noise precision {m['noise/precision']:6.1%}"] if "noise/precision" in m else []),
            f"{m['time/images_per_second']:,.0f} img/s",
            f"{_duration(left)} left",
        ]
        _say("  ".join(parts))


def console() -> "Console":
    """Return the console for tables."""
    from rich.console import Console

    # A [name] is not markup.
    return Console(width=None if sys.stdout.isatty() else WIDTH, markup=False)


def as_text(tables: "list[Table]") -> str:
    """Return tables as they would be printed, for a file."""
    from rich.console import Console

    out = Console(file=io.StringIO(), width=WIDTH, markup=False)
    out.print(*tables, sep="\n")
    text: str = out.file.getvalue()  # type: ignore[attr-defined]
    return text


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def print_results(results: "list[Result]") -> None:
    """Print the table of finished runs."""
    from rich.table import Table

    table = Table(title="runs", title_justify="left")
    for heading in ("run", "seed", "run id"):
        table.add_column(heading, overflow="fold")
    for heading in ("test accuracy, last epoch", "mean of last 10", "noise precision"):
        table.add_column(heading, justify="right")
    for r in results:
        last, mean10, precision = (
            f"{r.metrics[key]:.1%}" if key in r.metrics else ""
            for key in ("final/test_accuracy_last", "final/test_accuracy_mean10", "final/noise_precision")
        )
        table.add_row(r.name, str(r.seed), r.run_id, last, mean10, precision)
    out = console()
    out.print(table)
    out.print("nlt compare prints the method x noise table, nlt ui opens the charts.", highlight=False)
