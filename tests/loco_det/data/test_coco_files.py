"""Reading COCO files: the same for all, one line for what is no such file, and what the evaluation gets of it."""

import codecs
import copy
import json

import pytest
from coco_example import GOOD

from loco_det.data.coco_files import evaluated, read_coco, read_ground_truth


def test_byte_order_mark(write_coco):
    assert read_coco(write_coco(codecs.BOM_UTF8 + json.dumps(GOOD, ensure_ascii=False).encode())) == GOOD


TEXT = json.dumps(GOOD)
OTHER = {  # what a message says: a file
    "but a zip archive: unpack it": b"PK\x03\x04and so on",
    "but compressed with gzip: unpack it": b"\x1f\x8b\x08and so on",
    "but a Git LFS pointer: fetch the file": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "but XML or a web page": "\ufeff\n<annotation>",
    "but UTF-16 text: save it as UTF-8": TEXT.encode("utf-16"),
    "but UTF-16 text: save it as UTF-8 ": TEXT.encode("utf-16-be"),
    "is not JSON in UTF-8: byte 0xe9 in line 2; save it as UTF-8": '{"images":\n["é"]}'.encode("latin-1"),
    "is not JSON \\(YAML\\?\\): .*begins with {": "images:\n- id: 3\n",
    "is not JSON: Extra data: .*turn JSON lines into one object": '{"id": 1}\n{"id": 2}\n',
    "is not JSON: it is empty": " \n",
    "is not JSON: Expecting": '{"images": [',
    "is not JSON": "[" * 100_000,
    "a list with scores holds detections": '[{"image_id": 1, "score": 0.5}]',
    "it is a list; it needs the lists images, categories, annotations": "[]",
    "needs the lists images, categories, annotations$": "7",
    "its annotations are panoptic segments; take the instances_": json.dumps(
        GOOD | {"annotations": [{"image_id": 1, "segments_info": [], "file_name": "a.png"}]}
    ),
    "its annotations are captions": '{"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}]}',
    "it has no annotations, like the files of test sets": '{"images": [], "categories": []}',
    "images, categories, annotations; not a list: images": json.dumps(GOOD | {"images": {"1": "a.png"}}),
    r"duplicate key 'bbox' in one JSON object \(id 5, bbox \[1\]": '{"images": [{"id": 5, "bbox": [1], "bbox": [2]}]}',
    "duplicate key 'images' in one JSON object": '{"images": [], "images": []}',
}


@pytest.mark.parametrize(("message", "content"), OTHER.items(), ids=list(OTHER))
def test_other_files(write_coco, message, content):
    path = write_coco(content)
    with pytest.raises(ValueError, match=message.strip()) as caught:
        read_coco(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(path) and len(str(caught.value)) < 400


def test_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such annotation file"):
        read_coco(tmp_path / "nothing.json")
    with pytest.raises(IsADirectoryError, match="is a folder, expected a JSON file"):
        read_coco(tmp_path)


def test_the_evaluation_gets_what_it_reads_and_nothing_else(write_coco):
    content = copy.deepcopy(GOOD) | {"info": "text", "licenses": {}}
    for image in content["images"]:
        image |= {"date_captured": 0, "license": "", "coco_url": 5}
    content["annotations"][0] |= {"attributes": {}, "keypoints": "", "ignore": None}
    content["annotations"][1]["segmentation"]["color"] = "red"
    content["annotations"][4]["segmentation"] = []
    before = copy.deepcopy(content)
    reduced = evaluated(content)
    assert content == before
    wanted = {part: GOOD[part] for part in ("categories", "annotations")}
    assert {part: reduced[part] for part in wanted} == wanted and reduced.keys() == GOOD.keys()
    assert reduced["images"] == [{"id": 7, "width": 30, "height": 20}, {"id": 2, "width": 30, "height": 20}]
    assert type(reduced["annotations"][2]["iscrowd"]) is int
    coco = read_ground_truth(write_coco(content))
    assert coco.dataset == reduced and sorted(coco.imgs) == [2, 7] and len(coco.imgToAnns[7]) == 3


def test_ground_truth_without_ids(write_coco):
    with pytest.raises(ValueError, match="an entry lacks 'image_id'; tools/check_dataset.py says which"):
        read_ground_truth(write_coco(GOOD | {"annotations": [{"id": 1}]}))
    for entries in ([7], ["id"], [None], [{"id": []}]):
        with pytest.raises(ValueError, match="an entry (is wrong|lacks)"):
            read_ground_truth(write_coco(GOOD | {"images": entries}))


def test_annotations_of_unknown_images_are_left_out():
    reduced = evaluated(GOOD | {"images": GOOD["images"][1:]})
    assert [a["id"] for a in reduced["annotations"]] == [3, 8]
