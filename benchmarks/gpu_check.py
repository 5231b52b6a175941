#!/usr/bin/env python3
"""Whether everything that trains computes on a GPU what it computes on a CPU, and how fast; `make gpu-check` runs it.

    python benchmarks/gpu_check.py [--device cuda] [--only NAME ...] [--no-speed] [--images 64] [--size 224]

It needs one GPU, no network and no data, and takes about 4 minutes (an estimate: no GPU has run it yet). Each check is
compared with a tolerance, whose reason is in benchmarks/gpu/; one that fails does not stop the others. --device cpu
runs the same code on a CPU, for long at these sizes, or with --smoke in seconds. Exit code: 0 all passed, 1 a check has
failed or there is no GPU.
"""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic kernels; before CUDA starts

import logging
import sys
import tempfile
import time
import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import common
from benchmarks.gpu import detection, one_process, pretraining, speed
from benchmarks.gpu.setting import Figure, Setting

SMOKE = {"images": 2, "size": 32, "steps": 1, "small": True}
QUIET = ("detectron2", "fvcore", "pretrain", "loco_det")  # their logs
CHILD = "processes, NCCL and SyncBN"


def child(device: str, smoke: bool) -> list[list]:
    """The figures of the check that joins a process group."""
    return [list(figure) for figure in one_process.figures(device, smoke)]


def in_group(setting: Setting) -> list[Figure]:
    """:func:`child`, in a process of its own: a process joins one group only."""
    return [Figure(*figure) for figure in common.in_child(__file__, setting.device, setting.smoke)]


CHECKS = {**pretraining.CHECKS, CHILD: in_group, **detection.CHECKS}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="(default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="checks whose names begin so: "
                        f"{'; '.join(CHECKS)}")  # fmt: skip
    parser.add_argument("--no-speed", action="store_true", help="leave out the table of seconds and memory")
    parser.add_argument("--images", type=int, default=64, help="of the table, in a step (%(default)s)")
    parser.add_argument("--size", type=int, default=224, help="of the table's views, in pixels (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="of each of the table's rows (%(default)s)")
    parser.set_defaults(small=False)


def measure(args: Namespace) -> dict[str, Any]:
    """All checks that were asked for, and the table.

    Raises:
        ValueError: if there is no GPU, or a name is of no check.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no GPU that torch can use: --device cpu --smoke runs the same code on a CPU")
    chosen = [name for name in CHECKS if not args.only or name.startswith(tuple(args.only))]
    if unknown := [only for only in args.only if not any(name.startswith(only) for name in CHECKS)]:
        raise ValueError(f"no check is called {unknown[0]}: choose from {'; '.join(CHECKS)}")
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old functions of torch, in Detectron2
        done = [run(name, Setting(args.device, Path(folder), args.small)) for name in chosen]
        rows = []
        if not args.no_speed:
            rows = speed.measure(Setting(args.device, Path(folder), args.small), args.images, args.size, args.steps)
    return {"checks": done, "speed": rows}


def run(name: str, setting: Setting) -> dict[str, Any]:
    """One check: its figures, its problem if it has none, and its seconds."""
    common.progress(name)
    begun, problem, figures = time.perf_counter(), "", []
    try:
        figures = [figure.as_dict() for figure in CHECKS[name](setting)]
    except (Exception, SystemExit) as error:  # the others go on
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
    passed = not problem and all(figure["passed"] for figure in figures)
    seconds = time.perf_counter() - begun
    return {"name": name, "passed": passed, "problem": problem, "figures": figures, "seconds": seconds}


def markdown(record: dict[str, Any]) -> str:
    """The table of checks, and that of seconds and memory."""
    rows = []
    for check in record["results"]["checks"]:
        seconds = f"{check['seconds']:.1f}"
        if check["problem"]:
            rows.append([check["name"], "FAILED", check["problem"].replace("|", "/"), "", seconds])
        for figure in check["figures"]:
            bound = f"{'at least' if figure['least'] else 'at most'} {figure['tolerance']:g}"
            text = f"{figure['value']:.2g} ({figure['name']}{'; ' if figure['text'] else ''}{figure['text']})"
            rows.append([check["name"], "passed" if figure["passed"] else "FAILED", text, bound, seconds])
            seconds = ""
    parts = [common.table(["check", "result", "figure", "tolerance", ">s"], rows)]
    if record["results"]["speed"]:
        settings = record["settings"]
        parts.append(f"{settings['images']} images (two views) of {settings['size']} px; medians of "
                     f"{settings['steps']} steps. float32 with TF32 in convolutions, as torch has it.")  # fmt: skip
        parts.append(speed.table(record["results"]["speed"], settings["images"]))
    failed = sum(not check["passed"] for check in record["results"]["checks"])
    count = len(record["results"]["checks"])
    return "\n\n".join([*parts, f"{count} checks, {failed} failed." if failed else f"{count} checks, all passed."])


def failed(record: dict[str, Any]) -> bool:
    """Whether a check has failed, or was out of memory."""
    results = record["results"]
    return not all(check["passed"] for check in results["checks"]) or any("problem" in row for row in results["speed"])


if __name__ == "__main__":
    done = common.main(sys.modules[__name__])
    sys.exit(done is not None and failed(done))
