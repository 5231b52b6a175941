"""Every detection config says what the published recipe says, in full, and every recipe trains."""

import collections
import functools
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import nn

import loco_det.modeling.backbones
import loco_det.modeling.roi_heads
import loco_det.modeling.timm.build  # noqa: F401, all register what configs name
from loco_det.config import add_loco_config
from loco_det.engine.checks import size_warning
from loco_det.engine.optimizer import build_optimizer
from pretrain.config import get_cfg as get_pretraining_cfg
from pretrain.config import value_of
from pretrain.model_card.method import method_of

CONFIGS = str(Path(__file__).resolve().parents[2] / "configs")
FILES = sorted(
    path.relative_to(CONFIGS).as_posix()[: -len(".yaml")]
    for found in (Path(CONFIGS).glob("*.yaml"), Path(CONFIGS, "detection").rglob("*.yaml"))
    for path in found
)
LEAVES = [name for name in FILES if not os.path.basename(name).startswith("_")]

# --- the published recipes --------------------------------------------------------------------------------------------

COMMON = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.MASK_ON": True,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],  # RGB weights in torchvision's style
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.CROP.ENABLED": False,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "TEST.PRECISE_BN.ENABLED": True,
    "SOLVER.REFERENCE_WORLD_SIZE": 8,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_ITERS": 1000,
}
FPN = {  # LoCo, Sec. 5.2: SyncBN after every new layer, 4conv1fc
    **COMMON,
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.ENCODER": "",
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.NORM": "SyncBN",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.NORM": "SyncBN",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
}
COCO_DATA = {
    "DATASETS.TRAIN": ("coco_2017_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
}


def schedule(*steps):
    return {"SOLVER.STEPS": steps[:-1], "SOLVER.MAX_ITER": steps[-1]}


def freeze(stages):
    return {"MODEL.BACKBONE.FREEZE_AT": stages}


COCO = {**FPN, **COCO_DATA, **schedule(60000, 80000, 90000)}
CITYSCAPES = {
    **FPN,
    **schedule(18000, 24000),  # of 8 images: 64 epochs of 2,975, and a half
    "DATASETS.TRAIN": ("cityscapes_fine_instance_seg_train",),
    "DATASETS.TEST": ("cityscapes_fine_instance_seg_val",),
    "MODEL.ROI_HEADS.NUM_CLASSES": 8,
    "INPUT.MIN_SIZE_TRAIN": (800, 832, 864, 896, 928, 960, 992, 1024),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 2048,
    "INPUT.MIN_SIZE_TEST": 1024,
    "INPUT.MAX_SIZE_TEST": 2048,
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.BASE_LR": 0.01,
}
SHUFFLENET = {"MODEL.BACKBONE.NAME": "build_encoder_fpn_backbone", "MODEL.ENCODER": "shufflenetv2_50"}
TIMM = {  # weights -> timm's name
    "vitb16_mae": "vit_base_patch16_224",
    "vits16_dino": "vit_small_patch16_224",
    "convnext_tiny_supervised": "convnext_tiny",
}
VITDET = {  # projects/ViTDet of Detectron2: configs/COCO/mask_rcnn_vitdet_b_100ep.py
    **freeze(0),
    "MODEL.TIMM.DROP_PATH": 0.1,
    "MODEL.FPN.NORM": "LN",
    "MODEL.RPN.CONV_DIMS": [-1, -1],
    "MODEL.ROI_BOX_HEAD.NORM": "LN",
    "MODEL.ROI_MASK_HEAD.NORM": "LN",
    "TEST.PRECISE_BN.ENABLED": False,
    "SOLVER.OPTIMIZER": "AdamW",
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.WEIGHT_DECAY": 0.1,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.LAYER_DECAY": 0.7,
    "SOLVER.WARMUP_ITERS": 250,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.AMP.ENABLED": True,
}
VITDET_COCO = {
    **schedule(163889, 177546, 184375),
    "MODEL.TIMM.SQUARE_PAD": 1024,
    "INPUT.LSJ.SIZE": 1024,
    "INPUT.LSJ.MIN_SCALE": 0.1,
    "INPUT.LSJ.MAX_SCALE": 2.0,
    "INPUT.MIN_SIZE_TEST": 1024,
    "INPUT.MAX_SIZE_TEST": 1024,
    "SOLVER.REFERENCE_WORLD_SIZE": 32,
    "SOLVER.IMS_PER_BATCH": 64,
}
CONVNEXT = {  # object_detection of ConvNeXt: mask_rcnn_convnext_tiny_..._3x_coco_in1k.py
    **freeze(0),
    "MODEL.TIMM.DROP_PATH": 0.4,
    "MODEL.FPN.NORM": "",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "TEST.PRECISE_BN.ENABLED": False,
    "SOLVER.OPTIMIZER": "AdamW",
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.WEIGHT_DECAY": 0.05,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WEIGHT_DECAY_BIAS": 0.0,
    "SOLVER.LAYER_DECAY": 0.95,
    "SOLVER.AMP.ENABLED": True,
}
CONVNEXT_COCO = {  # 27, 33 and 36 epochs, on Detectron2's 3x
    **schedule(202500, 247500, 270000),
    "INPUT.MIN_SIZE_TRAIN": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
}
LOW_SHOT = {"10k": schedule(40000, 53333, 60000), "1k": schedule(10000, 13333, 15000)}
FINE_TUNED = {
    "fpn_1x": {**COCO, **freeze(0)},
    "fpn_2x": {**COCO, **freeze(0), **schedule(120000, 160000, 180000)},
    "c4_2x": {  # facebookresearch/moco, detection/configs/coco_R_50_C4_2x_moco.yaml
        **COMMON,
        **COCO_DATA,
        **freeze(0),
        **schedule(120000, 160000, 180000),
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.NORM": "naiveSyncBN",
        "MODEL.RESNETS.OUT_FEATURES": ["res4"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
        "MODEL.RPN.IN_FEATURES": ["res4"],
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
        "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
        "MODEL.ROI_MASK_HEAD.NORM": "",
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
    },
}

VOC_DATA = {  # facebookresearch/moco, detection/configs/pascal_voc_R_50_C4_24k_moco.yaml
    **schedule(18000, 22000, 24000),
    "DATASETS.TRAIN": ("voc_2007_trainval", "voc_2012_trainval"),
    "DATASETS.TEST": ("voc_2007_test",),
    "MODEL.MASK_ON": False,
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "INPUT.MIN_SIZE_TRAIN": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    "SOLVER.WARMUP_ITERS": 100,
}
VOC_NETWORKS = {"c4": {**FINE_TUNED["c4_2x"], **VOC_DATA}, "fpn": {**COCO, **VOC_DATA}}

# Published box and mask AP; None: a control, or a row that nobody has published
TABLE2 = {  # LoCo, Table 2: COCO, Cityscapes
    "resnet50_supervised": ((33.9, 31.3), (33.2, 27.1)),
    "resnet50_simclr_100ep": ((32.2, 29.9), (33.2, 28.6)),
    "resnet50_gim_100ep": ((27.7, 25.7), (30.0, 24.6)),
    "resnet50_loco_100ep": ((32.6, 30.1), (33.2, 28.4)),
    "resnet50_simclr_800ep": ((34.8, 32.2), (34.8, 30.1)),
    "resnet50_gim_800ep": ((29.3, 27.0), (30.7, 26.0)),
    "resnet50_loco_800ep": ((34.5, 32.0), (34.2, 29.5)),
    "resnet50_random": (None, None),
    "shufflenetv2_50_simclr_800ep": ((33.4, 30.9), (33.9, 28.7)),
    "shufflenetv2_50_gim_800ep": ((28.9, 26.9), (29.6, 23.9)),
    "shufflenetv2_50_loco_800ep": ((33.6, 31.2), (33.0, 28.1)),
    "shufflenetv2_50_random": (None, None),
}
TABLE3 = {  # LoCo, Table 3: 10K, 1K images
    "resnet50_random": ((23.5, 22.0), (2.5, 2.5)),
    "resnet50_supervised": ((26.0, 23.8), (10.4, 10.1)),
    "resnet50_simclr_100ep": ((25.6, 23.9), (11.3, 11.4)),
    "resnet50_gim_100ep": ((22.6, 20.8), (9.7, 9.6)),
    "resnet50_loco_100ep": ((26.1, 24.2), (11.7, 11.8)),
    "resnet50_simclr_800ep": ((27.2, 25.2), (13.9, 14.1)),
    "resnet50_gim_800ep": ((24.4, 22.4), (11.5, 11.7)),
    "resnet50_loco_800ep": ((27.8, 25.6), (13.9, 13.8)),
}
WHOLE_COCO = {  # FPN: InfoMin in PyContrast's table of detection results; C4: MoCo, Table 5
    "fpn_1x": {"random": (32.8, 29.9), "supervised": (39.7, 35.9), "loco_800ep": None},
    "fpn_2x": {"random": (38.4, 34.7), "supervised": (41.6, 37.6), "loco_800ep": None},
    "c4_2x": {"random": (35.6, 31.4), "supervised": (40.0, 34.7), "moco_v1_200ep": (40.7, 35.4), "loco_800ep": None},
}
MOCO_VOC = {"random": 33.8, "supervised": 53.5, "moco_v1_200ep": 55.9, "moco_v2_200ep": 57.0, "moco_v2_800ep": 57.4}
VOC = {  # C4, fine-tuned: MoCo's README, and Table 2 for the random start; box AP
    "finetune_c4": {**MOCO_VOC, "loco_800ep": None},
    **dict.fromkeys(
        ("finetune_fpn", "frozen_c4", "frozen_fpn"),
        dict.fromkeys(("random", "supervised", "moco_v1_200ep", "loco_800ep")),
    ),
}
Row = collections.namedtuple("Row", "recipe weights published source")


def rows():
    """Name of a leaf -> what it has to say."""
    found = {}
    for name, figures in TABLE2.items():
        encoder = SHUFFLENET if name.startswith("shufflenet") else {}
        for data, recipe, figure in zip(("coco", "cityscapes"), (COCO, CITYSCAPES), figures, strict=True):
            # The frozen controls too have a file: random weights with the BN statistics of images
            row = Row({**recipe, **freeze(5), **encoder}, f"output/{name}.pkl", figure, "LoCo, Table 2")
            found[f"detection/{data}_frozen/{name}"] = row
    for name, figures in TABLE3.items():
        for size, figure in zip(LOW_SHOT, figures, strict=True):
            recipe = {**COCO, **LOW_SHOT[size], "DATASETS.TRAIN": (f"coco_2017_train_{size}_seed0",)}
            start = (0, "random") if name.endswith("random") else (2, f"output/{name}.pkl")
            row = Row({**recipe, **freeze(start[0])}, start[1], figure, "LoCo, Table 3")
            found[f"detection/coco_{size}_finetune/{name}"] = row
    for kind, figures in WHOLE_COCO.items():
        for name, figure in figures.items():
            file = name.removesuffix("_v1_200ep")
            weights = "random" if name == "random" else f"output/resnet50_{file}.pkl"
            source = "MoCo, Table 5" if kind == "c4_2x" else "PyContrast"
            found[f"detection/coco_finetune_{kind}/resnet50_{name}"] = Row(FINE_TUNED[kind], weights, figure, source)
    for kind, figures in VOC.items():
        frozen, network = kind.startswith("frozen"), kind.rpartition("_")[2]
        for name, figure in figures.items():
            file = "moco" if name == "moco_v1_200ep" else name
            weights = "random" if name == "random" and not frozen else f"output/resnet50_{file}.pkl"
            source = "MoCo, Table 2" if name == "random" else "MoCo, README"
            recipe = {**VOC_NETWORKS[network], **freeze(5 if frozen else 0)}
            row = Row(recipe, weights, figure and (figure, 0.0), source)
            found[f"detection/voc_{kind}/resnet50_{name}"] = row
    fine_tuned = Row({**CITYSCAPES, **freeze(0)}, "output/resnet50_loco_800ep.pkl", None, "")
    found["detection/cityscapes_finetune/resnet50_loco_800ep"] = fine_tuned
    for weights, name in TIMM.items():
        network = {"MODEL.BACKBONE.NAME": "build_timm_fpn_backbone", "MODEL.TIMM.NAME": name}
        recipe, longer = (CONVNEXT, CONVNEXT_COCO) if "convnext" in name else (VITDET, VITDET_COCO)
        kind = "convnext_3x" if "convnext" in name else "vitdet_100ep"
        for folder, said in (
            ("coco_frozen", {**COCO, **freeze(99)}),
            ("cityscapes_frozen", {**CITYSCAPES, **freeze(99)}),
            (f"coco_finetune_{kind}", {**COCO, **recipe, **longer}),
            ("cityscapes_finetune", {**CITYSCAPES, **recipe}),
        ):
            found[f"detection/{folder}/{weights}"] = Row({**said, **network}, f"output/{weights}.pkl", None, "")
    found["coco_loco_frozen"] = found["detection/coco_frozen/resnet50_loco_800ep"]
    found["cityscapes_loco_frozen"] = found["detection/cityscapes_frozen/resnet50_loco_800ep"]
    found["coco_loco_finetune"] = found["detection/coco_finetune_fpn_1x/resnet50_loco_800ep"]
    found["cityscapes_loco_finetune"] = fine_tuned
    return found


ROWS = rows()
DEMO = {  # generated scenes: the recipe but for these keys, which follow from small images and two cores
    "demo_coco_loco_frozen": freeze(5),
    "demo_coco_loco_finetune": freeze(0),
    "demo_cityscapes_loco_frozen": freeze(5),
    "demo_cityscapes_loco_finetune": freeze(0),
    "demo_voc_loco_frozen": {**freeze(5), "MODEL.MASK_ON": False},
}
CPU = {"detection/cpu_frozen/resnet18_loco": freeze(5)}  # your own data, likewise
SMALLER = ("SIZE", "TOPK", "CHANNELS", "_DIM", "DEPTH", "WARMUP_ITERS", "WORLD_SIZE")


@functools.lru_cache
def _resolved(name):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(os.path.join(CONFIGS, f"{name}.yaml"))
    return cfg


def resolved(name):
    return _resolved(name).clone()


def flat(node, prefix=""):
    """{"MODEL.WEIGHTS": ..., ...} of nested dicts."""
    pairs = {}
    for key, value in node.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return pairs


# --- what the files say -----------------------------------------------------------------------------------------------


def test_every_config_is_in_these_tables():
    assert {*ROWS, *DEMO, *CPU} == set(LEAVES)
    bases = {os.path.normpath(os.path.join(os.path.dirname(f), base)) for f in FILES for base in bases_of(f)}
    unused = set(FILES) - set(LEAVES) - {base[: -len(".yaml")] for base in bases}
    assert not unused
    assert len({resolved(name).OUTPUT_DIR for name in LEAVES}) == len(LEAVES)  # no run overwrites another's files


def bases_of(name):
    with open(os.path.join(CONFIGS, f"{name}.yaml")) as f:
        base = yaml.safe_load(f).get("_BASE_", [])
    return base if isinstance(base, list) else [base]


@pytest.mark.parametrize("name", ROWS)
def test_recipes(name):
    row, cfg = ROWS[name], resolved(name)
    assert {key: value_of(cfg, key) for key in row.recipe} == row.recipe
    assert cfg.MODEL.WEIGHTS == row.weights
    assert (cfg.PUBLISHED.BOX_AP, cfg.PUBLISHED.MASK_AP) == (row.published or (0.0, 0.0))
    assert (row.source in cfg.PUBLISHED.ROW) if row.published else cfg.PUBLISHED.ROW == ""
    assert cfg.OUTPUT_DIR == f"output/{name}"
    assert bool(cfg.PUBLISHED.WEIGHTS) == bool(row.published and row.weights != "random")


OURS = re.compile(r".*/(\w+)_(loco|gim|simclr)_(\d+)ep")


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].published and OURS.fullmatch(name)])
def test_the_weights_of_a_row_are_those_of_its_name(name):
    """The method and the epochs of the pretraining config that a row names."""
    encoder, method, epochs = OURS.fullmatch(name).groups()
    recipe = get_pretraining_cfg()
    recipe.merge_from_file(os.path.join(CONFIGS, resolved(name).PUBLISHED.WEIGHTS))
    assert (recipe.MODEL.ENCODER, recipe.SOLVER.EPOCHS) == (encoder, int(epochs))
    short, _ = method_of(recipe, ("res2", "res3", "res4", "res5"))
    assert short.lower() == method


