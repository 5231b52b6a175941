"""Command lines that all other tests start in forks, or call, started as a user starts them."""

import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

SCRIPTS = [pytest.param("tools/check_dataset.py", marks=pytest.mark.fast), "tools/convert_from_d2.py", "tools/knn.py",
           "tools/model_card.py", "tools/predict.py", "studies/report.py"]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, tmp_path):
    done = subprocess.run([sys.executable, ROOT / script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(f"usage: {Path(script).name}")
