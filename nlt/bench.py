"""What `nlt bench` measures: whole epochs of nlt beside the bare arithmetic of the network and a conventional loop.

All in one process and in turns, each epoch of nlt right after the bound it is held against, so that a noisy neighbour
meets both. Random images of CIFAR's size, since what they show costs no time.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from nlt.augment import Augmentation, CropFlipCutout
from nlt.checkpoint import Writer
from nlt.data import Dataset as NltDataset
from nlt.data import Samples
from nlt.detect import smallest
from nlt.hardware import find_device, find_precision, hold_memory
from nlt.losses import APL, CE, NCE, RCE
from nlt.models import CNN9
from nlt.optim import SGD, Cyclical
from nlt.reading import check
from nlt.run import Prepared, Run
from nlt.tracking import Tracker, open_store, start_run
from nlt.train import EVALUATION_BATCH, Learner, Stage, evaluate, to_float, train_epoch

K, SIDE, LR = 4, 32, 0.01
FORGET_RATE = 0.2


@dataclass(frozen=True)
class Kind:
    """A kind of stage whose epochs are measured."""

    name: str
    stage: Stage
    detects: bool = False
    augmentation: Augmentation | None = None


KINDS = (
    Kind("epoch", Stage(epochs=1)),
    Kind("epoch, robust loss", Stage(epochs=1, loss=APL(active=NCE(), passive=RCE()))),
    Kind("epoch, augmented", Stage(epochs=1), augmentation=CropFlipCutout(cutout=16)),
    Kind("epoch, cyclical with detection", Stage(epochs=1, batch_size=16, schedule=Cyclical()), detects=True),
)


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    widths: tuple[float, ...]
    """Widths of cnn9."""
    images: int
    """Images in an epoch of nlt; a fifth as many are evaluated after it, as in CIFAR-4, a quarter make the bound."""
    sampled: int
    """Images of the conventional loop in each round."""
    rounds: int
    matrix: int
    """Rows of the square matrices whose product is the device's rate."""
    compiled: bool = False
    """Whether nlt and the bound compile the network."""


