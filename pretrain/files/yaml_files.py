"""YAML read as plain data: tags create no objects, duplicate keys are errors, and ``_BASE_`` files form no cycle."""

import os
import re
import stat
from collections.abc import Mapping
from typing import Any

import yaml
from fvcore.common.config import CfgNode as CN

from . import StrPath
from .config_names import moved_to, name_of_today

BASE_KEY = "_BASE_"
MOST_BYTES = 2**19  # of a file; our largest config has 20 kB
MOST_NODES = 10**6  # with aliases expanded: a few lines of them can stand for billions of values
ADVICE = 'write "KEY: VALUE" lines, lists as [A, B], no tabs'


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also reads ``!!python/tuple`` and refuses duplicate keys.

    The one in Python: the one in C crashes on lists that are nested too deeply.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                first = seen[key.tag, key.value].start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"duplicate key {key.value}, first in line {first}, and only one of the two would be read: "
                    "merge them",
                    key.start_mark,
                )
            seen[key.tag, key.value] = key
        return super().construct_mapping(node, deep)

    def refuse(self, node: yaml.Node) -> None:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise yaml.constructor.ConstructorError(
            None, None, f"the tag {tag} is refused, because it could run code: write plain values", node.start_mark
        )


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node)))
_Loader.add_constructor(None, _Loader.refuse)


