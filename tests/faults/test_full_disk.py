"""Every tool that writes, on a disk that is full from any moment on: one line that names the file."""

import random

import pytest
from jobs import JOBS, begin, contents, differences

CI, ALL = 2, 20
TRIALS = [
    pytest.param(name, number, id=f"{name}-{number}",
                 marks=[pytest.mark.fault(f"full disk: {name}"), *([pytest.mark.slow] if number >= CI else [])])
    for name in JOBS for number in range(ALL)
]  # fmt: skip


@pytest.mark.parametrize(("name", "number"), TRIALS)
def test_a_full_disk_is_said_and_loses_nothing(call, whole, root, out, name, number):
    expected, job, draw = whole(name), JOBS[name], random.Random(f"full {name} {number}")
    begin(name, root, out)
    if job.replaces and number % 2:
        assert call(name, out).returncode == 0  # an older result is there
    before = contents(out)
    moments = [i for i, operation in enumerate(expected.operations) if operation.startswith("open")]
    moment = draw.choice(moments)
    done = call(name, out, "full", moment)
    said = [line for line in done.stderr.replace("\r", "\n").splitlines() if "rror" in line]
    where = f"{done.trace[-3:]}: {done.stderr}"
    if any(operation.startswith("open") for operation in done.trace[moment:]):  # threads have a pace of their own
        assert done.returncode == 1 and len(said) == 1 and "Traceback" not in done.stderr, where
        assert said[0].startswith("error: ") and str(out) in said[0] and "No space left on device" in said[0], where
    left = contents(out)
    assert [name for name in left if ".tmp" in name] == [], where
    if job.replaces:
        assert before.keys() <= left.keys() | {"results.json"}, where  # kNN's is of its latest run only
    done = call(name, out)
    assert done.returncode == 0, f"{where}, {done.stderr}"
    assert differences(job.result(out), expected.result) == [], where
