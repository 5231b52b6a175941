"""Pictures of ground truth beside predictions, on small made-up datasets."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from loco_det import visualize
from loco_det.visualize import CAPTION_HEIGHT, GAP, class_color, draw_comparison, save_comparisons

SIDE = 160  # scaled by 3 to 480


def rle_of(x0, y0, x1, y1, size=(SIDE, SIDE)):
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    rle = mask_util.encode(mask)
    return {"size": list(size), "counts": rle["counts"].decode()}


def annotation(x0, y0, x1, y1, category, polygon=True):
    return {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]] if polygon else rle_of(x0, y0, x1, y1),
    }


def result(x0, y0, x1, y1, category, score, image_id=1):
    box = [x0, y0, x1 - x0, y1 - y0]
    mask = rle_of(x0, y0, x1, y1)
    return {"image_id": image_id, "category_id": category, "bbox": box, "score": score, "segmentation": mask}


@pytest.fixture
def metadata():
    """Two classes whose ids in the file are 7 and 3."""
    name = "visualize_test_metadata"
    MetadataCatalog.get(name).set(thing_classes=["a", "b"], thing_dataset_id_to_contiguous_id={7: 0, 3: 1})
    yield MetadataCatalog.get(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "street.png"
    Image.new("RGB", (SIDE, SIDE), (90, 90, 90)).save(path)
    found = [annotation(20, 20, 80, 90, 0), annotation(90, 80, 150, 150, 1, polygon=False)]
    return {"file_name": str(path), "image_id": 1, "height": SIDE, "width": SIDE, "annotations": found}


def halves(picture):
    """The two images without captions."""
    width = (picture.shape[1] - GAP) // 2
    return picture[CAPTION_HEIGHT:, :width], picture[CAPTION_HEIGHT:, width + GAP :]


def at(half, x, y):
    """Colour at a pixel of the image before scaling."""
    scale = half.shape[1] / SIDE
    return half[int((y + 0.5) * scale), int((x + 0.5) * scale)].astype(int)


def tinted(pixel, index, metadata):
    """Whether a grey pixel was mixed with the colour of a class at 0.4."""
    expected = 0.6 * 90 + 0.4 * 255 * np.array(class_color(index, metadata))
    return np.abs(pixel - expected).max() < 4


def test_small_image_is_scaled_and_classes_keep_their_colour(record, metadata):
    predictions = [result(20, 20, 80, 90, 7, 0.9), result(90, 80, 150, 150, 3, 0.8)]
    picture = draw_comparison(record, predictions, metadata)
    assert picture.dtype == np.uint8 and picture.shape == (480 + CAPTION_HEIGHT, 960 + GAP, 3)
    for half in halves(picture):
        assert tinted(at(half, 60, 70), 0, metadata)
        assert tinted(at(half, 130, 130), 1, metadata)
        assert (at(half, 5, 150) == 90).all()
    assert (picture[:CAPTION_HEIGHT] < 100).any()  # the captions' letters


def test_low_scores_are_not_drawn(record, metadata):
    predictions = [result(20, 20, 80, 90, 7, 0.49), result(90, 80, 150, 150, 3, 0.5)]
    _, right = halves(draw_comparison(record, predictions, metadata, score_threshold=0.5))
    assert (at(right, 60, 70) == 90).all()
    assert tinted(at(right, 130, 130), 1, metadata)


def test_instances_look_like_results(record, metadata):
    predicted = Instances((SIDE, SIDE))
    boxes = [[20, 20, 80, 90], [90, 80, 150, 150]]
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    predicted.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    predicted.pred_masks, predicted.pred_classes = masks, torch.tensor([0, 1])
    predicted.scores = torch.tensor([0.9, 0.3])
    results = [result(*boxes[0], 7, 0.9), result(*boxes[1], 3, 0.3)]
    picture = draw_comparison(record, predicted, metadata)
    np.testing.assert_array_equal(picture, draw_comparison(record, results, metadata))
    predicted.remove("pred_masks")  # a detector without masks
    assert not np.array_equal(picture, draw_comparison(record, predicted, metadata))


def test_hole_of_a_mask_stays_empty(record, metadata):
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
    mask[20:90, 20:90] = 1
    mask[40:70, 40:70] = 0
    rle = mask_util.encode(mask)
    ring = result(20, 20, 90, 90, 7, 0.9) | {"segmentation": {"size": [SIDE, SIDE], "counts": rle["counts"].decode()}}
    _, right = halves(draw_comparison(record, [ring], metadata))
    assert tinted(at(right, 80, 60), 0, metadata)
    assert (at(right, 55, 60) == 90).all()


def test_nothing_predicted_nothing_annotated(record, metadata):
    record["annotations"] = []
    left, right = halves(draw_comparison(record, [], metadata))
    assert (left == 90).all() and (right == 90).all()


def test_large_image_is_reduced(tmp_path, metadata):
    Image.new("RGB", (2048, 1024)).save(tmp_path / "wide.png")
    picture = draw_comparison({"file_name": str(tmp_path / "wide.png")}, [], metadata)
    assert picture.shape == (512 + CAPTION_HEIGHT, 2048 + GAP, 3)


def test_crowded_image_labels_only_the_largest(record, metadata, monkeypatch):
    written = []
    monkeypatch.setattr(visualize.Visualizer, "draw_text", lambda self, text, *args, **kwargs: written.append(text))
    predictions = [result(i, 20, 2 * i + 2, 40, 7, 0.9) for i in range(40)]
    draw_comparison(record, predictions, metadata)
    assert sum(text == "a 90%" for text in written) == visualize.CROWDED
    assert {"a", "b"} < set(written)  # the two of the ground truth


@pytest.mark.parametrize(
    ("change", "message"),
    [({"category_id": 5}, "category id 5"), ({"segmentation": rle_of(0, 0, 5, 5, (80, 90))}, r"\[80, 90\]")],
)
def test_results_of_another_dataset(record, metadata, change, message):
    with pytest.raises(ValueError, match=message):
        draw_comparison(record, [result(20, 20, 80, 90, 7, 0.9) | change], metadata)


def test_instances_of_another_size(record, metadata):
    with pytest.raises(ValueError, match="street.png"):
        draw_comparison(record, Instances((10, 10)), metadata)


def test_colours_of_80_classes_and_of_the_dataset(metadata):
    assert len({class_color(i, metadata) for i in range(80)}) == 80
    metadata.thing_colors = [[255, 0, 0]]
    assert class_color(0, metadata) == (1, 0, 0)
    assert len(class_color(1, metadata)) == 3  # beyond what the dataset has


@pytest.fixture
def dataset(tmp_path):
    """A registered one-class dataset of 10 images, of which the first has no annotation."""
    name = "visualize_test_nuclei"
    records = []
    for i in range(10):
        path = tmp_path / f"image{i}.png"
        Image.new("RGB", (SIDE, SIDE), (90, 90, 90)).save(path)
        found = [annotation(20, 20, 80, 90, 0)] if i else []
        records.append({"file_name": str(path), "image_id": i, "height": SIDE, "width": SIDE, "annotations": found})
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=["nucleus"], thing_dataset_id_to_contiguous_id={1: 0})
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_dataset_and_results_file(dataset, tmp_path):
    results = tmp_path / "coco_instances_results.json"
    results.write_text(json.dumps([result(20, 20, 80, 90, 1, 0.9, image_id=4)]))  # the other images have no entry
    out = tmp_path / "run" / "pictures"
    paths = visualize.save_dataset_comparisons(dataset, results, out, num_images=3)
    assert [p.name for p in paths] == ["000_image1.png", "001_image4.png", "002_image7.png"]
    assert sorted(out.iterdir()) == paths
    drawn = [tinted(at(halves(np.asarray(Image.open(p)))[1], 60, 70), 0, MetadataCatalog.get(dataset)) for p in paths]
    assert drawn == [False, True, False]
    assert len(visualize.save_dataset_comparisons(dataset, results, tmp_path / "all", num_images=99)) == 9


NO_SCORE = '[{"image_id": 1, "category_id": 1, "bbox": [], "score": []}]'


@pytest.mark.parametrize("text", ['[{"image_id": 1}]', "{", "3", NO_SCORE])
def test_not_a_results_file(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match="not a COCO results file"):
        visualize.read_results(tmp_path / "results.json")


def test_failure_leaves_no_half_written_file(record, metadata, tmp_path, monkeypatch):
    out = tmp_path / "pictures"
    (before,) = save_comparisons([(record, [])], metadata, out)
    content = before.read_bytes()

    def torn(self, path, *args):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", torn)
    with pytest.raises(OSError, match="No space left"):
        save_comparisons([(record, [])], metadata, out)
    assert list(out.iterdir()) == [before] and before.read_bytes() == content
