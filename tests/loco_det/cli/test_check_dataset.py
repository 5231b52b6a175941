"""tools/check_dataset.py as a user runs it: exit codes, all findings at once, the report, the page of samples."""

import json

import pytest
from PIL import Image

from loco_det.demo_scenes.writing import make_demo_data


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("check") / "demo"
    make_demo_data(root, num_train=5, num_val=3, size=(64, 96), workers=1, layouts=("coco", "cityscapes", "voc"))
    # Detectron2's names for it
    coco = root / "coco"
    for split in ("train", "val"):
        (coco / f"{split}2017").symlink_to(coco / split)
        (coco / f"annotations/instances_{split}2017.json").symlink_to(coco / f"annotations/instances_{split}.json")
    return root


@pytest.fixture
def run(call_tool, capsys):
    """Run the tool in this process; (exit code, output, errors)."""
    return lambda *arguments: (call_tool("check_dataset", *arguments), *capsys.readouterr())


def own(demo):
    return "--json", demo / "coco/annotations/instances_val.json", "--images", demo / "coco/val"


def test_registered_names_from_the_command_line(run_tool, demo, tmp_path):
    names = ("coco_2017_val", "cityscapes_fine_instance_seg_val")
    done = run_tool(
        "check_dataset.py", *names, "--pictures", tmp_path / "p.png", "--decode", DETECTRON2_DATASETS=str(demo)
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "coco_2017_val: 3 images" in done.stdout and "cityscapes_fine_instance_seg_val: 3 images" in done.stdout
    picture = Image.open(tmp_path / "p.png")
    assert picture.width == 4 * 480 and len(picture.getcolors(1 << 24)) > 1000


def test_a_data_set_that_holds_some_of_the_images(run, demo, monkeypatch):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import load_coco_json

    (_, path, _, images), name = map(str, own(demo)), "check_some"
    DatasetCatalog.register(name, lambda: load_coco_json(path, images, "check_some_whole")[:2])
    MetadataCatalog.get(name).set(json_file=path, image_root=images)
    code, out, _ = run(name)
    assert code == 0 and "check_some: 2 images" in out


def test_own_data_with_faults(run, demo, tmp_path):
    content = json.loads((demo / "coco/annotations/instances_val.json").read_text())
    content["annotations"][0]["bbox"][2] = -4
    content["annotations"][1]["category_id"] = 99
    content["annotations"][2]["bbox"] = None
    content["annotations"][3]["bbox"][2] = 0
    content["images"][2]["file_name"] = "nowhere.jpg"
    (tmp_path / "some.json").write_text(json.dumps(content))
    arguments = ("--json", tmp_path / "some.json", "--images", demo / "coco/val")
    code, out, _ = run(*arguments, "--json-report", tmp_path / "r.json", "--pictures", tmp_path / "p.png")
    assert code == 1 and "error: boxes of negative width or height: 1. training takes the box mirrored" in out
    (report,) = json.loads((tmp_path / "r.json").read_text())
    found = {f["kind"]: f["severity"] for f in report["findings"] if f["severity"] != "info"}
    assert found == {
        "box_negative": "error", "category_unknown": "error", "wrong_type": "error", "image_missing": "error",
        "box_flat": "warning",
    }  # fmt: skip
    assert report["images"] == 3 and len(report["classes"]) == 8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.png", "r.json", "some.json"]


def test_warnings_alone_are_fine_and_broken_json_is_not(run, demo, tmp_path):
    content = json.loads((demo / "coco/annotations/instances_val.json").read_text())
    content["annotations"][3]["bbox"][2] = 0
    path = tmp_path / "some.json"
    path.write_text(json.dumps(content))
    code, out, _ = run("--json", path, "--images", demo / "coco/val")
    assert code == 0 and "warning: boxes without width or height: 1." in out
    path.write_text("{")
    code, out, _ = run("--json", path, "--images", demo / "coco/val")
    assert code == 1 and "error: not a COCO instance file: 1" in out


def change(demo, tmp_path, edit):
    content = json.loads((demo / "coco/annotations/instances_val.json").read_text())
    edit(content)
    path = tmp_path / "some.json"
    path.write_text(json.dumps(content))
    return "--json", path, "--images", demo / "coco/val"


def test_boxes_only(run, demo, tmp_path):
    arguments = change(demo, tmp_path, lambda c: [a.update(segmentation=[]) for a in c["annotations"]])
    code, out, _ = run(*arguments)
    assert code == 1 and "set MODEL.MASK_ON False (check_dataset.py --boxes-only)" in out
    code, out, _ = run(*arguments, "--boxes-only", "--pictures", tmp_path / "p.png")
    assert code == 0 and "0 kinds of errors, 0 of warnings" in out and (tmp_path / "p.png").exists()


def test_files_outside_of_the_folder(run, demo, tmp_path):
    """Reported, and not drawn, unless they are allowed."""
    Image.new("RGB", (96, 64), "red").save(tmp_path / "private.png")

    def edit(content):
        for image in content["images"]:
            image["file_name"] = str(tmp_path / "private.png")

    arguments = change(demo, tmp_path, edit)
    code, out, _ = run(*arguments)
    assert code == 1 and "error: file names lead out of the folder of images: 1." in out
    code, _, error = run(*arguments, "--pictures", tmp_path / "p.png")
    assert code == 2 and "there is no image to draw" in error and not (tmp_path / "p.png").exists()
    code, out, _ = run(*arguments, "--pictures", tmp_path / "p.png", "--allow-outside")
    assert code == 0 and "info: image files lie outside the folder of images: 1." in out
    assert (tmp_path / "p.png").exists()


def test_odd_entries_are_not_drawn(run, demo, tmp_path):
    def edit(content):
        content["annotations"][0]["image_id"] = [1]
        content["annotations"][1]["bbox"][0] = 10**400
        content["images"][0]["file_name"] = "a\0b.png"

    code, out, error = run(*change(demo, tmp_path, edit), "--pictures", tmp_path / "p.png")
    assert code == 1 and error == "" and "must be four numbers [x, y, width, height]" in out


def test_cityscapes_tree(run, demo):
    code, out, _ = run("--cityscapes", demo / "cityscapes")
    assert code == 0 and "cityscapes train: 5 images" in out and "cityscapes val: 3 images" in out


def test_voc(run_tool, demo, tmp_path):
    pictures = ("--pictures", tmp_path / "p.png", "--decode")
    done = run_tool(
        "check_dataset.py", "voc_2007_trainval", "voc_2007_test", *pictures, DETECTRON2_DATASETS=str(demo / "voc")
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "voc_2007_trainval: 5 images" in done.stdout and "voc_2007_test: 3 images" in done.stdout
    assert "info: objects marked as difficult" in done.stdout
    assert len(Image.open(tmp_path / "p.png").getcolors(1 << 24)) > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a data set"),
        (("--json", "x.json"), "--json and --images go together"),
        (("--json", "/nowhere.json", "--images", "."), "/nowhere.json: no such annotation file"),
        (("--json", "README.md", "--images", "/nowhere"), "/nowhere: no such folder"),
        (("--cityscapes", "/nowhere"), "/nowhere: neither leftImg8bit/train nor"),
        (("coco_2018_val",), "'coco_2018_val' is not a registered data set"),
        (("coco_2017_val",), "no such folder of images"),
        (("cityscapes_fine_sem_seg_val",), "is neither of COCO instance annotations nor Cityscapes"),
    ],
)
def test_bad_usage(run, arguments, message):
    code, _, error = run(*arguments)
    assert code == 2 and message in error and error.strip().splitlines()[-1].count("error: ") == 1
