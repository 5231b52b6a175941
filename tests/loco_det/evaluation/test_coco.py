"""hotcoco's figures are pycocotools', bit for bit; what it does otherwise goes to pycocotools, with a warning."""

import contextlib
import copy
import io
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from detectron2.structures import Boxes, Instances
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from loco_det.config import add_loco_config
from loco_det.engine.trainer import Trainer
from loco_det.evaluation.build import build_evaluator
from loco_det.evaluation.coco import FastCOCOEvaluator, ReducedCOCOEvaluator, ReferenceCOCOEvaluator, evaluate

SIZE = 110, 130  # height and width: room for 96 x 96, the border between medium and large


def rle(mask):
    found = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}


def rectangle(x, y, w, h):
    mask = np.zeros(SIZE, bool)
    mask[y : y + h, x : x + w] = True
    return mask


def segmentation(random, box):
    """A rectangle, whole or with a part missing, in one of COCO's three forms."""
    x, y, w, h = map(int, box)
    form = random.choice(["polygon", "polygons", "RLE", "uncompressed"])
    if form.startswith("polygon"):
        whole = [x, y, x + w, y, x + w, y + h + 0.3, x, y + h]
        return [whole, [0, 0, 9.5, 0, 9, 9]] if form == "polygons" else [whole]
    mask = rectangle(x, y, w, h) & (random.random(SIZE) < random.choice([0.8, 1]))
    if form == "RLE":
        return rle(mask)
    runs, value = [], False
    for pixel in mask.flatten(order="F"):
        if not runs or pixel != value:
            runs += [0] if not runs and pixel else []  # counts begin with background
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {"size": list(SIZE), "counts": runs}


def random_box(random):
    w, h = random.choice([random.integers(1, 100, 2), (32, 32), (96, 96)])  # the last two: on the borders of area
    return [int(random.integers(0, SIZE[1] - w)), int(random.integers(0, SIZE[0] - h)), int(w), int(h)]


def make(seed=0, images=6, objects=4, per_image=8, most=0, ties=True, crowd=0.2):
    """Ground truth and detections; classes and images without either, ids neither sorted nor from 1.

    ``most``: number of detections of the first image, if not 0.
    """
    random = np.random.default_rng(seed)
    classes = [11, 3, 7, 90]
    ids = random.permutation(np.arange(images) * 7 + 2**33).tolist()
    annotations, detections = [], []
    for image in ids:
        own = []
        for _ in range(random.integers(0, objects + 1)):
            box = random_box(random)
            area = random.choice([box[2] * box[3], 32**2, 96**2, 0, 1e10, 1023.9999999])
            own.append({
                "image_id": image, "category_id": int(random.choice(classes[:3])), "bbox": [float(x) for x in box],
                "area": float(area), "segmentation": segmentation(random, box),
                "iscrowd": int(random.random() < crowd), "ignore": int(random.random() < 0.2),
            })  # fmt: skip
        annotations += own
        for _ in range(most or random.integers(0, per_image + 1)):
            near = own[random.integers(len(own))] if own and random.random() < 0.7 else None
            box = np.array(near["bbox"] if near else random_box(random), dtype=int)
            mask = np.roll(rectangle(*box), random.integers(-3, 4, 2) * (random.random() < 0.7), (0, 1))
            width = 0 if random.random() < 0.05 else box[2] + random.normal() * (random.random() < 0.7)
            detections.append({
                "image_id": image, "bbox": [*(box[:2] + random.normal(0, 2, 2)).tolist(), float(width), float(box[3])],
                "category_id": near["category_id"] if near and random.random() < 0.8 else int(random.choice(classes)),
                "score": float(random.integers(5) / 4 if ties else np.float32(random.random())),
                "segmentation": rle(mask),
            })  # fmt: skip
        most = 0
    for number, annotation in enumerate(random.permutation(annotations), 1):
        annotation["id"] = number * 5
    truth = {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in ids],
        "annotations": annotations,
        "categories": [{"id": c, "name": f"class {c}"} for c in classes],
    }
    return truth, detections


def coco(truth):
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO()
        found.dataset = copy.deepcopy(truth)
        found.createIndex()
    return found


