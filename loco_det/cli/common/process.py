"""What every process of a command line does before anything else. Imports no torch, which takes seconds."""

import contextlib
import logging
import os
import re
import warnings

from pretrain.files.text import for_log
from pretrain.processes.lifetime import end_with_parent

COLOR = re.compile(r"\x1b\[[\d;]*m")  # which Detectron2 writes into its messages, also into files
LAUNCHER = "LOCO_DET_LAUNCHER"  # environment variable: the process by whose launch() this one was spawned


def prepare_process() -> None:
    """End this process with its launcher, if it has one, and keep other people's noise from the terminal."""
    end_with_launcher()
    warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)  # Detectron2 does, on import
    warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)  # when it runs
    warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)  # of masks, in its loader
    for name in ("torch.multiprocessing.spawn", "torch.utils.cpp_extension", "torch.fx._symbolic_trace"):
        # each child that is ended; no CUDA compiler; a change that concerns Detectron2's authors
        logging.getLogger(name).setLevel(logging.ERROR)
    escape_logs()  # on import, so that it holds in the children of a run and for all of its libraries


def end_with_launcher() -> None:
    """Have this process killed when the one ends that has spawned it, as the environment says."""
    if LAUNCHER in os.environ:
        end_with_parent(int(os.environ[LAUNCHER]))
        os.environ[LAUNCHER] = str(os.getpid())  # a loader's workers may be spawned, too


def escape_logs() -> None:
    """Log names of classes, files and data sets without the escape sequences that a terminal would obey."""
    factory = logging.getLogRecordFactory()
    if not isinstance(factory, _Escaping):  # else this is a process of several command lines
        logging.setLogRecordFactory(_Escaping(factory))


class _Escaping:
    """Makes log records whose text is escaped."""

    def __init__(self, factory):
        self.factory = factory

    def __call__(self, *args, **kwargs):
        record = self.factory(*args, **kwargs)
        with contextlib.suppress(TypeError, ValueError, KeyError):  # a message that does not fit its arguments
            record.msg, record.args = for_log(COLOR.sub("", record.getMessage())), None
        return record
