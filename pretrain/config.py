"""The pretraining config: every key, its default and what it means. Unknown keys are errors."""

import contextlib
from typing import Any

import torch
from fvcore.common.config import CfgNode as CN

from .engine.precision import AUTO
from .processes.cores import default_workers

CHOICES = {"SOLVER.AMP.ENABLED": (True, False, AUTO)}  # keys with values of several types, which yacs refuses


class Config(CN):
    """fvcore's CfgNode, which also merges the keys of ``CHOICES``; ValueError if a value is not among a key's."""

    @classmethod
    def _decode_cfg_value(cls, value: Any) -> Any:
        return CN._decode_cfg_value(value)  # groups become CN like those of get_cfg: yacs merges no other class

    def merge_from_other_cfg(self, cfg_other: CN) -> None:
        """Merge a config, such as one from a file.

        Raises:
            KeyError: if a key is unknown.
            ValueError: if a value has another type than the default, or is not among ``CHOICES``.
        """
        for key in CHOICES:
            with contextlib.suppress(KeyError, TypeError):  # not in cfg_other, or a part of the key is no group there
                self._take_type(key, value_of(cfg_other, key))
        super().merge_from_other_cfg(cfg_other)

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        """Merge ["SOLVER.EPOCHS", "100", ...]; text values are read as Python literals.

        Raises:
            AssertionError: if a key is unknown.
            ValueError: if a value has another type than the default, or is not among ``CHOICES``.
        """
        for key, value in zip(cfg_list[::2], cfg_list[1::2], strict=False):
            if key in CHOICES:
                self._take_type(key, value)
        super().merge_from_list(cfg_list)

    def _take_type(self, key: str, value: Any) -> None:
        """Set a key of ``CHOICES`` before a merge, so that yacs finds the old value's type to be the new one's."""
        value, choices = self._decode_cfg_value(value), CHOICES[key]
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise ValueError(f"{key} is {value}, but must be {', '.join(map(str, choices[:-1]))} or {choices[-1]}")
        group, _, name = key.rpartition(".")
        value_of(self, group)[name] = value


