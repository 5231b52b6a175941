"""Runs command lines in forks of one process that has imported what takes longest, torch and what is built on it.

Importing is most of the work of a short run of a tool. Nothing that depends on the environment is imported here, not
this project and not Detectron2: each fork does that itself, with its own.

For every line of JSON on stdin, (script, arguments, folder, environment, seconds allowed, files for stdout and stderr),
there is a line on stdout with the exit code; that of a signal is negative, as in subprocess.
"""

import json
import os
import random
import runpy
import signal
import sys
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import matplotlib.figure  # noqa: F401
    import numpy as np
    import torch
    import torch.utils.tensorboard  # noqa: F401
    import torchvision  # noqa: F401


def become(script, arguments, folder, environment, seconds, out, err):
    """Make of this fork what ``python script arguments`` is."""
    for path, stream in ((os.devnull, 0), (out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    random.seed()
    np.random.seed()
    sys.argv, sys.path[0] = [script, *arguments], os.path.dirname(script)
    signal.alarm(seconds)
    runpy.run_path(script, run_name="__main__")


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        become(*json.loads(line))
        break  # the interpreter ends as it does after any script
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
