"""Write one self-contained HTML page about runs: pretraining, linear probe and kNN, detection."""

import argparse
from pathlib import Path

from pretrain.files.text import for_terminal

from .common.arguments import described_parser

EXAMPLE = """examples:
  python tools/report.py output/demo
  python tools/report.py output/loco_linear output/loco_knn
  python tools/report.py output/loco output/coco_loco_frozen output/coco_loco_finetune --output loco.html --markdown

A run that is missing, damaged, or not finished is shown as such.

exit code: 0 written, 1 the disk is full, 2 there is no run at all that could be read, or no such place for the page"""


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = described_parser(__doc__, EXAMPLE)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run folder, or a folder with run folders beneath it")
    parser.add_argument("--output", help="file of the page (default: report.html in the first RUN that exists)")
    parser.add_argument("--markdown", action="store_true", help="also write the tables as Markdown, beside the page")
    run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    """Write the page, print its tables and where it is.

    Raises:
        ValueError: if there is no run that could be read.
        OSError: if the page cannot be written.
    """
    from ..report.page import write_report
    from ..report.readouts import readouts_text
    from ..report.runs import pretraining_text, table_text
    from ..report.seeds import seeds_text
    from ..runs.find import find_runs

    runs = find_runs(args.runs)
    page = Path(args.output or Path(next(run for run in args.runs if Path(run).is_dir()), "report.html"))
    path = write_report(runs, page, page.with_suffix(".md") if args.markdown else None)
    tables = [text for text in (table_text(runs), seeds_text(runs), readouts_text(runs)) if text]
    print("\n\n".join(tables) or pretraining_text(runs), end="\n\n" if len(tables) > 1 else "\n")
    print(f"report: {for_terminal(path.resolve())}")
