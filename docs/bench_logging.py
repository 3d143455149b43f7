"""What tracking costs: seconds to log one epoch of CIFAR-4 against seconds to train it, measured in one run.

    python docs/bench_logging.py [--device cpu|cuda]

Logs to a fresh SQLite store in a temporary folder: all metrics of a detection epoch and the histogram of 20,000 losses.
The epoch is CNN9 at width 1, batch 128, on random images; on a CPU a few batches are timed and scaled up.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from nlt.data import Dataset, Samples
from nlt.losses import CE
from nlt.run import Epoch, Split
from nlt.spec import check
from nlt.tracking import Facts, Tracker, open_store, start_run
from nlt.train import Batches, Learner, find_device, find_precision, train_epoch

N, BATCH = 20_000, 128


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
    rows = torch.arange(timed, device=device)

    def epoch_seconds() -> float:
        began = time.perf_counter()
        train_epoch(net, Batches(split.images_NHWC, split.labels_N, rows, BATCH), CE())
        return (time.perf_counter() - began) * N / timed

    names = "train/loss train/accuracy test/accuracy optim/lr time/epoch_seconds time/images_per_second"
    names += " noise/precision noise/recall noise/remaining noise/auc"
    metrics = dict.fromkeys(names.split(), 0.5)
    losses_N = torch.rand(N, generator=generator) * 5
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{Path(folder) / 'mlflow.db'}")
        T_KK = torch.eye(4, dtype=torch.float64)
        facts = Facts(0, device, precision, dataset, train, T_KK, T_KK)
        tracker = Tracker(store, start_run(store, spec, facts, "bench", {}), facts)
        epoch_seconds(), tracker.log_epoch(Epoch(1, 99, "training", 1, metrics, losses_N, None, None))  # warm up
        training, logging = [], []
        for step in range(2, 7):  # interleaved, so that a noisy neighbour meets both
            training.append(epoch_seconds())
            began = time.perf_counter()
            tracker.log_epoch(Epoch(step, 99, "training", step, metrics, losses_N, None, None))
            logging.append(time.perf_counter() - began)
    one, other = statistics.median(training), statistics.median(logging)
    print(f"device {device} {precision}, torch {torch.__version__}")
    print(f"train one epoch: {one:.2f} s (median of {len(training)}, {min(training):.2f} to {max(training):.2f})")
    print(f"log one epoch:   {1000 * other:.0f} ms ({1000 * min(logging):.0f} to {1000 * max(logging):.0f})")
    print(f"share: {other / one:.4%}")


if __name__ == "__main__":
    main()
