"""Files that are written whole or not at all, and what killed processes have left."""

import errno
import json
import os
import subprocess
import sys

import pytest

from pretrain.files import atomic as files
from pretrain.files.atomic import (
    named_errors,
    remove_leftovers,
    remove_orphans,
    sha256_of,
    temporary_name,
    write_json,
    write_whole,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["text", b"text", lambda file: file.write(b"text")])
def test_a_file_is_written_and_replaced(tmp_path, content):
    path = tmp_path / "new" / "a.txt"
    for _ in range(2):
        write_whole(path, content)
        assert path.read_bytes() == b"text" and names(path.parent) == ["a.txt"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyError("x"), KeyboardInterrupt()]
)
def test_what_goes_wrong_leaves_the_older_file(tmp_path, error):
    (tmp_path / "a.json").write_text("older")

    def fail(file):
        file.write(b"half")
        raise error

    with pytest.raises(type(error)) as raised:
        write_whole(tmp_path / "a.json", fail)
    assert names(tmp_path) == ["a.json"] and (tmp_path / "a.json").read_text() == "older"
    if isinstance(error, OSError):
        assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(tmp_path / "a.json")


def test_a_file_where_a_folder_is_wanted_is_said_of_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x.json", tmp_path / "file" / "a" / "x.json"):
        with pytest.raises(OSError) as error:
            files.write_whole(path, "x")
        assert (error.value.filename, error.value.strerror) == (str(path), "Not a directory")


def test_numbers_that_json_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    write_json(tmp_path / "a.json", {"a": [1, "ü"]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, "ü"]} and names(tmp_path) == ["a.json"]


def test_a_name_of_the_greatest_length(tmp_path):
    write_whole(tmp_path / f"{'n' * 250}.txt", "x")
    assert names(tmp_path) == [f"{'n' * 250}.txt"]


def test_the_next_writer_removes_what_a_killed_one_has_left(tmp_path):
    """But nothing of a process that is still writing, or of another machine."""
    code = (
        "import os, signal, sys; from pretrain.files.atomic import write_whole\n"
        "write_whole(sys.argv[1], lambda file: os.kill(os.getpid(), signal.SIGKILL))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.json"])
    (left,) = names(tmp_path)
    writing = temporary_name(tmp_path / "a.json").name
    elsewhere = left.replace(files._machine(), "12345678")
    assert elsewhere != left
    for name in (writing, elsewhere, ".a.12345678.tmp.json"):
        (tmp_path / name).write_text("x")
    remove_orphans.cache_clear()
    write_whole(tmp_path / "b.json", "x")
    assert names(tmp_path) == sorted([writing, elsewhere, ".a.12345678.tmp.json", "b.json"])


def test_torchs_error_on_a_full_disk_names_the_file(tmp_path):
    """In a process of its own, whose files may not grow."""
    code = (
        "import resource, sys, torch; from pretrain.files.atomic import write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: write_whole(sys.argv[1], lambda f: torch.save(torch.zeros(10**6), f))\n"
        "except OSError as error: print(error.errno, error.filename)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "w.pth"], capture_output=True, text=True)
    assert done.stdout.split() == [str(errno.EFBIG), str(tmp_path / "w.pth")], done.stderr
    assert names(tmp_path) == []


def test_other_runtime_errors_name_the_file():
    with pytest.raises(OSError, match="cannot write a.pth: two lines"), named_errors("a.pth"):
        raise RuntimeError("two\nlines")


def test_only_what_a_killed_process_left_is_removed(tmp_path):
    left = [temporary_name(tmp_path / name).name for name in ("model_final.pth", "last_checkpoint", "a.b.json")]
    left += [".config.12345678.tmp.yaml"]
    left += ["checkpoint.tmp", "model_0000001.pth.tmp123", ".results.json.77.tmp"]  # of version 0.1
    kept = ["model_final.pth", "notes.tmp", ".hidden", "a.tmp.txt", "checkpoint.tmp.bak"]
    kept += ["notes.tmp2", ".draft.2024.tmp"]  # of the user's own
    for name in left + kept:
        (tmp_path / name).write_text("x")
    (tmp_path / ".folder.12345678.tmp").mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*kept, ".folder.12345678.tmp"])
    remove_leftovers(tmp_path / "nowhere")


def test_a_killed_writer_leaves_what_is_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(os, "replace", lambda *_: sys.exit())
        patch.setattr(files.Path, "unlink", lambda *_, **__: None)  # as if killed
        write_whole(tmp_path / "a.pth", "x")
    assert len(names(tmp_path)) == 1
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2's example
    assert sha256_of(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")
    with open(tmp_path / "a", "rb") as file:
        assert files._digest(file) == sha256_of(tmp_path / "a")


def test_others_may_read_what_was_written(tmp_path):
    """A file of Python's tempfile is its owner's alone; ours follow the umask, as every other file."""
    write_whole(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_pipe_or_a_device_is_written_to_and_not_replaced(tmp_path):
    """As /dev/null is, into which one may well want to write; here a pipe, which needs no rights."""
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    write_whole(tmp_path / "pipe", "text")
    assert reader.communicate()[0] == b"text" and (tmp_path / "pipe").is_fifo() and names(tmp_path) == ["pipe"]
    (tmp_path / "link").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device: .*link"):
        write_whole(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()


def test_a_dead_worker_is_no_error_of_writing():
    with pytest.raises(RuntimeError, match="DataLoader worker .* is killed"), named_errors("metrics.json"):
        try:
            raise ConnectionResetError(104, "Connection reset by peer")
        except ConnectionResetError:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.") from None
