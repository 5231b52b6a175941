"""Custom data: registration, number of classes, and one line for annotations that cannot be right."""

import copy
import json

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from loco_det.config import add_loco_config
from loco_det.data.checks import coco as checks
from loco_det.data.datasets import prepare_datasets, quick_check

GOOD = {
    "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}],
    "categories": [{"id": 7, "name": "cell"}, {"id": 3, "name": "dust"}],
    "annotations": [
        {"id": 5, "image_id": 1, "category_id": 7, "bbox": [2, 2, 8, 6], "area": 48, "iscrowd": 0,
         "segmentation": [[2, 2, 10, 2, 10, 8, 2, 8]]}
    ],
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """Write annotations beside an image folder; returns the two paths."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "images" / "a.png")

    def write(content, name="train.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path), str(tmp_path / "images")

    return write


def config(**keys):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.MODEL.MASK_ON = True
    for key, value in keys.items():
        cfg.DATASETS.CUSTOM[key] = value
    return cfg


def changed(path, value):
    content = copy.deepcopy(GOOD)
    *parts, last = path
    part = content
    for p in parts:
        part = part[p]
    part[last] = value
    return content


def test_classes_are_taken_from_the_file(write):
    path, images = write(GOOD)
    cfg = config(NAME="one", TRAIN_JSON=path, TRAIN_IMAGES=images, TEST_JSON=path, TEST_IMAGES=images)
    prepare_datasets(cfg)
    assert cfg.DATASETS.TRAIN == ("one_train",) and cfg.DATASETS.TEST == ("one_test",)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2 and cfg.INPUT.MASK_FORMAT == "polygon"
    (record,) = DatasetCatalog.get("one_train")
    assert MetadataCatalog.get("one_train").thing_classes == ["dust", "cell"]
    assert record["annotations"][0]["category_id"] == 1


def test_run_length_masks_need_bitmasks(write):
    rle = {"size": [20, 30], "counts": "hb0"}
    path, images = write(changed(("annotations", 0, "segmentation"), rle))
    cfg = config(NAME="rle", TRAIN_JSON=path, TRAIN_IMAGES=images)
    prepare_datasets(cfg)
    assert cfg.INPUT.MASK_FORMAT == "bitmask" and cfg.DATASETS.TEST == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            changed(("annotations", 0, "category_id"), 9),
            "categories .1.: annotation 5: category_id 9. Detectron2 stops",
        ),
        (
            changed(("annotations", 0, "segmentation"), []),
            r"without a segmentation .1.: annotation 5 of a.png.*boxes only set MODEL.MASK_ON False",
        ),
        (changed(("annotations", 0, "segmentation"), [[[2, 2], [10, 2], [10, 8]]]), "polygons are lists of points"),
        (changed(("annotations", 0, "area"), -48), "area -48, its mask has 48 pixels"),
        (changed(("images", 0, "file_name"), "../images/../train.json"), "DATASETS.ALLOW_OUTSIDE True"),
        (changed(("annotations", 0, "bbox"), None), "bbox None of the entry with id 5 must be four numbers"),
        (changed(("annotations", 0, "bbox"), [1, 2, float("nan"), 3]), "annotation 5 of a.png: bbox"),
        (changed(("annotations", 0, "id"), 0), "id 0 .1.: annotation 0 of image 1"),
        (changed(("annotations",), GOOD["annotations"] * 2), "duplicate annotation ids"),
        (changed(("annotations",), []), "no annotations"),
        (changed(("images", 0), {"id": 1, "file_name": "a.png", "width": 30}), "images: .* id 1 lacks height"),
        (changed(("annotations", 0), {"id": 5, "image_id": 1}), "id 5 lacks category_id, bbox, area, iscrowd"),
        (changed(("images", 0, "file_name"), "b.png"), r"image files are missing .1.: .*b.png. training stops"),
        (changed(("categories",), []), "no categories.* There are 1 more kinds of errors"),
        ({"images": []}, "not a COCO instance file"),
        ("[]", "not a COCO instance file"),
        ('{"images": [', "is not JSON"),
    ],
)
def test_wrong_annotations(write, content, message):
    path, images = write(content)
    with pytest.raises(ValueError, match=message) as error:
        prepare_datasets(config(NAME="wrong", TRAIN_JSON=path, TRAIN_IMAGES=images))
    assert "\n" not in str(error.value)
    assert f"python tools/check_dataset.py --json {path} --images {images}" in str(error.value)


def test_boxes_only(write):
    """With MODEL.MASK_ON False an empty or unusable segmentation is nobody's business, and the object is trained on."""
    content = changed(("annotations", 0, "segmentation"), [])
    content["annotations"].append({**GOOD["annotations"][0], "id": 6, "segmentation": [[1, 2]]})
    content["annotations"].append({**GOOD["annotations"][0], "id": 7})
    del content["annotations"][2]["segmentation"]
    path, images = write(content)
    cfg = config(NAME="boxes", TRAIN_JSON=path, TRAIN_IMAGES=images)
    cfg.MODEL.MASK_ON = False
    prepare_datasets(cfg)
    (record,) = DatasetCatalog.get("boxes_train")
    assert [a["bbox"] for a in record["annotations"]] == [[2, 2, 8, 6]] * 3
    assert not any("segmentation" in a for a in record["annotations"])
    write(changed(("annotations", 0, "bbox"), None))
    with pytest.raises(ValueError, match="check_dataset.py --json .* --boxes-only$"):
        quick_check(path, images, masks=False)


def test_names_outside_of_the_folder_are_allowed_by_a_key(write):
    path, images = write(changed(("images", 0, "file_name"), f"{'../' * 9}tmp/../{__file__}"))
    cfg = config(NAME="outside", TRAIN_JSON=path, TRAIN_IMAGES=images)
    with pytest.raises(ValueError, match="file names lead out of the folder of images .1.: .*set DATASETS.ALLOW_OUT"):
        prepare_datasets(cfg)
    cfg.DATASETS.ALLOW_OUTSIDE = True
    prepare_datasets(cfg)
    assert cfg.DATASETS.TRAIN == ("outside_train",)


def test_byte_order_mark(write):
    """The check and the loader agree, for custom data and for what was registered with Detectron2's own function."""
    path, images = write("\ufeff" + json.dumps(GOOD))
    register_coco_instances("marked", {}, path, images)
    cfg = config(NAME="bom", TRAIN_JSON=path, TRAIN_IMAGES=images)
    prepare_datasets(cfg)
    assert [len(DatasetCatalog.get(name)[0]["annotations"]) for name in ("bom_train", "marked")] == [1, 1]


def test_a_loader_of_ones_own_stays(write):
    path, images = write(GOOD)
    DatasetCatalog.register("own_loader", lambda: ["mine"])
    MetadataCatalog.get("own_loader").set(json_file=path, image_root=images, evaluator_type="coco")
    prepare_datasets(config(NAME="any", TRAIN_JSON=path, TRAIN_IMAGES=images))
    assert DatasetCatalog.get("own_loader") == ["mine"]


def test_what_detectron2_drops_is_a_warning(write, caplog):
    content = changed(("annotations", 0, "bbox"), [2, 2, 0, 6])
    content["annotations"].append({**GOOD["annotations"][0], "id": 6, "image_id": 2})
    path, images = write(content)
    prepare_datasets(config(NAME="flat", TRAIN_JSON=path, TRAIN_IMAGES=images))
    (line,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "boxes without width or height (1)" in line and "images that are not listed (1)" in line


def test_registered_annotations_are_checked_once_a_file(write, monkeypatch):
    path, images = write(GOOD)
    read = []
    monkeypatch.setattr(checks, "read_coco", lambda p, original=checks.read_coco: read.append(p) or original(p))
    for name in ("once_a", "once_b"):
        register_coco_instances(name, {}, path, images)
    cfg = config()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("once_a",), ("once_b",)
    with pytest.raises(ValueError, match="once_a has 2 classes, MODEL.ROI_HEADS.NUM_CLASSES is 80: set it to 2"):
        prepare_datasets(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    prepare_datasets(cfg)
    assert read == [path]
    write(changed(("annotations", 0, "category_id"), 19))
    with pytest.raises(ValueError, match="category_id 19.*python tools/check_dataset.py once_a"):
        prepare_datasets(cfg)


def test_registered_cityscapes_is_checked(tmp_path):
    for part in ("leftImg8bit", "gtFine"):
        (tmp_path / part / "x").mkdir(parents=True)
    (tmp_path / "leftImg8bit/x/x_000000_000000_leftImg8bit.png").write_bytes(b"")
    DatasetCatalog.register("city_without_truth", list)
    MetadataCatalog.get("city_without_truth").set(
        image_dir=str(tmp_path / "leftImg8bit"), gt_dir=str(tmp_path / "gtFine"), evaluator_type="cityscapes_instance"
    )
    cfg = config()
    cfg.DATASETS.TRAIN = ("city_without_truth",)
    with pytest.raises(ValueError, match=r"files are missing .2.: .*instanceIds.png.*check_dataset.py city_without"):
        prepare_datasets(cfg)


def test_half_a_data_set_and_two_that_differ(write):
    path, images = write(GOOD)
    with pytest.raises(ValueError, match="TRAIN_JSON and DATASETS.CUSTOM.TRAIN_IMAGES go together"):
        prepare_datasets(config(TRAIN_JSON=path))
    other, _ = write(changed(("categories", 0, "name"), "else"), "val.json")
    with pytest.raises(ValueError, match="list different categories"):
        prepare_datasets(config(TRAIN_JSON=path, TRAIN_IMAGES=images, TEST_JSON=other, TEST_IMAGES=images))
    with pytest.raises(FileNotFoundError, match="no such annotation file"):
        quick_check("/nowhere.json", images)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        quick_check(path, "/nowhere")


def test_a_path_of_the_wrong_kind_or_that_is_not_there_is_said_with_its_key(write, monkeypatch, tmp_path):
    path, images = write(GOOD)
    monkeypatch.chdir(tmp_path)
    for keys, line in (
        ({"TRAIN_JSON": images}, f"DATASETS.CUSTOM.TRAIN_JSON {images} is a folder, expected a JSON file"),
        ({"TRAIN_IMAGES": path}, f"DATASETS.CUSTOM.TRAIN_IMAGES {path} is a file, expected a folder of images"),
        (
            {"TRAIN_JSON": "a.json"},
            f"DATASETS.CUSTOM.TRAIN_JSON a.json: no such annotation file in the folder {tmp_path}",
        ),
        ({"TRAIN_IMAGES": "x"}, f"DATASETS.CUSTOM.TRAIN_IMAGES x: no such folder of images in the folder {tmp_path}"),
        ({"TRAIN_IMAGES": "/x"}, "DATASETS.CUSTOM.TRAIN_IMAGES /x: no such folder of images"),
    ):
        with pytest.raises(OSError) as error:
            prepare_datasets(config(**{"TRAIN_JSON": path, "TRAIN_IMAGES": images, **keys}))
        assert str(error.value) == line


def test_an_evaluation_needs_no_data_to_train_on(write):
    path, images = write(GOOD)
    gone = {"TRAIN_JSON": "/gone.json", "TRAIN_IMAGES": "/gone"}
    cfg = config(NAME="evaluated", TEST_JSON=path, TEST_IMAGES=images, **gone)
    prepare_datasets(cfg, eval_only=True)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("evaluated_train",), ("evaluated_test",))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    cfg = config(NAME="evaluated_on_nothing", **gone)
    cfg.DATASETS.TEST = ("coco_2017_val",)  # of a base config
    prepare_datasets(cfg, eval_only=True)
    assert cfg.DATASETS.TEST == ()


def test_data_that_are_not_there():
    cfg = config()
    cfg.DATASETS.TRAIN = ("coco_2017_train",)
    with pytest.raises(FileNotFoundError, match="coco_2017_train: .* is not there; DETECTRON2_DATASETS is"):
        prepare_datasets(cfg)
    cfg.DATASETS.TRAIN = ("coco_2018_train",)
    with pytest.raises(ValueError, match="'coco_2018_train' is not a registered data set"):
        prepare_datasets(cfg)


def test_number_of_classes_of_registered_data(tmp_path):
    name = "three_classes"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(thing_classes=["a", "b", "c"])
    cfg = config()
    cfg.DATASETS.TRAIN = (name,)
    with pytest.raises(ValueError, match="three_classes has 3 classes, MODEL.ROI_HEADS.NUM_CLASSES is 80: set it to 3"):
        prepare_datasets(cfg)
