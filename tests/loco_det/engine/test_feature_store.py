"""Features on the disk: equal to computed ones, shared, rebuilt where damaged, safe with two processes."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch
from child_processes import child_environment
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from loco_det.config import add_loco_config
from loco_det.data.mapper import ImageMapper
from loco_det.engine.feature_store import FeatureMapper, FeatureStore, key_of, mirrors, resized
from loco_det.engine.trainer import Trainer
from loco_det.modeling.packed import pack
from pretrain.files.lock import lock_folder, unlock_folder


def config(folder, *options):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file("configs/evaluate/light_small.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.LIGHT_HEAD.WIDTH", 32, "INPUT.MIN_SIZE_TEST", 64])
    cfg.merge_from_list(["MODEL.LIGHT_HEAD.FEATURES", str(folder), *options])
    return cfg


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    return Trainer.build_model(config(tmp_path_factory.mktemp("none")))


@pytest.fixture
def records(tmp_path):
    found = []
    for k, (height, width) in enumerate([(48, 64), (64, 64), (50, 75)]):
        path = tmp_path / f"{k}.png"
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        objects = [{"bbox": [4, 6, 20, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": k, "iscrowd": 0},
                   {"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 1}]  # fmt: skip
        found.append({"file_name": str(path), "height": height, "width": width, "image_id": k, "annotations": objects})
    return found


def filled(cfg, model, records, mirrored=True):
    store = FeatureStore()
    store.fill(cfg, model, records, mirrored)
    return store


def files(store):
    return {path.name: path.stat().st_mtime_ns for path in store.folder.glob("*.pth")}


def same(one, other):
    return one[1] == other[1] and all(
        torch.equal(a, b) for name in one[0] for a, b in zip(one[0][name], other[0][name], strict=True)
    )


def test_stored_features_are_computed_ones(model, records, tmp_path):
    """Of the image as Detectron2's mapper gives it to a detector in evaluation, to the bit of what is stored."""
    cfg = config(tmp_path / "features")
    store = filled(cfg, model, records)
    mapper = ImageMapper(cfg, is_train=False)
    for record in records:
        pixels = mapper(record)["image"]
        for mirrored in (False, True):
            features, size = store[record, mirrored]
            pair = torch.stack([pixels, pixels.flip(2)])
            wanted = {name: pack(maps[int(mirrored)]) for name, maps in model.extract(pair).items()}
            assert same((features, size), (wanted, tuple(pixels.shape[1:])))
    assert not list(store.folder.glob(".*"))  # neither lock nor temporary file


def test_they_are_computed_once(model, records, tmp_path, monkeypatch):
    cfg = config(tmp_path / "features")
    first = filled(cfg, model, records)
    monkeypatch.setattr(type(model), "extract", None)
    again = filled(cfg, model, records[:2])  # a part of the data, as where some are held out
    assert same(again[records[0], True], first[records[0], True]) and len(files(first)) == 6


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_a_damaged_file_is_computed_anew(model, records, tmp_path, caplog, damage):
    cfg = config(tmp_path / "features")
    first = filled(cfg, model, records)
    whole = {key: first[records[1], key] for key in (False, True)}
    path = first._path(records[1], True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # the first store has it mapped, and would see a file in its place change
    if damage == "other":
        torch.save({"format": "another"}, path)
    else:
        path.write_bytes({"cut": content[:-99], "bit": content, "empty": b""}[damage])
    before = files(first)
    again = filled(cfg, model, records)
    assert same(again[records[1], True], whole[True]) and "is computed anew" in caplog.text
    changed = {name for name, time in files(again).items() if before[name] != time}
    assert changed == {path.name, first._path(records[1], False).name}


def test_an_image_that_changed_has_other_features(model, records, tmp_path):
    cfg = config(tmp_path / "features")
    first = filled(cfg, model, records, mirrored=False)
    before = first._path(records[0], False)
    shutil.copy(records[1]["file_name"], records[0]["file_name"])
    assert first._path(records[0], False) != before


@pytest.mark.parametrize("option", [("INPUT.MIN_SIZE_TEST", 96), ("INPUT.MAX_SIZE_TEST", 70),
                                    ("INPUT.EXACT_RESIZE", True), ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0])])  # fmt: skip
def test_the_key_has_all_that_makes_the_features(model, tmp_path, option):
    assert key_of(config(tmp_path), model) == key_of(config(tmp_path, "SEED", 3, "SOLVER.BASE_LR", 1.0), model)
    assert key_of(config(tmp_path), model) != key_of(config(tmp_path, *option), model)