@pytest.mark.parametrize("name", ROWS)
def test_nothing_else_is_changed(name):
    """What a recipe does not name has Detectron2's default."""
    default = get_cfg()
    add_loco_config(default)
    default, cfg = flat(default), flat(resolved(name))
    changed = {key for key in cfg if cfg[key] != default[key]}
    published = {f"PUBLISHED.{key}" for key in ("ROW", "BOX_AP", "MASK_AP", "WEIGHTS")}
    assert changed <= {*ROWS[name].recipe, "MODEL.WEIGHTS", "OUTPUT_DIR", *published}


@pytest.mark.parametrize("name", FILES)
def test_no_file_repeats_its_base(name):
    path = os.path.join(CONFIGS, f"{name}.yaml")
    with open(path) as f:
        own = yaml.safe_load(f)
    own.pop("_BASE_", None)
    inherited = {}
    for base in bases_of(name):
        said = flat(CfgNode.load_yaml_with_base(os.path.join(os.path.dirname(path), base)))
        assert not {key for key, value in said.items() if inherited.get(key) == value}  # of several bases
        inherited |= said
    assert not {key: value for key, value in flat(own).items() if key in inherited and inherited[key] == value}


@pytest.mark.parametrize("name", LEAVES)
def test_leaves_are_short_and_their_first_line_says_what_they_are(name):
    with open(os.path.join(CONFIGS, f"{name}.yaml")) as f:
        lines = f.read().splitlines()
    assert lines[0].startswith("# ") and lines[1].startswith("_BASE_: ") and len(lines) <= 16
    words = {"loco": "LoCo", "gim": "GIM", "simclr": "SimCLR", "800ep": "800 epochs", "100ep": "100 epochs"}
    if "/" in name and name in ROWS and ROWS[name].published:
        said = {word for part, word in words.items() if part in name.split("_")}
        said |= {"ShuffleNet"} if "shufflenetv2" in name else {"R50"}
        said |= {"Cityscapes"} if "cityscapes" in name else {"VOC"} if "/voc_" in name else {"COCO"}
        assert all(word in resolved(name).PUBLISHED.ROW for word in said)


