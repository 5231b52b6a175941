#!/usr/bin/env python3
"""The whole path on generated scenes: pretraining, conversion, Mask R-CNN frozen and fine-tuned, evaluation, report.

Every step is one of the project's command lines, and is printed. A step that is finished is not run again; one that was
interrupted goes on from its last checkpoint.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from loco_det.report.page import write_report
from loco_det.report.runs import table_text
from loco_det.report.seeds import seeds_text
from loco_det.runs.find import find_runs
from loco_det.runs.folder import is_finished
from pretrain.files.text import for_terminal
from pretrain.processes.lifetime import tied_to_this_process


def steps(out, seed, long):
    """The steps of one seed: (title, file that says it is finished, folder with checkpoints or None, command)."""
    data, run = out / "data", out / f"seed{seed}{'_long' if long else ''}"
    scenes = "--unlabeled 1500 --train 200 --val 50 --size 128 160 --layouts unlabeled coco".split()
    yield "generate scenes", data / "demo.json", None, ["make_demo_data.py", data, *scenes]
    for name, title in (("loco", "pretrain ResNet-18 with LoCo"), ("random", "calibrate BN of a random ResNet-18")):
        folder = run / f"pretrain_{name}"
        config = f"configs/pretrain/demo_{name}{'_long' if long and name == 'loco' else ''}.yaml"
        options = ["DATASETS.TRAIN", data / "unlabeled", "SEED", seed, "OUTPUT_DIR", folder]
        final, backbone = folder / "model_final.pth", folder / "backbone.pkl"
        yield title, final, folder, ["pretrain.py", "--config-file", config, *options]
        yield f"convert the {name} backbone to Detectron2", backbone, None, ["convert_to_d2.py", final, backbone]
    coco, custom = data / "coco", []
    for split, folder in (("TRAIN", "train"), ("TEST", "val")):
        custom += [f"DATASETS.CUSTOM.{split}_JSON", coco / f"annotations/instances_{folder}.json"]
        custom += [f"DATASETS.CUSTOM.{split}_IMAGES", coco / folder]
    for kind, name in (("frozen", "loco"), ("frozen", "random"), ("finetune", "loco")):
        folder = run / f"{kind}_{name}"
        backbone = run / f"pretrain_{name}" / "backbone.pkl"
        options = ["MODEL.WEIGHTS", backbone, "SEED", seed, "OUTPUT_DIR", folder, *custom]
        title = f"Mask R-CNN on the {'frozen' if kind == 'frozen' else 'fine-tuned'} {name} backbone"
        config = f"configs/demo_coco_loco_{kind}.yaml"
        yield title, folder / "results.json", folder, ["train_net.py", "--config-file", config, *options]


def run_step(number, count, title, done, checkpoints, command):
    """Run one step unless its last file is there; shows lines with an ETA, keeps the rest for an error."""
    head = f"[{number}/{count}] {title}"
    if is_finished(done.parent) if done.name == "results.json" else done.exists():
        print(f"{head}: already done", flush=True)
        return
    command = [str(part) for part in command]
    if checkpoints and (checkpoints / "last_checkpoint").exists():
        command.insert(1, "--resume")
    print(f"{head}\n    python {shlex.join([f'tools/{command[0]}', *command[1:]])}", flush=True)
    start, shown, last = time.time(), 0.0, []
    tool = tied_to_this_process(f"tools/{command[0]}", *command[1:])
    process = subprocess.Popen(tool, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    terminal = sys.stdout.isatty()
    try:
        for line in process.stdout:
            last = [*last[-20:], line.rstrip()]
            if words := re.search(r"about .* iterations at .* on \S+$|SOLVER.AMP.ENABLED auto: .*", line.rstrip()):
                print(f"    {words[0]:<100}", flush=True)
            progress = re.search(r"eta: .*?loss[^ ]*: [\d.]+|Inference done \d+/\d+.*ETA=\S+", line)
            if progress and time.time() - shown > (1 if terminal else 20):
                shown = time.time()
                print(f"    {progress[0][:100]:<100}", end="\r" if terminal else "\n", flush=True)
    except KeyboardInterrupt:  # Ctrl-C reaches the tool too: let it put its files in order
        process.wait()
        raise
    if process.wait():
        print(*map(for_terminal, last), sep="\n", file=sys.stderr)
        sys.exit(f"error: step {number}, {title}, failed; the same command goes on from here")
    print(f"    {f'finished in {time.time() - start:.0f} s':<100}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="example:\n  python tools/demo.py --seeds 0 1 2")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for everything (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the networks; the scenes are the same")
    parser.add_argument("--long", action="store_true", help="pretrain ten times as long")
    args = parser.parse_args()
    out = args.output.resolve()
    os.chdir(ROOT)  # the commands run in the checkout, and are printed for it
    out = Path(os.path.relpath(out))
    todo = {step[1]: step for seed in args.seeds for step in steps(out, seed, args.long)}
    try:
        for number, step in enumerate(todo.values(), 1):
            run_step(number, len(todo), *step)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    runs = find_runs(out)
    page = write_report(runs, out / "report.html")
    print("", table_text(runs), seeds_text(runs), f"report: {for_terminal(page.resolve())}", sep="\n")


if __name__ == "__main__":
    main()
