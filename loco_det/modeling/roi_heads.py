"""The ROI heads of MoCo's C4 recipe, which Detectron2 does not have."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """Detectron2's C4 heads with one more norm, of the kind MODEL.RESNETS.NORM, on the output of res5.

    Features of another scale than supervised ones, as self-supervised networks have them, are normalised by it before
    boxes and masks are predicted: MoCo (arXiv 1911.05722) fine-tunes so. Name and place are those of its published
    code, detection/train_net.py in facebookresearch/moco, so that its configs and detectors load. The features of R
    regions are (R, 2048, 7, 7).
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Arguments of the constructor, with the norm in "res5"; as Detectron2's ``configurable`` calls it."""
        parts = super().from_config(cfg, input_shape)
        norm = get_norm(cfg.MODEL.RESNETS.NORM, parts["res5"][-1].out_channels)
        parts["res5"].add_module("norm", norm)
        return parts
