"""Which config a resumed or evaluated run may have."""

import functools

import pytest
import torch
import yaml
from detectron2.config import get_cfg

from loco_det.config import add_loco_config
from loco_det.engine.resume import FREE, check_evaluated, check_resumed
from loco_det.engine.trainer import Trainer
from pretrain.files.checkpoints import items_of


@pytest.fixture
def resumed(tmp_path):
    """Config of a run that has a checkpoint."""
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file("configs/demo_coco_loco_frozen.yaml")
    cfg.OUTPUT_DIR, cfg.SEED, cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = str(tmp_path), 7, "w.pkl", "cpu"
    batch = cfg.SOLVER.IMS_PER_BATCH
    trainer = {"seed": 7, "batch": batch, "weights": "w.pkl", "config": cfg.dump()}
    torch.save({"model": {}, "trainer": trainer, "iteration": 3}, tmp_path / "model_0000003.pth")
    return cfg


def test_what_decides_no_weight_may_change_when_a_run_is_resumed(resumed):
    check_resumed(resumed)
    cfg = resumed.clone()
    for key, value in items_of(cfg):
        if any(key == name or key.startswith(f"{name}.") for name in FREE - {"SEED", "OUTPUT_DIR"}):
            *path, last = key.split(".")
            node = functools.reduce(getattr, path, cfg)
            node[last] = {bool: not value, str: "other"}.get(type(value), ["other"])
    check_resumed(cfg)


def test_an_empty_seed_and_weights_become_the_runs(resumed):
    resumed.SEED, resumed.MODEL.WEIGHTS = -1, ""
    check_resumed(resumed)
    assert (resumed.SEED, resumed.MODEL.WEIGHTS) == (7, "w.pkl")


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("check", [check_resumed, lambda cfg: check_evaluated(cfg, True)])
def test_a_run_keeps_the_precision_that_it_began_with(resumed, check, enabled):
    path = f"{resumed.OUTPUT_DIR}/model_0000003.pth"
    content = torch.load(path, weights_only=True)
    resumed.SOLVER.AMP.AUTO, resumed.SOLVER.AMP.ENABLED = False, enabled
    content["trainer"]["config"] = resumed.dump()
    torch.save(content, path)
    resumed.SOLVER.AMP.AUTO, resumed.SOLVER.AMP.ENABLED = True, False
    found = check(resumed) or resumed
    assert (found.SOLVER.AMP.AUTO, found.SOLVER.AMP.ENABLED) == (False, enabled)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.BASE_LR", 0.5, "a run with other values of SOLVER.BASE_LR: resume it with its own config.yaml"),
        ("SOLVER.MAX_ITER", 9, "other values of SOLVER.MAX_ITER"),
        ("SOLVER.STEPS", (1, 2), "other values of SOLVER.STEPS"),
        ("MODEL.WEIGHTS", "other.pkl", "other values of MODEL.WEIGHTS"),
        ("MODEL.BACKBONE.FREEZE_AT", 0, "other values of MODEL.BACKBONE.FREEZE_AT"),
        ("TEST.PRECISE_BN.NUM_ITER", 3, "other values of TEST.PRECISE_BN.NUM_ITER"),
        ("INPUT.MIN_SIZE_TRAIN", (1,), "other values of INPUT.MIN_SIZE_TRAIN"),
        ("INPUT.EXACT_RESIZE", True, "other values of INPUT.EXACT_RESIZE"),
        ("SEED", 8, "SEED is 8, but the run began with 7"),
        ("SOLVER.IMS_PER_BATCH", 2, "SOLVER.IMS_PER_BATCH is 2, but the run began with 8"),
    ],
)
def test_what_decides_the_weights_is_refused(resumed, key, value, message):
    resumed.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        check_resumed(resumed)


def test_an_evaluation_in_a_runs_folder_is_of_that_run(resumed):
    """With whatever number of processes it was trained."""
    cfg = resumed.clone()
    cfg.SEED, cfg.MODEL.WEIGHTS, cfg.DATASETS.TEST, cfg.TEST.NUM_PICTURES = -1, "", ("other",), 1
    assert check_evaluated(cfg, resume=True).MODEL.WEIGHTS == "w.pkl"
    cfg.MODEL.WEIGHTS = "elsewhere.pth"
    assert check_evaluated(cfg, resume=False).MODEL.WEIGHTS == "elsewhere.pth"
    with pytest.raises(ValueError, match="other values of MODEL.WEIGHTS"):
        check_evaluated(cfg, resume=True)
    cfg.SOLVER.BASE_LR = 9.0
    for resume in (True, False):
        with pytest.raises(ValueError, match="other values of .*SOLVER.BASE_LR"):
            check_evaluated(cfg, resume)
    cfg.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}/new"
    assert check_evaluated(cfg, resume=False) is cfg


def test_an_evaluation_of_a_run_of_more_processes(resumed, tmp_path):
    path = tmp_path / "model_0000003.pth"
    content = torch.load(path, weights_only=True)
    cfg = resumed.clone()
    cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH = 8, 16
    trained = Trainer.auto_scale_workers(cfg, 2)
    content["trainer"] |= {"config": trained.dump(), "batch": 4}
    torch.save(content, path)
    for given in (cfg, trained):
        assert check_evaluated(given.clone(), resume=True).SOLVER.IMS_PER_BATCH == 4


def test_a_checkpoint_without_what_it_needs_is_none_of_ours(resumed, tmp_path):
    torch.save({"model": {}, "trainer": {"seed": 0}}, tmp_path / "model_0000005.pth")
    check_resumed(resumed)
    (tmp_path / "model_0000003.pth").unlink()
    with pytest.raises(ValueError, match="none of model_0000005.pth .* can be read"):
        check_resumed(resumed)


def test_a_checkpoint_of_version_01_goes_on(resumed, tmp_path):
    path = tmp_path / "model_0000003.pth"
    content = torch.load(path, weights_only=True)
    del content["trainer"]["config"]
    torch.save(content, path)
    resumed.SOLVER.BASE_LR = 0.5
    check_resumed(resumed)


def test_a_run_from_before_there_were_other_optimisers_goes_on(resumed):
    path = f"{resumed.OUTPUT_DIR}/model_0000003.pth"
    content = torch.load(path, weights_only=True)
    config = yaml.safe_load(content["trainer"]["config"])
    del config["MODEL"]["TIMM"], config["INPUT"]["LSJ"], config["SOLVER"]["OPTIMIZER"], config["SOLVER"]["LAYER_DECAY"]
    content["trainer"]["config"] = yaml.safe_dump(config)
    torch.save(content, path)
    check_resumed(resumed)
    resumed.SOLVER.OPTIMIZER = "AdamW"
    with pytest.raises(ValueError, match="other values of SOLVER.OPTIMIZER"):
        check_resumed(resumed)


@pytest.mark.parametrize("check", [check_resumed, lambda cfg: check_evaluated(cfg, True)])
def test_a_run_from_before_there_was_a_choice_of_pixels_keeps_its_own(resumed, check):
    path = f"{resumed.OUTPUT_DIR}/model_0000003.pth"
    content = torch.load(path, weights_only=True)
    lines = content["trainer"]["config"].splitlines(keepends=True)
    content["trainer"]["config"] = "".join(line for line in lines if "EXACT_RESIZE" not in line)
    torch.save(content, path)
    found = check(resumed) or resumed
    assert found.INPUT.EXACT_RESIZE
