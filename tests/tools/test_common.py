"""Exit codes of the command lines: 2 for bad input, 1 for a failure, 130 for Ctrl-C, and one line for each."""

import errno
import logging
import sys

import pytest
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from loco_det.config import add_loco_config
from pretrain.config import get_cfg
from pretrain.readout.config import get_cfg as readout_cfg


@pytest.fixture
def common(monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath / "tools"))
    import common

    return common


def child(line):
    return ProcessRaisedException(f"\n\n-- Process 0 terminated:\nTraceback (most recent call last):\n{line}", 0, 1)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("two\nlines"), 2, "error: two lines"),
        (FileNotFoundError("/nowhere: no such file"), 2, "error: /nowhere: no such file"),
        (FloatingPointError("NaN"), 1, "error: NaN"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.json"),
            1,
            "error: x.json: No space left on device",
        ),
        (
            child("OSError: [Errno 28] No space left on device: 'x'"),
            1,
            "error: [Errno 28] No space left on device: 'x'",
        ),
        (FileNotFoundError(2, "No such file or directory", "x.yaml"), 2, "error: x.yaml: No such file or directory\n"),
        (IsADirectoryError(21, "Is a directory", "a", None, "b"), 2, "error: a -> b: Is a directory\n"),
        (RuntimeError("broken"), 1, "error: broken"),
        (
            RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
            1,
            "error: DataLoader worker (pid(s) 7) exited unexpectedly: most often the memory is full: lower DATALOADER.",
        ),
        (
            child("RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed. "),
            1,
            "error: DataLoader worker (pid 7) is killed by signal: Killed: most often the memory is full: lower DATA",
        ),
        (AssertionError(), 1, "error: AssertionError()"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (child("FileNotFoundError: no images"), 2, "error: no images"),
        (child("FloatingPointError: NaN: lower the rate"), 1, "error: NaN: lower the rate"),
        (child("torch.OutOfMemoryError: 3 GB"), 1, "error: 3 GB"),
        (ProcessExitedException("process 1 terminated with signal SIGKILL", 1, 2, -9), 1, "error: process 1"),
    ],
)
def test_exit_codes(common, capsys, error, code, message):
    with pytest.raises(SystemExit) as exit, common.one_line_errors():
        raise error
    err = capsys.readouterr().err
    assert exit.value.code == code and err.startswith(message) and err.count("\n") == 1


class Arguments:
    def __init__(self, *opts, config_file=""):
        self.opts, self.config_file = list(opts), str(config_file)


@pytest.mark.parametrize("opts", [("NO.SUCH", 1), ("SOLVER.EPOCHS", "many"), ("SOLVER",), ("SOLVER.EPOCHS.X", 1)])
def test_wrong_pairs(common, opts):
    with pytest.raises(ValueError) as error:
        common.merge_config(get_cfg(), Arguments(*opts))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "text", "expected"), [
    ("MODEL.STAGES", "[res4, res5+expansion]", ["res4", "res5+expansion"]),
    ("MODEL.STAGES", "['res4', 'res5']", ["res4", "res5"]),
    ("SOLVER.BASE_LR", "[1e-3, 3.0]", [0.001, 3.0]),  # which YAML takes for a string
    ("FEATURES.CACHE", "[res4]", "[res4]"),  # no list by default
])  # fmt: skip
def test_lists_as_in_yaml(common, key, text, expected):
    node, name = key.split(".")
    assert common.merge_config(readout_cfg(), Arguments(key, text))[node][name] == expected


def refusal(common, cfg, *opts, config_file=""):
    """The line that the user gets."""
    with pytest.raises(ValueError) as error:
        common.merge_config(cfg, Arguments(*opts, config_file=config_file))
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
def test_what_is_no_list(common, key, text, write):
    line = refusal(common, readout_cfg(), key, text)
    assert line == f"{key} is {text}, but must be a list: write {write} (on the command line in quotes)"


