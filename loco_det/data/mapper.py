"""Detectron2's DatasetMapper with the project's reader of images."""

import copy

import numpy as np
import torch
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from PIL import Image

from pretrain.files.images import read_image


class ImageMapper(DatasetMapper):
    """As Detectron2's (its ``__call__`` is followed line by line), but images are read as in pretraining: 16 bits are
    scaled, not clipped to white, and errors name the file."""

    @classmethod
    def from_config(cls, cfg, is_train=True):
        options = super().from_config(cfg, is_train)
        options["augmentations"] = [_at_least_a_pixel(step) for step in options["augmentations"]]
        return options

    def __call__(self, dataset_dict):
        """
        Args:
            dataset_dict: of one image, in Detectron2's format; not changed.

        Returns:
            dict: what Detectron2's models take.

        Raises:
            OSError, ValueError: naming the file, if it cannot be read or has another size than the annotations say.
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


def read_for_detection(path, image_format="RGB"):
    """:func:`pretrain.files.images.read_image` in a format of Detectron2's (INPUT.FORMAT): (H, W, C)."""
    image = read_image(path)
    if image_format == "BGR":
        return image[:, :, ::-1]
    if image_format == "RGB":
        return image
    return detection_utils.convert_PIL_to_numpy(Image.fromarray(image), image_format)


class Resize(T.ResizeShortestEdge):
    """Detectron2's, but a side of an image that is very long and narrow is not rounded to nothing."""

    def get_transform(self, image):
        found = super().get_transform(image)
        if isinstance(found, T.ResizeTransform):
            found.new_h, found.new_w = max(1, found.new_h), max(1, found.new_w)
        return found


def _at_least_a_pixel(step):
    """An augmentation, with :class:`Resize` in place of Detectron2's."""
    if type(step) is not T.ResizeShortestEdge:
        return step
    return Resize(step.short_edge_length, step.max_size, step.sample_style, step.interp)
