"""Stages that several runs of a launch have in common: trained once, and every number as if trained alone."""

import json

import pytest
import torch
from conftest import tiny
from recorded import differences, recorded
from test_sweep import nlt, runs, write, write_data

from nlt.data import Npz
from nlt.launcher import Interrupted, Listener, Options, Result, launch, resume, unfinished_runs
from nlt.noise import NoNoise
from nlt.reading import check
from nlt.spec import Experiment
from nlt.sweep import plan, run_job
from nlt.tracking import Store, forget_prefixes

ROBUST = {"name": "apl", "active": {"name": "nce"}, "passive": {"name": "rce"}}


def spec(name: str, **training: object) -> Experiment:
    """O2U, 2 + 3 + 2 epochs; the keys are of its last stage."""
    method = tiny()["method"]
    method["training"] |= training
    return check(tiny(name=name, method=method), "test")


O2U, APL, LONGER = spec("o2u"), spec("o2u_apl", loss=ROBUST), spec("longer", epochs=3)


def hash_of(spec: Experiment, seed: int = 0) -> str:
    prefix = spec.prefix(seed)
    assert prefix is not None
    return prefix[1]


def run(spec: Experiment, store: Store, leave: bool = False, **more: object) -> Result:
    keys = frozenset([hash_of(spec)]) if leave else frozenset()
    return launch(spec, store=store, options=Options(device="cpu", leave=keys), listener=Listener(**more))


def stop(run_id: str, prepared: object, done: int) -> None:
    """What `on_start` may do."""
    raise KeyboardInterrupt


def assert_equal(one: Result, other: Result, store: Store) -> None:
    assert len(one.epochs) == len(other.epochs) > 0
    for a, b in zip(one.epochs, other.epochs, strict=True):
        assert (a.step, a.steps, a.stage, a.t) == (b.step, b.steps, b.stage, b.t)
        assert {k: v for k, v in a.metrics.items() if not k.startswith("time/")} == {
            k: v for k, v in b.metrics.items() if not k.startswith("time/")
        }
        for x, y in ((a.losses_N, b.losses_N), (a.keep_N, b.keep_N), (a.scores_N, b.scores_N)):
            assert (x is None and y is None) or torch.equal(x.nan_to_num(-1), y.nan_to_num(-1))
    ours, theirs = (recorded(store, r.run_id, store.artifacts.parent / "downloaded" / r.run_id) for r in (one, other))
    ours["tags"].pop("nlt.first_stages", None)
    assert differences(ours, theirs) == []  # the weights too


def begun_elsewhere(store: Store, result: Result) -> str | None:
    return store.client.get_run(result.run_id).data.tags.get("nlt.first_stages")


# ---- what makes stages the same ----


def test_a_beginning_is_known_by_all_that_decides_its_numbers_and_nothing_else():
    assert O2U.prefix(0)[0] == 5
    assert O2U.prefix(0) == APL.prefix(0) == LONGER.prefix(0)
    assert hash_of(O2U, 0) != hash_of(O2U, 1)
    assert check(tiny(method={"name": "standard"}), "test").prefix(0) is None


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("about", "another text", True),
        ("checkpoint_every", 3, True),
        ("noise", {"name": "symmetric", "rate": 0.2}, False),
        ("precision", "bf16", False),
        ("compile", "on", False),
        ("augmentation", {"name": "crop_flip_cutout"}, False),
        ("evaluate", "before", False),
    ],
)
def test_a_key_of_the_spec_parts_beginnings_if_it_may_change_numbers(key, value, same):
    other = check(tiny(**{key: value}), "test")
    assert (hash_of(O2U) == hash_of(other)) == same


@pytest.mark.parametrize(("key", "value"), [("cyclical", {"batch_size": 8}), ("restart", "fresh")])
def test_what_an_earlier_stage_reads_parts_beginnings(key, value):
    method = tiny()["method"]
    method[key] = method[key] | value if isinstance(value, dict) else value
    assert hash_of(check(tiny(method=method), "test")) != hash_of(O2U)


def test_a_plan_names_what_several_of_its_runs_have_in_common(store):
    alone = check(tiny(name="alone", noise={"name": "symmetric", "rate": 0.2}), "test")
    todo = plan(store, [O2U, APL, alone], (0, 1), None, False, print)
    common = {hash_of(O2U, 0), hash_of(O2U, 1)}
    assert todo.prefixes == common
    # And each run leaves them.
    for job in todo.jobs:
        run_job(job, Options("cpu", None, store.uri, store.runs, leave=todo.prefixes), lambda event: None, store=store)
    assert {place.name for place in (store.runs / "shared").iterdir()} == common


# ---- training once ----


def test_a_run_that_begins_with_anothers_stages_has_the_numbers_of_one_that_trained_them(store):
    alone = {name: run(spec, store) for name, spec in (("apl", APL), ("longer", LONGER))}
    assert not (store.runs / "shared").exists()
    first = run(O2U, store, leave=True)
    for name, spec in (("apl", APL), ("longer", LONGER)):
        done = []
        told = []
        second = run(spec, store, on_epoch=told.append, on_start=lambda run_id, prepared, n, done=done: done.append(n))
        assert done == [5]
        assert [epoch.step for epoch in told] == list(range(6, spec.steps() + 1))  # the others are not trained again
        assert begun_elsewhere(store, second) == first.run_id
        assert_equal(second, alone[name], store)
        history = store.client.get_metric_history(second.run_id, "train/loss")
        assert [point.step for point in history] == list(range(1, spec.steps() + 1))
        assert second.metrics.keys() == alone[name].metrics.keys()
    assert [begun_elsewhere(store, result) for result in (first, *alone.values())] == [None] * 3


