"""kill -9 at any moment, resume, and compare with a run that was never interrupted: no difference."""

import random
import shutil
from collections import Counter
from typing import Any

import pytest
from crashing import METHODS, spec_file, survive
from recorded import differences
from reliability import tell

QUICK = [
    {"at": "mid-epoch", "n": 20},
    {"at": "mid-journal-line", "n": 6},
    {"at": "before-end", "n": 1},
]
SLOW = [
    {"at": "torn-checkpoint", "n": 9},
    {"at": "mid-checkpoint", "n": 12},
    {"at": "after-metrics", "n": 4},
    {"at": "after-artifacts", "n": 5},
    {"at": "after-creation", "n": 1},
]


@pytest.mark.parametrize(
    "death", [*QUICK, *(pytest.param(d, marks=pytest.mark.slow) for d in SLOW)], ids=lambda d: d["at"]
)
def test_a_killed_o2u_run_ends_as_if_nothing_had_happened(killer, peaceful, place, death):
    after, met = survive(killer, place, spec_file(place, "o2u"), [death])
    assert met == 1
    assert differences(peaceful("o2u"), after) == []
    assert list((place / "mlruns" / "runs").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_at_every_epoch(killer, peaceful, place, method, template_store):
    """Killed after each checkpoint in turn, all in one run: what a method forgot to register shows here."""
    epochs = 10 if "o2u" in method else 8
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


@pytest.mark.slow
def test_checkpoint_every_n_epochs_resumes_too(killer, peaceful, place):
    """Epochs after the last checkpoint run again, and are not logged again."""
    after, met = survive(
        killer, place, spec_file(place, "o2u", checkpoint_every=3), [{"at": "mid-journal-line", "n": 6}]
    )
    assert met == 1
    expected = peaceful("o2u", checkpoint_every=3)
    assert differences(expected, after) == []