def parse_yaml(text: str | bytes, where: StrPath) -> Any:
    """YAML text as plain Python values; nothing in it is executed.

    Args:
        text: bytes are UTF-8; a byte-order mark is skipped.
        where: its name in errors, such as the path of its file.

    Returns:
        None, str, numbers, bool, date, list, tuple and dict.

    Raises:
        ValueError: if it is no YAML, is too large, or has a tag that creates objects or a duplicate key; one line.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"{where}: larger than {MOST_BYTES / 1e6:.1f} MB, too large for a config")
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _size(node, {}) > MOST_NODES:
                raise yaml.YAMLError(f"its aliases stand for more than {MOST_NODES:,} values")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeDecodeError:
        raise ValueError(f"{where}: not text in UTF-8") from None
    except RecursionError:
        raise ValueError(f"{where}: lists or blocks nested too deeply, or within themselves") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        problem = " ".join((problem or str(error)).split())
        ours = problem.startswith(("duplicate key ", "the tag ", "its aliases "))
        raise ValueError(f"{where}: {problem}" if ours else f"{where}: {problem}; {ADVICE}") from None
    except (TypeError, ValueError, OverflowError) as error:  # PyYAML on odd dates and keys
        raise ValueError(f"{where}: {' '.join(str(error).split())}; {ADVICE}") from None
    except (AttributeError, KeyError, IndexError):  # PyYAML on tags such as !!timestamp and !!bool before other text
        raise ValueError(f"{where}: a tag, such as !!bool, before a value of another kind; {ADVICE}") from None


def _size(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """The number of values in a node with its aliases expanded; RecursionError if it contains itself."""
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            raise RecursionError
        return known
    sizes[id(node)] = None
    size = 1
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        size += sum(_size(part, sizes) for part in (child if isinstance(child, tuple) else (child,)))
    sizes[id(node)] = size
    return size


def read_yaml(path: StrPath) -> Any:
    """The values in a YAML file.

    Raises:
        OSError: if it cannot be read.
        ValueError: as :func:`parse_yaml`, or if it is a pipe.
    """
    if os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode) and not str(path).startswith(("/dev/", "/proc/")):
        raise ValueError(f"{path}: a pipe, expected a file")
    from detectron2.utils.file_io import PathManager  # here, because it imports torch, which takes seconds

    with PathManager.open(str(path), "rb") as file:
        return parse_yaml(file.read(MOST_BYTES + 1), path)


def read_config(path: StrPath, _above: tuple[str, ...] = ()) -> dict[Any, Any]:
    """A config file merged over its ``_BASE_``, which is one path or a list, as fvcore does it.

    A ``_BASE_`` that had another name in ``configs/`` is read under its present name: the converter writes such lines.

    Returns:
        Nested, with plain values.

    Raises:
        OSError: if a file cannot be read; it names the present name of a file of ``configs/`` that was renamed.
        ValueError: as :func:`parse_yaml`; or if a file is no mapping, or the ``_BASE_`` keys form a cycle.
    """
    place = str(path) if re.match(r"\w+://", str(path)) else os.path.realpath(path)
    if place in _above:
        names = " -> ".join(os.path.basename(name) for name in (*_above, place))
        raise ValueError(f"{path}: its {BASE_KEY} leads back to it ({names}): remove one of these {BASE_KEY} lines")
    try:
        config = read_yaml(path)
    except FileNotFoundError as error:
        if not (today := name_of_today(path)):
            raise
        raise FileNotFoundError(error.errno, f"no such file, it is {today} now", error.filename) from None
    if not isinstance(config, dict):
        what = "nothing" if config is None else f"a {type(config).__name__}"
        raise ValueError(f"{path}: {what}, but a config has lines KEY: VALUE")
    bases = config.pop(BASE_KEY, [])
    merged: dict[Any, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or "\0" in base or re.match(r"\w+://", base):  # configs cannot cause downloads
            raise ValueError(f"{path}: {BASE_KEY} is {base!r}, but must be the path of a file of this machine")
        base = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        if not os.path.exists(base):
            base = moved_to(base) or base
        try:
            _merge(read_config(base, (*_above, place)), merged, base)
        except FileNotFoundError as error:
            raise FileNotFoundError(error.errno, f"no such {BASE_KEY}, which {path} names", error.filename) from None
    _merge(config, merged, path)
    return merged


def _merge(source: dict[Any, Any], target: dict[Any, Any], path: StrPath) -> None:
    """Merge a nested dict into ``target``, in place."""
    for key, value in source.items():
        if isinstance(value, dict) and key in target:
            if not isinstance(target[key], dict):
                raise ValueError(f"{path}: {key} is a block, but a value in its {BASE_KEY}")
            _merge(value, target[key], path)
        else:
            target[key] = value


def _check_keys(content: Mapping[Any, Any], cfg: object, path: StrPath, above: str = "") -> None:
    """ValueError for what yacs reports badly: keys that are not text, empty groups, values in place of groups."""
    for key, value in content.items():
        if not isinstance(key, str):
            raise ValueError(f"{path}: the key {above}{key} is not text; {ADVICE}")
        group = cfg.get(key) if isinstance(cfg, dict) else None
        if isinstance(group, dict) and not isinstance(value, dict):
            what = "empty" if value is None else f"{value!r:.50}"
            raise ValueError(f"{path}: {above}{key} is {what}, but must be a group of keys such as {next(iter(group))}")
        if isinstance(value, dict):
            _check_keys(value, group, path, f"{above}{key}.")


def merge_config_file(cfg: CN, path: StrPath) -> None:
    """``cfg.merge_from_file(path)`` by way of :func:`read_config`; older versions of Detectron2's configs are upgraded.

    Args:
        cfg: fvcore's or Detectron2's; changed in place.
        path: the config file.

    Raises:
        OSError: as :func:`read_config`.
        ValueError: as :func:`read_config`; or if a value does not fit, or Detectron2 has no such VERSION.
        KeyError: if a key is unknown; yacs raises more kinds of errors, such as AssertionError.
    """
    content = read_config(path)
    _check_keys(content, cfg, path)
    loaded = type(cfg)(content)
    if "VERSION" not in cfg:
        cfg.merge_from_other_cfg(loaded)
        return
    from detectron2.config.compat import downgrade_config, guess_version, upgrade_config

    version = loaded.get("VERSION", None) or guess_version(loaded, path)
    if version not in range(1, cfg.VERSION + 1):
        raise ValueError(f"{path}: VERSION {version}, but Detectron2's configs have 1 to {cfg.VERSION}")
    if version == cfg.VERSION:
        cfg.merge_from_other_cfg(loaded)
        return
    older = downgrade_config(cfg, to_version=version)
    older.merge_from_other_cfg(loaded)
    upgraded = upgrade_config(older)
    cfg.clear()
    cfg.update(upgraded)
