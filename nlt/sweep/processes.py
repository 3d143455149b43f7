"""Runs side by side on this machine, each in a process of its own."""

import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace

import torch

from nlt.launcher import stop_signals
from nlt.sweep.job import Event, Failed, Finished, How, Job, Tell

LONGEST_STOP_S = 60.0  # after a second Ctrl-C; then processes are killed
TAIL = 4000  # characters of a dead process's last words


def side_by_side(jobs: list[Job], how: How, tell: Tell, at_once: int) -> None:
    """Run each job in a process of its own, `at_once` at a time, whatever happens to one of them.

    The processor's cores are shared out among them: threads that outnumber cores stand in each other's way. With
    several GPUs the runs take turns on them. The first Ctrl-C or SIGTERM lets each end its epoch, the second stops
    them at once.
    """
    waiting = deque(enumerate(jobs))
    running: dict[int, _Worker] = {}
    events: queue.SimpleQueue[tuple[int, Event | None]] = queue.SimpleQueue()
    threads = max(1, len(os.sched_getaffinity(0)) // min(at_once, max(1, len(jobs))))
    told = 0  # how many of the user's requests to stop have been handed on
    deadline = float("inf")
    with stop_signals() as stop:
        while running or (waiting and not stop.asked):
            try:
                while waiting and len(running) < at_once and not stop.asked:
                    index, job = waiting.popleft()
                    slot = min(set(range(at_once)) - {worker.slot for worker in running.values()})
                    on = device_of(how.device, slot, torch.cuda.device_count())
                    running[index] = _Worker(index, slot, job, how, on, threads, events)
                if stop.asked and not told:
                    told = 1
                    for worker in running.values():
                        worker.ask_to_stop()
                with suppress(queue.Empty):
                    index, event = events.get(timeout=0.2)
                    if event is None:
                        if (died := running.pop(index).last_words(stop.asked)) is not None:
                            tell(index, died)
                    else:
                        tell(index, event)
                if time.monotonic() > deadline:
                    for worker in running.values():
                        worker.process.kill()
            except KeyboardInterrupt:  # the second
                told, deadline = 2, min(deadline, time.monotonic() + LONGEST_STOP_S)
                for worker in running.values():
                    worker.ask_to_stop()


def device_of(device: str | None, slot: int, gpus: int) -> str | None:
    """Return where the run in this slot trains: the GPUs in turn, unless one is named or there is only one."""
    return f"cuda:{slot % gpus}" if device in ("auto", "cuda") and gpus > 1 else device


class _Worker:
    """A process that runs one job and tells of it on its standard output."""

    def __init__(
        self,
        index: int,
        slot: int,
        job: Job,
        how: How,
        device: str | None,
        threads: int,
        events: "queue.SimpleQueue[tuple[int, Event | None]]",
    ):
        self.slot = slot
        self._index, self._events, self._ended = index, events, False
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed in last_words
        environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
        # A session of its own: a terminal's Ctrl-C reaches this process, which hands it on.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nlt.sweep.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            pickle.dump((job, replace(how, device=device)), self.process.stdin)
            self.process.stdin.flush()  # and left open: its end tells the process that this one is gone
        threading.Thread(target=self._listen, name=f"nlt job {index}", daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with suppress(EOFError, pickle.UnpicklingError):
            while True:
                event = pickle.load(self.process.stdout)
                self._ended = isinstance(event, Finished | Failed)
                self._events.put((self._index, event))
        self.process.wait()
        self._events.put((self._index, None))

    def ask_to_stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def last_words(self, stopping: bool) -> Failed | None:
        """Return what became of a job whose process is gone without a last event; None if there was one."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace").strip()
        self._stderr.close()
        if self._ended:
            return None
        code = self.process.returncode
        if stopping and code < 0:
            return Failed("interrupted", "interrupted before the run began")
        how = (
            f"was killed by signal {-code} ({signal.Signals(-code).name})"
            if code < 0
            else f"ended with exit code {code}"
        )
        hint = ": out of memory, perhaps (lower --jobs)" if code == -signal.SIGKILL else ""
        return Failed("died", f"its process {how}{hint}." + (f"\n{text[-TAIL:]}" if text and code > 0 else ""))
