"""Cityscapes: the module's other name, the cache of the loader, the checks, box and mask AP."""

import gzip
import json
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.cityscapes import load_cityscapes_instances
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from loco_det.data import cityscapes
from loco_det.data.checks.cityscapes import check_cityscapes
from loco_det.demo_scenes.pictograms import CLASSES
from loco_det.demo_scenes.writing import make_demo_data
from loco_det.evaluation.cityscapes import box_ap, cityscapes_boxes


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("city") / "demo"
    make_demo_data(root, num_unlabeled=1, num_train=1, num_val=3, size=(96, 128), workers=1, layouts=("cityscapes",))
    return root / "cityscapes"


@pytest.fixture
def tree(original, tmp_path, monkeypatch):
    """Folders of images and of ground truth that may be changed; a cache of its own."""
    shutil.copytree(original, tmp_path / "data")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return [str(tmp_path / "data" / part / "val") for part in ("leftImg8bit", "gtFine")]


@pytest.fixture
def loads(monkeypatch):
    """The images that Detectron2 has read, cache aside."""
    seen = []
    monkeypatch.setattr(cityscapes, "read_one", lambda f, real=cityscapes.read_one: seen.append(f[0]) or real(f))
    return seen


def caches(tmp_path):
    return sorted((tmp_path / "cache/loco_det").glob("*.json.gz"))


def polygons(tree, index=0):
    return sorted(Path(tree[1]).glob("*/*_polygons.json"))[index]


def edit(tree, change):
    path = polygons(tree)
    content = json.loads(path.read_text())
    change(content["objects"])
    path.write_text(json.dumps(content))


def test_the_cache_gives_what_detectron2_gives(tree, tmp_path, loads):
    cityscapes.alias_cityscapesscripts()
    expected = sorted(load_cityscapes_instances(*tree), key=lambda r: r["file_name"])
    for record in expected:
        for annotation in record["annotations"]:
            annotation["bbox"] = list(annotation["bbox"])
            annotation["segmentation"] = [list(p) for p in annotation["segmentation"]]
    assert cityscapes.load_cityscapes(*tree) == expected and len(loads) == 3
    again = cityscapes.load_cityscapes(*tree)
    assert again == expected and len(loads) == 3 and len(caches(tmp_path)) == 1
    assert type(again[0]["annotations"][0]["bbox_mode"]) is type(expected[0]["annotations"][0]["bbox_mode"])
    assert not [p for p in Path(tree[0]).parents[1].rglob("*") if "cache" in p.name or "lock" in p.name]


