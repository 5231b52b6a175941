"""Processes whose parent is killed: from their first moment on, blocked, without a kernel's help, as a script."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.processes.lifetime import is_running, tied_to_this_process

ROOT = Path(__file__).resolve().parents[3]
# Starts a child, which says its id, and "ready" when it is bound to end with this process.
PARENT = """
import multiprocessing, os, subprocess, sys, time
from pretrain.processes import lifetime
def child(parent=None):
    os.write(1, f"{{os.getpid()}}\\n".encode())
    {before}
    lifetime.end_with_parent(parent)
    os.write(1, b"ready\\n")
    {work}
{start}
time.sleep(60)
"""
FORKED = """
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
"""
SLEEP = "time.sleep(60)"
IN_C = "import ctypes; ctypes.PyDLL(None).sleep(60)"  # with the interpreter's lock: no other thread can run


@pytest.fixture
def start(request):
    """Start a script that says the id of a child; returns its process and that id. Both are killed at the end."""
    started = []

    def run(code):
        env = {**os.environ, "PYTHONPATH": str(request.config.rootpath)}
        process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        started.append(process.pid)
        started.append(int(process.stdout.readline()))
        return process, started[-1]

    yield run
    for pid in started:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)


def ends(pid, seconds=5):
    end = time.monotonic() + seconds
    while is_running(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize(
    ("before", "work"),
    [
        ("pass", SLEEP),
        pytest.param("pass", IN_C, marks=pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help")),
        ("lifetime.ask_kernel = lambda: None", SLEEP),  # as on macOS
        ("import signal; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())", SLEEP),
    ],
    ids=["sleeping", "in C", "no kernel", "signals blocked"],
)
def test_a_child_ends_with_its_parent(start, number, before, work):
    process, child = start(PARENT.format(before=before, work=work, start=FORKED))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.wait()
    assert ends(child)


def test_a_parent_that_was_killed_before(start):
    process, child = start(PARENT.format(before="time.sleep(1)", work="time.sleep(60)", start=FORKED))
    process.kill()
    process.wait()
    assert is_running(child) and ends(child) and process.stdout.read() == ""


def test_a_child_outlives_the_look_at_a_parent_that_is_there(start):
    process, child = start(PARENT.format(before="pass", work="time.sleep(60)", start=FORKED))
    assert process.stdout.readline() == "ready\n"
    time.sleep(1.5)
    assert is_running(child)


WRAPPED = """
wrapper = "import os, sys; os.wait() if os.fork() else os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
code = "from pretrain.processes.lifetime import *; end_with_parent(int(sys.argv[1])); print(os.getpid(), flush=True)"
code += "; print('ready', flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", wrapper, "-c", code, str(os.getpid())])
"""


def test_a_wrapper_may_be_between(start):
    process, child = start(PARENT.format(before="", work="pass", start=WRAPPED))
    assert process.stdout.readline() == "ready\n"
    time.sleep(1.5)
    assert is_running(child)
    process.kill()
    process.wait()
    assert ends(child)


SCRIPT = """
import os, sys, time, beside
print(os.getpid(), flush=True)
print(sys.argv, __name__, beside.__name__, flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "beside.py").touch()
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def test_a_script_is_what_it_is_without(script):
    done = subprocess.run(tied_to_this_process(script, "0", "7"), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.splitlines()[1] == f"['{script}', '0', '7'] __main__ beside"


def test_a_script_ends_with_who_has_started_it(start, script):
    begin = f"subprocess.Popen(lifetime.tied_to_this_process({str(script)!r}, '60', '0'), start_new_session=True)"
    process, child = start(PARENT.format(before="", work="pass", start=begin))
    process.kill()
    process.wait()
    assert ends(child)


def test_a_thread_takes_no_signal_that_the_main_thread_blocks():
    code = (
        "import os, signal, time; from pretrain.processes.lifetime import start_thread\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "start_thread(lambda: time.sleep(60)); os.kill(os.getpid(), signal.SIGTERM)\n"
        "print(signal.sigpending(), signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "{<Signals.SIGTERM: 15>} {<Signals.SIGTERM: 15>}\n", done.stderr


def test_what_is_running():
    assert is_running(os.getpid()) and is_running(1)
    process = subprocess.Popen([sys.executable, "-c", ""])
    time.sleep(1)
    assert not is_running(process.pid)  # though nobody has waited for it
    process.wait()
    assert not is_running(process.pid)


def test_a_module_of_site_packages_hides_none_of_the_standard_library(tmp_path):
    """Some packages install a ``typing.py``, which nobody imports as long as site-packages comes last."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    where = "import site; print(site.getsitepackages()[0])"
    site = Path(subprocess.check_output([python, "-c", where], text=True).strip())
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    (site / "typing.py").write_text("raise ImportError('not the standard library')")
    for package in ("loco_det", "pretrain"):
        (site / package).symlink_to(ROOT / package)
    code = """
import subprocess
from pretrain.processes.lifetime import module_tied_to_this_process
print(subprocess.check_output(module_tied_to_this_process("loco_det", "--version"), text=True))
"""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0.")


LOST = """
import multiprocessing, socket, sys, time
from multiprocessing.resource_sharer import DupFd
from pretrain.processes.lifetime import start_worker
def work(is_worker):
    if is_worker:
        start_worker()
    (address, _), peer = DupFd(1)._id, socket.socket(socket.AF_UNIX)
    peer.connect(address)
    peer.close()  # as a parent that has raised an error closes it
    time.sleep(1)
process = multiprocessing.get_context("fork").Process(target=work, args=(sys.argv[1] == "True",))
process.start()
process.join()
"""


@pytest.mark.parametrize("is_worker", [True, False])
def test_a_worker_whose_parent_takes_no_batch_any_more_is_silent(is_worker):
    command = [sys.executable, "-c", LOST, str(is_worker)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0 and ("resource_sharer" in done.stderr) is not is_worker, done.stderr
