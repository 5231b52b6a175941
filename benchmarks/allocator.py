#!/usr/bin/env python3
"""What it is worth on a CPU that freed memory is kept (MODEL.KEEP_FREED_MEMORY), beside other allocators.

    python benchmarks/allocator.py [--rounds 3] [--rows LoCo ...]

A row is a pretraining step of benchmarks/pretrain_step.py in a process of its own, with glibc's malloc as it is, with
freed memory kept, or with an allocator of the system's packages preloaded, told to keep what is freed (left out if it
is not installed). Page faults and memory are those of the process from its start to its end.
"""

import ctypes.util
import resource
import statistics
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, pretrain_step

SMOKE = {"encoder": "resnet18x0.5", "batch": 4, "size": 32, "steps": 1, "rounds": 1, "rows": ["LoCo"]}
LIBRARIES = {"jemalloc": "jemalloc", "tcmalloc": "tcmalloc_minimal"}
ENV = {"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}  # jemalloc's


def add_arguments(parser):
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--rows", nargs="+", default=["end to end + conv block", "LoCo", "LoCo, double forward"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)


def child(row, settings, keep):
    args, before = Namespace(**settings), resource.getrusage(resource.RUSAGE_SELF)
    found = pretrain_step.seconds(row, args, keep)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return found | {"faults": after.ru_minflt - before.ru_minflt, "mb": after.ru_maxrss / 1e3}


def measure(args):
    settings = {key: getattr(args, key) for key in ("encoder", "batch", "size", "steps", "threads")}
    ways = {"glibc": ({}, False), "glibc, freed memory kept": ({}, True)}
    for name, library in LIBRARIES.items():
        if path := ctypes.util.find_library(library):
            ways[name] = ({"LD_PRELOAD": path, **ENV}, False)
    found = {row: {way: [] for way in ways} for row in args.rows}
    for number in range(args.rounds):
        for row in args.rows:
            for way, (env, keep) in ways.items():
                common.progress(f"round {number + 1}/{args.rounds}: {row}, {way}")
                found[row][way].append(common.in_child(__file__, row, settings, keep, env=env))
    return found


def markdown(record):
    settings, rows = record["settings"], []
    for row, ways in record["results"].items():
        base = [one["seconds"] for one in ways["glibc"]]
        for way, rounds in ways.items():
            ratio = common.median_ratio([one["seconds"] for one in rounds], base)
            middle = {key: statistics.median(one[key] for one in rounds) for key in ("seconds", "faults", "mb")}
            rows.append([row, way, f"{middle['seconds']:.2f}", f"{ratio:.2f}x", f"{middle['faults'] / 1e6:.2f}",
                         f"{middle['mb']:.0f}"])  # fmt: skip
    heads = ["step", "allocator", ">s/step", ">time", ">page faults, 10^6", ">largest process, MB"]
    return (
        f"{settings['encoder']}, {settings['batch']} images (two views) of {settings['size']} px; medians of "
        f"{settings['rounds']} rounds of {settings['steps']} steps.\n\n{common.table(heads, rows)}"
    )


if __name__ == "__main__":
    common.main(sys.modules[__name__])