def compare(truth, detections, task, img_ids=None, max_dets=(1, 10, 100)):
    """Assert that all figures and arrays are pycocotools'; returns the 12 figures."""
    wanted = coco_evaluation._evaluate_predictions_on_coco(
        coco(truth), copy.deepcopy(detections), task, (), coco_evaluation.COCOeval, img_ids, list(max_dets)
    )
    ground_truth, given = coco(truth), copy.deepcopy(detections)
    got = evaluate(ground_truth, given, task, img_ids, max_dets)
    assert got.stats.shape == (12,) and got.stats.tolist() == wanted.stats.tolist()
    for key in ("precision", "recall", "scores"):
        assert got.eval[key].shape == wanted.eval[key].shape and (got.eval[key] == wanted.eval[key]).all(), key
    assert got.params.catIds == list(wanted.params.catIds) and got.params.imgIds == list(wanted.params.imgIds)
    assert given == detections and ground_truth.dataset == truth
    return got.stats


@pytest.mark.parametrize("task", ["bbox", "segm"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_equals_pycocotools(task, data):
    """On any data, for any images and limits of detections, some of them not in ascending order."""
    truth, detections = make(
        seed=data.draw(st.integers(0, 2**32 - 1)),
        images=data.draw(st.integers(1, 8)),
        objects=data.draw(st.integers(0, 5)),
        per_image=data.draw(st.integers(1, 12)),
        ties=data.draw(st.booleans()),
        crowd=data.draw(st.sampled_from([0, 0.4])),
    )
    assume(detections)
    ids = [image["id"] for image in truth["images"]]
    some = data.draw(st.none() | st.lists(st.sampled_from(ids), min_size=1))
    compare(truth, detections, task, some, (1, 10, data.draw(st.sampled_from([100, 2, 300]))))


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("ties", [False, True])
def test_more_than_100_detections_of_an_image(task, ties):
    truth, detections = make(7, images=3, objects=60, most=250, ties=ties)
    for detection in detections:
        detection["category_id"] = 3  # the limit is on those of a class
    few, many = (compare(truth, detections, task, max_dets=(1, 10, limit)) for limit in (100, 300))
    assert 0 < few[0] < few[8] < many[8] < 1  # the limit is felt


def test_area_of_the_mask_decides():
    """A false detection with a small mask in a box of medium size counts among the small ones."""
    truth, _ = make(images=1, objects=0)
    image = truth["images"][0]["id"]
    base = {"image_id": image, "category_id": 3}
    box = [0.0, 0.0, 20.0, 20.0]
    mask = rle(rectangle(0, 0, 20, 20))
    truth["annotations"] = [base | {"id": 1, "iscrowd": 0, "area": 400, "bbox": box, "segmentation": mask}]
    wrong = rle(rectangle(50, 50, 20, 20))
    detections = [base | {"bbox": box, "score": 0.5, "segmentation": mask}]
    detections += [base | {"bbox": [45.0, 45.0, 40.0, 40.0], "score": 0.9, "segmentation": wrong}]
    assert compare(truth, detections, "segm")[3] == pytest.approx(0.5)
    assert compare(truth, detections, "bbox")[3] == pytest.approx(1)


def test_class_listed_twice():
    truth, detections = make(9)
    truth["categories"].append(truth["categories"][1])
    compare(truth, detections, "bbox")


def test_after_pycocotools():
    """pycocotools leaves its own marks in the ground truth; they change nothing."""
    truth, detections = make(3)
    used = coco(truth)
    wanted = coco_evaluation._evaluate_predictions_on_coco(used, detections, "segm", (), coco_evaluation.COCOeval)
    assert used.dataset != truth
    assert evaluate(used, detections, "segm").stats.tolist() == wanted.stats.tolist()


@pytest.fixture
def register(tmp_path):
    """Register a ground truth as a data set in COCO format, until the end of the test; returns its name."""
    names = []

    def do(truth):
        name = f"coco_evaluation_{len(names)}"
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(truth))
        DatasetCatalog.register(name, list)
        categories = sorted(truth["categories"], key=lambda c: c["id"])
        MetadataCatalog.get(name).set(
            json_file=str(path), evaluator_type="coco", thing_classes=[c["name"] for c in categories],
            thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
        )  # fmt: skip
        names.append(name)
        return name

    yield do
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def run(evaluator, truth, detections, img_ids=None):
    """Feed the detections to an evaluator as a detector would, image by image; returns its results."""
    classes = {c: i for i, c in enumerate(sorted(c["id"] for c in truth["categories"]))}
    evaluator.reset()
    for image in truth["images"]:
        own = [d for d in detections if d["image_id"] == image["id"]]
        found = Instances(SIZE)
        found.pred_boxes = Boxes(torch.tensor([d["bbox"] for d in own]).reshape(-1, 4))
        found.pred_boxes.tensor[:, 2:] += found.pred_boxes.tensor[:, :2]
        found.scores = torch.tensor([d["score"] for d in own])
        found.pred_classes = torch.tensor([classes[d["category_id"]] for d in own], dtype=torch.int64)
        found.pred_masks = torch.tensor(
            np.array([mask_utils.decode(d["segmentation"]) for d in own]).reshape(-1, *SIZE), dtype=torch.bool
        )
        evaluator.process([{"image_id": image["id"]}], [{"instances": found}])
    return evaluator.evaluate(img_ids)


def both(register, tmp_path, truth, detections, img_ids=None, **options):
    """Results and files of Detectron2's evaluator and of ours, asserted to be equal; returns the results."""
    name, results = register(truth), []
    for kind, folder in ((COCOEvaluator, "stock"), (FastCOCOEvaluator, "fast")):
        evaluator = kind(name, output_dir=str(tmp_path / folder), use_fast_impl=False, **options)
        results.append(json.dumps(run(evaluator, truth, detections, img_ids)))  # as NaN == NaN there
    assert results[0] == results[1]
    files = ["coco_instances_results.json", "instances_predictions.pth"]
    assert sorted(os.listdir(tmp_path / "stock")) == sorted(os.listdir(tmp_path / "fast")) == files
    for file in files:
        assert (tmp_path / "stock" / file).read_bytes() == (tmp_path / "fast" / file).read_bytes()
    return json.loads(results[0])


@pytest.fixture
def no_pycocotools(monkeypatch):
    """Our evaluator must not have pycocotools do the work."""
    stock = FastCOCOEvaluator._eval_predictions

    def guarded(*args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(coco_evaluation, "_evaluate_predictions_on_coco", None)
            stock(*args, **kwargs)

    monkeypatch.setattr(FastCOCOEvaluator, "_eval_predictions", guarded)


@pytest.mark.parametrize("options", [{}, {"max_dets_per_image": 300}, {"max_dets_per_image": 5}, {"tasks": ("segm",)}])
@pytest.mark.parametrize("subset", [False, True])
def test_evaluator(register, tmp_path, no_pycocotools, caplog, options, subset):
    """Results, AP of each class included, and files are those of Detectron2's evaluator."""
    truth, detections = make(9, images=12, most=120)
    ids = [image["id"] for image in truth["images"][:5]] if subset else None
    results = both(register, tmp_path, truth, detections, ids, **options)
    assert list(results) == list(options.get("tasks", ("bbox", "segm")))
    assert 1 < results["segm"]["AP"] < 90 and "AP-class 11" in results["segm"]
    assert "loco_det" not in [r.name.split(".")[0] for r in caplog.records]


def test_nothing_to_evaluate(register, tmp_path):
    """Ground truth without annotations, as of test-dev: the files only."""
    truth, detections = make(1)
    assert both(register, tmp_path, {k: v for k, v in truth.items() if k != "annotations"}, detections) == {}


def captured_0(truth):  # as CVAT writes it
    for image in truth["images"]:
        image |= {"date_captured": 0, "license": "", "coco_url": 0, "flickr_url": None, "file_name": 3}


def odd_annotations(truth):
    for number, annotation in enumerate(truth["annotations"]):
        annotation |= {"attributes": {"occluded": False}, "keypoints": "", "num_keypoints": "0", "score": [number]}


def odd_crowds(truth):
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = bool(annotation["iscrowd"])
        if isinstance(annotation["segmentation"], dict):
            annotation["segmentation"] |= {"color": None, "bitmap": {}}


def odd_categories(truth):
    for category in truth["categories"]:
        category |= {"supercategory": 5, "color": [1], "keypoints": "", "skeleton": 0}


@pytest.mark.parametrize("evaluator", [FastCOCOEvaluator, ReducedCOCOEvaluator])
@pytest.mark.parametrize(
    "change",
    [captured_0, odd_annotations, odd_crowds, odd_categories]
    + [lambda t, v=v: t.update(v) for v in ({"info": "x"}, {"info": 5, "licenses": ""}, {"licenses": [{"id": "x"}]})],
)
def test_fields_that_no_metric_reads(register, change, evaluator):
    """They may be anything, and the figures stay the same to the last bit."""
    truth, detections = make(5)
    wanted = run(COCOEvaluator(register(truth), use_fast_impl=False, output_dir=None), truth, detections)
    change(truth)
    assert json.dumps(run(evaluator(register(truth)), truth, detections)) == json.dumps(wanted)


def test_attributes_are_those_of_detectron2(register):
    """Its __init__ is replaced: what another version adds there would be missing."""
    name = register(make()[0])
    for options in ({}, {"max_dets_per_image": 7, "tasks": ("bbox",), "distributed": False, "output_dir": "x"}):
        ours, theirs = (vars(kind(name, **options)) for kind in (ReducedCOCOEvaluator, COCOEvaluator))
        assert ours.keys() == theirs.keys()
        same = ours.keys() - {"_coco_api", "_metadata"}
        assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


def test_boxes_only(register, no_pycocotools):
    """Ground truth without masks, or with masks that are nobody's business: boxes are evaluated as with them."""
    truth, detections = make(5)
    wanted = run(FastCOCOEvaluator(register(truth), tasks=("bbox",)), truth, detections)
    odd = [[], 7, [[1, "x"]], {"counts": None}, None, [[[2, 2], [10, 2]]]]
    for number, annotation in enumerate(truth["annotations"]):
        annotation["segmentation"] = odd[number % len(odd)]
        if number % 7 == 0:
            del annotation["segmentation"]
    assert json.dumps(run(FastCOCOEvaluator(register(truth), tasks=("bbox",)), truth, detections)) == json.dumps(wanted)


def test_data_that_are_no_file(tmp_path):
    """Detectron2 writes a file of such a data set; the evaluation of that is reduced, too."""
    polygon = [10.0, 10, 30, 10, 30, 30, 10, 30]
    box = {"bbox": [10.0, 10, 20, 20], "bbox_mode": 1, "category_id": 0, "segmentation": [polygon]}
    record = {"file_name": "a.png", "height": SIZE[0], "width": SIZE[1], "image_id": 3, "annotations": [box]}
    name = "coco_evaluation_no_file"
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).set(evaluator_type="coco", thing_classes=["one"])
    evaluator = FastCOCOEvaluator(name, output_dir=str(tmp_path))
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    truth = evaluator._coco_api.dataset
    assert truth["images"] == [{"id": 3, "width": SIZE[1], "height": SIZE[0]}] and "info" not in truth
    detection = {"image_id": 3, "category_id": 0, "score": 1, "bbox": box["bbox"]}
    mask = {"segmentation": rle(rectangle(10, 10, 20, 20))}
    results = run(evaluator, {**truth, "categories": [{"id": 0}]}, [detection | mask])
    assert results["bbox"]["AP"] == pytest.approx(100) and results["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("kind", [FastCOCOEvaluator, ReferenceCOCOEvaluator])
@pytest.mark.parametrize("options", [{}, {"max_dets_per_image": 300}, {"tasks": ("segm",)}])
def test_nothing_detected_is_an_ap_of_0(register, tmp_path, kind, options):
    """NaN is for classes and sizes without objects: the same as where one detection misses everything."""
    truth, detections = make(1)
    for annotation in truth["annotations"]:
        annotation |= {"category_id": truth["categories"][0]["id"], "iscrowd": 0, "area": 20.0}
    name = register(truth)
    results = run(kind(name, output_dir=str(tmp_path), **options), truth, [])
    assert list(results) == list(options.get("tasks", ("bbox", "segm")))
    missed = detections[:1]
    missed[0] |= {"image_id": truth["images"][0]["id"], "category_id": truth["categories"][0]["id"], "score": 0.5}
    missed[0] |= {"bbox": [0, 0, 1, 1]}
    for task, figures in results.items():
        assert (figures["AP"], figures["AP50"], figures["AP75"], figures["APs"]) == (0, 0, 0, 0), task
        of_classes = {metric: value for metric, value in figures.items() if metric.startswith("AP-")}
        assert of_classes.pop(f"AP-{truth['categories'][0]['name']}") == 0
        assert of_classes and np.isnan([figures["APm"], figures["APl"], *of_classes.values()]).all()
        wanted = run(kind(name, output_dir=str(tmp_path), **options), truth, missed)[task]
        assert list(wanted) == list(figures)


def test_nothing_detected_on_some_images(register, tmp_path):
    """Without objects on these images there is no AP."""
    truth, _ = make(1)
    first, *others = [image["id"] for image in truth["images"]]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] == first]
    evaluator = ReferenceCOCOEvaluator(register(truth), output_dir=str(tmp_path))
    assert run(evaluator, truth, [], [first])["bbox"]["AP"] == 0
    assert np.isnan(run(evaluator, truth, [], others)["bbox"]["AP"])


