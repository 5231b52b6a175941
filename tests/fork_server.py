"""Runs command lines in forks of one process that has imported what takes longest, torch and what is built on it.

Importing is most of the work of a short run of a tool. This project is not imported here, as it depends on the
environment: each fork does that itself, with its own. Detectron2 does, too: a fork forgets it if that is another one.
Variables that Python, OpenMP or MKL read at their start have no effect, and all forks have one seed of hashes: what
such things decide needs a process of its own.

For every line of JSON on stdin, (script, arguments, folder, environment, seconds allowed, files for stdout and stderr),
there is a line on stdout with the exit code; that of a signal is negative, as in subprocess. What a script leaves
behind is waited for, and after some seconds killed.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import signal
import sys
import time
import warnings

import cv2  # noqa: F401
import jinja2  # noqa: F401
import matplotlib.figure  # noqa: F401
import numpy as np
import torch
import torch.utils.tensorboard  # noqa: F401
import torchvision  # noqa: F401

with warnings.catch_warnings(action="ignore"):
    import detectron2.engine
    import detectron2.evaluation  # noqa: F401

BEGAN = dict(os.environ)  # Detectron2 has read it


C, KEPT = ctypes.CDLL(None), []


@atexit.register  # the first, and so the last that is called
def forget():
    """Take from the interpreter what it would take apart at its end, although the kernel does it at once.

    The objects of the script itself end as they always do. What libraries in C++ would do after that is left out.
    """
    C.fflush(None)
    kept = {name for name in IMPORTED if name.partition(".")[0] not in sys.stdlib_module_names} - {"__main__"}
    KEPT.extend(sys.modules.pop(name, None) for name in kept)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(KEPT))  # for ever
    with contextlib.suppress(AttributeError):  # only of glibc
        C.on_exit(C._exit, None)  # with the code


def become(script, arguments, folder, environment, seconds, out, err):
    """Make of this fork what ``python script arguments`` is, with processes of its own in its group."""
    os.setsid()
    for path, stream in ((os.devnull, 0), (out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), stream)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(seconds)
    os.chdir(folder)
    if {k for k, _ in BEGAN.items() ^ environment.items() if k.startswith("DETECTRON2_")}:
        for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
            del sys.modules[name]
    os.environ.clear()
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    random.seed()
    np.random.seed()
    sys.argv, sys.path[0] = [script, *arguments], os.path.dirname(script)
    runpy.run_path(script, run_name="__main__")


def await_group(group, seconds=10):
    """Wait until the last process of a group has ended."""
    end = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.01)


for module in sys.argv[1:]:
    importlib.import_module(module)
IMPORTED = set(sys.modules)
gc.freeze()  # else the end of each fork looks through all that was imported, and copies it
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        become(*json.loads(line))
        break  # the interpreter ends as it does after any script
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        await_group(child)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    print(code, flush=True)
