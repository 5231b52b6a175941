"""Options of a detector that learns and finds as a wide one does, but is small: its checkpoints are, too."""

NARROW = ("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_BOX_HEAD.CONV_DIM", 8,
          "MODEL.ROI_MASK_HEAD.CONV_DIM", 8, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
          "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50)  # fmt: skip
