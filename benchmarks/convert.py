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

import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

SMOKE = {"encoder": "resnet18", "rounds": 1}

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


def child(row, source, output):
    """Run one row in this process: seconds, seconds of CPU time and MB of its work."""
    steps = globals()[row.replace(" ", "_")](source, output)
    next(steps)
    idle = common.memory("VmRSS")
    common.forget_peak()
    start, cpu = time.perf_counter(), time.process_time()
    next(steps, None)
    return [time.perf_counter() - start, time.process_time() - cpu, common.memory("VmHWM") - idle]


def add_arguments(parser):
    parser.add_argument("--encoder", default="resnet50", help="a ResNet of torchvision (default: resnet50)")
    parser.add_argument("--rounds", type=int, default=5)


def measure(args):
    import torch
    import torchvision

    figures = {row: [] for row in ROWS}
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "in.pth", Path(folder) / "out.pkl"
        torch.save(getattr(torchvision.models, args.encoder)(weights=None).state_dict(), source)
        size = source.stat().st_size / 1e6
        for round_ in range(int(args.rounds == 1), args.rounds + 1):  # round 0 fills the caches of files
            for row in ROWS:
                common.progress(f"round {round_}/{args.rounds}: {row}")
                start = time.perf_counter()
                found = common.in_child(__file__, row, str(source), str(output))
                if round_:
                    figures[row].append([time.perf_counter() - start, *found])
    return {"mb": size, "rounds": figures}


def markdown(record):
    found, rows = record["results"], []
    for row, rounds in found["rounds"].items():
        process, work, cpu, memory = (statistics.median(column) for column in zip(*rounds, strict=True))
        rows.append(
            [row, f"{process:.2f}", f"{work:.2f}", f"{cpu:.2f}", f"{memory:.0f}", f"{memory / found['mb']:.2f}x"]
        )
    heads = ["row", ">process, s", ">work, s", ">work, CPU s", ">memory, MB", ">memory / file"]
    settings = record["settings"]
    return (
        f"{settings['encoder']}, a file of {found['mb']:.0f} MB; medians of {settings['rounds']} rounds, each a "
        f"process of its own.\n\n{common.table(heads, rows)}"
    )


if __name__ == "__main__":
    common.main(sys.modules[__name__])
