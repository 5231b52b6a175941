"""Logs: lines as Detectron2 writes them, and a full disk that ends no run."""

import errno
import logging
import os
import re
import subprocess
import sys

import pytest

from pretrain.engine.logs import LogFile, start_logs

CHILD = """
import logging, sys
from pretrain.engine.logs import raise_log_errors, start_logs
start_logs(sys.argv[1], "pretrain", "loco_det")
for i in range(3):
    logging.getLogger("pretrain.x").info(f"line {i}")
print("the run has come to its end")
try:
    raise_log_errors()
except OSError as error:
    print(error.errno, error.filename)
"""


def test_lines_go_to_the_file(tmp_path):
    start_logs(str(tmp_path / "run"), "pretrain", "loco_det")
    start_logs(str(tmp_path / "run"), "pretrain")
    logging.getLogger("pretrain.some").info("a line")
    logging.getLogger("loco_det.other").warning("a warning")
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line.split("] ", 1)[1] for line in lines] == [
        "pretrain.some INFO: a line", "loco_det.other WARNING: a warning"
    ]  # fmt: skip


def test_a_full_disk_ends_the_log_but_not_the_run(tmp_path):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    done = subprocess.run([sys.executable, "-c", CHILD, tmp_path], capture_output=True, text=True)
    warning = f"warning: {tmp_path}/log.txt: {os.strerror(errno.ENOSPC)}: the run goes on without this log\n"
    assert done.stderr == warning
    end = done.stdout.splitlines()[-2:]
    assert end == ["the run has come to its end", f"{errno.ENOSPC} {tmp_path}/log.txt"]


def test_a_terminal_shows_the_first_line_of_the_model(tmp_path, monkeypatch, capsys):
    """Also in colours; log.txt has all of it, under the logger's own name."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    start_logs(str(tmp_path), "detectron2")
    logging.getLogger("detectron2.engine.defaults").info("Model:\n" + "layer\n" * 100)
    logging.getLogger("detectron2.evaluation").info("AP\n" * 6)
    shown = capsys.readouterr().out
    assert shown.count("layer") == 0 and "100 more lines are in log.txt" in shown and shown.count("AP") == 6
    written = (tmp_path / "log.txt").read_text()
    assert (
        written.count("layer") == 100 and "detectron2.engine.defaults INFO: Model" in written and "\x1b" not in written
    )


DEATH = "DataLoader worker (pid 12) is killed by signal: Killed. "  # torch's words, from its handler of SIGCHLD


@pytest.mark.parametrize("stream", ["file", "terminal"])
def test_the_death_of_a_worker_while_a_line_is_written_is_not_swallowed(tmp_path, monkeypatch, stream):
    start_logs(str(tmp_path), "death")
    logger = logging.getLogger("death")
    handler = next(handler for handler in logger.handlers if isinstance(handler, LogFile) is (stream == "file"))

    def die(record):
        raise RuntimeError(DEATH)

    monkeypatch.setattr(handler, "format", die)
    with pytest.raises(RuntimeError, match=re.escape(DEATH)):
        logger.info("a line")
