"""What the study compares: its rows, which are the paper's recipes in configs/pretrain, and the tables made of them."""

from typing import NamedTuple


class Row(NamedTuple):
    """A way to learn an encoder.

    Attributes:
        recipe: name of its file below configs/pretrain, without .yaml.
        method: its name in the tables.
        rate_of: the row whose learning rate it takes; "": its own, tuned.
        keys: what else it needs at a small scale, over the scale's file.
    """

    recipe: str
    method: str
    rate_of: str = ""
    keys: dict = {}


# 8192-8192-8192 is for batches of 2048; a projector as wide as the batch of 256 allows to decorrelate
_PROJECTOR = {"MODEL.DECODER.HIDDEN_DIM": 1024, "MODEL.DECODER.OUT_DIM": 1024}


def _late(*split):
    """Keys of LoCo on several devices, with updates one batch late."""
    values = {"DEVICES": len(split), "SPLIT": [list(stages) for stages in split], "LATE": True}
    return {f"MODEL.STAGE_PARALLEL.{key}": value for key, value in values.items()}


ROWS = {
    "random": Row("imagenet/resnet50_random", "random weights", rate_of="random"),
    "simclr": Row("imagenet/resnet50_simclr_100ep", "SimCLR"),
    "simclr_conv": Row("ablations/decoder/end_to_end_conv", "SimCLR"),
    "gim": Row("imagenet/resnet50_gim_100ep", "GIM"),
    "gim_conv": Row("ablations/decoder/local_conv", "GIM"),
    "loco": Row("imagenet/resnet50_loco_100ep", "LoCo"),
    "barlow": Row("imagenet/resnet50_barlow_300ep", "Barlow Twins", keys=_PROJECTOR),
    "blockwise_barlow": Row(
        "imagenet/resnet50_blockwise_barlow_300ep",
        "blockwise Barlow Twins",
        keys={**_PROJECTOR, "MODEL.DECODER.EXPANSION": 512},
    ),
    # the other rows of Table 4
    "simclr_mlp": Row("ablations/decoder/end_to_end_mlp", "SimCLR", "simclr"),
    "gim_conv_no_downsampling": Row("ablations/decoder/local_conv_no_downsampling", "GIM", "gim_conv"),
    "gim_2_conv": Row("ablations/decoder/local_2_conv", "GIM", "gim_conv"),
    "gim_1_stage": Row("ablations/decoder/local_1_stage", "GIM", "gim_conv"),
    "gim_full_network": Row("ablations/decoder/local_full_network", "GIM", "gim_conv"),
    "gim_mlp": Row("ablations/decoder/local_mlp", "GIM", "gim"),
    "loco_none": Row("ablations/decoder/local_none_sharing", "LoCo", "loco"),
    "loco_mlp": Row("ablations/decoder/local_mlp_sharing", "LoCo", "loco"),
    # the other rows of Table 5
    "upper_gradient": Row("ablations/sharing/upper_gradient", "LoCo, upper gradient only", "loco"),
    "tie_1e-4": Row("ablations/sharing/tie_1e-4", "GIM, L2 tie 1e-4", "gim_conv"),
    "tie_1e-3": Row("ablations/sharing/tie_1e-3", "GIM, L2 tie 1e-3", "gim_conv"),
    "tie_1e-2": Row("ablations/sharing/tie_1e-2", "GIM, L2 tie 1e-2", "gim_conv"),
    "share_1_block": Row("ablations/sharing/1_block", "LoCo, 1 block shared", "loco"),
    # docs/stage_parallel.md: every stage but the last one learns one batch late, or res3 alone
    "loco_late": Row(
        "imagenet/resnet50_loco_100ep", "late: res2, res3, res4", "loco", _late(["res2"], ["res3"], ["res4"], ["res5"])
    ),
    "loco_late_2": Row("imagenet/resnet50_loco_100ep", "late: res3", "loco", _late(["res2", "res3"], ["res4", "res5"])),
}
MAIN = ("random", "simclr", "simclr_conv", "gim", "gim_conv", "loco", "barlow", "blockwise_barlow")
TUNED = tuple(name for name in MAIN if not ROWS[name].rate_of)
# Rows of the paper's tables with its ImageNet top-1 of a ResNet-50 after 100 epochs
TABLE4 = {
    "simclr": 65.7, "simclr_conv": 65.6, "simclr_mlp": 67.1,
    "gim": 60.9, "gim_conv": 65.1, "gim_conv_no_downsampling": 63.6, "gim_2_conv": 65.8, "gim_1_stage": 65.8,
    "gim_full_network": 65.8, "gim_mlp": 62.3,
    "loco_none": 64.9, "loco": 66.2, "loco_mlp": 67.5,
}  # fmt: skip
# Two blocks of a ResNet-18 are the stage: "share 2 blocks" (65.3) is "share 1 stage", LoCo, here
TABLE5 = {
    "gim_conv": 65.1, "upper_gradient": 65.3, "tie_1e-4": 65.5, "tie_1e-3": 66.0, "tie_1e-2": 65.9,
    "share_1_block": 64.8, "loco": 66.2,
}  # fmt: skip
LATE = ("loco", "loco_late_2", "loco_late")
CROP96 = "imagenette96_resnet18_crop96"
# Scales that differ from the study's in one thing that might decide the order of the methods, and rows to see it by. A
# stage's receptive field has as many pixels whatever the crop's size: of larger crops the lower stages see less.
SETTINGS = {
    "imagenette96_resnet18": "as above",
    "imagenette96_resnet18_temperature": "temperature 0.1 instead of 0.2",
    "imagenette96_resnet18_batch": "64 images a step instead of 256",
    CROP96: "crops of 96 px instead of 48",
    "imagenette96_resnet18_crop192": "crops of 192 px instead of 48",
    "imagenette96_resnet18_width": "the whole width, resnet18 instead of resnet18x0.5",
}
CROPS = {"imagenette96_resnet18": 48, CROP96: 96, "imagenette96_resnet18_crop192": 192}
SETTINGS_ROWS = ("simclr", "simclr_conv", "gim", "gim_conv", "loco")


def decoder(cfg):
    """The decoder of a pretraining config in words, for tables that compare methods."""
    keys, parts = cfg.MODEL.DECODER, []
    if not cfg.MODEL.UNITS:
        return "none"
    if keys.STAGES:
        parts.append("the rest of the network" if keys.STAGES < 0 else f"{keys.STAGES} stage")
    if keys.CONV_BLOCKS:
        blocks = f"{keys.CONV_BLOCKS} conv block" + "s" * (keys.CONV_BLOCKS > 1)
        parts.append(blocks if keys.DOWNSAMPLE else f"{blocks} without downsampling")
    if keys.EXPANSION:
        parts.append(f"1x1 conv to {keys.EXPANSION}")
    if keys.POOL_FEATURES:
        parts.append(f"local pooling to {keys.POOL_FEATURES}")
    return " + ".join([*parts, f"{keys.MLP_LAYERS}-layer MLP"])
