"""Budgets: schedules of the known data sets and of one's own, and the grid of learning rates."""

from pathlib import Path

import pytest
from detectron2.config import get_cfg

from loco_det.config import add_loco_config
from loco_det.ranking.data import NARROW, Data, find_data
from loco_det.ranking.recipes import base_config, recipe
from pretrain.files.shipped_configs import CONFIGS
from pretrain.files.yaml_files import merge_config_file


def config_of(data, budget="short"):
    cfg = get_cfg()
    add_loco_config(cfg)
    merge_config_file(cfg, CONFIGS / base_config(data, budget))
    return cfg


def own(images, side=None):
    return Data("own", NARROW, Path("images"), images, {"NAME": "own"}, side)


@pytest.mark.parametrize(
    ("name", "budget", "iterations", "steps", "images", "rates"),
    [
        ("coco", "paper", 90000, [60000, 80000], 16, [0.01, 0.02, 0.04]),  # Detectron2's 1x
        ("coco", "short", 11250, [7500, 10000], 16, [0.01, 0.02, 0.04]),
        ("cityscapes", "paper", 24000, [18000], 8, [0.005, 0.01, 0.02]),  # 64 epochs
        ("cityscapes", "short", 3000, [2250], 8, [0.005, 0.01, 0.02]),
        ("voc", "paper", 24000, [18000, 22000], 16, [0.01, 0.02, 0.04]),
        ("voc", "short", 3000, [2250, 2750], 16, [0.01, 0.02, 0.04]),
    ],
)
def test_known_data(name, budget, iterations, steps, images, rates):
    data = find_data([name], Path("datasets"))
    found = recipe(config_of(data), data, budget, "frozen")
    solver = found.keys["SOLVER"]
    assert (solver["MAX_ITER"], solver["STEPS"], found.images, found.rates) == (iterations, steps, images, rates)
    assert found.iterations == iterations and "INPUT" not in found.keys and found.tool == "train_net.py"
    assert found.keys["MODEL"]["BACKBONE"]["FREEZE_AT"] == 5
    tuned = recipe(config_of(data), data, budget, "finetune")
    assert tuned.keys["MODEL"]["BACKBONE"]["FREEZE_AT"] == 0


def test_ones_own_data():
    data = own(200, side=128)
    short, paper = (recipe(config_of(data), data, budget, "frozen") for budget in ("short", "paper"))
    assert short.iterations == 350 and short.keys["SOLVER"]["STEPS"] == [280]  # the demo's schedule
    assert paper.iterations == 2000 and paper.rates == [0.02, 0.04, 0.08]
    assert short.keys["INPUT"] == {"MIN_SIZE_TRAIN": [128], "MIN_SIZE_TEST": 128}
    assert "ANCHOR_GENERATOR" not in short.keys["MODEL"] and short.keys["DATASETS"] == {"CUSTOM": {"NAME": "own"}}
    many = own(20_000, side=256)
    assert recipe(config_of(many), many, "paper", "frozen").iterations == 12 * 20_000 // 8
    short = recipe(config_of(many), many, "short", "frozen")
    assert short.iterations == 3750 and short.keys["MODEL"]["ANCHOR_GENERATOR"]["SIZES"][0] == [16]


def test_the_users_own_rates_and_schedule():
    data = own(200, side=128)
    found = recipe(config_of(data), data, "short", "frozen", [0.3, 0.1, 0.3], scheduled=True)
    assert found.rates == [0.1, 0.3] and "SOLVER" not in found.keys and found.iterations == 350


@pytest.mark.parametrize(
    ("data", "config"),
    [
        (own(200, side=128), "evaluate/light_small.yaml"),
        (own(200, side=256), "evaluate/light_nuclei.yaml"),
        (own(200), "evaluate/light_coco.yaml"),
        (find_data(["coco"], Path()), "evaluate/light_coco.yaml"),
        (find_data(["voc"], Path()), "evaluate/light_voc.yaml"),
    ],
)
def test_the_light_heads_config_follows_the_data(data, config):
    assert base_config(data, "minutes") == config
    cfg = config_of(data, "minutes")
    found = recipe(cfg, data, "minutes", "frozen")
    assert cfg.MODEL.META_ARCHITECTURE == "LightDetector" and found.tool == "light_head.py"
    assert found.iterations == cfg.SOLVER.MAX_ITER and "SOLVER" not in found.keys
    assert ("INPUT" in found.keys) is (data.side is not None) and "ANCHOR_GENERATOR" not in found.keys["MODEL"]


def test_cityscapes_has_no_boxes_to_evaluate_in_minutes():
    with pytest.raises(ValueError, match="boxes only, and Cityscapes is evaluated by masks: use --budget short"):
        base_config(find_data(["cityscapes"], Path()), "minutes")


def test_minutes_are_for_frozen_backbones():
    data = own(200, side=128)
    with pytest.raises(ValueError, match="light head on cached features: leave out --protocol finetune"):
        recipe(config_of(data), data, "minutes", "finetune")
