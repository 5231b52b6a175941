"""What a self-supervised backbone is worth for detection and segmentation, measured with Detectron2."""