def test_several_processes_give_the_same(tree, monkeypatch):
    expected = cityscapes._load(cityscapes.list_files(*tree))
    monkeypatch.setattr(cityscapes, "FEW", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert cityscapes._load(cityscapes.list_files(*tree)) == expected


def test_changed_annotations_or_detectron2_are_loaded_again(tree, tmp_path, loads, monkeypatch):
    before = cityscapes.load_cityscapes(*tree)
    edit(tree, lambda objects: objects.append({"label": "cargroup", "polygon": [[0, 0], [40, 0], [40, 40]]}))
    after = cityscapes.load_cityscapes(*tree)
    assert len(loads) == 6 and after[0] != before[0] and after[1:] == before[1:]
    assert after[0]["annotations"][0]["iscrowd"] is True
    monkeypatch.setattr(cityscapes.detectron2, "__version__", "9.9")
    assert cityscapes.load_cityscapes(*tree) == after and len(loads) == 9 and len(caches(tmp_path)) == 3


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-20], lambda b: b"", lambda b: b"\x80.", lambda b: gzip.compress(b"[1]")]
)
def test_a_damaged_cache_is_replaced_with_a_warning(tree, tmp_path, loads, caplog, damage):
    logging.getLogger("loco_det").propagate = True  # tools that other tests have called here log to a file
    expected = cityscapes.load_cityscapes(*tree)
    (path,) = caches(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert cityscapes.load_cityscapes(*tree) == expected and len(loads) == 6
    records = {id(record): record for record in caplog.records}.values()  # loggers may have kept pytest's handler, too
    assert [r.levelno for r in records if "is damaged" in r.message] == [logging.WARNING]
    assert json.loads(gzip.decompress(path.read_bytes())) == json.loads(gzip.decompress(whole))


def test_without_a_place_for_the_cache_it_still_loads(tree, tmp_path, loads, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cityscapes, "get_cache_dir", lambda: str(tmp_path / "file"))
    assert len(cityscapes.load_cityscapes(*tree)) == 3 and len(loads) == 3
    assert "cannot be cached" in caplog.text


def test_nothing_half_written_stays(tree, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(cityscapes.json, "dump", full)
    assert len(cityscapes.load_cityscapes(*tree)) == 3 and "No space left" in caplog.text
    assert not caches(tmp_path) and not list((tmp_path / "cache").rglob("*.tmp"))


def test_registered_sets_are_cached(tree, loads, monkeypatch):
    name = "cityscapes_fine_instance_seg_val"
    metadata = MetadataCatalog.get(name)
    for key, folder in zip(("image_dir", "gt_dir"), tree, strict=True):
        monkeypatch.setitem(metadata.__dict__, key, folder)  # Metadata refuses a change
    cityscapes.cache_cityscapes()
    assert DatasetCatalog.get(name) == DatasetCatalog.get(name) and len(loads) == 3


def test_broken_polygons_and_missing_folders_name_the_file(tree):
    polygons(tree).write_text("{")
    with pytest.raises(ValueError, match="000000_000000_gtFine_polygons.json: JSONDecodeError"):
        cityscapes.load_cityscapes(*tree)
    with pytest.raises(FileNotFoundError):
        cityscapes.load_cityscapes(tree[0] + "x", tree[1])


def test_other_name_of_the_module(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "deeplearning"]:
        monkeypatch.delitem(sys.modules, name)
    cityscapes.alias_cityscapesscripts()
    import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as real
    import deeplearning.projects.cityscapesApi.cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as other
    from cityscapesscripts.helpers.labels import labels as real_labels
    from deeplearning.projects.cityscapesApi.cityscapesscripts.helpers.labels import labels

    assert other is real and labels is real_labels
    cityscapes.alias_cityscapesscripts()  # once more changes nothing


FAULTS = {
    "file_missing": lambda t: polygons(t).unlink(),
    "file_broken": lambda t: polygons(t).write_text('{"imgWidth": 3}'),
    "file_name": lambda t: Path(t[0], ".DS_Store").write_text(""),
    "truth_alone": lambda t: next(Path(t[0]).glob("*/*.png")).unlink(),
    "image_size": lambda t: Image.new("RGB", (7, 5)).save(next(Path(t[0]).glob("*/*.png"))),
    "image_unreadable": lambda t: next(Path(t[1]).glob("*/*instanceIds.png")).write_bytes(b""),
    "label_unknown": lambda t: edit(t, lambda o: o.append({"label": "dragon", "polygon": [[0, 0], [4, 0], [4, 4]]})),
    "outline_short": lambda t: edit(t, lambda o: o.append({"label": "car", "polygon": [[0, 0], [4, 0]]})),
    "polygon_not_finite": lambda t: edit(
        t, lambda o: o.append({"label": "car", "polygon": [[0, 0], [4, 0], [4, float("nan")]]})
    ),
    "polygon_cut": lambda t: edit(t, lambda o: o.append({"label": "sky", "polygon": [[0, 0], [140, 0], [4, 4]]})),
    "crowd": lambda t: edit(t, lambda o: o.append({"label": "cargroup", "polygon": [[0, 0], [4, 0], [4, 4]]})),
    "no_annotations": lambda t: edit(t, lambda o: o.clear()),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_checks(tree, kind):
    assert not check_cityscapes(*tree).of("error")
    FAULTS[kind](tree)
    assert kind in check_cityscapes(*tree).findings


@pytest.mark.parametrize("kind", ["file_missing", "file_broken", "file_name", "label_unknown", "outline_short"])
def test_detectron2_stops_where_the_check_finds_an_error(tree, kind):
    FAULTS[kind](tree)
    with pytest.raises((OSError, ValueError)):
        cityscapes.load_cityscapes(*tree)


def test_counts_of_the_check(tree):
    report = check_cityscapes(*tree)
    records = cityscapes.load_cityscapes(*tree)
    found = [a["category_id"] for r in records for a in r["annotations"]]
    assert [row["instances"] for row in report.table.values()] == [found.count(i) for i in range(8)]
    assert report.images == 3 and tuple(report.classes.values()) == CLASSES


def test_boxes_of_the_ground_truth(tmp_path):
    """An instance, another of the same class, a group, and stuff; boxes include their last pixels."""
    ids = np.zeros((20, 30), np.uint16)
    ids[2:5, 3:9], ids[10:12, 20:30], ids[15:, :4], ids[0, 0] = 26000, 26001, 26, 7
    (tmp_path / "x").mkdir()
    Image.fromarray(ids).save(tmp_path / "x/x_000000_000000_gtFine_instanceIds.png")
    assert cityscapes_boxes(str(tmp_path), CLASSES) == {
        "x_000000_000000": [
            (2, [0, 15, 4, 5], 20, True), (2, [3, 2, 6, 3], 18, False), (2, [20, 10, 10, 2], 20, False),
        ]
    }  # fmt: skip


def test_box_ap_is_pycocotools(tmp_path):
    """Random boxes with a crowd, written as files and evaluated by pycocotools' own loading."""
    rng = np.random.default_rng(0)
    truth, predictions = {}, {}
    content = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "a"}, {"id": 6, "name": "b"}]}
    results = []
    for image in range(4):
        content["images"].append({"id": image + 10})
        stem, objects, found = f"i{image}", [], []
        for n in range(6):
            box = [*rng.integers(0, 100, 2).tolist(), *rng.integers(20, 120, 2).tolist()]
            label, group = int(rng.integers(2)), n == 5
            area = box[2] * box[3] // 2
            objects.append((label, box, area, group))
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": image + 10, "category_id": label + 5, "bbox": box,
                 "area": area, "iscrowd": int(group)}
            )  # fmt: skip
            x, y, w, h = (float(v + rng.normal() * 4) for v in box)
            found.append(([x, y, x + w, y + h], float(rng.random()), label))
            result = {"image_id": image + 10, "category_id": label + 5, "bbox": [x, y, w, h], "score": found[-1][1]}
            results.append(result)
        truth[stem], predictions[stem] = objects, tuple(zip(*found, strict=True))
    (tmp_path / "truth.json").write_text(json.dumps(content))
    coco = COCO(str(tmp_path / "truth.json"))
    expected = COCOeval(coco, coco.loadRes(results), "bbox")
    expected.evaluate(), expected.accumulate(), expected.summarize()
    ours = box_ap(truth, predictions, ("a", "b"))
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    theirs = [100 * v if v >= 0 else np.nan for v in expected.stats[:6]]
    assert [ours[n] for n in names] == pytest.approx(theirs, nan_ok=True)
    assert 5 < ours["AP"] < 95
    assert (ours["AP-a"] + ours["AP-b"]) / 2 == pytest.approx(ours["AP"])


def test_box_ap_of_groups_and_of_nothing():
    truth = {"i": [(0, [0, 0, 50, 50], 2500, False), (0, [100, 100, 80, 80], 6400, True)]}
    hit, in_group = ([0, 0, 50, 50], 0.5, 0), ([110, 110, 150, 150], 0.9, 0)
    both = tuple(zip(hit, in_group, strict=True))
    assert box_ap(truth, {"i": both}, ("a", "b"))["AP"] == pytest.approx(100)
    assert box_ap({"i": truth["i"][:1]}, {"i": both}, ("a", "b"))["AP"] == pytest.approx(50)
    nothing = box_ap(truth, {"i": ((), (), ())}, ("a", "b"))
    assert nothing["AP"] == 0 and np.isnan(nothing["AP-b"])
    assert box_ap(truth, {}, ("a", "b"))["AP"] == 0
