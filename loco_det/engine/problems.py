"""Failures after the training are recorded, so that the other steps still run."""

import contextlib
import logging
import os
from collections.abc import Iterator

logger = logging.getLogger(__name__)


class UnfinishedRun(RuntimeError):
    """The network is trained, but a part of its evaluation, analysis or pictures has failed."""


@contextlib.contextmanager
def recorded(problems: list[str], step: str) -> Iterator[None]:
    """A context whose failure becomes a warning in the log and a line in ``problems``; Ctrl-C and SIGTERM pass.

    Args:
        problems: the line is appended to it.
        step: name of the step, such as "analysis".
    """
    try:
        yield
    except Exception as error:
        record(problems, step, error)


def record(problems: list[str], step: str, error: Exception) -> None:
    """Add the failure of a step to ``problems``, and to the log."""
    problems.append(f"{step}: {_reason(error)}")
    logger.warning(f"{step} failed: {_reason(error)}", exc_info=error if "LOCO_DET_TRACEBACK" in os.environ else None)


def _reason(error: Exception) -> str:
    """An exception in one line."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    words = " ".join(str(error).split())
    return words if isinstance(error, (OSError, ValueError)) and words else f"{type(error).__name__}: {words}"
