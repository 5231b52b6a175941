"""A plain ViT's map as the stages of a hierarchical network, for heads without a pyramid of their own."""

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone

from .backbone import PYRAMID_STRIDE, TimmBackbone
from .network import LAST, STRIDES


class PlainLevels(Backbone):
    """The map of a plain network at several strides, by interpolation and pooling: nothing here learns.

    Attributes:
        net: the network.
    """

    def __init__(self, net: TimmBackbone, finest: int) -> None:
        """
        Args:
            net: a plain network, its map brought to stride 16.
            finest: stride of the finest stage, 4 to 32.
        """
        super().__init__()
        self.net = net
        channels = net.output_shape()[LAST].channels
        strides = {f"res{stride.bit_length() - 1}": stride for stride in STRIDES if stride >= finest}
        self._out_features = list(strides)
        self._out_feature_strides = strides
        self._out_feature_channels = dict.fromkeys(strides, channels)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            x: images, (B, 3, H, W), normalised; H and W multiples of 32.

        Returns:
            dict: name of a stage -> features, (B, channels, H / stride, W / stride): finer ones are interpolated
            bilinearly, coarser ones means of four.
        """
        values, features = self.net(x)[LAST], {}
        for name, stride in self._out_feature_strides.items():
            if stride < PYRAMID_STRIDE:
                ratio = PYRAMID_STRIDE // stride
                features[name] = F.interpolate(values, scale_factor=ratio, mode="bilinear", align_corners=False)
            else:
                ratio = stride // PYRAMID_STRIDE
                features[name] = F.avg_pool2d(values, ratio) if ratio > 1 else values
        return features
