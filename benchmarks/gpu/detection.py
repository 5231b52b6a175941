"""Checks of detection and conversion: training steps, mixed precision, the fast frozen backbone, predictions.

The tolerances, and why:

- *frozen and fine-tuned, losses 1e-3, gradients 3e-2* (relative, without TF32, against the CPU in float32). All anchors
  and regions are sampled, so that no random numbers differ; but which proposals stay after ranking and NMS may change
  where two scores are within rounding, which moves a loss by one of hundreds of regions. Gradients: pretraining.py.
- *mixed precision, losses 5e-2*: the first step's, float16 (bfloat16 on a CPU) against float32 on the same device with
  the same random numbers. Boxes move by rounding, and some regions change their label.
- *resumed from a CPU, 0.5*: the loss of the last step of a run in mixed precision that a CPU began, against the CPU's
  own. Other devices sample other regions. That the run resumes at all, where it stopped, is the point.
- *compiled backbone, 1e-4 of a stage's largest value*: as loco_det/modeling/frozen.py asks of the folded backbone.
- *predictions, 95 % and more*: the share of the CPU's ten best boxes of each image for which the device has one of the
  same class, with an overlap of 0.99 and a score within 1e-3. Ties in a ranking may differ.
- *conversion, 1e-5*: what the converter asks of its own comparison on the CPU.
"""

import contextlib
import functools
import itertools
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from detectron2.structures import BitMasks, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import nn

from loco_det.config import add_loco_config
from loco_det.convert import convert, load_encoder
from loco_det.convert.networks import detectron2_network
from loco_det.convert.verify import TOLERANCE, fill, test_images
from loco_det.data.datasets import prepare_datasets
from loco_det.demo_scenes.scenes import draw_scene
from loco_det.demo_scenes.writing import make_demo_data
from loco_det.engine.trainer import Trainer
from pretrain.encoders import build_encoder
from pretrain.files.shipped_configs import find_config

from .pretraining import RESIDUAL
from .setting import Figure, Setting, full_float32, nothing_compiled, relative

LOSSES, GRADIENTS, MIXED, RESUMED, FEATURES, FOUND = 1e-3, 3e-2, 5e-2, 0.5, 1e-4, 0.95
ALL = 10**6  # more than there are anchors and regions
numbers = itertools.count()  # of data sets, whose names must differ


def config(setting: Setting, name: str, device: str, **keys: object) -> CfgNode:
    """A config of the project at the sizes of the setting; in ``keys`` "__" stands for a dot."""
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(find_config(name if not setting.smoke else name.replace("coco_", "demo_coco_", 1)))
    cfg.MODEL.DEVICE = device
    cfg.merge_from_list([part for key, value in keys.items() for part in (key.replace("__", "."), value)])
    return cfg


def inputs_of(setting: Setting) -> list[dict[str, Any]]:
    """Two generated scenes, as the loader gives them."""
    size, found = (96, 128) if setting.smoke else (320, 416), []
    for i in range(2):
        scene = draw_scene(3, "coco_train", i, size)
        masks = BitMasks(torch.from_numpy(np.stack([one.mask for one in scene.instances])))
        classes = torch.tensor([one.category for one in scene.instances])
        instances = Instances(size, gt_masks=masks, gt_boxes=masks.get_bounding_boxes(), gt_classes=classes)
        image = torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()
        found.append({"image": image, "instances": instances, "height": size[0], "width": size[1]})
    return found


def detector(cfg: CfgNode) -> nn.Module:
    """The detector, with the same weights on every device.

    Frozen norms do not let the features grow, and residual branches are weak (see ``learner_of`` in pretraining.py).
    """
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.weight.fill_(0.7)
            if isinstance(module, BasicBlock | BottleneckBlock):
                (module.conv3 if isinstance(module, BottleneckBlock) else module.conv2).norm.weight.fill_(RESIDUAL)
    return model


