"""kill -9 at any moment, resume, and compare with a run that was never interrupted: no difference."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, tiny
from recorded import differences, recorded

from nlt.tracking import open_store

STAGE = {"batch_size": 32, "schedule": {"name": "constant", "lr": 0.01}}
CYCLICAL = {"epochs": 4, "batch_size": 16, "schedule": {"name": "cyclical", "period": 2}}
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
    "o2u-fresh": O2U | {"restart": "fresh"},
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


@pytest.fixture(scope="module")
def killer():
    killer = Killer()
    yield killer
    killer.process.stdin.close()
    killer.process.wait(timeout=30)


@pytest.fixture
def place(tmp_path, template_store):
    """A folder with a fresh embedded store."""
    shutil.copytree(template_store, tmp_path / "mlruns")
    return tmp_path


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


def tell(**figures: Any) -> None:
    """Leave figures for docs/reliability.md."""
    if path := os.environ.get("NLT_RELIABILITY"):
        with open(path, "a") as file:
            file.write(json.dumps(figures) + "\n")


@pytest.fixture(scope="module")
def peaceful(killer, tmp_path_factory, template_store):
    """Method -> what an uninterrupted run of it leaves."""
    known: dict[str, dict[str, Any]] = {}

    def of(method: str, **changes: Any) -> dict[str, Any]:
        key = f"{method} {changes}"
        if key not in known:
            place = tmp_path_factory.mktemp("peaceful")
            shutil.copytree(template_store, place / "mlruns")
            code, text = killer("launch", spec_file(place, method, **changes), "--device", "cpu", cwd=place)
            assert code == 0, text
            known[key] = contents(place)
        return known[key]

    return of


QUICK = [
    {"at": "mid-epoch", "n": 20},
    {"at": "mid-journal-line", "n": 6},
    {"at": "mid-checkpoint", "n": 12},
    {"at": "torn-checkpoint", "n": 9},
    {"at": "after-metrics", "n": 4},
    {"at": "after-artifacts", "n": 5},
    {"at": "before-end", "n": 1},
    {"at": "after-creation", "n": 1},
]


@pytest.mark.parametrize("death", QUICK, ids=lambda d: d["at"])
def test_a_killed_o2u_run_ends_as_if_nothing_had_happened(killer, peaceful, place, death):
    after, met = survive(killer, place, spec_file(place, "o2u"), [death])
    assert met == 1
    assert differences(peaceful("o2u"), after) == []
    assert list((place / "mlruns" / "runs").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_at_every_epoch(killer, peaceful, place, method, template_store):
    """Killed after each checkpoint in turn, all in one run: what a method forgot to register shows here."""
    epochs = 8 if method == "standard" else 10
    after, met = survive(killer, place, spec_file(place, method), [{"at": "after-checkpoint", "n": 1}] * epochs)
    assert met == epochs
    assert differences(peaceful(method), after) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_twenty_kills_at_random_moments(killer, peaceful, tmp_path, template_store, method):
    """Ten at random moments by name, ten by the clock; each run is killed once or twice."""
    import killer as moments

    draw = random.Random(method)
    deaths: list[dict[str, Any]] = []
    for _ in range(10):
        at = draw.choice(sorted(set(moments.MOMENTS) - {"after-creation"}))
        n = draw.randint(1, 30 if at == "mid-epoch" else 8 if "end" not in at else 1)
        deaths.append({"at": at, "n": n})
    deaths += [{"after": draw.uniform(0.2, 2.0)} for _ in range(10)]
    kills: Counter[str] = Counter()
    tries, different = 0, 0
    while sum(kills.values()) < 20:
        first = deaths[tries % len(deaths)] if tries < len(deaths) else {"after": draw.uniform(0.2, 1.5)}
        second = {"after": draw.uniform(0.2, 1.5)} if draw.random() < 0.3 else None
        place = tmp_path / str(tries)
        place.mkdir()
        shutil.copytree(template_store, place / "mlruns")
        after, met = survive(killer, place, spec_file(place, method), [d for d in (first, second) if d])
        kills[first.get("at", "by the clock")] += met
        found = differences(peaceful(method), after)
        different += len(found)
        assert found == [], (first, second)
        shutil.rmtree(place)
        tries += 1
        assert tries < 60
    tell(what="kills", method=method, kills=dict(kills), runs=tries, differences=different)


def test_checkpoint_every_n_epochs_resumes_too(killer, peaceful, place):
    """Epochs after the last checkpoint run again, and are not logged again."""
    after, met = survive(
        killer, place, spec_file(place, "o2u", checkpoint_every=3), [{"at": "mid-journal-line", "n": 6}]
    )
    assert met == 1
    expected = peaceful("o2u", checkpoint_every=3)
    assert differences(expected, after) == []
