"""Fuzzing: every reader of a file, with good files made bad. What is raised is what is documented, in one line."""

import importlib.util
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path += [str(TESTS / "fuzz"), str(TESTS)]  # for cases.py, made_up_runs.py and so on: test folders are no packages

from cases import fuzz  # noqa: E402
from made_up_runs import detection, pretraining, readouts, training_line, write_lines  # noqa: E402, F401


@pytest.fixture
def each_case(request):
    """``each_case(case, count)``: see :func:`cases.fuzz`; FUZZ_SECONDS are divided among the targets that run."""
    targets = sum("each_case" in item.fixturenames for item in request.session.items)
    return lambda case, count: fuzz(case, count, 1 / targets)


@pytest.fixture(scope="session")
def tool():
    """Module of ``tools/NAME.py``: ``tool("low_shot")``."""
    sys.path.append(str(TESTS.parent / "tools"))

    def load(name):
        spec = importlib.util.spec_from_file_location(f"tools_{name}", TESTS.parent / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