def step(setting: Setting, name: str, device: str) -> tuple[dict[str, float], torch.Tensor]:
    """Losses and gradients of a training step that samples all anchors and regions."""
    every = {"BATCH_SIZE_PER_IMAGE": ALL, "POSITIVE_FRACTION": 1.0}
    cfg = config(setting, name, device, MODEL__RPN__POST_NMS_TOPK_TRAIN=100)
    cfg.MODEL.RPN.update(every)
    cfg.MODEL.ROI_HEADS.update(every)
    model = detector(cfg).train()
    with EventStorage():
        losses = model(inputs_of(setting))
    sum(losses.values()).backward()
    gradients = [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
    return {name: loss.item() for name, loss in losses.items()}, torch.cat(gradients)


def against_cpu(setting: Setting, name: str) -> list[Figure]:
    """A training step without TF32, on the device and on the CPU."""
    with full_float32():
        wanted, got = (step(setting, name, device) for device in ("cpu", setting.device))
    worst = max(abs(got[0][key] - wanted[0][key]) for key in wanted[0]) / sum(wanted[0].values())
    difference = (got[1] - wanted[1]).norm() / wanted[1].norm()
    return [Figure("losses", worst, LOSSES), Figure("gradients", difference.item(), GRADIENTS)]


@contextlib.contextmanager
def scenes(setting: Setting, device: str, **keys: object) -> Iterator[CfgNode]:
    """The config of a run of a few steps on generated scenes, which are registered meanwhile."""
    root = setting.folder / "scenes"
    sizes = {"num_train": 4, "num_val": 2, "size": (64, 96), "workers": 1, "layouts": ["coco"]}
    make_demo_data(root, **sizes)
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(find_config("demo_coco_loco_frozen"))
    number = next(numbers)
    own = {
        "MODEL.DEVICE": device, "OUTPUT_DIR": str(setting.folder / f"run{number}"), "DATALOADER.NUM_WORKERS": 0,
        "SEED": 0, "MODEL.WEIGHTS": "random", "INPUT.MIN_SIZE_TRAIN": (64,), "INPUT.MIN_SIZE_TEST": 64,
        "SOLVER.IMS_PER_BATCH": 2, "SOLVER.MAX_ITER": 3, "SOLVER.STEPS": (2,), "SOLVER.CHECKPOINT_PERIOD": 1,
        "TEST.PRECISE_BN.NUM_ITER": 1, "TEST.NUM_PICTURES": 0, "DATASETS.CUSTOM.NAME": f"gpu_check{number}",
        **{key.replace("__", "."): value for key, value in keys.items()},
    }  # fmt: skip
    for split, folder in (("TRAIN", "train"), ("TEST", "val")):
        own[f"DATASETS.CUSTOM.{split}_JSON"] = str(root / "coco" / "annotations" / f"instances_{folder}.json")
        own[f"DATASETS.CUSTOM.{split}_IMAGES"] = str(root / "coco" / folder)
    cfg.merge_from_list([part for pair in own.items() for part in pair])
    prepare_datasets(cfg, eval_only=False)
    cfg.freeze()
    try:
        yield cfg
    finally:
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def run(cfg: CfgNode, resume: bool = False) -> tuple[Trainer, list[float]]:
    """Train to the end, and evaluate; the trainer, and the total loss of each step."""
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer, [value for value, _ in trainer.storage.history("total_loss").values()]


def mixed(setting: Setting) -> list[Figure]:
    """SOLVER.AMP.ENABLED: a run and its evaluation, beside one in float32."""
    losses = []
    for enabled in (False, True):
        with scenes(setting, setting.device, SOLVER__AMP__ENABLED=enabled) as cfg:
            losses.append(run(cfg)[1])
    return [Figure("first loss", relative(losses[1][0], losses[0][0]), MIXED)]


def resumed(setting: Setting) -> list[Figure]:
    """A run in mixed precision that a CPU began, and the device ends."""
    with scenes(setting, "cpu", SOLVER__AMP__ENABLED=True) as cfg:
        wanted = run(cfg)[1]
        begun = cfg.OUTPUT_DIR
    with scenes(setting, setting.device, SOLVER__AMP__ENABLED=True) as cfg:
        target = setting.folder / "resumed_detector"
        target.mkdir()
        shutil.copy(f"{begun}/model_0000001.pth", target)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR, cfg.DATASETS.TRAIN = str(target), cfg.DATASETS.TRAIN
        cfg.freeze()
        trainer, got = run(cfg, resume=True)
    difference = relative(got[-1], wanted[-1]) if trainer.start_iter == 2 and len(got) == 1 else float("nan")
    return [Figure("last loss", difference, RESUMED, text=f"from iteration {trainer.start_iter}")]


def compiled_backbone(setting: Setting) -> list[Figure]:
    """MODEL.FAST_FROZEN.COMPILE, and the folded backbone, against the backbone as it is."""
    pixels = torch.stack([one["image"] for one in inputs_of(setting)]).float().to(setting.device) / 64 - 2
    found = {}
    with full_float32(), nothing_compiled(setting), torch.no_grad():
        for key, options in {
            "plain": {"MODEL__FAST_FROZEN__ENABLED": False},
            "folded": {},
            "compiled": {"MODEL__FAST_FROZEN__COMPILE": True},
        }.items():
            model = detector(config(setting, "coco_loco_frozen", setting.device, **options))
            found[key] = model.backbone.bottom_up(pixels)
    return [
        Figure(key, max(((own[k] - x).abs().max() / x.abs().max()).item() for k, x in found["plain"].items()), FEATURES)
        for key, own in found.items()
        if key != "plain"
    ]


def predictions(setting: Setting) -> list[Figure]:
    """What evaluation predicts, of a detector with random weights: the ten best boxes of each image."""
    keys = {"MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0, "TEST__DETECTIONS_PER_IMAGE": 20}
    found = []
    with full_float32(), torch.no_grad():
        for device in ("cpu", setting.device):
            model = detector(config(setting, "coco_loco_frozen", device, **keys)).eval()
            found.append([one["instances"].to("cpu") for one in model(inputs_of(setting))])
    shares = [_share(mine, theirs) for mine, theirs in zip(*found, strict=True)]
    return [Figure("boxes found again", sum(shares) / len(shares), FOUND, least=True)]


def _share(wanted: Instances, got: Instances, best: int = 10) -> float:
    wanted = wanted[:best]
    near = pairwise_iou(wanted.pred_boxes, got.pred_boxes) > 0.99
    near &= wanted.pred_classes[:, None] == got.pred_classes
    near &= (wanted.scores[:, None] - got.scores).abs() < 1e-3
    return near.any(1).double().mean().item()


def conversion(setting: Setting) -> list[Figure]:
    """A converted encoder and the source network, both on the device, in evaluation and with norms in training mode."""
    name, path = ("resnet18" if setting.smoke else "resnet50"), setting.folder / "encoder.pth"
    torch.manual_seed(0)
    torch.save(build_encoder(name).state_dict(), path)
    done = convert(path, setting.folder / "encoder.pkl")
    source, conventions, _ = load_encoder(path)
    backbone = detectron2_network(done.config)
    fill(backbone, setting.folder / "encoder.pkl")
    images, worst = test_images(conventions).to(setting.device), 0.0
    networks = [source.to(setting.device), backbone.to(setting.device)]
    with full_float32(), torch.no_grad():
        for training in (False, True):
            wanted, got = (network.train(training)(images) for network in networks)
            worst = max([worst, *(((got[k] - x).abs().max() / x.abs().max()).item() for k, x in wanted.items())])
    return [Figure("features", worst, TOLERANCE)]


CHECKS: dict[str, Callable[[Setting], list[Figure]]] = {
    "detection, frozen": functools.partial(against_cpu, name="coco_loco_frozen"),
    "detection, fine-tuned": functools.partial(against_cpu, name="coco_loco_finetune"),
    "detection, mixed precision": mixed,
    "detection, resumed from a CPU": resumed,
    "detection, compiled backbone": compiled_backbone,
    "detection, predictions": predictions,
    "conversion": conversion,
}
