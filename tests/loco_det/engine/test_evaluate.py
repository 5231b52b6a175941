"""Evaluation on several test sets."""

import sys

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils import comm

from loco_det.config import add_loco_config
from loco_det.engine.evaluate import evaluate_each
from loco_det.engine.outputs import PREDICTIONS


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.OUTPUT_DIR, cfg.DATASETS.TEST = str(tmp_path), ("first", "second")
    (tmp_path / "inference").mkdir()
    cfg.freeze()
    return cfg


def test_a_test_set_that_fails_does_not_take_the_others_along(cfg, tmp_path, caplog):
    predictions = tmp_path / PREDICTIONS

    def test(one, _):
        (name,) = one.DATASETS.TEST
        assert not predictions.exists()  # those of the other would pass for this one's
        predictions.touch()
        return {"bbox": {"AP": 1.0}} if name == "second" else {}["area"]

    done = evaluate_each(cfg, torch.nn.Identity(), test)
    assert done.results == {"first": {}, "second": {"bbox": {"AP": 1.0}}} and done.seconds > 0
    assert done.problems == ["evaluation on first: KeyError: 'area'"]
    assert "evaluation on first failed: KeyError: 'area'" in caplog.text
    with pytest.raises(SystemExit):
        evaluate_each(cfg, torch.nn.Identity(), lambda *_: sys.exit(1))


@pytest.mark.parametrize("training", [True, False])
def test_a_test_set_that_fails_leaves_the_model_as_it_was(cfg, training):
    """Detectron2 refuses to train a model in eval mode, and puts it back only after what does not fail."""
    model = torch.nn.BatchNorm2d(3).train(training)
    done = evaluate_each(cfg, model, lambda _, model: model.eval().missing)
    assert len(done.problems) == 2 and model.training is training


def test_in_several_processes_a_failure_ends_them_all(cfg, monkeypatch):
    """The others wait for this one in the middle of the evaluation."""
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(KeyError):
        evaluate_each(cfg, torch.nn.Identity(), lambda *_: {}["area"])