def test_a_detector_without_masks_that_detects_nothing_has_boxes_only(register, tmp_path):
    evaluator = ReferenceCOCOEvaluator(register(make(1)[0]), output_dir=str(tmp_path))
    evaluator.reset()
    nothing = Instances(SIZE, pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0), pred_classes=torch.zeros(0))
    evaluator.process([{"image_id": 1}], [{"instances": nothing}])
    assert list(evaluator.evaluate()) == ["bbox"]


def test_hostile_class_names_keep_their_metrics(register, tmp_path, caplog):
    truth, detections = make(1)
    truth["categories"][0]["name"] = name = "tram\n\x1b[2J"
    with caplog.at_level("INFO"):
        results = both(register, tmp_path, truth, detections)
    assert f"AP-{name}" in results["bbox"]
    assert "tram\\n\\x1b[2J" in caplog.text


def id_0(truth, detections):
    truth["annotations"][0]["id"] = 0


def negative_id(truth, detections):
    truth["annotations"][0]["id"] = -3


def large_id(truth, detections):
    truth["annotations"][0]["id"] = 2**70


def string_ids(truth, detections):
    for key, part in (("id", truth["images"]), ("image_id", truth["annotations"]), ("image_id", detections)):
        for record in part:
            record[key] = str(record[key])


