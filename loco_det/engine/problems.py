"""What goes wrong after a training: written down, so that it costs neither the training nor what else is there."""

import contextlib
import logging
import os

logger = logging.getLogger(__name__)


class UnfinishedRun(RuntimeError):
    """The network is trained, but something of its evaluation, analysis or pictures is missing."""


@contextlib.contextmanager
def recorded(problems, step):
    """Where a step fails, go on with a warning in the log and a line in ``problems``; Ctrl-C and SIGTERM pass.

    Args:
        problems: list of str.
        step: its name, such as "analysis".
    """
    try:
        yield
    except Exception as error:
        record(problems, step, error)


def record(problems, step, error):
    """Add the failure of a step to ``problems``, and to the log."""
    problems.append(f"{step}: {_reason(error)}")
    logger.warning(f"{step} failed: {_reason(error)}", exc_info=error if "LOCO_DET_TRACEBACK" in os.environ else None)


def _reason(error):
    """An exception in one line."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    words = " ".join(str(error).split())
    return words if isinstance(error, (OSError, ValueError)) and words else f"{type(error).__name__}: {words}"
