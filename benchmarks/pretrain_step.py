#!/usr/bin/env python3
"""Time and memory of one pretraining step: end to end, GIM, LoCo as usually written, and LoCo as here.

    python benchmarks/pretrain_step.py [--encoder resnet50] [--batch 32] [--size 96] [--steps 5] [--rounds 3]

Every figure comes from a process of its own; the rules take turns, round after round, because the machine may be
shared, and the table shows medians and ratios to the first row. Memory is the peak of the process above what it held
before its first step (parameters and imports), which on the CPU is activations, gradients and workspace. All rows have
the same decoder: one residual conv block with downsampling, pooling, two-layer MLP.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LOCO = [["res2", "res3"], ["res3", "res4"], ["res4", "res5"]]
ROWS = {
    "end to end": [["res2", "res3", "res4", "res5"]],
    "GIM": [["res2"], ["res3"], ["res4"], ["res5"]],
    "LoCo, double forward": LOCO,
    "LoCo": LOCO,
}


def naive_step(learner, views):
    """LoCo as it is usually written: shared stages run forward twice, one backward pass over the sum of losses."""
    stages = dict(zip(learner.encoder.stage_names, learner.encoder.stages, strict=True))
    x, total = views, 0
    for unit in LOCO:
        h = x.detach()
        for i, name in enumerate(unit):
            h = stages[name](h)
            if i == 0:
                x = h  # the next unit's input
        total = total + learner.loss(*learner.decoders[unit[-1]](h).chunk(2))
    total.backward()


def measure(row, args):
    """Median seconds a step, and peak bytes above the idle process, of one row."""
    import torch

    from pretrain.config import get_cfg
    from pretrain.trainer import build_learner

    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    cfg = get_cfg()
    cfg.MODEL.ENCODER, cfg.MODEL.UNITS, cfg.MODEL.DEVICE = args.encoder, ROWS[row], "cpu"
    learner = build_learner(cfg)
    views = torch.randn(2 * args.batch, 3, args.size, args.size).contiguous(memory_format=torch.channels_last)
    step = (lambda v: naive_step(learner, v)) if "double" in row else learner.forward_backward
    idle = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    seconds = []
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        step(views)
        seconds.append(time.perf_counter() - start)
        learner.zero_grad()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": statistics.median(seconds[1:]), "bytes": peak - idle}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--batch", type=int, default=32, help="images, two views each (%(default)s)")
    parser.add_argument("--size", type=int, default=96, help="pixels (%(default)s)")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(args.row, args)))
        return
    found = {row: [] for row in ROWS}
    for number in range(args.rounds):
        for row in ROWS:
            print(f"round {number + 1}/{args.rounds}: {row}", file=sys.stderr)
            done = subprocess.run([sys.executable, *sys.argv, "--row", row], capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            found[row].append(json.loads(done.stdout))
    median = {row: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for row, runs in found.items()}
    base = median["end to end"]
    print(f"{args.encoder}, {args.batch} images of {args.size} px, median of {args.rounds} x {args.steps} steps; "
          "decoder of every row: 1 conv block, downsampling, MLP 2048-128\n")  # fmt: skip
    print("| rule | s/step | time ratio | memory, GB | memory saving |\n| --- | ---: | ---: | ---: | ---: |")
    for row, m in median.items():
        print(f"| {row} | {m['seconds']:.2f} | {m['seconds'] / base['seconds']:.2f} | {m['bytes'] / 1e9:.2f} "
              f"| {base['bytes'] / m['bytes']:.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
