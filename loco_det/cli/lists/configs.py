"""List the shipped configs, with a line about each. --config-file takes these names in any folder."""

import sys
import textwrap
from collections.abc import Iterator

from ..common.arguments import described_parser

EXAMPLE = """examples:
  loco-det configs
  loco-det configs detection/coco_frozen
configs/README.md maps each row of each published table to its config."""
COLUMN, LONGEST = 48, 110  # characters of most names, and of a line


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 1 if no config has such a name."""
    parser = described_parser(__doc__, EXAMPLE)
    parser.add_argument("part", nargs="?", default="", help="list only the names that contain this (default: all)")
    args = parser.parse_args(argv)
    lines = list(listed(args.part.removeprefix("configs/")))
    if not lines:
        print(f"error: no shipped config has {args.part!r} in its name", file=sys.stderr)
        return 1
    print("\n".join(lines), flush=True)
    return 0


def listed(part: str = "") -> Iterator[str]:
    """A line for each shipped config with ``part`` in its name: the name, and the first sentence of its comment."""
    from pretrain.files.shipped_configs import CONFIGS, shipped_names

    from ...runs.config_index import description

    names = [name for name in shipped_names() if part in name]
    width = min(COLUMN, max(map(len, names), default=0))
    for name in names:
        shown = f"{name:{width}}  "
        yield shown + textwrap.shorten(description(CONFIGS / name), LONGEST - len(shown), placeholder=" …")
