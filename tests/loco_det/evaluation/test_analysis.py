"""The analysis of predictions, against pycocotools' own summary and against what is counted by hand."""

import json
import warnings

import numpy as np
import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from loco_det.evaluation.analysis import analyze, most_confused
from loco_det.report.analysis_plot import draw_analysis
from pretrain.files.figures import png
from pretrain.files.text import for_figure

CAR, BUS, OX = 3, 7, 21  # ids with gaps, as COCO's; nothing is an ox


def box_of(x, y, side=20):
    return [x, y, side, side]


def polygon_of(box, share=1.0):
    """A rectangle in a box, ``share`` of its width."""
    x, y, w, h = box
    return [[x, y, x + share * w, y, x + share * w, y + h, x, y + h]]


def mask_of(box, share):
    """The same as a run-length encoded mask, as predictions have it."""
    rle = mask_util.frPyObjects(polygon_of(box, share), 400, 400)[0]
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def write(tmp_path, objects, detections, names=("car", "bus", "ox"), ids=(CAR, BUS, OX), images=2):
    """Ground truth of (image, category, box, crowd) and predictions of (image, category, box, score)."""
    annotations = []
    for i, (image, category, box, crowd) in enumerate(objects, 1):
        shape = {"segmentation": polygon_of(box), "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        annotations.append({"id": i, "image_id": image, "category_id": category, **shape})
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 400, "height": 400} for i in range(images)],
        "categories": [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)],
        "annotations": annotations,
    }
    found = [dict(zip(("image_id", "category_id", "bbox", "score"), d[:4], strict=True)) for d in detections]
    for entry, detection in zip(found, detections, strict=True):
        entry.update([("segmentation", shape) for shape in detection[4:]])
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps(found))
    return tmp_path / "truth.json", tmp_path / "found.json"


@pytest.fixture
def random_files(tmp_path):
    """Objects of all sizes; detections near them, some of another class, some anywhere; masks narrower than boxes."""
    rng = np.random.default_rng(0)
    objects, detections = [], []
    for image in range(8):
        for _ in range(12):
            side = float(rng.choice([20, 34, 60, 100, 130]))
            box = [float(v) for v in rng.uniform(0, 250, 2)] + [side, side]
            objects.append((image, int(rng.choice([CAR, BUS])), box, int(rng.random() < 0.1)))
            if rng.random() < 0.8:
                moved = [float(v) for v in np.array(box) + rng.normal(0, 0.1 * side, 4)]
                category = int(rng.choice([CAR, BUS])) if rng.random() < 0.3 else objects[-1][1]
                detections.append((image, category, moved, float(rng.random()), mask_of(moved, 0.9)))
    return write(tmp_path, objects, detections, images=8)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_numbers_are_those_of_pycocotools(random_files, task):
    truth, found = COCO(random_files[0]), json.loads(random_files[1].read_text())
    for detection in found:
        detection.pop("bbox" if task == "segm" else "segmentation")  # as Detectron2 does, for the areas
    reference = COCOeval(truth, truth.loadRes(found), task)
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    wanted = 100 * reference.stats
    part = analyze(*random_files)["tasks"][task]
    sizes = part["sizes"]
    got = [sizes["all"]["AP"], *(sizes[s]["AP"] for s in ("small", "medium", "large")), sizes["all"]["AR"],
           *(sizes[s]["AR"] for s in ("small", "medium", "large"))]  # fmt: skip
    assert got == pytest.approx(wanted[[0, 3, 4, 5, 8, 9, 10, 11]], abs=1e-3) and 5 < got[0] < 95
    assert len({round(value) for value in got}) > 4
    curves, classes = part["curves"], part["per_class"]
    assert [np.mean(curves[name]) for name in ("0.50:0.95", "0.50", "0.75")] == pytest.approx(wanted[:3], abs=1e-3)
    for metric, value in (("AP", wanted[0]), ("AP50", wanted[1]), ("AP75", wanted[2]), ("AR", wanted[8])):
        assert np.mean([classes[name][metric] for name in ("car", "bus")]) == pytest.approx(value, abs=2e-3)
    assert classes["ox"]["AP"] is None and classes["ox"]["objects"] == 0
    assert classes["car"]["objects"] == sum(a["category_id"] == CAR and not a["iscrowd"] for a in truth.anns.values())


