"""Which network of a checkpoint is meant, by the layouts."""

import re

from ..sources.checkpoint_file import CheckpointFile
from ..sources.messages import first_few
from ..sources.search import name_of
from .layouts import TIMM_LAYOUTS, TimmLayout
from .search import FoundNetwork


def chosen_network(
    networks: list[FoundNetwork],
    file: CheckpointFile,
    named: str | None,
    source: str,
    ema: bool,
    prefix: str | None,
) -> tuple[TimmLayout, FoundNetwork, bool]:
    """The layout, the network that is meant, and whether there is a moving average that was not asked for.

    Args:
        networks: of the file.
        file: the checkpoint.
        named: timm's name of the network, as the user, the file or config.json beside it says; None: it is not known.
        source, ema, prefix: as :func:`.source.load_network`.

    Raises:
        ValueError: in one line: nothing that is known, or not what was asked for.
    """
    if prefix is not None:
        fitting = [one for one in networks if prefix.strip("./") in (one.prefix.strip("."), one.location.strip("./"))]
        if len(fitting) != 1:
            places = first_few(repr(one.location) for one in networks)
            raise ValueError(f"{len(fitting)} networks with the prefix {prefix!r}: there are some at {places}")
        project = f"{fitting[0].kind} behind {prefix!r}"
        layout = TimmLayout("prefix", project, "as named", (), "", beside={"beside it": ""})
        return layout, fitting[0], False
    lines = [*map(name_of, file.content), str(file.get("format"))] if isinstance(file.content, dict) else []
    lines += ["claimed", named] if named else []
    rows = [row for row in TIMM_LAYOUTS if source in ("auto", row.name)]
    for row in rows:
        online, average = (_only(networks, row, pattern, lines, source != "auto") for pattern in (row.online, row.ema))
        if wanted := (average if ema else online):
            return row, wanted, bool(average) and not ema
        if online or average:
            lacks = "no moving average's network (EMA)" if ema else "that of a moving average alone: add --ema"
            raise ValueError(f"laid out as {row.name}, but holds {lacks} (at {(online or average).location!r})")
    places = first_few(f"{one.kind} at {repr(one.location) if one.location else 'the top'}" for one in networks)
    if source != "auto":
        raise ValueError(f"not laid out as {source}: it has {places}")
    tops = [one for one in networks if re.search(r"^(\w+/)?$", one.location)]
    if tops:
        raise ValueError(
            f"{places}, of which nothing says whose it is: name its project with --source, or timm's weights with "
            "--arch NAME.TAG, by which the mean and std of its images are known, or put timm's config.json beside it"
        )
    raise ValueError(f"{places}, which no known project's layout fits: name its place with --prefix")


def _only(networks, row, pattern, lines, named):
    """The one network whose place, family and names fit a row, or None; a row that was named needs no mark."""
    names = [name for one in networks for name in (*one.beside, *one.weights, *map(one.prefix.__add__, one.weights))]
    marked = named or re.search(row.mark, "\n".join([*lines, *names]), re.MULTILINE)
    fitting = [
        one
        for one in networks
        if pattern and marked and one.family in row.families and re.search(pattern, one.location)
        if not (row.unlike and re.search(row.unlike, "\n".join(one.weights), re.MULTILINE))
    ]
    if len(fitting) > 1:
        places = ", ".join(repr(one.location) for one in fitting)
        raise ValueError(f"{row.project}: several networks, at {places}: name one with --prefix")
    return fitting[0] if fitting else None
