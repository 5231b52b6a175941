"""Pictures of detections: the ground truth on the left, the prediction on the right."""

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.data import detection_utils as d2_utils
from detectron2.structures import Instances
from PIL import Image

from pretrain.files.atomic import write_whole
from pretrain.files.images import read_image
from pretrain.files.text import for_file_name

from .drawing import draw_half, objects_of_instances, objects_of_record
from .pictures import GAP


def draw_comparison(
    record: dict[str, Any], predictions: Instances, metadata: Metadata, score_threshold: float = 0.5
) -> np.ndarray:
    """Draw the ground truth of an image beside the predictions.

    Args:
        record: a Detectron2 dataset dict: ``file_name`` and ``annotations`` with boxes and polygons or RLE masks.
        predictions: of the image's size, with pred_boxes, scores, pred_classes and perhaps pred_masks.
        metadata: of the data set.
        score_threshold: predictions with a lower score are not drawn.

    Returns:
        (H', W', 3) uint8 RGB.

    Raises:
        OSError, ValueError: naming the file, if it cannot be read or its size differs from the record's or the
            predictions'.
    """
    image = read_image(record["file_name"])
    d2_utils.check_image_size(record, image)
    size = image.shape[:2]
    if tuple(predictions.image_size) != size:
        raise ValueError(f"{record['file_name']} is {size} (height, width), its prediction {predictions.image_size}")
    truth, predicted = objects_of_record(record), objects_of_instances(predictions, score_threshold)
    left = draw_half(image, truth, metadata, f"ground truth: {len(truth.boxes)}")
    right = draw_half(image, predicted, metadata, f"prediction: {len(predicted.boxes)}, score ≥ {score_threshold:g}")
    both = Image.new("RGB", (left.width + GAP + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + GAP, 0))
    return np.asarray(both)


def draw_predictions(
    image: np.ndarray, predictions: Instances, metadata: Metadata, score_threshold: float = 0.5
) -> Image.Image:
    """Draw the predictions for an image, scaled to a readable size.

    Args:
        image: (H, W, 3) uint8 RGB.
        predictions, metadata, score_threshold: as in :func:`draw_comparison`.
    """
    objects = objects_of_instances(predictions, score_threshold)
    return draw_half(image, objects, metadata, f"{len(objects.boxes)} objects, score ≥ {score_threshold:g}")


def save_comparisons(
    pairs: Iterable[tuple[dict[str, Any], Instances]],
    metadata: Metadata,
    output_dir: str | os.PathLike[str],
    score_threshold: float = 0.5,
) -> list[Path]:
    """Write a picture by :func:`draw_comparison` for each pair, each of them whole or not at all.

    Args:
        pairs: dataset dicts and their predictions.
        metadata: of the data set.
        output_dir: folder for these pictures alone, created if missing. Once all pictures are written, every other
            ``*.png`` in it is removed.
        score_threshold: predictions with a lower score are not drawn.

    Returns:
        The files, in the order of the pairs.

    Raises:
        OSError: if a file cannot be read or written.
        ValueError: as in :func:`draw_comparison`.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (record, predictions) in enumerate(pairs):
        path = output_dir / f"{number:03d}_{for_file_name(Path(record['file_name']).stem)}.png"
        picture = Image.fromarray(draw_comparison(record, predictions, metadata, score_threshold))
        write_whole(path, partial(picture.save, format="PNG"))
        paths.append(path)
    # The report would show pictures of an earlier evaluation as this one's
    for stale in set(output_dir.glob("*.png")) - set(paths):
        stale.unlink()
    return paths


def pick_records(records: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Pick up to ``count`` records spread evenly over those with annotations (over all, if none has any), in order."""
    records = [r for r in records if r.get("annotations")] or list(records)
    count = min(count, len(records))
    return [records[i * len(records) // count] for i in range(count)]
