"""The trainer where no run on the CPU comes by."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from child_processes import child_environment
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, hooks
from detectron2.utils import comm

from loco_det.config import add_loco_config
from loco_det.data.loader import Batches
from loco_det.engine import trainer
from loco_det.engine.evaluate import Evaluation
from loco_det.engine.trainer import Trainer, without_sync


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


@pytest.mark.parametrize("name", ["demo_coco_loco_frozen", "demo_coco_loco_finetune"])
def test_on_the_cpu_bn_stands_in_for_syncbn(name):
    """With the same parameters and buffers; the run's own config stays as it is."""
    models = {}
    for norm in ("SyncBN", "BN"):
        cfg = get_cfg()
        add_loco_config(cfg)
        cfg.merge_from_file(f"configs/{name}.yaml")
        cfg.MODEL.DEVICE, cfg.MODEL.FAST_FROZEN.ENABLED = "cpu", False
        for node in (cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
            node.NORM = norm
        cfg.freeze()
        before = cfg.dump()
        torch.manual_seed(0)
        models[norm] = Trainer.build_model(cfg)
        assert cfg.dump() == before and cfg.is_frozen()
    sync, bn = models.values()
    assert not any(isinstance(module, torch.nn.SyncBatchNorm) for module in sync.modules())
    assert [type(module) for module in sync.modules()] == [type(module) for module in bn.modules()]
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in sync.roi_heads.modules())
    theirs = bn.state_dict()
    assert all(torch.equal(value, theirs.pop(key)) for key, value in sync.state_dict().items()) and not theirs
    cfg.defrost()
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM = "naiveSyncBN", ""
    other = without_sync(cfg)
    assert (other.MODEL.RESNETS.NORM, other.MODEL.FPN.NORM) == ("naiveSyncBN", "") and other.is_frozen()


def test_other_data_are_told_by_their_content():
    def digest(**change):
        batches = Batches([True], 1, 0)
        annotation = {"category_id": 1, "bbox": [1, 2, 3, 4], "bbox_mode": 1}
        record = {"file_name": "/a/b/1.jpg", "width": 3, "height": 4, "annotations": [annotation]}
        batches.records = [record | change]
        return batches.digest

    same = digest()
    assert digest(file_name="/elsewhere/1.jpg") == same
    object_ = {"category_id": 1, "bbox": [1, 2, 3, 4]}
    others = [object_ | change for change in (
        {"bbox": [1, 2, 3, 5]}, {"iscrowd": 1}, {"segmentation": [[1, 2, 3, 4, 5, 6]]},
        {"segmentation": [[1, 2, 3, 4, 5, 7]]}, {"segmentation": {"counts": "ab", "size": [3, 4]}}, {"category_id": 2}
    )]  # fmt: skip
    changes = [{"file_name": "/a/b/2.jpg"}, {"width": 4}, {"annotations": []}, *({"annotations": [o]} for o in others)]
    assert len({digest(**change) for change in changes} | {same}) == 1 + len(changes)


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


def test_nothing_that_draws_is_imported_before_the_first_iteration():
    """Matplotlib takes most of a second."""
    code = "import sys, loco_det.engine.trainer as t; assert t.Trainer and 'matplotlib' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=child_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("begun", "scale"), [("bfloat16 on a CPU", 65536.0), ("no GPU", 65536.0), ("a GPU", 8.0)])
def test_mixed_precision_that_began_on_a_cpu_goes_on_on_a_gpu(begun, scale):
    """Losses are scaled on GPUs only: where the checkpoint has no state of the scaling, or none of a GPU, it begins."""

    def run(scaler=None):
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        found = object.__new__(Trainer)
        found.iter, found._hooks, found.weights, found.seconds, found.begun = 4, [], "a.pkl", 3.0, 0.0
        found.cfg, parts = get_cfg(), (model, SimpleNamespace(batch_sampler=None), optimizer)
        found._trainer = AMPTrainer(*parts, grad_scaler=scaler) if scaler else SimpleTrainer(*parts)
        found._trainer.iter = 4
        return found

    scalers = {"no GPU": torch.amp.GradScaler("cpu", enabled=False), "a GPU": torch.amp.GradScaler("cpu", 8.0)}
    state, resumed = run(scalers.get(begun)).state_dict(), run(torch.amp.GradScaler("cpu"))
    resumed.iter = 0
    resumed.load_state_dict(state)
    assert resumed.iter == 4 and resumed._trainer.grad_scaler.get_scale() == scale
    back = run()  # from a GPU to a CPU
    back.load_state_dict(run(torch.amp.GradScaler("cpu")).state_dict())
    assert back.iter == 4