def get_cfg() -> Config:
    """A new config with the defaults: LoCo ResNet-50 as in the paper."""
    _C = Config()
    _C.OUTPUT_DIR = "./output/pretrain"
    _C.SEED = 0  # of initialisation, order of the data and augmentation

    _C.DATASETS = CN()
    _C.DATASETS.TRAIN = "datasets/imagenet/train"  # folder of images; sub-folders are read, their names ignored
    _C.DATASETS.MAX_UNREADABLE = 0.01  # stop when a larger share of the images cannot be read

    _C.KNN = CN()  # accuracy of a weighted kNN classifier on every stage's pooled features, while training
    _C.KNN.TRAIN = ""  # folder with one sub-folder of images per class; "": no kNN
    _C.KNN.TEST = ""  # another such folder; "": each image of TRAIN is classified by the others (small folders)
    _C.KNN.PERIOD = 5.0  # epochs; and after the last iteration
    _C.KNN.K = 200  # neighbours and temperature of Wu et al. 2018 (arXiv 1805.01978)
    _C.KNN.TEMPERATURE = 0.07

    _C.DATALOADER = CN()
    # Processes that decode and augment; each keeps two batches in /dev/shm. 0: none. Default: one a core, 8 at most
    _C.DATALOADER.NUM_WORKERS = default_workers(8)

    _C.INPUT = CN()  # SimCLR's augmentation (arXiv 2002.05709, Appendix A)
    _C.INPUT.CROP_SIZE = 224  # side of a view, in pixels
    _C.INPUT.CROP_AREA = [0.08, 1.0]  # range of the crop's share of the image's area
    _C.INPUT.JITTER = [0.8, 0.8, 0.8, 0.2]  # of brightness, contrast, saturation and hue, in this order
    _C.INPUT.JITTER_PROB = 0.8
    _C.INPUT.GRAYSCALE_PROB = 0.2
    _C.INPUT.BLUR_PROB = [0.5, 0.5]  # of the first and of the second view
    _C.INPUT.BLUR_SIGMA = [0.1, 2.0]  # in pixels
    _C.INPUT.SOLARIZE_PROB = [0.0, 0.0]  # of the first and of the second view (BYOL, Barlow Twins)
    _C.INPUT.ON_DEVICE = False  # loaders only crop and flip; MODEL.DEVICE augments the rest in batches (kornia)

    _C.MODEL = CN()
    _C.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    _C.MODEL.KEEP_FREED_MEMORY = True  # on a CPU, for speed (pretrain/processes/cpu.py); False: for other processes
    # A name in pretrain/encoders/base.py; "timm:NAME", a ViT, ConvNeXt, Swin or RegNet of timm (docs/timm_pretrain.md);
    # or package.module.function of your own
    _C.MODEL.ENCODER = "resnet50"
    _C.MODEL.ZERO_INIT_RESIDUAL = False  # ResNets begin as identities: 0 is the last BN's weight in each block
    _C.MODEL.PIXEL_MEAN = [123.675, 116.280, 103.530]  # RGB; the detector has to use the same
    _C.MODEL.PIXEL_STD = [58.395, 57.120, 57.375]
    # Each unit is a run of stages with one loss on top; the gradient stops at the unit's input (pretrain/learning/).
    # The default is LoCo; add ["res2"] for the fourth loss that the paper's supplement plots. "res3[:1]" is the first
    # block of res3.
    _C.MODEL.UNITS = [["res2", "res3"], ["res3", "res4"], ["res4", "res5"]]
    _C.MODEL.SHARED_GRADIENT = "all"  # a stage in several units learns from "all" their losses or the "upper" (Table 5)
    _C.MODEL.NOISE = 0.0  # Gaussian, x the standard deviation of a stage's output, added to it (blockwise: 0.25)
    _C.MODEL.RECOMPUTE = []  # stages, or blocks as "res3[:2]", that run forward again in backward, to save memory
    _C.MODEL.COMPILE = False  # torch.compile for decoders and for stages that only one loss reaches

    # Several devices share the stages of one network (docs/stage_parallel.md). Processes: a multiple of DEVICES, which
    # divide the batch
    _C.MODEL.STAGE_PARALLEL = CN()
    _C.MODEL.STAGE_PARALLEL.DEVICES = 1  # that train a run of stages each; 1: every process has the whole network
    # Stages of each device, such as [["res2", "res3"], ["res4", "res5"]]; []: chosen by measured times
    _C.MODEL.STAGE_PARALLEL.SPLIT = []
    _C.MODEL.STAGE_PARALLEL.LATE = False  # use gradients from the device above one batch later: nobody waits for them
    _C.MODEL.STAGE_PARALLEL.TRACE = 0  # iterations whose passes go to trace.json (Chrome, Perfetto) and timeline.png

    _C.MODEL.DECODER = CN()
    _C.MODEL.DECODER.STAGES = 0  # copies of the encoder's next stages, not shared with it (Table 4); -1: all the rest
    _C.MODEL.DECODER.TIE = 0.0  # weight of the L2 penalty that ties these copies to the originals (Table 5)
    _C.MODEL.DECODER.CONV_BLOCKS = 1  # residual conv blocks before the pooling (LoCo, Sec. 4.2); 0: SimCLR's head
    _C.MODEL.DECODER.DOWNSAMPLE = True  # stride 2 in the first conv block (65.1 against 63.6, Table 4)
    _C.MODEL.DECODER.EXPANSION = 0  # channels of a 1x1 conv, BN and ReLU before the pooling (blockwise: 2048); 0: none
    # Numbers that the pooling keeps of a map: means over the cells of a grid, as many as give these with the channels
    # ("LSP", local spatial pooling, of blockwise: 2048); 0: the mean over the map ("GSP", global spatial pooling)
    _C.MODEL.DECODER.POOL_FEATURES = 0
    _C.MODEL.DECODER.MLP_LAYERS = 2
    _C.MODEL.DECODER.HIDDEN_DIM = 2048  # of the MLP; not stated in the paper, SimCLR's for ResNet-50
    _C.MODEL.DECODER.OUT_DIM = 128
    _C.MODEL.DECODER.OUT_BN = True  # BN without offset after the last layer; not stated in the paper, SimCLR's code

    _C.LOSS = CN()
    _C.LOSS.NAME = "info_nce"  # or barlow_twins or vicreg
    _C.LOSS.TEMPERATURE = 0.1  # of info_nce; not stated in the LoCo paper; SimCLR's
    _C.LOSS.LAMBDA = 0.0051  # of barlow_twins: weight of the off-diagonal terms
    _C.LOSS.VICREG = [25.0, 25.0, 1.0]  # of vicreg: weights of invariance, variance and covariance (lambda, mu, nu)
    _C.LOSS.SCALE = 1.0  # of every loss (blockwise Barlow Twins: 0.024)

    _C.SOLVER = CN()
    _C.SOLVER.OPTIMIZER = "LARS"  # LARS, SGD or AdamW
    _C.SOLVER.IMS_PER_BATCH = 4096  # images in a step, over all processes; each gives two views
    _C.SOLVER.BASE_LR = 0.3  # for 256 images: the learning rate is BASE_LR * IMS_PER_BATCH / 256
    _C.SOLVER.BIAS_LR_FACTOR = 1.0  # learning rate of biases and norms, x that of the weights (Barlow Twins: 0.024)
    _C.SOLVER.IMS_PER_CHUNK = 0  # images of a process that go through the network at a time (GradCache); 0: all
    _C.SOLVER.MOMENTUM = 0.9  # of LARS and SGD
    # Not stated in the LoCo paper; SimCLR's paper (its code: 1e-4). None on norms, biases, class tokens, positions
    _C.SOLVER.WEIGHT_DECAY = 1e-6
    _C.SOLVER.EPOCHS = 800.0  # may be a fraction
    _C.SOLVER.WARMUP_EPOCHS = 10.0
    # Units learn one after the other, from the image upwards, each for an equal share of EPOCHS with a warm-up of
    # WARMUP_EPOCHS and a cosine of its own; stages below the learning unit are frozen, stages above do not run
    _C.SOLVER.SEQUENTIAL = False
    _C.SOLVER.MAX_LOSS = 1e6  # stop when a unit's loss exceeds it
    _C.SOLVER.CHECKPOINT_PERIOD = 5000  # iterations
    _C.SOLVER.CHECKPOINTS_KEPT = 3  # the newest ones, and model_final.pth
    _C.SOLVER.LOG_PERIOD = 20  # iterations between lines on the terminal and in metrics.json

    _C.SOLVER.AMP = CN()
    # bfloat16 autocast of the forward passes; the losses stay in float32. auto: if MODEL.DEVICE is faster with it
    # (pretrain/engine/precision.py); decided when the run begins, and config.yaml then says True or False
    _C.SOLVER.AMP.ENABLED = False
    return _C


