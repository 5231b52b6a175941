"""Prediction with a run that was trained elsewhere, here an untrained tiny one."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO

from loco_det.config import add_loco_config
from loco_det.engine.predict import WrittenFiles, find_images, picture_names, predict_images, run_classes
from loco_det.engine.trainer import Trainer
from pretrain.files.text import for_file_name


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run folder of a detector of three classes, of data that is not on this machine."""
    folder = tmp_path_factory.mktemp("run")
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file("configs/demo_coco_loco_frozen.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.INPUT.MIN_SIZE_TEST = "cpu", 3, 64
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 0.0, 5
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("elsewhere_train",), ("elsewhere_test",)
    cfg.DATASETS.CUSTOM.TRAIN_JSON, cfg.DATASETS.CUSTOM.TEST_JSON = "/of/another/machine.json", ""  # not the demo's
    torch.manual_seed(0)
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, folder / "model_0000009.pth")
    (folder / "last_checkpoint").write_text("model_0000009.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    classes = {"thing_classes": ["tram", "ox", "kite"], "category_ids": [3, 9, 11]}
    (folder / "results.json").write_text(json.dumps({"results": {}, **classes}))
    return folder


@pytest.fixture
def cfg(run):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(str(run / "config.yaml"))
    return cfg


@pytest.fixture
def images(tmp_path):
    """A folder with images, two of the same name, one that is turned by its EXIF tag, a torn one and a text."""
    rng = np.random.default_rng(0)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name, size in (("a.png", (96, 64)), ("sub/a.JPG", (64, 80))):
        pixels = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if name.endswith("JPG") else 1  # to be turned by 90 degrees
        pixels.save(tmp_path / "in" / name, exif=exif)
    (tmp_path / "in" / "torn.jpg").write_bytes((tmp_path / "in" / "sub" / "a.JPG").read_bytes()[:300])
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def test_pictures_and_predictions(run, cfg, images, tmp_path, capsys):
    done = predict_images(cfg, run, [images], tmp_path / "out", threshold=0.0)
    assert (done["images"], done["detections"], [path for path, _ in done["skipped"]]) == (2, 10, [images / "torn.jpg"])
    assert f"skipped {images / 'torn.jpg'}: " in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    names = [str(images / "a.png"), str(images / "sub" / "a.JPG")]
    assert content["images"] == [
        {"id": 1, "file_name": names[0], "width": 96, "height": 64},
        {"id": 2, "file_name": names[1], "width": 80, "height": 64},  # as it is seen, not as it is stored
    ]
    assert content["categories"] == [{"id": i, "name": n} for i, n in ((3, "tram"), (9, "ox"), (11, "kite"))]
    assert {found["category_id"] for found in content["annotations"]} <= {3, 9, 11}
    assert set(content["annotations"][0]) >= {"image_id", "category_id", "bbox", "score", "segmentation"}
    truth = COCO()
    truth.dataset = {**content, "annotations": []}
    truth.createIndex()
    assert len(truth.loadRes(content["annotations"]).anns) == 10  # pycocotools takes them, masks too
    pictures = sorted((tmp_path / "out" / "pictures").iterdir())
    assert [p.name for p in pictures] == ["a.jpg", "a_3.jpg"]
    assert all(Image.open(picture).size[0] >= 400 for picture in pictures)


def test_threshold_is_for_the_pictures_only(run, cfg, images, tmp_path):
    drawn = []
    for threshold in (0.0, 1.1):
        done = predict_images(cfg, run, [images / "a.png"], tmp_path / "out", threshold)
        assert done["detections"] == 5 and done["skipped"] == []
        drawn.append(np.asarray(Image.open(tmp_path / "out" / "pictures" / "a.jpg"), dtype=int)[40:])
    assert np.abs(drawn[0] - drawn[1]).max() > 60


def test_pictures_of_an_earlier_prediction_go_and_nothing_else(run, cfg, images, tmp_path):
    out = tmp_path / "out"
    predict_images(cfg, run, [images], out)
    (out / "pictures" / "mine.jpg").write_bytes(b"mine")
    (out / "pictures" / "a_3.jpg").write_bytes(b"changed")
    with (out / ".written").open("a") as ledger:  # names that nothing but an attacker would write
        for name in ("pictures/../kept.txt", "kept.txt", str(tmp_path / "kept.txt")):
            ledger.write(f"{hashlib.sha256(b'kept').hexdigest()}  {name}\n")
    for folder in (out, tmp_path):
        (folder / "kept.txt").write_text("kept")
    with pytest.raises(ValueError, match="none of 1 images"):
        predict_images(cfg, run, [images / "torn.jpg"], out)
    assert (out / "pictures" / "a.jpg").is_file()  # nothing has taken its place
    (images / "sub" / "a.JPG").rename(images / "b.jpg")
    predict_images(cfg, run, [images / "b.jpg"], out)
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["a_3.jpg", "b.jpg", "mine.jpg"]
    assert (out / "kept.txt").is_file() and (tmp_path / "kept.txt").is_file()


def test_classes_where_results_json_is_not_there(cfg, tmp_path):
    assert run_classes(cfg, tmp_path) == (["class 0", "class 1", "class 2"], [0, 1, 2])
    categories = [{"id": 9, "name": "ox"}, {"id": 3, "name": "tram"}, {"id": 11, "name": "kite"}]
    (tmp_path / "train.json").write_text(json.dumps({"categories": categories}))
    cfg.DATASETS.CUSTOM.TRAIN_JSON = str(tmp_path / "train.json")
    assert run_classes(cfg, tmp_path) == (["tram", "ox", "kite"], [3, 9, 11])
    places = {i + 10: i for i in range(80)}  # in metadata of the test's own
    metadata = MetadataCatalog.get("classes_of_a_registered_set")
    metadata.set(thing_classes=[f"thing {i}" for i in range(80)], thing_dataset_id_to_contiguous_id=places)
    cfg.DATASETS.CUSTOM.TRAIN_JSON, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "", 80
    cfg.DATASETS.TEST = ("classes_of_a_registered_set",)
    names, ids = run_classes(cfg, tmp_path)
    assert (names[0], ids[-1], len(names)) == ("thing 0", 89, 80)
    (tmp_path / "results.json").write_text(json.dumps({"results": {}, "thing_classes": ["a"], "category_ids": [1]}))
    with pytest.raises(ValueError, match="names 1 classes, MODEL.ROI_HEADS.NUM_CLASSES is 80"):
        run_classes(cfg, tmp_path)
    for text in ("[1]", "null", "{bad", '{"results": {}, "thing_classes": 3}', '{"results": {}, "thing_classes": [3]}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ValueError, match="results.json"):
            run_classes(cfg, tmp_path)
    (tmp_path / "results.json").unlink()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.DATASETS.CUSTOM.TRAIN_JSON = 1, str(tmp_path / "train.json")
    (tmp_path / "train.json").write_text('\ufeff{"categories": [{"id": 4, "name": "cat"}]}')
    assert run_classes(cfg, tmp_path) == (["cat"], [4])
    (tmp_path / "train.json").write_text('{"categories": [3]}')
    with pytest.raises(ValueError, match="train.json: its categories are damaged"):
        run_classes(cfg, tmp_path)


def test_what_cannot_be_done(run, cfg, images, tmp_path):
    for name, message in (("gone.jpg", "no such file"), ("none", r"no images \(.*\) in this folder")):
        path = tmp_path / name
        (tmp_path / "none").mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match=message):
            find_images([images, path])
    assert find_images([images, images / "a.png"]) == [images / name for name in ("a.png", "torn.jpg", "sub/a.JPG")]
    with pytest.raises(ValueError, match="none of 1 images could be read: .*torn.jpg"):
        predict_images(cfg, run, [images / "torn.jpg"], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="neither model_final.pth nor last_checkpoint"):
        predict_images(cfg, tmp_path, [images], tmp_path / "out")
    cfg.MODEL.RESNETS.DEPTH = 34
    with pytest.raises(ValueError, match="tensors of the detector"):
        predict_images(cfg, run, [images], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_files_of_an_earlier_prediction_are_replaced(run, cfg, images, tmp_path):
    out = tmp_path / "out"
    (out / "pictures").mkdir(parents=True)
    picture = out / "pictures" / "a.jpg"
    for content in (b"a photograph", (images / "sub" / "a.JPG").read_bytes()):
        picture.write_bytes(content)
        with pytest.raises(ValueError, match="a.jpg exists and is not of an earlier prediction: name another --output"):
            predict_images(cfg, run, [images / "a.png"], out)
        with pytest.raises(ValueError, match="a.jpg is one of the images and would be replaced"):
            predict_images(cfg, run, [picture], out)
        assert picture.read_bytes() == content and not (out / "predictions.json").exists()
    picture.unlink()
    (out / "predictions.json").write_text("mine")
    with pytest.raises(ValueError, match="predictions.json exists and is not of an earlier prediction"):
        predict_images(cfg, run, [images / "a.png"], out)
    (out / "predictions.json").unlink()
    for threshold in (0.0, 1.1):
        predict_images(cfg, run, [images / "a.png"], out, threshold)
    picture.write_bytes(b"changed by the user")
    with pytest.raises(ValueError, match="not of an earlier prediction"):
        predict_images(cfg, run, [images / "a.png"], out)
    picture.unlink()
    (out / ".written").write_text("a list of mine\n")
    with pytest.raises(ValueError, match=".written exists and is not of an earlier prediction"):
        predict_images(cfg, run, [images / "a.png"], out)
    (out / ".written").unlink()
    (out / "predictions.json").unlink()
    picture.symlink_to(images / "a.png")
    with pytest.raises(ValueError, match="a.jpg is one of the images"):
        predict_images(cfg, run, [images / "a.png"], out)


def test_names_of_pictures():
    names = ["x/a.jpg", "y/a.png", "z/A.jpg", "a_2.jpg", "line\nbreak.jpg", f"{'n' * 240}.jpg"]
    pictures = list(picture_names([Path(name) for name in names]).values())
    stems = ["a", "a_2", "A_3", "a_2_4", "line_break", for_file_name("n" * 240)]
    assert pictures == [f"pictures/{stem}.jpg" for stem in stems]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_run_of_a_gpu_on_the_cpu(run, cfg, images, tmp_path):
    cfg.MODEL.DEVICE = "cuda"
    assert predict_images(cfg, run, [images / "a.png"], tmp_path / "out")["images"] == 1


def test_half_a_line_in_the_list_of_written_files_does_not_swallow_the_next(tmp_path):
    """As a full disk leaves it."""
    WrittenFiles(tmp_path).write("a.txt", "a")
    with open(tmp_path / ".written", "a") as file:
        file.write("0123")
    WrittenFiles(tmp_path).write("b.txt", "b")
    WrittenFiles(tmp_path).refuse_others(["a.txt", "b.txt"], [])
