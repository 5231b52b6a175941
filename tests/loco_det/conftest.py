"""The fixtures of tests/helpers/made_up_runs.py, and files of annotations."""

import json

import pytest
from made_up_evaluation import evaluation_folder  # noqa: F401
from made_up_runs import detection, pretraining, readouts, training_line, write_lines  # noqa: F401


@pytest.fixture
def write_coco(tmp_path):
    """``write_coco(content, name) -> path`` of a file with that content: bytes, text, or what becomes JSON."""

    def write(content, name="some.json"):
        path = tmp_path / name
        content = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write
