"""Predictions of a trained run on any images: pictures, and a file in COCO's results format."""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from torch import nn
from tqdm import tqdm

from pretrain.files.atomic import named_errors, sha256_of, text_of, whole_file, write_new
from pretrain.files.checkpoints import checkpoint_names, newest_readable
from pretrain.files.image_folders import list_images
from pretrain.files.images import UNREADABLE, read_image
from pretrain.files.metrics import end_last_line
from pretrain.files.results import DetectionResults
from pretrain.files.schema import fault, text, whole
from pretrain.files.text import for_file_name, for_terminal

from ..data.coco_files import read_coco
from ..evaluation.masks import to_coco_json
from ..report.visualize import draw_predictions
from .checkpoint import GuardedCheckpointer
from .outputs import predict
from .trainer import Trainer

LEDGER = "# SHA-256 of the files that predict.py has written here, which it may replace"


class Predicted(TypedDict):
    """The numbers of images and detections, and (path, reason) of each image that was skipped as unreadable."""

    images: int
    detections: int
    skipped: list[tuple[Path, str]]


def predict_images(
    cfg: CfgNode, run: str | Path, paths: Iterable[str | Path], output: str | Path, threshold: float = 0.5
) -> Predicted:
    """Detect objects in images with a trained run, and write ``predictions.json`` and ``pictures/*.jpg``, in place of
    those of an earlier prediction.

    ``predictions.json`` has COCO's lists "images" (id, file_name, width, height), "categories" (id, name) and
    "annotations". The last one holds all detections in COCO's results format (image_id, category_id, bbox, score,
    segmentation); pycocotools' ``loadRes`` reads it.

    Args:
        cfg: the run's config; without a GPU the CPU is used.
        run: its folder, with model_final.pth or last_checkpoint.
        paths: images, and folders with images at any depth.
        output: folder for the files, made if need be.
        threshold: lowest score of a drawn detection.

    Raises:
        FileNotFoundError: if an image or the run's weights are missing, or a folder holds no images.
        ValueError: if the weights do not fit the config, no image is readable, or a file to be written exists and is
            not of an earlier prediction.
        OSError: if a file cannot be written.
    """
    files = find_images(paths)
    names = picture_names(files)
    written = WrittenFiles(output)
    written.refuse_others(["predictions.json", *names.values()], files)
    model = load_model(cfg, run)
    class_names, ids = run_classes(cfg, run)
    metadata = Metadata(name="predict", thing_classes=class_names)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    skipped: list[tuple[Path, str]] = []
    for record, instances in predict(cfg, model, _records(files, skipped)):
        if not images:  # there is something to put in their place
            written.remove_pictures(files)
        height, width = instances.image_size
        images.append({"id": record["image_id"], "file_name": record["file_name"], "width": width, "height": height})
        for found in to_coco_json(instances, record["image_id"]):
            annotations.append({**found, "id": len(annotations) + 1, "category_id": ids[found["category_id"]]})
        picture = draw_predictions(record["pixels"], instances, metadata, threshold)
        save = partial(picture.save, format="JPEG", quality=92, subsampling=0)
        written.write(names[Path(record["file_name"])], save)
    if not images:
        raise ValueError(f"none of {len(files)} images could be read: {skipped[0][0]}: {skipped[0][1]}")
    categories = [{"id": i, "name": name} for i, name in zip(ids, class_names, strict=True)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    written.write("predictions.json", json.dumps(content))
    return {"images": len(images), "detections": len(annotations), "skipped": skipped}


def picture_names(files: Iterable[Path]) -> dict[Path, str]:
    """Image -> unique name of its picture in the output folder, such as "pictures/street.jpg"."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for number, path in enumerate(files, 1):
        stem = for_file_name(path.stem)
        name = stem if stem.lower() not in taken else f"{stem}_{number}"  # the same name in several folders
        while name.lower() in taken:  # a.jpg and A.jpg are one file on some file systems
            name += "_"
        taken.add(name.lower())
        names[path] = f"pictures/{name}.jpg"
    return names


class WrittenFiles:
    """The output files of predictions. Files of an earlier prediction are replaced, other files never.

    ``.written`` in the folder lists the SHA-256 and name of each file, below a header line. It recognises files that
    were changed or are not ours, also after a kill.
    """

    def __init__(self, folder: str | Path) -> None:
        """
        Args:
            folder: of the files.

        Raises:
            ValueError: if a ``.written`` without our header line exists.
        """
        self.folder, self.ledger = Path(folder), Path(folder, ".written")
        first, *lines = text_of(self.ledger).splitlines() or [LEDGER]
        if first != LEDGER or self.ledger.is_symlink():
            raise ValueError(f"{self.ledger} exists and is not of an earlier prediction: name another --output")
        self.ours = {tuple(line.split("  ", 1)) for line in lines}

    def refuse_others(self, names: Iterable[str], inputs: Iterable[str | Path]) -> None:
        """Refuse to replace files that are not of an earlier prediction.

        Args:
            names: files that will be written, relative to the folder.
            inputs: files that will be read.

        Raises:
            ValueError: if one of the files exists and is not of an earlier prediction, or is one of the inputs.
        """
        read = {os.path.realpath(path) for path in inputs}
        for name in names:
            path = self.folder / name
            if os.path.realpath(path) in read:
                raise ValueError(f"{path} is one of the images and would be replaced: name another --output")
            if os.path.lexists(path) and not self._is_ours(path, name):
                raise ValueError(f"{path} exists and is not of an earlier prediction: name another --output")

    def remove_pictures(self, inputs: Iterable[str | Path]) -> None:
        """Remove the pictures of earlier predictions, but for those that have been changed since.

        Args:
            inputs: files that will be read, which stay.

        Raises:
            OSError: if one cannot be removed.
        """
        read = {os.path.realpath(path) for path in inputs}
        for name in sorted({name for _, *rest in self.ours for name in rest}):
            path = self.folder / name
            if Path(name).parent != Path("pictures") or os.path.realpath(path) in read:
                continue
            if self._is_ours(path, name):
                path.unlink()

    def _is_ours(self, path: Path, name: str) -> bool:
        return path.is_file() and not path.is_symlink() and (sha256_of(path), name) in self.ours

    def write(self, name: str, content: str | bytes | Callable[[BinaryIO], object]) -> None:
        """Write a file atomically and list it in ``.written``.

        Args:
            name: of the file, relative to the folder.
            content: as in :func:`pretrain.files.atomic.write_whole`.

        Raises:
            OSError: if it cannot be written.
        """
        path = self.folder / name
        with whole_file(path) as temporary:
            write_new(temporary, content, path)
            with named_errors(self.ledger):
                end_last_line(self.ledger)  # a full disk may have cut the last line short
            with named_errors(self.ledger), open(self.ledger, "a") as ledger:
                if not ledger.tell():
                    ledger.write(f"{LEDGER}\n")
                ledger.write(f"{sha256_of(temporary)}  {name}\n")


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """List images.

    Args:
        paths: images, and folders with images at any depth.

    Returns:
        Each image once; those of a folder are sorted.

    Raises:
        FileNotFoundError: if a path does not exist, or a folder holds no images.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        files += map(Path, list_images(path)) if path.is_dir() else [path]
    return list(dict.fromkeys(files))


def _records(files: Sequence[Path], skipped: list[tuple[Path, str]]) -> Iterator[dict[str, Any]]:
    """Detectron2 dataset dicts of the readable images; the others are appended to ``skipped`` and printed."""
    ids = itertools.count(1)
    for path in (bar := tqdm(files, unit="image")):
        try:
            pixels = read_image(path)
        except UNREADABLE as error:
            reason = " ".join(str(error).split()).removeprefix(f"{path}: ")
            skipped.append((path, reason))
            bar.write(for_terminal(f"skipped {path}: {reason}"))
            continue
        yield {"file_name": str(path), "image_id": next(ids), "pixels": pixels}


def load_model(cfg: CfgNode, run: str | Path) -> nn.Module:
    """The trained detector of a run, from its newest intact checkpoint.

    Args:
        cfg: the run's config; MODEL.DEVICE becomes "cpu" if it is a GPU and there is none.
        run: the run's folder.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if no checkpoint can be read, or it does not fill the detector.
    """
    if not checkpoint_names(run):
        raise FileNotFoundError(f"{run}: neither model_final.pth nor last_checkpoint: train it with tools/train_net.py")
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    path, _ = newest_readable(run)
    model = Trainer.build_model(cfg)
    checkpointer = GuardedCheckpointer(model)
    checkpointer.required = ""
    checkpointer.load(path, checkpointables=[])
    return model


def run_classes(cfg: CfgNode, run: str | Path) -> tuple[list[str], list[int]]:
    """Names and ids of a run's classes, in the network's order.

    They are those of results.json or, before the first evaluation, of the data; without data the names are numbered.

    Args:
        cfg: the run's config.
        run: the run's folder.

    Raises:
        ValueError: if results.json or the annotations are damaged, or have another number of classes.
    """
    count, stored = cfg.MODEL.ROI_HEADS.NUM_CLASSES, Path(run, "results.json")
    content = DetectionResults.read(stored) if stored.is_file() else DetectionResults()
    names, ids = content.thing_classes, content.category_ids
    custom = cfg.DATASETS.CUSTOM.TRAIN_JSON or cfg.DATASETS.CUSTOM.TEST_JSON
    if names is None and custom and Path(custom).is_file():
        names, ids = _categories(custom)
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata: Any = MetadataCatalog.get(dataset) if dataset in MetadataCatalog.list() else {}
        if names is None and metadata and metadata.get("thing_classes"):
            names = list(metadata.thing_classes)
            places: dict[int, int] = metadata.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(count)}
            ids = sorted(places, key=places.__getitem__)
    if names is None:
        names, ids = [f"class {i}" for i in range(count)], list(range(count))
    if len(names) != count:
        raise ValueError(f"{run}: results.json names {len(names)} classes, MODEL.ROI_HEADS.NUM_CLASSES is {count}")
    if ids is None or not len(ids) == len(set(ids)) == count:
        raise ValueError(f"{stored} is damaged (category_ids): evaluate that run again")
    return names, ids


def _categories(path: str) -> tuple[list[str], list[int]]:
    """Names and ids of the classes in a COCO annotation file, sorted by id; raises ValueError if they are damaged."""
    entries = read_coco(path, ("categories",))["categories"]
    if fault(entries, [{"id": whole, "name": text}]) or len({entry["id"] for entry in entries}) < len(entries):
        raise ValueError(f"{path}: its categories are damaged: tools/check_dataset.py says more")
    entries = sorted(entries, key=lambda entry: entry["id"])
    return [entry["name"] for entry in entries], [entry["id"] for entry in entries]
