"""Experiment files, mutated and drawn from the schema: each is an experiment that can start, or one sentence says why.

`test_fuzz_cli.py` does the same to every option, `test_fuzz_data.py` to the bytes of data files.
"""

import copy
import json
import math
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from click.testing import CliRunner
from conftest import REPO
from fuzzing import NASTY_NUMBERS, NASTY_TEXT, assert_one_sentence, corrupted, fuzz, sizes
from hypothesis import strategies as st

from nlt.cli import main
from nlt.prepare import prepare
from nlt.reading import check, load
from nlt.settings import BadInput
from nlt.spec import Experiment, json_schema
from nlt.tracking import params

FILES = {str(f.relative_to(REPO)): f.read_text() for f in sorted((REPO / "experiments").rglob("*.json"))}
SCHEMA = json_schema()
PARTS = [SCHEMA, *SCHEMA["$defs"].values()]
KEYS = sorted({key for part in PARTS for key in part.get("properties", {})})
KINDS = sorted({name["const"] for part in PARTS if "const" in (name := part.get("properties", {}).get("name", {}))})

# ---- mutations ----

# What json.dumps would not write, put in as it stands.
RAW = [
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "-0", "01", ".5", "1.", "+1", "0x10", "1_000", "9" * 5000, "1e" + "9" * 400,
    "'a'", "nul", "True", "undefined", "// no", "1,", "{,}", '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\x41"', '"\x01"',
    '1, "name": "ce"', '1, "rate": 1', '"a" "b"', "[" * 60 + "]" * 60, "[" * 3000, "{" * 3000, '{"a":' * 200 + "1" + "}" * 200,
]  # fmt: skip

values = st.one_of(
    st.sampled_from([None, True, False, [], {}, [[]], [{}], {"": 1}, *NASTY_NUMBERS, *NASTY_TEXT]),
    st.sampled_from([*KINDS, *({"name": kind} for kind in KINDS)]),
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=30),
    st.sampled_from(RAW).map(lambda raw: f"@{raw}@"),  # see with_raw
).map(copy.deepcopy)  # what is put into a tree may be mutated there
keys = st.one_of(st.sampled_from([*KEYS, *(key[:-1] for key in KEYS), *NASTY_TEXT]), st.text(max_size=20))


class Place(NamedTuple):
    """Where a JSON tree is mutated: at container[key]."""

    container: Any
    """A dict or a list."""
    key: Any


