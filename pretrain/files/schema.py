"""JSON and YAML of a file, before its values are used: whether they have the types that their reader relies on.

A schema is a predicate of a value; ``[schema]`` for a list; ``{name: schema}`` for a dict with those keys, where others
may stand beside them; or ``{pattern: schema}``, with one compiled regular expression, for a dict all of whose keys
match. What is not there counts as None, which JSON has for what is not known: see :func:`maybe`.
"""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGEST = 2**53  # beyond it integers are no floats, and there are no counts, ids or seconds
ANY = re.compile(r"(?s).*")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file in UTF-8.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no JSON; one line that names the file.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is damaged: no text in UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path} is damaged: lists within each other without end") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from None


def fault(value: Any, schema: Any, place: str = "") -> str | None:
    """The first place where a value is not as its schema says, such as ``linear.res5.top1``; None if there is none."""
    if callable(schema):
        return None if schema(value) else place or "content"
    if isinstance(schema, list):
        if not isinstance(value, list):
            return place or "content"
        parts = ((f"{place}[{i}]", part, schema[0]) for i, part in enumerate(value))
    else:
        if not isinstance(value, dict):
            return place or "content"
        keys = next(iter(schema))
        if isinstance(keys, re.Pattern):
            if odd := next((key for key in value if not (isinstance(key, str) and keys.fullmatch(key))), None):
                return f"{place}.{odd!r:.50}".lstrip(".")
            parts = ((f"{place}.{key}".lstrip("."), part, schema[keys]) for key, part in value.items())
        else:
            parts = ((f"{place}.{key}".lstrip("."), value.get(key), part) for key, part in schema.items())
    return next((found for name, part, inner in parts if (found := fault(part, inner, name))), None)


def maybe(schema: Any) -> Callable[[Any], bool]:
    """The schema, or None."""
    return lambda value: value is None or not fault(value, schema)


def either(*schemas: Any) -> Callable[[Any], bool]:
    """One of several schemas."""
    return lambda value: any(not fault(value, schema) for schema in schemas)


def text(value: Any) -> bool:
    return isinstance(value, str)


def path(value: Any) -> bool:
    """Text that can be the name of a file."""
    return isinstance(value, str) and "\0" not in value


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def whole(value: Any) -> bool:
    """An integer, within what a float can tell apart."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def number(value: Any) -> bool:
    """A finite number."""
    return whole(value) or (isinstance(value, float) and math.isfinite(value))
