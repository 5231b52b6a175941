"""The folder that a run writes to: locked, with its command line in it, and gone again if the run is refused."""

import contextlib
import os
import sys
from collections.abc import Iterator

from detectron2.utils import comm

from pretrain.files.atomic import missing_folders, named_errors, remove_empty
from pretrain.files.lock import lock_folder, unlock_folder
from pretrain.files.version import version

from .invocation import command_line


def log_command(output_dir: str | os.PathLike) -> None:
    """Add this command line to ``command.txt`` in the run's folder, for the report."""
    if comm.is_main_process():
        version()  # of the code that runs now, for the results: the checkout may change meanwhile
        os.makedirs(output_dir, exist_ok=True)
        path = os.path.join(output_dir, "command.txt")
        with named_errors(path), open(path, "a", errors="surrogateescape") as f:
            f.write(command_line(sys.argv) + "\n")


def refuse_finished(output_dir: str | os.PathLike) -> None:
    """Refuse to start anew over a finished run: until the end its weights would stand beside the new run's config.

    Raises:
        ValueError: if ``model_final.pth`` is in the folder.
    """
    if os.path.exists(os.path.join(output_dir, "model_final.pth")):
        raise ValueError(
            f"{output_dir} holds a finished run, whose model_final.pth would be lost: name another OUTPUT_DIR, remove "
            "that folder, or add --resume"
        )


@contextlib.contextmanager
def run_folder(output_dir: str | os.PathLike) -> Iterator[None]:
    """Make a run's folder, locked as long as this process lives, with a ``command.txt`` in the end; and remove it again
    where the run is refused, with the folders above it that were made for it: all that may refuse it is to be done
    inside this context, before the work begins.

    A folder stays that was there before, that holds more than what every run begins with, or, of several processes,
    that another one has made.
    """
    made = missing_folders(output_dir)
    try:
        if comm.is_main_process():
            lock_folder(output_dir)
        yield
        log_command(output_dir)
    except (OSError, ValueError):
        if comm.is_main_process():
            unlock_folder(output_dir)
            _remove_beginning(output_dir, made)
        raise


def _remove_beginning(output_dir, made):
    """Remove the folder of a refused run, if it holds no more than a beginning, and those above it that it needed."""
    names = os.listdir(output_dir) if made and os.path.isdir(output_dir) else []
    if all(name in ("command.txt", "config.yaml", "metrics.json") or name.startswith("log.txt") for name in names):
        for name in names:
            os.remove(os.path.join(output_dir, name))
        remove_empty(made)
