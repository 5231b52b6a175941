"""A command as the child of another one, which passes its signals on."""

import contextlib
import os
import signal
import subprocess


def run_child(command: list[str]) -> tuple[int, list[int]]:
    """Run a command; Ctrl-C and SIGTERM reach it once, wherever they come from, and it is waited for.

    Returns:
        Its exit code, and the signals that were passed on.
    """
    process, signals = None, []

    def forward(signum, _):
        signals.append(signum)
        if process:
            pass_on(signum)

    def pass_on(signum):
        # Ctrl-C is for its workers too; what they are told on SIGTERM is for it to say
        with contextlib.suppress(ProcessLookupError):  # it may have ended meanwhile
            (os.killpg if signum == signal.SIGINT else os.kill)(process.pid, signum)

    previous = {signum: signal.signal(signum, forward) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(command, start_new_session=True)  # or a terminal would send it Ctrl-C as well
        for signum in signals:  # that came before it was there
            pass_on(signum)
        return process.wait(), signals
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
