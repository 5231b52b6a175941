"""Detectron2's DatasetMapper with the project's reader of images."""

import copy
import os
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from PIL import Image

from pretrain.files.images import read_image


class ImageMapper(DatasetMapper):
    """Detectron2's mapper (``__call__`` follows its own line by line), but images are read as in pretraining: 16 bits
    are scaled, not clipped to white, and errors name the file."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Detectron2's arguments of the constructor, with :class:`Resize` for its ResizeShortestEdge."""
        options = super().from_config(cfg, is_train)
        options["augmentations"] = [_at_least_a_pixel(step) for step in options["augmentations"]]
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
        dataset_dict = copy.deepcopy(dataset_dict)
        image = read_for_detection(dataset_dict["file_name"], self.image_format)
        detection_utils.check_image_size(dataset_dict, image)
        semantic = None
        if "sem_seg_file_name" in dataset_dict:
            semantic = detection_utils.read_image(dataset_dict.pop("sem_seg_file_name"), "L").squeeze(2)
        inputs = T.AugInput(image, sem_seg=semantic)
        transforms = self.augmentations(inputs)
        image, semantic = inputs.image, inputs.sem_seg
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if semantic is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(semantic.astype("long"))
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                dataset_dict, image.shape[:2], transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image.shape[:2])
        return dataset_dict


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
        return image[:, :, ::-1]
    if image_format == "RGB":
        return image
    return detection_utils.convert_PIL_to_numpy(Image.fromarray(image), image_format)


class Resize(T.ResizeShortestEdge):
    """Detectron2's ResizeShortestEdge, but no side of a very long and narrow image is rounded to 0."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The resizing of an (H, W, C) image."""
        found = super().get_transform(image)
        if isinstance(found, T.ResizeTransform):
            found.new_h, found.new_w = max(1, found.new_h), max(1, found.new_w)
        return found


def _at_least_a_pixel(step):
    """The augmentation, or :class:`Resize` for Detectron2's ResizeShortestEdge."""
    if type(step) is not T.ResizeShortestEdge:
        return step
    return Resize(step.short_edge_length, step.max_size, step.sample_style, step.interp)