def test_diagonal_is_what_cocos_evaluation_counts_as_right(random_files):
    confusion = analyze(*random_files, threshold=0.4)["confusion"]
    truth, found = COCO(random_files[0]), json.loads(random_files[1].read_text())
    reference = COCOeval(truth, truth.loadRes([d for d in found if d["score"] >= 0.4]), "bbox")
    reference.params.areaRng = reference.params.areaRng[:1]
    reference.evaluate()
    hits = {CAR: 0, BUS: 0}
    for image in filter(None, reference.evalImgs):
        hits[image["category_id"]] += int(((image["dtMatches"][0] > 0) & ~image["dtIgnore"][0]).sum())
    matrix = np.array(confusion["matrix"])
    assert [matrix[0, 0], matrix[1, 1]] == [hits[CAR], hits[BUS]] and min(hits.values()) > 5
    assert matrix[:-1].sum() == sum(not a["iscrowd"] for a in truth.anns.values())  # every object once


def test_confusions_by_hand(tmp_path):
    objects = [(0, CAR, box_of(0, 0), 0), (0, CAR, box_of(50, 0), 0), (0, BUS, box_of(100, 0), 0),
               (0, CAR, box_of(0, 200, 100), 1), (1, BUS, box_of(0, 0), 0), (1, BUS, box_of(50, 0), 0)]  # fmt: skip
    detections = [
        (0, CAR, box_of(2, 0), 0.9),  # right
        (0, CAR, box_of(0, 2), 0.8),  # the same once more: spurious
        (0, BUS, box_of(50, 0), 0.99),  # taken for another class, but the next one is right: spurious
        (0, CAR, box_of(51, 0), 0.6),  # right
        (0, OX, box_of(100, 2), 0.7),  # a bus taken for an ox
        (0, CAR, box_of(20, 220), 0.9),  # in the crowd: does not count
        (1, BUS, box_of(0, 15), 0.9),  # too little overlap: spurious, and the bus is missed
        (1, BUS, box_of(50, 0), 0.4),  # score too low: missed
    ]
    analysis = analyze(*write(tmp_path, objects, detections))
    part = analysis["confusion"]
    assert part["matrix"] == [[2, 0, 0, 0], [0, 0, 1, 2], [0, 0, 0, 0], [1, 2, 0, 0]]
    assert [part[key] for key in ("right", "confused", "missed", "spurious")] == [2, 1, 2, 3]
    assert (analysis["images"], analysis["objects"], analysis["detections"]) == (2, 5, 8)
    assert most_confused(analysis) == [("bus", "ox", 1, pytest.approx(1 / 3))]
    assert list(analysis["tasks"]) == ["bbox"] and analysis["classes"] == ["car", "bus", "ox"]
    lower = analyze(tmp_path / "truth.json", tmp_path / "found.json", threshold=0.3)["confusion"]["matrix"]
    assert lower[1] == [0, 1, 1, 1]


def test_higher_scores_choose_first(tmp_path):
    objects = [(0, CAR, box_of(40, 0), 0), (0, CAR, box_of(48, 0), 0)]
    detections = [(0, CAR, box_of(36, 0), 0.8), (0, CAR, box_of(43, 0), 0.9)]  # the second takes the first one's object
    part = analyze(*write(tmp_path, objects, detections))["confusion"]
    assert [part[key] for key in ("right", "missed", "spurious")] == [1, 1, 1]


def test_no_detections(tmp_path):
    files = write(tmp_path, [(0, CAR, box_of(0, 0), 0)], [])
    analysis = analyze(*files, masks=True)
    assert list(analysis["tasks"]) == ["bbox", "segm"] and list(analyze(*files)["tasks"]) == ["bbox"]
    assert analysis["tasks"]["bbox"]["per_class"]["car"]["AP"] == 0.0 and analysis["confusion"]["missed"] == 1
    assert analysis["tasks"]["bbox"]["sizes"]["large"] == {"AP": None, "AR": None}
    json.dumps(analysis, allow_nan=False)
    draw_analysis(analysis)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "image_id 99 is not in"),
        ({"category_id": 1}, "category_id 1 is not in"),
        ({"score": None}, "not COCO's results format"),
    ],
)
def test_predictions_of_other_data(tmp_path, change, message):
    truth, found = write(tmp_path, [(0, CAR, box_of(0, 0), 0)], [(0, CAR, box_of(0, 0), 0.5)])
    entry = json.loads(found.read_text())[0] | change
    found.write_text(json.dumps([{key: value for key, value in entry.items() if value is not None}]))
    with pytest.raises(ValueError, match=message):
        analyze(truth, found)
    with pytest.raises(FileNotFoundError, match="no such file"):
        analyze(truth, tmp_path / "nothing.json")


