"""The trainer where no run on the CPU comes by."""

from types import SimpleNamespace

from detectron2.engine import DefaultTrainer

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
