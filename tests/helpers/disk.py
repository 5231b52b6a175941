"""A plugin of pytest: folders that fixtures have made are removed with the fixture.

pytest removes the folder of each test that has passed (``tmp_path_retention_policy`` in pyproject.toml), but keeps what
fixtures of modules and packages have made to the end: many gigabytes of checkpoints, for which there may be no room.
"""

import shutil
from pathlib import Path

import pytest

_made: dict[int, set[Path]] = {}  # id of a fixture's definition -> its folders


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """Note the folders that appear while a fixture is set up."""
    base = request.config._tmp_path_factory.getbasetemp()
    before = set(base.iterdir())
    try:
        return (yield)
    finally:
        if fixturedef.argname != "tmp_path":  # pytest's own
            known = before.union(*_made.values())  # also by fixtures that were set up from within this one
            folders = {path for path in set(base.iterdir()) - known if not path.is_symlink()}
            _made.setdefault(id(fixturedef), set()).update(folders)


def pytest_fixture_post_finalizer(fixturedef, request):
    """Remove them, unless a test has failed: then they may show why."""
    folders = _made.pop(id(fixturedef), set())
    if not request.session.testsfailed:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
