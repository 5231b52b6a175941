"""Folders of runs: what is refused leaves none, and command.txt has the command lines."""

import sys

import pytest

from loco_det.cli.common.run_folder import log_command, run_folder


@pytest.mark.parametrize(
    ("error", "before", "more", "stays"),
    [
        (ValueError, False, [], False),
        (OSError, False, ["config.yaml"], False),
        (ValueError, False, ["log.txt.rank1"], False),  # of another process
        (ValueError, False, ["metrics.json"], False),  # which Detectron2 opens before it looks for the weights
        (ValueError, False, ["model_final.pth"], True),  # what is no run's beginning
        (RuntimeError, False, [], True),  # a failure, of which the log tells
        (ValueError, True, [], True),
    ],
)
def test_folders_of_runs_that_are_refused(tmp_path, error, before, more, stays):
    folder = tmp_path / "run"
    if before:
        folder.mkdir()
    with pytest.raises(error), run_folder(folder):
        for name in ("log.txt", *more):
            (folder / name).touch()
        raise error("no")
    assert folder.exists() == stays and tmp_path.exists()
    with run_folder(folder):
        pass
    assert (folder / "command.txt").exists()


def test_folders_above_a_refused_run_go_with_it(tmp_path):
    (tmp_path / "kept").mkdir()
    with pytest.raises(ValueError), run_folder(tmp_path / "kept" / "a" / "b" / "run"):
        raise ValueError("no")
    with pytest.raises(OSError, match="is a file"), run_folder(tmp_path / "kept" / "a" / "b" / "run"):
        (tmp_path / "kept" / "a" / "file").touch()  # somebody else's, meanwhile
        raise OSError("is a file")
    assert [path.name for path in (tmp_path / "kept").rglob("*")] == ["a", "file"]


def test_folders_that_cannot_be_made_leave_none(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("pretrain.files.lock.open", refuse, raising=False)
    with pytest.raises(PermissionError, match=r"^OUTPUT_DIR \S+/a/run cannot be written: Permission denied$"):
        with run_folder(tmp_path / "a" / "run"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_command_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tools/x.py", "KEY", "two words"])
    (tmp_path / "run").mkdir()
    log_command(tmp_path / "run")
    log_command(tmp_path / "run")
    assert (tmp_path / "run" / "command.txt").read_text() == "python tools/x.py KEY 'two words'\n" * 2
