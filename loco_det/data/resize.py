"""Detectron2's ResizeShortestEdge with OpenCV's resize of bytes, and an image's way into a tensor."""

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from PIL import Image

cv2.setNumThreads(0)  # the loader's workers run in parallel already


class Resize(T.ResizeShortestEdge):
    """Detectron2's ResizeShortestEdge, but no side of a very long and narrow image is rounded to 0, and bytes are
    resized by :class:`ByteResize` unless Detectron2's bits are asked for."""

    def __init__(self, step: T.ResizeShortestEdge, exact: bool = False) -> None:
        """
        Args:
            step: the augmentation that this one replaces.
            exact: resize by Pillow alone, with Detectron2's very bits.
        """
        super().__init__(step.short_edge_length, step.max_size, step.sample_style, step.interp)
        self.exact = exact

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The resizing of an (H, W, C) image."""
        found = super().get_transform(image)
        if not isinstance(found, T.ResizeTransform):
            return found
        kind = T.ResizeTransform if self.exact else ByteResize
        return kind(found.h, found.w, max(1, found.new_h), max(1, found.new_w), found.interp)


class ByteResize(T.ResizeTransform):
    """Detectron2's ResizeTransform, several times as fast where colour images of bytes are enlarged: within 1 level.

    Pillow, which Detectron2 uses, rounds to whole levels between the two axes, and so is up to 0.5 levels off the
    bilinear value before it rounds that. OpenCV rounds once (weights of 11 bits: up to 0.4 levels off), so the two
    differ by 1 level at most, in one value of five. torch's resize rounds twice too and is nearer on average, but 2
    levels off where errors meet. Where a side shrinks, Pillow averages, and does it here too.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """
        Args:
            img: (H, W) or (H, W, C).
            interp: Pillow's name of the interpolation; None: that of the transform.

        Returns:
            The resized image, of the same type.
        """
        kind = self.interp if interp is None else interp
        coloured = img.dtype == np.uint8 and img.ndim == 3 and img.shape[2] == 3
        enlarged = self.new_h >= self.h and self.new_w >= self.w
        if not (kind == Image.Resampling.BILINEAR and coloured and enlarged):
            return super().apply_image(img, interp)
        assert img.shape[:2] == (self.h, self.w)
        return cv2.resize(np.ascontiguousarray(img), (self.new_w, self.new_h), interpolation=cv2.INTER_LINEAR)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """An image as Detectron2's models take it.

    Args:
        image: (H, W, C); it may be a flipped view.

    Returns:
        (C, H, W) of the same type, contiguous, in memory of its own if C is 3.
    """
    if image.dtype != np.uint8 or image.shape[2] != 3:
        return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
    mirrored = image.strides[1] < 0  # RandomFlip's view; to copy it pixel by pixel would take longer than the resize
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(np.ascontiguousarray(image[:, ::-1] if mirrored else image), list(planes))
    for plane in planes if mirrored else ():
        cv2.flip(plane, 1, plane)
    return torch.from_numpy(planes)
