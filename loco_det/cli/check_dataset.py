"""Check a COCO, Cityscapes or Pascal VOC data set before training on it: all errors at once, and counts by class."""

import argparse

from pretrain.files.text import for_terminal

from .common.arguments import described_parser

EXAMPLE = """examples:
  DETECTRON2_DATASETS=/data python tools/check_dataset.py coco_2017_train coco_2017_val --pictures samples.png
  DETECTRON2_DATASETS=/data python tools/check_dataset.py voc_2007_trainval voc_2007_test
  python tools/check_dataset.py --json my/train.json --images my/images --decode
  python tools/check_dataset.py --json my/boxes.json --images my/images --boxes-only
  python tools/check_dataset.py --cityscapes /data/cityscapes --json-report report.json
exit code: 0 nothing that would stop or spoil training, 1 errors found, 2 bad usage or nothing there"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 nothing found, 1 errors in the data. Bad input exits with 2."""
    return run(parse(argv))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options; exits with 2 if they are none."""
    parser = described_parser(__doc__, EXAMPLE)
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered data set, such as coco_2017_train")
    parser.add_argument("--json", metavar="FILE", help="COCO instance annotations of your own")
    parser.add_argument("--images", metavar="DIR", help="image folder; file names in --json are relative to it")
    parser.add_argument("--cityscapes", metavar="ROOT", help="folder with leftImg8bit/ and gtFine/")
    parser.add_argument("--boxes-only", action="store_true", help="for MODEL.MASK_ON False: do not look at masks")
    outside = "file names may lead out of the folder of images, as with DATASETS.ALLOW_OUTSIDE True"
    parser.add_argument("--allow-outside", action="store_true", help=outside)
    parser.add_argument("--decode", action="store_true", help="read whole images, not their headers only (slow)")
    parser.add_argument("--pictures", metavar="OUT.png", help="draw a page of images with their annotations")
    parser.add_argument("--json-report", metavar="OUT.json", help="write the findings for scripts")
    args = parser.parse_args(argv)
    if not (args.names or args.json or args.cityscapes):
        parser.error("name a data set, --json with --images, or --cityscapes")
    if bool(args.json) != bool(args.images):
        parser.error("--json and --images go together")
    return args


def run(args: argparse.Namespace) -> int:
    """Check the data sets and print what is found; returns the exit code.

    Raises:
        ValueError: if there is no such data set.
        OSError: if a file cannot be read or written.
    """
    from ..report.inspection import check_all, draw_page, write_report

    options = {"decode": args.decode, "masks": not args.boxes_only, "allow_outside": args.allow_outside}
    checked = check_all(args.names, args.json, args.images, args.cityscapes, **options)
    for report, _ in checked:
        print("\n".join(map(for_terminal, report.lines())), end="\n\n")
    if args.json_report:
        write_report([report for report, _ in checked], args.json_report)
    if args.pictures:
        draw_page(checked, args.pictures)
    return 1 if any(report.of("error") for report, _ in checked) else 0
