"""Fuzzing: every reader of a file, with good files made bad. What is raised is what is documented, in one line."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # test folders are no packages

from cases import fuzz  # noqa: E402
from made_up_runs import detection, pretraining, readouts, training_line, write_lines  # noqa: E402, F401


@pytest.fixture
def each_case(request):
    """``each_case(case, count)``: see :func:`cases.fuzz`; FUZZ_SECONDS are divided among the targets that run."""
    targets = sum("each_case" in item.fixturenames for item in request.session.items)
    return lambda case, count: fuzz(case, count, 1 / targets)
