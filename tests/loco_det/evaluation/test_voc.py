"""Pascal VOC's AP is that of Detectron2's evaluator, to the bit; COCO's AP beside it is pycocotools'."""

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances
from voc_example import write_voc

from loco_det.data.voc_files import VOCImage, VOCObject
from loco_det.evaluation.analysis import analyze
from loco_det.evaluation.build import build_evaluator, evaluator_type
from loco_det.evaluation.coco import ReferenceCOCOEvaluator
from loco_det.evaluation.voc import VOCEvaluator, ground_truth_path, voc_metrics

CLASSES = ["aeroplane", "bicycle", "bird"]
SIZE = (30, 40)


@pytest.fixture
def register(tmp_path):
    """``register(images, year) -> name`` of a set with these objects."""
    names = []

    def register(images, year=2007):
        name = f"voc_of_test_{len(names)}"
        write_voc(tmp_path / name, images, "test", pictures=False)
        more = {"dirname": str(tmp_path / name), "year": year, "split": "test", "evaluator_type": "pascal_voc"}
        MetadataCatalog.get(name).set(thing_classes=CLASSES, **more)
        names.append(name)
        return name

    yield register
    for name in names:
        MetadataCatalog.remove(name)


def instances(boxes, scores, classes):
    boxes = torch.as_tensor(np.asarray(boxes, np.float32).reshape(-1, 4))
    classes = torch.as_tensor(classes, dtype=torch.int64)
    scores = torch.as_tensor(np.asarray(scores, np.float32))
    return {"instances": Instances(SIZE, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)}


def random_box(rng):
    x, y = rng.integers(1, 25), rng.integers(1, 20)
    return int(x), int(y), int(x + rng.integers(0, 15)), int(y + rng.integers(0, 10))


def random_set(seed, images=25):
    """Objects of images, some without any, and detections near them and elsewhere, with ties among scores and boxes."""
    rng, truth, found = np.random.default_rng(seed), {}, []
    for k in range(images):
        objects = [(CLASSES[rng.integers(3)], int(rng.random() < 0.3), random_box(rng)) for _ in range(rng.integers(5))]
        objects += objects[:1] if rng.random() < 0.2 else []  # the same box twice
        boxes, classes = [], []
        for name, _, (x0, y0, x1, y1) in objects * 2:
            if rng.random() < 0.8:
                boxes.append(np.array([x0 - 1, y0 - 1, x1, y1]) + rng.normal(0, 0.7, 4) * (rng.random() < 0.7))
                classes.append(CLASSES.index(name) if rng.random() < 0.9 else rng.integers(3))
        for _ in range(rng.integers(4)):
            x0, y0, x1, y1 = random_box(rng)
            boxes.append([x0 - 1, y0 - 1, x1, y1 if rng.random() < 0.9 else y0 - 2])  # some have no area
            classes.append(rng.integers(3))
        truth[f"{k:06d}"] = objects
        scores = rng.random(len(boxes)).round(2) + 0.0008 * rng.random(len(boxes))  # ties, once they are rounded
        found.append(({"image_id": f"{k:06d}"}, instances(boxes, scores, classes)))
    return truth, found


def evaluate(evaluator, found):
    evaluator.reset()
    for record, output in found:
        evaluator.process([record], [output])
    return evaluator.evaluate()


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("seed", range(6))
def test_it_is_detectron2s_to_the_bit(register, tmp_path, seed, year):
    truth, found = random_set(seed)
    name = register(truth, year)
    assert evaluator_type(name) == "pascal_voc"
    ours = evaluate(build_evaluator(name, str(tmp_path / "out")), found)["bbox"]
    theirs = evaluate(PascalVOCDetectionEvaluator(name), found)["bbox"]
    assert {key: ours[key] for key in theirs} == {key: float(value) for key, value in theirs.items()}
    assert 5 < ours["AP75"] < ours["AP50"] < 100 and set(ours) == {*theirs, *(f"AP-{c}" for c in CLASSES)}
    assert ours["AP"] == pytest.approx(np.mean([ours[f"AP-{c}"] for c in CLASSES]))


def test_an_iou_of_the_limit_is_no_hit(register, tmp_path):
    name = register({"a": [("bird", 0, (1, 1, 10, 10))]})
    found = [({"image_id": "a"}, instances([[0, 0, 10, 5]], [0.5], [2]))]
    assert evaluate(build_evaluator(name, str(tmp_path / "out")), found)["bbox"]["AP50"] == 0
    assert evaluate(PascalVOCDetectionEvaluator(name), found)["bbox"]["AP50"] == 0


