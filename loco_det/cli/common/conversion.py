"""What both converters say: what was converted, how well the networks agree, or one line of why nothing was written."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pretrain.files.remote import shown
from pretrain.files.text import for_terminal

from .invocation import as_called
from .late_compiler import ask_no_compiler, import_torchvision

if TYPE_CHECKING:
    from ...convert import Conversion


def as_process() -> None:
    """What a process does before it converts: import what it needs, and leave nothing half-written on a signal."""
    import_torchvision()
    import loco_det.convert  # noqa: F401, which takes seconds: before the signals are taken

    ask_no_compiler()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, which leaves nothing half-written
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as head may have seen enough
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of a file, on a terminal of another encoding


def print_conversion(conversion: Callable[[], Conversion], args: argparse.Namespace) -> int:
    """Call a conversion and print what it did, or one line; returns the exit code.

    Args:
        conversion: function of no arguments.
        args: options of the command line: "checkpoint" for messages, "json" for one JSON object instead of text.
    """
    from ...convert import VerificationError

    try:
        result = conversion()
    except FileNotFoundError as error:
        return fail(error, 2)
    except VerificationError as error:
        return fail(VerificationError(f"{shown(args.checkpoint)}: {error}; nothing was written"), 1)
    except (OSError, ValueError) as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail(KeyboardInterrupt("interrupted, nothing was written"), 130)
    report(result, args.json)
    return 0


def report(result: Conversion, as_json: bool = False) -> None:
    """Print what a conversion did."""
    if as_json:
        print(json.dumps(result.as_dict(), indent=2))
        return
    for line in _lines(result):
        print(for_terminal(line))


def _lines(result: Conversion) -> Iterator[str]:
    """What a conversion did, in lines of text."""
    from ...convert import yaml_lines

    source = result.source
    dropped = ", ".join(f"{count} of {name}" for name, count in source.dropped.items()) or "none"
    place = f" at {source.location!r}" if source.location else ""
    yield f"source: {source.arch}{place}, laid out as {source.layout} ({source.project}); entries dropped: {dropped}"
    for note in source.notes:
        yield f"note: {note}"
    yield "largest difference from the source network, absolute (relative):"
    for name, evaluated in result.differences["eval"].items():
        trained = result.differences["train"][name]
        yield (
            f"  {name}  eval mode {evaluated.absolute:.3g} ({evaluated.relative:.3g})"
            f"  training mode {trained.absolute:.3g} ({trained.relative:.3g})"
        )
    kind = f"{source.arch}, {result.entries} arrays, {result.size / 1e6:.1f} MB, verified"
    yield f"wrote {result.output}: {kind}" if result.output else f"checked, nothing written: {kind}"
    if result.config_file or not result.output:
        where = f", written to {result.config_file}" if result.config_file else ""
        yield f"config that these weights need{where}:"
        yield from yaml_lines(result.config)


def fail(error: BaseException, code: int) -> int:
    """Print one line to stderr, whatever characters a file's names have; returns the exit code."""
    if "LOCO_DET_TRACEBACK" in os.environ:
        raise error
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    print("error:", for_terminal(as_called(text)), file=sys.stderr)
    return code
