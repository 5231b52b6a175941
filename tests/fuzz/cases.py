"""How a target is fuzzed: many cases, each of a seed, watched for what it raises, how long it takes, and memory.

``make test`` runs the same few cases each time. ``make fuzz`` runs new ones for FUZZ_SECONDS in all, and every failure
names its seed: FUZZ_SEED=<that> with the same test repeats it.
"""

import faulthandler
import itertools
import os
import random
import re
import resource
import signal
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

from checkout import ROOT

SECONDS = 10  # that a case may take
MEMORY = 2 * 2**30  # bytes that a case may take beside what the process has
MOST = 20  # failures that are told


class Hang(BaseException):
    """A case takes too long; no ``except Exception`` hides it."""


def fuzz(case, count, share):
    """Run ``case`` for many seeds; those that fail at the same place count once.

    Args:
        case: function of a ``random.Random``; it fails by any exception.
        count: cases of ``make test``.
        share: fraction of FUZZ_SECONDS that this target gets.

    Raises:
        AssertionError: naming a seed of each kind of failure.
    """
    failures, most = {}, _peak(reset=True) + MEMORY
    for seed in _seeds(count, share):
        try:
            with _limits():
                case(random.Random(seed))
            assert _peak() < most, f"took {(_peak() - most + MEMORY) / 1e9:.1f} GB"
        except (Exception, Hang) as error:
            failures.setdefault(_place(error), f"FUZZ_SEED={seed}: {type(error).__name__}: {str(error)[:300]}")
            most = _peak(reset=True) + MEMORY
            if len(failures) == MOST:
                break
    lines = [f"{text} at {place}" for place, text in failures.items()]
    assert not failures, "\n".join([f"{len(failures)} kinds of failure", *lines])


def _seeds(count, share):
    if "FUZZ_SEED" in os.environ:
        return [int(os.environ["FUZZ_SEED"])]
    if "FUZZ_SECONDS" not in os.environ:
        return range(count)
    first = random.SystemRandom().randrange(10**9)
    return itertools.takewhile(_until(float(os.environ["FUZZ_SECONDS"]) * share), itertools.count(first))


def _until(seconds):
    end = time.monotonic() + seconds
    return lambda _: time.monotonic() < end


@contextmanager
def _limits():
    """Raise Hang after SECONDS; where nothing of Python runs any more, end the process with a traceback."""

    def stop(signum, frame):
        raise Hang(f"more than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(6 * SECONDS, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        faulthandler.cancel_dump_traceback_later()


def _peak(reset=False):
    """The most memory that this process has held, in bytes; since the last reset, where the system can (Linux)."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _place(error):
    """Where in the project's own code an error was raised, by which failures are told apart."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(ROOT))]
    own = [frame for frame in frames if "/tests/" not in frame.filename and "/.venv/" not in frame.filename]
    frame = (own or frames)[-1]
    return f"{os.path.relpath(frame.filename, ROOT)}:{frame.lineno} ({type(error).__name__})"


def one_line(error, path=None, most=2000):
    """The line that a user sees of an expected error; AssertionError if it is not one line, or names no file.

    Args:
        error: the exception.
        path: of the file that it must name, or of a folder around that; None: any.
        most: characters.
    """
    line = str(error)
    assert line and "\n" not in line and "\r" not in line, repr(line[:300])
    assert len(line) < most, line[:300]
    assert path is None or str(path) in line, f"names no {path}: {line[:300]}"
    return line