def places(tree: Any) -> list[Place]:
    """Every place in a JSON tree."""
    found, waiting = [], [tree]
    while waiting:  # not recursion: trees get deep here
        node = waiting.pop()
        keys: Any = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        found += [Place(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    return found


# A mutation changes a tree at a place; `everywhere` are all of its places. One that does not fit there does nothing.


def replace(draw: st.DrawFn, at: Place, everywhere: list[Place]) -> None:
    """Any value for the one that is there."""
    at.container[at.key] = draw(values)


def delete(draw: st.DrawFn, at: Place, everywhere: list[Place]) -> None:
    """A key or an item less."""
    del at.container[at.key]


def add(draw: st.DrawFn, at: Place, everywhere: list[Place]) -> None:
    """Any value under a key that is known, nearly known or wild."""
    if isinstance(at.container, dict):
        at.container[draw(keys)] = draw(values)


def rename(draw: st.DrawFn, at: Place, everywhere: list[Place]) -> None:
    """The value under another key."""
    if isinstance(at.container, dict):
        at.container[draw(keys)] = at.container.pop(at.key)


def duplicate(draw: st.DrawFn, at: Place, everywhere: list[Place]) -> None:
    """A value of the same file in the wrong place."""
    other = everywhere[draw(st.integers(0, len(everywhere) - 1))]
    at.container[at.key] = copy.deepcopy(other.container[other.key])


def nest(draw: st.DrawFn, at: Place, everywhere: list[Place]) -> None:
    """The value one, two or sixty levels deeper."""
    for _ in range(draw(st.sampled_from([1, 2, 60]))):
        at.container[at.key] = draw(st.sampled_from([[at.container[at.key]], {"name": at.container[at.key]}]))


def scale(draw: st.DrawFn, at: Place, everywhere: list[Place]) -> None:
    """The number negative, zero, somewhat off, or out of all bounds."""
    if type(at.container[at.key]) in (int, float):  # not bool
        with suppress(OverflowError):  # 10**400 has no half
            at.container[at.key] *= draw(st.sampled_from([-1, 0, 10, 0.5, 1e9, 1e300]))


Mutation = Callable[[st.DrawFn, Place, list[Place]], None]
MUTATIONS: dict[Mutation, int] = {replace: 4, delete: 1, add: 1, rename: 1, duplicate: 1, nest: 1, scale: 1}
"""Each with how often it is taken in ten."""


@st.composite
def mutated(draw: st.DrawFn, trees: st.SearchStrategy[dict[str, Any]]) -> str:
    """The text of a JSON tree after one to three mutations."""
    tree = copy.deepcopy(draw(trees))
    for _ in range(draw(st.integers(1, 3))):
        everywhere = places(tree)
        if not everywhere:
            break
        # Few files have more than a hundred places; taking the deep ones as often as the shallow ones is meant.
        at = everywhere[draw(st.integers(0, len(everywhere) - 1))]
        mutation = draw(st.sampled_from([mutation for mutation, weight in MUTATIONS.items() for _ in range(weight)]))
        mutation(draw, at, everywhere)
    return with_raw(json.dumps(tree, ensure_ascii=draw(st.booleans())))


def with_raw(text: str) -> str:
    """JSON in which each string "@...@" is replaced by what stands between, not quoted."""
    return re.sub(r'"@((?:[^"\\]|\\.)*)@"', lambda found: json.loads(f'"{found[1]}"'), text)


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """The bytes of a shipped file: damaged in one case of four, else mutated and, at times, of another encoding."""
    shipped = st.sampled_from(sorted(FILES))
    if draw(st.integers(0, 3)) == 0:
        return draw(corrupted(FILES[draw(shipped)].encode()))
    text = draw(mutated(shipped.map(lambda name: json.loads(FILES[name]))))
    encoding = draw(st.sampled_from(["utf-8"] * 9 + ["utf-8-sig", "utf-16", "utf-32", "latin-1"]))
    return text.encode(encoding, errors="surrogatepass" if encoding.startswith("utf") else "replace")


@sizes(150, 850)
def test_a_mutated_experiment_file_is_an_experiment_or_one_sentence(tmp_path: Path, cases: int) -> None:
    file = tmp_path / "mutated.json"

    def check_one(raw: bytes) -> None:
        file.write_bytes(raw)
        result = CliRunner().invoke(main, ["validate", str(file)], prog_name="nlt")
        assert result.exit_code in (0, 2), result.exception
        try:
            spec = load(file)
        except BadInput as error:
            assert_one_sentence(str(error), str(file))
            told = f"Error: {error}\n"
            assert (result.exit_code, result.stdout, result.stderr) == (2, "", told)
        else:
            assert (result.exit_code, result.stdout) == (0, f"{file}: valid\n")
            again = check(spec.resolved(), "again")
            assert (again.resolved(), again.sha256()) == (spec.resolved(), spec.sha256())

    fuzz("experiment file", cases, mutated_files(), check_one)


# ---- whatever the schema admits ----


def numbers(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Numbers within the schema's bounds, with a liking for the bounds themselves and for what is huge or tiny."""
    whole = schema["type"] == "integer"
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))

    def fits(x: float) -> bool:
        return (
            (not whole or isinstance(x, int))
            and ("minimum" not in schema or x >= schema["minimum"])
            and ("maximum" not in schema or x <= schema["maximum"])
            and ("exclusiveMinimum" not in schema or x > schema["exclusiveMinimum"])
            and ("exclusiveMaximum" not in schema or x < schema["exclusiveMaximum"])
        )

    extreme = [x for x in [*NASTY_NUMBERS, low, high] if x is not None and fits(x) and abs(x) < 1.7e308]
    if whole:
        return st.one_of(st.sampled_from(extreme), st.integers(low, high).filter(fits))
    return st.one_of(st.sampled_from(extreme), st.floats(low, high, allow_nan=False, allow_infinity=False).filter(fits))


@cache
def admitted(reference: str) -> st.SearchStrategy[Any]:
    return st.deferred(lambda: drawn_from(SCHEMA["$defs"][reference.rpartition("/")[2]]))


def drawn_from(schema: dict[str, Any], key: str = "") -> st.SearchStrategy[Any]:
    """Data that a part of our own JSON Schema admits; strings and lists fit digits as often as not."""
    classes = st.lists(st.sampled_from("0123456789"), min_size=2, max_size=10, unique=True)
    matrix = st.sampled_from([[[float(i == j) for j in range(n)] for i in range(n)] for n in (0, 1, 10, 10, 10, 11)])
    special = {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,99}", fullmatch=True),
        "about": st.text(min_size=1, max_size=200),
        "classes": st.one_of(st.none(), classes, st.lists(st.text(max_size=9), min_size=2, max_size=3, unique=True)),
        "flips": st.dictionaries(
            st.sampled_from("0123456789x"), st.sampled_from("0123456789"), min_size=1, max_size=10
        ),
        "rows": st.one_of(matrix, matrix, st.lists(st.lists(st.floats(0, 1), max_size=3), max_size=3)),
        "path": st.sampled_from([text for text in NASTY_TEXT if text != "~"]) | st.text(max_size=20),
    }
    if "$ref" in schema:
        return admitted(schema["$ref"])
    if "const" in schema:
        return st.just(schema["const"])
    if key in special:
        return special[key]
    if choices := schema.get("oneOf") or schema.get("anyOf"):
        return st.one_of([drawn_from(choice, key) for choice in choices])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "object":
            fields = {name: drawn_from(part, name) for name, part in schema["properties"].items() if name != "$schema"}
            needed = {
                name: fields.pop(name) for name in list(fields) if name in schema.get("required", []) or name == "name"
            }
            return st.fixed_dictionaries(needed, optional=fields)
        case "array":
            return st.lists(drawn_from(schema["items"]), max_size=4)
        case "integer" | "number":
            return numbers(schema)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "string":
            return st.text(max_size=20)
    raise NotImplementedError(f"teach drawn_from {schema}")


