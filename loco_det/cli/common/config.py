"""A command line's config: defaults, then a file, then KEY VALUE pairs; what is wrong is said in one line."""

import argparse
import ast
import contextlib
import difflib
import functools
import logging
import re

from fvcore.common.config import CfgNode

from pretrain.encoders import is_own_code
from pretrain.files.config_names import refuse_missing
from pretrain.files.shipped_configs import DETECTION, TOOLS, find_config, tool_of
from pretrain.files.yaml_files import merge_config_file, parse_yaml

RUN_AS_CODE = ("MODEL.ENCODER", "MODEL.SOURCE.ENCODER")  # keys whose value may name a function that is called
LETS_CODE_RUN = "MODEL.SOURCE.UNSAFE_LOAD"  # True: whatever is in a checkpoint is unpickled
MISMATCH = re.compile(r"Type mismatch \(.*\) with values \(.* vs\. (.*)\) for config key: (\S+)")  # yacs's words
UNKNOWN = re.compile(r"Non-existent (?:config )?key: (\S+)")  # likewise
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def merge_config(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
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
    overlays = getattr(args, "overlay", ())
    for name in filter(None, [args.config_file, *overlays]):
        refuse_missing(name, name in overlays)
        _merge_file(cfg, name, before, args)
    with _explained(cfg, "the KEY VALUE pairs"):
        cfg.merge_from_list(_as_defaults(cfg, _pairs(args.opts)))
    _refuse_nothing(cfg, before, "the KEY VALUE pairs")
    return cfg


def _merge_file(cfg, name, before, args):
    """Merge one config file, a path or a shipped name."""
    path = find_config(name)
    try:
        with _explained(cfg, path):
            merge_config_file(cfg, path)
    except ValueError as error:
        if (tool := tool_of(path)) not in (None, _tool(before)):
            raise ValueError(f"{name} is a config of another command, {tool}: {error}") from error
        raise
    _refuse_code_in_file(cfg, args, path)
    _refuse_nothing(cfg, before, path)


def _tool(cfg):
    """The command whose config this is, as :func:`tool_of` says it."""
    return TOOLS.get("pretrain" if "UNITS" in cfg.MODEL else "readout" if "SOURCE" in cfg.MODEL else "", DETECTION)


def _refuse_nothing(cfg, default, where, above=""):
    """ValueError if a key has lost its value to YAML's null or Python's None, which yacs takes for any type."""
    for key, value in default.items():
        if cfg[key] is None and value is not None:
            raise ValueError(f"{above}{key} has no value (in {where}): write one, or leave the key out")
        if isinstance(value, dict):
            _refuse_nothing(cfg[key], value, where, f"{above}{key}.")


def _refuse_code_in_file(cfg, args, path):
    """ValueError if the config file, and not the command line, names code that would be run, or lets it be run."""
    for key in (*RUN_AS_CODE, LETS_CODE_RUN):
        value = functools.reduce(lambda node, part: node.get(part, {}) if node else {}, key.split("."), cfg)
        if key in args.opts[::2]:
            continue
        if key == LETS_CODE_RUN and value:
            raise ValueError(
                f"{path}: {key} is {value}, which lets a checkpoint run code, and no file decides that: if "
                f"you trust the checkpoint, write {key} True on the command line"
            )
        if is_own_code(value):
            raise ValueError(
                f"{path}: {key} is {value}, code of your own, and no file decides what code runs: if you "
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
        unknown = UNKNOWN.fullmatch(message)
        raise ValueError(_of_unknown_key(cfg, unknown[1], where) if unknown else f"{message} (in {where})") from error


def _of_unknown_key(cfg, key, where):
    """What is said of a key that the config does not have, with the nearest one that it has."""
    keys = {known.lower(): known for known in _keys(cfg)}
    if key in keys.values():
        group, _, name = key.rpartition(".")
        return f"{key}: a file has no keys with dots (in {where}): write {group}: {{{name}: VALUE}}"
    near = difflib.get_close_matches(key.lower(), keys, n=1, cutoff=0.75)
    return f"{key}: no such config key (in {where}){f': did you mean {keys[near[0]]}?' if near else ''}"


def _keys(cfg, above=""):
    """The full names of all keys, and of their groups."""
    for key, value in cfg.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{above}{key}.")


def _of_wrong_type(cfg, message):
    """What yacs says of a value of the wrong type in words of one who writes it; other messages as they are."""
    match = MISMATCH.fullmatch(message)
    if not match:
        return message
    value, key = match.groups()
    default = functools.reduce(lambda node, part: node.get(part, {}), key.split("."), cfg)  # {}: of an older version
    if default == {}:
        return message
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
