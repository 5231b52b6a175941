"""The marker ``fast``: a selection of a minute that shows that every package is right in the main.

It is the first case of each test that starts no process and compiles nothing, nor do its fixtures. No list is to be
kept; a test may have the marker by hand, too.
"""

import functools
import inspect
import re
import types

import pytest

STARTS_PROCESSES = {"run_tool", "tool_server", "run_ranks", "run_two_ranks"}  # fixtures
LONG_CODE = re.compile(
    r"subprocess|sys\.executable|Process\(|fork\(|num_workers=[1-9]"  # starts processes
    r"|(?<!re)\.compile\(|compile=True|torch\.compile|torch\.export"  # compiles
)
LONG_FOLDERS = {"benchmarks", "examples", "faults", "fuzz", "studies"}


def pytest_collection_modifyitems(items):
    begun = set()
    for item in items:
        function = (item.path, item.cls, item.originalname)
        if function not in begun and not is_long(item):
            item.add_marker(pytest.mark.fast)
        begun.add(function)


def is_long(item: pytest.Function) -> bool:
    """Whether the selection leaves a test out, whatever its case."""
    folder = item.path.relative_to(item.config.rootpath).parts[1]
    if folder in LONG_FOLDERS or STARTS_PROCESSES & {*item.fixturenames} or item.get_closest_marker("slow"):
        return True
    fixtures = [definition.func for found in item._fixtureinfo.name2fixturedefs.values() for definition in found]
    return any(has_long_code(inspect.unwrap(function)) for function in (item.function, *fixtures))


@functools.cache
def has_long_code(function: types.FunctionType) -> bool:
    """Whether a function, or one of the same file that it names, does what takes long."""
    if not isinstance(function, types.FunctionType):
        return False
    if LONG_CODE.search(inspect.getsource(function)):
        return True
    named = [function.__globals__.get(name) for name in function.__code__.co_names]
    here = [f for f in named if isinstance(f, types.FunctionType) and f.__module__ == function.__module__]
    return any(has_long_code(f) for f in here if f is not function)
