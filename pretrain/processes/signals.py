"""Signals that end a process in good order. Imports no torch: not all that gets signals needs it."""

import contextlib
import signal
import threading


class Terminated(SystemExit):
    """Ends a run after SIGTERM, with an exit code. No Exception, which would be taken for a failure."""


@contextlib.contextmanager
def handled(handler, *numbers):
    """Have signals handled by a function; at the end as before."""
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, older in previous.items():
            signal.signal(number, older)


@contextlib.contextmanager
def leave_on(*numbers):
    """Leave a context by :class:`Terminated`, with the exit code of a shell, when one of these signals comes.

    Those that are ignored, as SIGHUP is under nohup, stay so; and so does all in other threads than the main one, where
    Python handles no signals.
    """

    def leave(number, _):
        for other in taken:
            signal.signal(other, signal.SIG_IGN)  # a second one must not interrupt the putting in order
        raise Terminated(128 + number)

    main = threading.current_thread() is threading.main_thread()
    taken = [number for number in numbers if main and signal.getsignal(number) is not signal.SIG_IGN]
    with handled(leave, *taken):
        yield