@pytest.mark.parametrize(("key", "values", "more"), [
    ("MODEL.LIGHT_HEAD.FINEST_STRIDE", (4, 8), ()),
    ("MODEL.RESNETS.STRIDE_IN_1X1", (True, False), ("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256)),
])  # fmt: skip
def test_the_key_has_strides_and_stages(tmp_path, key, values, more):
    """Which no weight tells."""
    keys = set()
    for value in values:
        torch.manual_seed(0)
        cfg = config(tmp_path, key, value, *more)
        keys.add(key_of(cfg, Trainer.build_model(cfg)))
    assert len(keys) == 2


def test_the_key_has_the_weights(model, tmp_path):
    cfg, before = config(tmp_path), key_of(config(tmp_path), model)
    weight = next(model.backbone.parameters())
    with torch.no_grad():
        weight[0, 0, 0, 0] += 1
        changed = key_of(cfg, model)
        weight[0, 0, 0, 0] -= 1
    assert changed != before


def test_the_size_is_said_before(model, records, tmp_path, caplog):
    with caplog.at_level("INFO"):
        store = filled(config(tmp_path / "features"), model, records * 40)
    said = int(caplog.text.partition("features of 120 images (res3, res4, res5): ")[2].split()[0])
    written = sum(path.stat().st_size for path in store.folder.glob("*.pth")) * 40 / 1e6
    assert written == pytest.approx(said, rel=0.1)


def test_a_small_disk_is_one_line(model, records, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    with pytest.raises(OSError, match=r"which has 0 MB left: name another folder with MODEL.LIGHT_HEAD.FEATURES"):
        filled(config(tmp_path / "features"), model, records)
    assert not list((tmp_path / "features").rglob("*.pth"))


def test_a_full_disk_names_the_file(model, records, tmp_path, monkeypatch):
    def full(content, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: .*features.*\.pth"):
        filled(config(tmp_path / "features"), model, records)


WRITER = """
import sys
import torch
sys.path.insert(0, "tests/loco_det/engine")
from test_feature_store import FeatureStore, Trainer, config
torch.manual_seed(0)
cfg = config(sys.argv[1])
records = [{"file_name": path, "height": 64, "width": 64} for path in sys.argv[2:]]
model = Trainer.build_model(cfg)
extract, calls = model.extract, []
model.extract = lambda images: calls.append(1) or extract(images)
FeatureStore().fill(cfg, model, records, True)
print(len(calls))
"""


def test_of_two_processes_one_computes(tmp_path, request):
    paths = []
    for k in range(4):
        paths.append(str(tmp_path / f"{k}.png"))
        Image.new("RGB", (64, 64), (k, 50 * k, 0)).save(paths[-1])
    environment = child_environment(
        PYTHONPATH=f"tests/helpers{os.pathsep}{request.config.rootpath}", OMP_NUM_THREADS="1"
    )
    command = [sys.executable, "-W", "ignore", "-c", WRITER, str(tmp_path / "features"), *paths]
    options = {"env": environment, "cwd": request.config.rootpath, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **options) for _ in range(2)]
    computed = [int(process.communicate(timeout=200)[0]) for process in running]
    assert sorted(computed) == [0, 4] and [process.returncode for process in running] == [0, 0]
    assert len(list((tmp_path / "features").rglob("*.pth"))) == 8


def test_leftovers_of_a_killed_process_are_removed(model, records, tmp_path):
    cfg = config(tmp_path / "features")
    store = filled(cfg, model, records[:1])
    left = store.folder / ".abc.01234567-99999.89abcdef.tmp.pth"
    left.write_bytes(b"PK")
    filled(cfg, model, records)
    assert not left.exists() and len(files(store)) == 6


def test_the_lock_is_released_after_an_error(model, tmp_path):
    cfg = config(tmp_path / "features")
    with pytest.raises(FileNotFoundError):
        filled(cfg, model, [{"file_name": str(tmp_path / "gone.png"), "height": 64, "width": 64}])
    (folder,) = (tmp_path / "features").iterdir()
    lock_folder(folder)
    unlock_folder(folder)


@pytest.mark.parametrize("mirrored", [False, True])
def test_objects_move_with_the_features(model, records, tmp_path, monkeypatch, mirrored):
    """As Detectron2 moves them; crowds are left out."""
    cfg = config(tmp_path / "features")
    monkeypatch.setattr("random.random", lambda: 0.0 if mirrored else 0.9)
    mapper = FeatureMapper(cfg, filled(cfg, model, records), is_train=True)
    for record in records:
        mapped = mapper(record)
        height, width = mapped["image_size"]
        assert (height, width) == resized(record["height"], record["width"], cfg)
        steps = [T.ResizeTransform(record["height"], record["width"], height, width)]
        steps += [T.HFlipTransform(width)] * mirrored
        wanted = T.TransformList(steps).apply_box(np.array([[4, 6, 24, 16]]))
        assert np.allclose(mapped["instances"].gt_boxes.tensor.numpy(), wanted, atol=1e-4)
        assert mapped["instances"].gt_classes.tolist() == [record["image_id"]]
        assert same((mapped["features"], (height, width)), mapper.store[record, mirrored])
    assert "annotations" in records[0]


def test_test_images_are_not_mirrored(model, records, tmp_path, monkeypatch):
    cfg = config(tmp_path / "features")
    monkeypatch.setattr("random.random", lambda: 0.0)
    mapped = FeatureMapper(cfg, filled(cfg, model, records, mirrored=False), is_train=False)(records[0])
    assert "instances" not in mapped and mapped["height"] == 48


def test_only_horizontal_mirrors(tmp_path):
    assert mirrors(config(tmp_path)) and not mirrors(config(tmp_path, "INPUT.RANDOM_FLIP", "none"))
    with pytest.raises(ValueError, match="horizontal or none"):
        mirrors(config(tmp_path, "INPUT.RANDOM_FLIP", "vertical"))
