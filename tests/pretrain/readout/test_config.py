"""Values that cannot work are refused by name; the published configs are taken."""

from pathlib import Path

import pytest

from pretrain.readout.config import check, get_cfg

CONFIGS = sorted((Path(__file__).parents[3] / "configs/readout").glob("[!_]*.yaml"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.WEIGHTS", "", "set MODEL.WEIGHTS to the checkpoint"),
        ("OUTPUT_DIR", "./run", "OUTPUT_DIR ./run is the folder of MODEL.WEIGHTS"),
        ("SEED", -1, "SEED is -1, but must be at least 0"),
        ("SOLVER.MOMENTUM", float("nan"), "SOLVER.MOMENTUM is nan, but must be at least 0"),
        ("SOLVER.EPOCHS", 0.0, "SOLVER.EPOCHS is 0.0, but must be above 0"),
        ("SOLVER.BASE_LR", [], r"SOLVER.BASE_LR is \[\], but must be a list of one or more numbers above 0"),
        ("SOLVER.BASE_LR", [1.0, -1.0], r"SOLVER.BASE_LR is \[1.0, -1.0\], but must be a list"),
        ("SOLVER.BASE_LR", [1.0, "x"], "but must be a list of one or more numbers above 0"),
        ("SOLVER.BASE_LR", [1.0, 1.0], r"SOLVER.BASE_LR is \[1.0, 1.0\]: the same value twice"),
        ("KNN.K", [2.5], r"KNN.K is \[2.5\], but must be a list of one or more whole numbers above 0"),
        ("KNN.TEMPERATURE", [0.0], r"KNN.TEMPERATURE is \[0.0\], but must be"),
        ("INPUT.CROP_AREA", [0.5, 1.5], "INPUT.CROP_AREA is"),
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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_load(path):
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    cfg.MODEL.WEIGHTS = "weights.pth"
    check(cfg)
