"""The fixtures of tests/made_up_runs.py."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # test folders are no packages

from made_up_runs import detection, pretraining, readouts, training_line, write_lines  # noqa: E402, F401
