"""The checkpoints in a run's folder: which is the newest that is whole and of this run."""

import logging
import os
import re

from detectron2.utils import comm
from fvcore.common.config import CfgNode as CN

from .atomic import text_of, write_whole
from .safe_load import read_own
from .yaml_files import parse_yaml

logger = logging.getLogger(__name__)
FORMAT = "loco-det pretraining"  # what checkpoints of tools/pretrain.py say they are, as "format"


def checkpoint_names(folder):
    """Checkpoints of a run, the newest first: the one that ``last_checkpoint`` names, then those of earlier iterations.

    Those of later iterations are left over from another run in the same folder. ``last_checkpoint`` counts only if it
    is the name of a checkpoint: a path would lead out of the folder.

    Returns:
        list of str: such as "model_final.pth", "model_0004999.pth".
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    last = text_of(os.path.join(folder, "last_checkpoint")).strip()
    names = {name for name in names if iteration_of(name) is not None}
    if iteration_of(last) is not None:
        names = {name for name in {last, *names} if iteration_of(name) <= iteration_of(last)}
    return sorted(names, key=iteration_of, reverse=True)


def iteration_of(name):
    """By what checkpoints are ordered: their iteration, infinity for the final one; None if ``name`` is none."""
    match = re.fullmatch(r"model_(?:(\d{1,18})|final)\.pth", name)
    return float(match[1] or "inf") if match else None


def newest_readable(folder, check=lambda content: None, warn=True):
    """The newest checkpoint of a run that is whole.

    Args:
        folder: of the run.
        check: function that gets the content and raises ValueError if it is of another run, which ends the search, or
            KeyError, TypeError or AttributeError if it lacks what a checkpoint has.
        warn: whether the log names each damaged one.

    Returns:
        tuple: path, and content, whose tensors stay in the file until they are used.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if none can be read; and what ``check`` raises.
    """
    names = checkpoint_names(folder)
    if not names:
        raise FileNotFoundError(f"{folder}: nothing to resume; leave out --resume to start anew")
    reasons, last = [], text_of(os.path.join(folder, "last_checkpoint")).strip()
    if warn and last and iteration_of(last) is None:
        logger.warning(f"{folder}: last_checkpoint names {last!r:.100}, which is no checkpoint of this folder")
    for name in names:
        path = os.path.join(folder, name)
        try:
            content = read_own(path)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
        else:
            try:
                check(content)
                for reason in reasons if warn else ():
                    logger.warning(f"{folder}: damaged, or no checkpoint of ours: {reason}; going on with {name}")
                return path, content
            except (KeyError, TypeError, AttributeError) as error:
                why = f"no {error.args[0]} in it" if isinstance(error, KeyError) else error
        reasons.append(f"{name} ({why})")
    raise ValueError(f"{folder}: none of {', '.join(reasons)} can be read")


def newest_of_all(folder, check=lambda content: None, warn=True):
    """Path of the newest checkpoint that is whole, which process 0 chooses for all; as :func:`newest_readable`."""
    found = None
    if comm.is_main_process():
        try:
            found, _ = newest_readable(folder, check, warn)
        except FileNotFoundError as error:
            found = error
        except (OSError, ValueError) as error:
            hint = ": start anew without --resume" if str(error).endswith("can be read") else ""
            found = ValueError(f"{error}{hint}")
    found = comm.all_gather(found)[0]
    if isinstance(found, Exception):
        raise found
    return found


def saved_config(content):
    """Keys and values of the config in a checkpoint, as :func:`items_of`; KeyError or TypeError if there is none."""
    try:
        return dict(items_of(CN(parse_yaml(content["config"], "config"))))
    except (ValueError, AssertionError) as error:
        raise TypeError(f"its config cannot be read: {error}") from None


def items_of(cfg, prefix=""):
    """All keys of a config, as "SOLVER.EPOCHS", with their values; lists and tuples are the same."""
    for key, value in cfg.items():
        if isinstance(value, CN):
            yield from items_of(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _as_lists(value)


def _as_lists(value):
    """A value with lists in place of tuples, which YAML does not have, at any depth."""
    return [_as_lists(part) for part in value] if isinstance(value, list | tuple) else value


def differing_keys(cfg, saved, free):
    """Keys whose values differ between a config and a saved one, sorted.

    Args:
        cfg: the config.
        saved: of :func:`saved_config`.
        free: set of keys that may differ; of nodes ("TEST") all that is in them.
    """
    mine = dict(items_of(cfg))
    keys = {key for key in {*mine, *saved} if not any(key == name or key.startswith(f"{name}.") for name in free)}
    return sorted(key for key in keys if key not in mine or key not in saved or mine[key] != saved[key])


def refuse_other_config(folder, differing):
    """The one rule of ``--resume``: what decides the weights that come out is as at the beginning, or it is refused.

    Raises:
        ValueError: if there are any keys in ``differing``.
    """
    if differing:
        raise ValueError(
            f"{folder} is a run with other values of {', '.join(differing)}: resume it with its own config.yaml, or "
            "start anew in another OUTPUT_DIR"
        )


def write_config(cfg):
    """Write ``config.yaml`` in the run's folder, whole or not at all; OSError if it cannot be written."""
    write_whole(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump())
