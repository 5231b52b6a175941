#!/usr/bin/env python3
"""Time and memory of a conversion, beside the renaming that projects ship for it, which verifies nothing.

    python benchmarks/convert.py [--encoder resnet50] [--rounds 5]

The file is a torchvision-style state dict of random weights with its classifier, as torchvision publishes it
(ResNet-50: 102 MB). Every row is a process of its own; the rows take turns, and the table shows medians of the rounds.
"process" is the whole command with Python's start and the imports; "work" is what comes after the imports, by the clock
(writing waits for the disk) and of CPU time; memory is the largest resident size during the work above that of the idle
process, and its ratio to the size of the file.

"rename only" does what the scripts of MoCo, PixPro and PyContrast do: torch.load, new names, pickle.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

ROWS = ("rename only", "convert_to_d2", "convert_from_d2")


def rename_only(source, output):
    """torch.load, new names, pickle: no check of anything."""
    import pickle

    import torch

    yield
    weights = {}
    for name, tensor in torch.load(source, map_location="cpu", weights_only=True).items():
        new = name if "layer" in name else f"stem.{name}"
        new = re.sub(r"layer(\d)", lambda match: f"res{int(match[1]) + 1}", new)
        new = re.sub(r"bn(\d)", r"conv\1.norm", new)
        new = new.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        weights[new] = tensor.numpy()
    with open(output, "wb") as file:
        pickle.dump({"model": weights, "__author__": "benchmark", "matching_heuristics": True}, file)


def convert_to_d2(source, output):
    from loco_det.convert import convert

    yield
    convert(source, output)


def convert_from_d2(source, output):
    from loco_det.convert import convert_back

    yield
    convert_back(output, Path(output).with_suffix(".pth"))


def status(key):
    """A figure of this process's memory, in MB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith(key))


def child(row, source, output):
    """Run one row in this process; prints seconds, seconds of CPU time and MB."""
    steps = globals()[row.replace(" ", "_")](source, output)
    next(steps)
    idle = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # begin the high-water mark anew
    start, cpu = time.perf_counter(), time.process_time()
    next(steps, None)
    print(time.perf_counter() - start, time.process_time() - cpu, status("VmHWM") - idle)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet50", help="a ResNet of torchvision (default: resnet50)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    import torch
    import torchvision

    figures = {row: [] for row in ROWS}
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "in.pth", Path(folder) / "out.pkl"
        torch.save(getattr(torchvision.models, args.encoder)(weights=None).state_dict(), source)
        size = source.stat().st_size / 1e6
        for round_ in range(args.rounds + 1):  # the first one fills the caches of files
            for row in ROWS:
                command = [sys.executable, "-W", "ignore", __file__, "--child", row, str(source), str(output)]
                start = time.perf_counter()
                printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
                if round_:
                    figures[row].append((time.perf_counter() - start, *map(float, printed.split())))
    print(f"{args.encoder}, a file of {size:.0f} MB; {os.cpu_count()} cores; torch {torch.__version__}")
    print("| row | process, s | work, s | work, CPU s | memory, MB | memory / file |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for row, rounds in figures.items():
        process, work, cpu, memory = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"| {row} | {process:.2f} | {work:.2f} | {cpu:.2f} | {memory:.0f} | {memory / size:.2f}x |")


if __name__ == "__main__":
    main()
