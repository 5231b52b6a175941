"""Runs side by side: one queue, a process for each tool, and what happens when one fails or all are stopped."""

import contextlib
import functools
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# one thread a process, and glibc keeps freed memory: two such processes train faster than one of two threads
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": str(10**11),
    "MALLOC_MMAP_THRESHOLD_": str(10**11),
    "PYTHONPATH": str(ROOT),
}


class Runner:
    """Does runs, each in a folder of its own, which is ``folder / run.name``.

    Attributes:
        failed: names of the runs that failed.
        busy: names of the runs that are not finished.
    """

    def __init__(self, folder, jobs):
        """
        Args:
            folder: of all runs.
            jobs: runs at a time.
        """
        self.folder, self.jobs = Path(folder).resolve(), jobs
        self.failed, self.children, self.stopped = [], set(), False
        self.lock = threading.Lock()  # of what begins and what is stopped
        self.seen, self.busy, self.turn = set(), set(), threading.Condition()

    def do(self, run):
        """All of a run, by :meth:`call`."""
        raise NotImplementedError

    def work(self, wanted):
        """Do runs, some at a time, the first ones first; a failure is reported and the others go on.

        Args:
            wanted: function that returns a list of runs. It is asked again after each of them, since learning rates,
                and with them runs, follow from what came out.

        Raises:
            KeyboardInterrupt: if the study was stopped.
        """
        with ThreadPoolExecutor(self.jobs) as pool:
            for worker in [pool.submit(self._worker, wanted) for _ in range(self.jobs)]:
                worker.result()
        if self.stopped:
            raise KeyboardInterrupt

    def _worker(self, wanted):
        while run := self._next(wanted):
            self._attempt(run)
            with self.turn:
                self.busy.discard(run.name)
                self.turn.notify_all()

    def _next(self, wanted):
        """The first run that nobody has begun and whose folder nobody is in; None once there will be none."""
        with self.turn:
            while not self.stopped:
                for run in wanted():
                    if run not in self.seen and run.name not in self.busy:
                        self.seen.add(run)
                        self.busy.add(run.name)
                        return run
                if not self.busy:
                    return None
                self.turn.wait()

    def _attempt(self, run):
        start = time.time()
        try:
            if not self.stopped:
                self.do(run)
                print(f"{time.strftime('%H:%M:%S')}  {run.name}  {time.time() - start:.0f} s", flush=True)
        except Exception as error:  # whatever it is, the other runs go on
            if not self.stopped:
                self.failed.append(run.name)
                print(f"FAILED {run.name}: {error or type(error).__name__}", flush=True)

    def stop(self, *_):
        """Let the runs make a checkpoint and end."""
        threading.Thread(target=self._stop).start()  # the lock may be held by what the signal has interrupted

    def _stop(self):
        with self.lock:
            self.stopped = True
            for pid in self.children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        with self.turn:
            self.turn.notify_all()

    def call(self, run, tool, *arguments):
        """Run a tool to its end; its output goes to the run's log.txt, its cost to cost.jsonl.

        Raises:
            RuntimeError: if it fails, or the study is to stop.
        """
        folder = self.folder / run.name
        begun = {"what": tool, "start": time.time(), "machine": this_machine()}
        command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *map(str, arguments)]
        with open(folder / "log.txt", "a") as log, self.lock:
            if self.stopped:
                raise RuntimeError("stopped")
            note(folder / "cost.jsonl", begun)  # what is killed with this process leaves this line only
            # a session of its own, or Ctrl-C would reach it before stop() does
            child = subprocess.Popen(
                command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )
            self.children.add(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
        with self.lock:
            self.children.discard(child.pid)
        code = child.returncode = os.waitstatus_to_exitcode(status)
        seconds = {"seconds": time.time() - begun["start"], "cpu_seconds": usage.ru_utime + usage.ru_stime}
        note(folder / "cost.jsonl", {**begun, **seconds, "exit_code": code})
        if code or self.stopped:  # a tool that was stopped by SIGTERM may have ended well, its work half done
            raise RuntimeError(f"{run.name}: {tool}.py ended with exit code {code}, see {folder / 'log.txt'}")


def write(path, content):
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    temporary.write_text(content)
    os.replace(temporary, path)


def note(path, content):
    """Add a line of JSON to a file."""
    with open(path, "a") as f:
        f.write(json.dumps(content) + "\n")


@functools.cache
def this_machine():
    """The machine and what runs on it, in words."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.+)", info)
    name = re.sub(r"\(R\)|\(TM\)", "", name[1]) if name else platform.processor()
    return f"{os.cpu_count()} cores of an {name}, torch {torch.__version__.partition('+')[0]}"
