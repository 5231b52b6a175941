"""What is said to a person about a download: on stderr, because stdout may be JSON, and before a run has a log."""

import sys

from ..text import for_terminal


def say(line: str) -> None:
    """Print one line to stderr."""
    print(for_terminal(line), file=sys.stderr, flush=True)
