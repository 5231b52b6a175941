"""Run the steps of an evaluation as children: what is shown of them, how they end, what they leave."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from pretrain.engine.estimate import duration
from pretrain.files.atomic import write_whole
from pretrain.files.text import for_terminal
from pretrain.processes.cores import usable_cores

from ...ranking.choice import FAILED
from ...ranking.scheduler import StepFailedError
from ...ranking.steps import Step
from .invocation import child_command

TOOLS = Path(__file__).resolve().parents[3] / "tools"
ABOUT = re.compile(r"about .* iterations at .* on \S+$|SOLVER.AMP.(ENABLED auto|AUTO): .*")
PROGRESS = re.compile(r"eta: .*?loss[^ ]*: [\d.]+|Inference done \d+/\d+.*ETA=\S+")
EXPLODED = "lower SOLVER.BASE_LR"  # what train_net.py advises when a loss is not finite


class Runner:
    """Runs steps, each as a child that ends with this process.

    Attributes:
        steps: all of them.
        jobs: how many run at a time.
        gpus: for each job.
        stopped: whether no more are started.
    """

    def __init__(self, steps: list[Step], jobs: int = 1, gpus: int = 0) -> None:
        """
        Args:
            steps: all of them.
            jobs: how many run at a time. On a CPU each gets its share of the cores.
            gpus: for each job; 0: there is none, or they are not to be divided.
        """
        self.steps, self.jobs, self.gpus = steps, jobs, gpus
        self.children: set[subprocess.Popen[str]] = set()
        self.lock = threading.Lock()
        self.stopped = False

    def run(self, step: Step, number: int, job: int) -> None:
        """Run a step to its end.

        Args:
            step: the step.
            number: of the step among all, from 1.
            job: from 0; each has its own GPUs.

        Raises:
            StepFailedError: with the line that it said last.
            OSError: if its files cannot be written.
        """
        head = f"[{number}/{len(self.steps)}] {for_terminal(step.title)}"
        try:
            command = [step.tool, *step.words()]
        except ValueError as error:
            raise StepFailedError(str(error)) from error
        if step.folder and (step.folder / "last_checkpoint").exists():
            command.insert(1, "--resume")
        child, line = child_command(command[0], *command[1:], folder=TOOLS)
        self._say(f"{head}\n    {line}")
        step.done.parent.mkdir(parents=True, exist_ok=True)
        start = time.time()
        code, last, printed = self._wait(child, job, step.output is not None)
        if self.stopped:
            raise StepFailedError("stopped")
        if code:
            self._failed(step, last)
            return
        if step.output:
            write_whole(step.output, printed)
        if not step.is_done:  # after SIGTERM, training ends well with a checkpoint
            raise StepFailedError("it has stopped before its end: the same command goes on from there")
        prune(step)
        self._say(f"{head}: finished in {duration(time.time() - start)}")

    def _wait(self, command, job, keep):
        """Exit code, last lines, and, if it is to be kept, all that it printed to stdout."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE if keep else subprocess.STDOUT}
        with self.lock:
            if self.stopped:
                return 1, [], ""
            # a session of its own, or a terminal would send it Ctrl-C as well
            child = subprocess.Popen(command, text=True, env=self._environment(job), start_new_session=True, **pipes)
            self.children.add(child)
        if keep:
            printed, error = child.communicate()
            last = error.splitlines()[-20:]
        else:
            printed, last = "", show_progress(child.stdout or (), self.jobs == 1)
        code = child.wait()
        with self.lock:
            self.children.discard(child)
        return code, last, printed

    def _environment(self, job):
        env = dict(os.environ)
        if self.gpus:
            known = [name for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
            places = range(job * self.gpus, (job + 1) * self.gpus)
            env["CUDA_VISIBLE_DEVICES"] = ",".join(known[place] if known else str(place) for place in places)
        if self.jobs > 1:
            env.setdefault("OMP_NUM_THREADS", str(max(usable_cores() // self.jobs, 1)))
        return env

    def _failed(self, step, last):
        """Raise StepFailedError; but a loss that explodes at a learning rate of the grid is an answer."""
        line = next((line for line in reversed(last) if line.startswith("error: ")), last[-1] if last else "no output")
        if step.choice and EXPLODED in line:
            write_whole(step.done.parent / FAILED, line + "\n")
            self._say(f"    {for_terminal(line)}: this learning rate is out")
            return
        if not line.startswith("error: "):
            with self.lock:
                print(*map(for_terminal, last), sep="\n", file=sys.stderr)
        raise StepFailedError(line.removeprefix("error: "))

    def _say(self, text):
        with self.lock:
            print(text, flush=True)

    def stop(self, signum: int) -> None:
        """Pass a signal on to the children, start no more, and wait until they have ended.

        Args:
            signum: SIGINT, for them and their workers; or SIGTERM, on which runs write a checkpoint.
        """
        with self.lock:
            self.stopped = True
            children = list(self.children)
        for child in children:
            if child.poll() is None:
                (os.killpg if signum == signal.SIGINT else os.kill)(child.pid, signum)
        for child in children:
            child.wait()


def prune(step: Step) -> None:
    """Remove what nothing reads any more of a detector that is finished: all checkpoints but the last one, and of a run
    that is there to choose a learning rate that, too."""
    if step.tool not in ("train_net.py", "light_head.py"):
        return
    for path in step.done.parent.glob("model_*.pth"):
        if step.choice or path.name != "model_final.pth":
            path.unlink()
    if step.choice:
        for name in ("last_checkpoint", "inference/instances_predictions.pth"):
            (step.done.parent / name).unlink(missing_ok=True)


def show_progress(lines: Iterable[str], is_shown: bool = True) -> list[str]:
    """Print what tells of the progress.

    Args:
        lines: what a tool prints.
        is_shown: False: print nothing.

    Returns:
        The last lines, for an error.
    """
    shown, terminal, last = 0.0, sys.stdout.isatty(), deque[str](maxlen=21)
    for line in lines:
        last.append(line.rstrip())
        if not is_shown:
            continue
        if words := ABOUT.search(line.rstrip()):
            print(f"    {words[0]:<100}", flush=True)
        progress = PROGRESS.search(line)
        if progress and time.time() - shown > (1 if terminal else 20):
            shown = time.time()
            print(f"    {progress[0][:100]:<100}", end="\r" if terminal else "\n", flush=True)
    return list(last)
