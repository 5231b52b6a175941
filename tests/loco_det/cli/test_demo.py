"""tools/demo.py: the commands that it runs, skipping what is done, going on, failing. The whole demo is `make demo`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkout import ROOT

import loco_det.cli.demo


@pytest.fixture
def demo(monkeypatch, tmp_path):
    """The module, in a checkout whose tools are stand-ins."""
    (tmp_path / "tools").mkdir()
    monkeypatch.chdir(tmp_path)
    return loco_det.cli.demo


def test_every_step_uses_what_is_there_or_what_an_earlier_step_makes(demo):
    made = set()
    for long in (False, True):
        for _, done, _, command in demo.steps(Path("out"), 3, long):
            assert (ROOT / "tools" / command[0]).exists()
            if "--config-file" in command:
                assert (ROOT / command[command.index("--config-file") + 1]).exists()
                weights = command[command.index("MODEL.WEIGHTS") + 1] if "MODEL.WEIGHTS" in command else None
                assert weights is None or weights in made
                assert command[command.index("SEED") + 1] == 3
            made.add(done)
    assert Path("out/seed3/finetune_loco/results.json") in made
    assert Path("out/seed3_long/finetune_loco/results.json") in made


def stand_in(code):
    Path("tools/tool.py").write_text("import sys\n" + code)


def test_a_finished_step_is_skipped_and_an_interrupted_one_resumed(demo, capfd, tmp_path):
    stand_in("print(sys.argv[1:]); print('eta: 0:00:09  iter: 1/9  loss_res3: 1.5'); open('done', 'w')")
    step = ("a step", tmp_path / "done", tmp_path / "run", ["tool.py", "KEY", 1])
    demo.run_step(1, 2, *step)
    demo.run_step(1, 2, *step)
    out = capfd.readouterr().out
    assert out.count("python tools/tool.py KEY 1") == 1 and "already done" in out and "eta: 0:00:09" in out
    (tmp_path / "done").unlink()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last_checkpoint").touch()
    demo.run_step(1, 2, *step)
    assert "python tools/tool.py --resume KEY 1" in capfd.readouterr().out
    step = ("a detector", tmp_path / "run" / "results.json", tmp_path / "run", ["tool.py", "KEY", 1])
    step[1].write_text('{"results": {}, "problems": ["analysis: it failed"]}')
    demo.run_step(1, 2, *step)
    assert "python tools/tool.py --resume KEY 1" in capfd.readouterr().out
    step[1].write_text('{"results": {}, "problems": []}')
    demo.run_step(1, 2, *step)
    assert "already done" in capfd.readouterr().out


def test_how_long_it_takes_and_in_which_precision_is_shown(demo, capfd, tmp_path):
    lines = ["[time pretrain.engine.precision]: SOLVER.AMP.ENABLED auto: float32, because of this CPU", "[time]: other",
             "[time pretrain.engine.estimate]: about 17 min for 460 iterations at 2.2 s each on cpu"]  # fmt: skip
    stand_in(f"print(*{lines}, sep='\\n'); open('done', 'w')")
    demo.run_step(1, 1, "a step", tmp_path / "done", None, ["tool.py"])
    shown = [line.strip() for line in capfd.readouterr().out.splitlines()]
    assert shown[2:4] == ["SOLVER.AMP.ENABLED auto: float32, because of this CPU",
                          "about 17 min for 460 iterations at 2.2 s each on cpu"]  # fmt: skip


def test_a_failing_step_shows_why_and_stops(demo, capfd, tmp_path):
    stand_in("print('some context'); sys.exit('error: no such thing')")
    with pytest.raises(SystemExit, match="step 1, a step, failed; the same command goes on from here"):
        demo.run_step(1, 2, "a step", tmp_path / "done", None, ["tool.py"])
    assert "some context\nerror: no such thing" in capfd.readouterr().err


def test_ctrl_c(tmp_path):
    """As a terminal does it: the signal reaches the demo and the tool that it runs."""
    command = [sys.executable, ROOT / "tools" / "demo.py", "--output", tmp_path / "out"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes, start_new_session=True)
    line = process.stdout.readline()
    assert line.startswith("[1/8] generate scenes")
    while not any(path.is_file() for path in tmp_path.rglob("*")):  # of the tool
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from here" in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.tmp"))
