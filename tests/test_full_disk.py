"""A disk that fills up: the run stops with one sentence, the last checkpoint is whole, and it goes on once there is room."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from crashing import contents, spec_file
from recorded import differences
from reliability import tell


@pytest.fixture
def small_disk(tmp_path, template_store):
    """A folder whose mlruns/ is a file system of 8 MiB, or None where mounting is not allowed."""
    mounted = tmp_path / "mlruns"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mounted)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system takes root; test_a_file_that_may_not_grow stands in")
    shutil.copytree(template_store, mounted, dirs_exist_ok=True)
    yield tmp_path
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def leave(place: Path, room: int) -> Path:
    """Fill the small disk but for `room` bytes; return the file to remove."""
    ballast = place / "mlruns" / "ballast"
    free = shutil.disk_usage(place / "mlruns").free
    ballast.write_bytes(b"\1" * max(0, free - room))
    return ballast


def fails_and_goes_on(
    killer: Any, place: Path, ballast: Path, launch: tuple[int, str], expected: dict[str, Any]
) -> str:
    """Check how the launch on the full disk ended, make room, go on, compare; return what it said."""
    code, text = launch
    assert "Traceback" not in text, text
    ballast.unlink()
    said = " ".join(text.split())
    if code == 2:  # no room for as much as a beginning
        assert "cannot be written" in said or "does not take a new run" in said
        assert not any((place / "mlruns" / "runs").glob("*/run.json"))
        code, text = killer("launch", spec_file(place, "o2u"), "--device", "cpu", cwd=place)
        assert code == 0, text
    else:
        if code == 1:
            assert re.search(r"the disk is full \(.*\): make room, then `nlt resume` goes on", said), text
        else:
            assert code == 0, text  # all journaled before it was full, but not all delivered
            assert "`nlt sync` delivers them" in said
        code, text = killer("resume", cwd=place)
        assert code == 0, text
    assert differences(expected, contents(place)) == []
    return said


# An O2U run of the tests leaves about 1.5 MiB in journal, checkpoints and database.
@pytest.mark.slow
@pytest.mark.parametrize("room", [20_000, 60_000, 240_000, 400_000, 540_000, 900_000])
def test_a_full_disk(killer, peaceful, small_disk, room):
    expected = peaceful("o2u")
    ballast = leave(small_disk, room)
    launch = killer("launch", spec_file(small_disk, "o2u"), "--device", "cpu", cwd=small_disk)
    said = fails_and_goes_on(killer, small_disk, ballast, launch, expected)
    kind = re.search(r"disk is full|sync|cannot be written|does not take", said)
    tell(what="full disk", room=room, ended=kind[0] if kind else "no room needed", differences=0)


@pytest.mark.slow
def test_a_file_that_may_not_grow(killer, peaceful, tmp_path, template_store):
    """The same without a mount: the system refuses to let any file of the run grow beyond 80 kB."""
    shutil.copytree(template_store, tmp_path / "mlruns")
    expected = peaceful("o2u")
    code, text = killer(
        "launch", spec_file(tmp_path, "o2u"), "--device", "cpu", cwd=tmp_path, die={"file_size": 80_000}
    )
    assert code == 1, text
    assert "Traceback" not in text
    assert "the disk is full" in text
    code, text = killer("resume", cwd=tmp_path)
    assert code == 0, text
    assert differences(expected, contents(tmp_path)) == []
