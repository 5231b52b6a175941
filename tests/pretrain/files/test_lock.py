"""One run in a folder at a time, whatever becomes of the one that had it."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from pretrain.files import lock
from pretrain.files.lock import lock_folder, unlock_folder

HOLD = "import sys, time; from pretrain.files.lock import lock_folder; lock_folder(sys.argv[1]); print(1, flush=True)"


@pytest.fixture
def holder(tmp_path):
    """A process that has the lock of ``tmp_path``, until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{HOLD}; time.sleep(600)", tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "1\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_refused_until_the_first_is_killed(tmp_path, holder):
    (tmp_path / ".model_final.12345678.tmp.pth").write_text("what the first one is writing")
    with pytest.raises(ValueError, match=rf"another run \(process {holder.pid} on \S+, since .*\) uses this") as error:
        lock_folder(tmp_path)
    assert len(str(error.value).splitlines()) == 1 and len(list(tmp_path.iterdir())) == 2
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock_folder(tmp_path / ".")  # the same folder
    lock_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]  # what the killed one was writing is gone
    assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
    unlock_folder(tmp_path)
    unlock_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_lock_goes_with_its_process(tmp_path):
    subprocess.run([sys.executable, "-c", HOLD, tmp_path / "new"], check=True, stdout=subprocess.DEVNULL)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_child_does_not_keep_it(tmp_path):
    """Loader workers are forks of the process with the lock, and may outlive it for a moment."""
    code = f"{HOLD}; import os; os.fork() or time.sleep(600); os._exit(0)"
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    process.wait()
    lock_folder(tmp_path)
    unlock_folder(tmp_path)
    process.stdout.close()
    subprocess.run(["pkill", "-f", str(tmp_path)], check=False)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": "x"}'])
def test_an_owner_that_is_not_known(tmp_path, holder, text):
    (tmp_path / ".lock").write_text(text)
    with pytest.raises(ValueError, match=": another run uses this folder: wait until it ends, or set another"):
        lock_folder(tmp_path)


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    lock_folder(tmp_path)
    assert "no locks on this file system (No locks available): start no second run" in caplog.text
    assert os.path.realpath(tmp_path) not in lock._held


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"^OUTPUT_DIR \S+/file is a file, name a folder$"):
        lock_folder(tmp_path / "file")
    with pytest.raises(OSError, match=r"^OUTPUT_DIR \S+/file/a/b: \S+file is a file, name a folder$"):
        lock_folder(tmp_path / "file" / "a" / "b")
    with pytest.raises(OSError, match=r"^OUTPUT_DIR /proc/x/y cannot be written: No such file or directory$"):
        lock_folder("/proc/x/y")
    with pytest.raises(ValueError, match="^OUTPUT_DIR is empty: name a folder$"):
        lock_folder("")
