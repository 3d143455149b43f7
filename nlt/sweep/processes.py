"""Runs side by side on this machine, each in a process of its own."""

import multiprocessing
import os
import pickle
import queue
import signal
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from nlt.events import Emit, Event, Failed, Finished, Noted, Started
from nlt.launcher import Options
from nlt.stopping import stop_signals
from nlt.sweep.job import Job, interrupted, run_job

LONGEST_STOP_S = 60.0  # after a second Ctrl-C; then processes are killed
TAIL = 4000  # characters of a dead process's last words
# Processes are forked from one that has done the imports, which take seconds, and nothing else: neither threads nor a
# GPU in use would survive a fork.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["nlt.sweep.processes"])


def side_by_side(jobs: list[Job], options: Options, emit: Emit, at_once: int) -> None:
    """Run each job in a process of its own, `at_once` at a time, whatever happens to one of them.

    The processor's cores are shared out among them. With several GPUs the runs take turns on them. The first Ctrl-C or
    SIGTERM lets each end its epoch, the second stops them at once.
    """
    waiting = deque(enumerate(jobs))
    running: dict[int, _Worker] = {}
    events: queue.SimpleQueue[tuple[int, Event | None]] = queue.SimpleQueue()
    threads = threads_each(min(at_once, len(jobs) or 1), len(os.sched_getaffinity(0)), torch.get_num_threads())
    noted = set[str]()
    told = 0  # how many of the user's requests to stop have been handed on
    deadline = float("inf")
    with stop_signals() as stop:
        while running or (waiting and not stop.asked):
            try:
                while waiting and len(running) < at_once and not stop.asked:
                    index, job = waiting.popleft()
                    slot = min(set(range(at_once)) - {worker.slot for worker in running.values()})
                    on = device_of(options.device, slot, torch.cuda.device_count())
                    running[index] = _Worker(index, slot, job, replace(options, device=on), threads, events)
                if stop.asked and not told:
                    told = 1
                    for worker in running.values():
                        worker.process.terminate()
                with suppress(queue.Empty):
                    index, event = events.get(timeout=0.2)
                    if event is None:
                        if (died := running.pop(index).last_words(stop.asked)) is not None:
                            emit(index, died)
                    else:
                        if isinstance(event, Started):  # its data are loaded
                            for sentence in running[index].notes():
                                if sentence not in noted:
                                    noted.add(sentence)
                                    emit(index, Noted(sentence))
                        emit(index, event)
                if time.monotonic() > deadline:
                    for worker in running.values():
                        worker.process.kill()
            except KeyboardInterrupt:  # the second
                told, deadline = 2, min(deadline, time.monotonic() + LONGEST_STOP_S)
                for worker in running.values():
                    worker.process.terminate()


def threads_each(at_once: int, cores: int, wanted: int) -> int:
    """Return how many threads each run has: its share of the cores, or what the user wants (OMP_NUM_THREADS) if fewer.

    Never more: threads that outnumber cores wait for each other busily, and two runs of two threads on two cores take a
    hundred times as long as two runs of one (docs/log.md, 2026-11-25).
    """
    return max(1, min(cores // at_once, wanted))


def device_of(device: str | None, slot: int, gpus: int) -> str | None:
    """Return where the run in this slot trains: the GPUs in turn, unless one is named or there is only one."""
    return f"cuda:{slot % gpus}" if device in ("auto", "cuda") and gpus > 1 else device


class _Worker:
    """A process that runs one job and tells of it."""

    def __init__(
        self,
        index: int,
        slot: int,
        job: Job,
        options: Options,
        threads: int,
        events: "queue.SimpleQueue[tuple[int, Event | None]]",
    ):
        self.slot = slot
        self._index, self._events, self._ended, self._run_id = index, events, False, ""
        self._output = tempfile.NamedTemporaryFile()  # noqa: SIM115  # closed in last_words
        self._told, telling = _CONTEXT.Pipe(duplex=False)
        self.process = _CONTEXT.Process(target=_work, args=(job, options, threads, telling, self._output.name))
        self.process.start()
        telling.close()  # so that the pipe ends with the process
        threading.Thread(target=self._listen, name=f"nlt job {index}", daemon=True).start()

    def _listen(self) -> None:
        with suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                event = self._told.recv()
                self._ended = isinstance(event, Finished | Failed)
                if isinstance(event, Started):
                    self._run_id = event.run_id
                self._events.put((self._index, event))
        self.process.join()
        self._events.put((self._index, None))

    def notes(self) -> list[str]:
        """Return the notes that it has printed until now, as on what was taken for what in the data."""
        with open(self._output.name, errors="replace") as output:
            return [line.removeprefix("note: ").rstrip() for line in output if line.startswith("note: ")]

    def last_words(self, stopping: bool) -> Failed | None:
        """Return what became of a job whose process is gone without a last event; None if there was one."""
        self._told.close()
        text = self._output.read().decode(errors="replace").strip()
        self._output.close()
        code = self.process.exitcode or 0
        if self._ended:
            return None
        if stopping and code < 0:
            return interrupted(self._run_id)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = ": out of memory, perhaps (lower --jobs)" if code == -signal.SIGKILL else ""
        return Failed("died", f"its process {how}{hint}." + (f"\n{text[-TAIL:]}" if text and code > 0 else ""))


def _work(job: Job, options: Options, threads: int, telling: Connection, output: str) -> None:
    """Be such a process."""
    os.setsid()  # a terminal's Ctrl-C reaches the launching process, which hands it on
    for stream in (1, 2):  # what libraries print would tear the display
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), stream)
    torch.set_num_threads(threads)
    options = replace(options, threads=threads)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        assert parent is not None
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # it is gone: stop after this epoch

    threading.Thread(target=watch, name="nlt parent", daemon=True).start()

    def emit(event: Event) -> None:
        with suppress(OSError):  # nobody listens any more
            telling.send(event)

    run_job(job, options, emit)
