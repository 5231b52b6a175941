"""Freed memory is kept where that is asked for: pages of a tensor that was freed are not cleared again."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from pretrain.processes.cpu import prepare_cpu
prepare_cpu(sys.argv[1], sys.argv[2] == "True")
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def tensor():
    torch.zeros(2**24).add_(1)  # 64 MB, 16,384 pages
for _ in range(10):  # glibc aligns: the place of a tensor that was freed is too small for the next one of its size,
    tensor()  # but two such places that touch are not
before = faults()
for _ in range(10):
    tensor()
print(faults() - before, torch.tensor(1e-40).mul(0.5).item())
"""


def run(device, kept):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, device, str(kept)]
    faults, denormal = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(faults), float(denormal)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
@pytest.mark.parametrize(
    ("device", "kept", "is_kept"), [("cpu", True, True), ("cpu", False, False), ("cuda", True, False)]
)
def test_freed_memory(device, kept, is_kept):
    faults, denormal = run(device, kept)
    assert denormal == 0
    assert faults < 1000 if is_kept else faults > 100_000
