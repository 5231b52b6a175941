"""Configs from files and KEY VALUE pairs: what is wrong is said in one line."""

import pytest
from detectron2.config import get_cfg as detectron2_cfg

from loco_det.cli.common.config import merge_config
from loco_det.config import add_loco_config
from pretrain.config import get_cfg
from pretrain.readout.config import get_cfg as readout_cfg


class Arguments:
    def __init__(self, *opts, config_file=""):
        self.opts, self.config_file = list(opts), str(config_file)


@pytest.mark.parametrize("opts", [("NO.SUCH", 1), ("SOLVER.EPOCHS", "many"), ("SOLVER",), ("SOLVER.EPOCHS.X", 1)])
def test_wrong_pairs(opts):
    with pytest.raises(ValueError) as error:
        merge_config(get_cfg(), Arguments(*opts))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "text", "expected"), [
    ("MODEL.STAGES", "[res4, res5+expansion]", ["res4", "res5+expansion"]),
    ("MODEL.STAGES", "['res4', 'res5']", ["res4", "res5"]),
    ("SOLVER.BASE_LR", "[1e-3, 3.0]", [0.001, 3.0]),  # which YAML takes for a string
    ("FEATURES.CACHE", "[res4]", "[res4]"),  # no list by default
])  # fmt: skip
def test_lists_as_in_yaml(key, text, expected):
    node, name = key.split(".")
    assert merge_config(readout_cfg(), Arguments(key, text))[node][name] == expected


def refusal(cfg, *opts, config_file=""):
    """The line that the user gets."""
    with pytest.raises(ValueError) as error:
        merge_config(cfg, Arguments(*opts, config_file=config_file))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "text", "write"),
    [
        ("MODEL.STAGES", "res4", "[res4]"),
        ("MODEL.STAGES", "res4,res5", "[res4,res5]"),
        ("MODEL.STAGES", "[res4", "[res4]"),  # no YAML either
        ("MODEL.STAGES", "(res4, res5)", "[res4, res5]"),
        ("MODEL.STAGES", "", "[]"),
        ("MODEL.STAGES", "{res4: 1}", "[{res4: 1}]"),
        ("SOLVER.BASE_LR", "0.1", "[0.1]"),
        ("KNN.K", "200", "[200]"),
    ],
)
def test_what_is_no_list(key, text, write):
    line = refusal(readout_cfg(), key, text)
    assert line == f"{key} is {text}, but must be a list: write {write} (on the command line in quotes)"


