"""How the command lines become several processes: what is refused, and that no process outlives its launcher."""

import os
import signal
import subprocess
import sys
import time

import pytest
from checkout import ROOT
from child_processes import child_environment

from loco_det.cli.common import launch
from loco_det.cli.common.arguments import argument_parser
from loco_det.cli.common.errors import one_line_errors
from loco_det.cli.common.process import LAUNCHER
from pretrain.processes.lifetime import is_running


@pytest.fixture
def call(monkeypatch, capsys):
    """Call launch() with arguments and environment variables: (calls of main, exit code or None, stderr)."""
    names = [name for name in os.environ if name in launch.TORCHRUN or name in launch.COUNTS]
    for name in names:
        monkeypatch.delenv(name)

    def run(*arguments, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        calls, code = [], None
        try:
            with one_line_errors():
                launch.launch(calls.append, argument_parser("").parse_args(arguments))
        except SystemExit as exit:
            code = exit.code
        return len(calls), code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE is 2"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "WORLD_SIZE is 2"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "WORLD_SIZE is 2, but LOCAL_WORLD_SIZE not set"),
        ({"RANK": "3"}, "RANK is 3"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK is 1"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE is 4"),
        ({"PMI_SIZE": "4"}, "PMI_SIZE is 4"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "SLURM_STEP_NUM_TASKS is 8"),
        ({"WORLD_SIZE": "1", "RANK": "0", "SLURM_STEP_NUM_TASKS": "8"}, "SLURM_STEP_NUM_TASKS is 8"),
    ],
)
@pytest.mark.parametrize("arguments", [(), ("--num-gpus", "2")])
def test_one_of_several_processes_that_do_not_know_of_each_other(call, environment, named, arguments):
    calls, code, error = call(*arguments, **environment)
    assert (calls, code, error.count("\n")) == (0, 2, 1)
    assert f"error: {named}" in error and "start them with torchrun or tools/slurm.py, or unset " in error


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},  # left over from something else: there is one process
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        {"RANK": "", "WORLD_SIZE": ""},
        {"RANK": "gold"},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # in a batch script of eight tasks
    ],
)
def test_a_single_process_goes_on(call, environment):
    assert call(**environment) == (1, None, "")


@pytest.mark.parametrize("option", [["--local-rank=0"], ["--local_rank=1"], ["--local-rank", "0"], ["--local_rank"]])
def test_options_of_old_launchers(call, option):
    for environment in ({}, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}):
        calls, code, error = call(*option, "--num-gpus", "1", **environment)
        assert (calls, code, error.count("\n")) == (0, 2, 1)
        assert error.startswith("error: --local-rank is from python -m torch.distributed.launch: start this with torch")


def test_machines_that_are_told_how_to_meet(call, monkeypatch):
    """By srun, or where a cluster gives each machine a RANK."""
    started = []
    monkeypatch.setattr(launch, "spawn", lambda *args, **kwargs: started.append(args[1:]))
    options = ("--num-gpus", "8", "--num-machines", "2", "--machine-rank", "1", "--dist-url", "tcp://host:29500")
    assert call(*options, RANK="1", WORLD_SIZE="2", SLURM_STEP_NUM_TASKS="2") == (0, None, "")
    assert started == [(8, 2, 1, "tcp://host:29500")] and LAUNCHER not in os.environ


# --- the end of the launcher ------------------------------------------------------------------------------------------

# Two processes, each with a worker of a loader: process 0 sleeps, process 1 waits for it in a collective operation.
SCRIPT = """
import os, sys, time
def say(what):  # in one piece, as the processes share a pipe
    os.write(1, f"{what}\\n".encode())
say(os.getpid())
sys.path.insert(0, os.getcwd())
from loco_det.cli.common.arguments import argument_parser
from loco_det.cli.common.launch import launch
import torch
from pretrain.processes.lifetime import start_worker

def worker_init(_):
    start_worker()
    say(os.getpid())

def main(args):
    loader = torch.utils.data.DataLoader(range(99), num_workers=1, worker_init_fn=worker_init)
    batches = iter(loader)
    next(batches)
    say("working")
    if torch.distributed.get_rank() == 0:
        time.sleep(100)
    torch.distributed.all_reduce(torch.ones(1))

if __name__ == "__main__":
    launch(main, argument_parser("").parse_args())
"""


@pytest.mark.fault("dead launcher: --num-gpus")
@pytest.mark.parametrize(
    ("number", "until"),
    [(signal.SIGKILL, "working"), (signal.SIGHUP, "working"), (signal.SIGKILL, "starting")],
    ids=lambda value: getattr(value, "name", value),
)
def test_processes_end_with_their_launcher(tmp_path, number, until):
    (tmp_path / "script.py").write_text(SCRIPT)
    env = child_environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    launcher = subprocess.Popen([sys.executable, tmp_path / "script.py", "--num-gpus", "2"], cwd=ROOT, env=env,
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    lines, pids = [], set()
    try:
        while lines.count("working") < 2 if until == "working" else len(pids) < 3:
            lines.append(launcher.stdout.readline().strip())
            assert launcher.poll() is None
            pids = {int(line) for line in lines if line != "working"}  # of a spawned worker twice
        assert len(pids) == (5 if until == "working" else 3) and all(map(is_running, pids))
        launcher.send_signal(number)
        launcher.wait()
        end = time.monotonic() + 5
        while any(map(is_running, pids)) and time.monotonic() < end:
            time.sleep(0.05)
        assert [pid for pid in pids if is_running(pid)] == []
    finally:
        for pid in [launcher.pid, *pids]:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
