"""The trainer where no run on the CPU comes by."""

import sys
from types import SimpleNamespace

import pytest
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from loco_det import trainer
from loco_det.config import add_loco_config
from loco_det.results import PREDICTIONS
from loco_det.trainer import Evaluation, Trainer, evaluate_each


def test_results_are_those_of_the_detector_and_not_of_its_wrapper(monkeypatch, tmp_path):
    """In several processes ``model`` is DistributedDataParallel, which has no backbone."""
    given = []
    monkeypatch.setattr(DefaultTrainer, "train", lambda self: None)
    monkeypatch.setattr(trainer, "finish", lambda cfg, model, *rest: given.append(model))
    monkeypatch.setattr(Trainer, "state_dict", lambda self: {"seconds": 3.0})
    run = object.__new__(Trainer)
    run.cfg, run.max_iter = SimpleNamespace(OUTPUT_DIR=str(tmp_path)), 5
    run._trainer, run.evaluation = SimpleNamespace(model="wrapper"), Evaluation()
    run.checkpointer = SimpleNamespace(model="detector")
    run.train()
    assert given == ["detector"]


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.OUTPUT_DIR, cfg.DATASETS.TEST = str(tmp_path), ("first", "second")
    (tmp_path / "inference").mkdir()
    cfg.freeze()
    return cfg


def test_a_test_set_that_fails_does_not_take_the_others_along(cfg, tmp_path, monkeypatch, caplog):
    predictions = tmp_path / PREDICTIONS

    def test(one, _):
        (name,) = one.DATASETS.TEST
        assert not predictions.exists()  # those of the other would pass for this one's
        predictions.touch()
        return {"bbox": {"AP": 1.0}} if name == "second" else {}["area"]

    monkeypatch.setattr(Trainer, "test", test)
    done = evaluate_each(cfg, None)
    assert done.results == {"first": {}, "second": {"bbox": {"AP": 1.0}}} and done.seconds > 0
    assert done.problems == ["evaluation on first: KeyError: 'area'"]
    assert "evaluation on first failed: KeyError: 'area'" in caplog.text
    monkeypatch.setattr(Trainer, "test", lambda *_: sys.exit(1))
    with pytest.raises(SystemExit):
        evaluate_each(cfg, None)


def test_in_several_processes_a_failure_ends_them_all(cfg, monkeypatch):
    """The others wait for this one in the middle of the evaluation."""
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(Trainer, "test", lambda *_: {}["area"])
    with pytest.raises(KeyError):
        evaluate_each(cfg, None)


@pytest.mark.parametrize(("iteration", "main", "kept"), [(5, True, True), (4, True, False), (5, False, False)])
def test_only_what_fails_after_the_last_iteration_is_a_problem(monkeypatch, tmp_path, iteration, main, kept):
    given = []

    def train(self):
        self.iter = iteration
        raise OSError(28, "No space left on device", "metrics.json")

    monkeypatch.setattr(DefaultTrainer, "train", train)
    monkeypatch.setattr(trainer, "finish", lambda *args: given.append(args))
    monkeypatch.setattr(Trainer, "state_dict", lambda self: {"seconds": 3.0})
    monkeypatch.setattr(comm, "is_main_process", lambda: main)
    run = object.__new__(Trainer)
    run.cfg, run.max_iter, run.evaluation = SimpleNamespace(OUTPUT_DIR=str(tmp_path)), 5, Evaluation()
    run.checkpointer = SimpleNamespace(model="detector")
    if kept:
        run.train()
        assert given[0][-1] == ["end of the training: metrics.json: No space left on device"]
    else:
        with pytest.raises(OSError, match="No space left"):
            run.train()
        assert not given
