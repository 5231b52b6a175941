"""A detector in bfloat16 on the CPU: near float32 in its losses, float32 where boxes are decided, and in evaluation."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from loco_det.config import add_loco_config
from loco_det.engine.trainer import Trainer
from loco_det.modeling.precision import train_in_bfloat16
from pretrain.files.shipped_configs import find_config


@pytest.fixture(scope="module")
def detector():
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(find_config("demo_coco_loco_finetune"))
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    return Trainer.build_model(cfg)


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    instances = Instances((96, 128))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 12, 60, 70], [70, 30, 120, 90]]))
    instances.gt_classes = torch.tensor([0, 1])
    masks = torch.zeros(2, 96, 128, dtype=torch.bool)
    masks[0, 12:70, 10:60] = masks[1, 30:90, 70:120] = True
    instances.gt_masks = BitMasks(masks)
    image = torch.randint(256, (3, 96, 128), generator=generator, dtype=torch.uint8)
    return [{"image": image, "instances": instances, "height": 96, "width": 128}]


def losses(model, inputs):
    torch.manual_seed(0)
    with EventStorage():
        found = model.train()(inputs)
    sum(found.values()).backward()
    return {name: value.item() for name, value in found.items()}


def test_losses_and_gradients_are_near_those_of_float32(detector, inputs):
    exact, fast = copy.deepcopy(detector), copy.deepcopy(detector)
    train_in_bfloat16(fast)
    seen = []
    for module in fast.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        elif isinstance(module, ROIPooler):
            module.register_forward_hook(lambda module, args, output: seen.append(("pooled", output.dtype)))
    wanted, got = losses(exact, inputs), losses(fast, inputs)
    assert seen.count(torch.bfloat16) > 20 and seen.count(("pooled", torch.float32)) == 2
    assert got == pytest.approx(wanted, rel=0.02, abs=2e-3)
    for name, parameter in exact.named_parameters():
        gradient = dict(fast.named_parameters())[name].grad
        assert parameter.grad is None or gradient.dtype == torch.float32


def test_evaluation_stays_in_float32(detector, inputs):
    exact, fast = copy.deepcopy(detector), copy.deepcopy(detector)
    train_in_bfloat16(fast)
    with torch.no_grad():
        wanted, got = (model.eval()(inputs)[0]["instances"] for model in (exact, fast))
    assert torch.equal(got.pred_boxes.tensor, wanted.pred_boxes.tensor) and torch.equal(got.scores, wanted.scores)
