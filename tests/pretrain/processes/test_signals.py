"""Contexts that signals leave."""

import signal
import subprocess
import sys
import threading

import pytest

from pretrain.processes.signals import Terminated, leave_on


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_a_context(number):
    before, steps = signal.getsignal(number), []
    with pytest.raises(Terminated) as exit, leave_on(signal.SIGTERM, signal.SIGHUP):
        try:
            signal.raise_signal(number)
            steps.append("not left")
        finally:
            signal.raise_signal(signal.SIGTERM)
            steps.append("in order")
    assert exit.value.code == 128 + number and steps == ["in order"]
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with leave_on(signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_other_threads_do_not_handle_signals():
    done = []

    def work():
        with leave_on(signal.SIGTERM):
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]


def test_neither_torch_nor_detectron2_is_imported(request):
    code = "import loco_det.demo_scenes.writing, sys; print({'torch', 'detectron2'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=request.config.rootpath, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