def check(cfg: CN) -> None:
    """Refuse values that would fail late in a run, or train something meaningless.

    Raises:
        ValueError: naming the key.
    """
    least = {
        "DATALOADER.NUM_WORKERS": 0, "INPUT.CROP_SIZE": 1, "KNN.K": 1, "LOSS.LAMBDA": 0, "MODEL.NOISE": 0,
        "MODEL.DECODER.STAGES": -1, "MODEL.DECODER.TIE": 0, "MODEL.DECODER.CONV_BLOCKS": 0,
        "MODEL.DECODER.EXPANSION": 0, "MODEL.DECODER.POOL_FEATURES": 0, "MODEL.DECODER.MLP_LAYERS": 1,
        "MODEL.DECODER.HIDDEN_DIM": 1, "MODEL.DECODER.OUT_DIM": 1,
        "MODEL.STAGE_PARALLEL.DEVICES": 1, "MODEL.STAGE_PARALLEL.TRACE": 0, "SEED": 0, "SOLVER.IMS_PER_CHUNK": 0,
        "SOLVER.IMS_PER_BATCH": 2 if cfg.MODEL.UNITS else 1,  # one image has no negatives
        "SOLVER.WARMUP_EPOCHS": 0, "SOLVER.WEIGHT_DECAY": 0, "SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.LOG_PERIOD": 1,
        "SOLVER.CHECKPOINTS_KEPT": 1, "SOLVER.BIAS_LR_FACTOR": 0,
    }  # fmt: skip
    for key, bound in least.items():
        if value_of(cfg, key) < bound:
            raise ValueError(f"{key} is {value_of(cfg, key)}, but must be at least {bound}")
    for key in ("KNN.PERIOD", "KNN.TEMPERATURE", "LOSS.TEMPERATURE", "LOSS.SCALE", "SOLVER.EPOCHS", "SOLVER.BASE_LR",
                "SOLVER.MAX_LOSS"):  # fmt: skip
        if value_of(cfg, key) <= 0:
            raise ValueError(f"{key} is {value_of(cfg, key)}, but must be above 0")
    for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
        if len(value_of(cfg, key)) != 3 or (key == "MODEL.PIXEL_STD" and min(value_of(cfg, key)) <= 0):
            raise ValueError(f"{key} is {value_of(cfg, key)}, but must be three numbers, deviations above 0")
    for key in ("INPUT.CROP_AREA", "INPUT.BLUR_SIGMA"):
        limits = value_of(cfg, key)
        if len(limits) != 2 or not 0 < limits[0] <= limits[1]:
            raise ValueError(f"{key} is {limits}, but must be two numbers, the smaller one first, above 0")
    for key, count in (("INPUT.BLUR_PROB", 2), ("INPUT.SOLARIZE_PROB", 2), ("INPUT.JITTER", 4)):
        if len(value_of(cfg, key)) != count or not all(0 <= x <= 1 for x in value_of(cfg, key)):
            raise ValueError(f"{key} is {value_of(cfg, key)}, but must be {count} numbers from 0 to 1")
    for key in ("INPUT.JITTER_PROB", "INPUT.GRAYSCALE_PROB", "SOLVER.MOMENTUM"):
        if not 0 <= value_of(cfg, key) <= 1:
            raise ValueError(f"{key} is {value_of(cfg, key)}, but must be from 0 to 1")
    if cfg.INPUT.CROP_AREA[1] > 1:
        raise ValueError(f"INPUT.CROP_AREA is {cfg.INPUT.CROP_AREA}, but a crop cannot be more than 1, the whole image")
    if cfg.INPUT.JITTER[3] > 0.5:
        raise ValueError(f"INPUT.JITTER is {cfg.INPUT.JITTER}, but hue, the last, is at most 0.5 turns")
    if len(cfg.LOSS.VICREG) != 3 or min(cfg.LOSS.VICREG) < 0 or not any(cfg.LOSS.VICREG):
        raise ValueError(f"LOSS.VICREG is {cfg.LOSS.VICREG}, but must be three numbers, none below 0 and one above")
    choices = {"MODEL.SHARED_GRADIENT": ("all", "upper"), "LOSS.NAME": ("info_nce", "barlow_twins", "vicreg")}
    for key, known in choices.items():
        if value_of(cfg, key) not in known:
            raise ValueError(f"{key} is {value_of(cfg, key)!r}: choose {' or '.join(known)}")
    if not all(isinstance(unit, list | tuple) and all(isinstance(s, str) for s in unit) for unit in cfg.MODEL.UNITS):
        raise ValueError(f"MODEL.UNITS is {cfg.MODEL.UNITS}, but must be a list of lists of stage names")
    parallel = cfg.MODEL.STAGE_PARALLEL
    if parallel.SPLIT and len(parallel.SPLIT) != parallel.DEVICES:
        raise ValueError(
            f"MODEL.STAGE_PARALLEL.SPLIT has {len(parallel.SPLIT)} devices, but MODEL.STAGE_PARALLEL.DEVICES is "
            f"{parallel.DEVICES}"
        )
    if not all(isinstance(part, list | tuple) and all(isinstance(s, str) for s in part) for part in parallel.SPLIT):
        raise ValueError(f"MODEL.STAGE_PARALLEL.SPLIT is {parallel.SPLIT}, but must be a list of lists of stage names")
    for key in ("LATE", "TRACE"):
        if parallel[key] and parallel.DEVICES == 1:
            raise ValueError(f"MODEL.STAGE_PARALLEL.{key} is without effect on one device: set DEVICES to 2 or more")
    if cfg.MODEL.DECODER.TIE and not cfg.MODEL.DECODER.STAGES:
        raise ValueError("MODEL.DECODER.TIE ties copies of stages: set MODEL.DECODER.STAGES to 1 or more")


def value_of(cfg: CN, key: str) -> Any:
    """The value of a key such as "SOLVER.EPOCHS"; KeyError or TypeError if there is none."""
    value: Any = cfg
    for part in key.split("."):
        value = value[part]
    return value
