"""Every command as a user meets it: help, exit codes, one sentence for what is wrong."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import REPO, tiny

import nlt
from nlt.cli import main
from nlt.cli.options import friendly
from nlt.events import Incomplete, Stopped
from nlt.launcher import Options
from nlt.reading import check
from nlt.report import compare
from nlt.settings import BadInput
from nlt.spec import json_schema
from nlt.tracking import open_store
from nlt.view import link

COMMANDS = sorted(main.commands)
QUICK = {"name": "standard", "training": {"epochs": 1, "batch_size": 32}}


def nlt_(*args: object, **env: str):
    return CliRunner().invoke(main, [str(a) for a in args], env=env, prog_name="nlt")


def shell(*args: object, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from nlt.cli import main; main(prog_name='nlt')", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=120)


@pytest.fixture
def spec_file(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny(method=QUICK)))
    return path


# ---- help ----


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command):
    result = nlt_(command, "--help")
    assert result.exit_code == 0
    assert f"nlt {command}" in result.output.split("Usage:")[1].split("\n", 1)[1], "no example"
    for parameter in main.commands[command].params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_names_every_command(command):
    assert f"nlt {command}" in (REPO / "README.md").read_text()


def test_help_needs_neither_torch_nor_mlflow():
    command = [sys.executable, "-X", "importtime", "-c", "from nlt.cli import main; main()", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPO)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in imported
    assert imported & {"torch", "mlflow", "numpy", "sklearn"} == set()


def test_shell_completion_offers_commands_and_options(tmp_path):
    done = shell(cwd=tmp_path, _NLT_COMPLETE="bash_complete", COMP_WORDS="nlt la", COMP_CWORD="1")
    assert "launch" in done.stdout
    done = shell(cwd=tmp_path, _NLT_COMPLETE="bash_complete", COMP_WORDS="nlt launch --da", COMP_CWORD="2")
    assert "--data-root" in done.stdout


# ---- launch and compare ----


def test_launch_prints_ids_progress_and_table_then_compare_prints_the_comparison(spec_file, store_uri):
    result = nlt_("launch", spec_file, "--seed", 0, "--seed", 1, "--device", "cpu", "--tracking-uri", store_uri)
    assert result.exit_code == 0, result.output
    store = open_store(store_uri)
    found = store.client.search_runs([store.client.get_experiment_by_name("digits").experiment_id])
    runs = [run for run in found if "nlt.kind" not in run.data.tags]  # without the summary
    assert sorted(r.data.params["seed"] for r in runs) == ["0", "1"]
    assert len({r.data.tags["nlt.sweep"] for r in runs}) == 1
    for run in runs:
        assert result.output.count(run.info.run_id) == 2  # where it starts and in the table
    lines = [line for line in result.output.splitlines() if "loss" in line]
    assert len(lines) == 2
    for line in lines:
        assert re.search(r"1/1 training +1  loss \d\.\d+  train +[\d.]+%  test +[\d.]+%  [\d,]+ img/s  0:00 left", line)
    compared = nlt_("compare", "--tracking-uri", store_uri)
    assert compared.exit_code == 0
    assert re.search(r"Standard, CE │ +[\d.]+ ± [\d.]+ \(2\)", compared.output)


def test_compare_by_hand(store_uri):
    """Two methods x two noise rates x two seeds of made-up runs: mean, sample deviation, the latest of a repetition."""
    store = open_store(store_uri)
    client = store.client
    experiment = client.create_experiment("made-up")

    def run(method, loss, noise, seed, accuracy, precision=None, status="FINISHED"):
        sha = f"{method}{loss}{noise}"
        tags = {"nlt.spec_sha256": sha, "nlt.seed": str(seed), "nlt.noise": noise, "nlt.version": "0"}
        made = client.create_run(experiment, run_name=sha, tags=tags)
        for key, value in (("method", method), ("loss", loss)):
            client.log_param(made.info.run_id, key, value)
        client.log_metric(made.info.run_id, "final/test_accuracy_last", accuracy)
        if precision is not None:
            client.log_metric(made.info.run_id, "final/noise_precision", precision)
        client.set_terminated(made.info.run_id, status)
        time.sleep(0.002)  # runs are ordered by their start, in milliseconds

    run("standard", "CE", "symmetric 0.2", 0, 0.10)  # repeated below: must not count
    run("standard", "CE", "symmetric 0.2", 0, 0.60)
    run("standard", "CE", "symmetric 0.2", 1, 0.70)
    run("standard", "CE", "symmetric 0.6", 0, 0.30)
    run("o2u", "CE", "symmetric 0.2", 0, 0.80, 0.75)
    run("o2u", "CE", "symmetric 0.2", 1, 0.82, 0.77)
    run("o2u", "CE", "symmetric 0.2", 2, 0.99, 0.99, status="KILLED")
    [found] = compare(store, "made-up")
    assert len(found.cells) == 3
    output = nlt_("compare", "made-up", "--tracking-uri", store_uri).output
    # mean 0.65, sample standard deviation sqrt(2 * 0.05^2 / 1) = 0.0707
    assert re.search(r"Standard, CE │ +65.0 ± 7.1 \(2\) │ +│ +30.0 \(1\) │", output), output
    # mean 0.81, deviation 0.0141; precision mean 0.76, deviation 0.0141
    assert re.search(r"O2U +│ +81.0 ± 1.4 \(2\) │ +76.0 ± 1.4 \(2\) │ +│", output), output


def test_different_settings_never_share_a_cell(store_uri):
    """Two specs that differ in width only are two rows, not two seeds of one."""
    for name, width in (("thin", 0.02), ("wide", 0.04)):
        nlt.launch(check(tiny(name=name, method=QUICK, model={"name": "cnn9", "width": width}), "x"), options=Options(tracking_uri=store_uri, device="cpu"))  # fmt: skip
    output = nlt_("compare", "--tracking-uri", store_uri).output
    assert "Standard, CE, width 0.02" in output
    assert "Standard, CE, width 0.04" in output
    assert "±" not in output.split("last epoch")[0]


@pytest.mark.parametrize(("error", "code"), [(BadInput, 2), (Incomplete, 1), (Stopped, 130)])
def test_what_stops_a_command_decides_its_exit_code(error, code, capsys):
    @friendly
    def command(*sentences: str) -> None:
        raise error(*sentences)

    with pytest.raises(SystemExit) as said:
        command("It is so: mend it.")
    assert (said.value.code, capsys.readouterr().err) == (code, "Error: It is so: mend it.\n")
    with pytest.raises(SystemExit) as silent:
        command()
    assert (silent.value.code, capsys.readouterr().err) == (code, "")


def test_set_changes_the_run(spec_file, store_uri):
    result = nlt_("launch", spec_file, "--tracking-uri", store_uri, "--device", "cpu", "--set", "name=renamed", "--set", "data.limit=50")  # fmt: skip
    assert "renamed · seed 0" in result.output
    assert "50 training images" in result.output


def test_the_library_is_the_command(spec_file, store_uri):
    result = nlt.launch(nlt.load(spec_file), options=Options(tracking_uri=store_uri, device="cpu"))
    assert 0 <= result.metrics["final/test_accuracy_last"] <= 1


# ---- exit codes ----


def test_bad_input_is_one_sentence_and_exit_code_2_and_no_run(spec_file, store_uri, tmp_path):
    store = ("--tracking-uri", store_uri, "--device", "cpu")
    bad = [
        (("launch", tmp_path / "none.json", *store), "none.json: there is no such file."),
        (
            ("launch", spec_file, *store, "--set", "method.training.epoch=3"),
            "method.training.epoch: unknown key; did you mean 'epochs'?",
        ),
        (
            ("launch", spec_file, *store, "--set", "noise.rate=2"),
            "noise.rate: input should be less than or equal to 1, not 2.",
        ),
        (("launch", spec_file, *store, "--set", 'data.classes=["1","cat"]'), "no class 'cat'"),
        (
            ("launch", spec_file, *store, "--set", 'data={"name":"npz","path":"nowhere.npz"}'),
            "nowhere.npz is not there",
        ),
        (("launch", spec_file, "--tracking-uri", store_uri, "--device", "tpu"), "--device tpu: use auto, cpu, cuda"),
        (("launch", spec_file, "--tracking-uri", "nonsense"), "tracking URI nonsense"),
        (("validate", spec_file, tmp_path / "none.json"), "there is no such file"),
        (("compare", "nothing-here", "--tracking-uri", store_uri), "there is no MLflow experiment 'nothing-here'"),
        (("compare", "--tracking-uri", store_uri), "there is no finished run"),
        (("launch", spec_file, "--seed", "-1"), "--seed"),
        (("launch",), "SPEC"),
        (("launch", spec_file, "--sede", "1"), "--sede"),
    ]
    for args, message in bad:
        result = nlt_(*args)
        assert result.exit_code == 2, (args, result.output)
        assert message in result.output, (args, result.output)
        assert "Traceback" not in result.output
    assert [e.name for e in open_store(store_uri).client.search_experiments()] == ["Default"]


def test_all_files_are_checked_before_the_first_run_starts(spec_file, store_uri, tmp_path):
    result = nlt_("launch", spec_file, tmp_path / "none.json", "--tracking-uri", store_uri)
    assert result.exit_code == 2
    assert "training images" not in result.output


def test_a_failed_run_exits_1_and_finished_ones_are_still_listed(spec_file, store_uri, tmp_path):
    diverges = tmp_path / "diverges.json"
    training = {"epochs": 1, "batch_size": 8, "schedule": {"name": "constant", "lr": 1e30}}
    diverges.write_text(json.dumps(tiny(name="diverges", method={"name": "standard", "training": training})))
    result = nlt_("launch", spec_file, diverges, "--tracking-uri", store_uri, "--device", "cpu")
    assert result.exit_code == 1
    assert "is not finite: lower the learning rate" in result.output
    assert "│ tiny" in result.output


def test_validate_names_every_wrong_file(tmp_path, spec_file):
    for n in (1, 2):
        (tmp_path / f"bad{n}.json").write_text("{")
    result = nlt_("validate", tmp_path / "bad1.json", spec_file, tmp_path / "bad2.json")
    assert result.exit_code == 2
    assert "tiny.json: valid" in result.output
    assert "bad1.json: no valid JSON" in result.output
    assert "bad2.json: no valid JSON" in result.output


def test_validate_prints_a_name_that_is_not_utf_8(tmp_path):
    path = tmp_path / os.fsdecode(b"odd\xff.json")
    path.write_text(json.dumps(tiny()))
    done = shell("validate", path, cwd=tmp_path, PYTHONIOENCODING="utf-8:strict")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("odd\ufffd.json: valid\n")


def test_schema_command():
    assert json.loads(nlt_("schema").output) == json_schema()


def test_doctor_says_what_is_usable(tmp_path, store_uri):
    result = nlt_("doctor", "--device", "cpu", "--data-root", tmp_path, "--tracking-uri", store_uri)
    assert result.exit_code == 0
    for word in ("torch ", "device ", "precision auto ", "digits", "cifar10", "store ", "writable"):
        assert word in result.output
    assert nlt_("doctor", "--device", "cpu", "--data-root", "a" * 300, "--tracking-uri", store_uri).exit_code == 0
    broken = nlt_("doctor", "--device", "cpu", "--tracking-uri", "sqlite:////dev/null/x.db")
    assert broken.exit_code == 2
    assert "cannot be written" in broken.output
    assert "torch" in broken.output  # the rest is still told


# ---- the UI ----


@pytest.mark.slow
def test_ui_serves_the_store_on_loopback_and_prints_the_comparison_link(store_uri, tmp_path, spec_file):
    result = nlt.launch(nlt.load(spec_file), options=Options(tracking_uri=store_uri, device="cpu"))
    port = 5917
    command = [
        sys.executable,
        "-c",
        "from nlt.cli import main; main()",
        "ui",
        "--port",
        str(port),
        "--tracking-uri",
        store_uri,
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == f"digits: {link(f'http://127.0.0.1:{port}', result.experiment_id)}\n"
            # The link is told when it can be opened.
            assert urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60).read() == b"OK"
            taken = nlt_("ui", "--port", port, "--tracking-uri", store_uri)
            assert taken.exit_code == 2
            assert f"--port {port} is in use" in taken.output
        finally:
            process.terminate()
        process.wait(timeout=30)
    deadline = time.monotonic() + 30
    while answers(port) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not answers(port), "a process of MLflow's is left behind"


def test_ui_tells_no_links_to_a_port_that_another_process_has(store_uri):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = nlt_("ui", "--port", port, "--tracking-uri", store_uri)
    assert result.exit_code == 2
    assert f"--port {port} is in use: choose another" in result.output and "http" not in result.output


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_an_interrupt_with_nothing_to_tell_of_ends_with_130(monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nlt.reading.load_all", interrupt)
    result = nlt_("validate", "experiments/o2u_20.json")
    assert (result.exit_code, result.output) == (130, "Error: interrupted\n")
