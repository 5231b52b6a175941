"""Networks of timm as encoders: ViT, ConvNeXt, Swin and RegNet, in four stages as a ResNet.

timm's own network is the encoder's ``network``. Its parameters keep timm's names: ``network.blocks.0.attn.qkv.weight``.
Stages are views of its modules:

=========  ===============================================  =====================================================
network    block 0 of res2                                  further blocks
=========  ===============================================  =====================================================
ConvNeXt   stem                                             blocks; the first of a stage with its downsampling
Swin       patch embedding                                  blocks; the first of a stage with its patch merging
RegNet     stem                                             blocks
ViT        patch embedding, class and register tokens,      blocks, in four groups of the same number; if that is
           position embedding                               not possible, the lower groups have one more
=========  ===============================================  =====================================================

What follows the last block is left out: final norm, pooling and classifier. Dropout and stochastic depth are 0.

Between the blocks of a ViT pass timm's tokens, (B, prefix + H W, C), the class and register tokens first: every block
attends to them. A map (B, C, H, W) is made of them for decoders and readouts, without these tokens (tokens.py).
"""

import copy
import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import timm
from torch import Tensor, nn
from torchvision.ops import Permute

from .stages import STAGE_NAMES, Encoder

Blocks = list[list[nn.Module]]  # of each stage


class TimmEncoder(Encoder):
    """A network of timm, whose parameters are ``network.<timm's name>`` here.

    Attributes:
        network: timm's network. What no stage needs is an nn.Identity in it.
    """

    stage_names = STAGE_NAMES
    network: Any

    def __init__(self, name: str) -> None:
        """
        Args:
            name: timm's name of the network, such as "convnext_tiny", without a tag of weights.

        Raises:
            ValueError: if timm has no such network, or its stages are not known here.
        """
        super().__init__()
        self._family = _family_of(name)
        family = FAMILIES[self._family]
        self.network = timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=0.0, **family.options)
        for child, _ in list(self.network.named_children()):
            if child not in family.children:
                setattr(self.network, child, nn.Identity())
        if hasattr(self.network, "patch_embed"):
            self.network.patch_embed.dynamic_img_pad = True  # sides need not be multiples of the patch's
        info, ends = self.network.feature_info, family.ends(family.blocks(self.network))
        tops = [info[index] for index in ends]
        self.channels = tuple(top["num_chs"] for top in tops)
        self.strides = tuple(top["reduction"] for top in tops)
        self.prefix_tokens = getattr(self.network, "num_prefix_tokens", None)

    @property
    def stages(self) -> list[nn.Sequential]:
        """Views of the network's modules, made anew: they are right also after one was replaced."""
        return [nn.Sequential(*blocks) for blocks in FAMILIES[self._family].blocks(self.network)]


class _Family(NamedTuple):
    """How networks are built and cut that have their code in one module of timm.

    Attributes:
        blocks: from a network to the blocks of its four stages, from the image upwards.
        children: those of the network's children that the blocks have.
        options: of timm.create_model.
        ends: from the blocks to the indices of the stages' ends in the network's ``feature_info``.
    """

    blocks: Callable[[Any], Blocks]
    children: tuple[str, ...]
    options: dict[str, Any]
    ends: Callable[[Blocks], list[int]]


def _family_of(name: str) -> str:
    """The key in ``FAMILIES`` of a network; ValueError if there is none."""
    if "." in name:
        raise ValueError("training begins at random: leave out the tag of weights, what follows the dot")
    if not timm.is_model(name):
        near = " or ".join(difflib.get_close_matches(name, timm.list_models(), 3))
        raise ValueError(f"timm {timm.__version__} has no such network{near and f': did you mean {near}?'}")
    module = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    if module not in FAMILIES:
        raise ValueError(
            f"the stages of timm's {module}.py are not known here: choose a network of {'.py, '.join(FAMILIES)}.py"
        )
    return module


def _convnext(network: Any) -> Blocks:
    return [[network.stem, *_blocks_of(network.stages[0])], *map(_blocks_of, network.stages[1:])]


def _blocks_of(stage: Any) -> list[nn.Module]:
    """Blocks of a stage of timm's, the first one with the downsampling."""
    first, *others = stage.blocks
    if not isinstance(stage.downsample, nn.Identity):
        first = nn.Sequential(stage.downsample, first)
    return [first, *others]


def _swin(network: Any) -> Blocks:
    """Of maps with channels last, timm's, as blocks of maps (B, C, H, W): in channels_last the memory is the same."""
    last, back = [0, 2, 3, 1], [0, 3, 1, 2]
    stages: Blocks = [
        [nn.Sequential(Permute(last), block, Permute(back)) for block in _blocks_of(stage)] for stage in network.layers
    ]
    stages[0].insert(0, nn.Sequential(network.patch_embed, Permute(back)))
    return stages


def _regnet(network: Any) -> Blocks:
    stages: Blocks = [list(stage.children()) for stage in (network.s1, network.s2, network.s3, network.s4)]
    stages[0].insert(0, network.stem)
    return stages


def _vit(network: Any) -> Blocks:
    count, more = divmod(len(network.blocks), 4)
    ends = [count * k + min(k, more) for k in range(5)]
    stages: Blocks = [list(network.blocks[start:end]) for start, end in zip(ends, ends[1:], strict=False)]
    stages[0].insert(0, _Embedding(network))
    return stages


class _Embedding(nn.Module):
    """Images (B, 3, H, W) -> all tokens with their position embedding, (B, prefix + H W / p^2, C).

    Attributes:
        network: timm's ViT without its blocks: an object of its own that shares the parameters.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = copy.copy(network)
        self.network._modules = {**network._modules, "blocks": nn.Sequential()}

    def forward(self, x: Tensor) -> Tensor:
        return self.network.forward_features(x)


def _last_four(blocks: Blocks) -> list[int]:
    return [-4, -3, -2, -1]


def _ends_of_groups(blocks: Blocks) -> list[int]:
    """Indices of the groups' last blocks among the blocks of a ViT."""
    return [sum(map(len, blocks[: k + 1])) - 2 for k in range(4)]  # one block of the first group is the embedding


_VIT = _Family(
    _vit, ("patch_embed", "pos_drop", "patch_drop", "norm_pre", "blocks"), {"dynamic_img_size": True}, _ends_of_groups
)
_SWIN = _Family(_swin, ("patch_embed", "layers"), {"dynamic_img_size": True}, _last_four)
FAMILIES = {  # by timm's modules
    "vision_transformer": _VIT,
    "deit": _VIT,
    "convnext": _Family(_convnext, ("stem", "stages"), {}, _last_four),
    "swin_transformer": _SWIN,
    "swin_transformer_v2": _SWIN,
    "regnet": _Family(_regnet, ("stem", "s1", "s2", "s3", "s4"), {}, _last_four),
}
