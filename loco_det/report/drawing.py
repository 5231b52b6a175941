"""Objects drawn on an image: boxes, masks and labels, one colour per class, below a caption."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from detectron2.data import Metadata
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import GenericMask, Visualizer
from PIL import Image, ImageDraw, ImageFont

from pretrain.files.figures import quiet_fonts
from pretrain.files.text import for_figure, for_terminal, shortened

MIN_SIDE, MAX_SIDE = 480, 1024  # limits in pixels of a half's longer side
CAPTION_HEIGHT = 30  # pixels
ALPHA = 0.4  # opacity of masks
LABEL = 32  # columns of a class name
LABEL_POINTS = 11  # Visualizer writes labels at 0.6 to 1 times this size
CROWDED = 25  # this many objects get labels, the largest: more would hide the image
# For metadata without thing_colors: bright enough for dark images, and neighbours are easy to tell apart
PALETTE = [(230, 159, 0), (86, 180, 233), (0, 200, 130), (240, 228, 66), (230, 80, 60), (204, 121, 167)]


class Objects(NamedTuple):
    """N objects to draw.

    Attributes:
        boxes: (N, 4) left, top, right and bottom edges in pixels.
        masks: of each object polygons, RLE or an (H, W) bool array; an empty list for none.
        classes: contiguous class indices.
        labels: text beside the class name: a score, "crowd" or nothing.
    """

    boxes: np.ndarray | list[Sequence[float]]
    masks: list[Any]
    classes: list[int]
    labels: list[str]


def class_color(index: int, metadata: Metadata) -> tuple[float, float, float]:
    """The colour of a class, the same in every picture of a data set.

    Args:
        index: contiguous class index.
        metadata: of the data set; ``thing_colors`` are used if there are enough.

    Returns:
        (r, g, b) in [0, 1].
    """
    colors = metadata.get("thing_colors") or PALETTE
    if index < len(colors):
        r, g, b = colors[index]
        return r / 255, g / 255, b / 255
    return colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.6, 1.0)  # golden-ratio steps: neighbours differ in hue


def objects_of_record(record: dict[str, Any]) -> Objects:
    """The annotations of a Detectron2 dataset dict."""
    found = record.get("annotations", [])
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in found]
    masks = [a.get("segmentation", []) for a in found]
    labels = ["crowd" if a.get("iscrowd") else "" for a in found]
    return Objects(boxes, masks, [a["category_id"] for a in found], labels)


def objects_of_instances(instances: Instances, threshold: float) -> Objects:
    """The predicted objects whose score is at least ``threshold``, with their scores as labels."""
    found = instances.to("cpu")
    found = found[found.scores >= threshold]
    boxes = found.pred_boxes.tensor.numpy()
    masks = [mask.numpy() for mask in found.pred_masks] if found.has("pred_masks") else [[]] * len(found)
    return Objects(boxes, masks, found.pred_classes.tolist(), [f"{s:.0%}" for s in found.scores.tolist()])


def draw_half(image: np.ndarray, objects: Objects, metadata: Metadata, caption: str) -> Image.Image:
    """Draw objects on an image, scaled to a readable size, below a caption.

    Args:
        image: (H, W, 3) uint8 RGB.
        objects: in pixels of the image.
        metadata: of the data set, for the names and colours of the classes.
        caption: one line.

    Returns:
        The picture in RGB.
    """
    boxes, masks, classes, labels = objects
    longer = max(image.shape[:2])
    # Integer factors for small images, so that all pixels become squares of the same size
    scale = -(-MIN_SIDE // longer) if longer < MIN_SIDE else min(1, MAX_SIDE / longer)
    names = metadata.get("thing_classes") or []
    if len(names) != 1:  # a single class is named only in the caption
        classes_text = [for_figure(names[c] if c < len(names) else c, LABEL) for c in classes]
        labels = [f"{name} {label}".strip() for name, label in zip(classes_text, labels, strict=True)]
    else:
        caption = f"{caption} ({shortened(for_terminal(names[0]), LABEL)})"
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]
    smallest_labelled = sorted(areas, reverse=True)[CROWDED] if len(areas) > CROWDED else -1
    visualizer = Visualizer(image, metadata, scale=scale)
    visualizer._default_font_size = LABEL_POINTS / scale  # the default is unreadable on scaled images
    colors = [class_color(c, metadata) for c in classes]
    masks = [GenericMask(mask, *image.shape[:2]) for mask in masks]
    for mask, color in zip(masks, colors, strict=True):
        if mask.has_holes:  # overlay_instances would fill the holes
            visualizer.draw_binary_mask(mask.mask, color, alpha=ALPHA)
    if len(boxes):
        drawn = visualizer.overlay_instances(
            boxes=np.asarray(boxes, dtype=float),
            masks=[[] if mask.has_holes else mask for mask in masks],
            labels=[t if area > smallest_labelled else "" for t, area in zip(labels, areas, strict=True)],
            assigned_colors=colors,
            alpha=ALPHA,
        )
    else:
        drawn = visualizer.output
    with quiet_fonts():
        picture = Image.fromarray(drawn.get_image())
    font_file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    font = ImageFont.truetype(str(font_file), 16)
    width = max(picture.width, int(font.getlength(caption)) + 12)
    half = Image.new("RGB", (width, picture.height + CAPTION_HEIGHT), "white")
    half.paste(picture, (0, CAPTION_HEIGHT))
    ImageDraw.Draw(half).text((6, 6), caption, fill="black", font=font)
    return half
