"""benchmarks/gpu_check.py: all checks on a GPU where there is one, and the same code on the CPU with small networks."""

import json
import logging
import sys

import pytest
import torch

from benchmarks import common, gpu_check
from benchmarks.gpu import pretraining, speed
from benchmarks.gpu.setting import Figure, Setting, deterministic, full_float32


@pytest.fixture(autouse=True)
def _as_before():
    """Random numbers, levels of logs, and whether kernels are deterministic, stay what they were for other tests."""
    state, strict = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    loggers = [logging.getLogger(name) for name in gpu_check.QUIET]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    torch.set_rng_state(state)
    assert torch.are_deterministic_algorithms_enabled() == strict


def passes(name, setting):
    found = gpu_check.run(name, setting)
    assert found["passed"] and found["figures"], found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", gpu_check.CHECKS)
def test_on_a_gpu(name, tmp_path):
    passes(name, Setting("cuda", tmp_path))


@pytest.mark.parametrize("name", gpu_check.CHECKS)
def test_the_same_code_on_the_cpu(name, tmp_path):
    passes(name, Setting("cpu", tmp_path, smoke=True))


def command(monkeypatch, *arguments):
    """The record of a command line."""
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *map(str, arguments)])
    return common.main(gpu_check)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, "--output", tmp_path / "record.json")
    assert str(end.value).startswith("error: there is no GPU") and "\n" not in str(end.value)
    assert not (tmp_path / "record.json").exists()


def test_one_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    def broken(setting):
        raise RuntimeError("no kernel image\nis available")

    names = ["pretraining, float32", "pretraining, chunks", "conversion"]
    monkeypatch.setattr(gpu_check, "CHECKS", {
        names[0]: broken,
        names[1]: lambda setting: [Figure("losses", 0.5, 0.1), Figure("cosine", 0.9, 0.8, least=True)],
        names[2]: lambda setting: [Figure("features", 0.0, 0.0, text="exact")],
    })  # fmt: skip
    out = tmp_path / "record.json"
    record = command(monkeypatch, "--device", "cpu", "--smoke", "--no-speed", "--output", out)
    assert gpu_check.failed(record) and [check["passed"] for check in record["results"]["checks"]] == [
        False,
        False,
        True,
    ]
    assert json.loads(out.read_text())["results"] == record["results"]
    printed = capsys.readouterr().out
    assert "| pretraining, float32 | FAILED | RuntimeError: no kernel image is available |" in printed
    assert (
        "| FAILED | 0.5 (losses) | at most 0.1 |" in printed and "| passed | 0.9 (cosine) | at least 0.8 |" in printed
    )
    assert "| passed | 0 (features; exact) | at most 0 |" in printed and printed.strip().endswith("3 checks, 2 failed.")
    record = command(monkeypatch, "--device", "cpu", "--smoke", "--no-speed", "--only", "conv")
    assert not gpu_check.failed(record) and [check["name"] for check in record["results"]["checks"]] == ["conversion"]
    with pytest.raises(SystemExit, match="no check is called pretrainig"):
        command(monkeypatch, "--device", "cpu", "--smoke", "--only", "pretrainig")


def test_the_table_of_seconds_and_memory(tmp_path, monkeypatch):
    rows = speed.measure(Setting("cpu", tmp_path, smoke=True), images=2, side=32, steps=1)
    assert len(rows) == 6 and all(row["seconds"] > 0 and row["activations"] > 0 for row in rows)
    rows = [{**row, "encoder": "resnet50"} for row in rows]
    rows[4] = {key: rows[4][key] for key in ("encoder", "method", "dtype")} | {"problem": "out of memory"}
    lines = speed.table(rows, 2).splitlines()
    assert "out of memory" in lines[6] and lines[4].endswith("| 1.81x |") and "| 1.00x |" in lines[2]
    record = {"results": {"checks": [], "speed": rows}}
    assert gpu_check.failed(record)


def test_a_wrong_step_does_not_pass(monkeypatch, tmp_path):
    """The tolerances notice it: views of different images are paired; a loss's gradient is lost."""
    setting = Setting("cpu", tmp_path, smoke=True)
    views, wanted = pretraining.views_of(setting), pretraining.reference(setting)
    cfg = pretraining.config(setting, "cpu")
    first, second = views.chunk(2)
    swapped = pretraining.step(pretraining.learner_of(cfg), torch.cat([first, second.roll(1, 0)]))
    assert not any(figure.passed for figure in pretraining.compared(swapped, wanted))
    learner = pretraining.learner_of(cfg)
    whole = learner.loss_and_gradient
    monkeypatch.setattr(learner, "loss_and_gradient", lambda z: (whole(z)[0], torch.zeros_like(z)))
    losses, gradients = pretraining.compared(pretraining.step(learner, views), wanted)
    assert losses.passed and not gradients.passed
    assert not Figure("nothing", float("nan"), 1.0).passed and not Figure("", float("nan"), 0.0, least=True).passed


def test_exact_comparisons_leave_torch_as_it_was():
    before = torch.backends.cudnn.allow_tf32
    with full_float32(), deterministic() as without:
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before and without == []


def test_the_record_names_the_gpu(monkeypatch):
    assert "gpu" not in common.machine() or torch.cuda.is_available()
    card = {"name": "NVIDIA X", "memory_gb": 80, "driver": "580.1", "cuda": "13.0"}
    monkeypatch.setattr(common, "gpu", lambda: {"gpu": card})
    found = {"machine": common.machine(), "versions": {"torch": "2"}, "date": "2026-01-01T00:00", "version": "1"}
    assert common.head(found).startswith("NVIDIA X (driver 580.1, CUDA 13.0), ")
