"""What the command lines share: config merging, and one-line errors with exit codes."""

import builtins
import contextlib
import logging
import os
import shlex
import sys
import warnings

import yaml
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)  # Detectron2 does, on import
for name in ("torch.multiprocessing.spawn", "torch.utils.cpp_extension"):  # each child that is ended; no CUDA compiler
    logging.getLogger(name).setLevel(logging.ERROR)
SHOW_TRACEBACK = "LOCO_DET_TRACEBACK" in os.environ


def merge_config(cfg, args):
    """Merge ``args.config_file`` and the KEY VALUE pairs of ``args.opts`` into ``cfg``.

    Raises:
        ValueError: on an unknown key, a value of the wrong type or a file that is no YAML; one line.
        OSError: if the file cannot be read.
    """
    logging.getLogger("fvcore.common.config").setLevel(logging.CRITICAL)  # yacs logs what it raises
    logging.getLogger("yacs.config").setLevel(logging.CRITICAL)
    try:
        if args.config_file:
            cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(_as_floats(cfg, args.opts))
    except (KeyError, AssertionError, AttributeError, TypeError, yaml.YAMLError) as error:
        where = f" (in {args.config_file} or the KEY VALUE pairs)"
        raise ValueError(" ".join(str(error.args[0] if error.args else error).split()) + where) from error
    return cfg


def _as_floats(cfg, opts):
    """KEY VALUE pairs with 100 as 100.0 where the default is a float, which yacs does not do by itself."""
    opts = list(opts)
    for i in range(0, len(opts) - 1, 2):
        node = cfg
        for part in opts[i].split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, float) and opts[i + 1].lstrip("+-").isdigit():
            opts[i + 1] = float(opts[i + 1])
    return opts


def log_command(output_dir):
    """Add this command line to ``command.txt`` in the run's folder, for the report."""
    if comm.is_main_process():
        os.makedirs(output_dir, exist_ok=True)
        with open(os.path.join(output_dir, "command.txt"), "a") as f:
            f.write(shlex.join(["python", *sys.argv]) + "\n")


def quiet_trainer():
    """TrainerBase logs the traceback of whatever stops it: leave that to :func:`one_line_errors`."""
    logging.getLogger("detectron2.engine.train_loop").addFilter(lambda r: SHOW_TRACEBACK or r.exc_info is None)


@contextlib.contextmanager
def one_line_errors():
    """Turn errors into one line on stderr and an exit code: 2 for bad input, 1 for a failure, 130 for Ctrl-C.

    With LOCO_DET_TRACEBACK set in the environment the traceback is shown instead.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (OSError, ValueError) as error:
        _exit(str(error), 2, error)
    except ProcessRaisedException as error:  # a child's error arrives as the text of its traceback
        kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
        kind = getattr(builtins, kind, RuntimeError)  # torch's own are RuntimeErrors
        _exit(message, 2 if issubclass(kind, (OSError, ValueError)) else 1, error)
    except (RuntimeError, FloatingPointError, AssertionError, ProcessExitedException) as error:
        _exit(str(error) or repr(error), 1, error)


def _exit(message, code, error):
    if SHOW_TRACEBACK:
        raise error
    if message.startswith("Caught "):  # by a loader's worker: a traceback, whose last line is the error
        message = message.strip().splitlines()[-1].partition(": ")[2]
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
