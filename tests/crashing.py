"""What the tests share that interrupt runs: the experiments, the process that kills, and what is compared afterwards."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import REPO, tiny
from recorded import recorded

from nlt.tracking import open_store

STAGE = {"batch_size": 32, "schedule": {"name": "constant", "lr": 0.01}}
CYCLICAL = {"epochs": 4, "batch_size": 16, "schedule": {"name": "cyclical", "period": 2}}
APL = {"name": "apl", "active": {"name": "nce"}, "passive": {"name": "rce"}}
O2U = {
    "name": "o2u",
    "forget_rate": 0.4,
    "pretraining": {"epochs": 3, **STAGE},
    "cyclical": CYCLICAL,
    "training": {"epochs": 3, **STAGE},
}
METHODS = {
    "standard": {"name": "standard", "training": {"epochs": 8, **STAGE}},
    "o2u": O2U,
}
DATA = {"name": "digits", "limit": 100, "val_fraction": 0.2}


class Killer:
    """A process that runs commands and lets them die; see killer.py."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        command = [sys.executable, str(Path(__file__).with_name("killer.py"))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, *args: str, cwd: Path, die: dict[str, Any] | None = None, **env: str) -> tuple[int, str]:
        """Run `nlt ARGS`; return (exit code, what it printed)."""
        out = cwd / "out.txt"
        out.unlink(missing_ok=True)
        request = {"args": args, "cwd": str(cwd), "out": str(out), "die": die, "env": env}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "the killer died"
        return int(answer), out.read_text()


def spec_file(place: Path, method: str, **changes: Any) -> str:
    path = place / "spec.json"
    path.write_text(json.dumps(tiny(method=METHODS[method], data=DATA, **changes)))
    return str(path)


def the_run(place: Path) -> str:
    """The id of the one run that is not of an aborted launch."""
    store = open_store(f"sqlite:///{place / 'mlruns' / 'mlflow.db'}")
    experiment = store.client.get_experiment_by_name("digits")
    runs = store.client.search_runs([experiment.experiment_id])
    return next(run.info.run_id for run in runs if run.data.params)


def contents(place: Path) -> dict[str, Any]:
    store = open_store(f"sqlite:///{place / 'mlruns' / 'mlflow.db'}")
    return recorded(store, the_run(place), place / "downloaded")


def survive(killer: Killer, place: Path, spec: str, deaths: list[dict[str, Any]]) -> tuple[dict[str, Any], int]:
    """Launch, die as told in launch and resumptions, resume until nothing is left; return (contents, deaths met)."""
    met = 0
    command: tuple[str, ...] = ("launch", spec, "--device", "cpu")
    for die in [*deaths, None, None]:
        code, text = killer(*command, cwd=place, die=die)
        assert code in (0, -9), text
        met += code == -9
        runs = place / "mlruns" / "runs"
        begun = runs.is_dir() and any((folder / "run.json").is_file() for folder in runs.iterdir())
        if code == 0 and not begun:
            break
        command = ("resume",) if begun else ("launch", spec, "--device", "cpu")
    else:
        raise AssertionError(f"not over after {len(deaths)} deaths and two peaceful tries: {text}")
    return contents(place), met
