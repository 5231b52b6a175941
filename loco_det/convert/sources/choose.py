"""Which network of a checkpoint is meant, by the layouts; a file that fits none is described in a line."""

import os
import re
import shlex
from typing import Any, NamedTuple

from pretrain.files.stand_ins import Inert

from .architecture import relative
from .conventions import Conventions
from .layouts import LAYOUTS, Layout
from .messages import first_few
from .search import WRAPPERS, Found, find_encoders, name_of, state_dicts


class Choice(NamedTuple):
    """Which network of a checkpoint is meant.

    Attributes:
        layout: of the checkpoint.
        found: the encoder.
        has_ema: whether the file has a moving average's network that was not asked for.
    """

    layout: Layout
    found: Found
    has_ema: bool


def choose(
    content: Any,
    source: str = "auto",
    ema: bool = False,
    prefix: str | None = None,
    path: str | os.PathLike = "FILE",
) -> Choice:
    """Find the network to convert.

    Args:
        content: what the checkpoint holds.
        source: name of a layout, or "auto".
        ema: take the moving average's network instead of the trained one.
        prefix: of the encoder's names, for a project that no row knows; None: by the rows. With or without wrappers'
            parts, the keys of dictionaries before it and the last dot.
        path: of the file, for the command in an error.

    Returns:
        Choice.

    Raises:
        ValueError: in one line: nothing that is known, or not what was asked for.
    """
    found = find_encoders(content)
    if prefix is not None:
        layout, encoder = _at(found, prefix)
        return Choice(layout, encoder, False)
    names = [name_of(key) for key in content] if isinstance(content, dict) else []
    names += [str(content[key]) for key in ("format",) if key in names]
    rows = [row for row in LAYOUTS if row.name == source or (source == "auto" and row.automatic)]
    fitting = [(row, *(_only(found, row, pattern, names, path) for pattern in (row.online, row.ema))) for row in rows]
    fitting.sort(key=lambda fit: not fit[1])  # stable: rows that fit by a moving average alone come last
    for row, online, average in fitting:
        if online or average:
            wanted = average if ema else online
            if not wanted:
                lacks = "no moving average's network (EMA)" if ema else "that of a moving average alone: add --ema"
                raise ValueError(f"laid out as {row.name}, but holds {lacks} ({_places([online or average])})")
            return Choice(row, wanted, bool(average) and not ema)
    if found and source != "auto":
        raise ValueError(f"not laid out as {source}: its encoders are at {_places(found)}")
    if found:
        if network := relative([one.prefix for one in found]):
            raise ValueError(network)
        raise ValueError(
            f"an encoder at {_places(found)}, which no known project's layout fits: if it is torchvision's ResNet on "
            f"RGB images with ImageNet's mean and std, name its place with --prefix: {_command(found, path)}"
        )
    raise ValueError(_unlike(content))


def _only(found, row, pattern, names, path):
    """The one encoder whose place and names fit, or None."""
    if not pattern:
        return None
    fitting = [
        one
        for one in found
        if re.search(pattern, one.location)
        and row.naming in ("", one.naming)
        and re.search(row.mark, "\n".join([*names, *one.weights]), re.MULTILINE)
    ]
    if len(fitting) > 1:
        raise ValueError(
            f"{row.project}: several encoders, at {_places(fitting)}: name one with --prefix, such as "
            f"{_command(fitting, path)}"
        )
    return fitting[0] if fitting else None


def _at(found, prefix):
    """The encoder behind a prefix that the user names."""
    fitting = [one for one in found if prefix in (one.location, one.prefix)]
    fitting = fitting or [one for one in found if _parts(prefix) in (_parts(one.location), _parts(one.prefix))]
    if len(fitting) != 1:
        raise ValueError(f"{len(fitting)} encoders with the prefix {prefix!r}: there are some at {_places(found)}")
    conventions = None if fitting[0].naming == "detectron2" else Conventions()
    project = f"{fitting[0].naming}'s names behind {prefix!r}"
    return Layout("prefix", project, "as named", "", naming="", conventions=conventions), fitting[0]


def _parts(prefix):
    """What sets a place apart from others: keys of dictionaries and parts of names, without wrappers'."""
    return [part for part in re.split(r"[/.]", prefix) if part and part not in WRAPPERS]


def prefix_of(one: Found, found: list[Found]) -> str:
    """What a user may give to ``--prefix`` for one of the encoders found: as it is in the file, unlike the others'."""
    if one.written and not any(other.prefix == one.prefix for other in found if other is not one):
        return one.written
    return one.location.removesuffix(one.prefix) + one.written


def _command(found, path):
    """The command that converts the first encoder that was found, to be copied into a shell."""
    prefix = prefix_of(found[0], found)
    option = (
        f"--prefix{'=' if prefix.startswith('-') else ' '}{shlex.quote(prefix)}"  # else it would be an option itself
    )
    return f"python tools/convert_to_d2.py {shlex.quote(str(path))} OUT.pkl {option}"


def _places(found):
    return first_few(repr(one.location) if one.location else "the top" for one in found) if found else "no place"


def _unlike(content):
    """What a file without a ResNet seems to hold."""
    values = [content, *dict.values(content)] if isinstance(content, dict) else [content]
    if models := [type(value).__name__ for value in values if isinstance(value, Inert)]:
        return f"holds {first_few(models)} as Python objects: if you trust the file, --unsafe-load runs their code"
    dictionaries = [weights for _, weights, _ in state_dicts(content)]
    if not dictionaries:
        keys = f" but {first_few(map(name_of, content))}" if isinstance(content, dict) and content else ""
        return f"a {type(content).__name__} without tensors{keys}: expected a dictionary of weights"
    names = [name for weights in dictionaries for name in weights]
    if network := relative(names):
        return network
    if any(re.match(r"res2_0_branch2a_w", name) for name in names):
        return "Caffe2's names (res2_0_branch2a_w): Detectron2 reads this file as it is, name it as MODEL.WEIGHTS"
    return f"no ResNet among {len(names)} names ({first_few(names)}): expected layer1.0.conv1.weight behind any prefix"