@pytest.mark.parametrize("name", [*DEMO, *CPU])
def test_small_variants_change_data_size_and_schedule_only(name):
    cfg, recipe = resolved(name), {**FPN, **{**DEMO, **CPU}[name]}
    different = {key for key in recipe if value_of(cfg, key) != recipe[key]}
    assert all(any(word in key for word in SMALLER) for key in different), different
    assert (cfg.PUBLISHED.ROW, cfg.PUBLISHED.BOX_AP) == ("", 0.0)
    assert cfg.MODEL.WEIGHTS == "" and cfg.OUTPUT_DIR.startswith("demo_output/" if name in DEMO else "output/")


@pytest.mark.parametrize("name", LEAVES)
def test_recipes_for_gpus_are_named_as_such_on_a_cpu(name):
    cfg = resolved(name)
    cfg.MODEL.DEVICE = "cpu"
    said, (recipe,) = size_warning(cfg), CPU
    assert said is None if name in {*DEMO, *CPU} else said.endswith(f": --config-file configs/{recipe}.yaml")
    cfg.MODEL.DEVICE = "cuda"
    assert size_warning(cfg) is None


def test_what_a_step_takes_on_a_cpu():
    """As benchmarks/detection_step.py has measured it, 9.7 s for 2 images of 800 x 1216; and the schedule's batch of 16
    is for 8 GPUs."""
    cfg = resolved("coco_loco_frozen")
    cfg.MODEL.DEVICE = "cpu"
    assert "two CPU cores take about 8.5 s for a step of 2 images of 800 x 1066 pixels" in size_warning(cfg)
    cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH = 0, 1
    assert size_warning(cfg) is None


