"""What a run is resumed from: the newest readable checkpoint in its folder, and a config that must agree with it."""

import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias

from fvcore.common.config import CfgNode as CN

from . import StrPath
from .atomic import text_of, write_whole
from .yaml_files import parse_yaml

logger = logging.getLogger(__name__)
FORMAT = "loco-det pretraining"  # what checkpoints of tools/pretrain.py say they are, as "format"

Check: TypeAlias = Callable[[dict[str, Any]], object]


def checkpoint_names(folder: StrPath) -> list[str]:
    """Checkpoints of a run, the newest first: the one that ``last_checkpoint`` names, then those of earlier iterations.

    Checkpoints of later iterations are left over from another run in the same folder. ``last_checkpoint`` is ignored
    unless it holds the name of a checkpoint: a path could point outside the folder.

    Returns:
        Names such as "model_final.pth", "model_0004999.pth"; empty if there is no such folder.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    last = text_of(os.path.join(folder, "last_checkpoint")).strip()
    iterations = {name: iteration for name in names if (iteration := iteration_of(name)) is not None}
    newest = iteration_of(last)
    if newest is not None:
        iterations[last] = newest
        iterations = {name: iteration for name, iteration in iterations.items() if iteration <= newest}
    return sorted(iterations, key=iterations.__getitem__, reverse=True)


def iteration_of(name: str) -> float | None:
    """The iteration in a checkpoint's name, infinity for the final one; None if ``name`` is no checkpoint's."""
    match = re.fullmatch(r"model_(?:(\d{1,18})|final)\.pth", name)
    return float(match[1] or "inf") if match else None


def newest_readable(
    folder: StrPath, check: Check = lambda content: None, warn: bool = True
) -> tuple[str, dict[str, Any]]:
    """The newest checkpoint of a run that can be read.

    Args:
        folder: the run's folder.
        check: gets the content; raises ValueError if it is from another run, which ends the search, or KeyError,
            TypeError or AttributeError if something is missing, which goes on with an older checkpoint.
        warn: log a warning for each damaged checkpoint.

    Returns:
        Path and content; tensors stay in the file (memory-mapped) until they are used.

    Raises:
        FileNotFoundError: if there are no checkpoints.
        ValueError: if none can be read; and what ``check`` raises.
    """
    from .safe_load import read_own  # here, because it imports torch, which takes seconds

    names = checkpoint_names(folder)
    if not names:
        raise FileNotFoundError(f"{folder}: nothing to resume; leave out --resume to start anew")
    reasons: list[str] = []
    last = text_of(os.path.join(folder, "last_checkpoint")).strip()
    if warn and last and iteration_of(last) is None:
        logger.warning(f"{folder}: last_checkpoint names {last!r:.100}, which is not a checkpoint in this folder")
    for name in names:
        path = os.path.join(folder, name)
        try:
            content = read_own(path)
        except (OSError, ValueError) as error:
            why = str(getattr(error, "strerror", None) or error)
        else:
            try:
                check(content)
                for reason in reasons if warn else ():
                    logger.warning(f"{folder}: damaged, or not written by this project: {reason}; going on with {name}")
                return path, content
            except (KeyError, TypeError, AttributeError) as error:
                why = f"no {error.args[0]} in it" if isinstance(error, KeyError) else str(error)
        reasons.append(f"{name} ({why})")
    raise ValueError(f"{folder}: none of {', '.join(reasons)} can be read")


def newest_of_all(folder: StrPath, check: Check = lambda content: None, warn: bool = True) -> str:
    """Path of the newest checkpoint that can be read, chosen by process 0 for all processes.

    Args and errors are those of :func:`newest_readable`; every process raises what process 0 has met.
    """
    from detectron2.utils import comm  # as above

    found: str | Exception | None = None
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


def saved_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """The config in a checkpoint: its keys, named as by :func:`items_of`, and values.

    Raises:
        KeyError: if there is no config.
        TypeError: if it cannot be read.
    """
    try:
        return dict(items_of(CN(parse_yaml(content["config"], "config"))))
    except (ValueError, AssertionError) as error:
        raise TypeError(f"its config cannot be read: {error}") from None


def items_of(cfg: CN, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All keys of a config, such as "SOLVER.EPOCHS", with their values; tuples become lists."""
    for key, value in cfg.items():
        if isinstance(value, CN):
            yield from items_of(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _as_lists(value)


def _as_lists(value: Any) -> Any:
    """A value whose tuples, which YAML does not have, are lists at any depth."""
    return [_as_lists(part) for part in value] if isinstance(value, list | tuple) else value


def differing_keys(cfg: CN, saved: Mapping[str, Any], free: Collection[str]) -> list[str]:
    """Keys whose values differ between a config and a saved one, sorted.

    Args:
        cfg: the config.
        saved: what :func:`saved_config` returns.
        free: keys that may differ; a group's name ("TEST") covers all keys in it.
    """
    mine = dict(items_of(cfg))
    keys = {key for key in {*mine, *saved} if not any(key == name or key.startswith(f"{name}.") for name in free)}
    return sorted(key for key in keys if key not in mine or key not in saved or mine[key] != saved[key])


def refuse_other_config(folder: StrPath, differing: Collection[str]) -> None:
    """The rule of ``--resume``: every setting that affects the resulting weights is as it was when the run began.

    Raises:
        ValueError: if ``differing``, the keys from :func:`differing_keys`, is not empty.
    """
    if differing:
        raise ValueError(
            f"{folder} is a run with other values of {', '.join(differing)}: resume it with its own config.yaml, or "
            "start anew in another OUTPUT_DIR"
        )


def write_config(cfg: CN) -> None:
    """Write ``config.yaml`` into ``cfg.OUTPUT_DIR``, whole or not at all; OSError if it cannot be written."""
    write_whole(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump())
