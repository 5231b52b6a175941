"""tools/slurm.py: a job of two local processes, preemption and requeue, and what would be sent to Slurm."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from checkout import ROOT
from child_processes import child_environment, children
from noise import write_noise_images

from loco_det.cli import slurm
from loco_det.cli.common.commands import named_tool

# 20 iterations
SMALL = ("MODEL.ENCODER", "resnet18x0.25", "INPUT.CROP_SIZE", 32, "MODEL.DECODER.HIDDEN_DIM", 32, "MODEL.DEVICE", "cpu",
         "SOLVER.IMS_PER_BATCH", 4, "SOLVER.EPOCHS", 20.0, "SOLVER.LOG_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 500,
         "DATALOADER.NUM_WORKERS", 0)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_noise_images(tmp_path_factory.mktemp("images"), 4)


def start(*arguments, **more):
    pytest.importorskip("submitit")
    command = [sys.executable, "tools/slurm.py", *map(str, arguments)]
    env = child_environment(OMP_NUM_THREADS="1", **more)
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def log(out, task=0, kind="out"):
    return "".join(p.read_text() for p in out.glob(f"slurm/*/*_{task}_log.{kind}"))


def test_a_preempted_job_is_requeued_and_goes_on(images, tmp_path):
    """Two processes on this machine; submitit's signal, as it comes before a preemption or the time limit."""
    process = start("--cluster", "local", "--tasks-per-node", 2, "--", "tools/pretrain.py", "DATASETS.TRAIN", images,
                    "OUTPUT_DIR", tmp_path, *SMALL)  # fmt: skip
    try:
        job = int(process.stdout.readline().split()[1].rstrip(","))  # "job PID, logs in FOLDER"
        while "iter: 3/20" not in log(tmp_path):
            time.sleep(0.05)
            assert process.poll() is None, log(tmp_path, kind="err")
        for pid in [pid for task in children(job) for pid in (task, *children(task))]:  # as Slurm does
            os.kill(pid, signal.SIGUSR2)
        output, error = process.communicate(timeout=200)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, error + log(tmp_path, kind="err")
    text = log(tmp_path)
    assert text.count("SIGTERM: checkpoint written after iteration") == text.count("Requeued job") == 1
    assert text.count("Resuming from") == 1 and "iter: 20/20" in text and " 2 processes" in text
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 19


def test_a_failure_names_the_logs(tmp_path):
    process = start("--cluster", "local", "--", "tools/pretrain.py", "DATASETS.TRAIN", tmp_path, "OUTPUT_DIR",
                    tmp_path / "out")  # fmt: skip
    _, error = process.communicate(timeout=200)
    assert (process.returncode, error.count("\n")) == (1, 1)
    assert "failed: see the logs in" in error and str(tmp_path / "out" / "slurm") in error
    assert "no images" in log(tmp_path / "out", kind="err")


def test_what_is_sent_to_slurm(tmp_path):
    """srun and sbatch that do nothing but answer."""
    for name, answer in (("srun", ""), ("sbatch", "Submitted batch job 42")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {answer}\n")
        (tmp_path / name).chmod(0o755)
    out = tmp_path / "out"
    process = start("--nodes", 2, "--gpus-per-node", 8, "--partition", "P", "--time", 600, "--mem-gb", 400, "--sbatch",
                    "account=A", "qos=Q", "--", "tools/pretrain.py", "--config-file", "x.yaml", "OUTPUT_DIR", "no",
                    "OUTPUT_DIR", out, PATH=f"{tmp_path}:{os.environ['PATH']}")  # fmt: skip
    output, error = process.communicate(timeout=100)
    assert (process.returncode, output) == (0, f"job 42, logs in {out}/slurm/42\n"), error
    script = (out / "slurm" / "42" / "42_submission.sh").read_text()
    for line in ("nodes=2", "gpus-per-node=8", "ntasks-per-node=8", "partition=P", "time=600", "mem=400GB",
                 "account=A", "qos=Q", "signal=USR2@180"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in script
    assert "--kill-on-bad-exit=1" in script


@pytest.mark.parametrize("words", [["loco-det", "train"], ["train"], ["tools/train_net.py"],
                                   ["python", "tools/train_net.py"], ["/bin/loco-det", "train"]])  # fmt: skip
def test_the_ways_to_name_a_tool(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without a folder tools/
    assert named_tool([*words, "--resume"]) == ["train", "--resume"]


def test_a_script_that_is_there_is_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert named_tool(["python", "tools/knn.py", "A"]) == named_tool(["tools/knn.py", "A"]) == ["tools/knn.py", "A"]


def test_a_job_that_is_run_here_says_so(monkeypatch, capsys, tmp_path):
    submitit = pytest.importorskip("submitit")
    job = SimpleNamespace(job_id="7", paths=SimpleNamespace(folder="logs"), results=lambda: [])
    executor = SimpleNamespace(cluster="local", update_parameters=lambda **_: None, submit=lambda task: job)
    monkeypatch.setattr(submitit, "AutoExecutor", lambda **_: executor)
    slurm.main(["--", "loco-det", "pretrain", "OUTPUT_DIR", str(tmp_path)])
    assert capsys.readouterr().out.endswith("there is no Slurm here (no srun): the job runs on this machine\n")
    slurm.main(["--cluster", "local", "--", "loco-det", "pretrain", "OUTPUT_DIR", str(tmp_path)])
    assert capsys.readouterr().out == "job 7, logs in logs\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tools/pretrain.py"], "the tool needs OUTPUT_DIR FOLDER"),
        (["tools/nothing.py", "OUTPUT_DIR", "x"], "tools/nothing.py: no such tool"),
        (["--", "loco-det", "nothing", "OUTPUT_DIR", "x"], "nothing: no such tool"),
        (["--nodes", "2", "--", "loco-det", "pretrain", "OUTPUT_DIR", "x"], "there is no sbatch here"),
        (["--sbatch", "account", "--", "tools/pretrain.py", "OUTPUT_DIR", "x"], "--sbatch takes KEY=VALUE"),
        (["--cluster", "slurm", "--", "tools/pretrain.py", "OUTPUT_DIR", "x"], "there is no sbatch here"),
        (["--nodes", "2", "--", "tools/pretrain.py", "OUTPUT_DIR", "x"], "there is no sbatch here"),
    ],
)
def test_bad_input_gets_one_line(call_tool, monkeypatch, capsys, tmp_path, arguments, message):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    code = call_tool("slurm", *arguments)
    error = capsys.readouterr().err
    assert code in (1, 2) and message in error and error.count("\n") == 1
