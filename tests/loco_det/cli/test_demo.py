"""tools/demo.py: what it pretrains, what it evaluates, failing, Ctrl-C. The whole demo is `make demo`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkout import ROOT

from loco_det.cli import demo
from loco_det.cli.common import steps as steps_module
from loco_det.cli.evaluate import parser
from pretrain.files.shipped_configs import find_config


@pytest.mark.parametrize("long", [False, True])
def test_every_seed_has_a_pretraining_and_all_are_one_row(long):
    runs = []
    for seed in range(3):
        run, words = demo.pretraining(Path("out"), seed, long)
        pairs = dict(zip(words[::2], words[1::2], strict=True))
        assert pairs["SEED"] == str(seed) and pairs["OUTPUT_DIR"] == str(run) and Path(find_config(words[1])).is_file()
        runs.append(str(run / "model_final.pth"))
    args = parser().parse_args(demo.evaluation(Path("out"), 3, long))
    assert args.checkpoints == [f"{'loco_long' if long else 'loco'}={','.join(runs)}"]
    assert args.seeds == 3 and args.lrs == [demo.RATE] and args.budget == "short" and len(args.data) == 4
    assert args.output == Path("out/ranking") and len(set(runs)) == 3


@pytest.fixture
def tools(monkeypatch, tmp_path):
    """A folder for stand-ins of the tools."""
    monkeypatch.setattr(steps_module, "TOOLS", tmp_path)
    monkeypatch.setattr("sys.argv", ["tools/demo.py"])
    return tmp_path


def test_what_is_done_is_skipped_and_the_rest_is_made(tools, capfd, tmp_path):
    out = tmp_path / "out"
    code = "import sys; open(sys.argv[sys.argv.index('OUTPUT_DIR') + 1] + '/model_final.pth', 'w')"
    (tools / "pretrain.py").write_text(code)
    (out / "data").mkdir(parents=True)
    (out / "data" / "demo.json").touch()
    assert demo.make(out, 2, False) == 0
    shown = capfd.readouterr().out
    assert "[1/3] generate scenes: already done" in shown and shown.count("python tools/pretrain.py") == 2


def test_a_failing_step_shows_why_and_what_needs_it_is_left_out(tools, capfd, tmp_path):
    (tools / "make_demo_data.py").write_text("import sys; sys.exit('error: no such thing')")
    assert demo.make(tmp_path / "out", 1, False) == 1
    shown = capfd.readouterr()
    assert shown.err == "error: generate scenes: no such thing\n" and "pretrain.py" not in shown.out


def test_bad_seeds(call_tool, capfd):
    assert call_tool("demo", "--seeds", "0") == 2
    assert capfd.readouterr().err == "error: --seeds is 0, but must be at least 1\n"


def test_ctrl_c(tmp_path):
    """As a terminal does it: the signal reaches the demo, which passes it on to the tool that it runs."""
    command = [sys.executable, ROOT / "tools" / "demo.py", "--output", tmp_path / "out"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes, start_new_session=True)
    line = process.stdout.readline()
    assert line.startswith("[1/2] generate scenes")
    while not any(path.is_file() for path in tmp_path.rglob("*")):  # of the tool
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from here" in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.tmp"))
