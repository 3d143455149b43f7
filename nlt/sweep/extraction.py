"""Features of images made on a Ray cluster, by Ray Data: each worker has the network and reads the images' files.

B images of a part, D features.
"""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nlt.backbones import AnyBackbone
from nlt.features import Maker, Read, encode_batches
from nlt.settings import BadInput
from nlt.sweep.cluster import connect  # sets, before Ray is imported, what it does by itself

Row = dict[str, Any]


@contextmanager
def features_on_ray(address: str, device: str) -> Iterator[tuple[Maker, torch.device]]:
    """Connect to a cluster; give what makes features there for `nlt.features.extract`, and the device it does it on.

    Whole parts are spread over the cluster's CPUs, a worker of one thread on each, or over its GPUs. Batches are those
    of one machine, so the features are equal to the last bit where workers have the same kind of processor, number of
    threads and versions; other versions are refused. Every node needs the images, and a file of weights, under the
    same absolute path.

    Args:
        address: as for `nlt.sweep.cluster.on_ray`.
        device: `auto`, `cpu` or `cuda`; `auto` is `cuda` if the cluster has GPUs.

    Raises:
        BadInput: there is no such cluster, or it has no GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise BadInput(f"--device {device} with --ray: the cluster says which GPU; use auto, cpu or cuda.")
    connect(address)
    import ray

    try:
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        if device == "cuda" and not gpus:
            raise BadInput("--device cuda with --ray: the cluster has no GPU; use --device cpu or auto.")
        on = torch.device("cuda" if gpus and device != "cpu" else "cpu")
        yield partial(_make, on, gpus if on.type == "cuda" else cpus), on
    finally:
        ray.shutdown()


def _make(
    device: torch.device, workers: int, backbone: AnyBackbone, read: Read, spans: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, NDArray[np.float16]]]:
    if not spans:
        return
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    on_gpu = device.type == "cuda"
    arguments = (backbone, device, _same_everywhere(backbone))
    rows = [{"first": first, "last": last} for first, last in spans]
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,  # type: ignore[arg-type]  # its types do not know fn_args
        fn_args=(ray.put(read),), fn_constructor_args=arguments, batch_size=1,
        concurrency=(1, min(max(1, workers), len(rows))), num_cpus=None if on_gpu else 1,
        num_gpus=1 if on_gpu else None,
    )  # fmt: skip
    for row in made.iter_rows():
        if row["error"]:
            raise BadInput(row["error"])
        yield row["first"], np.frombuffer(row["features"], np.float16).reshape(row["last"] - row["first"], -1)


class _Worker:
    """A network in a process of its own."""

    def __init__(self, backbone: AnyBackbone, device: torch.device, expected: dict[str, Any]) -> None:
        self._node, self._backbone, self._error = socket.gethostname(), backbone, ""
        self._read: Read | None = None
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # as many CPUs as Ray has given it
        try:
            found = _same_everywhere(backbone)
            if different := [key for key in expected if found.get(key) != expected[key]]:
                key = different[0]
                raise BadInput(f"its {key} is {found.get(key)}, the launching machine's {expected[key]}: align them.")
            self._encode = backbone.encoder(device)
        except BadInput as error:  # told with the first part: Ray would begin a worker again that cannot be made
            self._error = str(error)

    def __call__(self, batch: dict[str, NDArray[np.int64]], kept: Any) -> Row:
        """Make features of the one part in a batch; `kept` is where the cluster keeps what reads the images."""
        import ray

        if self._read is None:
            self._read = ray.get(kept)
        first, last = int(batch["first"][0]), int(batch["last"][0])
        features, error = b"", self._error
        try:
            if not error:
                pieces = encode_batches(self._encode, self._read, self._backbone.side(), [(first, last)])
                features = np.concatenate([piece_BD for _, piece_BD in pieces]).tobytes()
        except BadInput as problem:
            error = str(problem)
        error = error and f"node {self._node}: {error}"
        return {"first": [first], "last": [last], "features": [features], "error": [error]}


def _same_everywhere(backbone: AnyBackbone) -> dict[str, Any]:
    """What has to be equal on all machines; the processor does not."""
    return {key: value for key, value in backbone.identity().items() if key != "instruction set"}
