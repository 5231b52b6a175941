"""The files that a detection run leaves: ``results.json`` for scripts, ``analysis.json`` and ``.png``, ``pictures/``.

The keys of ``results.json`` are the fields of :class:`pretrain.files.results.DetectionResults`.
"""

import contextlib
import dataclasses
import json
import logging
import os
import resource
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import nn

from pretrain.encoders import is_own_code
from pretrain.files.atomic import sha256_of, write_whole
from pretrain.files.figures import png
from pretrain.files.results import DetectionResults, Published
from pretrain.files.results.detection import without_nan
from pretrain.files.safe_load import read
from pretrain.files.text import for_figure
from pretrain.files.yaml_files import parse_yaml

from ..data.mapper import ImageMapper
from ..evaluation.analysis import analyze
from ..evaluation.inference import without_pasting
from ..evaluation.voc import ground_truth_path
from ..modeling import light_detector
from ..runs.folder import is_finished, read_run
from ..runs.published import published_row
from .checkpoint import local_weights
from .comparison import comparability_of
from .problems import UnfinishedRun, recorded

logger = logging.getLogger(__name__)

PREDICTIONS = os.path.join("inference", "coco_instances_results.json")  # of Detectron2's COCO evaluator
CITYSCAPES_IMAGES = 2975  # of the fine training set
DETECTORS = {"GeneralizedRCNN": "Mask R-CNN", light_detector.NAME: "light head"}  # MODEL.META_ARCHITECTURE -> its name
COCO_1X = 90000 * 16  # images that Detectron2's 1x schedule of COCO sees


def finish(
    cfg: CfgNode,
    model: nn.Module,
    results: dict,
    state: dict,
    evaluation_seconds: float | None = None,
    problems: Sequence[str] = (),
    resume: bool = True,
) -> None:
    """Write ``results.json``; of the last test set, the analysis; of the first, ``pictures/*.png``.

    What fails is left out, with a warning in the log and a line in results.json, which has the rest. Where there are no
    results at all, what an earlier evaluation has left in the folder stays.

    Args:
        cfg: the config.
        model: the detector.
        results: what ``DefaultTrainer.test`` returned, for one data set or for several.
        state: of the detector's training, as in its checkpoint: "iteration", and "trainer" with the weights that it
            started from and the seconds that it took; empty if not known.
        evaluation_seconds: of that test.
        problems: what has failed before, a line each.
        resume: whether the detector is the folder's last checkpoint, and not MODEL.WEIGHTS.

    Raises:
        UnfinishedRun: in the end, if anything has failed; one line, with the command that goes on.
    """
    folder, problems = Path(cfg.OUTPUT_DIR), list(problems)
    if not cfg.DATASETS.TEST and not problems:
        return
    if problems and not any(results.values()) and is_finished(folder):
        raise UnfinishedRun(_what_is_missing(cfg, problems, resume))
    content = DetectionResults()
    with recorded(problems, "description of the run"):
        content = describe(cfg, model, state)
    content.results, content.evaluation_seconds = without_nan(results), evaluation_seconds
    _write_results(folder, content, problems)
    written = len(problems)
    with recorded(problems, "analysis"):
        write_analysis(cfg)
    with recorded(problems, "pictures"):
        write_pictures(cfg, model)
    if len(problems) > written:
        _write_results(folder, content, problems)
    if problems:
        raise UnfinishedRun(_what_is_missing(cfg, problems, resume))
    logger.info(f"results in {folder / 'results.json'}, pictures in {folder / 'pictures'}")


def _write_results(folder: Path, content: DetectionResults, problems: list[str]) -> None:
    with recorded(problems, "results.json"):
        dataclasses.replace(content, problems=problems).write(folder / "results.json")


