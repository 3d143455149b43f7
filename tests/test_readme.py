"""README's commands are true: every one is run, the long ones in the slow suite."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

README = (REPO / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, flags=re.M | re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line and not line.startswith("#")]
LONG = [c for c in COMMANDS if c.startswith("nlt launch") and "quickstart" in c]
QUICK = [c for c in COMMANDS if re.match(r"nlt (validate|schema|doctor|resume|sync|bench|--help)", c)]
# What a test cannot run here, and why.
ELSEWHERE = {
    "make quickstart": "builds an environment; .ci/run calls it",
    "make test": "is what runs this",
    "make check": ".ci/run calls it",
    "nlt ui": "test_cli.py serves it",
    "nlt compare": "run after the quickstart below",
    "nlt detect photos/": "test_detect_command.py runs it on a folder of digits",
    "nlt apply photos.nlt": "test_detect_command.py",
    "git clone": "there is no address yet",
    "docker build": "no daemon here; docker/build_without_docker.sh builds the image",
    "docker run": "no daemon here; docker/build_without_docker.sh runs it",
}


def run(command: str, cwd: Path) -> subprocess.CompletedProcess:
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(cwd)}
    return subprocess.run(command, shell=True, cwd=cwd, env=env, capture_output=True, text=True, timeout=900)


@pytest.fixture
def checkout(tmp_path):
    for name in ("experiments", "nlt"):
        (tmp_path / name).symlink_to(REPO / name)
    return tmp_path


def test_every_command_is_run_somewhere():
    assert LONG
    assert QUICK
    full_scale = [c for c in COMMANDS if re.match(r"nlt launch experiments/\w+_(20|60)\.json", c)]
    for command in COMMANDS:
        known = command in LONG + QUICK + full_scale or any(command.startswith(c) for c in ELSEWHERE)
        assert known, f"README command that no test runs: {command}"
    for command in full_scale:  # hours on a CPU: here only that the file is valid
        assert (REPO / command.split()[2]).is_file()


@pytest.mark.parametrize("command", QUICK)
def test_quick_command(command, checkout):
    done = run(command, checkout)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_quickstart_wins_back_accuracy(checkout):
    """The promise at the top of README: O2U beats base by five points or more."""
    for command in LONG:
        done = run(command, checkout)
        assert done.returncode == 0, done.stderr
    cells = json.loads(run("nlt compare quickstart --format json", checkout).stdout)["cells"]
    accuracy = {cell["label"]: cell["metrics"]["test_accuracy_last"]["mean"] for cell in cells}
    assert accuracy["O2U, CE"] >= accuracy["Standard, CE"] + 0.05, accuracy


@pytest.mark.parametrize("target", re.findall(r"\]\(((?!https?:)[^)#]+)\)", README))
def test_links_lead_somewhere(target):
    assert (REPO / target).exists()


@pytest.mark.slow
def test_the_benchmark_of_record_keeping_runs(tmp_path):
    done = run(f"{sys.executable} {REPO / 'docs' / 'bench_logging.py'} --device cpu", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"journal +\d+ ms .*% of the epoch", done.stdout)
