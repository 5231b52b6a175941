"""The trainer where no run on the CPU comes by."""

import functools
import sys
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer, hooks
from detectron2.utils import comm

from loco_det.config import add_loco_config
from loco_det.data.loader import Batches
from loco_det.engine import trainer
from loco_det.engine.outputs import PREDICTIONS
from loco_det.engine.trainer import (
    FREE,
    Evaluation,
    Trainer,
    check_evaluated,
    check_resumed,
    evaluate_each,
    without_sync,
)
from pretrain.files.checkpoints import items_of


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


@pytest.fixture
def resumed(tmp_path):
    """Config of a run that has a checkpoint."""
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file("configs/demo_coco_loco_frozen.yaml")
    cfg.OUTPUT_DIR, cfg.SEED, cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = str(tmp_path), 7, "w.pkl", "cpu"
    batch = cfg.SOLVER.IMS_PER_BATCH
    trainer = {"seed": 7, "batch": batch, "weights": "w.pkl", "config": cfg.dump()}
    torch.save({"model": {}, "trainer": trainer, "iteration": 3}, tmp_path / "model_0000003.pth")
    return cfg


def test_what_decides_no_weight_may_change_when_a_run_is_resumed(resumed):
    check_resumed(resumed)
    cfg = resumed.clone()
    for key, value in items_of(cfg):
        if any(key == name or key.startswith(f"{name}.") for name in FREE - {"SEED", "OUTPUT_DIR"}):
            *path, last = key.split(".")
            node = functools.reduce(getattr, path, cfg)
            node[last] = {bool: not value, str: "other"}.get(type(value), ["other"])
    check_resumed(cfg)


def test_an_empty_seed_and_weights_become_the_runs(resumed):
    resumed.SEED, resumed.MODEL.WEIGHTS = -1, ""
    check_resumed(resumed)
    assert (resumed.SEED, resumed.MODEL.WEIGHTS) == (7, "w.pkl")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.BASE_LR", 0.5, "a run with other values of SOLVER.BASE_LR: resume it with its own config.yaml"),
        ("SOLVER.MAX_ITER", 9, "other values of SOLVER.MAX_ITER"),
        ("SOLVER.STEPS", (1, 2), "other values of SOLVER.STEPS"),
        ("MODEL.WEIGHTS", "other.pkl", "other values of MODEL.WEIGHTS"),
        ("MODEL.BACKBONE.FREEZE_AT", 0, "other values of MODEL.BACKBONE.FREEZE_AT"),
        ("TEST.PRECISE_BN.NUM_ITER", 3, "other values of TEST.PRECISE_BN.NUM_ITER"),
        ("INPUT.MIN_SIZE_TRAIN", (1,), "other values of INPUT.MIN_SIZE_TRAIN"),
        ("SEED", 8, "SEED is 8, but the run began with 7"),
        ("SOLVER.IMS_PER_BATCH", 2, "SOLVER.IMS_PER_BATCH is 2, but the run began with 8"),
    ],
)
def test_what_decides_the_weights_is_refused(resumed, key, value, message):
    resumed.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        check_resumed(resumed)


def test_an_evaluation_in_a_runs_folder_is_of_that_run(resumed):
    """With whatever number of processes it was trained."""
    cfg = resumed.clone()
    cfg.SEED, cfg.MODEL.WEIGHTS, cfg.DATASETS.TEST, cfg.TEST.NUM_PICTURES = -1, "", ("other",), 1
    assert check_evaluated(cfg, resume=True).MODEL.WEIGHTS == "w.pkl"
    cfg.MODEL.WEIGHTS = "elsewhere.pth"
    assert check_evaluated(cfg, resume=False).MODEL.WEIGHTS == "elsewhere.pth"
    with pytest.raises(ValueError, match="other values of MODEL.WEIGHTS"):
        check_evaluated(cfg, resume=True)
    cfg.SOLVER.BASE_LR = 9.0
    for resume in (True, False):
        with pytest.raises(ValueError, match="other values of .*SOLVER.BASE_LR"):
            check_evaluated(cfg, resume)
    cfg.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}/new"
    assert check_evaluated(cfg, resume=False) is cfg


def test_an_evaluation_of_a_run_of_more_processes(resumed, tmp_path):
    path = tmp_path / "model_0000003.pth"
    content = torch.load(path, weights_only=True)
    cfg = resumed.clone()
    cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH = 8, 16
    trained = Trainer.auto_scale_workers(cfg, 2)
    content["trainer"] |= {"config": trained.dump(), "batch": 4}
    torch.save(content, path)
    for given in (cfg, trained):
        assert check_evaluated(given.clone(), resume=True).SOLVER.IMS_PER_BATCH == 4


def test_a_checkpoint_without_what_it_needs_is_none_of_ours(resumed, tmp_path):
    torch.save({"model": {}, "trainer": {"seed": 0}}, tmp_path / "model_0000005.pth")
    check_resumed(resumed)
    (tmp_path / "model_0000003.pth").unlink()
    with pytest.raises(ValueError, match="none of model_0000005.pth .* can be read"):
        check_resumed(resumed)


def test_a_checkpoint_of_version_01_goes_on(resumed, tmp_path):
    path = tmp_path / "model_0000003.pth"
    content = torch.load(path, weights_only=True)
    del content["trainer"]["config"]
    torch.save(content, path)
    resumed.SOLVER.BASE_LR = 0.5
    check_resumed(resumed)


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
    done = evaluate_each(cfg, torch.nn.Identity())
    assert done.results == {"first": {}, "second": {"bbox": {"AP": 1.0}}} and done.seconds > 0
    assert done.problems == ["evaluation on first: KeyError: 'area'"]
    assert "evaluation on first failed: KeyError: 'area'" in caplog.text
    monkeypatch.setattr(Trainer, "test", lambda *_: sys.exit(1))
    with pytest.raises(SystemExit):
        evaluate_each(cfg, torch.nn.Identity())


@pytest.mark.parametrize("training", [True, False])
def test_a_test_set_that_fails_leaves_the_model_as_it_was(cfg, monkeypatch, training):
    """Detectron2 refuses to train a model in eval mode, and puts it back only after what does not fail."""
    model = torch.nn.BatchNorm2d(3).train(training)
    monkeypatch.setattr(Trainer, "test", lambda _, model: model.eval().missing)
    assert len(evaluate_each(cfg, model).problems) == 2 and model.training is training


def test_in_several_processes_a_failure_ends_them_all(cfg, monkeypatch):
    """The others wait for this one in the middle of the evaluation."""
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(Trainer, "test", lambda *_: {}["area"])
    with pytest.raises(KeyError):
        evaluate_each(cfg, torch.nn.Identity())


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
