"""List the checkpoints that other projects have published, or show one. convert, probe and knn take their names.

Nothing is downloaded here. The licences are those of the projects; "non-commercial" ones begin with CC-BY-NC.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pretrain.files.text import for_terminal

from ..common.arguments import described_parser
from ..common.invocation import command_for

if TYPE_CHECKING:
    from ...checkpoints import Published

EXAMPLE = """examples:
  python tools/checkpoints.py
  python tools/checkpoints.py moco_v2_800ep
  python tools/checkpoints.py --json
  python tools/convert_to_d2.py moco_v2_800ep moco.pkl

exit code: 0 printed, 2 there is no such name"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Bad input exits with 2."""
    parser = described_parser(__doc__, EXAMPLE)
    name = parser.add_argument("name", nargs="?", help="show all that is known of this one (default: a table of all)")
    name.completer = lambda prefix, **_: [n for n in names() if n.startswith(prefix)]  # type: ignore[attr-defined]
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--urls", action="store_true", help="print the addresses only, for a downloader")
    form.add_argument("--json", action="store_true", help="print a JSON list of objects instead of text")
    args = parser.parse_args(argv)
    print("\n".join(map(for_terminal, lines(args))), flush=True)
    return 0


def lines(args: argparse.Namespace) -> Iterator[str]:
    """What is printed.

    Args:
        args: of :func:`main`.

    Raises:
        FileNotFoundError: if there is no checkpoint of that name.
    """
    entries = chosen(args.name)
    if args.json:
        yield from json.dumps([entry.as_dict() for entry in entries], indent=2).splitlines()
    elif args.urls:
        yield from (entry.url for entry in entries)
    elif args.name:
        yield from details(entries[0])
    else:
        yield from table(entries)


def names() -> list[str]:
    """All names, for the shell's completion."""
    return [entry.name for entry in chosen(None)]


def chosen(name: str | None) -> list[Published]:
    """The checkpoint of a name, or all of them for None; FileNotFoundError if there is none."""
    import difflib

    from ...checkpoints import published_checkpoints

    entries = published_checkpoints()
    if name is None:
        return list(entries.values())
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        advice = f"did you mean {near[0]}?" if near else "python tools/checkpoints.py lists them"
        raise FileNotFoundError(f"{name}: no published checkpoint of that name: {advice}")
    return [entries[name]]


def table(entries: list[Published]) -> Iterator[str]:
    """A line for each checkpoint, as wide as its address."""
    from pretrain.files.tables import NOTHING

    rows = [("name", "project", "architecture", "licence", "size", "URL")]
    for entry in entries:
        size = f"{entry.megabytes:.0f} MB" if entry.megabytes else NOTHING
        rows.append((entry.name, entry.project, entry.arch, entry.licence, size, entry.url))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip()


def details(entry: Published) -> Iterator[str]:
    """All that is known of one checkpoint, and the command that converts it."""
    labels = "labels" in entry.pretraining
    known = {
        "project": entry.project,
        "architecture": entry.arch,
        "pretraining": entry.pretraining,
        "top-1": entry.top1 and f"{entry.top1:g} % on ImageNet-1k, {'as trained' if labels else 'linear classifier'}",
        "licence": entry.licence,
        "size": entry.megabytes and f"{entry.megabytes:g} MB",
        "SHA-256": entry.sha256 and f"begins with {entry.sha256}",
        "MD5": entry.md5 and f"begins with {entry.md5}",
        "URL": entry.url,
        "from": entry.page,
        "layout": f"{entry.layout}: what convert takes it for",
        "note": entry.note,
    }
    yield entry.name
    yield from (f"  {key:12}  {value}" for key, value in known.items() if value)
    yield f"  {'convert':12}  {command_for('convert_to_d2.py', entry.name, f'{entry.name}.pkl')}"
