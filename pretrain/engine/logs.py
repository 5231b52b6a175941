"""Logs of a run, on the terminal and in log.txt. A full disk ends the log and not the run."""

import copy
import logging
import os
import sys

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

FORMAT = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt="%m/%d %H:%M:%S")
# Loggers whose long messages are for log.txt: the model, lists of parameters, the config
LONG = ("detectron2.engine", "detectron2.data", "detectron2.checkpoint", "fvcore", "loco_det.engine.checkpoint")
MOST_LINES = 4  # of their messages on the terminal
_files: dict[str, "LogFile"] = {}  # by path; the loggers of a run share a file


def raise_death(error: BaseException | None) -> None:
    """Raise what torch's handler of SIGCHLD says of a loader's worker; logging would print it and go on.

    Args:
        error: what has happened while a line was written.

    Raises:
        RuntimeError: ``error``, if it is of a dead worker.
    """
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
        raise error


class Terminal(logging.StreamHandler):
    """A handler of lines for the terminal."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, logging's name
        raise_death(sys.exc_info()[1])
        super().handleError(record)


class LogFile(logging.FileHandler):
    """A log file that ends, with a line on stderr, when it cannot be written.

    Attributes:
        error: what ended it, or None.
    """

    error: OSError | None = None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, logging's name
        error = sys.exc_info()[1]
        raise_death(error)
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.error = OSError(error.errno, error.strerror, self.baseFilename)
        print(f"warning: {self.baseFilename}: {error.strerror}: the run goes on without this log", file=sys.stderr)
        self._drop_stream()

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # of writing the rest of the buffer
            self.error = OSError(error.errno, error.strerror, self.baseFilename)

    def _drop_stream(self) -> None:
        """Discard all further lines. Closing the file may fail too, because its buffer is full."""
        stream, self.stream = self.stream, open(os.devnull, "w")
        try:
            if stream:
                stream.close()
        except OSError:
            pass


class FirstLine(logging.Formatter):
    """Shows the first line of a long message of ``LONG`` loggers, and of messages with ``extra={"brief": True}``."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record for the terminal."""
        text = self.inner.format(copy.copy(record))  # Detectron2's formatter changes the name in the record
        first, *rest = text.splitlines() or [""]
        long = record.name.startswith(LONG) and len(rest) >= MOST_LINES
        if not rest or record.exc_info or not (long or getattr(record, "brief", False)):
            return text
        return f"{first.rstrip(': ')} ({len(rest)} more lines are in log.txt)"


def start_logs(output_dir: str, *names: str) -> None:
    """Send the lines of loggers to the terminal (process 0) and to ``log.txt``, as Detectron2 does.

    Args:
        output_dir: folder of log.txt (in other processes log.txt.rank<N>), made if need be.
        names: names of the loggers.

    Raises:
        OSError: if the file cannot be opened.
    """
    rank = comm.get_rank()
    path = os.path.abspath(os.path.join(output_dir, "log.txt" if rank == 0 else f"log.txt.rank{rank}"))
    if path not in _files:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _files[path] = LogFile(path)
        _files[path].setFormatter(FORMAT)
    for name in names:
        logger = logging.getLogger(name)
        if not any(type(handler) in (logging.StreamHandler, Terminal) for handler in logger.handlers):
            colored = sys.stdout.isatty()
            # without its cache, which sets up only once
            setup_logger.__wrapped__(distributed_rank=rank, name=name, color=colored)
            for handler in list(logger.handlers):
                if type(handler) is logging.StreamHandler:
                    terminal = Terminal(handler.stream)
                    terminal.setLevel(handler.level)
                    terminal.setFormatter(FirstLine(handler.formatter or FORMAT))
                    logger.removeHandler(handler)
                    logger.addHandler(terminal)
        if _files[path] not in logger.handlers:
            logger.addHandler(_files[path])


def log_to_file(record: logging.LogRecord) -> None:
    """Write a record to the log.txt of its logger, and not to the terminal."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger:
        for handler in logger.handlers:
            if isinstance(handler, LogFile):
                handler.handle(record)
        logger = logger.parent


def raise_log_errors() -> None:
    """Raise OSError if a log of this process is incomplete; to be called at the very end."""
    for file in _files.values():
        if file.error:
            raise file.error
