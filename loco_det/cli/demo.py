"""Run all steps on generated scenes: pretraining, then loco-det evaluate: conversion, Mask R-CNN frozen and fine-tuned.

Every step is one of the project's command lines, and is printed. A step that is finished is not run again; one that was
interrupted goes on from its last checkpoint.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

from .common.arguments import described_parser
from .common.errors import INTERRUPTED
from .common.invocation import by_name

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = "example:\n  python tools/demo.py --seeds 3"
SCENES = "--unlabeled 1500 --train 200 --val 50 --size 128 160 --layouts unlabeled coco".split()
RATE = "0.04"  # of the detectors, as in configs/detection/_base_demo.yaml: none is chosen, to save time


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 1 if a step fails."""
    parser = described_parser(__doc__, EXAMPLE)
    output = "folder for all files (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help=output)
    seeds = "of the networks, 0 to N-1 (default: %(default)s); the scenes are the same for all"
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help=seeds)
    parser.add_argument("--long", action="store_true", help="pretrain ten times as long")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        raise ValueError(f"--seeds is {args.seeds}, but must be at least 1")
    out = args.output.resolve()
    if not by_name():
        os.chdir(ROOT)  # tools/*.py are there
    out = Path(os.path.relpath(out))
    from .evaluate import main as evaluate

    if code := make(out, args.seeds, args.long):
        return code
    return evaluate(evaluation(out, args.seeds, args.long))


def make(out: Path, seeds: int, long: bool) -> int:
    """Generate the scenes and pretrain; returns the exit code."""
    from ..ranking.scheduler import run_all
    from ..ranking.steps import Step
    from .common.steps import Runner

    scenes = [str(out / "data"), *SCENES]
    steps = [Step("generate scenes", "", "make_demo_data.py", out / "data" / "demo.json", partial(list, scenes))]
    for seed in range(seeds):
        run, words = pretraining(out, seed, long)
        title = f"pretrain ResNet-18 with LoCo, seed {seed}"
        done = run / "model_final.pth"
        steps.append(Step(title, "loco", "pretrain.py", done, partial(list, words), steps[:1], run))
    runner, failures = Runner(steps), []
    for number, step in enumerate(steps, 1):
        if step.is_done:
            print(f"[{number}/{len(steps)}] {step.title}: already done", flush=True)
    try:
        run_all(steps, runner.run, 1, lambda step, line: failures.append(f"{step.title}: {line}"))
    except KeyboardInterrupt:
        runner.stop(signal.SIGINT)
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return bool(failures)


def pretraining(out: Path, seed: int, long: bool) -> tuple[Path, list[str]]:
    """The folder of one seed's pretraining, and the arguments of pretrain.py."""
    run = out / f"seed{seed}" / ("loco_long" if long else "loco")
    config = f"configs/pretrain/demo_loco{'_long' if long else ''}.yaml"
    pairs = {"DATASETS.TRAIN": out / "data" / "unlabeled", "SEED": seed, "OUTPUT_DIR": run}
    return run, ["--config-file", config, *(str(word) for pair in pairs.items() for word in pair)]


def evaluation(out: Path, seeds: int, long: bool) -> list[str]:
    """The arguments of evaluate.py."""
    coco, name = out / "data" / "coco", "loco_long" if long else "loco"
    checkpoints = ",".join(str(pretraining(out, seed, long)[0] / "model_final.pth") for seed in range(seeds))
    parts = [[f"annotations/instances_{part}.json", part] for part in ("train", "val")]
    data = [str(coco / path) for part in parts for path in part]
    return [f"{name}={checkpoints}", "--data", *data, "--seeds", str(seeds), "--lrs", RATE,
            "--output", str(out / "ranking")]  # fmt: skip
