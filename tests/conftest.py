"""Shared by all tests: two threads at most, and where the command lines are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(2)
torch.set_flush_denormal(True)


@pytest.fixture(scope="session")
def run_tool():
    """Run ``tools/NAME`` as a user does: ``run_tool("pretrain.py", *arguments) -> CompletedProcess``."""

    def run(name, *arguments, timeout=300, **environment):
        command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)

    return run
