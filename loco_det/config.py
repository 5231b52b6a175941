"""The keys that loco-det adds to Detectron2's config."""

import torch
from detectron2.config import CfgNode as CN


def add_loco_config(cfg):
    """Add loco-det's keys, with their defaults, to a Detectron2 config.

    Of Detectron2's own keys, ``MODEL.WEIGHTS`` takes the word ``random`` for a random initialisation; empty or
    incomplete weights are an error.

    Args:
        cfg: what ``detectron2.config.get_cfg()`` returned; changed in place.
    """
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

    # Name for pretrain.encoders.build_encoder, read by the two backbones of loco_det/modeling/backbones.py,
    # build_encoder_backbone and build_encoder_fpn_backbone; Detectron2's own ResNet does not read it
    cfg.MODEL.ENCODER = ""

    # A backbone that is frozen as a whole runs without autograd, with its norms folded into its convs
    # (loco_det/modeling/frozen.py). COMPILE: also through torch.compile, which needs a C++ compiler and a minute
    cfg.MODEL.FAST_FROZEN = CN()
    cfg.MODEL.FAST_FROZEN.ENABLED = True
    cfg.MODEL.FAST_FROZEN.COMPILE = False

    # Your own data in COCO format. With TRAIN_JSON or TEST_JSON set, DATASETS.TRAIN and TEST become <NAME>_train and
    # <NAME>_test, and the number of classes is taken from the file.
    cfg.DATASETS.CUSTOM = CN()
    cfg.DATASETS.CUSTOM.NAME = "custom"
    cfg.DATASETS.CUSTOM.TRAIN_JSON = ""  # COCO instance annotations, and the folder that their file names start from
    cfg.DATASETS.CUSTOM.TRAIN_IMAGES = ""
    cfg.DATASETS.CUSTOM.TEST_JSON = ""
    cfg.DATASETS.CUSTOM.TEST_IMAGES = ""

    # Whether file names in annotations may lead out of the folder of images, as ../other/a.jpg and absolute paths do.
    # Training reads whatever they name, so allow it for annotations that you trust only
    cfg.DATASETS.ALLOW_OUTSIDE = False

    # What evaluates COCO-format data: "fast" (hotcoco, which gives pycocotools' figures bit for bit;
    # loco_det/evaluation/coco.py) or "pycocotools"
    cfg.TEST.COCO_EVALUATOR = "fast"

    # After the last evaluation, this many test images are drawn with ground truth and prediction side by side
    cfg.TEST.NUM_PICTURES = 8
    cfg.TEST.PICTURE_THRESHOLD = 0.5  # lowest score that is drawn

    # Scalars also go to this project of Weights & Biases, if it is named and wandb is installed
    cfg.WANDB = CN()
    cfg.WANDB.PROJECT = ""

    # What has been published for just this config, in percent; 0: no figure. It is printed beside the result of a run
    # that differs from the file in configs/ in nothing that bears on it (loco_det/runs/published.py)
    cfg.PUBLISHED = CN()
    cfg.PUBLISHED.ROW = ""  # which row of which table, in words
    cfg.PUBLISHED.BOX_AP = 0.0
    cfg.PUBLISHED.MASK_AP = 0.0
    # The row's weights, if not MODEL.WEIGHTS random: the recipe of their pretraining (a file in configs/), or the name
    # of a released file, which may end with the first digits of its SHA-256
    cfg.PUBLISHED.WEIGHTS = ""
