"""Every YAML: no key stands twice, it resolves, and it says what the published recipe says."""

from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg as detectron2_cfg

from loco_det.config import add_loco_config
from pretrain.config import get_cfg as pretrain_cfg
from pretrain.trainer import build_learner

ROOT = Path(__file__).resolve().parents[1]
PRETRAIN = sorted((ROOT / "configs" / "pretrain").glob("*.yaml"))
DETECTION = sorted((ROOT / "configs").glob("*.yaml"))
COCO = {"SOLVER.IMS_PER_BATCH": 16, "SOLVER.BASE_LR": 0.02, "SOLVER.MAX_ITER": 90000, "SOLVER.STEPS": (60000, 80000)}
CITYSCAPES = {"SOLVER.IMS_PER_BATCH": 8, "SOLVER.BASE_LR": 0.01, "SOLVER.MAX_ITER": 24000, "SOLVER.STEPS": (18000,)}
COMMON = {
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.ROI_BOX_HEAD.NORM": "SyncBN",
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_MASK_HEAD.NORM": "SyncBN",
    "MODEL.MASK_ON": True,
    "MODEL.WEIGHTS": "",
    "TEST.PRECISE_BN.ENABLED": True,
}
REAL = {
    "coco_loco_frozen": {**COCO, "MODEL.BACKBONE.FREEZE_AT": 5, "MODEL.ROI_HEADS.NUM_CLASSES": 80},
    "coco_loco_finetune": {**COCO, "MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.ROI_HEADS.NUM_CLASSES": 80},
    "cityscapes_loco_frozen": {**CITYSCAPES, "MODEL.BACKBONE.FREEZE_AT": 5, "MODEL.ROI_HEADS.NUM_CLASSES": 8},
    "cityscapes_loco_finetune": {**CITYSCAPES, "MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.ROI_HEADS.NUM_CLASSES": 8},
}
SIZE = {"SOLVER.REFERENCE_WORLD_SIZE": 8, "MODEL.RESNETS.DEPTH": 50, "MODEL.FPN.OUT_CHANNELS": 256}


class _Strict(yaml.SafeLoader):
    """A loader that refuses a key that stands twice, which yaml takes silently (the last one wins)."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice at {node.start_mark}"
        return super().construct_mapping(node, deep)


def detection_cfg(path):
    cfg = detectron2_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(str(path))
    return cfg


def value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("path", PRETRAIN + DETECTION, ids=lambda p: p.stem)
def test_no_key_stands_twice(path):
    yaml.load(path.read_text(), _Strict)


def test_the_check_for_keys_that_stand_twice_can_fail():
    with pytest.raises(AssertionError, match="stands twice"):
        yaml.load("MODEL:\n  NORM: BN\n  NORM: SyncBN\n", _Strict)


@pytest.mark.parametrize("name", REAL)
def test_recipes(name):
    cfg = detection_cfg(ROOT / "configs" / f"{name}.yaml")
    assert {k: value(cfg, k) for k in {**COMMON, **REAL[name], **SIZE}} == {**COMMON, **REAL[name], **SIZE}


@pytest.mark.parametrize("name", ["coco_loco_frozen", "coco_loco_finetune"])
def test_demo_variants_change_data_size_and_schedule_only(name):
    cfg = detection_cfg(ROOT / "configs" / f"demo_{name}.yaml")
    same = {**COMMON, "MODEL.BACKBONE.FREEZE_AT": REAL[name]["MODEL.BACKBONE.FREEZE_AT"]}
    assert {k: value(cfg, k) for k in same} == same


@pytest.mark.parametrize("path", [p for p in DETECTION if p.stem[0] != "_"], ids=lambda p: p.stem)
def test_leaves_say_how_they_are_run(path):
    cfg = detection_cfg(path)
    assert cfg.MODEL.BACKBONE.FREEZE_AT == (5 if "frozen" in path.stem else 0)
    assert cfg.OUTPUT_DIR != detectron2_cfg().OUTPUT_DIR


@pytest.mark.parametrize("path", [p for p in PRETRAIN if p.stem[0] != "_"], ids=lambda p: p.stem)
def test_pretraining_configs_build(path):
    cfg = pretrain_cfg()
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    learner = build_learner(cfg)
    assert set(learner.decoders) == {unit[-1] for unit in cfg.MODEL.UNITS}
    assert cfg.SOLVER.WARMUP_EPOCHS < cfg.SOLVER.EPOCHS


def test_imagenet_hyper_parameters_of_the_paper():
    cfg = pretrain_cfg()
    cfg.merge_from_file(str(ROOT / "configs/pretrain/resnet50_loco.yaml"))
    solver = cfg.SOLVER
    assert solver.BASE_LR * solver.IMS_PER_BATCH / 256 == pytest.approx(4.8)
    assert (solver.OPTIMIZER, solver.IMS_PER_BATCH, solver.EPOCHS, solver.WARMUP_EPOCHS) == ("LARS", 4096, 800, 10)
    assert cfg.MODEL.UNITS == [["res2", "res3"], ["res3", "res4"], ["res4", "res5"]]
    assert (cfg.MODEL.DECODER.CONV_BLOCKS, cfg.MODEL.DECODER.DOWNSAMPLE) == (1, True)
