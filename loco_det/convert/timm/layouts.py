"""Which project wrote a checkpoint of a network that timm can compute: one row for each way to lay it out.

The names are those of each project's own source: dino, dinov2, mae, moco-v3 and ConvNeXt(-V2) of facebookresearch,
beit and beit2 of unilm, microsoft/Swin-Transformer, bytedance/ibot, torchvision, timm and LightlyTrain. A name that is
neither the network's nor in one of the row's named groups is refused.
"""

from typing import NamedTuple

from ..sources.conventions import Conventions

CLASSIFIER = {"classifier": r"(head|head_dist|heads|classifier|pre_logits|fc)\."}
POOLED = {"norm of pooled features": r"fc_norm\."}
PROJECTION = {"projection head": r"(head|dino_head|ibot_head|projector|projection_head)\."}
MASK = {"mask token": r"(mask_token|masked_embed)$"}
BUFFERS = {"tables that are computed": r".*(relative_position_index|relative_coords_table|attn_mask)$"}
DECODER = {"decoder": r"(decoder(_embed|_blocks|_norm|_pred|_pos_embed)?|mask_token|proj|pred)(\.|$)"}
INSIDE = CLASSIFIER | POOLED | MASK | BUFFERS
UNUSED_NORM = {"norm of pooled features": r"(fc_)?norm\."}  # of a network whose maps have no norm after them
VIT = ("vit",)
TORCHVISION = ("torchvision-vit", "torchvision-convnext", "torchvision-swin", "torchvision-regnet")
OWN = ("vit", "convnext", "swin", "swinv2", "regnet", "other")
IMAGENET = Conventions()
TOP = r"^((state_dict|model|module|teacher)/)?$"


class TimmLayout(NamedTuple):
    """How one project's checkpoints are laid out.

    Attributes:
        name: for ``--source``.
        project: whose it is.
        rule: by what it is recognised, in words; ``module.`` and other wrappers' parts of names are ignored everywhere.
        families: keys of ``search.ANCHORS``.
        online: pattern of the location of the trained (online, query, student) network.
        ema: the same of its moving average; "": it has none.
        mark: pattern of a name or top-level key that has to be in the file; "": none.
        unlike: pattern of what must not be there; "": none.
        inside: group -> pattern of names behind the network's prefix that may be left out.
        beside: the same of the other names of its dictionary.
        conventions: of its images; None: the file, a config.json beside it or the name of timm's weights has to say.
        layer_scale: whether its blocks always have one, so that a file without one is refused.
        claimed: whether a name in the file or in config.json beside it is timm's.
    """

    name: str
    project: str
    rule: str
    families: tuple[str, ...]
    online: str
    ema: str = ""
    mark: str = ""
    unlike: str = ""
    inside: dict[str, str] = INSIDE
    beside: dict[str, str] = {}
    conventions: Conventions | None = IMAGENET
    layer_scale: bool = False
    claimed: bool = False


