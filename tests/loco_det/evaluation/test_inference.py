"""A detector whose masks are not pasted gives the evaluators the same files; where it is not for it, it stays."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from torch import nn

from loco_det.config import add_loco_config
from loco_det.demo_scenes.pictograms import CLASSES
from loco_det.demo_scenes.writing import make_demo_data
from loco_det.engine.outputs import predict
from loco_det.engine.trainer import Trainer
from loco_det.evaluation.inference import Unpasted, without_pasting
from loco_det.evaluation.masks import PastedMasks

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Config and Mask R-CNN with random weights on demo scenes; every region passes, and masks have two sides."""
    root = tmp_path_factory.mktemp("unpasted")
    make_demo_data(root, num_train=1, num_val=3, size=(96, 128), workers=1)
    coco = root / "coco"
    register_coco_instances("unpasted", {}, str(coco / "annotations/instances_val.json"), str(coco / "val"))
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/coco_loco_frozen.yaml"))
    cfg.merge_from_list([
        "MODEL.DEVICE", "cpu", "DATASETS.TEST", ("unpasted",), "INPUT.MIN_SIZE_TEST", 64,
        "OUTPUT_DIR", str(root / "out"), "MODEL.ROI_HEADS.NUM_CLASSES", len(CLASSES), "DATALOADER.NUM_WORKERS", 0,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RPN.POST_NMS_TOPK_TEST", 30, "TEST.DETECTIONS_PER_IMAGE", 20,
    ])  # fmt: skip
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    with torch.no_grad():
        model.roi_heads.mask_head.predictor.weight.mul_(1000)
    yield cfg, model
    DatasetCatalog.remove("unpasted")


def test_predictions_and_results_are_those_of_detectron2(detector, tmp_path):
    cfg, model = detector
    found = []
    for trainer, folder in ((DefaultTrainer, "stock"), (Trainer, "ours")):
        one = cfg.clone()
        one.OUTPUT_DIR = str(tmp_path / folder)
        evaluators = (
            [COCOEvaluator("unpasted", output_dir=f"{one.OUTPUT_DIR}/inference")] if folder == "stock" else None
        )
        model.train()
        found.append(trainer.test(one, model, evaluators))
        assert model.training and model.roi_heads.training
    np.testing.assert_equal(*found)
    for name in ("coco_instances_results.json", "instances_predictions.pth"):
        files = [(tmp_path / folder / "inference" / name).read_bytes() for folder in ("stock", "ours")]
        assert files[0] == files[1] and len(files[0]) > 1000


def test_instances_are_those_of_detectron2_but_for_their_masks(detector):
    cfg, model = detector
    inputs = [
        {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8), "height": 100, "width": 170},
        {"image": torch.randint(0, 256, (3, 48, 80), dtype=torch.uint8)},
    ]
    with torch.no_grad():
        wanted, got = model.eval()(inputs), without_pasting(model)(inputs)
    for stock, own in zip(wanted, got, strict=True):
        stock, own = stock["instances"], own["instances"]
        assert stock.image_size == own.image_size and len(stock) == len(own) == 20
        assert torch.equal(stock.pred_boxes.tensor, own.pred_boxes.tensor) and torch.equal(stock.scores, own.scores)
        assert isinstance(own.pred_masks, PastedMasks) and torch.equal(own.pred_masks.tensor(), stock.pred_masks)
        assert isinstance(stock.pred_masks, torch.Tensor) and stock.pred_masks.any() and not stock.pred_masks.all()


def test_predictions_for_pictures_have_no_pasted_masks(detector):
    cfg, model = detector
    ((_, found),) = predict(cfg, model, DatasetCatalog.get("unpasted")[:1])
    assert isinstance(found.pred_masks, PastedMasks) and not model.training


def test_other_evaluators_and_models_keep_detectron2s_way(detector, monkeypatch):
    cfg, model = detector
    seen = []
    monkeypatch.setattr(DefaultTrainer, "test", classmethod(lambda cls, cfg, model, evaluators: seen.append(model)))
    Trainer.test(cfg, model, [COCOEvaluator("unpasted", output_dir=cfg.OUTPUT_DIR)])
    monkeypatch.setattr(Trainer, "build_evaluator", classmethod(lambda cls, *_: COCOEvaluator("unpasted")))
    Trainer.test(cfg, model)
    assert seen == [model, model]

    class Other(type(model)):
        pass

    other = Other.__new__(Other)
    nn.Module.__init__(other)
    assert without_pasting(other) is other and isinstance(without_pasting(model), Unpasted)
    hook = model.register_forward_hook(lambda *_: None)
    assert without_pasting(model) is model
    hook.remove()
