"""``loco-det COMMAND``: every command line of the project under one name. ``tools/*.py`` are the same commands.

A command's module is imported when its name has been read, so that help and wrong names are answered at once.
"""

import atexit
import gc
import importlib
import os
import sys

from pretrain.files.version import version

from .common.commands import COMMANDS, nearest_command
from .common.errors import BAD_INPUT, FAILED, one_line_errors

EPILOG = "loco-det COMMAND --help says more. Guides: docs/, or README.md."


def main(argv: list[str] | None = None) -> int:
    """Run a sub-command; returns its exit code, 2 without a known one. See :func:`.common.errors.one_line_errors`."""
    end_at_once()
    with one_line_errors():
        return run(argv)
    return FAILED


def script(name: str, argv: list[str] | None = None) -> int:
    """Run ``tools/NAME.py``, likewise; returns its exit code."""
    end_at_once()
    with one_line_errors():
        module = next(command.module for command in COMMANDS.values() if command.script == name)
        return _main_of(module)(argv) or 0
    return FAILED


def end_at_once() -> None:
    """Let the process end without a search for garbage in all that was imported, which takes most of a second.

    It is the last thing that a process does of what is due at its end.
    """
    atexit.unregister(gc.freeze)  # of an earlier call in this process
    atexit.register(gc.freeze)


def run(argv: list[str] | None) -> int:
    """The same, but errors are raised."""
    if "_ARGCOMPLETE" in os.environ:
        return complete()
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["help"] and len(words) > 1:
        words = [words[1], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), flush=True)
        return 0 if words else BAD_INPUT
    if words[0] in ("-V", "--version"):
        print(version(), flush=True)
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        print(f"error: loco-det has no command {name!r}: {nearest_command(name)}", file=sys.stderr)
        return BAD_INPUT
    sys.argv = [f"loco-det {name}", *rest]
    return _main_of(COMMANDS[name].module)(rest) or 0


def _main_of(module):
    return importlib.import_module(f"loco_det.cli.{module}").main


def complete() -> int:
    """Print what may follow in the line that the shell completes: a command, or what its parser takes."""
    words = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split(" ")[1:]
    if len(words) > 1 and words[0] in COMMANDS:
        os.environ["_ARGCOMPLETE"] = "2"  # the words before the command's own arguments
        sys.argv = [f"loco-det {words[0]}"]
        _main_of(COMMANDS[words[0]].module)([])
    elif len(words) == 1:
        with open(8, "w", closefd=False) as stream:  # where argcomplete's shell function reads
            stream.write("\v".join(name for name in COMMANDS if name.startswith(words[0])))
    return 0


def usage() -> str:
    """What ``loco-det --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.line}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: loco-det COMMAND ...", "", *lines, "", EPILOG])
