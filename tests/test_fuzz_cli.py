"""Every option of every command with odd values: done, or refused with exit code 2 and one sentence.

Commands, options and arguments are read off the command line itself, so a new one is covered on the day it is added.
No command here can begin to train (the data set of the experiment file is not there) or to serve (the port is taken).
"""

import json
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import tiny
from fuzzing import NASTY_NUMBERS, NASTY_TEXT, assert_one_sentence, fuzz, no_hang, sizes
from hypothesis import strategies as st
from reliability import tell
from test_fuzz import KEYS, KINDS, RAW

from nlt.cli import main
from nlt.settings import BadInput
from nlt.tracking import open_store

PASSWORD = "hunter2secret"
# What each command is given unless that very option is the odd one; a new command needs no entry if it can be refused.
USUAL: dict[str, dict[str, list[str]]] = {
    "launch": {"specs": ["odd.json"], "device": ["cpu"], "data_root": ["."]},
    "validate": {"specs": ["odd.json"]},
    "doctor": {"device": ["cpu"], "data_root": ["."]},
}
ENVIRONMENT = {"tracking_uri": "MLFLOW_TRACKING_URI"}  # read by open_store, so click does not know

# Arguments of a process hold no NUL, and of the surrogates only those that stand for bytes that are not UTF-8.
letters = st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from("\udc80\udcff")
words = st.sampled_from([*NASTY_TEXT, "\udcff", "0", "1", "auto"]) | st.text(letters, max_size=20)
NUMBERS = [str(n) for n in NASTY_NUMBERS] + [
    "1.5",
    "1e3",
    "0x10",
    "1_0",
    "٣",
    " 7 ",
    "+1",
    "65535",
    "65536",
    "9" * 5000,
]
DEVICES = [
    "cuda",
    "cuda:0",
    "cuda:99",
    "cuda:-1",
    "cuda:",
    "cuda:٣",
    "cuda:" + "9" * 5000,
    "CPU",
    "cpu:0",
    "mps",
    "meta",
    "tpu",
]
URIS = [
    *(f"{scheme}://user:{PASSWORD}@127.0.0.1:1{rest}"
      for scheme in ("http", "https", "postgresql", "mysql+pymysql", "mssql", "databricks", "ftp", "sqlite", "file", "")
      for rest in ("", "/", "/a?b=c#d", "x", "99999")),
    f"http://user:{PASSWORD}@127.0.0.1", f"http://user:{PASSWORD}@[::1", f"http://{PASSWORD}@127.0.0.1:1", f"http:user:{PASSWORD}@127.0.0.1",
    f"http://u@ser:{PASSWORD}@127.0.0.1:1", f"http://127.0.0.1:1/?password={PASSWORD}", f"postgresql://127.0.0.1:1/x?password={PASSWORD}",
    f"user:{PASSWORD}@127.0.0.1", f"HTTP://user:{PASSWORD}@127.0.0.1:1", f"http://user:{PASSWORD}\n@127.0.0.1:1", f"http://a b:{PASSWORD}@127.0.0.1:1",
    "http://", "http://127.0.0.1:1", "http://127.0.0.1:port", "http://127.0.0.1:-1", "http://127.0.0.1:1/\x7f", "http://127.0.0.1:1/ä b",
    "http:///", "http:/", "http", "https://", "http://[::1]:1", "http://[", "http://]", "://", "//", "file:///tmp/x", "./mlruns", "mlruns",
    "sqlite", "sqlite:", "sqlite:/", "sqlite://", "sqlite:///", "sqlite:///.", "sqlite:////dev/null/x.db", "sqlite:////dev/null",
    "sqlite:////proc/x.db", "sqlite:////proc/a/x.db", "sqlite:///odd.json", "sqlite:///odd.json/x.db", "sqlite:///:memory:", "sqlite+x:///y",
    "sqlite:///" + "a" * 300, "sqlite:///" + "a/" * 3000, "sqlite:///\udcff/.", "databricks", "databricks-uc", "uc:x", "postgresql", "postgresql:",
    "mysql://", "mssql+pyodbc:///?odbc_connect=x", "postgresql+x://127.0.0.1:1", "postgresql://127.0.0.1:x", "postgresql://[",
]  # fmt: skip


