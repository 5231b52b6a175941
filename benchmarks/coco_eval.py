#!/usr/bin/env python3
"""Time and memory of COCO evaluation, side by side: pycocotools, faster-coco-eval (if installed) and ours (hotcoco).

    python benchmarks/coco_eval.py [--rounds 3] [--all-rounds]

Ground truth and detections of the size of val2017 (5,000 images, 36,000 objects of 80 classes, 100 detections an image)
are made first, the same ones every time. Then every figure comes from a process of its own; the rows take turns, round
after round, and the table shows medians. What is timed begins with detections as Detectron2's evaluator holds them, and
ends with the 12 figures: loading of the results included, but not the reading of the ground truth, which the evaluator
does once. "pycocotools" is Detectron2's own function for it, "loco-det" ours (loco_det/evaluation/coco.py).

Before anything is printed, the 12 figures and the arrays of precision, recall and scores are compared with
pycocotools': ours must be equal to the last bit, or the benchmark fails; of others the largest difference is shown.
Memory is what the process's resident peak adds to what it held before. pycocotools has one thread; the other two take
what cores there are.
"""

import contextlib
import gc
import importlib.util
import io
import json
import pickle
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import common

SMOKE = {"rounds": 1, "images": 20, "objects": 150, "per_image": 20}
HEIGHT, WIDTH, CLASSES = 480, 640, 80


def boxes(random, count):
    """(count, 4) boxes, left, top, width and height in pixels: half of them small, a sixth large, as in COCO."""
    side = np.exp(random.normal(np.log(48), 1, (count, 1)))
    size = np.clip(side * np.exp(random.normal(0, 0.3, (count, 2))), 4, (400, 400))
    return np.hstack([random.random((count, 2)) * ((WIDTH, HEIGHT) - size), size])


def polygons(random, boxes):
    """(N, 32): 16 corners around the middle of each box."""
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1) * random.uniform(0.7, 1, (len(boxes), 16, 1))
    corners = boxes[:, None, :2] + boxes[:, None, 2:] * (1 + circle) / 2
    return np.clip(corners, 0, (WIDTH, HEIGHT)).round(2).reshape(-1, 32)


def masks(polygons):
    from pycocotools import mask

    return mask.frPyObjects(polygons.tolist(), HEIGHT, WIDTH)


