"""Two runs in one folder: the second is refused at its start, and a lock ends with its process."""

import signal
import subprocess
import sys

import pytest
from checkout import ROOT
from jobs import JOBS, begin, contents

HOLD = """
import sys, time
from pretrain.files.lock import lock_folder
lock_folder(sys.argv[1])
print()
time.sleep(600)
"""
RUNS = ("pretraining", "detection", "linear probe", "kNN", "low-shot summary")


@pytest.fixture
def holder(out):
    """A process that has the folder."""
    process = subprocess.Popen([sys.executable, "-uc", HOLD, out], cwd=ROOT, stdout=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("name", "resume"),
    [
        pytest.param(name, resume, marks=pytest.mark.fault(f"two runs: {name}"))
        for name in RUNS
        for resume in ((False, True) if JOBS[name].resumes else (False,))
    ],
)
def test_the_second_is_refused(call, whole, root, out, holder, name, resume):
    whole(name)
    begin(name, root, out)
    if resume:
        for file in (root / name).iterdir():
            if file.is_file() and not file.name.startswith("."):
                (out / file.name).write_bytes(file.read_bytes())
    holder.stdout.readline()
    before = contents(out)
    done = call(name, out)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"error: {out}: another run (process {holder.pid} on " in done.stderr
    assert "uses this folder: wait until it ends, or set another OUTPUT_DIR" in done.stderr
    assert contents(out) == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    done = call(name, out)
    assert done.returncode == 0, done.stderr