def class_below_0(truth, detections):
    truth["categories"][0]["id"] = -1
    for record in truth["annotations"] + detections:
        record["category_id"] = -1 if record["category_id"] == 11 else record["category_id"]


def nan_box(truth, detections):
    detections[0]["bbox"][2] = float("nan")


def nan_box_of_truth(truth, detections):
    truth["annotations"][0]["bbox"][2] = float("nan")


def infinite_score(truth, detections):
    detections[0]["score"] = float("inf")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (id_0, "annotation id that is not a whole number from 1"),
        (negative_id, "annotation id that is not a whole number from 1"),
        (large_id, "annotation id that is not a whole number from 1"),
        (string_ids, "image or category id that is not a whole number from 0"),
        (class_below_0, "image or category id that is not a whole number from 0"),
        (nan_box, "a box or score is not finite"),
        (nan_box_of_truth, "a box or score is not finite"),
        (infinite_score, "a box or score is not finite"),
    ],
)
def test_falls_back_to_pycocotools(register, tmp_path, caplog, spoil, message):
    """With one warning, and to the same results."""
    truth, detections = make(9, images=4)
    spoil(truth, detections)
    both(register, tmp_path, truth, detections)
    warnings = [r.getMessage() for r in caplog.records if r.name == "loco_det.evaluation.coco"]
    assert len(warnings) == 1 and message in warnings[0] and "evaluated with pycocotools" in warnings[0]


