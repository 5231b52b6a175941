"""Pictures of detections: the ground truth on the left, the prediction on the right, one colour for each class."""

import colorsys
import json
import os
from pathlib import Path

import matplotlib
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import detection_utils as d2_utils
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import GenericMask, Visualizer
from PIL import Image, ImageDraw, ImageFont

MIN_SIDE, MAX_SIDE = 480, 1024  # pixels that the longer side of a half is brought to, where it is shorter or longer
CAPTION_HEIGHT, GAP = 30, 8  # pixels
ALPHA = 0.4  # opacity of masks
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


def _objects_of_record(record):
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


def _objects_of_results(results, threshold, metadata, size):
    """The same of entries of ``coco_instances_results.json`` for one image of ``size`` (H, W)."""
    found = [r for r in results if r["score"] >= threshold]
    to_contiguous = metadata.get("thing_dataset_id_to_contiguous_id")
    classes, masks = [], []
    for result in found:
        category = result["category_id"]
        if to_contiguous is not None and category not in to_contiguous:
            raise ValueError(f"a prediction has category id {category}, which the dataset does not have")
        classes.append(category if to_contiguous is None else to_contiguous[category])
        mask = result.get("segmentation", [])
        if mask and tuple(mask["size"]) != size:
            raise ValueError(
                f"a prediction for image {result['image_id']} has a mask of {mask['size']} pixels (height, width), "
                f"the image has {list(size)}: the results belong to other images"
            )
        masks.append(mask)
    boxes = [BoxMode.convert(r["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for r in found]
    return boxes, masks, classes, [f"{r['score']:.0%}" for r in found]


def _draw_half(image, objects, metadata, caption):
    """Draw objects on an image (H, W, 3) uint8 RGB, scaled to a readable size, below a caption. Returns a PIL image."""
    boxes, masks, classes, labels = objects
    longer = max(image.shape[:2])
    # Whole factors upwards, so that every pixel of a small image becomes a square of the same size
    scale = -(-MIN_SIDE // longer) if longer < MIN_SIDE else min(1, MAX_SIDE / longer)
    names = metadata.get("thing_classes") or []
    if len(names) != 1:  # with a single class its name on every box says nothing: the caption has it
        classes_text = [names[c] if c < len(names) else str(c) for c in classes]
        labels = [f"{name} {label}".strip() for name, label in zip(classes_text, labels, strict=True)]
    else:
        caption = f"{caption} ({names[0]})"
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
        predictions: ``Instances`` with pred_boxes, scores, pred_classes and perhaps pred_masks, of the image's size;
            or the entries of ``coco_instances_results.json`` for this image (a list, which may be empty).
        metadata: the dataset's Detectron2 metadata.
        score_threshold: predictions with a lower score are not drawn.

    Returns:
        uint8 RGB array (H', W', 3).

    Raises:
        FileNotFoundError: if the image is not there.
        ValueError: if the image or the predictions do not fit the dataset.
    """
    image = d2_utils.read_image(record["file_name"], format="RGB")
    d2_utils.check_image_size(record, image)
    size = image.shape[:2]
    truth = _objects_of_record(record)
    if isinstance(predictions, Instances):
        if tuple(predictions.image_size) != size:
            raise ValueError(
                f"{record['file_name']} is {size} (height, width), its prediction {predictions.image_size}"
            )
        predicted = _objects_of_instances(predictions, score_threshold)
    else:
        predicted = _objects_of_results(predictions, score_threshold, metadata, size)
    left = _draw_half(image, truth, metadata, f"ground truth: {len(truth[0])}")
    right = _draw_half(image, predicted, metadata, f"prediction: {len(predicted[0])}, score ≥ {score_threshold:g}")
    both = Image.new("RGB", (left.width + GAP + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + GAP, 0))
    return np.asarray(both)


def save_comparisons(pairs, metadata, output_dir, score_threshold=0.5):
    """Write a picture by :func:`draw_comparison` for each pair, each of them whole or not at all.

    Args:
        pairs: iterable of (dataset dict, predictions).
        metadata: the dataset's Detectron2 metadata.
        output_dir: folder for the PNG files, made if need be. Files of the same name are replaced.
        score_threshold: predictions with a lower score are not drawn.

    Returns:
        list of Path: the files, in the order of the pairs.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (record, predictions) in enumerate(pairs):
        path = output_dir / f"{number:03d}_{Path(record['file_name']).stem}.png"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            Image.fromarray(draw_comparison(record, predictions, metadata, score_threshold)).save(temporary, "PNG")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        paths.append(path)
    return paths


def pick_records(records, count):
    """Pick ``count`` records spread evenly over those with annotations (over all, if none has any), in their order."""
    records = [r for r in records if r.get("annotations")] or list(records)
    count = min(count, len(records))
    return [records[i * len(records) // count] for i in range(count)]


def read_results(results_json):
    """Read ``inference/coco_instances_results.json`` as Detectron2's COCOEvaluator writes it.

    Returns:
        dict: image id -> list of its entries (image_id, category_id, bbox XYWH in pixels, score, segmentation as RLE).

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is not a list of such entries.
    """
    by_image = {}
    try:
        for entry in json.loads(Path(results_json).read_text()):
            float(entry["score"]), entry["category_id"], entry["bbox"]
            by_image.setdefault(entry["image_id"], []).append(entry)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{results_json} is not a COCO results file: {error!r}") from error
    return by_image


def save_dataset_comparisons(dataset_name, results_json, output_dir, num_images=8, score_threshold=0.5):
    """Write pictures of a spread of images of a registered dataset, always the same ones.

    Args:
        dataset_name: name in Detectron2's DatasetCatalog.
        results_json: path of the run's ``inference/coco_instances_results.json``.
        output_dir, score_threshold: as in :func:`save_comparisons`.
        num_images: number of pictures, at most.

    Returns:
        list of Path: the files.
    """
    results = read_results(results_json)
    records = pick_records(DatasetCatalog.get(dataset_name), num_images)
    pairs = ((record, results.get(record["image_id"], [])) for record in records)
    return save_comparisons(pairs, MetadataCatalog.get(dataset_name), output_dir, score_threshold)
