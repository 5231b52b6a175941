"""What the command lines share: config merging, launching of processes, and one-line errors with exit codes."""

import argparse
import ast
import builtins
import contextlib
import functools
import logging
import multiprocessing
import os
import re
import shlex
import signal
import sys
import warnings

warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)  # Detectron2 does, on import
warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)  # when it runs

from pretrain.processes.lifetime import ask_kernel, end_with_parent

LAUNCHER = "LOCO_DET_LAUNCHER"  # environment variable: the process by whose launch() this one was spawned
if LAUNCHER in os.environ:
    end_with_parent(int(os.environ[LAUNCHER]))  # before torch is imported, which takes seconds
    os.environ[LAUNCHER] = str(os.getpid())  # a loader's workers may be spawned, too

import torch
from detectron2.engine import default_argument_parser
from detectron2.engine import launch as spawn
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from pretrain.encoders import is_own_code
from pretrain.engine.logs import raise_log_errors
from pretrain.files.atomic import FULL, named_errors
from pretrain.files.lock import lock_folder, unlock_all, unlock_folder
from pretrain.files.text import for_log, for_terminal
from pretrain.files.yaml_files import merge_config_file, parse_yaml
from pretrain.processes.sigterm import stop_at_once

for name in ("torch.multiprocessing.spawn", "torch.utils.cpp_extension", "torch.fx._symbolic_trace"):
    # each child that is ended; no CUDA compiler; a change that concerns Detectron2's authors
    logging.getLogger(name).setLevel(logging.ERROR)
IS_FULL = re.compile(rf"\[Errno ({'|'.join(map(str, FULL))})\]")
RUN_AS_CODE = ("MODEL.ENCODER", "MODEL.SOURCE.ENCODER")  # keys whose value may name a function that is called
LETS_CODE_RUN = "MODEL.SOURCE.UNSAFE_LOAD"  # True: whatever is in a checkpoint is unpickled
TERMINATED = 128 + signal.SIGTERM  # exit code, as of a shell
DEAD_WORKER = "most often the memory is full: lower DATALOADER.NUM_WORKERS; what was written until then is kept"
SHOW_TRACEBACK = "LOCO_DET_TRACEBACK" in os.environ


def merge_config(cfg, args):
    """Merge ``args.config_file`` and the KEY VALUE pairs of ``args.opts`` into ``cfg``.

    Raises:
        ValueError: on an unknown key, a value of the wrong type, a file that is no YAML, or what is no KEY VALUE pair;
            one line.
        OSError: if the file cannot be read.
    """
    before = cfg.clone()
    logging.getLogger("fvcore.common.config").setLevel(logging.CRITICAL)  # yacs logs what it raises
    logging.getLogger("yacs.config").setLevel(logging.CRITICAL)
    logging.getLogger("detectron2.config.compat").setLevel(logging.ERROR)  # of each file without a VERSION
    if args.config_file:
        with _explained(cfg, args.config_file):
            merge_config_file(cfg, args.config_file)
        _refuse_code_in_file(cfg, args)
        _refuse_nothing(cfg, before, args.config_file)
    with _explained(cfg, "the KEY VALUE pairs"):
        cfg.merge_from_list(_as_defaults(cfg, _pairs(args.opts)))
    _refuse_nothing(cfg, before, "the KEY VALUE pairs")
    return cfg


def _refuse_nothing(cfg, default, where, above=""):
    """ValueError if a key has lost its value to YAML's null or Python's None, which yacs takes for any type."""
    for key, value in default.items():
        if cfg[key] is None and value is not None:
            raise ValueError(f"{above}{key} has no value (in {where}): write one, or leave the key out")
        if isinstance(value, dict):
            _refuse_nothing(cfg[key], value, where, f"{above}{key}.")


def _refuse_code_in_file(cfg, args):
    """ValueError if the config file, and not the command line, names code that would be run, or lets it be run."""
    for key in (*RUN_AS_CODE, LETS_CODE_RUN):
        value = functools.reduce(lambda node, part: node.get(part, {}) if node else {}, key.split("."), cfg)
        if key in args.opts[::2]:
            continue
        if key == LETS_CODE_RUN and value:
            raise ValueError(
                f"{args.config_file}: {key} is {value}, which lets a checkpoint run code, and no file decides that: if "
                f"you trust the checkpoint, write {key} True on the command line"
            )
        if is_own_code(value):
            raise ValueError(
                f"{args.config_file}: {key} is {value}, code of your own, and no file decides what code runs: if you "
                f"want it to be run, write {key} {value} on the command line, too"
            )