def test_keypoints_fall_back(register, caplog):
    truth, detections = make(2)
    evaluator = FastCOCOEvaluator(register(truth), tasks=("keypoints",))
    with pytest.raises(KeyError, match="keypoints"):  # of Detectron2: there are none
        run(evaluator, truth, detections)
    assert "not for keypoints: evaluated with pycocotools" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_falls_back_in_a_fork(register, tmp_path):
    """hotcoco's threads do not survive a fork: a child that used it would wait for them without end."""
    truth, detections = make(9, images=4)
    evaluator = FastCOCOEvaluator(register(truth), distributed=False)
    wanted = json.dumps(run(evaluator, truth, detections))

    def child():
        torch.set_num_threads(1)
        with contextlib.redirect_stdout(io.StringIO()):
            (tmp_path / "child.json").write_text(json.dumps(run(evaluator, truth, detections)))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    process.kill()
    assert (tmp_path / "child.json").read_text() == wanted


def drop(part, key):
    def change(truth, detections):
        del (truth["annotations"] if part == "truth" else detections)[1][key]

    return change


def other_image(truth, detections):
    detections[1]["image_id"] = 77


def bad_rle(truth, detections):
    detections[1]["segmentation"] = {"size": list(SIZE), "counts": "xx!!"}


@pytest.mark.parametrize(
    ("spoil", "task", "message"),
    [
        (other_image, "bbox", "1 images of the detections are not in the ground truth, 77 is one"),
        (drop("detections", "score"), "bbox", "a detection lacks score, which bbox needs"),
        (drop("detections", "bbox"), "bbox", "a detection lacks bbox, which bbox needs"),
        (drop("detections", "segmentation"), "segm", "a detection lacks segmentation, which segm needs"),
        (bad_rle, "segm", "invalid RLE"),
        (drop("truth", "iscrowd"), "bbox", "annotation [0-9]+ of the ground truth lacks iscrowd, which bbox needs"),
        (drop("truth", "area"), "segm", "annotation [0-9]+ of the ground truth lacks area, which segm needs"),
        (drop("truth", "bbox"), "bbox", "annotation [0-9]+ of the ground truth lacks bbox, which bbox needs"),
        (drop("truth", "segmentation"), "segm", "annotation [0-9]+ of the ground truth lacks segmentation"),
    ],
)
def test_refused(spoil, task, message):
    """What makes pycocotools fail, too, or worse: it reads a bad RLE beyond its end."""
    truth, detections = make(9, images=4)
    spoil(truth, detections)
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(coco(truth), detections, task)
    assert "\n" not in str(caught.value)


