"""Every tool that writes, killed at any moment: the same command goes on to the same bits."""

import random
import signal

import pytest
from jobs import JOBS, begin, contents, differences

CI, ALL = 3, 50
TRIALS = [
    pytest.param(name, number, id=f"{name}-{number}",
                 marks=[pytest.mark.fault(f"kill -9: {name}"), *([pytest.mark.slow] if number >= CI else [])])
    for name in JOBS for number in range(ALL)
]  # fmt: skip


@pytest.mark.parametrize(("name", "number"), TRIALS)
def test_a_killed_run_ends_with_the_same_bits(call, whole, root, out, name, number):
    expected, job, draw = whole(name), JOBS[name], random.Random(f"{name} {number}")
    begin(name, root, out)
    if job.replaces and number % 2:
        assert call(name, out).returncode == 0  # an older result is there
    if number % 3 < 2:
        killed = call(name, out, "kill", draw.randrange(len(expected.operations)))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    else:
        killed = call(name, out, "time", draw.uniform(0.1, 1) * expected.seconds)
        assert killed.returncode in (-signal.SIGPROF, 0), killed.stderr  # 0: it was faster than the first one
    done = call(name, out)
    where = killed.trace[-1:] or [f"{killed.returncode}"]
    assert done.returncode == 0, f"{where}: {done.stderr}"
    assert differences(job.result(out), expected.result) == [], where
    assert [name for name in contents(out) if ".tmp" in name] == [], where
