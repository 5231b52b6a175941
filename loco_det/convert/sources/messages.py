"""Parts of one-line messages: what a file holds may be of any length."""

import reprlib
from collections.abc import Iterable


def first_few(items: Iterable[str]) -> str:
    """The first three of a list and how many more there are."""
    items = list(items)
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + more


def brief(value: object) -> str:
    """The ``repr`` of a file's value, of any kind and size, in about 100 characters."""
    text = reprlib.repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
