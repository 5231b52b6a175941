"""Keys whose values are of several types; values that are refused."""

import pytest

from pretrain.config import check, get_cfg
from pretrain.readout.config import get_cfg as readout_cfg

KEY = "SOLVER.AMP.ENABLED"


@pytest.fixture(params=[get_cfg, readout_cfg])
def cfg(request):
    return request.param()


def from_file(cfg, folder, text):
    (folder / "config.yaml").write_text(f"SOLVER: {{AMP: {{ENABLED: {text}}}}}\n")
    cfg.merge_from_file(str(folder / "config.yaml"))


def test_every_choice_after_every_other(cfg, tmp_path):
    for text, value in (("auto", "auto"), ("True", True), ("auto", "auto"), ("False", False), ("True", True)):
        cfg.merge_from_list([KEY, text])
        assert cfg.SOLVER.AMP.ENABLED is value or cfg.SOLVER.AMP.ENABLED == value == "auto"
    for text, value in (("auto", "auto"), ("false", False), ("auto", "auto"), ("yes", True)):
        from_file(cfg, tmp_path, text)
        assert cfg.SOLVER.AMP.ENABLED is value or cfg.SOLVER.AMP.ENABLED == value == "auto"
    other = type(cfg).load_cfg(cfg.dump())
    cfg.merge_from_list([KEY, "auto"])
    cfg.merge_from_other_cfg(other)
    assert cfg == other and cfg.clone().SOLVER.AMP.ENABLED is True


@pytest.mark.parametrize("text", ["Auto", "1", "null", "[True]", "bf16", "{}"])
def test_what_is_no_choice(cfg, tmp_path, text):
    with pytest.raises(ValueError, match=f"{KEY} is .*, but must be True, False or auto"):
        from_file(cfg, tmp_path, text)
    with pytest.raises(ValueError, match=f"{KEY} is .*, but must be True, False or auto"):
        cfg.merge_from_list([KEY, text])


@pytest.mark.parametrize("text", ["SOLVER: 3", "SOLVER: {AMP: [1]}", "SOLVER: {AMP: {ENABLE: auto}}"])
def test_groups_that_are_none_are_left_to_yacs(cfg, tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises((ValueError, KeyError, AssertionError)):
        cfg.merge_from_file(str(tmp_path / "config.yaml"))


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"SPLIT": [["res2", "res3"], ["res4", "res5"]]}, "SPLIT has 2 devices, but MODEL.STAGE_PARALLEL.DEVICES is 1"),
        ({"DEVICES": 3, "SPLIT": [["res2"], ["res3"]]}, "SPLIT has 2 devices, but MODEL.STAGE_PARALLEL.DEVICES is 3"),
        ({"DEVICES": 2, "SPLIT": ["res2", "res3"]}, "must be a list of lists of stage names"),
        ({"DEVICES": 0}, "MODEL.STAGE_PARALLEL.DEVICES is 0, but must be at least 1"),
        ({"DEVICES": 2, "TRACE": -1}, "MODEL.STAGE_PARALLEL.TRACE is -1, but must be at least 0"),
        ({"LATE": True}, "MODEL.STAGE_PARALLEL.LATE is without effect on one device"),
        ({"TRACE": 3}, "MODEL.STAGE_PARALLEL.TRACE is without effect on one device"),
    ],
)
def test_stages_on_several_devices_that_are_refused(keys, why):
    cfg = get_cfg()
    cfg.merge_from_list([part for key, value in keys.items() for part in (f"MODEL.STAGE_PARALLEL.{key}", value)])
    with pytest.raises(ValueError, match=why):
        check(cfg)
