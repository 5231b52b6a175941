"""Detect objects in images with a trained run: pictures, and predictions.json in COCO's format."""

import argparse
import os
from pathlib import Path

from pretrain.files.text import for_terminal

from .common.arguments import described_parser
from .common.late_compiler import ask_no_compiler, import_torchvision

USAGE = "%(prog)s OUTPUT_DIR IMAGE [IMAGE ...] --output FOLDER [--threshold SCORE] [KEY VALUE ...]"
EXAMPLE = """examples:
  python tools/predict.py output/coco_frozen street.jpg holiday/ --output found
  python tools/predict.py output/coco_frozen holiday/ --output found --threshold 0.3 \\
      MODEL.DEVICE cpu INPUT.MIN_SIZE_TEST 480
Config options as KEY VALUE pairs come last, after --output or --threshold.

exit code: 0 written (unreadable images are skipped, with a line each), 2 bad input, 1 a failure"""


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse(argv)
    run(args)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, with the KEY VALUE pairs as ``opts``; exits with 2 if they are none."""
    parser = described_parser(__doc__, EXAMPLE, usage=USAGE)
    parser.add_argument("run", metavar="OUTPUT_DIR", help="folder of a run of tools/train_net.py")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="an image, or a folder with images at any depth")
    parser.add_argument("--output", required=True, help="folder for predictions.json and pictures/")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score to draw (default: %(default)s)")
    args, opts = parser.parse_known_args(argv)
    if unknown := [text for text in opts if text.startswith("--")]:
        parser.error(f"unknown option {unknown[0]}")
    if not 0 <= args.threshold <= 1:
        parser.error(f"--threshold is {args.threshold:g}, but scores are from 0 to 1")
    args.opts, args.config_file = opts, os.path.join(args.run, "config.yaml")
    return args


def run(args: argparse.Namespace) -> None:
    """Detect, and say what has been written where.

    Raises:
        ValueError: if the run or an option is refused.
        OSError: if a file cannot be read or written.
    """
    import_torchvision()
    ask_no_compiler()
    from detectron2.config import get_cfg

    from pretrain.processes.cpu import prepare_cpu

    from ..config import add_loco_config
    from ..engine.predict import predict_images
    from .common.config import merge_config

    if not Path(args.config_file).is_file():
        raise FileNotFoundError(f"{args.run}: no config.yaml in it: name a run folder of tools/train_net.py")
    if "META_ARCHITECTURE" not in Path(args.config_file).read_text(errors="replace"):
        raise ValueError(f"{args.config_file} is of no detector: name a run folder of tools/train_net.py")
    if "MODEL.WEIGHTS" in args.opts[::2]:
        raise ValueError(f"the weights are those of the run {args.run}: leave out MODEL.WEIGHTS")
    if Path(args.output).exists() and not Path(args.output).is_dir():
        raise ValueError(f"{args.output}: a file, but --output names a folder")
    cfg = get_cfg()
    add_loco_config(cfg)
    merge_config(cfg, args)
    prepare_cpu(cfg.MODEL.DEVICE, cfg.MODEL.KEEP_FREED_MEMORY)
    done = predict_images(cfg, args.run, args.images, args.output, args.threshold)
    skipped = f", {len(done['skipped'])} unreadable skipped" if done["skipped"] else ""
    where = for_terminal(Path(args.output).resolve())
    print(f"{done['images']} images{skipped}, {done['detections']} detections: {where}")
