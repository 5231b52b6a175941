"""The generated scenes and the layouts that they are written in, as their readers see them."""

import json
import os
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from scipy.ndimage import binary_fill_holes

from loco_det.data.voc_files import read_annotation, read_split
from loco_det.demo_scenes import writing as demo
from loco_det.demo_scenes.layouts import mask_polygons
from loco_det.demo_scenes.pictograms import CLASSES
from loco_det.demo_scenes.scenes import MAX_INSTANCES, MIN_VISIBLE_PIXELS, STREAMS, draw_scene
from loco_det.demo_scenes.writing import make_demo_data

SMALL = {"num_unlabeled": 3, "num_train": 4, "num_val": 2, "size": (64, 80)}
SEED = 7


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Demo data written by two processes; size large enough for every kind of annotation."""
    root = tmp_path_factory.mktemp("data") / "demo"
    assert make_demo_data(root, SEED, 3, 6, 3, (96, 128), workers=2) is True
    return root


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# scenes


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**40), st.sampled_from(STREAMS), st.integers(0, 10**6), st.integers(64, 150), st.integers(64, 150)
)
def test_scene_holds_what_it_promises(seed, stream, index, height, width):
    scene = draw_scene(seed, stream, index, (height, width))
    assert scene.image.shape == (height, width, 3) and scene.image.dtype == np.uint8
    assert scene.stuff.shape == (height, width) and set(np.unique(scene.stuff)) <= {7, 8, 11, 12, 21, 22, 23}
    assert 1 <= len(scene.instances) <= MAX_INSTANCES
    owner = np.full((height, width), -1)
    for k, thing in enumerate(scene.instances):  # the painter's rule, recomposed pixel by pixel
        for y, x in np.argwhere(thing.silhouette):
            owner[y, x] = k
    for k, thing in enumerate(scene.instances):
        assert thing.mask.dtype == bool and thing.mask.shape == (height, width)
        assert np.array_equal(thing.mask, owner == k)
        assert thing.mask.sum() >= max(MIN_VISIBLE_PIXELS, 0.4 * thing.silhouette.sum())


def test_scene_depends_on_every_part_of_its_name():
    pictures = [draw_scene(*name, (64, 80)).image for name in
                ((0, "unlabeled", 0), (1, "unlabeled", 0), (0, "coco_train", 0), (0, "unlabeled", 1))]  # fmt: skip
    assert np.array_equal(pictures[0], draw_scene(0, "unlabeled", 0, (64, 80)).image)
    assert all((pictures[0] != other).mean() > 0.5 for other in pictures[1:])


def test_masks_lie_on_what_was_painted(monkeypatch):
    """Without anything but flat paint on black, each mask is where its own colour is."""
    from loco_det.demo_scenes import scenes

    def flat(rng, image, sprite, light, count=[0]):  # noqa: B006
        count[0] += 1
        frame, own = sprite.window(image.shape[:2])
        image[frame][sprite.coverage[own].sum(2) >= 0.5] = count[0]

    monkeypatch.setattr(scenes, "draw_backdrop", lambda rng, size: (np.zeros((*size, 3), np.float32), None, 40))
    monkeypatch.setattr(scenes, "shade_ground", lambda *args: None)
    monkeypatch.setattr(scenes, "paint", flat)
    monkeypatch.setattr(scenes, "photograph", lambda rng, image, light: image)
    scene = draw_scene(3, "unlabeled", 0, (128, 160))
    found = np.unique(scene.image)[1:]
    assert len(found) == len(scene.instances) > 1
    for value, thing in zip(found, scene.instances, strict=True):
        assert np.array_equal(scene.image[:, :, 0] == value, thing.mask)


def test_every_class_appears_about_as_often():
    seen = [thing.category for i in range(60) for thing in draw_scene(0, "unlabeled", i, (64, 80)).instances]
    counts = np.bincount(seen, minlength=len(CLASSES))
    assert counts.min() > 0.4 * counts.mean() and counts.max() < 1.8 * counts.mean()


def test_things_hide_one_another_now_and_then():
    things = [thing for i in range(30) for thing in draw_scene(0, "unlabeled", i, (96, 128)).instances]
    hidden = np.mean([thing.mask.sum() < 0.95 * thing.silhouette.sum() for thing in things])
    assert 0.1 < hidden < 0.7


# bytes


def test_bytes_are_the_same_for_any_number_of_processes_and_differ_by_seed(tmp_path):
    cv2.resize(np.zeros((999, 999)), (99, 99))  # OpenCV's threads run here: forked processes would hang now
    for name, seed, workers in (("one", 5, 1), ("two", 5, 2), ("other", 6, 1)):
        assert make_demo_data(tmp_path / name, seed, workers=workers, **SMALL)
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two and len(one) == 1 + 3 + (6 + 2) + 6 * 4
    assert one.keys() == other.keys() and not any(one[k] == other[k] for k in one if k.endswith((".jpg", ".png")))
    pictures = [data for name, data in one.items() if name.endswith(".jpg") or "leftImg8bit.png" in name]
    assert len(set(pictures)) == len(pictures) == 3 + 6 + 6


# COCO


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.floats(0.2, 0.95))
def test_polygons_decode_to_the_mask_with_its_holes_closed(height, width, seed, share):
    from pycocotools import mask as mask_util

    mask = np.random.default_rng(seed).random((height, width)) < share
    if not mask.any():
        return
    polygons = mask_polygons(mask)
    assert all(len(p) >= 8 for p in polygons)
    decoded = mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, height, width)))
    # a hole that touches the outside at a corner only is open for a mask that counts diagonal neighbours as joined
    assert np.array_equal(decoded.astype(bool), binary_fill_holes(mask))


@pytest.mark.parametrize("split, count", [("train", 6), ("val", 3)])
def test_coco_annotations_are_the_exact_masks(root, split, count):
    coco = COCO(root / "coco/annotations" / f"instances_{split}.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert len(coco.imgs) == count and 0 not in coco.anns
    kinds = set()
    for image in coco.dataset["images"]:
        picture = cv2.imread(str(root / "coco" / split / image["file_name"]))
        assert picture.shape == (image["height"], image["width"], 3) == (96, 128, 3)
        scene = draw_scene(SEED, f"coco_{split}", image["id"] - 1, (96, 128))
        assert np.abs(picture[:, :, ::-1].astype(int) - scene.image).mean() < 12  # JPEG; also: RGB, not BGR
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(annotations) == len(scene.instances)
        for annotation, thing in zip(annotations, scene.instances, strict=True):
            kinds.add(type(annotation["segmentation"]))
            decoded = coco.annToMask(annotation).astype(bool)
            assert (decoded & thing.mask).sum() / (decoded | thing.mask).sum() >= 0.95
            ys, xs = np.nonzero(thing.mask)
            box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert annotation["bbox"] == box and annotation["area"] == thing.mask.sum()
            assert annotation["category_id"] == thing.category + 1 and annotation["iscrowd"] == 0
    assert kinds == {list, dict}


def test_ground_truth_as_predictions_is_perfect_for_coco(root):
    from pycocotools.cocoeval import COCOeval

    coco = COCO(root / "coco/annotations/instances_val.json")
    truth = [{**a, "score": 1.0} for a in coco.dataset["annotations"]]
    for kind in ("bbox", "segm"):
        result = COCOeval(coco, coco.loadRes([dict(a) for a in truth]), kind)
        result.evaluate(), result.accumulate(), result.summarize()
        assert result.stats[0] == pytest.approx(1.0)


# Pascal VOC


def test_voc_annotations_are_the_boxes_of_the_masks(tmp_path):
    assert make_demo_data(tmp_path / "demo", SEED, workers=1, layouts=("voc",), size=(96, 128), num_train=3, num_val=2)
    hard, root = [], tmp_path / "demo" / "voc"
    lists = ("VOC2007/ImageSets/Main/trainval", "VOC2007/ImageSets/Main/test", "VOC2012/ImageSets/Main/trainval")
    assert sorted(contents(root)) == sorted(
        [f"{path}.txt" for path in lists]
        + [f"VOC2007/{part}/{i:06d}.{end}" for part, end in PARTS for i in range(5)]
        + [f"VOC2012/{part}/{i:06d}.{end}" for part, end in PARTS for i in range(3)]
    )  # fmt: skip
    for year, split, first in ((2007, "trainval", 0), (2007, "test", 3), (2012, "trainval", 0)):
        names = read_split(str(root / f"VOC{year}"), split)
        assert names == [f"{first + i:06d}" for i in range(2 if split == "test" else 3)]
        for index, name in enumerate(names):
            scene, found = (
                draw_scene(SEED, f"voc_{year}_{split}", index, (96, 128)),
                read_annotation(str(root / f"VOC{year}"), name),
            )
            picture = cv2.imread(str(root / f"VOC{year}" / "JPEGImages" / f"{name}.jpg"))
            assert np.abs(picture[:, :, ::-1].astype(int) - scene.image).mean() < 12
            assert (found.height, found.width) == picture.shape[:2] == (96, 128)
            annotated = [t for t in scene.instances if CLASSES[t.category] != "truck"]
            for thing, known in zip(found.objects, annotated, strict=True):
                ys, xs = np.nonzero(known.mask)
                assert thing.box == (xs.min() + 1, ys.min() + 1, xs.max() + 1, ys.max() + 1)
                assert thing.name in (VOC[CLASSES[known.category]], CLASSES[known.category])
                hard.append((known.mask.sum() / known.silhouette.sum(), thing.difficult))
    assert all((share < 0.6) == difficult for share, difficult in hard)


PARTS = (("JPEGImages", "jpg"), ("Annotations", "xml"))
VOC = {
    "rider": "person",
    "motorcycle": "motorbike",
    **{name: name for name in ("person", "car", "bus", "train", "bicycle")},
}


# Cityscapes


def load_cityscapes(root, split, **kwargs):
    cityscapes = pytest.importorskip("detectron2.data.datasets.cityscapes")
    folder = root / "cityscapes"
    found = cityscapes.load_cityscapes_instances(
        str(folder / "leftImg8bit" / split), str(folder / "gtFine" / split), **kwargs
    )
    return sorted(found, key=lambda record: record["file_name"])


@pytest.mark.parametrize("split, count", [("train", 6), ("val", 3)])
def test_detectron2_reads_the_exact_masks_of_the_cityscapes_layout(root, split, count):
    from pycocotools import mask as mask_util

    records = load_cityscapes(root, split, from_json=False, to_polygons=False)
    assert len(records) == count
    for index, record in enumerate(records):
        scene = draw_scene(SEED, f"cityscapes_{split}", index, (96, 128))
        assert np.array_equal(cv2.imread(record["file_name"])[:, :, ::-1], scene.image)
        assert (record["height"], record["width"]) == (96, 128)
        read = [(a["category_id"], mask_util.decode(a["segmentation"])) for a in record["annotations"]]
        drawn = [(thing.category, thing.mask) for thing in scene.instances]
        assert sorted((c, m.tobytes()) for c, m in read) == sorted((c, m.astype(np.uint8).tobytes()) for c, m in drawn)


@pytest.mark.parametrize("split", ["train", "val"])
def test_cityscapes_json_tells_of_the_same_instances(root, split):
    pytest.importorskip("shapely", reason="Detectron2 reads Cityscapes polygons with shapely")
    from_png = load_cityscapes(root, split, from_json=False)
    from_json = load_cityscapes(root, split, from_json=True)
    for one, other in zip(from_png, from_json, strict=True):
        assert one["file_name"] == other["file_name"]
        classes = [sorted(a["category_id"] for a in record["annotations"]) for record in (one, other)]
        assert classes[0] == classes[1] and len(classes[0]) > 0
        assert all(a["segmentation"] for a in other["annotations"])


def test_cityscapes_pngs_agree_with_one_another_and_with_the_polygons(root):
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.helpers.labels import id2label, name2label
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage

    files = sorted((root / "cityscapes/gtFine").rglob("*_instanceIds.png"))
    assert len(files) == 9
    for path in files:
        ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        labels = cv2.imread(str(path).replace("instanceIds", "labelIds"), cv2.IMREAD_UNCHANGED)
        assert ids.dtype == np.uint16 and labels.dtype == np.uint8
        things = ids >= 1000
        assert np.array_equal(labels, np.where(things, ids // 1000, ids))
        assert all(id2label[i].hasInstances == bool(things[labels == i].all()) for i in np.unique(labels))
        annotation = Annotation()
        annotation.fromJsonFile(str(path).replace("instanceIds.png", "polygons.json"))
        # a polygon closes its holes, as Cityscapes' own do: apart from that the redrawn picture is the same
        city, index, _ = path.name.split("_", 2)
        scene = draw_scene(SEED, city.replace("demo", "cityscapes_"), int(index), (96, 128))
        assert np.array_equal(ids[~things], scene.stuff[~things])
        closed, seen = scene.stuff.astype(int), Counter()
        for thing in scene.instances:
            name = CLASSES[thing.category]
            assert (ids[thing.mask] == name2label[name].id * 1000 + seen[name]).all()
            closed[binary_fill_holes(thing.silhouette)] = name2label[name].id * 1000 + seen[name]
            seen[name] += 1
        assert np.array_equal(np.asarray(createInstanceImage(annotation, "ids")), closed)
    assert {p.name.split("_")[0] for p in files} == {"demotrain", "demoval"}


# arguments, repeats and interruptions


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"seed": -1}, "seed must be at least 0"),
        ({"num_train": 0}, "num_train must be at least 1"),
        ({"num_val": 1.5}, "num_val must be a whole number"),
        ({"size": (32, 80)}, "height must be between 64 and 2048"),
        ({"size": (64, 5000)}, "width must be between 64 and 2048"),
        ({"size": 64}, "size must be a"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"layouts": ("coco", "lvis")}, "layouts must be some of"),
        ({"layouts": ()}, "layouts must be some of"),
        ({"layouts": "coco"}, "layouts must be some of"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(tmp_path, wrong, words):
    with pytest.raises(ValueError, match=words) as error:
        make_demo_data(tmp_path / "demo", **{**SMALL, **wrong})
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_the_same_data_is_not_made_twice_and_other_data_is_not_replaced(tmp_path):
    root = tmp_path / "deep/er/demo"
    (tmp_path / "deep/er/demo").mkdir(parents=True)  # an empty folder is free to use
    assert make_demo_data(root, workers=1, layouts=("unlabeled",), **SMALL) is True
    before = contents(root)
    assert before.keys() == {"demo.json", *(f"unlabeled/{i:06d}.jpg" for i in range(3))}
    assert make_demo_data(root, workers=2, layouts=["unlabeled"], **SMALL) is False
    with pytest.raises(ValueError, match="seed 0 there, 1 asked for.*remove it or choose another"):
        make_demo_data(root, seed=1, workers=1, layouts=("unlabeled",), **SMALL)
    assert contents(root) == before
    (root / "demo.json").write_text("[")
    with pytest.raises(ValueError, match="cannot be read"):
        make_demo_data(root, **SMALL)
    (root / "demo.json").unlink()
    with pytest.raises(ValueError, match="is not demo data"):
        make_demo_data(root, **SMALL)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is not demo data"):
        make_demo_data(tmp_path / "file", **SMALL)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_nothing_is_left_when_it_stops_half_way(tmp_path, monkeypatch, error):
    written = []

    def stop_at_the_third(scene, folder, index):
        if index == 2:
            written.extend(os.listdir(folder))
            raise error
        (folder / f"{index}.jpg").write_bytes(b"x")

    monkeypatch.setattr(demo, "write_image", stop_at_the_third)
    with pytest.raises((KeyboardInterrupt, OSError)):
        make_demo_data(tmp_path / "demo", workers=1, **SMALL)
    assert sorted(written) == ["0.jpg", "1.jpg"] and not list(tmp_path.iterdir())


def test_the_manifest_says_what_was_asked_for(root):
    found = json.loads((root / "demo.json").read_text())
    assert found["seed"] == SEED and found["size"] == [96, 128] and found["classes"] == list(CLASSES)
    assert (found["num_unlabeled"], found["num_train"], found["num_val"]) == (3, 6, 3)
