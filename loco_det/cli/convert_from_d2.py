"""Turn the backbone of a Detectron2 checkpoint, a fine-tuned one for instance, into a torchvision state dict.

The way back of tools/convert_to_d2.py, verified likewise: the written state dict in torchvision's network and the
checkpoint in Detectron2's backbone see the same images, and all stages must agree to float rounding; nothing is written
otherwise. The weights keep their bits.
"""

import argparse

from .common.arguments import described_parser
from .common.conversion import as_process, fail, print_conversion

EXAMPLE = """examples:
  python tools/convert_from_d2.py output/coco_finetune/model_final.pth resnet50_coco.pth
  python tools/convert_from_d2.py model_final.pkl resnet50_coco.pth --config-file mask_rcnn_R_50_FPN_3x.yaml

Then: torchvision.models.resnet50().load_state_dict(torch.load("resnet50_coco.pth"), strict=False)
exit code: 0 written and verified, 1 refused or not written, 2 a wrong argument or no such file"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parser().parse_args(argv)
    as_process()
    return run(args)


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = described_parser(__doc__, EXAMPLE)
    p.add_argument("checkpoint", help="a detector or backbone of Detectron2: .pth of a run, or .pkl; a file, or an "
                   "address (https://, file://, hf://)")  # fmt: skip
    p.add_argument("output", metavar="OUT.pth", help="the file to write")
    p.add_argument("--config-file", metavar="CONFIG", help="of its run (default: config.yaml beside the checkpoint)")
    p.add_argument("--arch", default="auto", metavar="NAME", help="the network, such as resnet50; refuse any other")
    p.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return p


def run(args: argparse.Namespace) -> int:
    """Convert, and print what was done, or one line; returns the exit code."""
    from ..convert import check_folder, convert_back

    try:
        check_folder(args.checkpoint, args.output, by_name=False)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    options = {"config_file": args.config_file, "arch": args.arch}
    return print_conversion(lambda: convert_back(args.checkpoint, args.output, **options), args)
