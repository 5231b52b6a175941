#!/usr/bin/env python3
"""The demo over several seeds, in float32 and in bfloat16: is it as accurate in bfloat16, within what seeds differ by?

    python benchmarks/demo.py [--seeds 0 1 2] [--probe CLASSES/train CLASSES/val]

All steps of ``tools/demo.py`` are run in both precisions: pretraining, Mask R-CNN frozen and fine-tuned, evaluation in
float32. With --probe, folders of images with a sub-folder for each class, a linear probe of the LoCo encoder is run
in its precision, too. Files are kept in --folder, and steps that are finished are not run again.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

SHORT = {
    "make_demo_data.py": ["--unlabeled", "64", "--train", "8", "--val", "4"],
    "pretrain.py": ["SOLVER.EPOCHS", "2.0", "SOLVER.WARMUP_EPOCHS", "0.0"],
    "train_net.py": ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "TEST.PRECISE_BN.NUM_ITER", "1"],
}
SMOKE = {"seeds": [0], "precisions": ["float32"], "short": True}
PRECISIONS = {"float32": "False", "bfloat16": "True"}
PROBE = "linear probe, top-1"
METRICS = {
    "box AP": ("bbox", "AP"),
    "box AP50": ("bbox", "AP50"),
    "mask AP": ("segm", "AP"),
    "mask AP50": ("segm", "AP50"),
}


def add_arguments(parser):
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--probe", nargs=2, metavar=("TRAIN", "VAL"), help="labelled folders of images")
    parser.add_argument("--folder", help="for the runs (default: a temporary folder)")
    parser.add_argument("--short", action="store_true", help="a few iterations of each step")


def measure(args):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        args.folder = None  # no path of this machine in the record
        found = {
            f"{precision} seed {seed}": run(folder / precision, seed, precision, args)
            for seed in args.seeds
            for precision in args.precisions
        }
    args.probe = [Path(path).parent.name + "/" + Path(path).name for path in args.probe] if args.probe else None
    return found


def run(folder, seed, precision, args):
    """All steps of a seed: {run: {metric: percent}}."""
    from loco_det.cli import demo

    enabled, found = PRECISIONS[precision], {}
    for title, done, checkpoints, command in steps_of(folder, seed, args):
        options = [*SHORT[command[0]]] if args.short and command[0] in SHORT else []
        if command[0] in ("pretrain.py", "train_net.py"):
            options += ["SOLVER.AMP.ENABLED", enabled]
        if command[0] == "train_net.py":
            options += ["SOLVER.AMP.AUTO", "False"]
        common.progress(f"{precision}, seed {seed}: {title}")
        if not demo.is_done(done):
            call(checkpoints, [*command, *options])
        if command[0] == "train_net.py":
            found[done.parent.name] = detection(done)
    if args.probe:
        output, (train, val) = folder / f"seed{seed}/probe_loco", args.probe
        weights = folder / f"seed{seed}/pretrain_loco/model_final.pth"
        if not (output / "results.json").exists():
            keys = {"MODEL.WEIGHTS": weights, "DATASETS.TRAIN": train, "DATASETS.TEST": val, "OUTPUT_DIR": output}
            keys |= {"INPUT.CROP_SIZE": 64, "SOLVER.AMP.ENABLED": enabled, "SEED": seed}
            words = [str(word) for pair in keys.items() for word in pair]
            call(None, ["linear_probe.py", "--config-file", "configs/readout/cached.yaml", *words])
        stages = json.loads((output / "results.json").read_text())["linear"]
        found["pretrain_loco"] = {f"{PROBE}, {stage}": values["top1"] for stage, values in stages.items()}
    return found


def steps_of(folder, seed, args):
    """The demo's steps, with --short up to the first detector."""
    from loco_det.cli import demo

    found = list(demo.steps(folder, seed, False))
    tools = [step[-1][0] for step in found]
    wanted = ("make_demo_data.py", "pretrain.py", "convert_to_d2.py", "train_net.py")
    return [found[tools.index(tool)] for tool in wanted] if args.short else found


def call(checkpoints, command):
    """Run one tool, from the checkout; exits with its last lines if it fails."""
    import subprocess

    from loco_det.cli.common.invocation import child_command

    resumed = ["--resume"] if checkpoints and (checkpoints / "last_checkpoint").exists() else []
    child, _ = child_command(str(command[0]), *resumed, *map(str, command[1:]))
    done = subprocess.run(child, cwd=common.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit("\n".join(done.stdout.splitlines()[-20:]))


def detection(path):
    """The metrics of a detector's results.json."""
    results = json.loads(path.read_text())["results"]
    return {name: results[task][metric] for name, (task, metric) in METRICS.items()}


def markdown(record):
    settings, found, rows = record["settings"], record["results"], []
    precisions, seeds = settings["precisions"], settings["seeds"]
    for name, metrics in next(iter(found.values())).items():
        for metric in metrics:
            values = {p: [found[f"{p} seed {seed}"][name][metric] for seed in seeds] for p in precisions}
            difference = ["-"]
            if len(precisions) == 2:
                pairs = zip(values["bfloat16"], values["float32"], strict=True)
                difference = [common.spread([a - b for a, b in pairs], "+.1f")]
            rows.append([name, metric, *(common.spread(values[p], ".1f") for p in precisions), *difference])
    scenes = "200 generated scenes to train on, 50 to test on"
    probed = f"; probe on {settings['probe'][1]}" if settings["probe"] else ""
    text = f"{scenes}{probed}; mean and standard deviation over the seeds {', '.join(map(str, seeds))}"
    heads = ["run", "metric, %", *(f">{p}" for p in precisions), ">bfloat16 - float32, seed by seed"]
    return f"{text}.\n\n" + common.table(heads, rows)


if __name__ == "__main__":
    common.main(sys.modules[__name__])
