"""The process that `processes.py` starts: a job comes on standard input, events go to standard output."""

import os
import pickle
import signal
import sys
import threading
from contextlib import suppress

from nlt.sweep.job import Event, run_job


def main() -> None:
    """Run one job."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get among the events
    job, how = pickle.load(sys.stdin.buffer)

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # the launching process is gone: stop after this epoch

    threading.Thread(target=watch, name="nlt parent", daemon=True).start()

    def tell(event: Event) -> None:
        with suppress(BrokenPipeError):  # nobody listens any more
            pickle.dump(event, output)
            output.flush()

    run_job(job, how, tell)


if __name__ == "__main__":
    main()
