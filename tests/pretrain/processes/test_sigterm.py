"""SIGTERM between iterations and in long work, on one process and on two that wait for each other."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from checkout import ROOT
from detectron2.engine import HookBase, TrainerBase

from pretrain.processes.signals import Terminated
from pretrain.processes.sigterm import stop_at_once
from pretrain.processes.sigterm_hook import StopOnSigterm


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def outer():
    """Notes of SIGTERM outside of what is tested, which has to leave all as it was."""
    notes = []

    def handler(*_):
        notes.append("outer")

    previous, threads = signal.signal(signal.SIGTERM, handler), threading.active_count()
    yield notes
    assert signal.signal(signal.SIGTERM, previous) is handler
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads


# --- long work --------------------------------------------------------------------------------------------------------


def left_by(work, code=7):
    """What ends the work inside stop_at_once, and how often the user is told."""
    said, error = [], None
    try:
        with stop_at_once(lambda: said.append(1), code):
            work()
    except BaseException as found:
        error = found
    return error, len(said)


def test_without_a_signal_nothing_happens(outer):
    assert left_by(lambda: None) == (None, 0)
    terminate()
    assert outer == ["outer"]


def test_work_is_left_at_once(outer):
    start = time.monotonic()
    error, said = left_by(lambda: (terminate(), time.sleep(60)))
    assert isinstance(error, Terminated) and error.code == 7 and said == 1 and outer == []
    assert time.monotonic() - start < 3


def test_a_signal_that_work_has_swallowed_counts_at_its_end(outer):
    def work():
        try:
            terminate()
            time.sleep(60)
        except BaseException:
            terminate()  # a second one changes nothing

    error, said = left_by(work)
    assert isinstance(error, Terminated) and said == 1 and outer == []


def test_an_error_is_what_it_was(outer):
    def work():
        raise ValueError("wrong")

    error, said = left_by(work)
    assert repr(error) == "ValueError('wrong')" and said == 0


def test_what_fails_because_of_the_signal_is_no_error(outer):
    """As a loader whose workers have got it, too."""

    def work():
        try:
            terminate()
            time.sleep(60)
        finally:
            raise RuntimeError("worker is gone")

    error, said = left_by(work)
    assert isinstance(error, Terminated) and said == 1


def test_a_signal_that_comes_when_all_is_decided_is_for_those_outside(outer, monkeypatch):
    monkeypatch.setattr("pretrain.processes.sigterm.any_process", lambda flag: (terminate(), time.sleep(1.5), flag)[2])
    assert left_by(lambda: None) == (None, 0)
    assert outer == ["outer"]


def test_signals_of_forked_processes_are_not_ours(outer):
    def work():
        with multiprocessing.get_context("fork").Pool(2) as pool:  # which sends them SIGTERM at the end
            assert pool.map(abs, [-1, 2]) == [1, 2]
        time.sleep(1.5)

    assert left_by(work) == (None, 0)


IN_C = """
import hashlib, os, signal, threading, time
from pretrain.processes import sigterm
sigterm.GRACE = 1
with sigterm.stop_at_once(lambda: print("said", flush=True), 7):
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # for minutes, in which Python handles no signals
"""


def test_work_outside_of_python_is_ended():
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", IN_C], env=env, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (7, "said\n"), done.stderr


# Of two processes: SIGTERM reaches process TO while it sleeps, or waits for the other one, or at the end of the work.
TWO = """
import os, signal, sys, threading, time
import torch
from detectron2.utils import comm
from pretrain.processes.distributed import any_process
from pretrain.processes.signals import Terminated
from pretrain.processes.sigterm import stop_at_once
rank, folder, to, when = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
assert [any_process(flag) for flag in (False, rank == 0, rank == 1, True)] == [False, True, True, True]
begun = time.monotonic()
try:
    with stop_at_once(lambda: print("said", flush=True), 7):
        if when == "end":
            if rank == to:
                signal.raise_signal(signal.SIGTERM)
        else:
            if rank == to:
                threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            if rank == 1:
                time.sleep(100)
            torch.distributed.barrier()  # process 0 waits for process 1
finally:
    print(f"{time.monotonic() - begun < 12}", flush=True)
    used = time.process_time()
    time.sleep(1)
    print(f"{time.process_time() - used < 0.05}", flush=True)  # waiting for the other process costs no CPU time
