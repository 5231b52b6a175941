"""Train a config on each random split of its low-shot set; print and write mean and standard deviation of AP.

The splits are trained one after another by tools/train_net.py, in OUTPUT_DIR/seed0 and so on. A split that is finished
is not run again; one that was interrupted goes on from its last checkpoint. OUTPUT_DIR/summary.json has the figures.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.files.atomic import write_json, write_whole
from pretrain.files.lock import lock_folder

from .common.arguments import add_config_file, add_overlay, described_parser
from .common.child import run_child
from .common.invocation import child_command

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

TOOLS = Path(__file__).resolve().parents[2] / "tools"
EXAMPLE = """example:
  python tools/low_shot.py --config-file configs/detection/coco_1k_finetune/resnet50_loco_800ep.yaml --num-gpus 8
DATASETS.TRAIN of the config names one split, such as coco_2017_train_1k_seed0. KEY VALUE pairs are for all runs."""
SPLITS = 5  # as many as loco_det.data.low_shot has SEEDS


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    run(parser().parse_args(argv))


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = described_parser(__doc__, EXAMPLE)
    add_config_file(found, required=True)
    add_overlay(found)
    count, splits = range(1, SPLITS + 1), "train on the first N splits only (default: all %(default)s)"
    found.add_argument("--num-splits", type=int, choices=count, default=SPLITS, metavar="N", help=splits)
    found.add_argument("--num-gpus", type=int, default=1, metavar="N", help="number of GPUs for each run")
    found.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes of the config")
    return found


def run(args: argparse.Namespace) -> None:
    """Train each split, then write and print the mean over them.

    Raises:
        ValueError: if the config is refused, or a split has no results.
        OSError: if a file cannot be read or written.
        SystemExit: if a split is not finished.
    """
    from detectron2.config import get_cfg

    from ..config import add_loco_config
    from .common.config import merge_config
    from .common.low_shot_summary import summarize, text

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


def splits_of(cfg: CfgNode, count: int) -> dict[str, str]:
    """Folder of each split -> name of its data set; ValueError if the config's is none of several."""
    from ..data.low_shot import SEEDS

    names, tests = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    base, found, seed = (names[0] if len(names) == 1 else "").rpartition("_seed")
    if not (found and seed.isdigit()):
        raise ValueError(
            f"DATASETS.TRAIN is {tuple(names)}, but must be one low-shot set such as coco_2017_train_10k_seed0"
        )
    if len(tests) != 1:
        raise ValueError(f"DATASETS.TEST is {tuple(tests)}, but must be one data set")
    return {f"seed{seed}": f"{base}_seed{seed}" for seed in SEEDS[:count]}


def same_as_before(cfg: CfgNode, out: Path) -> None:
    """Refuse to mix splits of different configs in one mean.

    Where they are run is free, for splits that are not begun by how many processes, and what is published of them:
    there a config names its recipe by a path, and that of an earlier version may be another one.

    Raises:
        ValueError: if the folder holds splits of another config.
    """
    import yaml

    from pretrain.files.yaml_files import parse_yaml, read_config

    settings = parse_yaml(cfg.dump(), "the config")
    del settings["DATALOADER"]["NUM_WORKERS"], settings["MODEL"]["DEVICE"], settings["OUTPUT_DIR"]
    path = out / "low_shot.yaml"
    if path.exists() and (list(out.glob("seed*/last_checkpoint")) or list(out.glob("seed*/results.json"))):
        before = read_config(path)
        changed = sorted(key for key in {*settings, *before} - {"PUBLISHED"} if settings.get(key) != before.get(key))
        if changed:
            raise ValueError(
                f"{out} holds splits of another config, which differs in {', '.join(changed)}: "
                "choose another OUTPUT_DIR, or remove that folder"
            )
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump(settings))


def train(args: argparse.Namespace, folder: Path, name: str) -> None:
    """Train one split to its end; exits as train_net does if it fails or is stopped."""
    from ..runs.folder import is_finished

    if is_finished(folder):
        print(f"{folder}: already done", flush=True)
        return
    resume = ["--resume"] if (folder / "last_checkpoint").exists() else []
    overlays = [word for name in args.overlay for word in ("--overlay", name)]
    processes = ["--num-gpus", str(args.num_gpus), "--dist-url", "auto"]
    options = ["--config-file", args.config_file, *overlays, *processes, *resume]
    pairs = [*args.opts, "DATASETS.TRAIN", f"('{name}',)", "OUTPUT_DIR", str(folder)]
    print(f"{folder}: {'resuming' if resume else 'training'} on {name}", flush=True)
    child, _ = child_command("train_net.py", *options, *pairs, folder=TOOLS)
    code, signals = run_child(child)
    if signal.SIGINT in signals:
        raise KeyboardInterrupt
    if code > 0:  # it has said why
        sys.exit(code)
    if code or signals or not is_finished(folder):
        print(f"{folder} is not finished: the same command goes on from here", file=sys.stderr)
        sys.exit(1)