def values(parameter: click.Parameter) -> st.SearchStrategy[str]:
    """Odd values, of the kind that parameter asks for where we know it."""
    match parameter.name:
        case "tracking_uri":
            return st.sampled_from(URIS) | words
        case "device":
            return st.sampled_from(DEVICES) | words
        case "overrides":
            parts = st.sampled_from([*KEYS, *KINDS, "", "a"]) | st.text(letters, max_size=5)
            keys = st.lists(parts, min_size=1, max_size=4).map(".".join)
            texts = st.sampled_from([*RAW, *NUMBERS, *(json.dumps({"name": kind}) for kind in KINDS)]) | words
            return st.builds("{}{}{}".format, keys, st.sampled_from(["=", "=", "=", "", "=="]), texts).filter(
                lambda text: "\0" not in text and not re.search("[\ud800-\udc7f\udd00-\udfff]", text)
            )
    if isinstance(parameter.type, click.Path):
        return words | st.sampled_from(
            ["odd.json", "/dev/null", "/dev/zero", "/dev/full", "/", "odd.json/", "/proc/self/mem", "~root"]
        )
    if isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType):
        return st.sampled_from(NUMBERS) | words
    return words


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[str, list[str], dict[str, str]]:
    """(command, arguments, environment)."""
    name = draw(st.sampled_from(sorted(name for name, command in main.commands.items() if command.params)))
    command = main.commands[name]
    odd = draw(st.lists(st.sampled_from(command.params), min_size=1, max_size=2, unique=True))
    options: list[str] = []
    arguments: list[str] = []
    env: dict[str, str] = {}
    for parameter in command.params:
        known = parameter.name or ""
        usual = USUAL.get(name, {}).get(known, [])
        if known == "tracking_uri":
            usual = ["STORE"]  # put in when the case is run
        if known == "port":
            usual = ["PORT"]
        given = [draw(values(parameter))] if parameter in odd else usual
        if isinstance(parameter, click.Argument):
            arguments += given if given or not parameter.required else ["nowhere"]
            continue
        assert isinstance(parameter, click.Option)
        variable = parameter.envvar or ENVIRONMENT.get(known)
        if parameter.is_flag:
            options += (
                draw(st.sampled_from([[parameter.opts[-1]], [f"{parameter.opts[-1]}={''.join(given)}"]]))
                if given
                else []
            )
        elif given and isinstance(variable, str) and draw(st.integers(0, 3)) == 0:
            env[variable] = given[0]
        else:
            for value in given:
                options += [parameter.opts[-1], value]
    if name == "launch":
        options += ["--set", "data.path=nowhere.npz"]  # whatever was set before: nothing to train on
    if name == "bench":
        options += ["--smoke", "--compile", "off"]  # seconds, and for sizes a sentence
    return name, [*options, "--", *arguments], env


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def only_here(host: Any, *args: Any, **kwargs: Any) -> Any:
        assert host in ("127.0.0.1", "::1", "localhost", ""), f"looks for {host!r} in the network"
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)


def assert_no_password(text: str) -> None:
    assert PASSWORD not in text, text


def is_port(text: str) -> bool:
    try:
        return 1 <= int(text) <= 65535
    except ValueError:
        return False


@sizes(60, 440)
def test_an_odd_option_is_taken_or_refused_in_one_sentence(
    tmp_path: Path, cases: int, template_store: Path, taken_port: int, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(template_store, tmp_path / "mlruns")  # a store made anew takes seconds
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}"
    (tmp_path / "odd.json").write_text(json.dumps(tiny(data={"name": "npz", "path": "nowhere.npz"})))

    def check_one(case: tuple[str, list[str], dict[str, str]]) -> None:
        name, arguments, env = case
        arguments = [{"STORE": store, "PORT": str(taken_port)}.get(a, a) for a in arguments]
        if name == "ui" and is_port(arguments[arguments.index("--port") + 1]):
            arguments[arguments.index("--port") + 1] = str(taken_port)
        env = {variable: store if value == "STORE" else value for variable, value in env.items()}
        result = CliRunner().invoke(main, [name, *arguments], env=env, prog_name="nlt")
        if not isinstance(result.exception, SystemExit | None):
            raise result.exception
        assert result.exit_code in (0, 2), result.output
        assert "Traceback" not in result.output
        assert_no_password(result.output)
        assert not re.search(r"\d training images", result.output), "it trains"
        if result.exit_code == 2 and name == "doctor" and not result.stderr:
            assert_one_sentence(result.stdout.splitlines()[-1].removeprefix("store").strip())
        elif result.exit_code == 2:
            *usage, sentence = result.stderr.splitlines()
            assert sentence.startswith("Error: "), result.stderr
            if usage:  # click's own: three lines of help, and a sentence as long as what was given
                assert usage[0].startswith("Usage: nlt") and len(usage) <= 3 and sentence.isprintable(), result.stderr
            else:
                assert_one_sentence(sentence)

    fuzz("command line", cases, command_lines(), check_one)
    client = open_store(store).client
    assert [e.name for e in client.search_experiments()] == ["Default"]
    assert not client.search_runs(["0"]), "a refusal left a run behind"


@pytest.mark.slow
def test_every_odd_tracking_uri_is_taken_or_refused_in_one_sentence(
    tmp_path: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, since chance may leave some out."""
    monkeypatch.chdir(tmp_path)
    for uri in URIS:
        with no_hang():
            try:
                open_store(uri)
            except BadInput as error:
                assert_one_sentence(str(error))
                assert_no_password(str(error))
    tell(what="fuzzed", kind="tracking URI", cases=len(URIS))
