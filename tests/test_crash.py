"""kill -9 at any moment, resume, and compare with a run that was never interrupted: no difference."""

import random
import shutil
from collections import Counter
from typing import Any

import pytest
from crashing import spec_file, survive
from recorded import differences
from reliability import tell

QUICK = [
    {"at": "mid-epoch", "n": 20},
    {"at": "mid-journal-line", "n": 6},
    {"at": "before-end", "n": 1},
]
SLOW = [
    {"at": "torn-checkpoint", "n": 9},
    {"at": "after-creation", "n": 1},
]
OF_THE_TWENTY = {"mid-checkpoint", "after-metrics", "after-artifacts"}  # of o2u below, and in no test of their own


@pytest.mark.parametrize(
    "death", [*QUICK, *(pytest.param(d, marks=pytest.mark.slow) for d in SLOW)], ids=lambda d: d["at"]
)
def test_a_killed_o2u_run_ends_as_if_nothing_had_happened(killer, peaceful, place, death):
    after, met = survive(killer, place, spec_file(place, "o2u"), [death])
    assert met == 1
    assert differences(peaceful("o2u"), after) == []
    assert list((place / "mlruns" / "runs").iterdir()) == []


@pytest.mark.slow
def test_an_o2u_run_killed_after_each_of_its_checkpoints_ends_as_if_nothing_had_happened(killer, peaceful, place):
    """Ten processes in turn train one epoch each; test_every_method.py resumes every method, in memory."""
    after, met = survive(killer, place, spec_file(place, "o2u"), [{"at": "after-checkpoint", "n": 1}] * 10)
    assert met == 10
    assert differences(peaceful("o2u"), after) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["standard", "o2u"])
def test_twenty_kills_at_random_moments(killer, peaceful, tmp_path, template_store, method):
    """Ten at random moments by name, ten by the clock; each run is killed once or twice.

    One stage and three; that a method has registered all that it needs is tested in test_every_method.py.
    """
    import killer as moments

    draw = random.Random(method)
    deaths: list[dict[str, Any]] = []
    for _ in range(10):
        at = draw.choice(sorted(set(moments.MOMENTS) - {"after-creation"}))
        n = draw.randint(1, 30 if at == "mid-epoch" else 8 if "end" not in at else 1)
        deaths.append({"at": at, "n": n})
    assert method != "o2u" or {death["at"] for death in deaths} >= OF_THE_TWENTY
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
