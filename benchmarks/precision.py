#!/usr/bin/env python3
"""Time of a pretraining step in float32 and in bfloat16, on this CPU and as if it lacked the instructions for bfloat16.

    python benchmarks/precision.py [--config-file configs/pretrain/demo_loco.yaml] [--rounds 3]

oneDNN is told the newest instructions that it may use (ONEDNN_MAX_CPU_ISA). Every figure comes from a process of its
own, the rows take turns, and the table shows medians and ratios. A step is forward and backward, without optimiser.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
CPUS = {"this CPU": "DEFAULT", "AVX512, no bfloat16": "AVX512_CORE_VNNI", "AVX2": "AVX2"}
STEPS = 3
warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)  # Detectron2 does, on import


def seconds(config, bfloat16):
    """Median seconds of a step of a config."""
    import torch

    from pretrain.config import get_cfg
    from pretrain.files.yaml_files import merge_config_file
    from pretrain.learning.build import build_learner

    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    cfg = get_cfg()
    merge_config_file(cfg, config)
    learner = build_learner(cfg)
    views = torch.randn(2 * cfg.SOLVER.IMS_PER_BATCH, 3, cfg.INPUT.CROP_SIZE, cfg.INPUT.CROP_SIZE)
    views, found = views.contiguous(memory_format=torch.channels_last), []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, bfloat16):
            learner.forward_backward(views)
        found.append(time.perf_counter() - start)
        learner.zero_grad(set_to_none=True)
    return statistics.median(found[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=str(ROOT / "configs/pretrain/demo_loco.yaml"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=("float32", "bfloat16"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(seconds(args.config_file, args.one == "bfloat16"))
        return
    found = {}
    for _ in range(args.rounds):
        for cpu, instructions in CPUS.items():
            for kind in ("float32", "bfloat16"):
                command = [sys.executable, __file__, "--config-file", args.config_file, "--one", kind]
                env = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}
                done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
                found.setdefault((cpu, kind), []).append(float(done.stdout))
    print(f"{'seconds of a step':<22}{'float32':>10}{'bfloat16':>10}{'ratio':>8}")
    for cpu in CPUS:
        a, b = (statistics.median(found[cpu, kind]) for kind in ("float32", "bfloat16"))
        print(f"{cpu:<22}{a:>10.2f}{b:>10.2f}{b / a:>8.2f}")


if __name__ == "__main__":
    main()
