"""Predicted masks without pictures of the whole image: from the network's small masks straight to COCO's encoding.

Detectron2 pastes each mask into a picture of the image's size, which its evaluator then reads pixel by pixel. Here only
the window around the box is looked at, and the pixels are Detectron2's all the same:

- The sampling positions come from the formula of ``paste_masks_in_image``, in the same order of operations. Bilinear
  interpolation is then two products of matrices, for rows and for columns.
- Its rounding differs from that of ``grid_sample``, which can decide only at values beside the threshold:
  :func:`margin` says how near. Those pixels are sampled by ``grid_sample``.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances
from pycocotools import mask as mask_util
from torch import Tensor

THRESHOLD = 0.5  # of detector_postprocess


class Window(NamedTuple):
    """A part of an image, outside of which a mask is False.

    Attributes:
        left: its first column.
        top: its first row.
        columns: its pixels, bool (w, h), column by column as in COCO's encoding.
    """

    left: int
    top: int
    columns: np.ndarray


class PastedMasks(Sequence[Tensor]):
    """Masks on the CPU that are pasted into the image when they are asked for: a sequence of bool tensors (H, W).

    Attributes:
        masks: (N, M, M), from 0 to 1.
        boxes: (N, 4), left, top, right and bottom in pixels of the image.
        size: height and width of the image.
    """

    def __init__(self, masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> None:
        self.masks, self.boxes, self.size = masks, boxes, size

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, item: Any) -> Any:
        """The mask (H, W) of an integer; :class:`PastedMasks` of a slice or of a tensor of indices or bools."""
        if isinstance(item, int):
            item = range(len(self))[item]
            return self[item : item + 1].tensor()[0]
        return PastedMasks(self.masks[item], self.boxes[item], self.size)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def to(self, *args: Any, **kwargs: Any) -> "PastedMasks":
        """Itself, which is on the CPU: ``Instances.to`` calls this."""
        return self

    def tensor(self) -> Tensor:
        """What ``paste_masks_in_image`` returns, bool (N, H, W)."""
        found = torch.zeros(len(self), *self.size, dtype=torch.bool)
        for mask, (left, top, columns) in zip(found, self.windows(), strict=True):
            width, height = columns.shape
            mask[top : top + height, left : left + width] = torch.from_numpy(columns).T
        return found

    def rles(self) -> list[dict[str, Any]]:
        """COCO's compressed encoding of each mask: "size", [H, W], and "counts", a str."""
        if not len(self):
            return []
        size = list(self.size)
        counts = [{"size": size, "counts": run_lengths(window, self.size)} for window in self.windows()]
        found = mask_util.frPyObjects(counts, *size)
        return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in found]

    def windows(self) -> Iterator[Window]:
        """The window of each mask: the box and a pixel around it, within the image."""
        masks, boxes, side = self.masks, self.boxes, self.masks.shape[-1]
        if not len(masks):
            return
        usual = masks.dtype == boxes.dtype == torch.float32 and bool(boxes.isfinite().all())
        if not usual or not (masks.min() >= 0 and masks.max() <= 1):  # the margin is none for others, NaN among them
            for mask in paste_masks_in_image(masks, boxes, self.size, THRESHOLD):
                yield Window(0, 0, mask.numpy().T)
            return
        height, width = self.size
        x, y = _positions(boxes[:, 0::2], width), _positions(boxes[:, 1::2], height)
        across, down = (((grid + 1) * (side / 2) - 0.5).numpy() for grid in (x, y))  # in pixels of the mask
        ends = boxes.new_tensor([width, height])
        first = (boxes[:, :2].floor() - 1).clamp(min=0).minimum(ends).int().tolist()
        last = (boxes[:, 2:].ceil() + 1).clamp(min=0).minimum(ends).int().tolist()
        pixels, near = np.arange(side, dtype=np.float32)[:, None], margin(side)
        for i, ((left, top), (right, bottom)) in enumerate(zip(first, last, strict=True)):
            columns, rows = slice(left, max(left, right)), slice(top, max(top, bottom))
            column_weights = np.maximum(1 - np.abs(across[i, columns] - pixels), 0)  # (M, w)
            row_weights = np.maximum(1 - np.abs(down[i, rows] - pixels), 0)  # (M, h)
            values = column_weights.T @ (masks[i].numpy().T @ row_weights)  # (w, h)
            found, unsure = values >= THRESHOLD, np.abs(values - THRESHOLD) < near
            if unsure.any():
                at_x, at_y = np.nonzero(unsure)
                points = torch.stack([x[i, columns][at_x], y[i, rows][at_y]], 1)
                exact = F.grid_sample(masks[None, i : i + 1], points[None, None], align_corners=False)
                found[at_x, at_y] = exact.flatten().numpy() >= THRESHOLD
            yield Window(left, top, found)


