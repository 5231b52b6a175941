"""List the runs beneath a folder: kind, state, data, backbone, figures, time. As a table, JSON or CSV."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from typing import TYPE_CHECKING, Any

from ..common.arguments import described_parser

if TYPE_CHECKING:
    from ...runs.summary import Summary

EXAMPLE = """examples:
  loco-det runs
  loco-det runs output/demo --kind detection --sort ap
  loco-det runs --match moco --state done --csv > moco.csv

Box and mask AP are of the first test set, top-1 is of a readout's last stage. Runs with equal keys may be compared.

exit code: 0 printed, 1 no run is as asked for, 2 there is no such folder, or no run in it"""
KINDS = ("detection", "pretraining", "readout")
SORTS = {  # name -> field
    "name": "name", "kind": "kind", "state": "state", "data": "data", "backbone": "backbone", "ap": "box_ap",
    "mask-ap": "mask_ap", "top1": "top1", "iterations": "iterations", "time": "seconds", "date": "date", "key": "key",
}  # fmt: skip
LARGEST_FIRST = ("ap", "mask-ap", "top1", "iterations", "time", "date")
KEY_DIGITS = 8  # of the key that are shown


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Bad input exits with 2."""
    parser = described_parser(__doc__, EXAMPLE)
    parser.add_argument("folder", metavar="DIR", nargs="?", default="output", help="(default: output)")
    parser.add_argument("--kind", choices=KINDS, help="only runs of this kind")
    parser.add_argument(
        "--state", help="only runs in this state: done, problems, 'not finished', 'not evaluated', damaged"
    )
    parser.add_argument("--match", metavar="TEXT", help="only runs whose name, weights, data or backbone contains this")
    order = f"{', '.join(LARGEST_FIRST)}: the largest or newest first (default: name)"
    parser.add_argument("--sort", choices=SORTS, default="name", help=order)
    parser.add_argument("--reverse", action="store_true", help="the other way round; what is not known stays last")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON list of objects instead of a table")
    form.add_argument("--csv", action="store_true", help="print CSV instead of a table")
    return run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Print the runs; returns the exit code.

    Raises:
        FileNotFoundError: if there is no such folder, or no run in it.
        ValueError: if all runs in it are damaged.
    """
    from ...runs.find import find_runs
    from ...runs.summary import summary

    every = [summary(found) for found in find_runs(args.folder)]
    runs = ordered([one for one in every if is_wanted(one, args)], args.sort, args.reverse)
    if args.json:
        print(json.dumps([one.as_dict() for one in runs], indent=2), flush=True)
    elif args.csv:
        write_csv(runs)
    elif runs:
        print(table(runs), flush=True)
    if not runs:
        print(f"error: none of the {len(every)} runs beneath {args.folder} is as asked for", file=sys.stderr)
    return 0 if runs else 1


def is_wanted(one: Summary, args: argparse.Namespace) -> bool:
    """Whether a run is of the kind and in the state that was asked for, and contains the text."""
    kind_and_state = args.kind in (None, one.kind) and args.state in (None, one.state)
    return kind_and_state and one.matches(args.match or "")


def ordered(runs: list[Summary], sort: str, reverse: bool = False) -> list[Summary]:
    """The runs sorted by one of ``SORTS``; those of which it is not known come last, in their order."""
    name = SORTS[sort]
    known = [one for one in runs if getattr(one, name) is not None]
    unknown = [one for one in runs if getattr(one, name) is None]
    return sorted(known, key=lambda one: getattr(one, name), reverse=reverse != (sort in LARGEST_FIRST)) + unknown


def table(runs: list[Summary]) -> str:
    """The runs for a terminal; a column that is empty in all rows is left out."""
    from pretrain.files.tables import DURATION, PROGRESS, Column, Progress, Table, decimals

    percent = decimals(1)
    columns = [
        *(Column("name"), Column("kind"), Column("state"), Column("data"), Column("backbone")),
        *(Column("box AP", percent), Column("mask AP", percent), Column("top-1", percent)),
        *(Column("iterations", PROGRESS), Column("time", DURATION), Column("date"), Column("key")),
    ]

    def row(one: Summary) -> dict[str, Any]:
        return {
            **one.as_dict(),
            "box AP": one.box_ap,
            "mask AP": one.mask_ap,
            "top-1": one.top1,
            "iterations": None if one.iterations is None else Progress(one.iterations, one.planned),
            "time": one.seconds,
            "date": one.date and one.date[:16].replace("T", " "),
            "key": one.key and one.key[:KEY_DIGITS],
        }

    return Table(columns, [row(one) for one in runs]).without_empty().terminal()


def write_csv(runs: list[Summary]) -> None:
    """Print the runs as CSV with a head, a field each."""
    from pretrain.files.tables import csv_cells

    from ...runs.summary import NAMES

    writer = csv.DictWriter(sys.stdout, NAMES, lineterminator="\n")
    writer.writeheader()
    writer.writerows(csv_cells(one.as_dict()) for one in runs)
    sys.stdout.flush()