def make(images, objects, per_image):
    """Ground truth and a list of detections, both in COCO's format: two of five detections are of an object."""
    from pycocotools import mask

    random = np.random.default_rng(0)
    weights = 1 / np.arange(1, CLASSES + 1)  # a few frequent classes, many rare ones
    image, kind = random.integers(images, size=objects), random.choice(CLASSES, objects, p=weights / weights.sum())
    truth = boxes(random, objects)
    shapes, crowd = polygons(random, truth), random.random(objects) < 0.012
    annotations = []
    for i, rle in enumerate(masks(shapes)):
        area, shape = int(mask.area(rle)), [shapes[i].tolist()]
        if crowd[i]:
            shape = rle | {"counts": rle["counts"].decode()}
        annotations.append({
            "id": i + 1, "image_id": int(image[i]) + 1, "category_id": int(kind[i]) + 1, "iscrowd": int(crowd[i]),
            "area": area, "bbox": truth[i].round(2).tolist(), "segmentation": shape,
        })  # fmt: skip
    ground_truth = {
        "images": [{"id": i + 1, "height": HEIGHT, "width": WIDTH} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": str(i + 1)} for i in range(CLASSES)],
    }
    detections = []
    for i in range(images):
        own = np.flatnonzero(image == i)
        hit = (random.random(per_image) < 0.4) & (len(own) > 0)
        source = random.choice(own, per_image) if len(own) else np.zeros(per_image, int)
        near = truth[source] + random.normal(0, 0.07, (per_image, 4)) * np.tile(truth[source][:, 2:], 2)
        box = np.where(hit[:, None], near, boxes(random, per_image))
        right = hit & (random.random(per_image) < 0.85)
        label = np.where(right, kind[source], random.integers(CLASSES, size=per_image)) + 1
        score = np.where(hit, random.beta(2, 2, per_image), random.beta(1, 8, per_image)).astype(np.float32)
        columns = box.astype(np.float32).tolist(), score.tolist(), label.tolist(), masks(polygons(random, box))
        for b, s, c, shape in zip(*columns, strict=True):
            shape["counts"] = shape["counts"].decode()
            detections.append({"image_id": i + 1, "category_id": c, "bbox": b, "score": s, "segmentation": shape})
    return ground_truth, detections


def pycocotools(truth, detections, task):
    from detectron2.evaluation.coco_evaluation import COCOeval, _evaluate_predictions_on_coco

    return _evaluate_predictions_on_coco(truth, detections, task, cocoeval_fn=COCOeval)


def faster_coco_eval(truth, detections, task):
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(truth.dataset)
    if task == "segm":  # as Detectron2 does, or the area of the box would count
        detections = [{k: v for k, v in d.items() if k != "bbox"} for d in detections]
    found = COCOeval_faster(truth, truth.loadRes(detections), task)
    found.evaluate()
    found.accumulate()
    found.summarize()
    return found


def loco_det(truth, detections, task):
    from loco_det.evaluation.coco import evaluate

    return evaluate(truth, detections, task)


ROWS = {"pycocotools": pycocotools, "faster-coco-eval": faster_coco_eval, "loco-det": loco_det}


def child(row, task, folder):
    """Seconds and MB of one row in this process, which leaves all figures in the folder."""
    with contextlib.redirect_stdout(io.StringIO()):
        from pycocotools.coco import COCO

        import loco_det.evaluation.coco  # noqa: F401, so that no row has to import it, or Detectron2, in its time

        if row == "faster-coco-eval":
            import faster_coco_eval  # noqa: F401
        truth = COCO(f"{folder}/truth.json")
        with open(f"{folder}/detections.pkl", "rb") as file:
            detections = pickle.load(file)
        gc.collect()
        idle = common.memory("VmRSS")
        common.forget_peak()
        start = time.perf_counter()
        found = ROWS[row](truth, detections, task)
        seconds, memory = time.perf_counter() - start, common.memory("VmHWM") - idle
        arrays = [np.ravel(found.eval[key]) for key in ("precision", "recall", "scores")]
        np.save(f"{folder}/{row}.npy", np.concatenate([found.stats[:12], *arrays]).astype(float))
    return [seconds, memory]


def add_arguments(parser):
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--all-rounds", action="store_true", help="pycocotools in all rounds, not in the first only")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=36000)
    parser.add_argument("--per-image", type=int, default=100, help="detections")


def measure(args):
    names = [row for row in ROWS if row != "faster-coco-eval" or importlib.util.find_spec("faster_coco_eval")]
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        truth, detections = make(args.images, args.objects, args.per_image)
        Path(folder, "truth.json").write_text(json.dumps(truth))
        Path(folder, "detections.pkl").write_bytes(pickle.dumps(detections))
        del truth, detections
        for task in ("bbox", "segm"):
            figures, worst = {row: [] for row in names}, dict.fromkeys(names, 0.0)
            for round_ in range(args.rounds):
                for row in names:
                    if row == "pycocotools" and round_ and not args.all_rounds:
                        continue
                    common.progress(f"{task}, round {round_ + 1}/{args.rounds}: {row}")
                    figures[row].append(common.in_child(__file__, row, task, folder, env={"OMP_NUM_THREADS": "1"}))
                    wanted, got = (np.load(f"{folder}/{name}.npy") for name in ("pycocotools", row))
                    worst[row] = max(worst[row], float(np.abs(got - wanted).max()))
                    if row == "loco-det" and not np.array_equal(got, wanted):
                        raise ValueError(f"{task}: our figures are not pycocotools', by {worst[row]:.2g} at worst")
            result[task] = {row: {"rounds": figures[row], "difference": worst[row]} for row in names}
    return result


def markdown(record):
    settings, rows = record["settings"], []
    for task, found in record["results"].items():
        medians = {row: [statistics.median(column) for column in zip(*one["rounds"], strict=True)]
                   for row, one in found.items()}  # fmt: skip
        for row, (seconds, memory) in medians.items():
            ratio = medians["pycocotools"][0] / seconds
            rows.append(
                [task, row, f"{seconds:.2f}", f"{ratio:.1f}x", f"{memory:.0f}", f"{found[row]['difference']:.2g}"]
            )
    heads = ["task", "evaluation", ">s", ">times as fast", ">memory, MB", ">largest difference"]
    return (
        f"{settings['images']:,} images, {settings['objects']:,} objects, {settings['per_image']} detections an image; "
        f"medians of {settings['rounds']} rounds{'' if settings['all_rounds'] else ', pycocotools once'}.\n\n"
        + common.table(heads, rows)
    )


if __name__ == "__main__":
    common.main(sys.modules[__name__])
