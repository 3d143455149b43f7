"""What the commands print: epochs, many runs at once, a table of runs, notes, errors."""

import io
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import click

from nlt.events import Emit, Event, Failed, Finished, Incomplete, Noted, Progressed, Started, Stopped
from nlt.settings import BadInput, one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import TaskID
    from rich.table import Table

    from nlt.sweep import Job

STATUS_EVERY_S = 10.0  # off a terminal

WIDTH = 160  # columns, off a terminal: rich would wrap at 80, in the middle of run ids


def warn(sentence: str) -> None:
    """Print a note on stderr; names in it may hold what steers a terminal."""
    click.echo(f"note: {one_line(sentence)}", err=True)


def say(line: str) -> None:
    """Print a line; where nobody listens any more, as after `nlt launch ... | head`, the work goes on."""
    try:
        click.echo(line)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class Ledger:
    """What became of each job of a launch."""

    def __init__(self, jobs: "list[Job]", finished: "list[Finished]"):
        self.jobs, self.finished = jobs, list(finished)
        self.failed: dict[int, Failed] = {}
        self._earlier, self._stop_asked = len(finished), False

    def take(self, index: int, event: Event) -> None:
        """Note a job's last event, and print what is wrong with it at once."""
        if isinstance(event, Noted):
            warn(event.sentence)
        elif isinstance(event, Finished):
            self.finished.append(event)
            self._stop_asked |= event.stop_asked
            if event.undelivered:
                warn(event.undelivered)
        elif isinstance(event, Failed):
            known = {failed.sentence for failed in self.failed.values()}
            self.failed[index] = event
            if event.kind != "interrupted" and event.sentence not in known:  # what is wrong with the data is so for all
                who = f"{self._who(index)}: " if event.kind == "died" else ""
                click.echo(f"Error: {who}{event.sentence}", err=True)
            if event.undelivered:
                warn(event.undelivered)

    @property
    def over(self) -> int:
        """How many jobs are over."""
        return len(self.finished) - self._earlier + len(self.failed)

    @property
    def interrupted(self) -> bool:
        """Whether the user has stopped the launch before all jobs were over."""
        return self.over < len(self.jobs) or any(failed.kind == "interrupted" for failed in self.failed.values())

    def conclude(self) -> None:
        """Print the table of finished runs and what is missing in it.

        Raises:
            Stopped: by the user, before all jobs were over.
            Incomplete: some runs failed.
            BadInput: none failed otherwise, and some could not begin.
        """
        if self.finished:
            print_results(self.finished)
        wrong = {index: failed for index, failed in sorted(self.failed.items()) if failed.kind != "interrupted"}
        if wrong and len(self.jobs) > 1:
            names = "; ".join(self._who(index) for index in wrong)
            click.echo(f"{len(wrong)} of {len(self.jobs)} runs failed: {names}", err=True)
        stopped = [failed for failed in self.failed.values() if failed.kind == "interrupted"]
        begun = [failed for failed in stopped if failed.run_id]
        left = len(self.jobs) - self.over + len(stopped) - len(begun)  # what was not begun
        if len(begun) == 1:
            more = f" {left} runs were not begun." if left else ""
            raise Stopped(f"{begun[0].sentence}; nlt resume {begun[0].run_id} goes on with it.{more}")
        if begun:
            raise Stopped(f"interrupted; {len(begun)} runs were stopped, {left} not begun: the same command goes on.")
        if left and self._stop_asked:
            raise Stopped(f"interrupted; the run in progress was finished, {left} were not begun.")
        if left:
            raise Stopped("interrupted before the run began.")
        if self.failed:
            raise Incomplete if any(failed.kind != "bad input" for failed in self.failed.values()) else BadInput

    def _who(self, index: int) -> str:
        return f"{self.jobs[index].spec.name}, seed {self.jobs[index].seed}"


class Display(Protocol):
    """Shows what happens while runs are in progress."""

    def __enter__(self) -> Emit: ...

    def __exit__(self, *exc: object) -> None: ...


def run_all(ledger: Ledger, run: "Callable[[Emit], None]", display: Display) -> None:
    """Run what `run` runs, shown on `display`."""
    with display as show:

        def emit(index: int, event: Event) -> None:
            ledger.take(index, event)
            show(index, event)

        run(emit)


class Lines:
    """One line per epoch on stdout, for one run after another."""

    def __init__(self, jobs: "list[Job]"):
        self._jobs = jobs

    def __enter__(self) -> Emit:
        return self._show

    def __exit__(self, *exc: object) -> None:
        pass

    def _show(self, index: int, event: Event) -> None:
        if isinstance(event, Started):
            job = self._jobs[index]
            say(f"{job.spec.name} · seed {job.seed} · run {event.run_id}")
            say(f"  {event.about}")
            if event.after:
                say(f"  {event.after}")
            self._began, self._done = time.perf_counter(), event.done
        elif isinstance(event, Progressed):
            self._epoch(event)

    def _epoch(self, epoch: Progressed) -> None:
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
        say("  ".join(parts))