@dataclass
class Bench:
    """Measurements, one number per round."""

    about: dict[str, Any]
    """Device, precision, versions, sizes."""
    rates: dict[tuple[float, str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    """(width, what, batch size) -> images per second."""
    shares: dict[tuple[float, str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    """(width, what, batch size) -> share of the compute bound that was measured just before."""
    flops: dict[float, int] = field(default_factory=dict)
    """Width -> floating-point operations of a training step, per image."""
    matrix_rate: dict[float, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Width -> floating-point operations per second of a large matrix product, measured before each of its rounds."""

    def rows(self) -> list[dict[str, Any]]:
        """Return JSON-ready rows: medians, and (lowest, highest) in `spread`."""
        rows = []
        for (width, what, batch), rates in self.rates.items():
            shares = self.shares.get((width, what, batch))
            conventional = self.rates.get((width, "conventional loop", batch))  # there is none that evaluates
            row = {
                "width": width,
                "what": what,
                "batch": batch,
                "images_per_second": statistics.median(rates),
                "spread": (min(rates), max(rates)),
                "of_bound": statistics.median(shares) if shares else None,
                "of_bound_spread": (min(shares), max(shares)) if shares else None,
                "times_conventional": _ratio(rates, conventional) if conventional else None,
                "of_matrix_rate": self.flops[width] * _ratio(rates, self.matrix_rate[width]) if conventional else None,
            }
            rows.append(row)
        return rows

    def _matrix_rates(self) -> list[float]:
        return [rate for rates in self.matrix_rate.values() for rate in rates]

    def json(self) -> dict[str, Any]:
        """Return settings, measurements and rows, JSON-ready."""
        rates = self._matrix_rates()
        matrix = {"median": statistics.median(rates), "spread": (min(rates), max(rates))}
        return self.about | {"matrix_flops_per_second": matrix, "flops_per_image": self.flops, "rows": self.rows()}

    def table(self) -> Table:
        """Return the rows as a table for the terminal."""
        result = Table(title="cnn9, images per second", title_justify="left", caption_justify="left")
        result.caption = (
            f"medians of {self.about['rounds']} rounds (lowest - highest); {self.about['device_name']}, "
            f"{self.about['precision']}, torch {self.about['torch']}; matrix product {_tera(self._matrix_rates())}"
        )
        for name in ("width", "what", "batch"):
            result.add_column(name)
        for name in ("images/s", "of the bound", "x conventional", "of the matrix rate"):
            result.add_column(name, justify="right")
        for row in self.rows():
            low, high = row["spread"]
            bottom, top = row["of_bound_spread"] or (0, 0)
            result.add_row(
                f"{row['width']:g}",
                row["what"],
                str(row["batch"]),
                f"{row['images_per_second']:,.0f} ({low:,.0f} - {high:,.0f})",
                "" if row["of_bound"] is None else f"{row['of_bound']:.3f} ({bottom:.3f} - {top:.3f})",
                "" if row["times_conventional"] is None else f"{row['times_conventional']:.2f}",
                "" if row["of_matrix_rate"] is None else f"{row['of_matrix_rate']:.1%}",
            )  # fmt: skip
        return result


def bench(device: str, size: Size, told: Callable[[str], None] = lambda sentence: None) -> Bench:
    """Measure on `device` (`auto`, `cpu`, `cuda`, `cuda:i`); `told` gets a sentence after each round.

    Raises:
        BadInput: the device is not there.
    """
    hold_memory()
    on = find_device(device)
    named = torch.cuda.get_device_name(on) if on.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    precision = find_precision("auto", on)
    about = {"device": str(on), "device_name": named, "precision": precision, "torch": torch.__version__}
    result = Bench(about | {"compiled": size.compiled, "images": size.images, "rounds": size.rounds})
    for width in size.widths:
        with tempfile.TemporaryDirectory() as folder:
            for n, _ in enumerate(_rounds(width, on, size, result, Path(folder)), start=1):
                told(f"width {width:g}: round {n} of {size.rounds}")
    return result


def _rounds(width: float, device: torch.device, size: Size, result: Bench, folder: Path) -> Iterator[None]:
    """Measure one width, a round for each `next`."""
    spec = check(
        {"name": "bench", "about": "bench", "data": {"name": "cifar4"}, "model": {"name": "cnn9", "width": width},
         "method": {"name": "standard"}}, "bench",
    )  # fmt: skip
    train, test = _samples(size.images), _samples(max(1, size.images // 5))
    T_KK = torch.eye(K, dtype=torch.float64)
    prepared = Prepared(
        seed=0, device=device, precision=result.about["precision"], compiled=size.compiled,
        dataset=NltDataset("cifar4", tuple("abcd"), train, test, "0" * 16), train=train, val=None, test=test,
        T_KK=T_KK, empirical_T_KK=T_KK, model=spec.model, optimizer=SGD(), augmentation=None, evaluate="after", steps=0,
    )  # fmt: skip
    precision = prepared.precision
    store = open_store(f"sqlite:///{folder / 'mlflow.db'}")
    launched = {"seed": 0, "data_root": "", "log_model": False, "same": {}, "alike": {}}
    run_folder = start_run(store, spec, prepared, "bench", launched)
    tracker, writer = Tracker(store, run_folder, prepared), Writer(run_folder.path)
    run = Run(prepared, tracker.log_epoch, lambda step, state: writer.save(step, state()))
    net, scores_N = run.learner("net"), run.buffer("scores_N", torch.zeros(run.N))
    run.learner("start")  # as O2U has it: a checkpoint holds two networks
    bound = Learner(CNN9(width=width).build(3, SIDE, SIDE, K), SGD(), device, precision, size.compiled)
    bound.set_lr(LR)
    result.flops[width] = _flops(Learner(CNN9(width=width).build(3, SIDE, SIDE, K), SGD(), device, precision))
    B = EVALUATION_BATCH[device.type]
    images_NHWC, labels_N = test.images_NCHW.permute(0, 2, 3, 1).contiguous().to(device), test.labels_N.to(device)
    with writer:
        for n in range(size.rounds):
            result.matrix_rate[width].append(_matrix_rate(size.matrix, device, precision))
            for kind in KINDS:
                batch = kind.stage.batch_size
                bound_s = _bound(bound, batch, size.images // 4)
                result.rates[width, "compute bound", batch].append(1 / bound_s)
                seconds = 0.0
                # Twice, of which the second counts: beside it is written what the first left to be written.
                for again in (1, 2):
                    run.augmentation = kind.augmentation
                    for epoch in run.epochs(f"{kind.name} {n} {again}", kind.stage, net):
                        began = _now(device)
                        losses_N = train_epoch(net, epoch, kind.stage.loss)
                        if kind.detects:
                            scores_N += losses_N - losses_N.mean()
                            epoch.report(scores_N=scores_N, keep_N=smallest(scores_N, FORGET_RATE))
                    seconds = _now(device) - began
                evaluation_s = _timed(device, partial(evaluate, [net], images_NHWC, labels_N))
                _note(result, (width, kind.name, batch), size.images / (seconds - evaluation_s), bound_s)
            _note(result, (width, "evaluation", B), len(test) / evaluation_s, _forward_bound(bound, B))
            for batch in sorted({kind.stage.batch_size for kind in KINDS}):
                rate = _conventional(width, batch, size.sampled, device)
                result.rates[width, "conventional loop", batch].append(rate)
            yield
    tracker.close()


def _note(result: Bench, key: tuple[float, str, int], rate: float, bound_s: float) -> None:
    result.rates[key].append(rate)
    result.shares[key].append(rate * bound_s)


def _samples(N: int) -> Samples:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    clean = torch.randint(0, K, (N,), generator=generator)
    wrong = torch.rand(N, generator=generator) < FORGET_RATE
    return Samples(images, torch.arange(N), (clean + wrong) % K, clean)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _timed(device: torch.device, call: Callable[[], object]) -> float:
    began = _now(device)
    call()
    return _now(device) - began


def resident(net: Learner, B: int) -> tuple[Tensor, Tensor]:
    """Return a random batch (images_BCHW, labels_B) on the network's device, as training makes it."""
    samples, device = _samples(B), net.device
    return to_float(samples.images_NCHW.permute(0, 2, 3, 1).contiguous().to(device)), samples.labels_N.to(device)


def step(net: Learner, images_BCHW: Tensor, labels_B: Tensor) -> None:
    """Take one optimizer step: forward, backward, update."""
    net.batch_size = len(images_BCHW)
    net.step(CE()(net(images_BCHW), labels_B).mean())


def _bound(net: Learner, B: int, images: int) -> float:
    """Return seconds per image of forward, backward and optimizer step, on one batch that is on the device already."""
    net.network.train()
    batch, device, steps = resident(net, B), net.device, max(1, images // B)
    step(net, *batch)  # warms up, while what nlt left to its threads is finished
    began = _now(device)
    for _ in range(steps):
        step(net, *batch)
    return (_now(device) - began) / (B * steps)


def _forward_bound(net: Learner, B: int) -> float:
    """Return seconds per image of an evaluation's arithmetic."""
    net.network.eval()
    images_BCHW, _ = resident(net, B)
    with torch.no_grad():
        net(images_BCHW)
        return _timed(net.device, lambda: [net(images_BCHW) for _ in range(4)]) / (4 * B)


def _flops(net: Learner) -> int:
    """Return the counted floating-point operations of a training step per image: convolutions and matrix products."""
    batch = resident(net, 2)
    net.network.train()
    with FlopCounterMode(display=False) as counter:
        step(net, *batch)
    return int(counter.get_total_flops()) // 2


def _matrix_rate(n: int, device: torch.device, precision: str) -> float:
    """Return floating-point operations per second of an n x n matrix product."""
    a = torch.rand(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    a @ a
    return 2 * n**3 / min(_timed(device, lambda: a @ a) for _ in range(5))


class _Pictures(Dataset[tuple[Tensor, int, int]]):
    """What a torchvision data set gives the published code: one PIL image after another, through ToTensor."""

    def __init__(self, N: int) -> None:
        from torchvision.transforms import ToTensor  # type: ignore[import-untyped]

        samples = _samples(N)
        self._pixels = samples.images_NCHW.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels, self._to_tensor = samples.labels_N.tolist(), ToTensor()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int, int]:
        return self._to_tensor(Image.fromarray(self._pixels[row])), self._labels[row], row


def _conventional(width: float, B: int, images: int, device: torch.device) -> float:
    """Return images per second of a loop of the shape of the published code, without the start of its workers.

    DataLoader with two workers, fp32, default memory format, per-sample losses copied one by one; no evaluation.
    """
    images = max(images // B, 1) * B
    loader = DataLoader(_Pictures(images + B), batch_size=B, shuffle=True, num_workers=2, drop_last=True)
    network = CNN9(width=width).build(3, SIDE, SIDE, K).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4)
    losses_N = torch.zeros(images + B)
    network.train()
    began, seen = 0.0, -B  # the first batch does not count: it waits for the workers
    for images_BCHW, labels_B, rows_B in loader:
        losses_B = F.cross_entropy(network(images_BCHW.to(device)), labels_B.to(device), reduction="none")
        optimizer.zero_grad()
        losses_B.mean().backward()
        optimizer.step()
        for row, loss in zip(rows_B, losses_B, strict=True):
            losses_N[row] = loss.detach().cpu().item()
        seen += B
        began = began or _now(device)
    return seen / (_now(device) - began)


def _ratio(rates: list[float], others: list[float]) -> float:
    """Return the median of rate / other: `rates` may hold several a round, in order, where `others` holds one."""
    per_round = len(rates) // len(others)
    return statistics.median(rate / others[i // per_round] for i, rate in enumerate(rates))


def _tera(rates: list[float]) -> str:
    return f"{statistics.median(rates) / 1e12:,.2f} TFLOP/s ({min(rates) / 1e12:,.2f} - {max(rates) / 1e12:,.2f})"
