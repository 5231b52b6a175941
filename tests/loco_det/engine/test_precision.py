"""SOLVER.AMP.AUTO: bfloat16 on CPUs that have it, and what a run began with."""

import logging

import pytest
from detectron2.config import get_cfg

from loco_det.config import add_loco_config
from loco_det.engine import precision
from loco_det.engine.trainer import Trainer
from pretrain.files.shipped_configs import find_config


@pytest.fixture
def cfg():
    found = get_cfg()
    add_loco_config(found)
    found.MODEL.DEVICE = "cpu"
    found.SOLVER.AMP.AUTO = True
    return found


@pytest.mark.parametrize(("fast", "word"), [(True, "bfloat16"), (False, "float32")])
def test_the_cpu_decides_and_the_log_says_why(cfg, fast, word, monkeypatch, caplog):
    monkeypatch.setattr(precision, "bfloat16_support", lambda device: (fast, "of its flags"))
    cfg.freeze()
    with caplog.at_level(logging.INFO):
        settled = precision.with_precision(cfg)
    assert (settled.SOLVER.AMP.AUTO, settled.SOLVER.AMP.ENABLED) == (False, fast)
    assert cfg.SOLVER.AMP.AUTO and settled.is_frozen()
    assert f"SOLVER.AMP.AUTO: {word}, because of its flags" in caplog.text
    assert precision.with_precision(settled) is settled


@pytest.mark.parametrize(("device", "enabled"), [("cuda:1", False), ("cuda", True), ("cpu", True)])
def test_what_is_asked_for_stays(cfg, device, enabled, monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_support", lambda device: pytest.fail("asked"))
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED = device, enabled
    settled = precision.with_precision(cfg)
    assert (settled.SOLVER.AMP.AUTO, settled.SOLVER.AMP.ENABLED) == (False, enabled)


def test_the_overlay_for_cpus_asks_and_recipes_do_not():
    """The demo's detectors are too small: they are less than 1.5 times as fast (benchmarks/precision.py)."""
    for name, auto in {"overlays/cpu": True, "demo_coco_loco_frozen": False, "coco_loco_frozen": False}.items():
        cfg = get_cfg()
        add_loco_config(cfg)
        cfg.merge_from_file(find_config(name))
        assert (auto, False) == (cfg.SOLVER.AMP.AUTO, cfg.SOLVER.AMP.ENABLED), name


def test_a_trainer_of_ones_own_is_settled_too(monkeypatch):
    seen = []
    monkeypatch.setattr("loco_det.engine.trainer.with_precision", lambda cfg: seen.append(cfg) or 1 / 0)
    cfg = get_cfg()
    add_loco_config(cfg)
    with pytest.raises(ZeroDivisionError):
        Trainer(cfg)
    assert seen == [cfg]
