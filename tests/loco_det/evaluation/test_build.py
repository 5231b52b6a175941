"""Ground truth fed back as predictions gives AP 100, for COCO's layout, Cityscapes' and Pascal VOC's."""

import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc
from detectron2.data.datasets.cityscapes import load_cityscapes_instances
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as mask_utils

from loco_det.demo_scenes.pictograms import CLASSES
from loco_det.demo_scenes.writing import make_demo_data
from loco_det.evaluation.build import ap_definition, build_evaluator


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    make_demo_data(
        root / "demo", num_train=1, num_val=6, size=(96, 128), workers=1, layouts=("coco", "cityscapes", "voc")
    )
    return root / "demo"


def perfect(masks, classes):
    """Instances, as a detector would give them, of (N, H, W) masks."""
    masks = torch.as_tensor(np.stack(masks))
    found = Instances(masks.shape[1:])
    found.pred_masks = masks
    found.pred_boxes = Boxes(torch.stack([_box(m) for m in masks]))
    found.pred_classes = torch.tensor(classes)
    found.scores = torch.ones(len(classes))
    return {"instances": found}


def _box(mask):
    y, x = mask.nonzero(as_tuple=True)
    return torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1], dtype=torch.float32)


def evaluate(name, outputs, tmp_path):
    evaluator = build_evaluator(name, str(tmp_path))
    evaluator.reset()
    for record, output in outputs:
        evaluator.process([record], [output])
    return evaluator.evaluate()


def test_coco(demo, tmp_path):
    coco = demo / "coco"
    register_coco_instances("demo_perfect", {}, str(coco / "annotations/instances_val.json"), str(coco / "val"))
    outputs = []
    for record in DatasetCatalog.get("demo_perfect"):
        masks = [a["segmentation"] for a in record["annotations"]]
        size = record["height"], record["width"]
        masks = [mask_utils.merge(mask_utils.frPyObjects(m, *size)) if isinstance(m, list) else m for m in masks]
        masks = [mask_utils.decode(m).astype(bool) for m in masks]
        outputs.append((record, perfect(masks, [a["category_id"] for a in record["annotations"]])))
    results = evaluate("demo_perfect", outputs, tmp_path)
    assert results["bbox"]["AP"] == pytest.approx(100) and results["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize(("shift", "expected"), [(0, 100), (40, 0)])
def test_voc(demo, tmp_path, shift, expected):
    """With difficult objects among the predictions, and with the objects moved away."""
    name = f"voc_perfect_{shift}"
    register_pascal_voc(name, str(demo / "voc/VOC2007"), "test", 2007)
    MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    outputs = []
    for record in DatasetCatalog.get(name):
        found = Instances((record["height"], record["width"]))
        found.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in record["annotations"]]).reshape(-1, 4) + shift)
        found.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]], dtype=torch.int64)
        found.scores = torch.ones(len(found))
        outputs.append((record, {"instances": found}))
    results = evaluate(name, outputs, tmp_path)
    assert list(results) == ["bbox", "bbox_coco"]
    for part in results.values():
        assert part["AP"] == pytest.approx(expected, abs=1e-6 if expected else 5)
    assert "difficult>1" in "".join(path.read_text() for path in (demo / "voc/VOC2007/Annotations").iterdir())


def register_cityscapes(demo):
    name, folders = "cityscapes_perfect", [str(demo / f"cityscapes/{part}/val") for part in ("leftImg8bit", "gtFine")]
    if name not in DatasetCatalog.list():
        load = lambda: load_cityscapes_instances(*folders, from_json=False, to_polygons=False)  # noqa: E731
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(
            gt_dir=folders[1], evaluator_type="cityscapes_instance", thing_classes=list(CLASSES)
        )
    return name


