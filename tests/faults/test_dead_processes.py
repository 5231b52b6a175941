"""A worker of a loader dies, or one of several processes: the others end soon, with one line, and the run goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkout import ROOT
from child_processes import TORCHRUN, child_environment, children
from jobs import JOBS, begin, differences, pretraining

from pretrain.processes.lifetime import is_running

SECONDS = 30  # in which all others have to end


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        pytest.param(name, batch, marks=pytest.mark.fault(f"dead worker: {name}"))
        for name, batch in (  # of detection: in training, in its last iteration, and in the evaluation
            ("pretraining", 0),
            ("pretraining", 3),
            ("detection", 1),
            ("detection", 5),
            ("detection", 6),
            ("linear probe", 0),
            ("kNN", 0),
        )
    ],
)
def test_a_dead_worker_ends_the_run_with_one_line(call, whole, root, out, name, batch):
    expected = whole(name).result
    begin(name, root, out)
    begun = time.monotonic()
    done = call(name, out, "worker", batch, ("DATALOADER.NUM_WORKERS", 2))
    assert time.monotonic() - begun < SECONDS
    errors = [line for line in done.stderr.splitlines() if "rror" in line]  # beside a warning of torch's
    assert len(errors) == 1, done.stderr
    said = errors[0]
    assert done.returncode == 1 and said.startswith("error: ") and "Traceback" not in done.stderr, done.stderr
    assert "DataLoader worker (pid" in said and ("lower DATALOADER.NUM_WORKERS" in said or "--eval-only" in said)
    done = call(name, out)
    assert done.returncode == 0, done.stderr
    assert differences(JOBS[name].result(out), expected) == []


@pytest.mark.fault("dead worker: detection")
def test_a_worker_that_dies_in_an_evaluation_costs_that_evaluation(call, whole, root, out):
    expected = whole("detection").result
    begin("detection", root, out)
    done = call("detection", out, "worker", 2, ("DATALOADER.NUM_WORKERS", 2))
    assert done.returncode == 0 and "evaluation on demo_test failed: RuntimeError: DataLoader worker" in done.stdout
    assert differences(JOBS["detection"].result(out), expected) == []


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


NUM_GPUS, STAGES = ("--num-gpus", "2"), ("MODEL.STAGE_PARALLEL.DEVICES", 2)


@pytest.mark.parametrize(
    ("launcher", "options", "word", "keys"),
    [
        pytest.param((), NUM_GPUS, "spawn_main", (), marks=pytest.mark.fault("dead rank: --num-gpus")),
        pytest.param((), NUM_GPUS, "spawn_main", STAGES, marks=pytest.mark.fault("dead rank: stages, --num-gpus")),
        pytest.param(TORCHRUN, (), "tools/pretrain.py", (), marks=pytest.mark.fault("dead rank: torchrun")),
        pytest.param(TORCHRUN, (), "tools/pretrain.py", STAGES, marks=pytest.mark.fault("dead rank: stages, torchrun")),
    ],
    ids=["--num-gpus", "--num-gpus, stages", "torchrun", "torchrun, stages"],
)
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_dead_rank_ends_the_others(root, out, launcher, options, word, keys, rank):
    command = [*launcher, "tools/pretrain.py", *options, *pretraining(root, out), "SOLVER.EPOCHS", 500.0, *keys]
    env = child_environment(OMP_NUM_THREADS="1")
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=env, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    ranks = []
    try:
        while not (out / "last_checkpoint").exists():
            assert process.poll() is None
            time.sleep(0.1)
        ranks = sorted(pid for pid in children(process.pid) if word in command_of(pid))
        assert len(ranks) == 2
        os.kill(ranks[rank], signal.SIGKILL)
        _, error = process.communicate(timeout=SECONDS)
        assert process.returncode == 1
        if not launcher:  # torchrun has a report of its own
            assert error.count("\n") == 1 and error.startswith("error: process ") and "SIGKILL" in error
        assert [pid for pid in ranks if is_running(pid)] == []
    finally:
        for pid in [process.pid, *ranks]:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