@contextlib.contextmanager
def _explained(cfg, where):
    """Turn what yacs raises into a ValueError of one line that says what to write."""
    try:
        yield
    except ValueError as error:
        raise ValueError(_of_wrong_type(cfg, " ".join(str(error).split()))) from error
    except (RecursionError, MemoryError) as error:  # of Python's literals
        raise ValueError(f"brackets within each other without end (in {where})") from error
    except (KeyError, AssertionError, AttributeError, TypeError) as error:
        message = " ".join(str(error.args[0] if error.args else error).split())
        raise ValueError(f"{message} (in {where})") from error


MISMATCH = re.compile(r"Type mismatch \(.*\) with values \(.* vs\. (.*)\) for config key: (\S+)")  # yacs's words
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def _of_wrong_type(cfg, message):
    """What yacs says of a value of the wrong type in words of one who writes it; other messages as they are."""
    match = MISMATCH.fullmatch(message)
    if not match:
        return message
    value, key = match.groups()
    default = functools.reduce(lambda node, part: node[part], key.split("."), cfg)
    if isinstance(default, list | tuple):
        return f"{key} is {value}, but must be a list: write [{value.strip('()[] ')}] (on the command line in quotes)"
    return f"{key} is {value}, but must be {KINDS.get(type(default), 'a group of keys')}"


def _pairs(opts):
    """KEY VALUE pairs as they are; ValueError if they are none."""
    for i, text in enumerate(map(str, opts)):
        if text.startswith("--") or i % 2 == 0 and text.startswith("-"):
            raise ValueError(f"{text} comes after KEY VALUE pairs: write it before the first of them")
        if i % 2 == 0 and "=" in text:
            raise ValueError(f"{text}: write KEY VALUE with a space between them, {text.replace('=', ' ', 1)}")
    if len(opts) % 2:
        raise ValueError(f"{' '.join(map(str, opts))}: no pairs KEY VALUE; one of them has no value, or one too many")
    return opts


def _as_defaults(cfg, opts):
    """KEY VALUE pairs with what yacs does not do by itself: 100 is 100.0 where the default is a float, and the list
    that YAML reads, [res4, res5], a list where the default is one."""
    opts = list(opts)
    for i in range(0, len(opts) - 1, 2):
        node = cfg
        for part in opts[i].split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, float) and opts[i + 1].lstrip("+-").isdigit():
            opts[i + 1] = float(opts[i + 1])
        elif isinstance(node, list | tuple) and isinstance(opts[i + 1], str):
            opts[i + 1] = _as_list(opts[i + 1])
    return opts


def _as_list(text):
    """The list that YAML reads and Python does not; else the text, for yacs. Python first: YAML's 1e-3 is a string."""
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError):
        with contextlib.suppress(ValueError):
            value = parse_yaml(text, "the value")
            return value if isinstance(value, list) else text
    return text


def log_command(output_dir):
    """Add this command line to ``command.txt`` in the run's folder, for the report."""
    if comm.is_main_process():
        os.makedirs(output_dir, exist_ok=True)
        path = os.path.join(output_dir, "command.txt")
        with named_errors(path), open(path, "a", errors="surrogateescape") as f:
            f.write(shlex.join(["python", *sys.argv]) + "\n")


def refuse_finished(output_dir):
    """Refuse to start anew over a finished run: until the end its weights would stand beside the new run's config.

    Raises:
        ValueError: if ``model_final.pth`` is in the folder.
    """
    if os.path.exists(os.path.join(output_dir, "model_final.pth")):
        raise ValueError(
            f"{output_dir} holds a finished run, whose model_final.pth would be lost: name another OUTPUT_DIR, remove "
            "that folder, or add --resume"
        )


@contextlib.contextmanager
def run_folder(output_dir):
    """Make a run's folder, locked as long as this process lives, with a ``command.txt`` in the end; and remove it again
    where the run is refused: all that may refuse it is to be done inside this context, before the work begins.

    A folder stays that was there before, that holds more than what every run begins with, or, of several processes,
    that another one has made.
    """
    new = not os.path.isdir(output_dir)
    if comm.is_main_process():
        lock_folder(output_dir)
    try:
        yield
        log_command(output_dir)
    except (OSError, ValueError):
        if comm.is_main_process():
            unlock_folder(output_dir)
        names = os.listdir(output_dir) if new and comm.is_main_process() else [""]
        if all(name in ("command.txt", "config.yaml", "metrics.json") or name.startswith("log.txt") for name in names):
            for name in names:
                os.remove(os.path.join(output_dir, name))
            with contextlib.suppress(OSError):  # somebody else has begun there
                os.rmdir(output_dir)
        raise


def argument_parser(epilog):
    """Detectron2's parser; one machine's processes meet at a free port."""
    parser = default_argument_parser(epilog)
    parser.set_defaults(dist_url="auto")
    # which launch() refuses in words of its own
    parser.add_argument("--local-rank", "--local_rank", nargs="?", const="", help=argparse.SUPPRESS)
    return parser


TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
# How many processes there are, as other launchers tell each of them: those before torchrun, Open MPI, MPICH and Intel
# MPI, MVAPICH, srun
COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
RANKS = ("RANK", "LOCAL_RANK")


def launch(main, args):
    """Call ``main(args)`` in every process of a run.

    Under torchrun, and whatever else sets its environment variables, this is one of the processes. Otherwise they are
    spawned as Detectron2 does for ``--num-gpus`` and ``--num-machines``, get the SIGTERM that this one gets, and end
    when this one ends.

    Args:
        main: function of a module that can be imported.
        args: of :func:`argument_parser`.

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
    if args.num_machines == 1:  # otherwise it is said how they meet, whatever has started one on each machine
        _refuse_copies()
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError("--num-machines above 1 needs --dist-url tcp://HOST:PORT, with a port of machine 0")
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise ValueError(f"--num-gpus is {args.num_gpus}, but there are {torch.cuda.device_count()} GPUs")
    if args.num_gpus * args.num_machines == 1:
        _run(main, args)
        return
    previous = signal.signal(signal.SIGTERM, _forward)
    machines = args.num_gpus, args.num_machines, args.machine_rank, args.dist_url
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        spawn(_spawned, *machines, args=(main, args))
    finally:
        del os.environ[LAUNCHER]
        signal.signal(signal.SIGTERM, previous)


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


def stopped_by_sigterm(line):
    """A context for what cannot be resumed: SIGTERM leaves it at once, with one line and exit code 143."""

    def say():
        if comm.is_main_process():
            print(f"stopped by SIGTERM: {line}", file=sys.stderr)

    return stop_at_once(say, TERMINATED)


def quiet_trainer():
    """TrainerBase logs the traceback of whatever stops it: leave that to :func:`one_line_errors`."""
    logging.getLogger("detectron2.engine.train_loop").addFilter(lambda r: SHOW_TRACEBACK or r.exc_info is None)


def escape_logs():
    """Log names of classes, files and data sets without the escape sequences that a terminal would obey."""
    default = logging.getLogRecordFactory()
    if getattr(default, "escapes", False):  # a process of several command lines
        return

    def escaped(*args, **kwargs):
        record = default(*args, **kwargs)
        with contextlib.suppress(TypeError, ValueError, KeyError):  # a message that does not fit its arguments
            record.msg, record.args = for_log(record.getMessage()), None
        return record

    escaped.escapes = True
    logging.setLogRecordFactory(escaped)


escape_logs()  # on import, so that it holds in the children of a run and for all of its libraries


@contextlib.contextmanager
def one_line_errors():
    """Turn errors into one line on stderr and an exit code: 2 for bad input, 1 for a failure (such as a full disk),
    130 for Ctrl-C, 143 for SIGTERM where nothing can be resumed.

    With LOCO_DET_TRACEBACK set in the environment the traceback is shown instead.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError as error:
        if error.filename:
            _exit(str(error), 1, error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads what is left in the buffer
        sys.exit(128 + signal.SIGPIPE)
    except (OSError, ValueError) as error:
        full = IS_FULL.match(str(error))
        named = isinstance(error, OSError) and error.filename and error.strerror
        files = [str(name) for name in (error.filename, error.filename2) if name] if named else []
        _exit(f"{' -> '.join(files)}: {error.strerror}" if named else str(error), 1 if full else 2, error)
    except ProcessRaisedException as error:  # a child's error arrives as the text of its traceback
        kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
        kind = getattr(builtins, kind, RuntimeError)  # torch's own are RuntimeErrors
        _exit(message, 2 if issubclass(kind, (OSError, ValueError)) and not IS_FULL.match(message) else 1, error)
    except ProcessExitedException as error:
        if error.exit_code == TERMINATED:  # the child has said it
            sys.exit(TERMINATED)
        _exit(str(error), 1, error)
    except (RuntimeError, FloatingPointError, AssertionError) as error:
        _exit(str(error) or repr(error), 1, error)
    except Exception as error:  # which nobody has foreseen
        where = "set LOCO_DET_TRACEBACK=1 to see where, and please report it"
        _exit(f"unexpected {type(error).__name__}: {error}; {where}", 1, error)


def _exit(message, code, error):
    if SHOW_TRACEBACK:
        raise error
    if message.startswith("Caught "):  # by a loader's worker: a traceback, whose last line is the error
        message = message.strip().splitlines()[-1].partition(": ")[2]
    if message.startswith("DataLoader worker (pid"):
        message = f"{message.rstrip('. ')}: {DEAD_WORKER}"
    rank = os.environ.get("RANK", "0")  # torchrun's children share a terminal
    line = for_terminal(" ".join(message.split()))
    print(f"{'' if rank == '0' else f'process {rank}: '}error: {line}", file=sys.stderr)
    sys.exit(code)