def fed_back(name, shift=0):
    """The ground truth of a registered Cityscapes split as predictions, perhaps moved by so many rows."""
    outputs = []
    for record in DatasetCatalog.get(name):
        ids = np.asarray(Image.open(record["file_name"].replace("leftImg8bit", "gtFine").replace(
            "_gtFine.png", "_gtFine_instanceIds.png")))  # fmt: skip
        things = [i for i in np.unique(ids) if i >= 24000]
        classes = [{24: 0, 25: 1, 26: 2, 27: 3, 28: 4, 31: 5, 32: 6, 33: 7}[i // 1000] for i in things]
        outputs.append((record, perfect([np.roll(ids == i, shift, 0) for i in things], classes)))
    return outputs


@pytest.mark.parametrize(("shift", "expected"), [(0, 100), (40, 0)])
def test_cityscapes(demo, tmp_path, monkeypatch, shift, expected):
    """With the objects moved away, AP 0: the 100 is no accident. No file is left in the working directory."""
    monkeypatch.chdir(tmp_path)
    name = register_cityscapes(demo)
    results = evaluate(name, fed_back(name, shift), tmp_path)
    assert list(results) == ["bbox", "segm"] and set(results["segm"]) == {"AP", "AP50"}
    for task in results.values():
        assert task["AP"] == pytest.approx(expected, abs=1e-6 if expected else 15)
    assert os.listdir(tmp_path) == []


def test_cityscapes_twice_in_one_process(demo, tmp_path, monkeypatch):
    """One evaluator used again, and another one, with better and worse predictions: nothing is left over."""
    monkeypatch.chdir(tmp_path)
    name = register_cityscapes(demo)
    evaluator = build_evaluator(name, str(tmp_path))
    for shift, good in ((0, True), (40, False), (0, True)):
        evaluator.reset()
        for record, output in fed_back(name, shift):
            evaluator.process([record], [output])
        results = evaluator.evaluate()
        assert all((task["AP"] > 99) == good for task in results.values())
    assert evaluate(name, fed_back(name), tmp_path)["bbox"]["AP"] == pytest.approx(100)
    assert os.listdir(tmp_path) == []


def test_cityscapes_boxes_and_masks_are_judged_apart(demo, tmp_path):
    """Right masks with wrong boxes, and an image without predictions."""
    name = register_cityscapes(demo)
    outputs = fed_back(name)
    for _, output in outputs:
        output["instances"].pred_boxes.tensor += 1000
    results = evaluate(name, outputs, tmp_path)
    assert results["segm"]["AP"] == pytest.approx(100) and results["bbox"]["AP"] == 0
    outputs = fed_back(name)
    outputs[0] = outputs[0][0], {"instances": outputs[0][1]["instances"][:0]}
    results = evaluate(name, outputs, tmp_path)
    assert all(10 < task["AP"] < 99 for task in results.values())


def test_unknown_type(tmp_path):
    MetadataCatalog.get("panoptic_something").set(evaluator_type="coco_panoptic_seg")
    with pytest.raises(
        ValueError, match="no evaluator for type 'coco_panoptic_seg'; use COCO format, Cityscapes or Pascal"
    ):
        build_evaluator("panoptic_something", str(tmp_path))


def test_nothing_detected_in_cityscapes_is_an_ap_of_0(demo, tmp_path):
    """NaN is for classes without objects."""
    name = register_cityscapes(demo)
    outputs = []
    for record, _ in fed_back(name):
        nothing = Instances((record["height"], record["width"]))
        nothing.pred_masks = torch.zeros(0, record["height"], record["width"], dtype=torch.bool)
        nothing.pred_boxes, nothing.scores = Boxes(torch.zeros(0, 4)), torch.zeros(0)
        nothing.pred_classes = torch.zeros(0, dtype=torch.int64)
        outputs.append((record, {"instances": nothing}))
    results = evaluate(name, outputs, tmp_path)
    assert (results["bbox"]["AP"], results["bbox"]["AP50"]) == (0, 0)
    assert (results["segm"]["AP"], results["segm"]["AP50"]) == (0, 0)


def test_definitions_of_ap_in_words():
    names = ("coco_2017_val", "cityscapes_fine_instance_seg_val", "voc_2007_test", "voc_2012_val")
    found = [ap_definition(name) for name in names]
    assert found == ["COCO's", "Cityscapes'", "Pascal VOC's, 11 recalls", "Pascal VOC's, area under the curve"]
