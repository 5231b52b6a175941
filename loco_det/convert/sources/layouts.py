"""Which project wrote a checkpoint, detected from where its encoder is and what else is there: one row for each.

Every row was read in the source of its project. Rows differ only in what matters: which network of several it is, what
the images looked like, and what may be dropped. Names that no row expects are refused, never ignored.
"""

from typing import NamedTuple

from .conventions import SWAV, ZERO_TO_ONE, Conventions


class Layout(NamedTuple):
    """How one project's checkpoints are laid out.

    Attributes:
        name: for ``--source``.
        project: whose it is.
        rule: by what it is recognised, in words; ``module.`` and other wrappers' parts of names are ignored everywhere.
        online: pattern of the trained (online, query, student) encoder's ``Found.location``.
        ema: pattern of its moving average's (momentum, key, target, teacher); "": it has none.
        mark: pattern of a name or top-level key that has to be in the file; "": none. Two rows with the same prefix
            are distinguished by it.
        heads: pattern of names inside the encoder that are no part of the ResNet and may be dropped.
        conventions: of the networks; None: the file or a config beside it has to say.
        naming: names of the encoder's parameters, a key of ``search.NAMINGS``; "": any.
        automatic: whether it can be detected from the file's content; if not, ``--source`` must name it.
        same: whether its stem, pool and strided convs pad as TensorFlow's SAME does.
    """

    name: str
    project: str
    rule: str
    online: str
    ema: str = ""
    mark: str = ""
    heads: str = r"fc\."
    conventions: Conventions | None = Conventions()
    naming: str = "torchvision"
    automatic: bool = True
    same: bool = False


# Before conv1 in every first block: the order in which tonylins/simclr-converter's ResNet makes its parts
_SHORTCUT_FIRST = r"^layer2\.0\.downsample\.0\.weight$(.|\n)*^layer2\.0\.conv1\.weight$"

