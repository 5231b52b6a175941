"""The command line, as a user runs it: in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SMALL = ["--unlabeled", "2", "--train", "2", "--val", "1", "--size", "64", "80", "--workers", "1"]


@pytest.fixture
def run(run_tool):
    return lambda *args: run_tool("make_demo_data.py", *args)


def test_writes_then_finds_its_work_done_then_refuses_other_arguments(run, tmp_path):
    first = run(tmp_path / "demo", *SMALL)
    assert (first.returncode, first.stdout, first.stderr) == (0, f"wrote {tmp_path / 'demo'}\n", "")
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == ["cityscapes", "coco", "demo.json", "unlabeled"]
    again = run(tmp_path / "demo", *SMALL)
    assert (again.returncode, again.stdout) == (0, f"already there: {tmp_path / 'demo'}\n")
    other = run(tmp_path / "demo", *SMALL, "--seed", 1)
    assert other.returncode == 2 and other.stderr.count("\n") == 1
    assert other.stderr.startswith("error: ") and "remove it or choose another folder" in other.stderr


def test_layouts_can_be_chosen(run, tmp_path):
    assert run(tmp_path / "demo", *SMALL, "--layouts", "coco").returncode == 0
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == ["coco", "demo.json"]


@pytest.mark.parametrize("wrong", [["--size", "8", "8"], ["--train", "0"], ["--workers", "0"], ["--seed", "-3"]])
def test_bad_values_give_one_line_and_exit_2(run, tmp_path, wrong):
    result = run(tmp_path / "demo", *SMALL, *wrong)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_parent_that_is_a_file_gives_one_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(tmp_path / "file" / "demo", *SMALL)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_help_has_an_example(run):
    result = run("--help")
    assert result.returncode == 0 and "python tools/make_demo_data.py data/demo" in result.stdout


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_leaves_nothing_and_says_so_in_one_line(tmp_path, workers):
    tool, env = CHECKOUT / "tools/make_demo_data.py", {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    args = [sys.executable, tool, tmp_path / "demo", "--unlabeled", "100000", "--workers", workers]
    # a session of its own, so that the signal reaches the workers too, as it does from a terminal
    process = subprocess.Popen(args, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.jpg")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert not (tmp_path / "demo").exists()
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "interrupted: nothing was written; run the same command again\n"
    assert not list(tmp_path.iterdir())
