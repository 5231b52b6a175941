#!/usr/bin/env python3
"""Evaluation of a detector up to COCO's results format, beside stock Detectron2.

    python benchmarks/evaluation.py [--sizes 480x640 800x1216] [--detections 100] [--candidates 1000] [--rounds 5]

Mask R-CNN R50-FPN of configs/coco_loco_frozen.yaml with random weights. "stock" is what Detectron2's DefaultTrainer
builds from the config, and Detectron2's COCOEvaluator; "loco-det" is what ours builds, and our evaluator. Both have the
same weights and see the same random images, one at a time, as evaluation does. So that there are detections, the score
threshold is one that as many pairs of box and class pass as --candidates says; the weights of the mask predictor are
multiplied, or all masks would be grey, and boxes are enlarged, which are those of the smallest anchors.

Parts: the network ("inference"), what makes COCO's entries of its output ("masks to RLE": pasting, encoding), and both
("whole", timed by itself). Rows take turns. Entries of the same network output are compared first and have to be equal,
or the benchmark fails; of both networks the largest difference of the scores is shown.
"""

import argparse
import copy
import json
import math
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling.postprocessing import detector_postprocess

from benchmarks import common, detection_step
from loco_det.evaluation.coco import FastCOCOEvaluator
from loco_det.evaluation.inference import unpasted, without_pasting
from pretrain.processes.cpu import prepare_cpu

SMOKE = {"sizes": ["64x96"], "images": 1, "detections": 10, "candidates": 40, "rounds": 1}
NAMES = ("stock", "loco-det")
CONTRAST = 300  # of masks: the factor of the mask predictor's weights
GROWTH = 5  # of boxes: the factor of their sides
DATASET = "benchmark_of_evaluation"


def add_arguments(parser):
    parser.add_argument(
        "--sizes", nargs="+", default=["480x640", "800x1216"], metavar="HxW", help="of images, in pixels"
    )
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--detections", type=int, default=100, help="of an image")
    parser.add_argument("--candidates", type=int, default=1000, help="pairs of box and class that pass the threshold")
    parser.add_argument("--rounds", type=int, default=5)


def measure(args):
    prepare_cpu("cpu", keep_freed_memory=True)
    models = detection_step.models(argparse.Namespace(rois=512, compile=False))
    models = {name: models[name].eval() for name in NAMES}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, "truth.json")
        path.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
        DatasetCatalog.register(DATASET, list)
        MetadataCatalog.get(DATASET).set(json_file=str(path))
        try:
            for model in models.values():
                model.roi_heads.mask_head.predictor.weight.mul_(CONTRAST)
                predictor = model.roi_heads.box_predictor
                predictor.bbox_pred.bias.view(-1, 4)[:, 2:] = predictor.box2box_transform.weights[2] * math.log(GROWTH)
                predictor.test_topk_per_image = args.detections
            return {size: measure_size(args, models, tuple(map(int, size.split("x")))) for size in args.sizes}
        finally:
            DatasetCatalog.remove(DATASET)
            MetadataCatalog.remove(DATASET)


def pass_candidates(model, inputs, count):
    """Set the score threshold so that ``count`` pairs of box and class of the first image pass."""
    predictor, scores = model.roi_heads.box_predictor, []
    own = predictor.predict_probs
    predictor.predict_probs = lambda *a: scores.append(own(*a)[0][:, :-1]) or own(*a)
    model.inference(inputs[:1])
    del predictor.predict_probs
    highest = scores[0].flatten().topk(min(count + 1, scores[0].numel())).values
    return (highest[-2:].sum() / 2).item()


def entries(evaluator, record, instances):
    """COCO's entries of an image, as the evaluator keeps them for its file."""
    evaluator.reset()
    evaluator.process([record], [{"instances": instances}])
    return evaluator._predictions[0]["instances"]


def measure_size(args, models, size):
    inputs = [x | {"image_id": i} for i, x in enumerate(detection_step.batch(args, size))]
    threshold = pass_candidates(models["stock"], inputs, args.candidates)
    for model in models.values():
        model.roi_heads.box_predictor.test_score_thresh = threshold
    evaluators = {
        "stock": COCOEvaluator(DATASET, distributed=False),
        "loco-det": FastCOCOEvaluator(DATASET, distributed=False),
    }
    raw = [models["stock"].inference([record], do_postprocess=False)[0] for record in inputs]
    detectors = {name: without_pasting(model) if name == "loco-det" else model for name, model in models.items()}
    finish = {"stock": lambda found, record: detector_postprocess(found, *size), "loco-det": unpasted}

    def inference(name, *_):
        for record in inputs:
            models[name].inference([record], do_postprocess=False)

    def masks(name, found):
        return [
            entries(evaluators[name], record, finish[name](one, record))
            for one, record in zip(found, inputs, strict=True)
        ]

    def whole(name, *_):
        return [entries(evaluators[name], record, detectors[name]([record])[0]["instances"]) for record in inputs]

    wanted, got = (masks(name, copy.deepcopy(raw)) for name in NAMES)
    if json.dumps(wanted) != json.dumps(got):
        raise ValueError(f"{size}: our entries of the same network output are not Detectron2's")
    scores = [torch.tensor([[e["score"] for e in one] for one in whole(name)]) for name in NAMES]
    areas = torch.cat([one.pred_boxes.area() for one in raw])
    equal = {
        "entries": sum(map(len, wanted)),
        "scores": (scores[0] - scores[1]).abs().max().item() if scores[0].shape == scores[1].shape else None,
        "area": areas.mean().item(),
    }
    found = {}
    for part, run in {"inference": inference, "masks to RLE": masks, "whole": whole}.items():
        seconds = {name: [] for name in NAMES}
        for round_ in range(args.rounds + 1):  # the first warms up
            common.progress(f"{size[0]} x {size[1]}, {part}, round {round_}/{args.rounds}")
            for name in NAMES:
                given = copy.deepcopy(raw)
                start = time.perf_counter()
                run(name, given)
                if round_:
                    seconds[name].append((time.perf_counter() - start) / len(inputs))
        found[part] = seconds
    return {"seconds": found, "equal": equal}


def markdown(record):
    settings, notes = record["settings"], []
    for size, found in record["results"].items():
        one = found["equal"]
        scores = "differ in number" if one["scores"] is None else f"differ by {one['scores']:.1e} at most"
        notes.append(
            f"{size}: {one['entries']} entries, boxes of {one['area']:,.0f} pixels in the mean; equal byte for byte "
            f"for the same network output; scores of the two networks {scores}"
        )
    table = common.parts_table(record["results"], 3, "s an image")
    return (
        f"{settings['images']} images, {settings['candidates']} candidates and at most {settings['detections']} "
        f"detections of each; medians of {settings['rounds']} rounds. {'; '.join(notes)}.\n\n"
        f"{table}"
    )


if __name__ == "__main__":
    common.main(sys.modules[__name__])