# The first row that fits is taken: rows with a mark come before those with the same place and none.
LAYOUTS = (
    Layout(
        "loco-det",
        "ours (tools/pretrain.py)",
        "encoder.*, in a file that says it is ours",
        r"^model/encoder\.$",
        mark=r"^loco-det pretraining$",
        naming="",
    ),
    Layout(
        "loco-det",
        "ours, an encoder alone (tools/convert_from_d2.py)",
        "res2.0.0.0.*: PResNet-50 or ShuffleNet v2-50",
        r"^((state_dict|model)/)?$",
        naming="pretrain",
    ),
    Layout(
        "detectron2",
        "Detectron2, backbones and detectors",
        "stem.* and res2.*, alone or behind backbone.bottom_up.",
        r"(^|/)(backbone\.)?(bottom_up\.)?$",
        heads=r"(stem\.)?fc\.|linear\.",
        naming="detectron2",
        conventions=None,
    ),
    Layout(
        "detectron2",
        "Detectron2, an encoder of ours",
        "backbone.bottom_up.encoder.*",
        r"(^|/)(backbone\.(bottom_up\.)?)?encoder\.$",
        mark=r"^(__author__|backbone\.)",
        naming="",
        conventions=None,
    ),
    Layout(
        "moco",
        "MoCo v1 and v2, PyContrast's",
        "encoder_q.*; EMA encoder_k.*",
        r"(^|/)encoder_q\.$",
        r"(^|/)encoder_k\.$",
    ),
    Layout(
        "mocov3",
        "MoCo v3",
        "base_encoder.*; EMA momentum_encoder.*",
        r"(^|/)base_encoder\.$",
        r"(^|/)momentum_encoder\.$",
    ),
    Layout(
        "byol-pytorch",
        "byol-pytorch",
        "online_encoder.net.*; EMA target_encoder.net.*",
        r"(^|/)(learner\.)?online_encoder\.net\.$",
        r"(^|/)(learner\.)?target_encoder\.net\.$",
    ),
    Layout(
        "solo-learn",
        "solo-learn",
        "backbone.* (older: encoder.*) beside classifier.*; EMA momentum_backbone.*",
        r"(^|/)(backbone|encoder)\.$",
        r"(^|/)momentum_(backbone|encoder)\.$",
        mark=r"^(momentum_)?classifier\.(weight|bias)$|^momentum_(backbone|encoder)\.conv1\.",
    ),
    Layout(
        "pixpro",
        "PixPro",
        "encoder.* beside projector_k.*; EMA encoder_k.*",
        r"(^|/)encoder\.$",
        r"(^|/)encoder_k\.$",
        r"^(projector_k|value_transform|encoder_k)\.",
    ),
    Layout(
        "pycontrast",
        "PyContrast (InfoMin, InsDis, PIRL)",
        'encoder.* beside head.*; EMA in "model_ema"',
        r"^(model/)?encoder\.$",
        r"^model_ema/encoder\.$",
        mark=r"^(contrast|model_ema)$|^head(_jig)?\.",
    ),
    Layout(
        "simsiam",
        "SimSiam",
        "encoder.* beside predictor.*",
        r"(^|/)encoder\.$",
        mark=r"^predictor\.|^encoder\.fc\.[01346]",
    ),
    Layout(
        "blockwise",
        "Blockwise Barlow Twins",
        "pool_conv_block_* among the encoder's names: dropped",
        r"(^|/)(backbone\.)?$",
        mark=r"^(backbone\.)?pool_conv_block_1\.",
        heads=r"pool_conv_block_\d\.|fc\.",
    ),
    Layout(
        "barlow", "Barlow Twins", "backbone.* beside bn.running_mean", r"(^|/)backbone\.$", mark=r"^bn\.running_mean$"
    ),
    Layout(
        "vicreg",
        "VICReg",
        'backbone.* beside projector.0.bias, in "model"',
        r"^model/backbone\.$",
        mark=r"^projector\.0\.bias$",
    ),
    Layout(
        "dino",
        "DINO",
        'backbone.* in "student"; EMA in "teacher"',
        r"^student/(backbone\.)?$",
        r"^teacher/(backbone\.)?$",
    ),
    Layout(
        "huggingface",
        "Hugging Face's transformers: ResNetForImageClassification, ResNetModel",
        "embedder.* and encoder.stages.*, alone or behind resnet.; a folder, too",
        r"(^|/)(resnet\.)?$",
        heads=r"classifier\.",
        naming="huggingface",
    ),
    Layout("vissl", "VISSL", "_feature_blocks.*", r"(^|/)(trunk\.)?(base_model\.)?_feature_blocks\.$"),
    Layout(
        "simclrv2",
        "SimCLR v2 by SimCLRv2-Pytorch",
        "net.1.blocks.*: names of its own",
        r"(^|/)$",
        conventions=ZERO_TO_ONE,
        naming="simclrv2",
    ),
    Layout(
        "simclr",
        "SimCLR by simclr-converter",
        '"state_dict" in whose blocks downsample comes first',
        r"^state_dict/$",
        mark=_SHORTCUT_FIRST,
        conventions=ZERO_TO_ONE,
    ),
    Layout(
        "swav",
        "SwAV, DeepCluster v2",
        "no prefix, beside prototypes.*",
        r"(^|/)$",
        mark=r"^prototypes\.",
        heads=r"(projection_head|prototypes)\.|fc\.",
        conventions=SWAV,
    ),
    Layout(  # mmengine's EMAHook exchanges the two when it saves
        "openmmlab",
        "MMPretrain with EMAHook",
        'backbone.* in "ema_state_dict"; EMA in "state_dict": they are exchanged',
        r"^ema_state_dict/backbone\.$",
        r"^state_dict/backbone\.$",
        mark=r"^ema_state_dict$",
    ),
    Layout(
        "openmmlab",
        "MMSelfSup, MMPretrain, DenseCL, OpenSelfSup",
        'backbone.* beside "meta" or encoder_k.0.*; EMA that or target_net.0.*',
        r"^(state_dict/)?backbone\.$",
        r"(encoder_k|target_net|online_net_ema|momentum_encoder)\.0\.$",
        mark=r"^meta$|^encoder_[qk]\.(module\.)?0\.|^target_net\.",
    ),
    Layout("densecl", "DenseCL, extracted", 'no prefix, beside "author"', r"^state_dict/$", mark=r"^author$"),
    Layout(
        "lightly-train",
        "LightlyTrain (what it exports has torchvision's names)",
        "wrapped_model._features.* or ._model.*; EMA teacher_*",
        r"(^|/)((student_)?embedding_model\.)?wrapped_model\.(_features|_model)\.$",
        r"(^|/)teacher_embedding_model\.wrapped_model\.(_features|_model)\.$",
    ),
    Layout(
        "lightly",
        "lightly",
        "backbone.*, by name or position, beside *_head.*; EMA backbone_momentum.*",
        r"(^|/)(student_)?backbone\.$",
        r"(^|/)(backbone_momentum|teacher_backbone|teacher)\.$",
        mark=r"^(projection|prediction)_head|^(backbone_momentum|teacher_backbone)\.",
        naming="",
    ),
    Layout(
        "lightly",
        "lightly, the backbone alone",
        "0.*, 1.*, 4.* to 7.*: a Sequential of the ResNet's children",
        r"(^|/)$",
        naming="children",
    ),
    Layout(
        "timm",
        "timm's train.py, PyTorch's ImageNet example",
        '"state_dict" beside "arch"; EMA in "state_dict_ema"',
        r"^state_dict/$",
        r"^state_dict_ema/$",
        mark=r"^(state_dict_ema|arch)$",
    ),
    Layout(
        "torchvision",
        "torchvision, also with EMA",
        '"model"; EMA in "model_ema"',
        r"^model/$",
        r"^model_ema/$",
        mark=r"^model_ema$",
        heads=r"fc\.|n_averaged$",
    ),
    Layout(
        "torchvision",
        "torchvision's names, bare: timm, Barlow Twins, VICReg, DINO",
        'no prefix; also under "state_dict" or "model"',
        r"^((state_dict|model)/)?$",
    ),
    Layout(
        "byol",
        "BYOL by byol-convert",
        "as torchvision, but pads as TensorFlow does: has to be named",
        r"(^|/)$",
        automatic=False,
        same=True,
    ),
)
