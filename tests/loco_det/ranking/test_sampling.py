"""AP on resampled images against pycocotools, which is given the images as often as they were drawn."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from loco_det.data.coco_files import as_coco, read_ground_truth
from loco_det.evaluation import matches
from loco_det.evaluation.coco import evaluate
from loco_det.ranking.sampling import Sampled, average_precision, difference, draw, image_error, sample

SIDE = 400  # pixels: room for objects of all sizes


def rectangle(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def made_up(seed, images=12, classes=(3, 7, 50), most=12, noise=4.0):
    """Ground truth, and detections that are more or less near; scores without ties, as pycocotools resolves them by the
    order of the images. The last class is of a few images only, and a class has no objects."""
    random = np.random.default_rng(seed)
    annotations, detections = [], []
    for image in random.permutation(np.arange(images) * 3 + 10).tolist():
        for _ in range(random.integers(0, 6)):
            box = [*random.uniform(0, 200, 2), *random.uniform(5, 180, 2)]
            kind = int(random.choice(classes, p=(0.6, 0.35, 0.05)))
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": kind, "bbox": box,
                "area": float(random.choice([box[2] * box[3], 2e10], p=(0.95, 0.05))),
                "iscrowd": int(random.random() < 0.15), "segmentation": rectangle(box),
            })  # fmt: skip
        own = [a for a in annotations if a["image_id"] == image]
        for _ in range(random.integers(0, most)):
            near = own[random.integers(len(own))] if own and random.random() < 0.7 else None
            box = np.array(near["bbox"]) if near else random.uniform(5, 180, 4)
            box = np.maximum(box + random.normal(0, noise, 4), 1) * ((1, 1, -1, 1) if random.random() < 0.02 else 1)
            kind = near["category_id"] if near and random.random() < 0.85 else int(random.choice([*classes, 90]))
            shape = mask_utils.frPyObjects(rectangle(np.abs(box).tolist()), SIDE, SIDE)[0]
            detections.append({
                "image_id": image, "category_id": kind, "bbox": box.tolist(), "score": float(random.random()),
                "segmentation": shape | {"counts": shape["counts"].decode()},
            })  # fmt: skip
    truth = {
        "images": [{"id": 10 + 3 * i, "height": SIDE, "width": SIDE} for i in range(images)],
        "categories": [{"id": kind, "name": f"class {kind}"} for kind in (*classes, 90)],
        "annotations": annotations,
    }
    return truth, detections


def resampled_ap(truth, detections, weights, task):
    """AP by pycocotools of a data set with each image as often as its weight says; NaN without objects."""
    images, objects, found = [], [], []
    for image, weight in zip(sorted(image["id"] for image in truth["images"]), weights, strict=True):
        for copy in range(weight):
            images.append({"id": 1000 * image + copy, "height": SIDE, "width": SIDE})
            for entries, own in ((truth["annotations"], objects), (detections, found)):
                own += [{**e, "image_id": images[-1]["id"]} for e in entries if e["image_id"] == image]
    for number, one in enumerate(objects, 1):
        one["id"] = number
    drop = "segmentation" if task == "bbox" else "bbox"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": images, "categories": truth["categories"], "annotations": objects}
        coco.createIndex()
        found = [{k: v for k, v in d.items() if k != drop} for d in found]
        evaluation = COCOeval(coco, coco.loadRes(found), task)
        evaluation.evaluate()
        evaluation.accumulate()
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return precision[precision > -1].mean() if (precision > -1).any() else np.nan


@pytest.fixture
def files(tmp_path):
    """Write a ground truth and several lists of detections; their paths."""

    def write(truth, *runs):
        paths = [tmp_path / name for name in ("truth.json", *(f"found{i}.json" for i in range(len(runs))))]
        for path, content in zip(paths, (truth, *runs), strict=True):
            path.write_text(json.dumps(content))
        return paths

    return write


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_resamples_are_pycocotools(seed, task):
    truth, detections = made_up(seed)
    coco, weights = as_coco(truth), draw(12, 8, seed)
    objects = matches.count_objects(coco)
    found = average_precision(objects, matches.match(coco, objects, detections, task), weights)
    wanted = [resampled_ap(truth, detections, row, task) for row in weights]
    assert found == pytest.approx(wanted, abs=1e-12, nan_ok=True) and 0.1 < found[0] < 0.9


def test_the_point_is_the_evaluators_ap(files):
    truth, detections = made_up(5, images=40, most=20)
    truth_path, path = files(truth, detections)
    for task in ("bbox", "segm"):
        with contextlib.redirect_stdout(io.StringIO()):
            wanted = 100 * evaluate(read_ground_truth(truth_path), detections, task).stats[0]
        assert sample(truth_path, [path], task, resamples=2).ap == pytest.approx(wanted, abs=1e-10)


def test_rows_of_several_seeds_share_their_resamples(files):
    truth, first = made_up(1, noise=2)
    second = [made_up(1, noise=noise)[1] for noise in (20, 30)]
    assert made_up(1, noise=20)[0] == truth
    truth_path, *paths = files(truth, first, *second)
    found = image_error(truth_path, paths[:1], paths[1:], resamples=30, seed=4)
    weights = draw(12, 30, 4)
    aps = [[resampled_ap(truth, run, row, "bbox") for row in weights] for run in (first, *second)]
    wanted = 100 * (np.array(aps[0]) - np.mean(aps[1:], axis=0))
    assert found.mean == pytest.approx(wanted[0]) and found.half == pytest.approx(1.959964 * wanted[1:].std(ddof=1))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(wanted[1:], (2.5, 97.5))))
    assert (found.images, found.resamples) == (12, 30) and found.mean > found.half > 0
    assert image_error(truth_path, paths[:2], paths[:2])[:4] == (0, 0, 0, 0)


def test_the_error_is_that_of_other_images():
    """Drawn from one world of images, test sets differ by about what the resamples of one of them say."""
    truth, detections = made_up(2, images=1600, classes=(3, 7, 8), noise=10)
    coco = as_coco(truth)
    objects = matches.count_objects(coco)
    found = matches.match(coco, objects, detections, "bbox")
    random = np.random.default_rng(0)
    sets = np.zeros((40, 1600), dtype=np.int32)
    for row, images in zip(sets, random.permutation(1600).reshape(40, 40), strict=True):
        row[images] = 1
    between = average_precision(objects, found, sets).std(ddof=1)
    resampled = [random.multinomial(40, row / 40, size=200).astype(np.int32) for row in sets[:10]]
    within = [average_precision(objects, found, weights).std(ddof=1) for weights in resampled]
    assert 0.7 < np.mean(within) / between < 1.4


def test_nothing_detected_is_an_ap_of_0(files):
    truth_path, empty, path = files(made_up(0)[0], [], made_up(0)[1])
    assert sample(truth_path, [empty], resamples=3).ap == 0
    assert image_error(truth_path, [path], [empty], "segm").mean == sample(truth_path, [path], "segm").ap


def test_what_hotcoco_need_not_agree_on_is_pycocotools():
    truth, detections = made_up(3)
    truth["categories"][0]["id"] = -3
    for entry in (*truth["annotations"], *detections):
        entry["category_id"] = -3 if entry["category_id"] == 3 else entry["category_id"]
    test = draw(12, 3, 0)
    coco = as_coco(truth)
    assert matches.unsupported(coco, detections, ["bbox"])
    objects = matches.count_objects(coco)
    found = average_precision(objects, matches.match(coco, objects, detections, "bbox"), test)
    assert found == pytest.approx([resampled_ap(truth, detections, row, "bbox") for row in test], abs=1e-12)


def test_only_100_detections_of_a_class_in_an_image_count():
    truth, _ = made_up(0, images=3, classes=(3, 7, 8))
    random = np.random.default_rng(0)
    found = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "score": float(random.random()),
         "bbox": (np.array(a["bbox"]) + random.normal(0, 3, 4)).tolist()}
        for a in truth["annotations"] for _ in range(70)
    ]  # fmt: skip
    coco, weights = as_coco(truth), draw(3, 3, 0)
    objects = matches.count_objects(coco)
    wanted = [resampled_ap(truth, found, row, "bbox") for row in weights]
    got = average_precision(objects, matches.match(coco, objects, found, "bbox"), weights)
    assert got == pytest.approx(wanted, abs=1e-12)


def test_bad_input(files, tmp_path):
    truth, detections = made_up(0)
    boxes = [{k: v for k, v in d.items() if k != "segmentation"} for d in detections]
    truth_path, path, other, strange = files(truth, detections, boxes, [{**boxes[0], "image_id": 1}])
    with pytest.raises(FileNotFoundError, match="no such file"):
        sample(truth_path, [path, tmp_path / "none.json"])
    with pytest.raises(ValueError, match="has no masks"):
        sample(truth_path, [other], "segm")
    with pytest.raises(ValueError, match="image_id 1 is not in"):
        sample(truth_path, [strange])
    with pytest.raises(ValueError, match="needs predictions"):
        sample(truth_path, [])
    truth_path.write_text(json.dumps({**truth, "annotations": []}))
    with pytest.raises(ValueError, match="no object that counts"):
        sample(truth_path, [path])
    with pytest.raises(ValueError, match="other images or resamples"):
        difference(Sampled(1.0, np.ones(3), 4), Sampled(1.0, np.ones(4), 4))
