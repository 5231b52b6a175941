#!/usr/bin/env python3
"""Train a config on each random split of its low-shot set; prints and writes the mean and deviation of AP over them.

The splits are trained one after another by tools/train_net.py, in OUTPUT_DIR/seed0 and so on. A split that is finished
is not run again; one that was interrupted goes on from its last checkpoint. OUTPUT_DIR/summary.json has the figures.
"""

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import yaml
from common import merge_config, one_line_errors
from detectron2.config import get_cfg

from loco_det.config import add_loco_config
from loco_det.data.low_shot import SEEDS
from loco_det.report.runs import published_sentence
from loco_det.runs.folder import is_finished, read_run
from pretrain.files.atomic import write_json, write_whole
from pretrain.files.lock import lock_folder
from pretrain.files.text import for_terminal
from pretrain.files.yaml_files import parse_yaml, read_config
from pretrain.processes.lifetime import tied_to_this_process

EXAMPLE = """example:
  python tools/low_shot.py --config-file configs/table3/coco_1k_resnet50_loco_800ep.yaml --num-gpus 8
DATASETS.TRAIN names the splits by one of them, such as coco_2017_train_1k_seed0. KEY VALUE pairs are for all splits."""
TASKS = {"box_ap": "bbox", "mask_ap": "segm"}  # in our files, in Detectron2's results


def main(args):
    cfg = get_cfg()
    add_loco_config(cfg)
    merge_config(cfg, args)
    out, splits = Path(cfg.OUTPUT_DIR), splits_of(cfg, args.num_splits)
    lock_folder(out)
    same_as_before(cfg, out)
    for split, name in splits.items():
        train(args, out / split, name)
    summary = summarize(cfg, {split: out / split for split in splits})
    write_json(out / "summary.json", summary)
    print(text(summary))


def splits_of(cfg, count):
    """Folder of each split -> name of its data set; ValueError if the config's is none of several."""
    names, tests = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    base, found, seed = (names[0] if len(names) == 1 else "").rpartition("_seed")
    if not (found and seed.isdigit()):
        raise ValueError(
            f"DATASETS.TRAIN is {tuple(names)}, but must be one low-shot set such as coco_2017_train_10k_seed0"
        )
    if len(tests) != 1:
        raise ValueError(f"DATASETS.TEST is {tuple(tests)}, but must be one data set")
    return {f"seed{seed}": f"{base}_seed{seed}" for seed in SEEDS[:count]}


def same_as_before(cfg, out):
    """Refuse to mix splits of different configs in one mean.

    Where they are run is free, and for splits that are not begun by how many processes.
    """
    settings = parse_yaml(cfg.dump(), "the config")
    del settings["DATALOADER"]["NUM_WORKERS"], settings["MODEL"]["DEVICE"], settings["OUTPUT_DIR"]
    path = out / "low_shot.yaml"
    if path.exists() and (list(out.glob("seed*/last_checkpoint")) or list(out.glob("seed*/results.json"))):
        before = read_config(path)
        changed = sorted(key for key in {*settings, *before} if settings.get(key) != before.get(key))
        if changed:
            raise ValueError(
                f"{out} holds splits of another config, which differs in {', '.join(changed)}: "
                "choose another OUTPUT_DIR, or remove that folder"
            )
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump(settings))


def train(args, folder, name):
    """Train one split to its end; exits as train_net does if it fails or is stopped."""
    if is_finished(folder):
        print(f"{folder}: already done", flush=True)
        return
    resume = ["--resume"] if (folder / "last_checkpoint").exists() else []
    options = ["--config-file", args.config_file, "--num-gpus", str(args.num_gpus), "--dist-url", "auto", *resume]
    pairs = [*args.opts, "DATASETS.TRAIN", f"('{name}',)", "OUTPUT_DIR", str(folder)]
    print(f"{folder}: {'resuming' if resume else 'training'} on {name}", flush=True)
    code, signals = run(tied_to_this_process(ROOT / "tools" / "train_net.py", *options, *pairs))
    if signal.SIGINT in signals:
        raise KeyboardInterrupt
    if code > 0:  # it has said why
        sys.exit(code)
    if code or signals or not is_finished(folder):
        print(f"{folder} is not finished: the same command goes on from here", file=sys.stderr)
        sys.exit(1)


