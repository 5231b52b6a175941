"""Signals that end a process in an orderly way. Without torch, which not every program that handles signals needs."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], Any]


class Terminated(SystemExit):
    """Ends a run after SIGTERM, with an exit code. Not an Exception, which would count as a failure."""


@contextlib.contextmanager
def handled(handler: Handler, *numbers: int) -> Iterator[None]:
    """A context in which a function handles the signals of these numbers; afterwards the old handlers are back.

    Raises:
        ValueError: in another thread than the main one, if there are any numbers.
    """
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, older in previous.items():
            signal.signal(number, older)


@contextlib.contextmanager
def leave_on(*numbers: int) -> Iterator[None]:
    """A context that the signals of these numbers end.

    Signals that are ignored, as SIGHUP is under nohup, stay ignored. In other threads than the main one, where Python
    handles no signals, the context has no effect.

    Raises:
        Terminated: after one of the signals, with 128 + its number, a shell's exit code.
    """

    def leave(number: int, _: FrameType | None) -> None:
        for other in taken:
            signal.signal(other, signal.SIG_IGN)  # a second signal must not interrupt the cleanup
        raise Terminated(128 + number)

    main = threading.current_thread() is threading.main_thread()
    taken = [number for number in numbers if main and signal.getsignal(number) is not signal.SIG_IGN]
    with handled(leave, *taken):
        yield
