"""Submit a training tool to Slurm, one process for each GPU. A job that is preempted or out of time is requeued and
goes on from its checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

from pretrain.processes.lifetime import module_tied_to_this_process, tied_to_this_process

from .common.arguments import described_parser
from .common.commands import COMMANDS, named_tool

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

EXAMPLE = """example:
  python tools/slurm.py --nodes 2 --gpus-per-node 8 --partition P --time 4320 -- \\
      tools/pretrain.py --config-file configs/pretrain/imagenet/resnet50_loco_800ep.yaml \\
      DATASETS.TRAIN path/to/images OUTPUT_DIR output/loco
--cluster local runs the job here, without Slurm: try a command with it first."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    run(parse(argv))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options; exits with 2 if they are none."""
    parser = described_parser(__doc__, EXAMPLE)
    parser.add_argument("--cluster", choices=["auto", "slurm", "local", "debug"], default="auto", help="default: auto")
    parser.add_argument("--nodes", type=int, default=1, help="machines; default: 1")
    parser.add_argument("--gpus-per-node", type=int, default=0, help="default: 0, for a job on CPUs")
    parser.add_argument("--tasks-per-node", type=int, help="processes on a node; default: one for each GPU")
    parser.add_argument(
        "--cpus-per-task", type=int, default=10, help="cores; at least DATALOADER.NUM_WORKERS; default: 10"
    )
    parser.add_argument("--mem-gb", type=int, help="memory of a node, in GB")
    parser.add_argument("--time", type=int, default=4320, help="minutes until the job is requeued; default: 4320")
    parser.add_argument("--partition", help="of Slurm")
    parser.add_argument(
        "--sbatch", nargs="*", default=[], metavar="KEY=VALUE", help="sbatch options such as account=NAME"
    )
    parser.add_argument("--name", default="loco-det", help="name of the job; default: loco-det")
    parser.add_argument(
        "command", nargs="+", help="after --: tools/NAME.py, or a command of loco-det, and its arguments"
    )
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Refuse a job that could not run; ``args.command`` becomes the tool and its arguments.

    Raises:
        ValueError: if an option is wrong.
        FileNotFoundError: if there is no such tool, or no Slurm.
    """
    args.command = named_tool(args.command)
    if "OUTPUT_DIR" not in args.command[1:-1]:
        raise ValueError("the tool needs OUTPUT_DIR FOLDER, by which a requeued job finds its checkpoint")
    if not all("=" in option for option in args.sbatch):
        raise ValueError(f"--sbatch takes KEY=VALUE, not {' '.join(args.sbatch)}")
    if (args.cluster == "slurm" or args.cluster == "auto" and args.nodes > 1) and not shutil.which("sbatch"):
        raise FileNotFoundError("there is no sbatch here: run this where Slurm is, or --cluster local --nodes 1")


def run(args: argparse.Namespace) -> None:
    """Submit the job; one on this machine is waited for.

    Raises:
        ValueError, FileNotFoundError: see :func:`check`.
        RuntimeError: if a job on this machine fails.
    """
    check(args)
    import submitit

    output_dir = args.command[len(args.command) - args.command[::-1].index("OUTPUT_DIR")]  # the last one counts
    executor = submitit.AutoExecutor(
        folder=os.path.join(output_dir, "slurm", "%j"),
        cluster=None if args.cluster == "auto" else args.cluster,
        slurm_max_num_timeout=100,
    )
    executor.update_parameters(
        name=args.name,
        nodes=args.nodes,
        gpus_per_node=args.gpus_per_node or None,
        tasks_per_node=args.tasks_per_node or args.gpus_per_node or 1,
        cpus_per_task=args.cpus_per_task,
        mem_gb=args.mem_gb,
        timeout_min=args.time,
        slurm_partition=args.partition,
        slurm_signal_delay_s=180,
        slurm_srun_args=["--kill-on-bad-exit=1"],  # the others would wait for the one that failed
        slurm_additional_parameters=dict(option.split("=", 1) for option in args.sbatch) or None,
    )
    job = executor.submit(Task(args.command, output_dir))
    print(f"job {job.job_id}, logs in {job.paths.folder}", flush=True)
    if executor.cluster != "slurm":
        if args.cluster == "auto":
            print("there is no Slurm here (no srun): the job runs on this machine", flush=True)
        try:
            job.results()
        except Exception as error:
            raise RuntimeError(f"job {job.job_id} failed: see the logs in {job.paths.folder}") from error


class Task:
    """What each task of the job does: run the tool as a child process that finds the other ones as under torchrun."""

    child: subprocess.Popen | None = None

    def __init__(self, command: list[str], output_dir: str):
        """
        Args:
            command: the tool and its arguments.
            output_dir: the run's folder; if there is a checkpoint in it, the tool gets --resume.
        """
        self.command, self.output_dir = command, output_dir

    def __call__(self) -> None:
        """Raises RuntimeError if the tool fails, or stops before its end without the job being requeued."""
        from submitit.helpers import TorchDistributedEnvironment

        tag = os.path.join(self.output_dir, "last_checkpoint")
        tool, *arguments = self.command
        if os.path.exists(tag) and "--eval-only" not in arguments:
            arguments.insert(0, "--resume")
        environment = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        # Slurm sends its signals to all processes of a job; this one is for submitit, and would end the child
        tied = tied_to_this_process(tool, *arguments)
        if tool in COMMANDS:
            tied = module_tied_to_this_process("loco_det", tool, *arguments)
        self.child = subprocess.Popen(tied, preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN))
        code = self.child.wait()
        if code:
            raise RuntimeError(f"{tool} ended with exit code {code}")
        if environment.rank == 0 and os.path.exists(tag):
            with open(tag) as f:
                if f.read() != "model_final.pth":
                    raise RuntimeError(f"{tool} was stopped before its end: submit the same command again to go on")

    def checkpoint(self) -> DelayedSubmission:
        """submitit calls it in the first task before the job is preempted or out of time; what it returns is queued.
        The tool's processes agree to stop when one of them gets SIGTERM."""
        from submitit.helpers import DelayedSubmission

        if self.child:  # otherwise it is not there yet
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # no longer there
                os.kill(self.child.pid, signal.SIGTERM)
                os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT)  # Popen.wait is not reentrant
        return DelayedSubmission(Task(self.command, self.output_dir))
