"""Pictures of detections: the ground truth on the left, the prediction on the right, one colour for each class."""

import colorsys
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from detectron2.data import detection_utils as d2_utils
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import GenericMask, Visualizer
from PIL import Image, ImageDraw, ImageFont

from pretrain.files.atomic import write_whole
from pretrain.files.figures import quiet_fonts
from pretrain.files.images import read_image
from pretrain.files.text import for_figure, for_file_name, for_terminal, shortened

MIN_SIDE, MAX_SIDE = 480, 1024  # pixels that the longer side of a half is brought to, where it is shorter or longer
CAPTION_HEIGHT, GAP = 30, 8  # pixels
ALPHA = 0.4  # opacity of masks
LABEL = 32  # columns of a class's name
LABEL_POINTS = 11  # Visualizer writes labels at 0.6 to 1 times this size
CROWDED = 25  # with more objects than this, only the large ones get a label: the others would hide the picture
# Used where the metadata of a dataset has no thing_colors: bright enough for dark images, told apart when neighbours
PALETTE = [(230, 159, 0), (86, 180, 233), (0, 200, 130), (240, 228, 66), (230, 80, 60), (204, 121, 167)]


def class_color(index, metadata):
    """The colour of a class, the same in every picture of a dataset.

    Args:
        index: contiguous class index.
        metadata: the dataset's Detectron2 metadata; its ``thing_colors`` are used if they reach that far.

    Returns:
        (r, g, b) in [0, 1].
    """
    colors = metadata.get("thing_colors") or PALETTE
    if index < len(colors):
        return tuple(c / 255 for c in colors[index])
    return colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.6, 1.0)  # golden-ratio steps: neighbours differ in hue


def objects_of_record(record):
    """Boxes (N, 4) XYXY in pixels, masks (polygons or RLE), classes and crowd flags of a Detectron2 dataset dict."""
    found = record.get("annotations", [])
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in found]
    masks = [a.get("segmentation", []) for a in found]
    labels = ["crowd" if a.get("iscrowd") else "" for a in found]
    return boxes, masks, [a["category_id"] for a in found], labels


def _objects_of_instances(instances, threshold):
    """The same of predicted ``Instances``, with scores as labels."""
    found = instances.to("cpu")
    found = found[found.scores >= threshold]
    boxes = found.pred_boxes.tensor.numpy()
    masks = list(found.pred_masks.numpy()) if found.has("pred_masks") else [[]] * len(found)
    return boxes, masks, found.pred_classes.tolist(), [f"{s:.0%}" for s in found.scores.tolist()]


def draw_half(image, objects, metadata, caption):
    """Draw objects on an image (H, W, 3) uint8 RGB, scaled to a readable size, below a caption. Returns a PIL image."""
    boxes, masks, classes, labels = objects
    longer = max(image.shape[:2])
    # Whole factors upwards, so that every pixel of a small image becomes a square of the same size
    scale = -(-MIN_SIDE // longer) if longer < MIN_SIDE else min(1, MAX_SIDE / longer)
    names = metadata.get("thing_classes") or []
    if len(names) != 1:  # with a single class its name on every box says nothing: the caption has it
        classes_text = [for_figure(names[c] if c < len(names) else c, LABEL) for c in classes]
        labels = [f"{name} {label}".strip() for name, label in zip(classes_text, labels, strict=True)]
    else:
        caption = f"{caption} ({shortened(for_terminal(names[0]), LABEL)})"
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]
    smallest_labelled = sorted(areas, reverse=True)[CROWDED] if len(areas) > CROWDED else -1
    visualizer = Visualizer(image, metadata, scale=scale)
    visualizer._default_font_size = LABEL_POINTS / scale  # its own default is unreadable on scaled images
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


def draw_comparison(record, predictions, metadata, score_threshold=0.5):
    """Draw the ground truth of an image beside what was predicted for it.

    Args:
        record: a Detectron2 dataset dict: ``file_name`` and ``annotations`` with boxes and polygons or RLE masks.
        predictions: ``Instances`` of the image's size, with pred_boxes, scores, pred_classes and perhaps pred_masks.
        metadata: the dataset's Detectron2 metadata.
        score_threshold: predictions with a lower score are not drawn.

    Returns:
        uint8 RGB array (H', W', 3).

    Raises:
        FileNotFoundError: if the image is not there.
        ValueError: if the image has another size than the record or the predictions say.
    """
    image = read_image(record["file_name"])
    d2_utils.check_image_size(record, image)
    size = image.shape[:2]
    if tuple(predictions.image_size) != size:
        raise ValueError(f"{record['file_name']} is {size} (height, width), its prediction {predictions.image_size}")
    truth, predicted = objects_of_record(record), _objects_of_instances(predictions, score_threshold)
    left = draw_half(image, truth, metadata, f"ground truth: {len(truth[0])}")
    right = draw_half(image, predicted, metadata, f"prediction: {len(predicted[0])}, score ≥ {score_threshold:g}")
    both = Image.new("RGB", (left.width + GAP + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + GAP, 0))
    return np.asarray(both)


def draw_predictions(image, predictions, metadata, score_threshold=0.5):
    """Draw what was predicted for an image, scaled to a readable size.

    Args:
        image: (H, W, 3) uint8 RGB.
        predictions, metadata, score_threshold: as in :func:`draw_comparison`.

    Returns:
        PIL image.
    """
    objects = _objects_of_instances(predictions, score_threshold)
    return draw_half(image, objects, metadata, f"{len(objects[0])} objects, score ≥ {score_threshold:g}")


def save_comparisons(pairs, metadata, output_dir, score_threshold=0.5):
    """Write a picture by :func:`draw_comparison` for each pair, each of them whole or not at all.

    Args:
        pairs: iterable of (dataset dict, ``Instances``).
        metadata: the dataset's Detectron2 metadata.
        output_dir: folder for these pictures alone, made if need be. Files of the same name are replaced; once all
            pictures are written, every other ``*.png`` in it is removed.
        score_threshold: predictions with a lower score are not drawn.

    Returns:
        list of Path: the files, in the order of the pairs.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (record, predictions) in enumerate(pairs):
        path = output_dir / f"{number:03d}_{for_file_name(Path(record['file_name']).stem)}.png"
        picture = Image.fromarray(draw_comparison(record, predictions, metadata, score_threshold))
        write_whole(path, partial(picture.save, format="PNG"))
        paths.append(path)
    # Those of an earlier evaluation, with more pictures or of other images: the report would show them as this one's
    for stale in set(output_dir.glob("*.png")) - set(paths):
        stale.unlink()
    return paths


def pick_records(records, count):
    """Pick ``count`` records spread evenly over those with annotations (over all, if none has any), in their order."""
    records = [r for r in records if r.get("annotations")] or list(records)
    count = min(count, len(records))
    return [records[i * len(records) // count] for i in range(count)]