def test_one_value_for_a_list_of_detectron2(common):
    from detectron2.config import get_cfg as detectron2_cfg

    line = refusal(common, detectron2_cfg(), "DATASETS.TRAIN", "demo_train")  # whose default is a tuple
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
        (b"\xff\xfe\x00", "wrong.yaml: no text"),
    ],
)
def test_what_is_wrong_in_a_file(common, tmp_path, text, line):
    (tmp_path / "wrong.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert line in refusal(common, readout_cfg(), config_file=tmp_path / "wrong.yaml")


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
def test_what_is_no_pair(common, opts, line):
    assert line in refusal(common, readout_cfg(), *opts)


def test_negative_numbers_are_no_flags(common):
    assert common.merge_config(get_cfg(), Arguments("SEED", "-1")).SEED == -1


@pytest.mark.parametrize("text", ["", "a: b: c", "NO: {SUCH: 1}", "- 1", "just words"])
def test_wrong_files(common, tmp_path, text):
    from detectron2.config import get_cfg as detectron2_cfg

    (tmp_path / "wrong.yaml").write_text(text)
    for cfg in (get_cfg(), detectron2_cfg()):
        if "MODEL" in cfg and "META_ARCHITECTURE" in cfg.MODEL:
            add_loco_config(cfg)
        with pytest.raises(ValueError, match="wrong.yaml"):
            common.merge_config(cfg, Arguments(config_file=tmp_path / "wrong.yaml"))


@pytest.mark.parametrize(
    ("error", "before", "more", "stays"),
    [
        (ValueError, False, [], False),
        (OSError, False, ["config.yaml"], False),
        (ValueError, False, ["log.txt.rank1"], False),  # of another process
        (ValueError, False, ["metrics.json"], False),  # which Detectron2 opens before it looks for the weights
        (ValueError, False, ["model_final.pth"], True),  # what is no run's beginning
        (RuntimeError, False, [], True),  # a failure, of which the log tells
        (ValueError, True, [], True),
    ],
)
def test_folders_of_runs_that_are_refused(common, tmp_path, error, before, more, stays):
    folder = tmp_path / "run"
    if before:
        folder.mkdir()
    with pytest.raises(error), common.run_folder(folder):
        for name in ("log.txt", *more):
            (folder / name).touch()
        raise error("no")
    assert folder.exists() == stays and tmp_path.exists()
    with common.run_folder(folder):
        pass
    assert (folder / "command.txt").exists()


def test_command_is_kept(common, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tools/x.py", "KEY", "two words"])
    (tmp_path / "run").mkdir()
    common.log_command(tmp_path / "run")
    common.log_command(tmp_path / "run")
    assert (tmp_path / "run" / "command.txt").read_text() == "python tools/x.py KEY 'two words'\n" * 2


def test_names_in_logs_and_errors_are_no_escape_sequences(common, capsys):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("somebody.else")
    logger.addHandler(handler)
    logger.warning("|%s|\n\x1b[36m|%s|\x1b[0m", "tram\x1b[2J", "\u202eox")
    assert records[0].getMessage() == "|tram\\x1b[2J|\n|\\u202eox|"
    with pytest.raises(SystemExit), common.one_line_errors():
        raise ValueError("class \x1b[2J\x9b")
    assert capsys.readouterr().err == "error: class \\x1b[2J\\x9b\n"


@pytest.mark.parametrize("key", ["SEED", "OUTPUT_DIR", "SOLVER.BASE_LR"])
def test_no_key_loses_its_value(common, tmp_path, key):
    line = refusal(common, get_cfg(), key, "None")
    assert line == f"{key} has no value (in the KEY VALUE pairs): write one, or leave the key out"
    section, _, name = key.rpartition(".")
    (tmp_path / "a.yaml").write_text(f"{section}: {{{name}: null}}\n" if section else f"{name}: ~\n")
    line = refusal(common, get_cfg(), config_file=tmp_path / "a.yaml")
    assert line == f"{key} has no value (in {tmp_path / 'a.yaml'}): write one, or leave the key out"
