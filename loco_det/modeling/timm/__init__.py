"""Networks of timm as Detectron2 backbones: hierarchical ones under an FPN, plain ViTs under ViTDet's pyramid."""
