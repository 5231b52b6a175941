"""Logs of a run: lines on the terminal and in log.txt, which stops nothing when the disk is full."""

import logging
import os
import sys

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

FORMAT = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt="%m/%d %H:%M:%S")
_files = {}  # path -> its LogFile: the loggers of a run share it


class LogFile(logging.FileHandler):
    """A log file that is given up, with a line on stderr, when it cannot be written.

    Attributes:
        error: the OSError that ended it, or None.
    """

    error = None

    def handleError(self, record):  # noqa: N802, logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.error = OSError(error.errno, error.strerror, self.baseFilename)
        print(f"warning: {self.baseFilename}: {error.strerror}: the run goes on without this log", file=sys.stderr)
        self._drop_stream()

    def close(self):
        try:
            super().close()
        except OSError as error:  # what is left in its buffer
            self.error = OSError(error.errno, error.strerror, self.baseFilename)

    def _drop_stream(self):
        """Write to nowhere from now on; the file, with a full buffer, cannot even be closed without an error."""
        stream, self.stream = self.stream, open(os.devnull, "w")
        try:
            stream.close()
        except OSError:
            pass


def start_logs(output_dir, *names):
    """Send the lines of some loggers to the terminal (process 0) and to ``output_dir/log.txt``, as Detectron2 does.

    Args:
        output_dir: made if need be; other processes write ``log.txt.rank<N>``.
        names: of loggers.

    Raises:
        OSError: if there can be no such file.
    """
    rank = comm.get_rank()
    path = os.path.abspath(os.path.join(output_dir, "log.txt" if rank == 0 else f"log.txt.rank{rank}"))
    if path not in _files:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _files[path] = LogFile(path)
        _files[path].setFormatter(FORMAT)
    for name in names:
        logger = logging.getLogger(name)
        if not any(type(handler) is logging.StreamHandler for handler in logger.handlers):
            setup_logger.__wrapped__(distributed_rank=rank, name=name)  # not the cached one, which does it once
        if _files[path] not in logger.handlers:
            logger.addHandler(_files[path])


def raise_log_errors():
    """To be called when all else is done: OSError if a log of this process is not complete."""
    for file in _files.values():
        if file.error:
            raise file.error
