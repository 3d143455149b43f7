"""Where a training step of CNN9 spends its time: torch.profiler over a few steps on a resident batch, by operator.

python docs/profile_step.py [--device cpu|cuda] [--width 1] [--batch 128]
"""

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from nlt.bench import LR, SIDE, K, resident, step
from nlt.hardware import find_device, find_precision
from nlt.models import CNN9
from nlt.optim import SGD
from nlt.train import Learner


def main() -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    network = CNN9(width=arguments.width).build(3, SIDE, SIDE, K)
    net = Learner(network, SGD(), device, find_precision("auto", device))
    net.set_lr(LR)
    batch = resident(net, arguments.batch)
    for _ in range(3):
        step(net, *batch)
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as seen:
        for _ in range(3):
            step(net, *batch)
        if gpu:
            torch.cuda.synchronize()
    by = "self_cuda_time_total" if gpu else "self_cpu_time_total"
    print(seen.key_averages().table(sort_by=by, row_limit=20, max_name_column_width=50))


if __name__ == "__main__":
    main()
