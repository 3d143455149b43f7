"""Experiment files: JSON in, one `Experiment` out, or one sentence on what is wrong and how to mend it."""

import difflib
import itertools
import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nlt.settings import BadInput, brief
from nlt.spec import Experiment

MAX_BYTES = 1_000_000  # the shipped files have 2,000
MAX_NESTING = 50  # losses nest in losses; pydantic and json stop at depths that depend on the machine


def load(path: str | Path, overrides: tuple[str, ...] = ()) -> Experiment:
    """Read an experiment file, set `key.subkey=value` overrides, and check the result.

    An override's value is read as JSON, and as a plain string where it is no JSON.

    Raises:
        BadInput: the file is missing or no JSON object, or a key, type or value is wrong.
    """
    for override in overrides:
        if len(_parse(override)[1]) > 1:
            raise BadInput(f"--set {override}: give one value here; several make several experiments.")
    return load_all(path, overrides)[0]


def load_all(path: str | Path, overrides: tuple[str, ...] = ()) -> list[Experiment]:
    """Read an experiment file as `load` does, once for each combination of values in overrides `key=value,value,...`.

    An experiment's name says which of the listed values it has. A comma inside JSON or a JSON string parts nothing.

    Raises:
        BadInput: as `load`.
    """
    parsed = [_parse(override) for override in overrides]
    for i, (key, _) in enumerate(parsed):
        if undone := next((before for before, _ in parsed[:i] if f"{before}.".startswith(f"{key}.")), None):
            raise BadInput(f"--set {key}=...: it undoes --set {undone}=... before it: leave one out.")
    experiments = []
    for chosen in itertools.product(*(zip(values, _texts(values), strict=True) for _, values in parsed)):
        data = _read(Path(path))
        added = ""
        for (key, values), (value, shown) in zip(parsed, chosen, strict=True):
            _set(data, key, value)
            if len(values) > 1 and key != "name":
                added += f" {key.rpartition('.')[2]} {shown}"
        if isinstance(data.get("name"), str):
            data["name"] += added
        experiments.append(check(data, str(path)))
    return experiments