# --- every recipe trains ----------------------------------------------------------------------------------------------

SHRUNK = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "OUTPUT_DIR", "", "DATALOADER.NUM_WORKERS", 0, "SEED", 0,
    "PUBLISHED.ROW", "", "PUBLISHED.BOX_AP", 0.0, "PUBLISHED.MASK_AP", 0.0, "PUBLISHED.WEIGHTS", "",
    "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 64, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 64,
    "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.CONV_DIM", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 64,
    "MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20,
    "MODEL.RPN.PRE_NMS_TOPK_TEST", 100, "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
    "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 0,
    "SOLVER.REFERENCE_WORLD_SIZE", 0, "SOLVER.CHECKPOINT_PERIOD", 5000,
]  # fmt: skip


def shrunk(name):
    cfg = resolved(name)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (f"tiny_{cfg.MODEL.ROI_HEADS.NUM_CLASSES}_classes",), ()
    cfg.DATASETS.CUSTOM = CfgNode()
    cfg.merge_from_list(SHRUNK)
    if cfg.MODEL.TIMM.NAME:
        cfg.MODEL.TIMM.NAME = "test_convnext" if "convnext" in cfg.MODEL.TIMM.NAME else "test_vit"
        cfg.MODEL.TIMM.SQUARE_PAD = cfg.INPUT.LSJ.SIZE = 0
        cfg.SOLVER.AMP.ENABLED = False
    return cfg