"""


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(("to", "when"), [slow(0, "work"), (1, "work"), (0, "end"), slow(1, "end")])
def test_two_processes_end_together(tmp_path, to, when):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, "-c", TWO, str(rank), str(tmp_path), str(to), when] for rank in (0, 1)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=env, **pipes) for command in commands]
    try:
        for process in processes:
            output, error = process.communicate(timeout=100)
            assert process.returncode == 7, error
            assert output.split("\n")[0] == "said" and output.count("said") == 1 and "False" not in output
    finally:
        for process in processes:
            process.kill()


# --- training ---------------------------------------------------------------------------------------------------------


class Checkpointer:
    """Files without content."""

    def __init__(self, folder):
        self.folder, self.newest = folder, ""

    def save(self, name, iteration):
        self.newest = str(self.folder / f"{name}.pth")
        (self.folder / f"{name}.pth").touch()

    def get_checkpoint_file(self):
        return self.newest

    def names(self):
        return sorted(path.stem for path in self.folder.iterdir())


class Send(HookBase):
    """Sends SIGTERM at the beginning of an iteration."""

    def __init__(self, at):
        self.at = at

    def before_step(self):
        if self.trainer.iter == self.at:
            terminate()


class Work(HookBase):
    """Long work after every second iteration and the last one, in which SIGTERM comes at iteration ``at``."""

    def __init__(self, at, stop, period=2):
        self.at, self.stop, self.period, self.there = at, stop, period, []

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.trainer.max_iter:
            with self.stop.at_once():
                self.there.append(self.trainer.checkpointer.names())
                if self.trainer.iter == self.at:
                    terminate()
                    time.sleep(60)


class Periodic(HookBase):
    def __init__(self, period):
        self.period = period

    def after_step(self):
        trainer = self.trainer
        if (trainer.iter + 1) % self.period == 0:
            trainer.checkpointer.save(f"model_{trainer.iter:07d}", iteration=trainer.iter)
        if trainer.iter + 1 == trainer.max_iter:
            trainer.checkpointer.save("model_final", iteration=trainer.iter)


def train(folder, *hooks, iterations=5):
    """Train nothing: (iterations begun, exit code or None, names of the checkpoints)."""

    class Trainer(TrainerBase):
        steps = 0

        def run_step(self):
            self.steps += 1

    trainer, code = Trainer(), None
    trainer.checkpointer = Checkpointer(folder)
    trainer.register_hooks(list(hooks))
    try:
        trainer.train(0, iterations)
    except SystemExit as exit:
        code = exit.code
    return trainer.steps, code, trainer.checkpointer.names()


def test_a_run_ends_after_the_iteration_with_a_checkpoint(tmp_path, outer):
    assert train(tmp_path, Send(1), StopOnSigterm()) == (2, 0, ["model_0000001"])
    assert train(tmp_path, Send(None), StopOnSigterm()) == (5, None, ["model_0000001"])  # knows nothing of it
    assert train(tmp_path, Send(4), StopOnSigterm()) == (5, None, ["model_0000001"])  # it is over anyway
    assert outer == []


def test_long_work_is_left_at_once_after_a_checkpoint(tmp_path):
    work = Work(3, stop := StopOnSigterm(100))
    assert train(tmp_path, stop, Periodic(100), work) == (4, 0, ["model_0000003"])
    assert work.there == [["model_0000001"], ["model_0000003"]] and stop.ended


def test_a_checkpoint_of_before_the_work_stays_until_there_is_a_newer_one(tmp_path):
    work = Work(None, stop := StopOnSigterm(4))
    assert train(tmp_path, stop, Periodic(4), work, iterations=7) == (7, None, ["model_0000003", "model_final"])
    assert work.there == [["model_0000001"], ["model_0000001", "model_0000003"], ["model_0000003", "model_0000005"],
                          ["model_0000003", "model_0000005", "model_final"]]  # fmt: skip
    assert not stop.ended


def test_one_that_a_checkpointer_keeps_is_left_to_it(tmp_path):
    work = Work(None, stop := StopOnSigterm())
    assert train(tmp_path, stop, Periodic(4), work)[2] == ["model_0000001", "model_0000003", "model_final"]


def test_work_before_the_last_checkpoint(tmp_path):
    """As precise BN, which changes what the checkpoint holds."""
    work = Work(4, stop := StopOnSigterm(100), period=100)
    assert train(tmp_path, stop, work, Periodic(100)) == (5, 0, ["model_0000004"])


def test_a_signal_of_the_last_iteration_ends_the_work_after_it(tmp_path):
    work = Work(None, stop := StopOnSigterm(100), period=100)
    assert train(tmp_path, Send(4), stop, Periodic(100), work) == (5, 0, ["model_final"])
    assert work.there == []
