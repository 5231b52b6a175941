"""Child processes of tests: the environment they need, how they are started, and theirs."""

import os
from pathlib import Path

from checkout import ROOT

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

# tools/TOOL; but at the beginning of iteration AT, process WHO has a signal sent to itself, with its loader's workers,
# so that what comes before is the same every time.
SIGNALLED = """
import os, runpy, subprocess, sys
sys.path.insert(0, os.getcwd())
from {module} import {trainer}
name, at, who = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.argv[1:4] = []
run_step = {trainer}.run_step
def step(self):
    if self.iter == at and os.environ.get("RANK", "0") == who:
        pids = [os.getpid(), *(w.pid for w in getattr(self.batches, "_workers", []))]
        subprocess.run(["kill", f"-{{name}}", *map(str, pids)])
    run_step(self)
{trainer}.run_step = step
runpy.run_path("tools/{tool}", run_name="__main__")
"""


def child_environment(**more):
    """Environment variables of a process that imports this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def children(pid):
    """Ids of the child processes of all threads of a process."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
