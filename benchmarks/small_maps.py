#!/usr/bin/env python3
"""Weight gradients of 3x3 convs on small maps: torch's (oneDNN) against one matrix product.

The product is that of pretrain/learning/small_maps.py.

The layers are those of ResNet-18 and of a thin one at the ends of their stages. Each figure is a median of rounds that
alternate, on one thread.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F

from benchmarks import common
from pretrain.learning.small_maps import weight_gradient

SMOKE = {"images": 2, "rounds": 1}
LAYERS = [(channels, side) for channels in (128, 256, 512) for side in (2, 3, 4, 6)]


def of_torch(x, weight, gradient):
    # the second of the three gradients: input, weight, bias
    arguments = ([0], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False])
    return torch.ops.aten.convolution_backward(gradient, x, weight, *arguments)[1]


def of_one_product(x, weight, gradient):
    return weight_gradient(x, weight, gradient, 1, 1)


def add_arguments(parser):
    parser.add_argument("--images", type=int, default=512, help="maps in a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")


def measure(args):
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for channels, side in LAYERS:
            x = torch.randn(args.images, channels, side, side).to(dtype, memory_format=torch.channels_last)
            weight = torch.randn(channels, channels, 3, 3).div(50).to(dtype)
            gradient = torch.randn_like(x)
            ways = {
                "forward": lambda x, weight, _: F.conv2d(x, weight, padding=1),
                "torch": of_torch,
                "one product": of_one_product,
            }
            times = {name: [] for name in ways}
            for _ in range(args.rounds + 1):
                for name, function in ways.items():
                    start = time.perf_counter()
                    function(x, weight, gradient)
                    times[name].append(1000 * (time.perf_counter() - start))
            medians = {name: statistics.median(values[1:]) for name, values in times.items()}
            found.append({"channels": channels, "side": side, "dtype": str(dtype)[6:], "ms": medians})
            common.progress(f"{found[-1]}")
    return found


def markdown(record):
    settings, rows = record["settings"], []
    for row in record["results"]:
        ms = row["ms"]
        cells = [f"{ms[name]:.1f}" for name in ("forward", "torch", "one product")]
        rows.append([str(row["channels"]), f"{row['side']} x {row['side']}", row["dtype"], *cells,
                     f"{ms['torch'] / ms['one product']:.2f}x"])  # fmt: skip
    heads = [">channels", ">pixels", "dtype", ">forward, ms", ">torch, ms", ">one product, ms", ">faster"]
    return (
        f"{settings['images']} maps, one thread; median of {settings['rounds']} rounds.\n\n{common.table(heads, rows)}"
    )


if __name__ == "__main__":
    common.main(sys.modules[__name__])