def groups():
    """The first leaf of each distinct recipe.

    Leaves belong together if they are equal once they are shrunk: those that differ in weights, published figures,
    output folder, data set (of the same number of classes), image sizes, batch and length of the schedule. What is left
    and makes a group is the network, its norms, what is frozen, the number of classes, and the learning rate.
    """
    found = {}
    for name in [*ROWS, *DEMO, *CPU]:
        found.setdefault(shrunk(name).dump(), name)
    return list(found.values())


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two threads gain nothing on tiny tensors, and wait for each other where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory):
    """Four images of 64 x 64 with a square of each of two classes, for the numbers of classes that configs name."""
    folder, rng = tmp_path_factory.mktemp("tiny"), np.random.default_rng(0)
    records = []
    for k in range(4):
        picture, objects = rng.integers(0, 255, (64, 64, 3), np.uint8), []
        for category, (x, y) in enumerate(((4, 6), (30, 28))):
            picture[y : y + 24, x : x + 24] = 250 * category
            corners = [x, y, x + 24, y, x + 24, y + 24, x, y + 24]
            objects.append({"bbox": [x, y, x + 24, y + 24], "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0,
                            "category_id": category, "segmentation": [corners]})  # fmt: skip
        Image.fromarray(picture).save(folder / f"{k}.png")
        record = {"file_name": str(folder / f"{k}.png"), "image_id": k, "height": 64, "width": 64}
        records.append({**record, "annotations": objects})
    names = {shrunk(name).DATASETS.TRAIN[0] for name in groups()}
    for name in names:
        DatasetCatalog.register(name, lambda: records)
    yield
    for name in names:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


