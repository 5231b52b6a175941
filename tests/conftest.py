"""Shared by all tests: number of threads, and where the command lines are."""

import contextlib
import functools
import gc
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HELPERS = Path(__file__).parent / "helpers"
sys.path.append(str(HELPERS))  # test folders are no packages

from checkout import ROOT  # noqa: E402
from child_processes import child_environment  # noqa: E402

pytest_plugins = ["disk", "fast", "durations"]  # in this order: durations sorts

# Started in the background of a shell, Ctrl-C is ignored, and so it would be in the command lines that are tested.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
torch.set_flush_denormal(True)


def pytest_collection_finish():
    """What is imported, and thousands of tests, need not be looked through by every garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Caches of data sets go to a folder of the tests, not to the user's home; command lines inherit it."""
    os.environ["FVCORE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _loggers():
    """Log handlers of tools called in this process would go on to write to a stream that the test has closed."""
    yield
    for name in ("detectron2", "fvcore", "loco_det", "pretrain"):
        logging.getLogger(name).handlers.clear()


@contextlib.contextmanager
def tool_runner(folder, *modules):
    """A function that runs ``tools/NAME``, or the script at an absolute path, in a fork of fork_server.py's process.

    Args:
        folder: for what the scripts print.
        modules: names of those that the forks have imported already, beside the server's own.
    """
    numbers = itertools.count()
    command = [sys.executable, ROOT / "tests" / "fork_server.py", *modules]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment(), text=True
    )

    def run(name, *arguments, timeout=300, **more):
        command, number = [str(ROOT / "tools" / name), *map(str, arguments)], next(numbers)
        out, err = folder / f"stdout{number}", folder / f"stderr{number}"
        request = (command[0], command[1:], str(ROOT), child_environment(**more), timeout, str(out), str(err))
        try:
            print(json.dumps(request), file=server.stdin, flush=True)
            answer = server.stdout.readline()
        except BaseException:  # Ctrl-C: the script is ended, too
            server.terminate()
            raise
        assert answer, "fork_server.py has ended"
        code = int(answer)
        if code == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(command, timeout, out.read_text(), err.read_text())
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())

    yield run
    server.terminate()
    server.wait(10)


@pytest.fixture(scope="session")
def run_tool(tmp_path_factory):
    """Run ``tools/NAME``, or the script at an absolute path, in a process of its own, nearly as a user does:
    ``run_tool("pretrain.py", *arguments) -> CompletedProcess``. The process is a fork of fork_server.py's."""
    with tool_runner(tmp_path_factory.mktemp("run_tool")) as run:
        yield run


@pytest.fixture(scope="session")
def run_ranks(run_tool):
    """Run ``python -c CODE RANK ARGUMENTS`` for some ranks at the same time; all have to end well.

    ``run_ranks(count, code, *arguments, timeout=240, **environment)``
    """

    def run(count, code, *arguments, timeout=240, **environment):
        done = run_tool(HELPERS / "ranks.py", count, code, *arguments, timeout=timeout, **environment)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture(scope="session")
def run_two_ranks(run_ranks):
    """As ``run_ranks``, for ranks 0 and 1: ``run_two_ranks(code, *arguments, timeout=240, **environment)``."""
    return functools.partial(run_ranks, 2)


@pytest.fixture(scope="session")
def tool_server():
    """:func:`tool_runner`, for tests whose tools may begin with more that is imported."""
    return tool_runner


# --- the table of faults ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fault(request, record_property):
    """Tell the report of a test, also of another process, which kind of fault it tries."""
    if marker := request.node.get_closest_marker("fault"):
        record_property("fault", marker.args[0])


def pytest_terminal_summary(terminalreporter):
    """A table of the faults that were tried and survived."""
    reports = [r for outcome in ("passed", "failed") for r in terminalreporter.stats.get(outcome, ())]
    tried = [(kind, r.passed) for r in reports if r.when == "call"
             for name, kind in r.user_properties if name == "fault"]  # fmt: skip
    if not tried:
        return
    terminalreporter.section("faults: tried, survived")
    for kind in sorted({kind for kind, _ in tried}):
        passed = [survived for other, survived in tried if other == kind]
        terminalreporter.write_line(f"{kind:50} {len(passed):5} {sum(passed):5}")
    terminalreporter.write_line(f"{'all':50} {len(tried):5} {sum(survived for _, survived in tried):5}")


@pytest.fixture(scope="session")
def call_tool():
    """Call the ``main`` of ``loco_det.cli.NAME`` in this process, which saves the seconds of importing torch.

    ``call_tool("pretrain", *arguments) -> exit code``; errors are one line on stderr, as from the command line.
    """
    from loco_det.cli.main import script
    from pretrain.files.lock import unlock_all

    def call(name, *arguments):
        try:
            return script(name, [str(a) for a in arguments])
        except SystemExit as exit:
            return exit.code
        finally:
            unlock_all()  # as at the end of a process

    return call
