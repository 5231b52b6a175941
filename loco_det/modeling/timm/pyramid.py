"""ViTDet's pyramid on a plain network of timm."""

from detectron2.modeling import SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from .backbone import TimmBackbone
from .network import LAST

SCALES = (4.0, 2.0, 1.0, 0.5)  # of a map of stride 16: p2 to p5


class PlainPyramid(SimpleFeaturePyramid):
    """ViTDet's pyramid on a plain network, with the attributes that the project's detectors use.

    Detectron2's own class names its divisibility in a way that its ImageList does not read, so that images of any size
    are padded to no multiple of 32, and the levels of its pyramid do not fit together.
    """

    net: TimmBackbone

    def __init__(self, net: TimmBackbone, out_channels: int, norm: str, square_pad: int) -> None:
        """
        Args:
            net: the network, its map brought to stride 16.
            out_channels: of the pyramid's maps.
            norm: as MODEL.FPN.NORM; "": none.
            square_pad: side of the square that images are padded to; 0: multiples of 32.
        """
        super().__init__(net, LAST, out_channels, SCALES, LastLevelMaxPool(), norm, square_pad)
        for stage in self.stages:
            for name, module in list(stage._modules.items()):
                if module is None:  # a norm that is none, which Detectron2's class calls
                    stage.register_module(name, nn.Identity())

    @property
    def bottom_up(self) -> TimmBackbone:
        """The plain network, as of an FPN."""
        return self.net

    @property
    def size_divisibility(self) -> int:
        """What images are padded to multiples of."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """As of an FPN: the side of a square that images are padded to, or 0."""
        return {"square_size": self._square_pad}