def test_one_value_for_a_list_of_detectron2():
    line = refusal(detectron2_cfg(), "DATASETS.TRAIN", "demo_train")  # whose default is a tuple
    assert "DATASETS.TRAIN is demo_train, but must be a list: write [demo_train]" in line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("SOLVER:\n  BASE_LR: 0.1", "SOLVER.BASE_LR is 0.1, but must be a list: write [0.1]"),
        ("SOLVER:\n  EPOCHS: many", "SOLVER.EPOCHS is many, but must be a number"),
        ("SOLVER:\n  NESTEROV: 1", "SOLVER.NESTEROV is 1, but must be True or False"),
        ("SOLVER: 3", "SOLVER is 3, but must be a group of keys"),
        ("SOLVER:\n  BASE_LR: [0.1", "wrong.yaml, line 2, column 16: expected ',' or ']'"),
        ("MODEL: STAGES: []", 'wrong.yaml, line 1, column 14: mapping values are not allowed here; write "KEY: VALUE"'),
        ("SOLVER:\n\tEPOCHS: 3", "wrong.yaml, line 2, column 1: found character '\\t' that cannot start any token"),
        (b"\xff\xfe\x00", "wrong.yaml: not text"),
    ],
)
def test_what_is_wrong_in_a_file(tmp_path, text, line):
    (tmp_path / "wrong.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert line in refusal(readout_cfg(), config_file=tmp_path / "wrong.yaml")


@pytest.mark.parametrize(
    ("cfg", "key", "meant"),
    [
        (get_cfg, "SOLVER.EPOCS", "SOLVER.EPOCHS"),
        (get_cfg, "solver.epochs", "SOLVER.EPOCHS"),
        (detectron2_cfg, "SOLVER.MAX_ITERS", "SOLVER.MAX_ITER"),
        (detectron2_cfg, "DATASET.TRAIN", "DATASETS.TRAIN"),
    ],
)
def test_unknown_keys_are_told_the_nearest(tmp_path, cfg, key, meant):
    expected = f"{key}: no such config key (in the KEY VALUE pairs): did you mean {meant}?"
    assert refusal(cfg(), key, "1") == expected
    group, _, name = key.rpartition(".")
    (tmp_path / "a.yaml").write_text(f"{group}: {{{name}: 1}}\n")
    line = refusal(cfg(), config_file=tmp_path / "a.yaml")
    assert f": no such config key (in {tmp_path / 'a.yaml'}): did you mean {meant.partition('.')[0]}" in line


def test_unknown_keys_that_are_near_to_none():
    assert refusal(get_cfg(), "NO.SUCH", "1") == "NO.SUCH: no such config key (in the KEY VALUE pairs)"


def test_keys_of_a_command_line_in_a_file(tmp_path):
    (tmp_path / "a.yaml").write_text("SOLVER.EPOCHS: 1\n")
    line = refusal(get_cfg(), config_file=tmp_path / "a.yaml")
    where = f"(in {tmp_path / 'a.yaml'})"
    assert line == f"SOLVER.EPOCHS: a file has no keys with dots {where}: write SOLVER: {{EPOCHS: VALUE}}"


def test_a_wrong_value_of_an_older_version_of_detectron2(tmp_path):
    (tmp_path / "a.yaml").write_text("MODEL: {WEIGHT: 1}\n")
    assert "config key: MODEL.WEIGHT" in refusal(detectron2_cfg(), config_file=tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("opts", "line"),
    [
        (("OUTPUT_DIR", "x", "--resume"), "--resume comes after KEY VALUE pairs: write it before the first of them"),
        (("--resume", "--eval-only", "OUTPUT_DIR", "x"), "--resume comes after"),
        (("OUTPUT_DIR", "x", "--config-file", "y.yaml"), "--config-file comes after"),
        (("OUTPUT_DIR", "x", "-h"), "-h comes after"),
        (("SEED", "1", "OUTPUT_DIR"), "SEED 1 OUTPUT_DIR: no pairs KEY VALUE"),
        (("OUTPUT_DIR=x",), "OUTPUT_DIR=x: write KEY VALUE with a space between them, OUTPUT_DIR x"),
    ],
)
def test_what_is_no_pair(opts, line):
    assert line in refusal(readout_cfg(), *opts)


def test_negative_numbers_are_no_flags():
    assert merge_config(get_cfg(), Arguments("SEED", "-1")).SEED == -1


@pytest.mark.parametrize("text", ["", "a: b: c", "NO: {SUCH: 1}", "- 1", "just words"])
def test_wrong_files(tmp_path, text):
    (tmp_path / "wrong.yaml").write_text(text)
    for cfg in (get_cfg(), detectron2_cfg()):
        if "MODEL" in cfg and "META_ARCHITECTURE" in cfg.MODEL:
            add_loco_config(cfg)
        with pytest.raises(ValueError, match="wrong.yaml"):
            merge_config(cfg, Arguments(config_file=tmp_path / "wrong.yaml"))


@pytest.mark.parametrize("key", ["SEED", "OUTPUT_DIR", "SOLVER.BASE_LR"])
def test_no_key_loses_its_value(tmp_path, key):
    line = refusal(get_cfg(), key, "None")
    assert line == f"{key} has no value (in the KEY VALUE pairs): write one, or leave the key out"
    section, _, name = key.rpartition(".")
    (tmp_path / "a.yaml").write_text(f"{section}: {{{name}: null}}\n" if section else f"{name}: ~\n")
    line = refusal(get_cfg(), config_file=tmp_path / "a.yaml")
    assert line == f"{key} has no value (in {tmp_path / 'a.yaml'}): write one, or leave the key out"
