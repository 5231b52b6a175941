"""Write the model card of a pretrained checkpoint: how it was made, what it is worth, how to use it; from its files."""

import argparse

from pretrain.files.text import for_terminal

from .common.arguments import described_parser

EXAMPLE = """example:
  python tools/model_card.py output/loco --linear output/loco_linear --knn output/loco_knn \\
      --detection output/coco_frozen output/coco_finetune --name "LoCo ResNet-50" --license cc-by-nc-4.0

exit code: 0 written, 1 failure, 2 bad input: no finished run, damaged results or those of another checkpoint"""


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = parser().parse_args(argv)
    run(args)


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = described_parser(__doc__, EXAMPLE)
    p.add_argument("run", metavar="RUN_FOLDER", help="a finished run of tools/pretrain.py")
    for kind, tool in (("linear", "linear_probe"), ("knn", "knn"), ("detection", "train_net")):
        p.add_argument(f"--{kind}", metavar="FOLDER", nargs="+", action="extend", default=[],
                       help=f"run folders of tools/{tool}.py on this checkpoint")  # fmt: skip
    p.add_argument("--name", help="the card's title (default: method, encoder and images)")
    p.add_argument("--license", metavar="TEXT", help="licence of the weights, such as cc-by-4.0 (default: not stated)")
    p.add_argument("--encoder", metavar="package.module.function",
                   help="your own encoder, if the run was made with it; it has to be named here to be run")  # fmt: skip
    p.add_argument("--output", metavar="FILE.md", help="the card (default: model_card.md in RUN_FOLDER)")
    return p


def run(args: argparse.Namespace) -> None:
    """Write the card and say where it is.

    Raises:
        ValueError: if a run or a readout is refused.
        OSError: if a file cannot be read or written.
    """
    from pretrain.model_card import write_model_card

    readouts = {kind: getattr(args, kind) for kind in ("linear", "knn", "detection")}
    about = {"name": args.name, "licence": args.license, "encoder": args.encoder}
    card = write_model_card(args.run, args.output, **readouts, **about)
    print(f"wrote {for_terminal(card)}")