def test_figure_with_a_matrix(random_files):
    analysis = analyze(*random_files)
    curves, sizes, classes, confusion = draw_analysis(analysis, "a title").axes
    assert [line.get_label() for line in curves.lines][:3] == ["box, IoU 0.50", "box, IoU 0.75", "box, IoU 0.50:0.95"]
    assert curves.lines[0].get_ydata() == pytest.approx(analysis["tasks"]["bbox"]["curves"]["0.50"])
    heights = [round(bar.get_height(), 3) for bar in sizes.patches[:4]]
    assert heights == [analysis["tasks"]["bbox"]["sizes"][s]["AP"] for s in ("all", "small", "medium", "large")]
    assert [t.get_text() for t in classes.get_yticklabels()] == sorted(
        ("car", "bus"), key=lambda name: -analysis["tasks"]["segm"]["per_class"][name]["AP"]
    )  # no ox
    counts = sorted(int(text.get_text()) for text in confusion.texts)
    assert counts == sorted(n for row in analysis["confusion"]["matrix"] for n in row if n)


def test_figure_where_nothing_is_found_begins_at_zero(tmp_path):
    wrong = [(0, CAR, box_of(90, 90), 0.9)]
    analysis = analyze(*write(tmp_path, [(0, CAR, box_of(0, 0), 0)], wrong))
    _, sizes, classes, _ = draw_analysis(analysis).axes
    assert sizes.get_ylim() == classes.get_xlim() == (0, 1)


def test_figure_of_many_classes_shows_the_most_confused_pairs(tmp_path):
    ids = list(range(1, 81))
    objects = [(0, i, box_of(20 * (i % 20), 20 * (i // 20), 18), 0) for i in ids]
    wrong = {5: 6, 7: 8, 9: 10}
    detections = [(0, wrong.get(i, i), box, 0.5 + i / 200) for _, i, box, _ in objects]
    analysis = analyze(*write(tmp_path, objects, detections, [f"c{i}" for i in ids], ids))
    _, _, classes, confusion = draw_analysis(analysis).axes
    pairs = [label.get_text() for label in confusion.get_yticklabels()]
    assert pairs == ["c5 → c6", "c7 → c8", "c9 → c10"] and "77 right, 3 taken" in confusion.get_xlabel()
    assert len(classes.patches) == 24 and "12 best and worst of 80" in classes.get_title(loc="left")


def test_fields_that_no_metric_reads(random_files):
    """They may be anything, in a file with a byte order mark, and masks may be missing where boxes are analysed."""
    truth, found = random_files
    wanted = analyze(truth, found)
    content = json.loads(truth.read_text()) | {"info": "text"}
    for entry in content["images"] + content["annotations"]:
        entry |= {"date_captured": 0, "keypoints": "", "attributes": 5}
    truth.write_text("\ufeff" + json.dumps(content))
    assert analyze(truth, found) == wanted
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    truth.write_text(json.dumps(content))
    boxes = [{key: value for key, value in d.items() if key != "segmentation"} for d in json.loads(found.read_text())]
    found.write_text(json.dumps(boxes))
    analysis = analyze(truth, found)
    assert analysis["tasks"] == {"bbox": wanted["tasks"]["bbox"]} and analysis["confusion"] == wanted["confusion"]


@pytest.mark.parametrize("count", [3, 20])  # a matrix, and pairs
def test_hostile_names_are_drawn_as_they_are(tmp_path, count):
    names = ["$5 to $10_bill", "a_$x^{$", "_" + "名" * 300, *(f"$c{i}^{{$" for i in range(count - 3))]
    ids = list(range(1, count + 1))
    objects = [(0, i, box_of(20 * i, 0, 18), 0) for i in ids]
    detections = [(0, 3 - i if i < 3 else i, box, 0.9) for _, i, box, _ in objects]
    figure = draw_analysis(analyze(*write(tmp_path, objects, detections, names, ids)), for_figure("$a_{$"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert png(figure)[:4] == b"\x89PNG"
    drawn = [label.get_text() for axes in figure.axes[2:] for label in axes.get_yticklabels()]
    assert any(r"\$5 to \$10" in label for label in drawn) and max(map(len, drawn)) < 70
