#!/usr/bin/env python3
"""Time of a pretraining step in float32 and in bfloat16, on this CPU and as if it lacked the instructions for bfloat16.

    python benchmarks/precision.py [--config-file configs/pretrain/demo_loco.yaml] [--rounds 3]

oneDNN is told the newest instructions that it may use (ONEDNN_MAX_CPU_ISA). Every figure comes from a process of its
own, the rows take turns, and the table shows medians and ratios. A step is forward and backward, without optimiser.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

SMOKE = {"rounds": 1, "sides": 16, "cpus": ["this CPU"]}
CPUS = {"this CPU": "DEFAULT", "AVX512, no bfloat16": "AVX512_CORE_VNNI", "AVX2": "AVX2"}
STEPS = 3


def child(config, side, dtype):
    """Median seconds of a step of a config, on crops of so many pixels (0: the config's)."""
    import torch

    from pretrain.config import get_cfg
    from pretrain.files.shipped_configs import find_config
    from pretrain.files.yaml_files import merge_config_file
    from pretrain.learning.build import build_learner
    from pretrain.processes.cpu import prepare_cpu

    prepare_cpu("cpu", keep_freed_memory=True)
    torch.manual_seed(0)
    cfg = get_cfg()
    merge_config_file(cfg, find_config(config))
    cfg.INPUT.CROP_SIZE = side or cfg.INPUT.CROP_SIZE
    learner = build_learner(cfg)
    views = torch.randn(2 * cfg.SOLVER.IMS_PER_BATCH, 3, cfg.INPUT.CROP_SIZE, cfg.INPUT.CROP_SIZE)
    views, found = views.contiguous(memory_format=torch.channels_last), []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, dtype == "bfloat16"):
            learner.forward_backward(views)
        found.append(time.perf_counter() - start)
        learner.zero_grad(set_to_none=True)
    return statistics.median(found[1:])


def add_arguments(parser):
    parser.add_argument("--config-file", default="pretrain/demo_loco.yaml")
    parser.add_argument("--sides", type=int, default=0, help="of crops, in pixels (default: the config's)")
    parser.add_argument("--cpus", nargs="+", default=list(CPUS), choices=CPUS, help="default: all")
    parser.add_argument("--rounds", type=int, default=3)


def measure(args):
    found = {cpu: {"float32": [], "bfloat16": []} for cpu in args.cpus}
    for number in range(args.rounds):
        for cpu in args.cpus:
            for dtype, own in found[cpu].items():
                common.progress(f"round {number + 1}/{args.rounds}: {cpu}, {dtype}")
                env = {"ONEDNN_MAX_CPU_ISA": CPUS[cpu]}
                own.append(common.in_child(__file__, args.config_file, args.sides, dtype, env=env))
    return found


def markdown(record):
    settings, rows = record["settings"], []
    for cpu, own in record["results"].items():
        middle = [f"{statistics.median(own[dtype]):.2f}" for dtype in ("float32", "bfloat16")]
        rows.append([cpu, *middle, f"{common.median_ratio(own['float32'], own['bfloat16']):.2f}x"])
    heads = ["instructions", ">float32, s/step", ">bfloat16, s/step", ">times as fast"]
    return f"{settings['config_file']}; medians of {settings['rounds']} rounds of {STEPS} steps.\n\n" + common.table(
        heads, rows
    )


if __name__ == "__main__":
    common.main(sys.modules[__name__])
