#!/usr/bin/env python3
"""The detection loader: mapped images a second on one core, beside Detectron2's mapper and torchvision v2.

    python benchmarks/loading.py [--count 40] [--rounds 5]
    python benchmarks/loading.py --images coco/train2017 --annotations coco/annotations/instances_train2017.json

Every row reads the same JPEG files, resizes them as the published recipe does (shorter side of 640 to 800 px, longer
side of at most 1333 px), flips half of them, and transforms boxes and polygons. Without --images, images of 640 x 480
px with the spectrum of photographs and 7 objects each are made here. The files lie in the cache. One process, one
thread; the rows take turns, round after round; the figures are CPU time.

All rows draw the same sizes and flips, so that their pixels, boxes and masks can be compared with Detectron2's.
"""

import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from torchvision import tv_tensors
from torchvision.io import decode_image
from torchvision.transforms.v2 import functional

from benchmarks import common
from benchmarks.augmentation import made_images
from loco_det.config import add_loco_config
from loco_det.data.mapper import ImageMapper

SMOKE = {"count": 2, "rounds": 1}
PEER = "Detectron2's DatasetMapper"
SIZE = 480, 640
SHORTER, LONGER = (640, 672, 704, 736, 768, 800), 1333


def made_records(folder, count):
    """Dataset dicts of images made here, each with 7 objects of 30 points."""
    rng, records = np.random.default_rng(0), []
    angles = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    for i, image in enumerate(made_images(count, SIZE)):
        path = Path(folder) / f"{i:05d}.jpg"
        image.save(path, quality=(90, 92, 95)[i % 3])
        objects = []
        for _ in range(7):
            radii = rng.uniform(15, 75) * rng.uniform(0.7, 1.3, (30, 1))
            points = np.stack([np.cos(angles), np.sin(angles)], 1) * radii + rng.uniform(100, SIZE[0] - 100, 2)
            points = points.round(2)
            box = [*points.min(0).tolist(), *(points.max(0) - points.min(0)).round(2).tolist()]
            thing = {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": int(rng.integers(80)), "iscrowd": 0}
            objects.append({**thing, "segmentation": [points.ravel().tolist()]})
        records.append({"file_name": str(path), "height": SIZE[0], "width": SIZE[1], "annotations": objects})
    return records


def settings(exact):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.MODEL.MASK_ON, cfg.INPUT.FORMAT, cfg.INPUT.EXACT_RESIZE = True, "RGB", exact
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = SHORTER, LONGER, "choice"
    return cfg


def torchvision(record):
    """Image, boxes and polygons by torchvision's decoder and v2 functions; the random draws are Detectron2's."""
    image = tv_tensors.Image(decode_image(record["file_name"], "RGB"))
    objects = [thing for thing in record["annotations"] if not thing.get("iscrowd")]
    old = record["height"], record["width"]
    polygons = [np.reshape(polygon, (-1, 2)) for thing in objects for polygon in thing["segmentation"]]
    boxes = torch.tensor([thing["bbox"] for thing in objects], dtype=torch.float32).reshape(-1, 4)
    boxes = tv_tensors.BoundingBoxes(boxes, format="XYWH", canvas_size=old)
    points = tv_tensors.KeyPoints(np.concatenate(polygons) if polygons else np.zeros((0, 2)), canvas_size=old)
    new = T.ResizeShortestEdge.get_output_shape(*old, np.random.choice(SHORTER), LONGER)
    flip = np.random.uniform() < 0.5
    found = []
    for value in (image, functional.convert_bounding_box_format(boxes, new_format="XYXY"), points):
        value = functional.resize(value, list(new), antialias=True)
        found.append(functional.horizontal_flip(value) if flip else value)
    pieces = torch.split(found[2].as_subclass(torch.Tensor), [len(polygon) for polygon in polygons])
    return found[0], functional.clamp_bounding_boxes(found[1]), [piece.flatten().numpy() for piece in pieces]


def mapped(mapper):
    """A mapper's image, boxes and polygons."""

    def function(record):
        found = mapper(record)
        return found["image"], found["instances"].gt_boxes.tensor, found["instances"]

    return function


def pipelines():
    """Name of a row of the table -> function of a dataset dict that returns image, boxes and polygons."""
    return {
        PEER: mapped(DatasetMapper(settings(False))),
        "ours": mapped(ImageMapper(settings(False))),
        "ours, INPUT.EXACT_RESIZE True": mapped(ImageMapper(settings(True))),
        "torchvision v2": torchvision,
    }


def compared(mine, theirs):
    """The largest difference of a pixel from Detectron2's, and whether boxes and polygons are equal."""
    pixels = (mine[0].int() - theirs[0].int()).abs().max().item()
    polygons, expected = (_polygons(found[2]) for found in (mine, theirs))
    same = len(polygons) == len(expected) and all(map(np.array_equal, polygons, expected))
    return pixels, bool(torch.equal(mine[1].as_subclass(torch.Tensor), theirs[1]) and same)


def _polygons(found):
    if isinstance(found, list):
        return found
    return [polygon for polygons in found.gt_masks for polygon in polygons] if found.has("gt_masks") else []


def add_arguments(parser):
    parser.add_argument("--images", metavar="FOLDER", help="photographs; without it images are made")
    parser.add_argument("--annotations", metavar="JSON", help="their COCO instance annotations")
    parser.add_argument("--count", type=int, default=40, help="images (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")


def measure(args):
    if bool(args.images) != bool(args.annotations):
        raise ValueError("--images and --annotations are given together or not at all")
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if args.images:
                records = load_coco_json(args.annotations, args.images)[: args.count]
                args.images, args.annotations = (Path(os.path.abspath(p)).name for p in (args.images, args.annotations))
            else:
                records = made_records(folder, args.count)
            return timed(records, pipelines(), args.rounds)
    finally:
        logging.disable(logging.NOTSET)


def timed(records, found, rounds):
    """Seconds of CPU time an image of each round, and how each row compares with Detectron2's."""
    seconds, differences = {name: [] for name in found}, {name: [] for name in found}
    for i, record in enumerate(records):
        results = {}
        for name, function in found.items():
            np.random.seed(i)
            results[name] = function(record)
            differences[name].append(compared(results[name], results[PEER]))
    for number in range(rounds):
        common.progress(f"round {number + 1}/{rounds}")
        for name, function in found.items():
            np.random.seed(number)
            start = time.process_time()
            for record in records:
                function(record)
            seconds[name].append((time.process_time() - start) / len(records))
    equal = {name: all(same for _, same in values) for name, values in differences.items()}
    largest = {name: max(pixels for pixels, _ in values) for name, values in differences.items()}
    objects = sum(len(record["annotations"]) for record in records) / len(records)
    size = sum(os.path.getsize(record["file_name"]) for record in records) / len(records)
    return {
        "images": len(records), "objects": objects, "bytes": size, "seconds_an_image": seconds,
        "largest_difference": largest, "boxes_and_masks_equal": equal,
    }  # fmt: skip


def markdown(record):
    settings, found, rows = record["settings"], record["results"], []
    for name, own in found["seconds_an_image"].items():
        image = statistics.median(own)
        ratio = f"{common.median_ratio(found['seconds_an_image'][PEER], own):.2f}"
        equal = "yes" if found["boxes_and_masks_equal"][name] else "no"
        levels = str(found["largest_difference"][name])
        rows.append([name, f"{1 / image:.0f}", f"{image * 1000:.2f}", ratio, levels, equal])
    kind = "photographs" if settings["images"] else "made images of 640 x 480"
    columns = [
        "mapper",
        ">images/s on a core",
        ">ms",
        ">x Detectron2",
        ">largest difference (levels)",
        ">boxes, masks equal",
    ]
    return (
        f"{found['images']} {kind}, {found['bytes'] / 1000:.0f} kB and {found['objects']:.1f} objects each; CPU time, "
        f"median of {settings['rounds']} rounds; one thread.\n\n" + common.table(columns, rows)
    )


if __name__ == "__main__":
    common.main(sys.modules[__name__])
