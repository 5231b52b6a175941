"""The version of a data set changes with its annotations and with nothing else."""

import hashlib
import json
import os
import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from voc_example import write_voc

from loco_det.data import versions
from loco_det.data.low_shot import register_low_shot
from loco_det.data.versions import version_of


@pytest.fixture
def register():
    """Register a data set by its metadata; it is gone after the test."""
    names = []

    def add(name, **metadata):
        names.append(name)
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_of_coco_it_is_the_files_hash(tmp_path, register, monkeypatch):
    path = tmp_path / "truth.json"
    path.write_text("{}")
    reads = []
    monkeypatch.setattr(versions, "sha256_of", lambda p, real=versions.sha256_of: reads.append(p) or real(p))
    name = register("version_coco", json_file=str(path), evaluator_type="coco")
    assert version_of(name) == version_of(name) == hashlib.sha256(b"{}").hexdigest() and len(reads) == 1
    path.write_text(json.dumps({"images": []}))
    assert version_of(name) == hashlib.sha256(path.read_bytes()).hexdigest() and len(reads) == 2
    path.unlink()
    with pytest.raises(FileNotFoundError):
        version_of(name)


def test_low_shot_sets_have_their_size_and_no_seed(tmp_path, register):
    (tmp_path / "truth.json").write_text("{}")
    base = register("version_base", json_file=str(tmp_path / "truth.json"))
    before = set(DatasetCatalog.list())
    register_low_shot(base)
    try:
        assert version_of(f"{base}_1k_seed0") == version_of(f"{base}_1k_seed3") == f"{version_of(base)}:1k"
        assert version_of(f"{base}_10pct_seed0") == f"{version_of(base)}:10pct"
    finally:
        for name in set(DatasetCatalog.list()) - before:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_of_voc_it_is_names_and_sizes(tmp_path, register):
    images = {"b": [("car", 0, (1, 1, 9, 9))], "a": [("car", 0, (1, 1, 9, 9))]}
    write_voc(tmp_path / "VOC2007", images, pictures=False)
    about = {"split": "trainval", "evaluator_type": "pascal_voc"}
    name = register("version_voc", dirname=str(tmp_path / "VOC2007"), **about)
    first = version_of(name)
    shutil.copytree(tmp_path / "VOC2007", tmp_path / "moved")
    assert len(first) == 64 and version_of(register("version_moved", dirname=str(tmp_path / "moved"), **about)) == first
    write_voc(tmp_path / "VOC2007", dict(reversed(images.items())), pictures=False)
    assert version_of(name) == first
    write_voc(tmp_path / "VOC2007", {**images, "a": []}, pictures=False)
    assert version_of(name) != first
    write_voc(tmp_path / "VOC2007", {"b": images["b"]}, pictures=False)
    assert version_of(name) != first


def test_of_cityscapes_it_is_names_and_sizes(tmp_path, register):
    for city, frame in (("a", 0), ("b", 1)):
        labels = ("gtFine_instanceIds.png", "gtFine_labelIds.png", "gtFine_polygons.json")
        for part, endings in (("leftImg8bit", ("leftImg8bit.png",)), ("gtFine", labels)):
            (tmp_path / part / city).mkdir(parents=True)
            for ending in endings:
                (tmp_path / part / city / f"{city}_000000_00000{frame}_{ending}").write_bytes(b"1")
    folders = {"image_dir": str(tmp_path / "leftImg8bit"), "gt_dir": str(tmp_path / "gtFine")}
    name = register("version_city", evaluator_type="cityscapes_instance", **folders)
    first = version_of(name)
    assert len(first) == 64 and version_of(name) == first
    (tmp_path / "gtFine" / "a" / "a_000000_000000_gtFine_polygons.json").write_bytes(b"12")
    assert version_of(name) != first
    os.remove(tmp_path / "leftImg8bit" / "b" / "b_000000_000001_leftImg8bit.png")
    assert version_of(name) not in (first, None)


def test_others_have_none(register):
    assert version_of(register("version_other", evaluator_type="sem_seg")) is None
    assert version_of("version_unknown") is None and "version_unknown" not in MetadataCatalog.list()