def _positions(ends: Tensor, length: int) -> Tensor:
    """Where ``paste_masks_in_image`` samples: -1 is one end of the box, 1 the other.

    Args:
        ends: of the boxes along one axis, (N, 2).
        length: pixels of the image along it.

    Returns:
        (N, length), of the middle of each pixel.
    """
    start, end = ends.split(1, dim=1)
    return (torch.arange(0, length, dtype=torch.float32) + 0.5 - start) / (end - start) * 2 - 1


def margin(side: int) -> float:
    """How far two ways of bilinear interpolation in float32 may be from each other.

    Both begin with the same position g along an axis of a mask with M pixels from 0 to 1, padded with 0. Where the
    result is not 0, (g + 1) M / 2 - 0.5 is in (-1, M), and its three roundings move it by at most 3 (M + 2) 2**-24. The
    interpolated value is continuous and changes by at most 1 for each pixel of the mask, so that two axes and two ways
    make 12 (M + 2) 2**-24. Weights, products and sums of four values, each at most 1, round by less than 10 * 2**-24
    in either way. The sum, (12 M + 44) 2**-24, is less than what is returned.

    Args:
        side: of the masks in pixels, M.
    """
    return (side + 4) * 2.0**-20


def run_lengths(window: Window, size: tuple[int, int]) -> np.ndarray:
    """Lengths of the runs of a mask, column by column, in turn of False and True, beginning with False.

    Args:
        window: the mask.
        size: height and width of the image.
    """
    height, width = size
    left, top, columns = window
    rows = columns.shape[1]
    edged = np.zeros((columns.shape[0], rows + 2), bool)
    edged[:, 1:-1] = columns
    column, row = np.divmod(np.flatnonzero(edged[:, 1:] != edged[:, :-1]), rows + 1)
    changes = (left + column) * height + (top + row)  # starts and ends of the runs of each column, in turn
    if rows == height:  # a run may go on in the next column: its end is the start of the next
        changes, times = np.unique(changes, return_counts=True)
        changes = changes[times == 1]
    end = [] if len(changes) and changes[-1] == height * width else [height * width]
    return np.diff(changes, prepend=0, append=end)


def to_coco_json(instances: Instances, image_id: Any) -> list[dict[str, Any]]:
    """What Detectron2's ``instances_to_coco_json`` returns, where "pred_masks" may be :class:`PastedMasks`, too.

    Args:
        instances: of one image, on the CPU.
        image_id: of the image.
    """
    masks = instances.pred_masks if instances.has("pred_masks") else None
    if not isinstance(masks, PastedMasks):
        return instances_to_coco_json(instances, image_id)
    others = {name: value for name, value in instances.get_fields().items() if name != "pred_masks"}
    found = instances_to_coco_json(Instances(instances.image_size, **others), image_id)
    for entry, rle in zip(found, masks.rles(), strict=True):
        last = {"keypoints": entry.pop("keypoints")} if "keypoints" in entry else {}  # the order in the file
        entry.update(segmentation=rle, **last)
    return found
