"""Values that cannot work are refused by name; the published configs are taken."""

from pathlib import Path

import pytest

from pretrain.config import get_cfg as pretraining_config
from pretrain.readout.config import check, get_cfg

CONFIGS = sorted((Path(__file__).parents[3] / "configs/readout").rglob("[!_]*.yaml"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.WEIGHTS", "", "set MODEL.WEIGHTS to the checkpoint"),
        ("OUTPUT_DIR", "./run", "OUTPUT_DIR ./run is the folder of MODEL.WEIGHTS"),
        ("FEATURES.CACHE", "./run/../run/weights.pth", "FEATURES.CACHE .* is MODEL.WEIGHTS, which stays"),
        ("SEED", -1, "SEED is -1, but must be at least 0"),
        ("SOLVER.MOMENTUM", float("nan"), "SOLVER.MOMENTUM is nan, but must be at least 0"),
        ("SOLVER.EPOCHS", 0.0, "SOLVER.EPOCHS is 0.0, but must be above 0"),
        ("SOLVER.EPOCHS", "1e400", "SOLVER.EPOCHS is inf, but must be above 0, and finite"),
        ("SOLVER.EVAL_PERIOD", "1e400", "SOLVER.EVAL_PERIOD is inf"),
        ("SOLVER.WEIGHT_DECAY", "1e400", "SOLVER.WEIGHT_DECAY is inf, but must be at least 0, and finite"),
        ("SOLVER.BASE_LR", [], r"SOLVER.BASE_LR is \[\], but must be a list of one or more numbers above 0"),
        ("SOLVER.BASE_LR", [1.0, -1.0], r"SOLVER.BASE_LR is \[1.0, -1.0\], but must be a list"),
        ("SOLVER.BASE_LR", [1.0, "x"], "but must be a list of one or more numbers above 0"),
        ("SOLVER.BASE_LR", [1.0, 1.0], r"SOLVER.BASE_LR is \[1.0, 1.0\]: the same value twice"),
        ("SOLVER.BASE_LR", "[1e400, 0.1]", r"SOLVER.BASE_LR is \[inf, 0.1\], but must be a list"),
        ("SOLVER.BASE_LR", [True], r"SOLVER.BASE_LR is \[True\], but must be a list"),
        ("SOLVER.BASE_LR", [0.10000001, 0.1], r"\[0.10000001, 0.1\]: the same value twice, in the six digits"),
        ("KNN.K", [5, 5], r"KNN.K is \[5, 5\]: the same value twice"),
        ("KNN.K", [True], r"KNN.K is \[True\], but must be"),
        ("KNN.TEMPERATURE", "[1e400]", r"KNN.TEMPERATURE is \[inf\], but must be"),
        ("KNN.TEMPERATURE", [0.07, 0.070000001], r"KNN.TEMPERATURE is .*: the same value twice"),
        ("KNN.K", [2.5], r"KNN.K is \[2.5\], but must be a list of one or more whole numbers above 0"),
        ("KNN.TEMPERATURE", [0.0], r"KNN.TEMPERATURE is \[0.0\], but must be"),
        ("INPUT.CROP_AREA", [0.5, 1.5], "INPUT.CROP_AREA is"),
        ("INPUT.CROP_AREA", ["a", 1], r"INPUT.CROP_AREA is \['a', 1\]"),
        ("SOLVER.STEPS", ["a"], r"SOLVER.STEPS is \['a'\], but must be a list of numbers"),
        ("DATASETS.HELD_OUT", 1.0, "DATASETS.HELD_OUT is 1.0, but must be at least 0 and below 1"),
        ("SOLVER.OPTIMIZER", "Adam", "SOLVER.OPTIMIZER is 'Adam': choose SGD or LARS"),
        ("SOLVER.SCHEDULE", "linear", "SOLVER.SCHEDULE is 'linear': choose steps or cosine"),
        ("SOLVER.NESTEROV", True, "SOLVER.NESTEROV True needs SOLVER.MOMENTUM above 0"),
        ("SOLVER.STEPS", [60.0, 30.0], r"SOLVER.STEPS is \[60.0, 30.0\], but must ascend"),
        ("SOLVER.STEPS", [100.0], "must ascend from above 0 to below SOLVER.EPOCHS 100"),
    ],
)
def test_what_cannot_work_is_refused(key, value, message):
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS = "run/weights.pth"
    check(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message) as caught:
        check(cfg)
    assert "\n" not in str(caught.value)


def test_many_neighbours_are_told_apart():
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS, cfg.KNN.K = "run/weights.pth", [1000000, 1000001]
    check(cfg)


def test_the_folder_of_another_kind_of_run_is_refused(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "run/weights.pth", str(tmp_path)
    (tmp_path / "config.yaml").write_text(pretraining_config().dump())
    with pytest.raises(ValueError, match="OUTPUT_DIR .* holds another kind of run, whose files stay: name another"):
        check(cfg)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    check(cfg)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_load(path):
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    cfg.MODEL.WEIGHTS = "weights.pth"
    check(cfg)
