"""Detectron2's DatasetMapper with the project's reader of images, and more than twice as fast."""

import copy
import os
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from PIL import Image

from pretrain.files.images import read_image

from .annotations import instances_at_once
from .resize import Resize, to_tensor


class ImageMapper(DatasetMapper):
    """Detectron2's mapper (``__call__`` follows its own step by step), but images are read as in pretraining: 16 bits
    are scaled, not clipped to white, and errors name the file.

    Boxes and masks have its bits. Pixels have them with INPUT.EXACT_RESIZE, and are within 1 level without
    (:mod:`.resize`). benchmarks/loading.py measures both.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Detectron2's arguments of the constructor, with :class:`.resize.Resize` for its ResizeShortestEdge."""
        options = super().from_config(cfg, is_train)
        exact = cfg.INPUT.get("EXACT_RESIZE", False)
        if is_train and "LSJ" in cfg.INPUT and cfg.INPUT.LSJ.SIZE:
            flips = [step for step in options["augmentations"] if isinstance(step, T.RandomFlip)]
            options["augmentations"] = [*flips, *large_scale_jitter(cfg)]
            options["recompute_boxes"] = cfg.MODEL.MASK_ON  # of the masks, which the crop has cut
        options["augmentations"] = [
            Resize(step, exact) if type(step) is T.ResizeShortestEdge else step for step in options["augmentations"]
        ]
        return options

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: of one image, in Detectron2's format; not changed.

        Returns:
            A dict as Detectron2's models take it, with ``image`` (C, H, W) uint8.

        Raises:
            OSError, ValueError: naming the file, if it cannot be read or its size differs from the annotations.
        """
        whole = dataset_dict
        dataset_dict = copy.deepcopy({key: value for key, value in whole.items() if key != "annotations"})
        image = read_for_detection(dataset_dict["file_name"], self.image_format)
        detection_utils.check_image_size(dataset_dict, image)
        semantic = None
        if "sem_seg_file_name" in dataset_dict:
            semantic = detection_utils.read_image(dataset_dict.pop("sem_seg_file_name"), "L").squeeze(2)
        inputs = T.AugInput(image, sem_seg=semantic)
        transforms = self.augmentations(inputs)
        image, semantic = inputs.image, inputs.sem_seg
        dataset_dict["image"] = to_tensor(image)
        if semantic is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(semantic.astype("long"))
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                dataset_dict, image.shape[:2], transforms, proposal_topk=self.proposal_topk
            )
        if self.is_train and "annotations" in whole:
            dataset_dict["annotations"] = whole["annotations"]
            self._transform_annotations(dataset_dict, transforms, image.shape[:2])
        return dataset_dict

    def _transform_annotations(self, dataset_dict, transforms, image_shape):
        """Puts ``instances`` in place of ``annotations``, whose objects are the data set's own."""
        instances = None
        if not self.use_keypoint and not self.recompute_boxes:
            objects = [thing for thing in dataset_dict["annotations"] if thing.get("iscrowd", 0) == 0]
            masks = self.instance_mask_format if self.use_instance_mask else None
            instances = instances_at_once(objects, transforms, image_shape, masks)
        if instances is None:
            dataset_dict["annotations"] = copy.deepcopy(dataset_dict["annotations"])
            super()._transform_annotations(dataset_dict, transforms, image_shape)
        else:
            del dataset_dict["annotations"]
            dataset_dict["instances"] = detection_utils.filter_empty_instances(instances)


def large_scale_jitter(cfg: CfgNode) -> list[T.Augmentation]:
    """Large-scale jitter as ViTDet has it: the image is not padded to the square here.

    Args:
        cfg: the config; INPUT.LSJ is read.

    Raises:
        ValueError: if the scales are not 0 < MIN_SCALE <= MAX_SCALE, or SIZE is negative.
    """
    jitter = cfg.INPUT.LSJ
    side, low, high = jitter.SIZE, jitter.MIN_SCALE, jitter.MAX_SCALE
    if side < 0 or not 0 < low <= high:
        raise ValueError(f"INPUT.LSJ: SIZE {side}, MIN_SCALE {low} and MAX_SCALE {high} are no sizes")
    return [T.ResizeScale(low, high, side, side), T.FixedSizeCrop((side, side), pad=False)]


def read_for_detection(path: str | os.PathLike[str], image_format: str = "RGB") -> np.ndarray:
    """Read an image by :func:`pretrain.files.images.read_image` in one of Detectron2's formats.

    Args:
        path: of the file.
        image_format: INPUT.FORMAT, such as "BGR" or "L".

    Returns:
        (H, W, C), uint8 for "RGB", "BGR" and "L".

    Raises:
        OSError, ValueError: naming the file, if it cannot be read.
    """
    image = read_image(path)
    if image_format == "BGR":
        return cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if image_format == "RGB":
        return image
    return detection_utils.convert_PIL_to_numpy(Image.fromarray(image), image_format)