def _what_is_missing(cfg, problems, resume):
    """The problems in a line, and the command that goes on."""
    tool, encoder = "light_head" if _is_light(cfg) else "train_net", cfg.MODEL.ENCODER
    processes = ["--num-gpus", str(comm.get_world_size())] if comm.get_world_size() > 1 else []
    config = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    command = ["python", f"tools/{tool}.py", "--config-file", config, *processes, "--eval-only"]
    command += ["--resume"] if resume else []
    command += ["MODEL.ENCODER", encoder] if is_own_code(encoder) else []
    return f"{'; '.join(problems)}. With that mended, this goes on: {shlex.join(command)}"


def describe(cfg: CfgNode, model: nn.Module, state: dict) -> DetectionResults:
    """What was run: all results that the evaluation does not give; arguments as in :func:`finish`."""
    trained, iteration = state.get("trainer", {}), state["iteration"] + 1 if "iteration" in state else None
    weights = trained.get("weights", cfg.MODEL.WEIGHTS)
    backbone: Any = getattr(model.backbone, "bottom_up", model.backbone)
    frozen = not any(parameter.requires_grad for parameter in backbone.parameters())
    origin = _origin(weights)
    heads = [part.NORM or "none" for part in (cfg.MODEL.FPN, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD)]
    if _is_light(cfg):
        heads = [light_detector.LATERAL_NORM, light_detector.NORM]
    published = published_row(
        parse_yaml(cfg.dump(), "the config"),
        weights=weights,
        metadata=origin["weights_metadata"],
        images=_image_counts(cfg.DATASETS.TEST) | trained.get("images", {}),
        pretraining=origin.pop("pretraining"),
        iteration=iteration,
    )
    return DetectionResults(
        detector=DETECTORS.get(cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.META_ARCHITECTURE),
        dataset=", ".join(cfg.DATASETS.TEST),
        train_dataset=", ".join(cfg.DATASETS.TRAIN),
        iteration=iteration,
        seconds=trained.get("seconds"),
        peak_memory=peak_memory(cfg.MODEL.DEVICE),
        device=cfg.MODEL.DEVICE,
        processes=comm.get_world_size(),
        images_per_step=cfg.SOLVER.IMS_PER_BATCH,
        max_iter=cfg.SOLVER.MAX_ITER,
        schedule=schedule(cfg),
        backbone=cfg.MODEL.TIMM.NAME or cfg.MODEL.ENCODER or f"ResNet-{cfg.MODEL.RESNETS.DEPTH}",
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        frozen=frozen,
        norm="FrozenBN" if frozen else cfg.MODEL.RESNETS.NORM,
        heads_norm=", ".join(dict.fromkeys(heads)),
        weights=weights,
        **origin,
        published=Published.from_json(published) if published else None,
        comparability=comparability_of(cfg, trained, iteration),
        **_classes(MetadataCatalog.get(cfg.DATASETS.TEST[0])),
    )


def _is_light(cfg):
    return cfg.MODEL.META_ARCHITECTURE == light_detector.NAME


def peak_memory(device: str) -> int:
    """Bytes: the most that torch allocated on a GPU, or on the CPU the most that this process held in memory."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def schedule(cfg: CfgNode) -> str:
    """The training's length as the field says it."""
    images = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    if cfg.DATASETS.TRAIN == ("coco_2017_train",):
        times = images / COCO_1X
        if round(times) and abs(times / round(times) - 1) < 0.01:  # the number of GPUs may have rounded it
            return f"{round(times)}x"
    if cfg.DATASETS.TRAIN == ("cityscapes_fine_instance_seg_train",) and images >= CITYSCAPES_IMAGES:
        return f"{images // CITYSCAPES_IMAGES} epochs"
    return f"{cfg.SOLVER.MAX_ITER} x {cfg.SOLVER.IMS_PER_BATCH} images"


def _image_counts(names):
    """Data set -> number of its images, of those that are still there."""
    counts = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            counts[name] = len(DatasetCatalog.get(name))
    return counts


