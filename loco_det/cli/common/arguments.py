"""The options of all commands that train: Detectron2's, repeated here because importing it takes seconds."""

import argparse
import os
from typing import Any, NoReturn

from pretrain.files.config_names import refuse_missing
from pretrain.files.shipped_configs import shipped_names

from .invocation import as_called

RESUME = "go on from the newest checkpoint in OUTPUT_DIR"
DIST_URL = (
    "initialization URL for pytorch distributed backend. See "
    "https://pytorch.org/docs/stable/distributed.html for details."
)
OPTS = "changes of the config, as KEY VALUE pairs with a space between, such as SEED 1; after all other options"


class Parser(argparse.ArgumentParser):
    """A parser whose texts name the project's commands as the user has called this one, and which a shell completes.

    Attributes:
        completes: whether it is completing a line.
    """

    completes = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's; where the shell asks for completions, these are printed instead, and the process ends.

        Raises:
            FileNotFoundError: if a config file is not there.
        """
        if "_ARGCOMPLETE" in os.environ and not self.completes:
            import argcomplete

            self.completes = True  # argcomplete parses, too
            argcomplete.autocomplete(self)
        known, more = super().parse_known_args(args, namespace)
        takes_shipped = any(hasattr(action, "completer") for action in self._actions)  # and not a config of a run only
        if takes_shipped and not self.completes:  # before what reads them is imported, which takes seconds
            if name := getattr(known, "config_file", None):
                refuse_missing(name)
            for name in getattr(known, "overlay", ()):
                refuse_missing(name, overlay=True)
        return known, more

    def format_help(self) -> str:
        """The text of ``--help``."""
        return as_called(super().format_help())

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and the usage; the message in a line."""
        super().error(as_called(message))


def argument_parser(epilog: str) -> argparse.ArgumentParser:
    """Detectron2's ``default_argument_parser``, with shipped configs, overlays, and a free port on one machine.

    Args:
        epilog: what ``--help`` ends with.
    """
    parser = Parser(epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_file(parser, default="")
    add_overlay(parser)
    parser.add_argument("--resume", action="store_true", help=RESUME)
    parser.add_argument("--eval-only", action="store_true", help="perform evaluation only")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of gpus *per machine*")
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    rank = "the rank of this machine (unique per machine)"
    parser.add_argument("--machine-rank", type=int, default=0, help=rank)
    parser.add_argument("--dist-url", default="auto", help=DIST_URL)
    parser.add_argument("opts", help=OPTS, default=None, nargs=argparse.REMAINDER)
    # which launch() refuses in words of its own
    parser.add_argument("--local-rank", "--local_rank", nargs="?", const="", help=argparse.SUPPRESS)
    return parser


def add_config_file(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Add ``--config-file FILE``.

    Args:
        parser: what it is added to.
        options: of ``add_argument``.
    """
    _completed(parser.add_argument("--config-file", metavar="FILE", help="path or shipped name of a config", **options))


def add_overlay(parser: argparse.ArgumentParser) -> None:
    """Add ``--overlay FILE``, which may be repeated."""
    text = "config merged over --config-file, a path or a shipped name; may be repeated"
    _completed(parser.add_argument("--overlay", action="append", default=[], metavar="FILE", help=text))


def _completed(action):
    """Let the shell complete names of shipped configs, and paths."""

    def completer(prefix: str, **_: object) -> list[str]:
        from argcomplete.completers import FilesCompleter

        return [*(name for name in shipped_names() if name.startswith(prefix)), *FilesCompleter()(prefix)]

    action.completer = completer


def described_parser(
    description: str | None, epilog: str | None = None, usage: str | None = None
) -> argparse.ArgumentParser:
    """A parser of other command lines, which shows the texts as they are written.

    Args:
        description: of the command, mostly the docstring of its module.
        epilog: what ``--help`` ends with.
        usage: in place of argparse's own.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    return Parser(usage=usage, description=description, epilog=epilog, formatter_class=formatter)