@st.composite
def experiments(draw: st.DrawFn) -> dict[str, Any]:
    """Experiments the schema admits, most of them on digits."""
    data = draw(drawn_from(SCHEMA))
    if draw(st.integers(0, 4)):
        known = SCHEMA["$defs"]["Digits"]["properties"]
        data["data"] = {k: v for k, v in data["data"].items() if k in known} | {"name": "digits"}
    if draw(st.booleans()) and data["data"].get("limit"):
        data["data"]["limit"] = data["data"]["limit"] % 1500 + 2
    return data


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", refuse)


def assert_can_start(spec: Experiment, data_root: Path) -> None:
    """What `launch` does up to the first batch, and what it hands to MLflow."""
    prepared = prepare(spec, 0, "cpu", data_root)
    assert len(prepared.train) and len(prepared.dataset.test)
    assert prepared.val is None or len(prepared.val)
    assert prepared.steps >= 1
    if prepared.T_KK is not None:
        assert torch.allclose(prepared.T_KK.sum(1), torch.ones(len(prepared.T_KK), dtype=torch.float64))
    if prepared.train.clean_N is not None:
        assert int(prepared.train.labels_N.min()) >= 0
    for name, value in params(spec, prepared).items():
        assert len(value) <= 6000, f"MLflow takes no parameter of this length: {name}"
    json.dumps([spec.resolved(), prepared.dataset.classes], allow_nan=False).encode()
    logits_BK = torch.randn(4, len(prepared.dataset.classes))
    for stage in spec.stages().values():
        for t in {1, 2, stage.epochs // 2 + 1, stage.epochs} - {0}:
            if t <= stage.epochs:
                assert math.isfinite(stage.schedule.at(t, stage.epochs))
        assert stage.loss(logits_BK, prepared.train.labels_N[:1].expand(4)).shape == (4,)


@sizes(80, 320)
def test_whatever_the_schema_admits_can_start_or_one_sentence_says_why(
    tmp_path: Path, cases: int, no_download: None
) -> None:
    def check_one(data: dict[str, Any]) -> None:
        try:
            spec = check(data, "x.json")
            assert check(spec.resolved(), "again") == spec  # but for $schema, which is never drawn
            assert_can_start(spec, tmp_path)
        except BadInput as error:
            assert_one_sentence(str(error))

    fuzz("admitted experiment", cases, experiments(), check_one)


@sizes(20, 180)
def test_a_mutated_experiment_on_digits_can_start_or_one_sentence_says_why(
    tmp_path: Path, cases: int, no_download: None
) -> None:
    trees = st.sampled_from([json.loads(text) | {"data": {"name": "digits", "limit": 40}} for text in FILES.values()])

    def check_one(text: str) -> None:
        (tmp_path / "mutated.json").write_text(text, errors="surrogatepass")
        try:
            spec = load(tmp_path / "mutated.json")
            assert_can_start(spec, tmp_path)
        except BadInput as error:
            assert_one_sentence(str(error))

    fuzz("experiment up to its first batch", cases, mutated(trees), check_one)