def stage_of(name):
    """2 to 5 for what is in that stage of the backbone, 1 for what else it has (the stem), 0 for all other parts."""
    match = re.match(r"backbone\.(?:bottom_up\.|net\.)?(?:stem|encoder|network|res(\d))\.", name)
    return int(match[1] or 1) if match else 0


@pytest.mark.parametrize("name", groups())
def test_every_recipe_trains(name, tiny_data):
    cfg = shrunk(name)
    torch.manual_seed(0)
    model = DefaultTrainer.build_model(cfg)
    freeze_at, norm = cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.NORM
    for part, module in model.named_modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d | nn.SyncBatchNorm):
            kind = {"SyncBN": nn.SyncBatchNorm, "naiveSyncBN": NaiveSyncBatchNorm}[norm]
            frozen = 0 < stage_of(part) <= freeze_at
            assert type(module) is (FrozenBatchNorm2d if frozen else kind), part
    frozen = {k for k, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {k for k, _ in model.named_parameters() if 0 < stage_of(k) <= freeze_at}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer, loader = build_optimizer(cfg, model), iter(build_detection_train_loader(cfg))
    model.train()
    with EventStorage():
        for _ in range(2):
            losses = model(next(loader))
            masks = {"loss_mask"} if cfg.MODEL.MASK_ON else set()
            assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", *masks}
            assert all(torch.isfinite(loss) for loss in losses.values()), losses
            optimizer.zero_grad()
            sum(losses.values()).backward()
            for k, p in model.named_parameters():
                assert (p.grad is None) if k in frozen else torch.isfinite(p.grad).all(), k
            optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert not {k for k in changed if 0 < stage_of(k) <= freeze_at}
    learning = {k for k, p in model.named_parameters() if k not in frozen and p.ndim > 1}
    statistics = {k for k in before if k.endswith("running_mean") and not 0 < stage_of(k) <= freeze_at}
    assert learning | statistics <= changed