# The first row that fits is taken.
TIMM_LAYOUTS = (
    TimmLayout(
        "loco-det",
        "ours (tools/pretrain.py), a network of timm",
        "encoder.network.*, in a file that says it is ours",
        OWN,
        r"^model/encoder\.network\.$",
        mark=r"^loco-det pretraining$",
        beside={"decoders": r"decoders\.", "learner": ""},
        conventions=None,
    ),
    TimmLayout(
        "lightly-train",
        "LightlyTrain",
        "wrapped_model._model.* or ._features.*; EMA teacher_*",
        (*OWN, *TORCHVISION),
        r"(^|/)(?!teacher_)((student_)?embedding_model(_wrapper)?\.)?(\w+\.)?wrapped_model\.(_features|_model)\.$",
        r"(^|/)teacher_embedding_model(_wrapper)?\.(\w+\.)?wrapped_model\.(_features|_model)\.$",
        beside={
            "teacher": r"teacher_",
            "student": r"student_embedding_model",
            **{"projection head": r"((student_)?(projection|prediction)_head|(student_)?(dino|ibot)_head)\w*\."},
            "loss": r"(\w+_)?(criterion|loss)\b",
        },
        conventions=None,
    ),
    TimmLayout(
        "mocov3",
        "MoCo v3",
        "base_encoder.*; EMA momentum_encoder.*",
        VIT,
        r"(^|/)base_encoder\.$",
        r"(^|/)momentum_encoder\.$",
        inside=PROJECTION | INSIDE,
        beside={
            "momentum encoder": r"momentum_encoder\.",
            "online encoder": r"base_encoder\.",
            "predictor": r"predictor\.",
        },
    ),
    TimmLayout(
        "dinov2",
        "DINOv2, a training's teacher",
        'backbone.* beside dino_head.*, in "teacher"',
        VIT,
        r"^(teacher|model)/((teacher|student)\.)?backbone\.$",
        mark=r"(^|\.)dino_head\.",
        beside=PROJECTION | {"student": r"student\.", "teacher": r"teacher\.", "loss": r"\w+_loss\."},
        layer_scale=True,
    ),
    TimmLayout(
        "ibot",
        "iBOT",
        'backbone.masked_embed beside backbone.*, in "student"; EMA in "teacher"',
        (*VIT, "swin"),
        r"^student/(backbone\.)?$",
        r"^teacher/(backbone\.)?$",
        mark=r"(^|\.)masked_embed$",
        beside=PROJECTION,
    ),
    TimmLayout(
        "dino",
        "DINO",
        'backbone.* in "student"; EMA in "teacher"',
        (*VIT, "swin"),
        r"^student/(backbone\.)?$",
        r"^teacher/(backbone\.)?$",
        beside=PROJECTION,
    ),
    TimmLayout(
        "mae",
        "MAE",
        "blocks.* beside decoder_blocks.*",
        VIT,
        r"^(model/)?$",
        mark=r"^decoder_(embed|blocks|pred)\.",
        inside=DECODER | INSIDE,
    ),
    TimmLayout(
        "beitv2",
        "BEiT v2",
        "blocks.*.attn.q_bias beside cls_pt_layers.*; without these it has to be named",
        VIT,
        TOP,
        mark=r"^cls_pt_(layers|norm|lm_head)|^beitv2_",
        inside=INSIDE | UNUSED_NORM | {"head of pretraining": r"(cls_pt_\w+|lm_head)\."},
        conventions=None,
        layer_scale=True,
        claimed=True,
    ),
    TimmLayout(
        "beit",
        "BEiT",
        "blocks.*.attn.q_bias: has to be named, as BEiT v2 has the same names",
        VIT,
        TOP,
        mark=r"\.attn\.q_bias$",
        inside=INSIDE | UNUSED_NORM | {"head of pretraining": r"lm_head\."},
        conventions=None,
        layer_scale=True,
        claimed=True,
    ),
    TimmLayout(
        "dinov2",
        "DINOv2, with and without registers",
        "mask_token and blocks.*.ls1.gamma",
        VIT,
        TOP,
        mark=r"^(mask_token|register_tokens)$",
        unlike=r"^decoder|^head\.weight$",
        layer_scale=True,
    ),
    TimmLayout(
        "torchvision",
        "torchvision: ViT, ConvNeXt, Swin, RegNet",
        'torchvision\'s own names; also under "model"; EMA in "model_ema"',
        TORCHVISION,
        r"^((state_dict|model)/)?$",
        r"^model_ema/$",
        inside=INSIDE | UNUSED_NORM | {"averages": r"n_averaged$"},
    ),
    TimmLayout(
        "convnext",
        "ConvNeXt, ConvNeXt V2",
        'stages.*.*.dwconv.*; EMA in "model_ema"',
        ("convnext",),
        r"^((state_dict|model)/)?$",
        r"^model_ema/$",
        mark=r"^stages\.0\.0\.dwconv\.",
        inside=INSIDE | UNUSED_NORM,
    ),
    TimmLayout(
        "swin",
        "Swin Transformer",
        "layers.*.blocks.*.attn.relative_position_index",
        ("swin", "swinv2"),
        r"^((state_dict|model)/)?$",
        mark=r"relative_position_index$",
        inside=INSIDE | UNUSED_NORM,
    ),
    TimmLayout(
        "timm",
        "timm: safetensors, .pth, train.py, a folder with config.json",
        'timm\'s names, beside config.json, "arch", or a name given by --arch; EMA in "state_dict_ema"',
        OWN,
        TOP,
        r"^state_dict_ema/$",
        mark=r"^claimed$",
        conventions=None,
        claimed=True,
    ),
    TimmLayout(
        "vit",
        "DINO, iBOT, MAE, MoCo v3: the backbone alone",
        "blocks.* without a head",
        VIT,
        TOP,
        unlike=r"^(head|head_dist|fc)\.|\.attn\.q_bias$|\.gamma_1$",
    ),
)
