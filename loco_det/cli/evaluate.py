"""Evaluate checkpoints for detection: convert, choose learning rates, train frozen and fine-tuned, rank.

Each checkpoint is converted with the numeric proof. Its learning rate is chosen from one grid, on a held-out part of
the training images that is drawn by hash, never on the test images. Then it is trained with every seed, and so is a
control with random weights. Every step is one of the project's command lines, and is printed. A step that is finished
is not run again; one that was interrupted goes on from its last checkpoint. OUTPUT/index.html has the ranking.
"""

from __future__ import annotations

import argparse
import math
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.files.text import for_terminal

from .common.arguments import add_overlay, described_parser
from .common.errors import INTERRUPTED, TERMINATED

if TYPE_CHECKING:
    from ..ranking.steps import Plan, Step

EXAMPLE = """examples:
  python tools/evaluate.py loco=output/loco/model_final.pth moco_v2_800ep --data coco --output output/ranking
  python tools/evaluate.py a.pth b.safetensors https://example.org/c.pth --budget minutes --output output/ranking \\
      --data my/train.json my/images my/val.json my/images
  python tools/evaluate.py simclr=s0.pth,s1.pth,s2.pth loco=l0.pth,l1.pth,l2.pth --data voc --plan --output output/voc

A CHECKPOINT is whatever tools/convert_to_d2.py takes. NAME=CHECKPOINT names its row; NAME=FILE,FILE,... is one row with
a checkpoint for each seed, such as pretraining with several seeds.

exit code: 0 all is done, 1 a checkpoint was refused or a step failed (the others went on), 2 bad usage or input"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run(parser().parse_args(argv))


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = described_parser(__doc__, EXAMPLE)
    p.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", help="a file, address or published name; NAME=...")
    data = "coco, cityscapes, voc (default: coco), or TRAIN.json IMAGES TEST.json IMAGES"
    p.add_argument("--data", nargs="+", default=["coco"], metavar="WORD", help=data)
    protocols = "frozen, finetune, probe, knn (default: what the budget and --labelled allow)"
    p.add_argument("--protocol", nargs="+", choices=("frozen", "finetune", "probe", "knn"), metavar="P", help=protocols)
    budget = "schedule: paper; short, an eighth of it (default); minutes: a light head on cached features"
    p.add_argument("--budget", choices=("paper", "short", "minutes"), default="short", help=budget)
    p.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1 in all rows (default: %(default)s)"
    )
    rates = (
        "auto: half, once and twice the recipe's, the best on held-out training images; or the rates; one: no choice"
    )
    p.add_argument("--lrs", nargs="+", default=["auto"], metavar="LR", help=rates)
    labelled = "folders of images with a sub-folder for each class, for probe and knn"
    p.add_argument("--labelled", nargs=2, metavar=("TRAIN", "TEST"), default=[], help=labelled)
    p.add_argument("--no-control", action="store_true", help="leave out the rows with random weights")
    p.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for all files")
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="steps at a time (default: %(default)s)")
    p.add_argument("--num-gpus", type=int, default=1, metavar="N", help="GPUs for each run (default: %(default)s)")
    p.add_argument("--plan", action="store_true", help="print every command, with time and disk, and run nothing")
    add_overlay(p)
    opts = "KEY VALUE pairs for all detectors; after all other options"
    p.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help=opts)
    return p


def run(args: argparse.Namespace) -> int:
    """Plan, run, and write the page; returns the exit code.

    Raises:
        ValueError: if arguments, data or the folder are refused.
        OSError: if a file cannot be read or written.
        SystemExit: after Ctrl-C or SIGTERM.
    """
    from pretrain.files.lock import lock_folder

    from .common.evaluation import identify, link_images, make_plan, named_rows, write_recipes

    check(args)
    rows = named_rows(args.checkpoints, args.seeds)
    if args.output.is_dir() and not args.plan:
        lock_folder(args.output)  # before its settings are read, which another evaluation may be about to write
    plan = make_plan(args, rows)
    if args.plan:
        show(plan, args.jobs)
        return 0
    lock_folder(args.output)
    identify(plan.settings, args)
    plan.settings.write(args.output)
    if plan.settings.seeds > args.seeds:
        print(f"all rows have {plan.settings.seeds} seeds: an earlier call asked for them", flush=True)
    write_recipes(plan)
    link_images(plan)
    return run_steps(plan, args)


def check(args: argparse.Namespace) -> None:
    """ValueError if the options contradict each other or are out of range."""
    for name in ("seeds", "jobs", "num_gpus"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}, but must be at least 1")
    readouts = {"probe", "knn"} & set(args.protocol or ())
    if readouts and not args.labelled:
        raise ValueError(f"--protocol {' '.join(sorted(readouts))} needs labelled images: --labelled TRAIN TEST")
    if args.budget == "minutes" and "finetune" in (args.protocol or ()):
        raise ValueError("--budget minutes trains a light head on cached features: leave out --protocol finetune")
    if args.lrs != ["auto"]:
        try:
            args.lrs = [float(f"{float(rate):g}") for rate in args.lrs]  # as folders are called, and configs have it
        except ValueError:
            raise ValueError(f"--lrs takes auto, or numbers: {' '.join(args.lrs)}") from None
        if not all(0 < rate < math.inf for rate in args.lrs):
            raise ValueError(f"--lrs must be above 0, and finite: {' '.join(map(str, args.lrs))}")
    if args.protocol is None:
        args.protocol = ["frozen"] + ["finetune"] * (args.budget != "minutes")
        args.protocol += ["probe", "knn"] if args.labelled else []


def show(plan: Plan, jobs: int) -> None:
    """Print every command with an estimate of its time and disk."""
    from pretrain.engine.estimate import duration

    from ..ranking.steps import total
    from .common.invocation import child_command

    steps = plan.steps()
    for number, step in enumerate(steps, 1):
        about = "done" if step.is_done else f"{duration(step.seconds) if step.seconds else 'time not known'}"
        about += f", {step.size / 1e6:.0f} MB" if step.size and not step.is_done else ""
        try:
            _, line = child_command(step.tool, *step.words())
        except ValueError as error:  # no rate can be chosen
            line = f"not run: {error}"
        print(f"[{number}/{len(steps)}] {for_terminal(step.title)} ({about})\n    {for_terminal(line)}")
    seconds, size = total(steps, jobs)
    where = "this machine's cores" if plan.device == "cpu" else plan.device
    print(f"in all about {duration(seconds)} on {where}, {size / 1e9:.1f} GB in {for_terminal(plan.folder)}")
    for row in plan.settings.rows:
        if row.problem:
            print(f"{for_terminal(row.name)}: {for_terminal(row.problem)}")


def run_steps(plan: Plan, args: argparse.Namespace) -> int:
    """Run what is not done, and write the page; returns the exit code."""
    import torch

    from pretrain.files.atomic import write_whole

    from ..ranking.page import write_ranking
    from ..ranking.scheduler import run_all
    from .common.evaluation import FEATURES
    from .common.invocation import child_command
    from .common.steps import Runner, prune

    steps, settings = plan.steps(), plan.settings
    gpus = args.num_gpus if torch.cuda.is_available() and args.jobs * args.num_gpus > 1 else 0
    runner, problems = Runner(steps, args.jobs, gpus), {}

    def failed(step: Step, line: str) -> None:
        problems[step] = line
        if step.tool == "convert_to_d2.py":
            row = next(row for row in settings.rows if row.name == step.row)
            row.problem = f"not converted: {line}"

    done = [step for step in steps if step.is_done]
    for step in done:
        prune(step)  # a killed evaluation may not have come to it
    if done:
        print(f"{len(done)} of {len(steps)} steps are done already", flush=True)
    signals: list[int] = []

    def interrupt(signum: int, _: object) -> None:
        signals.append(signum)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        run_all(steps, runner.run, args.jobs, failed)
    except KeyboardInterrupt:
        runner.stop(signals[0] if signals else signal.SIGINT)
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(TERMINATED if signals else INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, previous)
    settings.write(plan.folder)
    lines = [child_command(step.tool, *step.words())[1] for step in steps if step.is_done]
    write_whole(plan.folder / "commands.txt", "\n".join(lines) + "\n")
    if not problems and (plan.folder / FEATURES).is_dir():
        shutil.rmtree(plan.folder / FEATURES)  # gigabytes that only an unfinished run reads
    page, text = write_ranking(plan.folder)
    print(f"\n{text}\n\npage: {for_terminal(page.resolve())}", flush=True)
    for step, line in problems.items():
        print(f"error: {for_terminal(step.title)}: {for_terminal(line)}", file=sys.stderr)
    if problems:
        print("what failed is tried again by the same command; all else is done", file=sys.stderr)
    return 1 if problems or any(row.problem for row in settings.rows) else 0