class Board:
    """Many runs at once: on a terminal a table that is redrawn, elsewhere a line per run and one now and then."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._running: dict[int, tuple[Started, Progressed | None]] = {}
        self._steps = sum(job.spec.steps() - (job.unfinished.epochs if job.unfinished else 0) for job in ledger.jobs)
        self._done, self._began, self._said = 0, time.perf_counter(), time.perf_counter()

    def __enter__(self) -> Emit:
        self._live = None
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(get_renderable=self._table, refresh_per_second=4)
            self._live.start()
        return self._show

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._live.stop()

    def _show(self, index: int, event: Event) -> None:
        job = self._ledger.jobs[index]
        if isinstance(event, Started):
            self._running[index] = event, None
            if event.shared:
                self._steps -= event.done
            if event.after and not self._live:
                say(f"{job.spec.name} · seed {job.seed} {event.after}")
        elif isinstance(event, Progressed) and index in self._running:
            self._running[index] = self._running[index][0], event
            self._done += 1
            if not self._live and time.perf_counter() - self._said > STATUS_EVERY_S:
                self._said = time.perf_counter()
                say(self._status())
        elif isinstance(event, Finished | Failed):
            started, last = self._running.pop(index, (None, None))
            if started:  # what it will not train any more, failed or stopped early, is not left to do
                self._steps -= job.spec.steps() - (last.step if last else started.done)
            if self._live:
                return
            if isinstance(event, Finished):
                accuracy = event.metrics.get("final/test_accuracy_last", float("nan"))
                say(f"finished {job.spec.name} · seed {job.seed} · run {event.run_id} · test {accuracy:.1%}")
            say(self._status())

    def _status(self) -> str:
        ledger = self._ledger
        parts = [
            f"  {ledger.over}/{len(ledger.jobs)} runs over",
            *([f"{n} failed"] if (n := len(ledger.failed)) else []),
        ]
        for index, (_, epoch) in self._running.items():
            job = ledger.jobs[index]
            if epoch:
                parts.append(
                    f"{job.spec.name} seed {job.seed} {epoch.step}/{epoch.steps} {epoch.metrics['test/accuracy']:.1%}"
                )
        return " · ".join([*parts, f"{self._left()} left"])

    def _left(self) -> str:
        spent = time.perf_counter() - self._began
        return _duration(spent / self._done * max(0, self._steps - self._done)) if self._done else "?"

    def _table(self) -> "RenderableType":
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table(box=None, pad_edge=False, caption=self._caption(), caption_justify="left")
        for heading in ("run", "seed", "", "epoch", "stage", "test accuracy", "images/s"):
            table.add_column(heading)
        for index, (started, epoch) in sorted(self._running.items()):
            job = self._ledger.jobs[index]
            step = epoch.step if epoch else started.done
            m = epoch.metrics if epoch else {}
            accuracy = f"{m['test/accuracy']:.1%}" if m else ""
            rate = f"{m['time/images_per_second']:,.0f}" if m else ""
            steps = epoch.steps if epoch else started.steps
            bar = ProgressBar(total=steps, completed=step, width=24)
            table.add_row(
                job.spec.name,
                str(job.seed),
                bar,
                f"{step}/{steps}",
                epoch.stage if epoch else "",
                accuracy,
                rate,
            )
        return table

    def _caption(self) -> str:
        ledger = self._ledger
        failed = f", {len(ledger.failed)} failed" if ledger.failed else ""
        spent = _duration(time.perf_counter() - self._began)
        return f"{ledger.over}/{len(ledger.jobs)} runs over{failed} · {spent} spent, {self._left()} left"


class Bars:
    """A progress bar for each thing that takes long; on a terminal only, on stderr."""

    def __enter__(self) -> "Callable[[str, int, int], None]":
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        shown = sys.stderr.isatty()
        self._bars = Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown)
        self._tasks: dict[str, TaskID] = {}
        self._bars.start()
        return self._show

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def _show(self, what: str, done: int, of: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=of)
        self._bars.update(self._tasks[what], completed=done, total=of)


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


def print_results(finished: "list[Finished]") -> None:
    """Print the table of finished runs."""
    from rich.table import Table

    table = Table(title="runs", title_justify="left")
    for heading in ("run", "seed", "run id"):
        table.add_column(heading, overflow="fold")
    for heading in ("test accuracy, last epoch", "mean of last 10", "noise precision"):
        table.add_column(heading, justify="right")
    for run in finished:
        last, mean10, precision = (
            f"{run.metrics[key]:.1%}" if key in run.metrics else ""
            for key in ("final/test_accuracy_last", "final/test_accuracy_mean10", "final/noise_precision")
        )
        table.add_row(run.name, str(run.seed), run.run_id, last, mean10, precision)
    out = console()
    out.print(table)
    out.print("nlt compare prints the method x noise table, nlt ui opens the charts.", highlight=False)
