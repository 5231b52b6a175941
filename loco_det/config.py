"""The keys that loco-det adds to Detectron2's config."""

import torch
from detectron2.config import CfgNode as CN

from pretrain.processes.cores import default_workers


def add_loco_config(cfg: CN) -> None:
    """Add loco-det's keys, with their defaults, to a Detectron2 config.

    Of Detectron2's own keys, ``MODEL.WEIGHTS`` also takes ``random``, for a random initialisation. Empty or incomplete
    weights are an error.

    Args:
        cfg: the config of ``detectron2.config.get_cfg()``; changed in place.
    """
    cfg.DATALOADER.NUM_WORKERS = default_workers(4)  # Detectron2 has 4, however few cores there are
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.MODEL.KEEP_FREED_MEMORY = True  # on a CPU, for speed (pretrain/processes/cpu.py); False: for other processes

    # On a CPU: train in bfloat16 where it has instructions for it (loco_det/modeling/precision.py), else in float32. On
    # a GPU, only SOLVER.AMP.ENABLED counts
    cfg.SOLVER.AMP.AUTO = False

    cfg.SOLVER.OPTIMIZER = "SGD"  # or "AdamW", which takes neither SOLVER.MOMENTUM nor NESTEROV
    # Layer-wise decay: the learning rate of a layer of a network of timm is that of the layer after it times this
    # (loco_det/modeling/timm/layers.py). 1: none
    cfg.SOLVER.LAYER_DECAY = 1.0

    # Large-scale jitter in training, in place of INPUT.MIN_SIZE_TRAIN, MAX_SIZE_TRAIN and CROP: an image is resized to
    # fit into a square of SIZE times a random scale, and cropped to the square. SIZE 0: none
    cfg.INPUT.LSJ = CN()
    cfg.INPUT.LSJ.SIZE = 0
    cfg.INPUT.LSJ.MIN_SCALE = 0.1
    cfg.INPUT.LSJ.MAX_SCALE = 2.0

    # Pixels of training and test images are Detectron2's bit for bit. False: they are within 1 level (of 255) of them,
    # and images are resized faster (loco_det/data/resize.py)
    cfg.INPUT.EXACT_RESIZE = False

    # Name of the encoder, for pretrain.encoders.build_encoder. Only the backbones build_encoder_backbone and
    # build_encoder_fpn_backbone (loco_det/modeling/backbones.py) use it
    cfg.MODEL.ENCODER = ""

    # A network of timm as the backbone. Only the backbones build_timm_backbone and build_timm_fpn_backbone
    # (loco_det/modeling/timm/) use it; MODEL.BACKBONE.FREEZE_AT 99 freezes any of them
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = ""  # timm's name: convnext_tiny, vit_small_patch16_224, swin_tiny_patch4_window7_224, ...
    cfg.MODEL.TIMM.DROP_PATH = 0.0  # rate of stochastic depth in the last block; what is frozen has none
    cfg.MODEL.TIMM.FINAL_NORM = False  # whether a plain ViT's map goes through its final norm; ViTDet's does not
    # Side of the square that images are padded to, so that the positions of a ViT are those of training on squares, as
    # in ViTDet; 0: they are padded to multiples of 32
    cfg.MODEL.TIMM.SQUARE_PAD = 0

    # A backbone that is entirely frozen runs without autograd, with its norms folded into its convolutions
    # (loco_det/modeling/frozen.py). COMPILE: also with torch.compile, which needs a C++ compiler and takes a minute
    cfg.MODEL.FAST_FROZEN = CN()
    cfg.MODEL.FAST_FROZEN.ENABLED = True
    cfg.MODEL.FAST_FROZEN.COMPILE = False

    # The detector of tools/light_head.py (loco_det/modeling/light_detector.py), a head on stored features of a frozen
    # backbone
    cfg.MODEL.LIGHT_HEAD = CN()
    cfg.MODEL.LIGHT_HEAD.FINEST_STRIDE = 8  # it reads the stages of this stride, and all coarser ones
    cfg.MODEL.LIGHT_HEAD.WIDTH = 64  # channels of its convolutions
    cfg.MODEL.LIGHT_HEAD.FEATURES = ""  # folder of the features, for all runs on a backbone; "": OUTPUT_DIR/features
    cfg.MODEL.LIGHT_HEAD.TRAIN_IMAGES = 0  # the most that are used of a data set, drawn by hash; 0: all
    cfg.MODEL.LIGHT_HEAD.TEST_IMAGES = 0

    # Custom data in COCO format. With TRAIN_JSON or TEST_JSON, DATASETS.TRAIN and TEST become <NAME>_train and
    # <NAME>_test, and the number of classes is taken from the file
    cfg.DATASETS.CUSTOM = CN()
    cfg.DATASETS.CUSTOM.NAME = "custom"
    cfg.DATASETS.CUSTOM.TRAIN_JSON = ""  # COCO instance annotations; their file names are relative to TRAIN_IMAGES
    cfg.DATASETS.CUSTOM.TRAIN_IMAGES = ""
    cfg.DATASETS.CUSTOM.TEST_JSON = ""
    cfg.DATASETS.CUSTOM.TEST_IMAGES = ""

    # Percent of the images of DATASETS.TRAIN, drawn by hash, that are not trained on but evaluated in place of
    # DATASETS.TEST (loco_det/data/held_out.py): for the choice of a learning rate, say. 0: none
    cfg.DATASETS.HELD_OUT = 0

    # Whether file names in annotations may point outside the image folder, as ../other/a.jpg and absolute paths do.
    # Allow it only for annotations that you trust, because training reads every file that they name
    cfg.DATASETS.ALLOW_OUTSIDE = False

    # Evaluator of COCO-format data: "fast" (hotcoco, whose figures equal pycocotools' bit for bit;
    # loco_det/evaluation/coco.py) or "pycocotools"
    cfg.TEST.COCO_EVALUATOR = "fast"

    # Number of test images that are drawn after the last evaluation, ground truth and prediction side by side
    cfg.TEST.NUM_PICTURES = 8
    cfg.TEST.PICTURE_THRESHOLD = 0.5  # lowest score of a drawn prediction

    # Project of Weights & Biases that scalars are also written to; needs wandb. "": none
    cfg.WANDB = CN()
    cfg.WANDB.PROJECT = ""

    # Published results of exactly this config, in percent; 0: none. They are printed beside the result of a run whose
    # config differs from the file in configs/ in no key that affects the result (loco_det/runs/published.py)
    cfg.PUBLISHED = CN()
    cfg.PUBLISHED.ROW = ""  # table and row of the paper, in words
    cfg.PUBLISHED.BOX_AP = 0.0
    cfg.PUBLISHED.MASK_AP = 0.0
    # Weights of that row, unless MODEL.WEIGHTS is random: the config of their pretraining (a file in configs/), or the
    # name of a released file, which may end with the first digits of its SHA-256
    cfg.PUBLISHED.WEIGHTS = ""
