"""The plugins of the tests: the selection ``fast``, the order and the table of durations, and the disk."""

import os
import subprocess
import sys
from types import SimpleNamespace

import durations
import pytest
from checkout import ROOT
from fast import LONG_FOLDERS


def test_something_of_each_package_is_fast(request):
    tests = request.config.rootpath / "tests"
    folders = {path.parent for path in tests.rglob("test_*.py")}
    folders = {folder for folder in folders if folder.relative_to(tests).parts[:1] not in [(f,) for f in LONG_FOLDERS]}
    items = request.session.items
    if len({item.path for item in items}) < 100:
        pytest.skip("only where all tests are collected")
    fast = [item for item in items if item.get_closest_marker("fast")]
    assert folders - {item.path.parent for item in fast} == set()
    command_lines = [item for item in fast if item.path.name == "test_command_lines.py"]
    assert len(command_lines) == 1 and len(fast) > 500


def test_the_longest_files_come_first():
    """By what is known; of a file that has never run, by the processes that it starts."""
    known = {"tests/test_rooms.py::a": 2.0, "tests/test_rooms.py::b": 1.5, "tests/test_docs.py::a": 0.4}
    cache = SimpleNamespace(get=lambda key, default: known)
    items = [
        SimpleNamespace(nodeid=f"tests/{name}", fixturenames=fixtures)
        for name, fixtures in (("test_docs.py::a", ["run_tool"]), ("new.py::x", []), ("new.py::y", ["run_tool"]),
                               ("test_rooms.py::a", []), ("test_rooms.py::b", []))
    ]  # fmt: skip
    durations.pytest_collection_modifyitems(SimpleNamespace(workerinput={}, cache=cache), items)
    names = [item.nodeid.removeprefix("tests/") for item in items]
    assert names == ["test_rooms.py::a", "test_rooms.py::b", "new.py::x", "new.py::y", "test_docs.py::a"]
    durations.pytest_collection_modifyitems(SimpleNamespace(cache=cache), items[::-1])  # one process: as they stand


def test_seconds_are_added_to_those_of_earlier_runs(tmp_path):
    kept = {"tests/test_docs.py::a": 1.0, "tests/test_rooms.py::b": 2.0, "tests/gone.py::c": 3.0}
    cache = SimpleNamespace(get=lambda key, default: kept, set=lambda key, value: found.update(value))
    found, recorder = {}, durations.Recorder(SimpleNamespace(cache=cache))
    for seconds in (0.25, 0.5):
        recorder.pytest_runtest_logreport(SimpleNamespace(nodeid="tests/test_rooms.py::b", duration=seconds))
    recorder.pytest_sessionfinish()
    assert found == {"tests/test_docs.py::a": 1.0, "tests/test_rooms.py::b": 0.75}
    lines = durations.table(found).splitlines()
    assert lines[0] == "    1.8 s in all, 2 tests" and "    1.8  tests" in lines
    assert "    1.0      1  tests/test_docs.py  (1.0 a)" in lines and (ROOT / "tests/test_docs.py").exists()


MADE = """
import pytest

@pytest.fixture(scope="session")
def long(tmp_path_factory):
    return tmp_path_factory.mktemp("long")

@pytest.fixture(scope="module")
def short(tmp_path_factory, request):
    request.getfixturevalue("long")
    return tmp_path_factory.mktemp("short")

def test_it(short, tmp_path):
    {test}
"""


@pytest.mark.parametrize("test, left", [("pass", ["long0"]), ("raise OSError", ["long0", "short0", "test_it0"])])
def test_folders_of_fixtures_are_removed_with_them(test, left, tmp_path):
    (tmp_path / "test_first.py").write_text(MADE.format(test=test))
    # at the end the session's folders are still there
    (tmp_path / "test_last.py").write_text(
        "def test_it(tmp_path_factory):\n"
        "    names = [path.name for path in tmp_path_factory.getbasetemp().iterdir() if not path.is_symlink()]\n"
        f"    assert sorted(names) == {left}\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\ntmp_path_retention_policy = failed\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "disk", "-p", "no:cacheprovider", "--basetemp", "base", "."]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "helpers")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert f"{1 + (test == 'pass')} passed" in done.stdout, done.stdout
