"""Which runs may stand in one ranking: those that differ in nothing but their backbone, their rate and their seed."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import detectron2

from pretrain.files.results import Comparability
from pretrain.files.version import version

from .published import FREE, default_config, flat

# Keys of the config that must be equal
COUNTED = re.compile(
    r"MODEL\.(LOAD_PROPOSALS|MASK_ON|KEYPOINT_ON|META_ARCHITECTURE|BACKBONE\.(NAME|FREEZE_AT)"
    r"|(FPN|PROPOSAL_GENERATOR|ANCHOR_GENERATOR|RPN|ROI_\w+|SEM_SEG_HEAD|PANOPTIC_FPN|RETINANET)\..*"
    r"|LIGHT_HEAD\.(FINEST_STRIDE|WIDTH)|TIMM\.(DROP_PATH|FINAL_NORM|SQUARE_PAD)"
    r"|RESNETS\.(OUT_FEATURES|NORM|RES5_DILATION|DEFORM_\w+))"
    r"|INPUT\.(MIN_SIZE_\w+|MAX_SIZE_\w+|RANDOM_FLIP|CROP\..*|LSJ\..*|MASK_FORMAT)"
    r"|DATASETS\.(HELD_OUT|PROPOSAL_FILES_\w+|PRECOMPUTED_\w+)"
    r"|DATALOADER\.(ASPECT_RATIO_GROUPING|SAMPLER_TRAIN|REPEAT_\w+|FILTER_EMPTY_ANNOTATIONS)"
    r"|SOLVER\.(LR_SCHEDULER_NAME|MAX_ITER|BASE_LR_END|MOMENTUM|NESTEROV|WEIGHT_DECAY\w*|GAMMA|STEPS|NUM_DECAYS"
    r"|WARMUP_\w+|OPTIMIZER|LAYER_DECAY|RESCALE_INTERVAL|IMS_PER_BATCH|BIAS_LR_FACTOR|CLIP_GRADIENTS\..*)"
    r"|TEST\.(KEYPOINT_OKS_SIGMAS|DETECTIONS_PER_IMAGE|AUG\..*|PRECISE_BN\..*)"
)
# What the backbone is, as its checkpoint says; the learning rate, which is chosen for each row; the data sets' names,
# which have their content instead; the precision, which AUTO chooses by the machine; a key that nothing reads
NOT_COUNTED = re.compile(
    r"MODEL\.(ENCODER|TIMM\.NAME|PIXEL_MEAN|PIXEL_STD"
    r"|RESNETS\.(DEPTH|NUM_GROUPS|WIDTH_PER_GROUP|STRIDE_IN_1X1|RES2_OUT_CHANNELS|STEM_OUT_CHANNELS))"
    r"|INPUT\.FORMAT|SOLVER\.(BASE_LR|AMP\.ENABLED)|DATASETS\.(TRAIN|TEST)|GLOBAL\.HACK"
)
KEY_DIGITS = 12
EVERYTHING = 5  # FREEZE_AT from which a backbone learns nothing
EVERY_BLOCK = 99  # from which a network of timm does, whatever its number of blocks


def comparability(config: Mapping[str, Any], facts: Mapping[str, Any]) -> Comparability:
    """The settings of a run that must be equal in all rows of one ranking, and their key.

    Args:
        config: of the run, nested dicts or a CfgNode; keys that it lacks have their defaults.
        facts: of its data and training, values that JSON has, by names that are no keys of the config.

    Returns:
        Comparability: of the settings of the config that count, the facts, and the versions of loco-det (its release)
        and Detectron2. Keys that are in no list count.
    """
    values = flat(default_config()) | flat(config)
    values = {key: value for key, value in values.items() if counts(key)}
    fpn = "fpn" in values["MODEL.BACKBONE.NAME"]
    parts, timm = values["MODEL.BACKBONE.FREEZE_AT"], "timm" in values["MODEL.BACKBONE.NAME"]
    values["MODEL.BACKBONE.NAME"] = re.sub("resnet|encoder|timm", "*", values["MODEL.BACKBONE.NAME"])
    if fpn:  # its levels have names of their own, whatever those of the stages
        del values["MODEL.RESNETS.OUT_FEATURES"]
        values["MODEL.FPN.IN_FEATURES"] = len(values["MODEL.FPN.IN_FEATURES"])
    some = timm and 0 < parts < EVERY_BLOCK  # of a ViT's blocks, say
    values["MODEL.BACKBONE.FREEZE_AT"] = f"{parts} of a network of timm" if some else min(parts, EVERYTHING)
    trained_res5 = values["MODEL.ROI_HEADS.NAME"].startswith("Res5")
    if values["MODEL.BACKBONE.FREEZE_AT"] == EVERYTHING and not trained_res5:
        values["MODEL.RESNETS.NORM"] = "FrozenBN"  # whatever the config has
    versions = {"loco-det": version().partition("+")[0], "detectron2": detectron2.__version__}
    settings = values | json.loads(json.dumps(dict(facts))) | versions
    return Comparability(key_of(settings), settings)


def counts(key: str) -> bool:
    """Whether two runs with other values of a key of the config cannot be compared."""
    return not (FREE.fullmatch(key) or NOT_COUNTED.fullmatch(key))


def key_of(settings: Mapping[str, Any]) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of settings as JSON, with sorted keys and without spaces."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]
