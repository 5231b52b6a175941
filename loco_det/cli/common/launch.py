"""How a command line becomes the processes of a run: spawned here, or one of those that torchrun has started."""

import argparse
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable

import torch
from detectron2.engine import launch as spawn
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

from pretrain.engine.logs import raise_log_errors
from pretrain.files.lock import unlock_all
from pretrain.processes.lifetime import ask_kernel

from .process import LAUNCHER

Main = Callable[[argparse.Namespace], None]
TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
# How many processes there are, as other launchers tell each of them: those before torchrun, Open MPI, MPICH and Intel
# MPI, MVAPICH, srun
COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
RANKS = ("RANK", "LOCAL_RANK")


def launch(main: Main, args: argparse.Namespace) -> None:
    """Call ``main(args)`` in every process of a run.

    Under torchrun, and whatever else sets its environment variables, this is one of the processes. Otherwise they are
    spawned as Detectron2 does for ``--num-gpus`` and ``--num-machines``, get the SIGTERM that this one gets, and end
    when this one ends.

    Args:
        main: function of a module that can be imported.
        args: of :func:`loco_det.cli.common.arguments.argument_parser`.

    Raises:
        ValueError: if the arguments contradict each other, or if this is one of several processes that have not been
            told how to meet: each would do the whole work, in the same folder.
    """
    if args.local_rank is not None:
        raise ValueError(
            "--local-rank is from python -m torch.distributed.launch: start this with torchrun instead, which takes "
            "the same options"
        )
    if os.environ.keys() >= TORCHRUN:
        if args.num_gpus * args.num_machines > 1:
            raise ValueError("torchrun says how many processes there are: leave out --num-gpus and --num-machines")
        _join()
        _run(main, args)
        torch.distributed.destroy_process_group()
        return
    _check_machines(args)
    if args.num_gpus * args.num_machines == 1:
        _run(main, args)
    else:
        _spawn(main, args)


def _check_machines(args):
    """ValueError if the processes that the arguments ask for cannot be, or if this is one of others."""
    if args.num_machines == 1:  # otherwise it is said how they meet, whatever has started one on each machine
        _refuse_copies()
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError("--num-machines above 1 needs --dist-url tcp://HOST:PORT, with a port of machine 0")
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise ValueError(f"--num-gpus is {args.num_gpus}, but there are {torch.cuda.device_count()} GPUs")


def _refuse_copies():
    """Refuse to be one of several processes that do not know of each other. What says that there is one only, as an
    environment does that was once set for a single process, is no reason."""
    found = {name: os.environ[name] for name in (*COUNTS, *RANKS) if os.environ.get(name, "").isdigit()}
    several = [name for name, value in found.items() if int(value) > (name in COUNTS)]
    if several:
        missing = ", ".join(sorted(TORCHRUN - os.environ.keys()))
        raise ValueError(
            f"{several[0]} is {found[several[0]]}, but {missing} not set: this is one of several processes that would "
            f"each do the whole work; start them with torchrun or tools/slurm.py, or unset {' '.join(several)} to run "
            "one alone"
        )


def _spawn(main, args):
    """Start the processes of this machine, and wait for them."""
    previous = signal.signal(signal.SIGTERM, _forward)
    machines = args.num_gpus, args.num_machines, args.machine_rank, args.dist_url
    os.environ[LAUNCHER] = str(os.getpid())
    if args.num_machines == 1:  # torch warns with stack traces of C++ that process 0, which has failed, is gone
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        spawn(_spawned, *machines, args=(main, args))
    finally:
        del os.environ[LAUNCHER]
        signal.signal(signal.SIGTERM, previous)


def _spawned(main, args):
    ask_kernel()  # again: torch.multiprocessing has asked it for SIGINT since
    _run(main, args)


def _run(main, args):
    """Call ``main(args)``; in the end folders are unlocked, and a log that could not be written is an OSError."""
    try:
        main(args)
    finally:
        unlock_all()
    raise_log_errors()


def _join():
    """Meet the other processes that torchrun has started."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()


def _forward(signum, _):
    for child in multiprocessing.active_children():
        with contextlib.suppress(ProcessLookupError):  # it may have ended meanwhile
            os.kill(child.pid, signum)
