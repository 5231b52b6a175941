"""Other values for a library's attributes, for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any

_MISSING = object()


@contextlib.contextmanager
def replaced(target: Any, **values: Any) -> Iterator[None]:
    """Set attributes of an object or a module, and put back what they were.

    This is for functions of libraries that have no argument and no method to override for what is needed of them.

    Args:
        target: the object, which may lack the attributes.
        values: name of an attribute -> its value within the context.
    """
    before = {name: vars(target).get(name, _MISSING) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            if value is not _MISSING:
                setattr(target, name, value)
            elif name in vars(target):
                delattr(target, name)
