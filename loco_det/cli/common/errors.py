"""How a command line ends when something goes wrong: one line on stderr, and an exit code."""

import builtins
import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NoReturn

from pretrain.files.atomic import FULL
from pretrain.files.text import for_terminal

from .invocation import as_called

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
TERMINATED = 128 + signal.SIGTERM  # exit code, as of a shell
SIGNAL = re.compile(r"is killed by signal: (\w+)")  # torch's words of a loader's worker
FULL_MEMORY = "most often the memory is full: lower DATALOADER.NUM_WORKERS; "
KEPT = "what was written until then is kept"
OPTIONAL = ("kornia", "submitit")  # packages that an installation may lack
IS_FULL = re.compile(rf"\[Errno ({'|'.join(map(str, FULL))})\]")
SHOW_TRACEBACK = "LOCO_DET_TRACEBACK" in os.environ


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors into one line on stderr and an exit code: 2 for bad input, 1 for a failure (such as a full disk),
    130 for Ctrl-C, 143 for SIGTERM where nothing can be resumed.

    With LOCO_DET_TRACEBACK set in the environment the traceback is shown instead.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError as error:
        if error.filename:
            _exit(str(error), FAILED, error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads what is left in the buffer
        sys.exit(128 + signal.SIGPIPE)
    except (OSError, ValueError) as error:
        full = IS_FULL.match(str(error))
        _exit(message_of(error), FAILED if full else BAD_INPUT, error)
    except (RuntimeError, FloatingPointError, AssertionError) as error:
        _exit(str(error) or repr(error), FAILED, error)
    except Exception as error:
        if _is_of_child(error, "ProcessRaisedException"):
            message, code = _raised_in_child(error)
            _exit(message, code, error)
        if _is_of_child(error, "ProcessExitedException"):
            if getattr(error, "exit_code", None) == TERMINATED:  # the child has said it
                sys.exit(TERMINATED)
            _exit(str(error), FAILED, error)
        if isinstance(error, ModuleNotFoundError):
            _exit(missing_module(error), FAILED, error)
        where = "set LOCO_DET_TRACEBACK=1 to see where, and please report it"  # nobody has foreseen it
        _exit(f"unexpected {type(error).__name__}: {error}; {where}", FAILED, error)


def missing_module(error: ModuleNotFoundError) -> str:
    """What to do about a package that is not installed."""
    package = (error.name or "").split(".")[0]
    if package == "detectron2":
        return "Detectron2 is not installed: run python tools/install_detectron2.py"
    if package in OPTIONAL:
        return f"this needs {package}, which is not installed: pip install {package}"
    return f"{error}: not all is installed that this needs, see Install in README.md"


def message_of(error: Exception) -> str:
    """The text of an error; of the operating system's errors the files and what is wrong with them."""
    if not (isinstance(error, OSError) and error.filename and error.strerror):
        return str(error)
    files = [str(name) for name in (error.filename, error.filename2) if name]
    return f"{' -> '.join(files)}: {error.strerror}"


def _is_of_child(error, kind):
    """Whether an error is torch's of a spawned process; that module is imported if there has been one."""
    module = sys.modules.get("torch.multiprocessing.spawn")
    return module is not None and isinstance(error, getattr(module, kind))


def _raised_in_child(error):
    """(message, exit code) of a child's error, which arrives as the text of its traceback."""
    kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
    kind = getattr(builtins, kind, RuntimeError)  # torch's own are RuntimeErrors
    bad_input = issubclass(kind, (OSError, ValueError)) and not IS_FULL.match(message)
    return message, BAD_INPUT if bad_input else FAILED


def _exit(message, code, error) -> NoReturn:
    if SHOW_TRACEBACK:
        raise error
    if message.startswith("Caught "):  # by a loader's worker: a traceback, whose last line is the error
        message = message.strip().splitlines()[-1].partition(": ")[2]
    if message.startswith("DataLoader worker (pid"):
        ended = SIGNAL.search(message)
        why = FULL_MEMORY if not ended or ended[1] in ("Killed", "Bus") else ""
        why = "somebody has ended it, and with it the run; " if ended and ended[1] == "Terminated" else why
        message = f"{message.rstrip('. ')}: {why}{KEPT}"
    rank = os.environ.get("RANK", "0")  # torchrun's children share a terminal
    line = for_terminal(as_called(" ".join(message.split())))
    print(f"{'' if rank == '0' else f'process {rank}: '}error: {line}", file=sys.stderr)
    sys.exit(code)


def stopped_by_sigterm(line: str) -> AbstractContextManager[None]:
    """A context for what cannot be resumed: SIGTERM leaves it at once, with one line and exit code 143."""
    from detectron2.utils import comm

    from pretrain.processes.sigterm import stop_at_once

    def say():
        if comm.is_main_process():
            print(f"stopped by SIGTERM: {line}", file=sys.stderr)

    return stop_at_once(say, TERMINATED)


def quiet_trainer() -> None:
    """TrainerBase logs the traceback of whatever stops it: leave that to :func:`one_line_errors`."""
    logging.getLogger("detectron2.engine.train_loop").addFilter(lambda r: SHOW_TRACEBACK or r.exc_info is None)