def _texts(values: list[Any]) -> list[str]:
    """Return each value as it stands in a run's name; with its number where two would be called alike."""
    shown = [value if isinstance(value, str) else json.dumps(value) for value in values]
    texts = [re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-")[:30] for text in shown]
    alike = len(set(texts)) < len(texts)
    return [f"{text} {number}" if alike else text for number, text in enumerate(texts, 1)]


def check(data: dict[str, Any], source: str) -> Experiment:
    """Validate an experiment given as JSON-ready data; `source` names it in error messages.

    Raises:
        BadInput: a key, type or value is wrong.
    """
    try:
        return Experiment.model_validate_json(json.dumps(data, allow_nan=False, ensure_ascii=False).encode())
    except ValidationError as error:
        raise BadInput(f"{source}: {_sentence(error, data)}") from None
    except (ValueError, RecursionError):  # a number that JSON does not have, surrogates that UTF-8 does not have
        raise BadInput(f"{source}: it holds a number or text that JSON cannot hold (NaN, infinity, \\ud800).") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadInput(f"{path}: there is no such file.") from None
    except IsADirectoryError:
        raise BadInput(f"{path}: this is a folder; give an experiment file, e.g. {path}/NAME.json.") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if len(raw) > MAX_BYTES:  # also what never ends, such as /dev/zero
        raise BadInput(f"{path}: larger than {MAX_BYTES:,} bytes; this is no experiment file.")
    # Editors on Windows begin a file with a byte-order mark, and PowerShell's ">" writes UTF-16. The mark is removed
    # after decoding, so that the place of a wrong byte is counted from the file's beginning.
    encoding = json.detect_encoding(raw).removesuffix("-sig")
    try:
        text = raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: byte {error.start} is not {encoding.upper()}; save the file as UTF-8.") from None
    try:
        data = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: no valid JSON at line {error.lineno}, column {error.colno}: {error.msg}.") from None
    except RecursionError:
        raise BadInput(f"{path}: nested too deeply; {MAX_NESTING} levels are allowed.") from None
    except ValueError as error:
        raise BadInput(f"{path}: {error}.") from None
    if not isinstance(data, dict):
        raise BadInput(f'{path}: an experiment file is one JSON object, {{"name": ..., "data": ..., ...}}.')
    if _depth(text) > MAX_NESTING:
        raise BadInput(f"{path}: nested too deeply; {MAX_NESTING} levels are allowed.")
    return data


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:  # brackets inside strings count too: no honest file comes near the limit
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    return deepest


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ValueError(f"the key {brief(key)} stands twice in one object; remove one")
        data[key] = value
    return data


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number an experiment can use")


def _parse(override: str) -> tuple[str, list[Any]]:
    """Return the key of a `key=value,value,...` override and its values."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise BadInput(f"--set {override}: write it as key.subkey=value, e.g. --set method.training.epochs=10.")
    # One value, or a JSON list without its brackets, or words.
    for candidate, several in ((text, False), (f"[{text}]", True)):
        try:
            value = json.loads(candidate, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        except json.JSONDecodeError:
            continue
        except (ValueError, RecursionError) as error:
            raise BadInput(f"--set {key}: {error}.") from None
        if not several:
            return key, [value]
        if value:
            return key, value
    return key, [_word(part.strip()) for part in text.split(",")] if "," in text else [text]


def _word(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        child = data.setdefault(parent, {})
        if not isinstance(child, dict):
            raise BadInput(f"--set {key}: {parent!r} is {brief(json.dumps(child))}, which has no keys.")
        data = child
    data[last] = value


def _sentence(error: ValidationError, data: Any) -> str:
    """Turn pydantic's errors into one sentence that names the place, what is wrong, and the mend."""
    first, *others = error.errors(include_url=False)
    place = _place(first["loc"], data, ends_with_key=first["type"] in ("extra_forbidden", "missing"))
    match first["type"]:
        case "extra_forbidden":
            key = str(first["loc"][-1])
            close = difflib.get_close_matches(key, _known_keys() - {key}, 1)
            if key in _known_keys():  # as when --set model.name=resnet18 leaves cnn9's width behind
                what = "this kind has no such key; remove it"
            else:
                what = f"unknown key; did you mean {close[0]!r}?" if close else "unknown key; remove it"
        case "missing":
            what = "this key is missing; add it"
        case "string_pattern_mismatch":  # `Name`, the one pattern there is
            what = "use letters, digits, blanks and . _ + -, the first one a letter or digit"
        case "union_tag_not_found":
            what = '"name" is missing; it says which kind this is'
        case "union_tag_invalid":
            what = f"there is no {brief(first['ctx']['tag'])}; use one of {first['ctx']['expected_tags']}"
            place += ".name"
        case _:
            what = first["msg"].removeprefix("Value error, ")
            what = what[0].lower() + what[1:]
            if isinstance(first["input"], str | int | float | bool | None):
                what += f", not {json.dumps(first['input'])[:80]}"
    places = {_place(other["loc"], data, other["type"] in ("extra_forbidden", "missing")) for other in others}
    more = len(places - {place})
    rest = f" ({more} more like this in the file)" if more else ""
    return f"{place or 'the file'}: {what.rstrip('.?')}{'?' if what.endswith('?') else '.'}{rest}"


def _place(loc: tuple[int | str, ...], data: Any, ends_with_key: bool) -> str:
    """Write pydantic's location as the dotted key a user would write, without the tags of unions in it."""
    keys: list[str] = []
    for i, part in enumerate(loc):
        if isinstance(data, str | int | float):  # it has no keys: what follows says which of a union's kinds failed
            break
        is_key = i == len(loc) - 1 and ends_with_key
        if not is_key and isinstance(data, dict) and part not in data and part == data.get("name"):
            continue
        # As the user would write it, unless dots, blanks or nothing at all would make the dotted key unreadable.
        keys.append(str(part) if re.fullmatch(r"[\w$-]{1,60}", str(part)) else brief(str(part)))
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            data = None
    return ".".join(keys)


def _known_keys() -> set[str]:
    schema = Experiment.model_json_schema()
    return {key for part in [schema, *schema["$defs"].values()] for key in part.get("properties", {})}
