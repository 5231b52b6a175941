#!/usr/bin/env python3
"""The demo over several seeds, in float32 and in bfloat16: is it as accurate in bfloat16, within what seeds differ by?

    python benchmarks/demo.py [--seeds 0 1 2] [--probe CLASSES/train CLASSES/val]

Scenes and pretraining are those of ``tools/demo.py``. Detectors of both precisions are trained on the same backbone,
which is pretrained once for each seed; evaluation is in float32. With --probe, folders of images with a sub-folder for
each class, LoCo is also pretrained in both precisions, and a linear probe of both encoders is run in float32. Files are
kept in --folder, and steps that are finished are not run again.
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
    from fvcore.common.config import CfgNode

    from pretrain.readout.labelled import labelled_splits

    if args.probe:  # refuses folders before what takes an hour
        labelled_splits(CfgNode(dict(zip(("TRAIN", "TEST"), args.probe, strict=True))))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        return {f"seed {seed}": run(folder, seed, args) for seed in args.seeds}


def run(folder, seed, args):
    """All steps of a seed: {run: {precision: {metric: percent}}}."""
    found = {}
    for title, done, checkpoints, command in steps_of(folder, seed, args):
        short = SHORT.get(command[0], []) if args.short else []
        if command[0] != "train_net.py":
            common.progress(f"seed {seed}: {title}")
            if not is_done(done):
                call(checkpoints, [*command, *short])
            continue
        for precision in args.precisions:
            common.progress(f"seed {seed}: {title}, {precision}")
            output = done.parent.with_name(f"{done.parent.name}_{precision}")
            keys = ["OUTPUT_DIR", output, "SOLVER.AMP.ENABLED", PRECISIONS[precision], "SOLVER.AMP.AUTO", "False"]
            if not is_done(output / "results.json"):
                call(output, [*command, *short, *keys])
            found.setdefault(done.parent.name, {})[precision] = detection(output / "results.json")
    if args.probe:
        found["pretrain_loco"] = {precision: probe(folder, seed, precision, args) for precision in args.precisions}
    return found


def probe(folder, seed, precision, args):
    """The top-1 of each stage of LoCo pretrained in a precision, by a linear probe in float32."""
    step = next(step for step in steps_of(folder, seed, args) if step[-1][0] == "pretrain.py")
    output, short = step[2].with_name(f"pretrain_loco_{precision}"), SHORT["pretrain.py"] if args.short else []
    common.progress(f"seed {seed}: pretraining and probe, {precision}")
    if not (output / "model_final.pth").exists():
        call(output, [*step[-1], *short, "OUTPUT_DIR", output, "SOLVER.AMP.ENABLED", PRECISIONS[precision]])
    results = output.with_name(f"probe_loco_{precision}") / "results.json"
    if not results.exists():
        keys = {"MODEL.WEIGHTS": output / "model_final.pth", "OUTPUT_DIR": results.parent, "SEED": seed}
        keys |= {"DATASETS.TRAIN": args.probe[0], "DATASETS.TEST": args.probe[1], "INPUT.CROP_SIZE": 64}
        words = [str(word) for pair in keys.items() for word in pair]
        call(None, ["linear_probe.py", "--config-file", "configs/readout/cached.yaml", *words])
    stages = json.loads(results.read_text())["linear"]
    return {f"linear probe, top-1, {stage}": values["top1"] for stage, values in stages.items()}


def is_done(path):
    """Whether a step's last file is there; results of a detector may be there with problems."""
    from loco_det.runs.folder import is_finished

    return is_finished(path.parent) if path.name == "results.json" else path.exists()


def steps(out, seed):
    """(title, file that says it is finished, folder with checkpoints or None, command) of each step of a seed."""
    from loco_det.cli.demo import SCENES

    data, run = out / "data", out / f"seed{seed}"
    yield "generate scenes", data / "demo.json", None, ["make_demo_data.py", data, *SCENES]
    for name, title in (("loco", "pretrain ResNet-18 with LoCo"), ("random", "calibrate BN of a random ResNet-18")):
        folder = run / f"pretrain_{name}"
        options = ["DATASETS.TRAIN", data / "unlabeled", "SEED", seed, "OUTPUT_DIR", folder]
        final, backbone = folder / "model_final.pth", folder / "backbone.pkl"
        config = f"configs/pretrain/demo_{name}.yaml"
        yield title, final, folder, ["pretrain.py", "--config-file", config, *options]
        yield f"convert the {name} backbone to Detectron2", backbone, None, ["convert_to_d2.py", final, backbone]
    coco, custom = data / "coco", []
    for split, images in (("TRAIN", "train"), ("TEST", "val")):
        custom += [f"DATASETS.CUSTOM.{split}_JSON", coco / f"annotations/instances_{images}.json"]
        custom += [f"DATASETS.CUSTOM.{split}_IMAGES", coco / images]
    for kind, name in (("frozen", "loco"), ("frozen", "random"), ("finetune", "loco")):
        folder = run / f"{kind}_{name}"
        backbone = run / f"pretrain_{name}" / "backbone.pkl"
        options = ["MODEL.WEIGHTS", backbone, "SEED", seed, "OUTPUT_DIR", folder, *custom]
        title = f"Mask R-CNN on the {'frozen' if kind == 'frozen' else 'fine-tuned'} {name} backbone"
        config = f"configs/demo_coco_loco_{kind}.yaml"
        yield title, folder / "results.json", folder, ["train_net.py", "--config-file", config, *options]


def steps_of(folder, seed, args):
    """The steps of a seed, with --short up to the first detector."""
    found = list(steps(folder, seed))
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
    precisions = settings["precisions"]
    for name, own in next(iter(found.values())).items():
        for metric in own[precisions[0]]:
            values = {p: [seed[name][p][metric] for seed in found.values()] for p in precisions}
            difference = ["-"]
            if len(precisions) == 2:
                pairs = zip(values["bfloat16"], values["float32"], strict=True)
                difference = [common.spread([a - b for a, b in pairs], "+.1f")]
            rows.append([name, metric, *(common.spread(values[p]) for p in precisions), *difference])
    scenes = "200 generated scenes to train on, 50 to test on"
    probed = f"; probe on {settings['probe'][1]}" if settings["probe"] else ""
    text = f"{scenes}{probed}; mean and standard deviation over the seeds {', '.join(map(str, settings['seeds']))}"
    heads = ["run", "metric, %", *(f">{p}" for p in precisions), ">bfloat16 - float32, seed by seed"]
    return f"{text}.\n\n" + common.table(heads, rows)


if __name__ == "__main__":
    common.main(sys.modules[__name__])
