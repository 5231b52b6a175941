"""Loaders have as many workers as the process has cores, and no more than they need."""

import os

import pytest
from detectron2.config import get_cfg as detectron2_cfg

from loco_det.config import add_loco_config
from pretrain.config import get_cfg
from pretrain.processes import cores
from pretrain.readout.config import get_cfg as readout_cfg


@pytest.mark.parametrize(("usable", "pretraining", "detection"), [(1, 1, 1), (2, 2, 2), (6, 6, 4), (64, 8, 4)])
def test_the_defaults_follow_the_machine(monkeypatch, usable, pretraining, detection):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)), raising=False)
    cfg = detectron2_cfg()
    add_loco_config(cfg)
    found = [config.DATALOADER.NUM_WORKERS for config in (get_cfg(), readout_cfg(), cfg)]
    assert found == [pretraining, pretraining, detection]


def test_a_system_without_affinity_counts_its_cores(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cores.usable_cores() == 3 and cores.default_workers(2) == 2
