"""The examples as a reader runs them, and what they promise: short, without network, with sensible figures."""

import importlib.util
import math
from pathlib import Path

import pytest
from made_up_evaluation import evaluation_folder  # noqa: F401

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))


def load(name):
    path = next(path for path in EXAMPLES if path.stem == name)
    spec = importlib.util.spec_from_file_location(f"examples_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_loop_learns():
    totals = load("own_loop").main(steps=12)
    assert all(map(math.isfinite, totals)) and sum(totals[-3:]) < sum(totals[:3])


def test_convert_and_load(capsys):
    shapes = load("convert_and_load").main([])
    assert {stage: tuple(shape) for stage, shape in shapes.items()} == {
        "res2": (1, 64, 56, 56), "res3": (1, 128, 28, 28), "res4": (1, 256, 14, 14), "res5": (1, 512, 7, 7)
    }  # fmt: skip
    assert "resnet18, written by MoCo" in capsys.readouterr().out


def test_stage_features():
    accuracies = load("stage_features").main([])
    assert list(accuracies) == ["res2", "res3", "res4", "res5"] and accuracies["res2"] > 90


def test_own_method():
    history = load("own_method").main(steps=2)
    assert [list(losses) for losses in history] == [["res2", "res3", "res4", "res5"]] * 2
    assert all(math.isfinite(loss) for losses in history for loss in losses.values())


def test_stages_on_devices(capsys):
    speeds = load("stages_on_devices").main(["resnet18x0.25"], images=2, size=32)
    assert set(speeds) == {(devices, late) for devices in (2, 3, 4) for late in (False, True)}
    assert 1.0 < speeds[2, False] <= 2.0 and speeds[4, True] <= 4.0 and "2 devices, exact" in capsys.readouterr().out


def test_timm_backbone(capsys):
    shapes = load("timm_backbone").main([])
    assert {level: tuple(shape)[2:] for level, shape in shapes.items()} == {
        "p2": (56, 72), "p3": (28, 36), "p4": (14, 18), "p5": (7, 9), "p6": (4, 5)
    }  # fmt: skip
    assert "vit_tiny_patch16_224, written by timm" in capsys.readouterr().out


def test_rank_checkpoints(evaluation_folder):  # noqa: F811
    rows = load("rank_checkpoints").main([str(evaluation_folder)])
    assert list(rows) == ["loco", "simclr", "random_resnet18"] and rows["loco"][0] == 7.0
    assert rows["loco"][1].startswith("loco is above chance") and rows["random_resnet18"][1] == "the control"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(path):
    text = path.read_text()
    assert len(text.splitlines()) < 80 and f"python examples/{path.name}" in text


def test_every_example_is_tested():
    tested = Path(__file__).read_text()
    assert all(f'load("{path.stem}")' in tested for path in EXAMPLES)
