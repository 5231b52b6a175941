"""A trained run on images of any kind: pictures of what it finds, and COCO's results format."""

import itertools
import json
from functools import partial
from pathlib import Path

import torch
from detectron2.data import Metadata, MetadataCatalog, detection_utils
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from pretrain.engine.text import for_file_name, for_terminal

from .checkpoint import GuardedCheckpointer
from .results import predict
from .run_folder import write_whole
from .trainer import Trainer
from .visualize import draw_predictions

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises on damaged files


def predict_images(cfg, run, paths, output, threshold=0.5):
    """Detect objects in images with a trained run, and write ``predictions.json`` and ``pictures/*.jpg``.

    ``predictions.json`` has COCO's lists "images" (id, file_name, width, height), "categories" (id, name) and
    "annotations": all detections in COCO's results format (image_id, category_id, bbox, score, segmentation), so that
    pycocotools' ``loadRes`` takes this last list.

    Args:
        cfg: the run's config; a GPU that is not there is replaced by the CPU.
        run: its folder, with model_final.pth or last_checkpoint.
        paths: images, and folders with images at any depth.
        output: folder, made if need be.
        threshold: lowest score that is drawn.

    Returns:
        dict: "images", "detections": numbers; "skipped": list of (path, reason) of unreadable images.

    Raises:
        FileNotFoundError: if an image, or the run's weights, are missing, or a folder holds no images.
        ValueError: if the weights do not fit the config, or no image could be read.
    """
    files, output = find_images(paths), Path(output)
    model = load_model(cfg, run)
    names, ids = run_classes(cfg, run)
    metadata = Metadata(name="predict", thing_classes=names)
    images, annotations, skipped, taken = [], [], [], set()
    for record, instances in predict(cfg, model, _records(files, skipped)):
        pixels, (height, width) = record["pixels"], instances.image_size
        images.append({"id": record["image_id"], "file_name": record["file_name"], "width": width, "height": height})
        for found in instances_to_coco_json(instances, record["image_id"]):
            annotations.append({**found, "id": len(annotations) + 1, "category_id": ids[found["category_id"]]})
        picture = draw_predictions(pixels, instances, metadata, threshold)
        stem = for_file_name(Path(record["file_name"]).stem)
        name = stem if stem not in taken else f"{stem}_{record['image_id']}"  # the same name in several folders
        taken.add(name)
        save = partial(picture.save, format="JPEG", quality=92, subsampling=0)
        write_whole(output / "pictures" / f"{name}.jpg", save)
    if not images:
        raise ValueError(f"none of {len(files)} images could be read: {skipped[0][0]}: {skipped[0][1]}")
    categories = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    write_whole(output / "predictions.json", json.dumps(content).encode())
    return {"images": len(images), "detections": len(annotations), "skipped": skipped}


def find_images(paths):
    """The images among and beneath the paths, each once, those of a folder sorted; raises FileNotFoundError."""
    files = []
    for path in map(Path, paths):
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not found or not path.exists():
            raise FileNotFoundError(f"{path}: {'no images in this folder' if path.is_dir() else 'no such file'}")
        files += found
    return list(dict.fromkeys(files))


def _records(files, skipped):
    """Detectron2 dataset dicts of the readable images; the others go into ``skipped`` and get a line."""
    ids = itertools.count(1)
    for path in (bar := tqdm(files, unit="image")):
        try:
            pixels = detection_utils.read_image(str(path), format="RGB")
        except UNREADABLE as error:
            unknown = isinstance(error, UnidentifiedImageError)
            reason = "no image, or damaged" if unknown else " ".join(str(error).split()) or type(error).__name__
            skipped.append((path, reason))
            bar.write(for_terminal(f"skipped {path}: {reason}"))
            continue
        yield {"file_name": str(path), "image_id": next(ids), "pixels": pixels}


def load_model(cfg, run):
    """The trained detector of a run folder; raises FileNotFoundError or ValueError."""
    final, last = Path(run, "model_final.pth"), Path(run, "last_checkpoint")
    if not final.is_file() and not last.is_file():
        raise FileNotFoundError(f"{run}: neither model_final.pth nor last_checkpoint: train it with tools/train_net.py")
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    model = Trainer.build_model(cfg)
    checkpointer = GuardedCheckpointer(model)
    checkpointer.required = ""
    checkpointer.load(str(final if final.is_file() else Path(run, last.read_text().strip())), checkpointables=[])
    return model


def run_classes(cfg, run):
    """Names and ids of a run's classes: from its results.json; before its evaluation from what the data says.

    Returns:
        tuple: list of names, list of ids; numbers if the data is not at hand.
    """
    count, stored = cfg.MODEL.ROI_HEADS.NUM_CLASSES, Path(run, "results.json")
    content = json.loads(stored.read_text()) if stored.is_file() else {}
    names, ids = content.get("thing_classes"), content.get("category_ids")
    custom = cfg.DATASETS.CUSTOM.TRAIN_JSON or cfg.DATASETS.CUSTOM.TEST_JSON
    if names is None and custom and Path(custom).is_file():
        categories = sorted(json.loads(Path(custom).read_text())["categories"], key=lambda c: c["id"])
        names, ids = [c["name"] for c in categories], [c["id"] for c in categories]
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata = MetadataCatalog.get(dataset) if dataset in MetadataCatalog.list() else {}
        if names is None and metadata and metadata.get("thing_classes"):
            names = list(metadata.thing_classes)
            places = metadata.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(count)}
            ids = sorted(places, key=places.get)
    if names is None:
        names, ids = [f"class {i}" for i in range(count)], list(range(count))
    if len(names) != count:
        raise ValueError(f"{run}: results.json names {len(names)} classes, MODEL.ROI_HEADS.NUM_CLASSES is {count}")
    return names, ids
