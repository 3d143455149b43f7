"""Features made on a Ray cluster: on a real one, beside those made here."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cleaning import write_images
from conftest import REPO
from servers import free_port

from nlt import features
from nlt.backbones import Lite0, Pixels
from nlt.data.labelled import Labelled, read_labelled
from nlt.features import extract
from nlt.settings import BadInput

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")

CLIENT_PORT = free_port()
BACKBONES = (Pixels(features=32), Lite0(image_size=32))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> "Iterator[ray.cluster_utils.Cluster]":
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", f"{REPO}:{REPO / 'tests'}")  # the nodes' workers inherit it
    head = {"num_cpus": 2, "include_dashboard": False, "ray_client_server_port": CLIENT_PORT}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


def photos(top: Path, N: int = 300) -> Labelled:
    write_images(top, [f"{'cat' if i % 2 else 'dog'}/{i:03}.jpg" for i in range(N)], side=40)
    return read_labelled(top)


def test_features_of_a_cluster_are_those_made_here(
    tmp_path: Path, cluster: "ray.cluster_utils.Cluster", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three parts of at most 128 images in batches of 64, to the last bit; kept, and of those the rest is made."""
    from nlt.sweep.extraction import features_on_ray

    monkeypatch.setattr(features, "PART", 128)
    data = photos(tmp_path / "photos")
    with features_on_ray(cluster.address, "auto") as (maker, device):
        assert device.type == "cpu"
        for backbone in BACKBONES:
            read = partial(data.read, size=backbone.side())
            here = extract(backbone, read, data.sums, None)
            told: list[int] = []
            cache = tmp_path / backbone.name
            there = extract(
                backbone, read, data.sums, cache, maker=maker, progress=lambda done, of, told=told: told.append(done)
            )
            np.testing.assert_array_equal(here, there)
            assert len(np.unique(there, axis=0)) == 300
            assert told[0] == 0 and told[-1] == 300 and len(told) == 4
            assert len(list(cache.iterdir())) == 3
            next(cache.iterdir()).unlink()
            np.testing.assert_array_equal(extract(backbone, read, data.sums, cache, maker=maker), here)
            assert len(list(cache.iterdir())) == 3
        read = partial(data.read, size=8)
        (tmp_path / "photos" / data.names[200]).write_bytes(b"another")
        with pytest.raises(BadInput, match=f"node .*: {data.names[200]}|node .*{data.names[200]} was changed"):
            extract(Pixels(), read, data.sums, None, maker=maker)


def detect(place: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nlt.cli", "detect", *args]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)


def test_nlt_detect_finds_the_same_on_ray(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 60)
    for out, more in (("here", ()), ("there", ("--ray", "local"))):
        done = detect(tmp_path, "photos", "--out", out, "--image-size", "32", "--data-root", f"data-{out}", *more)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    for name in ("labels.csv", "report.html", "worst.png"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    shutil.rmtree(tmp_path / "there")
    done = detect(tmp_path, "photos", "--out", "there", "--ray", "127.0.0.1:1", "--data-root", "new")
    assert done.returncode == 2
    assert done.stderr.count("Error: ") == 1
    assert "--ray '127.0.0.1:1': no Ray cluster can be reached there" in done.stderr
    assert not (tmp_path / "there").exists()
