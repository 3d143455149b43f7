"""What record keeping costs: seconds for the journal, a checkpoint and the delivery of one epoch of CIFAR-4 against
seconds to train it, measured in one run.

    python docs/bench_logging.py [--device cpu|cuda]

A fresh SQLite store in a temporary folder, all metrics of a detection epoch, and the losses, mask and histogram of
20,000 samples. The epoch is CNN9 at width 1, batch 128, on random images; on a CPU one batch is timed and scaled up.
Training waits for the journal and for a copy of the state; the checkpoint is written and MLflow is served beside it,
and these two are timed by themselves.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from nlt.checkpoint import Writer
from nlt.data import Dataset, Samples
from nlt.hardware import find_device, find_precision
from nlt.losses import CE
from nlt.reading import check
from nlt.run import EpochRecord, Prepared, Split
from nlt.tracking import RunFolder, open_store, start_run
from nlt.tracking.delivery import deliver
from nlt.tracking.tracker import Tracker
from nlt.train import Epoch, Learner, train_epoch

N, BATCH, ROUNDS = 20_000, 128, 5


class _NoCourier:
    """Stands for the thread, whose work is timed by itself here."""

    def wake(self) -> None: ...


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    device = find_device(parser.parse_args().device)
    spec = check({"name": "bench", "about": "b", "data": {"name": "cifar4"}, "method": {"name": "standard"}}, "bench")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 3, 32, 32), generator=generator, dtype=torch.uint8)
    clean = torch.randint(0, 4, (N,), generator=generator)
    train = Samples(images, torch.arange(N), (clean + (torch.rand(N, generator=generator) < 0.2)) % 4, clean)
    dataset = Dataset("cifar4", ("cat", "dog", "horse", "deer"), train, train, "0" * 16)
    precision = find_precision("auto", device)

    net = Learner(spec.model.build(3, 32, 32, 4), spec.optimizer, device, precision)
    net.set_lr(0.01)
    split = Split(train, device)
    timed = N if device.type == "cuda" else BATCH
    images_NHWC, labels_N = split.images_NHWC[:timed], split.labels_N[:timed]
    names = "train/loss train/accuracy test/accuracy optim/lr time/epoch_seconds time/images_per_second"
    names += " noise/precision noise/recall noise/remaining noise/auc"
    metrics = dict.fromkeys(names.split(), 0.5)
    losses_N = torch.rand(N, generator=generator) * 5
    T_KK = torch.eye(4, dtype=torch.float64)

    def timed_call(call: object, *args: object) -> float:
        began = time.perf_counter()
        call(*args)  # type: ignore[operator]
        return time.perf_counter() - began

    seconds: dict[str, list[float]] = {name: [] for name in ("train", "journal", "copy", "write", "deliver")}
    with tempfile.TemporaryDirectory() as name:
        store = open_store(f"sqlite:///{Path(name) / 'mlflow.db'}")
        launched = {"seed": 0, "data_root": "", "log_model": False, "same": {}, "alike": {}}
        prepared = Prepared(
            seed=0, device=device, precision=precision, compiled=False, dataset=dataset,
            train=train, val=None, test=train, T_KK=T_KK, empirical_T_KK=T_KK, model=spec.model,
            optimizer=spec.optimizer, augmentation=None, evaluate="after", steps=99,
        )  # fmt: skip
        folder: RunFolder = start_run(store, spec, prepared, "bench", launched)
        tracker, writer = Tracker(store, folder, prepared), Writer(folder.path)
        tracker._courier.drain()
        tracker._courier.stop()
        tracker._courier = _NoCourier()  # type: ignore[assignment]
        for step in range(
            1, ROUNDS + 2
        ):  # interleaved, so that a noisy neighbour meets all; the first is for warming up
            epoch = EpochRecord(step, 99, "cyclical", step, metrics, losses_N, losses_N < 4, losses_N)
            part = Epoch(images_NHWC, labels_N, BATCH, generator)
            taken = {
                "train": timed_call(train_epoch, net, part, CE()) * N / timed,
                "journal": timed_call(tracker.log_epoch, epoch),
                "copy": timed_call(writer.save, step, {"net": net.state(), "start": net.state()}),
                "write": timed_call(writer.wait),
                "deliver": timed_call(deliver, store.client, folder),
            }
            for what, value in taken.items():
                if step > 1:
                    seconds[what].append(value)
        folder.close()
    median = {what: statistics.median(values) for what, values in seconds.items()}
    print(f"device {device} {precision}, torch {torch.__version__}, medians of {ROUNDS} rounds")
    for what, values in seconds.items():
        spread = f"{1000 * min(values):,.0f} to {1000 * max(values):,.0f}"
        print(
            f"{what:<11} {1000 * median[what]:>9,.0f} ms ({spread}), {median[what] / median['train']:.2%} of the epoch"
        )


if __name__ == "__main__":
    main()