def test_the_two_metrics_differ():
    """One hit of two objects: at 11 points 6 of 11 recalls are reached, and half of the area."""
    images = [VOCImage("a", 40, 30, tuple(VOCObject("bird", box, False) for box in ((1, 1, 10, 10), (20, 1, 30, 10))))]
    found = [(0, np.array([[1, 1, 10, 10.0]]), [0.9], [2])]
    assert voc_metrics(images, CLASSES, found, eleven_points=True)["AP50"] == pytest.approx(100 * 6 / 11)
    assert voc_metrics(images, CLASSES, found, eleven_points=False)["AP50"] == pytest.approx(50)


def test_a_class_without_objects_is_left_out(register, tmp_path):
    """Detectron2 counts it as 0. One that has difficult objects only is none, too."""
    truth = {"a": [("bird", 0, (1, 1, 10, 10))], "b": [("bicycle", 1, (5, 5, 20, 20))]}
    name = register(truth)
    found = [({"image_id": "a"}, instances([[0, 0, 10, 10]], [0.5], [2])), ({"image_id": "b"}, instances([], [], []))]
    ours = evaluate(build_evaluator(name, str(tmp_path / "out")), found)
    for part in ours.values():
        assert [part[key] for key in ("AP", "AP50", "AP-bird")] == pytest.approx([100] * 3)
        assert np.isnan([part["AP-aeroplane"], part["AP-bicycle"]]).all()
    assert evaluate(PascalVOCDetectionEvaluator(name), found)["bbox"]["AP"] == pytest.approx(100 / 3)


def test_nothing_detected_is_an_ap_of_0(register, tmp_path):
    name = register({"a": [(c, 0, (1, 1, 10, 10)) for c in CLASSES]})
    ours = evaluate(build_evaluator(name, str(tmp_path / "out")), [({"image_id": "a"}, instances([], [], []))])
    assert ours["bbox"]["AP"] == ours["bbox_coco"]["AP"] == 0


@pytest.mark.parametrize("seed", range(2))
def test_cocos_ap_by_both_evaluators(register, tmp_path, seed):
    truth, found = random_set(seed)
    name = register(truth)
    fast = evaluate(build_evaluator(name, str(tmp_path / "a")), found)["bbox_coco"]
    slow = evaluate(build_evaluator(name, str(tmp_path / "b"), "pycocotools"), found)["bbox_coco"]
    assert fast == pytest.approx(slow, abs=0, nan_ok=True) and 5 < fast["AP75"] < fast["AP50"] < 100
    assert (
        fast != evaluate(build_evaluator(register(without_difficult(truth)), str(tmp_path / "c")), found)["bbox_coco"]
    )


def without_difficult(truth):
    return {name: [(label, 0, box) for label, _, box in objects] for name, objects in truth.items()}


@pytest.mark.parametrize("kind", ["fast", "pycocotools"])
def test_a_difficult_object_is_ignored_and_no_crowd(register, tmp_path, kind):
    """A detection of it does not count, a second one is false, and so is one that only lies in it."""
    easy, hard = (1, 1, 10, 10), (15, 1, 34, 20)
    name = register({"a": [("bird", 0, easy), ("bird", 1, hard)]})
    at_hard, within = [14, 0, 34, 20], [14, 0, 20, 6]

    def ap(boxes, scores):
        output = instances([[0, 0, 10, 10], *boxes], [0.5, *scores], [2] * (1 + len(boxes)))
        found = evaluate(build_evaluator(name, str(tmp_path / "out"), kind), [({"image_id": "a"}, output)])
        return pytest.approx((found["bbox"]["AP50"], found["bbox_coco"]["AP50"]))

    assert ap([], []) == (100, 100)
    assert ap([at_hard], [0.9]) == (100, 100)
    assert ap([at_hard, at_hard], [0.9, 0.8]) == (100, 50)  # VOC leaves both out, COCO's evaluation one
    assert ap([within], [0.9]) == (50, 50)


def test_the_analysis_takes_difficult_objects_for_neither(register, tmp_path):
    name = register({"a": [("bird", 0, (1, 1, 10, 10)), ("bird", 1, (15, 1, 34, 20)), ("bicycle", 1, (1, 20, 9, 29))]})
    found = [({"image_id": "a"}, instances([[0, 0, 10, 10], [14, 0, 34, 20]], [0.9, 0.8], [2, 2]))]
    out = str(tmp_path / "out")
    results = evaluate(VOCEvaluator(name, out, ReferenceCOCOEvaluator), found)
    analysis = analyze(ground_truth_path(out, name), tmp_path / "out" / "coco_instances_results.json")
    assert analysis["objects"] == 1 and analysis["tasks"]["bbox"]["per_class"]["bird"]["objects"] == 1
    assert analysis["tasks"]["bbox"]["sizes"]["all"]["AP"] == pytest.approx(results["bbox_coco"]["AP"])
    assert results["bbox_coco"]["AP"] == pytest.approx(100)
    assert [analysis["confusion"][key] for key in ("right", "confused", "missed", "spurious")] == [1, 0, 0, 0]
