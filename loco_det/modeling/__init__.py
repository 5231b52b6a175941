"""Parts of a detector that Detectron2 does not have: backbones, the fast frozen backbone, ROI heads."""
