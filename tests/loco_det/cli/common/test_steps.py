"""The runner of an evaluation's steps: what it shows, resumes, keeps and removes, and how it stops."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from loco_det.cli.common import steps as module
from loco_det.cli.common.steps import Runner, prune
from loco_det.ranking.choice import FAILED
from loco_det.ranking.scheduler import StepFailedError, run_all
from loco_det.ranking.steps import Step


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """``stand_in(code, **step)``: a step whose tool is that code."""
    (tmp_path / "tools").mkdir()
    monkeypatch.setattr(module, "TOOLS", tmp_path / "tools")
    monkeypatch.setattr("sys.argv", ["tools/evaluate.py"])

    def stand_in(code, tool="train_net.py", done=None, **more):
        (tmp_path / "tools" / tool).write_text("import sys, os, time\n" + code)
        words = more.pop("words", ["KEY", "1"])
        return Step("a step", "row", tool, done or tmp_path / "run" / "done", lambda: words, **more)

    return stand_in


def test_progress_and_the_command_are_shown(stand_in, capfd, tmp_path):
    code = "print('about 17 min for 9 iterations at 2.2 s each on cpu'); print('eta: 0:00:09  iter: 1  loss_x: 1.5')"
    step = stand_in(code + f"\nopen({str(tmp_path / 'run' / 'done')!r}, 'w')")
    assert run_all([step], Runner([step]).run, 1, print) == []
    out = capfd.readouterr().out
    assert (
        "[1/1] a step\n    python tools/train_net.py KEY 1\n" in out and "about 17 min" in out and "eta: 0:00:09" in out
    )
    assert "[1/1] a step: finished in" in out


def test_an_interrupted_run_is_resumed(stand_in, capfd, tmp_path):
    step = stand_in(f"open({str(tmp_path / 'run' / 'done')!r}, 'w')", folder=tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last_checkpoint").touch()
    Runner([step]).run(step, 1, 0)
    assert "python tools/train_net.py --resume KEY 1" in capfd.readouterr().out


def test_what_a_step_prints_is_kept_whole(stand_in, tmp_path):
    output = tmp_path / "run" / "conversion.json"
    step = stand_in("print('{}'); print('a warning', file=sys.stderr)", "convert_to_d2.py", output, output=output)
    Runner([step]).run(step, 1, 0)
    assert output.read_text() == "{}\n"
    step = stand_in("print('{'); sys.exit('error: refused')", "convert_to_d2.py", output, output=output)
    output.unlink()
    with pytest.raises(StepFailedError, match=r"^refused$"):
        Runner([step]).run(step, 1, 0)
    assert not output.exists()


def test_a_failure_is_its_last_line(stand_in, capfd):
    step = stand_in("print('context'); sys.exit('error: no such thing')")
    with pytest.raises(StepFailedError, match=r"^no such thing$"):
        Runner([step]).run(step, 1, 0)
    step = stand_in("print('context'); 1 / 0")
    with pytest.raises(StepFailedError, match="ZeroDivisionError"):
        Runner([step]).run(step, 1, 0)
    assert "context" in capfd.readouterr().err


def test_a_step_that_ends_well_without_its_last_file_is_not_done(stand_in):
    """As training does after SIGTERM, with a checkpoint."""
    step = stand_in("print('saved')")
    with pytest.raises(StepFailedError, match="stopped before its end"):
        Runner([step]).run(step, 1, 0)


def test_a_loss_that_explodes_while_a_rate_is_chosen_is_an_answer(stand_in, tmp_path):
    code = "sys.exit('error: the loss is not finite: lower SOLVER.BASE_LR')"
    step = stand_in(code, done=tmp_path / "run" / "results.json", choice=True)
    Runner([step]).run(step, 1, 0)
    assert "lower SOLVER.BASE_LR" in (tmp_path / "run" / FAILED).read_text() and step.is_done
    step = stand_in(code, done=tmp_path / "other" / "results.json")
    with pytest.raises(StepFailedError, match="not finite"):
        Runner([step]).run(step, 1, 0)


def test_checkpoints_that_nothing_reads_are_removed(stand_in, tmp_path):
    (tmp_path / "run" / "inference").mkdir(parents=True)
    names = {
        "model_0000009.pth",
        "model_final.pth",
        "last_checkpoint",
        "metrics.json",
        "inference/instances_predictions.pth",
    }

    def left(choice):
        for name in names:
            (tmp_path / "run" / name).touch()
        prune(stand_in("", done=tmp_path / "run" / "results.json", choice=choice))
        return {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}

    assert left(False) == names - {"model_0000009.pth"} and left(True) == {"metrics.json"}
    (tmp_path / "run" / "model_0000009.pth").touch()
    prune(stand_in("", "pretrain.py", tmp_path / "run" / "model_final.pth"))
    assert (tmp_path / "run" / "model_0000009.pth").exists()


def test_each_job_has_its_share_of_the_machine(stand_in, monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "usable_cores", lambda: 8)
    shown = "print(os.environ.get('OMP_NUM_THREADS'), os.environ.get('CUDA_VISIBLE_DEVICES'))"
    output = tmp_path / "run" / "done"
    step = stand_in(shown, output=output)
    Runner([step], jobs=4, gpus=2).run(step, 1, 3)
    assert output.read_text() == "2 6,7\n"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-a,GPU-b")  # the user's own
    Runner([step], jobs=2, gpus=2).run(step, 1, 1)
    assert output.read_text() == "4 GPU-a,GPU-b\n"
    Runner([step]).run(step, 1, 0)
    assert output.read_text().startswith("None")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_step_which_ends_in_order(stand_in, tmp_path, signum):
    code = f"""
import signal
def end(signum, _):
    open({str(tmp_path / "ended")!r}, 'w').write(str(signum))
    sys.exit(1)
signal.signal({int(signum)}, end)
open({str(tmp_path / "begun")!r}, 'w')
time.sleep(60)
"""
    step = stand_in(code)
    runner, errors = Runner([step]), []

    def run():
        try:
            runner.run(step, 1, 0)
        except StepFailedError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    runner.stop(signum)
    thread.join(30)
    assert (tmp_path / "ended").read_text() == str(int(signum)) and errors == ["stopped"]
    with pytest.raises(StepFailedError):
        runner.run(step, 1, 0)  # nothing more is started
    assert os.path.exists(Path(tmp_path, "run"))
