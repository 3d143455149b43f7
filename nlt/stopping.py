"""Ctrl-C and SIGTERM: the first lets a run end its epoch, the second stops it at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether Ctrl-C or SIGTERM has come."""

    asked = False
    ending = False
    """Whether a second one changes nothing, as the run is being stopped."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Write down how the run ended, whatever comes meanwhile: without its end it would count as running."""
        self.ending = True
        try:
            yield
        finally:
            self.ending = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Let the first Ctrl-C or SIGTERM (schedulers, `docker stop`) stop a run after its epoch, the second at once."""
    stop = Stop()

    def ask(signum: int, frame: FrameType | None) -> None:
        if stop.asked:
            if stop.ending:
                return
            raise KeyboardInterrupt
        stop.asked = True
        os.write(2, b"\nstopping after this epoch; Ctrl-C again stops at once\n")  # print may be under way

    if threading.current_thread() is not threading.main_thread():  # signals can be set there only
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