def _origin(weights):
    """Where the weights come from; nothing is known of a file that is not there (any more)."""
    known = dict.fromkeys(("weights_sha256", "weights_metadata", "decoder", "pretraining"))
    weights = _copy_of(weights)
    if not os.path.isfile(weights):
        return known
    known["weights_sha256"] = sha256_of(weights)
    if weights.endswith(".pkl"):
        content = read(weights)
        if isinstance(content, dict) and content.get("__author__") == "loco-det":
            keys = ("source", "layout", "location", "arch", "sha256", "date")
            known["weights_metadata"] = {key: content[key] for key in keys if isinstance(content.get(key), str)}
            known["pretraining"] = content.get("pretraining")
    try:
        known["decoder"] = read_run(Path(weights).parent).decoder
    except (FileNotFoundError, ValueError):  # the folder is no run
        pass
    return known


def _copy_of(weights):
    """The local file of weights that may have been named by an address; "" if it is not to be had any more."""
    try:
        return local_weights(weights)
    except (OSError, ValueError):
        return ""


def _classes(metadata):
    names = metadata.get("thing_classes")
    if names is None:
        return {"thing_classes": None, "category_ids": None}
    places = metadata.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(len(names))}
    return {"thing_classes": list(names), "category_ids": sorted(places, key=places.get)}


def write_pictures(cfg: CfgNode, model: nn.Module) -> None:
    """Draw ground truth and predictions of some images of the first test set: ``pictures/*.png``."""
    from ..report.visualize import pick_records, save_comparisons  # here, as in write_analysis

    name = cfg.DATASETS.TEST[0]
    pairs = predict(cfg, model, pick_records(DatasetCatalog.get(name), cfg.TEST.NUM_PICTURES))
    save_comparisons(pairs, MetadataCatalog.get(name), Path(cfg.OUTPUT_DIR, "pictures"), cfg.TEST.PICTURE_THRESHOLD)


def write_analysis(cfg: CfgNode) -> None:
    """Analyse the last test set from its files: ``analysis.json`` and ``analysis.png``, or none if there is no file of
    predictions and ground truth in COCO's format.
    """
    from ..report.analysis_plot import draw_analysis  # here: matplotlib would delay the first iteration

    folder = Path(cfg.OUTPUT_DIR)
    for name in ("analysis.json", "analysis.png"):  # of an earlier evaluation
        (folder / name).unlink(missing_ok=True)
    dataset, predictions = cfg.DATASETS.TEST[-1], folder / PREDICTIONS
    written = ground_truth_path(str(predictions.parent), dataset)  # by the evaluator, of data in other formats
    truth = MetadataCatalog.get(dataset).get("json_file") or written
    if not os.path.isfile(truth) or not predictions.is_file():
        logger.info(f"no analysis: {dataset} has no ground truth or no predictions in COCO's format")
        return
    analysis = {"dataset": dataset, **analyze(truth, predictions, cfg.TEST.PICTURE_THRESHOLD, masks=cfg.MODEL.MASK_ON)}
    write_whole(folder / "analysis.json", json.dumps(analysis))
    title = f"{for_figure(folder.resolve().name)}, {for_figure(dataset)}, {analysis['images']} images"
    write_whole(folder / "analysis.png", png(draw_analysis(analysis, title), dpi=110))


def predict(cfg: CfgNode, model: nn.Module, records: Iterable[dict]) -> Iterator[tuple[dict, Instances]]:
    """Run the detector on Detectron2 dataset dicts.

    Yields:
        tuple: dataset dict, and Instances at the image's size, on the CPU; their "pred_masks" are
        :class:`~loco_det.evaluation.masks.PastedMasks` or a bool tensor, a sequence of tensors (H, W) in any case.
    """
    mapper = ImageMapper(cfg, is_train=False)
    model = without_pasting(model).eval()
    for record in records:
        with torch.no_grad():
            yield record, model([mapper(record)])[0]["instances"].to("cpu")