def test_config_chooses(register, tmp_path):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    name = register(make()[0])
    assert type(Trainer.build_evaluator(cfg, name)) is FastCOCOEvaluator
    cfg.TEST.COCO_EVALUATOR = "pycocotools"
    assert type(Trainer.build_evaluator(cfg, name)) is ReferenceCOCOEvaluator
    with pytest.raises(ValueError, match="TEST.COCO_EVALUATOR 'slow': use one of fast, pycocotools"):
        build_evaluator(name, str(tmp_path), "slow")


REAL = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "coco/annotations/instances_val2017.json"


@pytest.mark.skipif(not REAL.exists(), reason=f"no {REAL}")
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_real_ground_truth(task):
    """COCO's val2017, as much of it as there is up to 300 images, against its own annotations moved about."""
    truth = json.loads(REAL.read_text())
    truth["images"] = truth["images"][:300]
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in sizes]
    random, api, detections = np.random.default_rng(0), coco(truth), []
    for annotation in [a for a in truth["annotations"] for _ in range(3)]:
        shift = random.integers(-5, 6, 2)
        mask = np.roll(api.annToMask(annotation), shift, (0, 1))
        x, y, w, h = annotation["bbox"]
        box = [float(x + shift[1]), float(y + shift[0]), w, h]
        kind = annotation["category_id"] if random.random() < 0.8 else int(random.choice(list(api.cats)))
        detections.append({"image_id": annotation["image_id"], "category_id": kind, "bbox": box,
                           "score": float(random.integers(50) / 50), "segmentation": rle(mask)})  # fmt: skip
    assert 0.05 < compare(truth, detections, task)[0] < 0.9