def test_what_other_code_has_left_makes_room(store):
    run(O2U, store, leave=True)
    facts = store.runs / "shared" / hash_of(O2U) / "facts.json"
    facts.write_text(facts.read_text().replace('"git commit": "', '"git commit": "another '))
    second = run(APL, store, leave=True)  # trains all by itself, and leaves it
    assert begun_elsewhere(store, second) is None
    assert begun_elsewhere(store, run(LONGER, store)) == second.run_id


def test_what_is_left_goes_by_its_hash(store):
    run(O2U, store, leave=True)
    forget_prefixes(store.runs, [hash_of(O2U)])
    assert begun_elsewhere(store, run(APL, store)) is None


def test_a_run_that_is_stopped_where_it_began_goes_on_with_equal_numbers(store):
    alone = run(APL, store)
    run(O2U, store, leave=True)

    with pytest.raises(Interrupted):
        run(APL, store, on_start=stop)
    forget_prefixes(store.runs, [hash_of(APL)])
    (unfinished,) = unfinished_runs(store)
    assert unfinished.epochs == 5
    assert_equal(resume(unfinished, store=store), alone, store)


@pytest.mark.parametrize("damage", ["checkpoint-000005.pt", "journal.jsonl", "facts.json"])
def test_what_is_damaged_is_not_used_and_does_not_stay(store, damage):
    alone = run(APL, store)
    run(O2U, store, leave=True)
    place = store.runs / "shared" / hash_of(O2U)
    content = (place / damage).read_bytes()
    (place / damage).write_bytes(content[: len(content) // 2])
    other = run(APL, store)
    assert begun_elsewhere(store, other) is None
    assert_equal(other, alone, store)
    assert not place.exists()


def test_stages_that_were_trained_on_another_machine_or_by_other_code_are_not_used(store):
    run(O2U, store, leave=True)
    for facts in (store.runs / "shared").glob("*/facts.json"):
        known = json.loads(facts.read_text())
        known["trained_on"]["git commit"] = "another"
        facts.write_text(json.dumps(known))
    assert begun_elsewhere(store, run(APL, store)) is None


def test_stages_that_were_trained_on_data_since_changed_are_not_used(store, tmp_path):
    data = write_data(tmp_path, "npz", 0)
    o2u, apl = (one.model_copy(update={"data": Npz(**data), "noise": NoNoise()}) for one in (O2U, APL))
    first = run(o2u, store, leave=True)
    assert begun_elsewhere(store, run(apl, store)) == first.run_id
    write_data(tmp_path, "npz", 1)
    assert begun_elsewhere(store, run(apl, store)) is None


def test_a_run_that_goes_on_elsewhere_leaves_nothing(store):
    with pytest.raises(Interrupted):
        run(O2U, store, on_start=stop)
    (unfinished,) = unfinished_runs(store)
    path = unfinished.path / "run.json"
    facts = json.loads(path.read_text())
    facts["alike"]["git commit"] = "another"
    path.write_text(json.dumps(facts))
    said = []
    resume(
        unfinished, store=store, options=Options(leave=frozenset([hash_of(O2U)])), listener=Listener(warn=said.append)
    )
    assert any("git commit was another" in sentence for sentence in said)
    assert not (store.runs / "shared").exists()


def test_nothing_stays_of_what_a_killed_process_had_begun_to_leave(store):
    run(O2U, store, leave=True)
    (store.runs / "shared" / f".{hash_of(O2U)}.{'a' * 32}").mkdir()
    forget_prefixes(store.runs, [hash_of(O2U)])
    assert not (store.runs / "shared").exists()


def test_a_folder_that_cannot_be_written_stops_no_run(store):
    store.runs.mkdir()
    (store.runs / "shared").write_text("no folder")
    assert len(run(O2U, store, leave=True).epochs) == 7


@pytest.mark.slow
def test_a_launch_trains_common_stages_once_and_tidies_up(place):
    apl = tiny()["method"]
    apl["training"] |= {"loss": ROBUST}
    files = [write(place, name="o2u", method=tiny()["method"]), write(place, name="o2u_apl", method=apl)]
    process = nlt("launch", *files, "--seed", "0", "--seed", "1", "--device", "cpu", cwd=place)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("  begins after 5 of 7 epochs, which another run has trained") == 2
    found = {(run.info.run_name, run.data.tags["nlt.seed"]): run for run in runs(place)}
    for seed in "01":
        first, second = found["o2u", seed], found["o2u_apl", seed]
        assert second.data.tags["nlt.first_stages"] == first.info.run_id
        for key in ("final/noise_precision", "final/noise_recall"):
            assert second.data.metrics[key] == first.data.metrics[key]
    assert not list((place / "mlruns" / "runs").iterdir())
