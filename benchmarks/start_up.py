#!/usr/bin/env python3
"""Seconds until a command answers: --help, a whole conversion of a ResNet-50, the first iteration of a detector.

    python benchmarks/start_up.py [--rounds 5]

Every figure is of a process of its own, from its start to its end; training is ended when its first iteration begins.
The rows take turns; the table shows medians.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

SMOKE = {"rounds": 1, "encoder": "resnet18"}
TORCH = "import torch, torchvision (nothing of ours)"


def add_arguments(parser):
    parser.add_argument("--encoder", default="resnet50", help="of torchvision, which is converted")
    parser.add_argument("--rounds", type=int, default=5)


def measure(args):
    import torch
    import torchvision

    with tempfile.TemporaryDirectory() as folder:
        weights, data = Path(folder, "weights.pth"), Path(folder, "data")
        torch.save(getattr(torchvision.models, args.encoder)().state_dict(), weights)
        scenes = "--unlabeled 8 --train 8 --val 4 --size 128 160 --layouts coco".split()
        seconds_of(["tools/make_demo_data.py", data, *scenes])
        custom = []
        for split, images in (("TRAIN", "train"), ("TEST", "val")):
            custom += [f"DATASETS.CUSTOM.{split}_JSON", data / f"coco/annotations/instances_{images}.json"]
            custom += [f"DATASETS.CUSTOM.{split}_IMAGES", data / "coco" / images]
        output, run = Path(folder, "backbone.pkl"), Path(folder, "run")
        train = ["tools/train_net.py", "--config-file", "configs/demo_coco_loco_frozen.yaml", *custom]
        train += ["MODEL.WEIGHTS", "random", "OUTPUT_DIR"]
        rows = {
            "train_net.py --help": lambda number: seconds_of(["tools/train_net.py", "--help"]),
            "convert_to_d2.py --help": lambda number: seconds_of(["tools/convert_to_d2.py", "--help"]),
            TORCH: lambda number: seconds_of(["-W", "ignore", "-c", TORCH.partition(" (")[0]]),
            "convert_to_d2.py, with the proof": lambda number: seconds_of(
                ["tools/convert_to_d2.py", weights, output.with_stem(f"backbone{number}")]
            ),
            "train_net.py, to its first iteration": lambda number: seconds_of(
                [*train, f"{run}{number}"], "Starting training from iteration 0"
            ),
        }
        found = {name: [] for name in rows}
        for number in range(args.rounds):
            for name, row in rows.items():
                common.progress(f"round {number + 1}/{args.rounds}: {name}")
                found[name].append(row(number))
    return found


def seconds_of(command, until=None):
    """Seconds that Python takes for a command, or until it prints a text."""
    start = time.perf_counter()
    command = [sys.executable, *map(str, command)]
    child = subprocess.Popen(command, cwd=common.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in child.stdout:
        lines.append(line)
        if until and until in line:
            seconds = time.perf_counter() - start
            child.kill()
            child.communicate()
            return seconds
    if child.wait() or until:
        sys.exit("".join(lines[-20:]))
    return time.perf_counter() - start


def markdown(record):
    rows = [[name, f"{statistics.median(seconds):.2f}"] for name, seconds in record["results"].items()]
    settings = record["settings"]
    text = f"{settings['encoder']} is converted, the demo's detector trained; medians of {settings['rounds']} rounds."
    return f"{text}\n\n" + common.table(["command", ">s"], rows)


if __name__ == "__main__":
    common.main(sys.modules[__name__])
