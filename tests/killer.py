"""Runs `nlt` commands that die at a chosen moment, each in a fork of one process that has everything imported.

    python killer.py < requests        one JSON object a line, answered by one line with the exit code

A request: {"args": [...], "cwd": DIR, "out": FILE, "env": {...}, "die": DEATH | null}, and
DEATH: {"at": MOMENT, "n": N} | {"after": SECONDS} | {"interrupted_in_step": N, "times": 1 | 2} | {"file_size": BYTES}.
MOMENT names a function below; the process kills itself with SIGKILL in the middle of the N-th call of it. That meets
moments that a clock would hit once in a thousand tries. -9 is the answer where it came to that.
"interrupted_in_step" is Ctrl-C within the N-th optimizer step, which nlt outlives, and a second one while the journal
is told of the first. With "file_size" nothing dies, but no file may grow beyond that.
"""

import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from mlflow import MlflowClient
from sklearn.datasets import load_digits

import nlt.checkpoint
import nlt.launcher
import nlt.report
import nlt.tracking.journal
from nlt.cli import main
from nlt.models import CNN9

torch.set_num_threads(1)


def die(by: signal.Signals = signal.SIGKILL) -> None:
    os.kill(os.getpid(), by)


def cut(owner: Any, name: str, n: int, half: Any, of: str = "", by: signal.Signals = signal.SIGKILL) -> None:
    """Let the n-th call of owner.name that concerns `of` do `half` of its work, then die, or go on if `by` allows."""
    real, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += of in str(args)
        if of in str(args) and calls == n:
            half(real, *args, **kwargs)
            die(by)
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def nothing(real: Any, *args: Any, **kwargs: Any) -> None:
    pass


def whole(real: Any, *args: Any, **kwargs: Any) -> None:
    real(*args, **kwargs)


def half_line(real: Any, descriptor: int, line: bytes) -> None:
    real(descriptor, line[: len(line) // 2])


def torn_checkpoint(real: Any, part: Any, path: Any) -> None:
    """The new name is there, the content is not: what a power cut leaves where fsync was forgotten or lied."""
    os.truncate(part, Path(part).stat().st_size // 2)
    real(part, path)


MOMENTS: dict[str, tuple[Any, ...]] = {
    "mid-epoch": (torch.optim.SGD, "step", whole),
    "mid-journal-line": (nlt.tracking.journal.os, "write", half_line),
    "before-checkpoint": (nlt.checkpoint, "save", nothing),
    "after-checkpoint": (nlt.checkpoint, "save", whole),
    "mid-checkpoint": (nlt.checkpoint.os, "replace", nothing),
    "torn-checkpoint": (nlt.checkpoint.os, "replace", torn_checkpoint, "/checkpoint-"),
    "before-metrics": (MlflowClient, "log_batch", nothing),
    "after-metrics": (MlflowClient, "log_batch", whole),
    "before-artifacts": (MlflowClient, "log_artifacts", nothing),
    "after-artifacts": (MlflowClient, "log_artifacts", whole),
    "before-end": (MlflowClient, "set_terminated", nothing),
    "after-end": (MlflowClient, "set_terminated", whole),
    "after-creation": (MlflowClient, "create_run", whole),
}


def child(request: dict[str, Any]) -> None:
    out = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(request["cwd"])
    os.environ.update(request.get("env", {}))
    match request.get("die"):
        case {"at": moment, "n": n}:
            owner, name, half, *of = MOMENTS[moment]
            cut(owner, name, n, half, *of)
        case {"interrupted_in_step": n, "times": times}:
            cut(torch.optim.SGD, "step", n, nothing, by=signal.SIGINT)
            if times == 2:
                cut(nlt.tracking.journal.os, "write", 1, nothing, of='"status":"KILLED"', by=signal.SIGINT)
        case {"file_size": limit}:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        case {"after": seconds}:

            def later() -> None:
                time.sleep(seconds)
                die()

            threading.Thread(target=later, daemon=True).start()
    try:
        main(request["args"], prog_name="nlt")
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(70)
    os._exit(0)


def import_the_rest() -> None:
    """Import what a launch imports on its way, half of its seconds: each fork would do it anew.

    Shapes are tried on torch's meta device, for which batch norm imports torch._dynamo; digits come with scikit-learn.
    """
    load_digits()
    with torch.device("meta"):
        CNN9(width=0.03).build(1, 8, 8, 10)(torch.empty(2, 1, 8, 8))


if __name__ == "__main__":
    import_the_rest()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
