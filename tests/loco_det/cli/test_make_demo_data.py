"""The command line, as a user runs it: in a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkout import ROOT
from child_processes import child_environment

from pretrain.processes.lifetime import is_running

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


@pytest.fixture
def begun(tmp_path):
    """Start the tool with a number of workers and let it write some images; its process group is killed at the end."""
    started = []

    def start(workers):
        tool, env = ROOT / "tools/make_demo_data.py", child_environment()
        args = [sys.executable, tool, tmp_path / "demo", "--unlabeled", "100000", "--workers", str(workers)]
        # a session of its own, so that a signal can reach the workers too, as it does from a terminal
        process = subprocess.Popen(args, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("*.jpg")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        assert not (tmp_path / "demo").exists()
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_signal_leaves_nothing_and_says_so_in_one_line(begun, tmp_path, number, code, workers, send):
    process = begun(workers)
    send(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stderr == "interrupted: nothing was written; run the same command again\n"
    assert not list(tmp_path.iterdir())


def test_what_a_killed_call_has_left_is_removed_by_the_next(begun, run, tmp_path):
    process = begun(2)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    others = [f".demo.{os.getpid()}.tmp", ".demo.x.tmp", ".demo2.999999999.tmp", ".demo.999999999.txt"]
    for name in others:  # of a process that is at work, and of other things
        (tmp_path / name).mkdir()
    assert len(list(tmp_path.iterdir())) == len(others) + 1
    assert run(tmp_path / "demo", *SMALL).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "demo"])


def test_errors_name_the_folder_as_it_was_given_and_leave_none(call_tool, monkeypatch, tmp_path, capsys):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loco_det.demo_scenes.writing._write_layout", lambda _, building, *__: refuse(building))
    assert call_tool("make_demo_data", "a/b/demo", *SMALL) == 2
    assert capsys.readouterr().err == "error: a/b/demo: Permission denied\n"
    assert list(tmp_path.iterdir()) == []
