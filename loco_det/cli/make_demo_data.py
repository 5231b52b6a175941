"""Generate the demo's street scenes: as a folder of images, in COCO's layout, Cityscapes' and Pascal VOC's.

Example:
    python tools/make_demo_data.py data/demo --unlabeled 2000 --train 200 --val 100 --size 128 160
"""

import sys

from pretrain.processes.signals import Terminated

from ..demo_scenes.writing import LAYOUTS, USUAL, make_demo_data
from .common.arguments import described_parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = described_parser(__doc__)
    parser.add_argument("root", metavar="ROOT", help="folder to create")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default 0)")
    parser.add_argument("--unlabeled", type=int, default=1000, metavar="N", help="images to pretrain on (default 1000)")
    parser.add_argument("--train", type=int, default=200, metavar="N", help="labeled images a layout (default 200)")
    parser.add_argument("--val", type=int, default=100, metavar="N", help="validation images a layout (default 100)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(160, 192), metavar=("H", "W"), help="pixels (default 160 192)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    parser.add_argument("--layouts", nargs="+", default=USUAL, choices=LAYOUTS, help=f"default: {' '.join(USUAL)}")
    args = parser.parse_args(argv)
    try:
        written = make_demo_data(
            args.root, args.seed, args.unlabeled, args.train, args.val, args.size, args.workers, args.layouts
        )
    except (KeyboardInterrupt, Terminated) as error:
        print("interrupted: nothing was written; run the same command again", file=sys.stderr)
        sys.exit(error.code if isinstance(error, Terminated) else 130)
    print(f"{'wrote' if written else 'already there:'} {args.root}")
