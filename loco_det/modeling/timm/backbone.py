"""A network of timm as a Detectron2 backbone, trained and frozen as the project's other backbones are."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from torch.nn.modules.batchnorm import _BatchNorm

from ..frozen import PartlyFrozen
from .layers import frozen_parameters
from .network import build_network, is_plain, levels_of, run

PYRAMID_STRIDE = 16  # that a plain ViT's map is brought to under a pyramid of strides 4 to 32
NORMS = ("BN", "SyncBN", "FrozenBN")


class TimmBackbone(PartlyFrozen):
    """The maps of a network of timm under Detectron2's interface.

    Images are padded with zeros, the mean pixel, at the bottom and on the right to a multiple of the coarsest stride
    or of the patch, and the maps are cropped to ceil(side / stride).

    A plain ViT whose patch is no 16 x 16 has its own stride. Under a pyramid it is brought to 16: bilinear
    interpolation with the ratio of the strides, so that each value stays at its place in the image.

    Attributes:
        network: timm's own module, with timm's own names of parameters.
    """

    def __init__(
        self,
        name: str,
        out_features: Iterable[str] | None = None,
        *,
        norm: str = "BN",
        freeze_at: int = 0,
        drop_path: float = 0.0,
        final_norm: bool = False,
        pyramid: bool = False,
    ) -> None:
        """
        Args:
            name: timm's name of the network.
            out_features: names of the maps to return: some of res2 to res5 (strides 4 to 32) of a hierarchical
                network, ``last_feat`` of a plain ViT. None: all that the network has.
            norm: what its BatchNorm layers become, if it has any: "BN" (they stay), "SyncBN" or "FrozenBN".
            freeze_at: as MODEL.BACKBONE.FREEZE_AT. Hierarchical: 0 nothing, 1 the stem, 2 to 4 the stages up to
                res<k> as well, 5 and above everything. Plain ViT of D blocks: 1 the embeddings of patches and
                positions, k the first k - 1 blocks as well, D + 1 and above everything.
            drop_path: rate of stochastic depth in the last block. It is off in what is frozen.
            final_norm: whether the norm after a plain ViT's last block is applied to its map.
            pyramid: whether a plain ViT's map is brought to stride 16.

        Raises:
            ValueError: if timm has no such network, it has no such maps, or an option does not suit it.
        """
        super().__init__()
        levels = {level.name: level for level in levels_of(name)}
        wanted = list(levels) if out_features is None else list(out_features)
        if not wanted or not set(wanted) <= set(levels):
            raise ValueError(f"{name} has the maps {', '.join(levels)}, not {', '.join(sorted({*wanted} - {*levels}))}")
        if norm not in NORMS:
            raise ValueError(f"MODEL.RESNETS.NORM {norm!r}: a network's BatchNorm can be {', '.join(NORMS)}")
        self.name, self.plain, self.final_norm = name, is_plain(levels_of(name)), final_norm
        self._levels = [levels[key] for key in levels if key in wanted]
        self._out_features = [level.name for level in self._levels]
        self._out_feature_channels = {level.name: level.channels for level in self._levels}
        self._out_feature_strides = {
            level.name: PYRAMID_STRIDE if pyramid and self.plain else level.stride for level in self._levels
        }
        network = build_network(name, drop_path, final_norm)
        if self._levels[-1].name != list(levels)[-1]:  # what no map needs would idle
            network.prune_intermediate_layers([self._levels[-1].index], prune_norm=True)  # type: ignore[operator]
        self.network = _with_norm(network, norm)
        self.network, self._frozen = _freeze(self.network, frozen_parameters(name, self.network, freeze_at))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            x: images, (B, 3, H, W), normalised.

        Returns:
            dict: name of a map -> features, (B, channels, ceil(H / stride), ceil(W / stride)).
        """
        height, width = x.shape[2:]
        last = self._levels[-1]
        whole = self._out_feature_strides[last.name]  # of the map that is wanted, which the image may not fill
        down, across = (-side % whole + -(side + -side % whole) % last.stride for side in (height, width))
        x = F.pad(x, (0, across, 0, down))
        maps = run(self.network, x, [level.index for level in self._levels], self.final_norm)
        features = {}
        for level, values in zip(self._levels, maps, strict=True):
            stride = self._out_feature_strides[level.name]
            if stride != level.stride:
                ratio = level.stride / stride
                values = F.interpolate(values, scale_factor=ratio, mode="bilinear", align_corners=False)
            features[level.name] = values[:, :, : math.ceil(height / stride), : math.ceil(width / stride)]
        return features


def _with_norm(network, norm):
    """Replace the BatchNorm layers of a network, timm's that hold an activation too; returns it."""
    if norm == "FrozenBN":
        return freeze_batch_norm_2d(network)
    return convert_sync_batchnorm(network) if norm == "SyncBN" else network


def _freeze(network, frozen):
    """Freeze the parameters of these names.

    Returns:
        The network, whose BatchNorm layers in there are FrozenBatchNorm, and the modules that no longer learn.
    """
    learning = set()
    for name, parameter in network.named_parameters():
        parameter.requires_grad = name not in frozen
        learning |= set() if name in frozen else {id(parameter)}
    if not learning:
        network = freeze_batch_norm_2d(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm) and not any(id(p) in learning for p in child.parameters()):
                setattr(module, name, freeze_batch_norm_2d(child))
    still = set()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(id(parameter) in learning for parameter in parameters):
            still.update(module.modules())
    # What has no parameters, such as dropout, stands still with the module that holds it
    return network, list(network.modules()) if not learning else [m for m in network.modules() if m in still]
