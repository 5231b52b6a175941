"""Fixtures of the study's tests."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from made_up_study import FOLDER, STAGES, fake_call, study_of
from rates import RATES
from rows import MAIN
from run import Study


@pytest.fixture
def data(tmp_path):
    """Two classes that differ in brightness, in the layout of imagenette."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 160), ("val", 4)):
        for k in range(2):
            (tmp_path / "data" / part / f"class{k}").mkdir(parents=True)
            for i in range(count):
                image = rng.integers(100 * k, 100 * k + 100, (40, 40, 3), dtype=np.uint8)
                cv2.imwrite(str(tmp_path / "data" / part / f"class{k}" / f"{i}.png"), image)
    return tmp_path / "data"


@pytest.fixture(scope="session")
def report(run_tool):
    """``report(*arguments, findings=FILE) -> CompletedProcess`` of report.py."""

    def run(*arguments, findings=None):
        return run_tool(FOLDER / "report.py", *arguments, *(["--findings", findings] if findings else []))

    return run


@pytest.fixture
def faked(tmp_path, data, monkeypatch):
    """A study whose tools are faked; an accuracy that the learning rate, the row and the seed decide."""

    def accuracy(run, stage):
        base = 30 + 5 * STAGES.index(stage) + 3 * MAIN.index(run.row) if run.row in MAIN else 40
        best = {"loco": RATES[1], "gim": RATES[4], "simclr": RATES[-1]}.get(run.row, RATES[2])
        return base - 2 * abs(RATES.index(run.rate) - RATES.index(best)) + run.seed + 0.1 * run.epochs

    monkeypatch.setattr(
        Study, "call", lambda self, run, tool, *args: fake_call(self, run, tool, *args, accuracy=accuracy)
    )
    study = study_of(tmp_path, data)
    study.begin(["imagenette"])
    return study
