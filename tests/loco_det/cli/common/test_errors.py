"""Exit codes of the command lines: 2 for bad input, 1 for a failure, 130 for Ctrl-C, and one line for each."""

import errno

import pytest
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from loco_det.cli.common.errors import one_line_errors


def child(line):
    return ProcessRaisedException(f"\n\n-- Process 0 terminated:\nTraceback (most recent call last):\n{line}", 0, 1)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("two\nlines"), 2, "error: two lines"),
        (FileNotFoundError("/nowhere: no such file"), 2, "error: /nowhere: no such file"),
        (FloatingPointError("NaN"), 1, "error: NaN"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.json"),
            1,
            "error: x.json: No space left on device",
        ),
        (
            child("OSError: [Errno 28] No space left on device: 'x'"),
            1,
            "error: [Errno 28] No space left on device: 'x'",
        ),
        (FileNotFoundError(2, "No such file or directory", "x.yaml"), 2, "error: x.yaml: No such file or directory\n"),
        (IsADirectoryError(21, "Is a directory", "a", None, "b"), 2, "error: a -> b: Is a directory\n"),
        (RuntimeError("broken"), 1, "error: broken"),
        (
            RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
            1,
            "error: DataLoader worker (pid(s) 7) exited unexpectedly: most often the memory is full: lower DATALOADER.",
        ),
        (
            child("RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed. "),
            1,
            "error: DataLoader worker (pid 7) is killed by signal: Killed: most often the memory is full: lower DATA",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error.\nIt is possible"),
            1,
            "error: DataLoader worker (pid 7) is killed by signal: Bus error. It is possible: most often the memory",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. "),
            1,
            "error: DataLoader worker (pid 7) is killed by signal: Terminated: somebody has ended it, and with it the "
            "run; what was written until then is kept\n",
        ),
        (
            ModuleNotFoundError("No module named 'submitit'", name="submitit"),
            1,
            "error: this needs submitit, which is not installed: pip install submitit\n",
        ),
        (
            ModuleNotFoundError("No module named 'detectron2'", name="detectron2.config"),
            1,
            "error: Detectron2 is not installed: run python tools/install_detectron2.py\n",
        ),
        (ModuleNotFoundError("No module named 'x'"), 1, "error: No module named 'x': not all is installed that this "),
        (AssertionError(), 1, "error: AssertionError()"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (child("FileNotFoundError: no images"), 2, "error: no images"),
        (child("FloatingPointError: NaN: lower the rate"), 1, "error: NaN: lower the rate"),
        (child("torch.OutOfMemoryError: 3 GB"), 1, "error: 3 GB"),
        (ProcessExitedException("process 1 terminated with signal SIGKILL", 1, 2, -9), 1, "error: process 1"),
    ],
)
def test_exit_codes(capsys, error, code, message):
    with pytest.raises(SystemExit) as exit, one_line_errors():
        raise error
    err = capsys.readouterr().err
    assert exit.value.code == code and err.startswith(message) and err.count("\n") == 1


def test_the_advice_to_install_detectron2_is_given_once(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["loco-det train"])
    with pytest.raises(SystemExit), one_line_errors():
        raise ModuleNotFoundError("No module named 'detectron2'", name="detectron2")
    assert capsys.readouterr().err == "error: Detectron2 is not installed: run loco-det install-detectron2\n"