def run(command):
    """Run a command; Ctrl-C and SIGTERM reach it once, wherever they come from, and it is waited for.

    Returns:
        tuple: its exit code, and the signals that were passed on.
    """
    process, signals = None, []

    def forward(signum, _):
        signals.append(signum)
        if process:
            pass_on(signum)

    def pass_on(signum):
        # Ctrl-C is for its workers too; what they are told on SIGTERM is for it to say
        with contextlib.suppress(ProcessLookupError):  # it may have ended meanwhile
            (os.killpg if signum == signal.SIGINT else os.kill)(process.pid, signum)

    previous = {signum: signal.signal(signum, forward) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(command, start_new_session=True)  # or a terminal would send it Ctrl-C as well
        for signum in signals:  # that came before it was there
            pass_on(signum)
        return process.wait(), signals
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def summarize(cfg, folders):
    """Mean and standard deviation over splits.

    Args:
        cfg: the config, for what is published.
        folders: name of a split -> its folder, with a results.json.

    Returns:
        dict: "row", "differences" from it, "train", "test", "splits", and for "box_ap" and "mask_ap", in percent, each
        None if not known, "values", "mean", "std" (of a sample, as the splits are one) and "published", which is known
        only without differences.
    """
    runs = [read_run(folder) for folder in folders.values()]
    if other := [run.folder for run in runs if run.detection.results is None]:
        raise ValueError(f"{other[0]} has no results of a detector: evaluate that split again")
    results = [run.detection.results for run in runs]
    row = cfg.PUBLISHED.ROW or None
    different = differences(row, runs) if row else []
    summary = {
        "row": row,
        "differences": different,
        "train": cfg.DATASETS.TRAIN[0].rpartition("_seed")[0],
        "test": cfg.DATASETS.TEST[0],
        "splits": list(folders),
    }
    for name, task in TASKS.items():
        values = [result.get(task, {}).get("AP") for result in results]
        whole = None not in values  # a mean over some of the splits would pass for one over all
        summary[name] = {
            "values": values,
            "mean": statistics.mean(values) if whole else None,
            "std": statistics.stdev(values) if whole and len(values) > 1 else None,
            "published": None if different else cfg.PUBLISHED[name.upper()] or None,
        }
    return summary


def differences(row, runs):
    """In what the splits differ from a published row, which is a mean over all of them."""
    unknown = ["row (its results.json names none)"]
    found = [text for run in runs for text in (run.published.differences if run.published else unknown)]
    if len(runs) != len(SEEDS):
        found.append(f"splits ({len(runs)}, the row has {len(SEEDS)})")
    return list(dict.fromkeys(found))


def text(summary):
    """The figures, with percentages of one decimal, and what keeps them from being those of a published row."""
    lines = [f"{summary['train']}, {len(summary['splits'])} splits, on {summary['test']}:"]
    for name in TASKS:
        mean, std, published = ("-" if v is None else f"{v:.1f}" for v in list(summary[name].values())[1:])
        source = "" if published == "-" else f"   published: {published} ({summary['row']})"
        lines.append(f"  {name.replace('_ap', ' AP'):8}{mean:>5} ± {std}{source}")
    if summary["differences"]:
        lines.append(f"  {published_sentence(summary['row'], summary['differences'])}")
    return "\n".join(map(for_terminal, lines))


def parser():
    found = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--config-file", required=True, metavar="FILE")
    count = {"type": int, "choices": range(1, len(SEEDS) + 1), "default": len(SEEDS)}
    found.add_argument("--num-splits", **count, metavar="N", help="train the first N splits only (%(default)s: all)")
    found.add_argument("--num-gpus", type=int, default=1, metavar="N", help="of train_net.py, for each split")
    found.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes of the config")
    return found


if __name__ == "__main__":
    with one_line_errors():
        main(parser().parse_args())
