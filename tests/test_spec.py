"""Experiment files: what is shipped is valid and means what it says, and what is wrong is named in one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import published
import pytest
from conftest import REPO, tiny

from nlt.losses import APL, CE, NCE, RCE
from nlt.methods.o2u import O2U
from nlt.optim import Constant
from nlt.reading import check, load
from nlt.settings import BadInput
from nlt.spec import Experiment, json_schema

FILES = sorted((REPO / "experiments").rglob("*.json"))


def write(path: Path, data: object) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(REPO / "experiments")))
def test_shipped_file_is_valid_explained_and_names_the_schema(file):
    spec = load(file)
    assert len(spec.about) > 40
    assert (file.parent / json.loads(file.read_text())["$schema"]).resolve() == REPO / "nlt" / "schema.json"
    assert spec.name.startswith(file.stem)


def test_the_shipped_files_are_the_ones_promised():
    cells = {f"{m}_{r}" for m in ("base", "apl", "o2u", "o2u_apl") for r in (20, 60)}
    found = {str(f.relative_to(REPO / "experiments").with_suffix("")) for f in FILES}
    quickstart = {f"quickstart/{m}" for m in ("base", "apl", "o2u", "o2u_apl")}
    paper = cells | {f"{folder}/{c}" for c in cells for folder in ("as_published", "reduced")}
    others = {
        f"{place}"
        for m in ("coteaching", "elr", "sop", "forward_correction", "ssr", "dividemix", "loo_consistency")
        for place in (f"digits/{m}", f"cifar4/{m}_20", f"cifar4/{m}_60")
    }
    assert paper | quickstart | others <= found  # that every method has one on digits is held elsewhere


@pytest.mark.parametrize("file", sorted((REPO / "experiments" / "cifar4").glob("*.json")), ids=lambda f: f.stem)
def test_cells_beside_the_papers_have_its_data_network_optimizer_and_epochs(file):
    spec, base = load(file), load(REPO / "experiments" / f"base_{file.stem[-2:]}.json")
    for key in ("experiment", "data", "noise", "model", "optimizer", "precision", "evaluate"):
        assert getattr(spec, key) == getattr(base, key), key
    assert spec.steps() == base.steps()
    if spec.stages().keys() == base.stages().keys():  # with other stages a method has batches and rates of its own
        assert spec.stages() == base.stages()
    assert getattr(spec.method, "forget_rate", spec.noise.rate) == spec.noise.rate


def test_schema_file_is_current():
    assert json.loads((REPO / "nlt" / "schema.json").read_text()) == json_schema(), "run `make schema`"


def test_schema_describes_every_field_but_the_names_of_kinds():
    schema = json_schema()
    parts = {"Experiment": schema, **schema["$defs"]}
    bare = [
        f"{part}.{field}"
        for part, definition in parts.items()
        for field, about in definition.get("properties", {}).items()
        if "description" not in about and "const" not in about
    ]
    assert bare == ["Experiment.name"] or bare == []


# ---- the eight cells mean what the paper says (section 3) ----


@pytest.mark.parametrize("rate", [20, 60])
@pytest.mark.parametrize("kind", ["base", "apl", "o2u", "o2u_apl"])
def test_corrected_cells_follow_the_text(kind, rate):
    spec = load(REPO / "experiments" / f"{kind}_{rate}.json")
    assert (spec.data.name, spec.noise.name, spec.noise.rate) == ("cifar4", "symmetric", rate / 100)
    assert (spec.optimizer.momentum, spec.optimizer.weight_decay) == (0.9, 1e-4)
    assert (spec.model.name, spec.model.width, spec.model.eval_dropout) == ("cnn9", 1.0, False)
    assert (spec.profile, spec.evaluate, spec.noise.draw) == ("corrected", "after", "inverse_cdf")
    assert spec.published.n == 1
    stages = spec.stages()
    nce_rce = APL(active=NCE(), passive=RCE(), alpha=1.0, beta=1.0)
    assert stages["training"].loss == (nce_rce if "apl" in kind else CE())
    if kind in ("base", "apl"):
        assert [s.epochs for s in stages.values()] == [100]
    else:
        assert [(n, s.epochs, s.batch_size) for n, s in stages.items()] == [
            ("pretraining", 30, 128), ("cyclical", 20, 16), ("training", 50, 128)
        ]  # fmt: skip
        assert (spec.method.forget_rate, spec.method.forget_rounding) == (rate / 100, "down")
        assert stages["pretraining"].schedule == Constant(lr=0.01)  # section 2.2
        c = stages["cyclical"].schedule
        assert (c.r1, c.r2, c.period, c.offset) == (0.01, 0.001, 10, 0)
        assert stages["pretraining"].loss == stages["cyclical"].loss == CE()


@pytest.mark.parametrize("rate", [20, 60])
@pytest.mark.parametrize("kind", ["base", "apl", "o2u", "o2u_apl"])
def test_as_published_cells_follow_the_code(kind, rate):
    spec = load(REPO / "experiments" / "as_published" / f"{kind}_{rate}.json")
    assert (spec.profile, spec.evaluate, spec.model.eval_dropout) == ("as_published", "before", True)
    assert (spec.optimizer.weight_decay, spec.precision, spec.published.n) == (5e-4, "fp32", 1)
    assert (spec.noise.draw, spec.noise.seed) == ("per_sample_multinomial", 0)
    epochs = [s.epochs for s in spec.stages().values()]
    assert epochs == ([99] if kind in ("base", "apl") else [29, 19, 49])
    for name, stage in spec.stages().items():
        rates = [stage.schedule.at(t, stage.epochs) for t in range(1, stage.epochs + 1)]
        n = stage.epochs + 1
        lr = published.cyclical_lr if name == "cyclical" else lambda epoch, n=n: published.step_lr(epoch, n)
        assert rates == pytest.approx([lr(epoch) for epoch in range(1, n)])
    if "o2u" in kind:
        assert (spec.method.restart, spec.method.forget_rounding) == ("pretrained", "as_code")


@pytest.mark.parametrize("cell", ["o2u_20", "o2u_60", "o2u_apl_20", "o2u_apl_60"])
def test_reduced_cells_are_the_corrected_ones_but_for_their_size(cell):
    full, reduced = (load(REPO / "experiments" / folder / f"{cell}.json") for folder in (".", "reduced"))
    sizes = {"epochs": 0}
    for (name, ours), theirs in zip(full.stages().items(), reduced.stages().values(), strict=True):
        assert ours.model_copy(update=sizes) == theirs.model_copy(update=sizes), name
    assert (reduced.noise, reduced.optimizer) == (full.noise, full.optimizer)
    assert reduced.method.forget_rate == full.method.forget_rate


def test_defaults_of_o2u_are_the_papers():
    stages = load(REPO / "experiments" / "o2u_20.json").stages()
    defaults = O2U(forget_rate=0.2)
    assert {name: getattr(defaults, name) for name in stages} == stages


# ---- loading ----


def test_round_trip_through_the_resolved_spec(tmp_path):
    spec = load(write(tmp_path / "a.json", tiny()))
    assert check(spec.resolved(), "again") == spec


def test_the_hash_is_of_what_decides_the_numbers():
    spec = check(tiny(), "x")
    same = check(tiny(name="other", about="other", experiment="other", profile="corrected"), "x")
    assert spec.sha256() == same.sha256()
    assert spec.sha256() == check(tiny(evaluate="after"), "x").sha256()  # a default written out
    for change in ({"evaluate": "before"}, {"noise": {"name": "none"}}, {"precision": "bf16"}):
        assert spec.sha256() != check(tiny(**change), "x").sha256()


def test_overrides_are_json_or_text(tmp_path):
    file = write(tmp_path / "a.json", tiny())
    spec = load(
        file,
        (
            "method.training.epochs=7",
            'data={"name":"npz","path":"a=b.npz"}',
            "name=hello",
            "method.training.loss.name=nce",
        ),
    )
    assert (spec.method.training.epochs, spec.data.path, spec.name) == (7, "a=b.npz", "hello")
    assert spec.method.training.loss == NCE()


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        check(tiny(), "x").method.forget_rate = 0.5


WRONG = [
    ({"methd": 1}, "x.json: methd: unknown key; did you mean 'method'?"),
    (
        {"noise": {"name": "symmetric", "rate": 1.5}},
        "x.json: noise.rate: input should be less than or equal to 1, not 1.5.",
    ),
    ({"noise": {"name": "symetric", "rate": 0.5}}, "x.json: noise.name: there is no 'symetric'; use one of"),
    ({"noise": {"name": "symmetric", "rate": "0.5"}}, 'x.json: noise.rate: input should be a valid number, not "0.5".'),
    ({"noise": {"name": "symmetric"}}, "x.json: noise.rate: this key is missing; add it."),
    ({"data": {}}, 'x.json: data: "name" is missing'),
    ({"data": {"name": "digits", "limit": True}}, "x.json: data.limit: input should be a valid integer, not true."),
    ({"data": {"name": "digits", "classes": ["1", "1"]}}, "x.json: data.classes: a class is named twice"),
    (
        {"name": "../../etc/x"},
        "x.json: name: use letters, digits, blanks and . _ + -, the first one a letter or digit.",
    ),
    ({"experiment": "a/b"}, "x.json: experiment: use letters, digits, blanks and"),
    ({"method": {"name": "o2u", "forget_rate": 1}}, "x.json: method.forget_rate: input should be less than 1, not 1."),
    ({"method": {"name": "o2u"}}, "x.json: method.forget_rate: this key is missing"),
    (
        {"method": {"name": "standard", "training": {"epochs": 0}}},
        "x.json: method.training.epochs: input should be greater",
    ),
    (
        {"method": {"name": "standard", "training": {"loss": {"name": "apl", "active": {"name": "nce", "q": 1}}}}},
        "x.json: method.training.loss.active.q: this kind has no such key; remove it.",
    ),
    (
        {"method": {"name": "standard", "training": {"schedule": {"name": "step", "lrs": [0.1, 0.2]}}}},
        "x.json: method.training.schedule: fractions must ascend and be one fewer than lrs.",
    ),
    ({"noise": {"name": "symmetric", "rate": 0.5, "seed": 2**63}}, "x.json: noise.seed: input should be less than"),
    ({"a\nb": 1}, r"x.json: 'a\nb': unknown key; remove it."),
    ({"": 1}, "x.json: '': unknown key; remove it."),
    ({"\u202e\x1b[31m": 1}, r"x.json: '\u202e\x1b[31m': unknown key; remove it."),
    ({"k" * 5000: 1}, "x.json: 'kkk"),
    ({"data": {"name": "d" * 5000}}, "x.json: data.name: there is no 'ddd"),
    ({"noise": {"name": "symmetric", "rate": 10**400}}, "x.json: noise.rate: input should be"),
    ({"about": "\ud800"}, "x.json: it holds a number or text that JSON cannot hold"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[m[8:40] for _, m in WRONG])
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(BadInput) as caught:
        check(tiny(**change), "x.json")
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_a_sentence_is_one_printable_line_that_keeps_its_beginning_and_its_end():
    error = BadInput("a.json: \x1b\n\u202e\ud800 " + "x" * 5000 + ": remove it.", "b.json: wrong.")
    first, second = str(error).splitlines()
    assert first.startswith(r"a.json: \x1b\n\u202e\ud800 xxx")
    assert first.endswith("x: remove it.")
    assert second == "b.json: wrong."
    assert first.isprintable()
    assert len(first) < 650


UNREADABLE = [
    ("{", "no valid JSON at line 1, column 2"),
    ("[1]", "is one JSON object"),
    ('{"name": 1, "name": 2}', "the key 'name' stands twice"),
    ('{"name": NaN}', "NaN is no number"),
    ("[" * 100_000, "nested too deeply"),
    ('{"a":' * 60 + "1" + "}" * 60, "nested too deeply"),
    ('{"a": ' + "9" * 5000 + "}", "a.json: "),
]


@pytest.mark.parametrize(("text", "message"), UNREADABLE, ids=[m for _, m in UNREADABLE])
def test_unreadable_files(tmp_path, text, message):
    with pytest.raises(BadInput, match="a.json") as caught:
        load(write(tmp_path / "a.json", text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_is_read_as_editors_and_shells_write_it(tmp_path, encoding):
    """With a byte-order mark (Windows' editors), in UTF-16 (PowerShell's >), with CR LF: the same experiment."""
    text = json.dumps(tiny(about="Größe, 日本語, 🙂"), indent=2, ensure_ascii=False).replace("\n", "\r\n")
    (tmp_path / "a.json").write_bytes(text.encode(encoding))
    assert load(tmp_path / "a.json") == check(tiny(about="Größe, 日本語, 🙂"), "a.json")
    (tmp_path / "b.json").write_bytes("{\r\n 1".encode(encoding))
    with pytest.raises(BadInput, match="no valid JSON at line 2, column 2: Expecting property name"):
        load(tmp_path / "b.json")


def test_missing_binary_and_folder(tmp_path):
    with pytest.raises(BadInput, match="there is no such file"):
        load(tmp_path / "none.json")
    (tmp_path / "b.json").write_bytes(b'{"name": "\xff"}')
    with pytest.raises(BadInput, match="byte 10 is not UTF-8; save the file as UTF-8"):
        load(tmp_path / "b.json")
    (tmp_path / "b.json").write_bytes(b'\xef\xbb\xbf{"name": "\xff"}')
    with pytest.raises(BadInput, match="byte 13 is not UTF-8"):
        load(tmp_path / "b.json")
    (tmp_path / "b.json").write_bytes('{"name": "a"}'.encode("utf-16") + b"\n")
    with pytest.raises(BadInput, match="byte 28 is not UTF-16; save the file as UTF-8"):
        load(tmp_path / "b.json")
    (tmp_path / "b.json").write_bytes(b'{"about": "' + "é".encode() * 600_000)  # cut in the middle of a character
    with pytest.raises(BadInput, match="larger than 1,000,000 bytes"):
        load(tmp_path / "b.json")
    with pytest.raises(BadInput, match="this is a folder"):
        load(tmp_path)
    with pytest.raises(BadInput, match="/dev/zero: larger than 1,000,000 bytes"):
        load("/dev/zero")


@pytest.mark.parametrize("override", ["a", "=3", "method..x=1", "name.x=1", "x=" + "[" * 100_000, "noise.rate=NaN"])
def test_bad_overrides(tmp_path, override):
    with pytest.raises(BadInput, match="--set"):
        load(write(tmp_path / "a.json", tiny()), (override,))


def test_the_files_import_in_one_direction():
    """`make check` runs it too; here so that `make test` alone holds the architecture."""
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_experiment_docs_mention_every_top_level_key():
    text = (REPO / "docs" / "experiment-files.md").read_text()
    for name, field in Experiment.model_fields.items():
        assert f"`{field.alias or name}`" in text, name
