"""Turn the encoder of a pretraining checkpoint into weights for Detectron2, and verify that they compute the same.

An encoder is a ResNet, or a ViT, ConvNeXt, Swin Transformer, RegNet or other network that timm can compute.

Verification always runs: the source network and Detectron2's backbone, loaded from the written file, see the same
images, and all stages must agree to float rounding, in evaluation and in training mode. If they do not, or if the
checkpoint is refused, nothing is written. Beside OUT.pkl it writes OUT.yaml, the part of a Detectron2 config that these
weights need.
"""

import argparse
import json

from .common.arguments import described_parser
from .common.conversion import as_process, fail, print_conversion

EXAMPLE = """examples:
  python tools/convert_to_d2.py output/loco/model_final.pth output/loco/backbone.pkl
  python tools/convert_to_d2.py moco_v2_800ep_pretrain.pth.tar moco.pkl --base configs/coco_loco_frozen.yaml
  python tools/convert_to_d2.py moco_v2_800ep moco.pkl
  python tools/convert_to_d2.py dinov2_vits14_pretrain.pth dinov2.pkl
  python tools/convert_to_d2.py https://dl.fbaipublicfiles.com/vicreg/resnet50.pth vicreg.pkl
  python tools/train_net.py --config-file moco.yaml OUTPUT_DIR output/moco_frozen
  python tools/convert_to_d2.py checkpoint.ckpt --check-only --json

exit code: 0 written and verified, 1 refused or not written, 2 a wrong argument or no such file"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse(argv)
    as_process()
    return run(args)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options; exits with 2 if they contradict each other."""
    p = parser()
    args = p.parse_args(argv)
    if args.list_sources:
        return args
    if not args.checkpoint or bool(args.output) == args.check_only:
        p.error("give a checkpoint, and either OUT.pkl or --check-only")
    if args.check_only and args.base:
        p.error("--check-only writes no config: leave out --base")
    if args.prefix is not None and (args.ema or args.source != "auto"):
        p.error("--prefix names one network by itself: leave out --source and --ema")
    return args


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = described_parser(__doc__, EXAMPLE)
    p.add_argument("checkpoint", nargs="?", help=".pth, .pt, .tar, .ckpt, .bin, .safetensors, .pkl or .npz, or a "
                   "folder of Hugging Face's transformers; an address (https://, file://, hf://OWNER/REPO/FILE); or a "
                   "name that tools/checkpoints.py lists")  # fmt: skip
    p.add_argument("output", metavar="OUT.pkl", nargs="?", help="the file to write, for MODEL.WEIGHTS")
    p.add_argument("--source", type=source_name, default="auto", metavar="NAME",
                   help="the project, a name of --list-sources; refuse any other (default: auto)")  # fmt: skip
    p.add_argument("--arch", default="auto", metavar="NAME", help="the network, such as resnet50; refuse any other. Or "
                   "timm's name of it, such as vit_small_patch16_224.dino, for networks that are no ResNet; or the "
                   "package.module.function of your own encoder, which is then run")  # fmt: skip
    p.add_argument("--ema", action="store_true", help="take the network's moving average (EMA, key encoder, teacher)")
    p.add_argument("--prefix", help="prefix of the encoder's parameter names in the file, such as module.encoder., for "
                   "a project that --list-sources does not have")  # fmt: skip
    p.add_argument("--base", metavar="CONFIG", help="_BASE_ of OUT.yaml, which is then a complete config for train")
    p.add_argument("--config-file", metavar="CONFIG", help="of the run, for a checkpoint of Detectron2's own; "
                   "default: config.yaml beside it")  # fmt: skip
    p.add_argument("--check-only", action="store_true", help="convert and verify, but write nothing")
    p.add_argument("--unsafe-load", action="store_true", help="unpickle whatever is in the file, which can run code "
                   "that it brings along: only if you trust who made it")  # fmt: skip
    p.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    p.add_argument("--list-sources", action="store_true", help="print the layouts that are recognised, and their rules")
    return p


def source_name(text: str) -> str:
    """A layout's name; as argparse's choices, but the layouts are imported only if one is named."""
    if text == "auto":
        return text
    from ..convert import LAYOUTS, TIMM_LAYOUTS

    names = ["auto", *dict.fromkeys(row.name for row in (*LAYOUTS, *TIMM_LAYOUTS))]
    if text not in names:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(map(repr, names))})")
    return text


def run(args: argparse.Namespace) -> int:
    """Convert, check or list, and print what was done, or one line; returns the exit code."""
    if args.list_sources:
        list_sources(args.json)
        return 0
    from pretrain.files.shipped_configs import find_config

    from ..convert import check, check_output, convert

    options = {key: getattr(args, key) for key in ("arch", "source", "ema", "prefix", "config_file")}
    options["unsafe"] = args.unsafe_load
    if args.check_only:
        return print_conversion(lambda: check(args.checkpoint, **options), args)
    try:
        args.base = find_config(args.base) if args.base else None
        check_output(args.checkpoint, args.output, args.base)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    return print_conversion(lambda: convert(args.checkpoint, args.output, args.base, **options), args)


def list_sources(as_json: bool) -> None:
    """Print every layout: its name, whose it is, and by what it is recognised."""
    from ..convert import LAYOUTS, TIMM_LAYOUTS

    rows = [{"source": row.name, "project": row.project, "rule": row.rule} for row in (*LAYOUTS, *TIMM_LAYOUTS)]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['source']:14} {row['project']}: {row['rule']}")
