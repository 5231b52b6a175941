"""The trainer where no run on the CPU comes by."""

from types import SimpleNamespace

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer, hooks

from loco_det import trainer
from loco_det.trainer import Trainer


def test_results_are_those_of_the_detector_and_not_of_its_wrapper(monkeypatch, tmp_path):
    """In several processes ``model`` is DistributedDataParallel, which has no backbone."""
    given = []
    monkeypatch.setattr(DefaultTrainer, "train", lambda self: None)
    monkeypatch.setattr(trainer, "finish", lambda cfg, model, *rest: given.append(model))
    monkeypatch.setattr(Trainer, "state_dict", lambda self: {"seconds": 3.0})
    run = object.__new__(Trainer)
    run.cfg, run.max_iter = SimpleNamespace(OUTPUT_DIR=str(tmp_path)), 5
    run._trainer = SimpleNamespace(model="wrapper")
    run.checkpointer = SimpleNamespace(model="detector")
    run.train()
    assert given == ["detector"]


@pytest.mark.parametrize(("period", "start", "times"), [(0, 0, 1), (100, 0, 4), (100, 250, 2)])
def test_what_the_estimate_counts_beside_iterations(monkeypatch, period, start, times):
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: [{}] * 80)
    run = object.__new__(Trainer)
    run.cfg, run.start_iter, run.max_iter = get_cfg(), start, 350
    run.cfg.merge_from_list(["TEST.EVAL_PERIOD", period, "TEST.PRECISE_BN.NUM_ITER", 20, "DATASETS.TEST", "('a', 'b')",
                             "SOLVER.IMS_PER_BATCH", 8])  # fmt: skip
    batches = pytest.approx(times * 20 * 0.4)  # 160 images are 20 batches, too
    precise = object.__new__(hooks.PreciseBN)
    assert run._extras([precise, None]) == [("precise BN", batches), ("evaluation", batches)]
    assert run._extras([None]) == [("precise BN", 0), ("evaluation", batches)]
