"""Pictures of ground truth beside predictions, on small made-up images."""

import warnings
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from loco_det.report import drawing
from loco_det.report.drawing import CAPTION_HEIGHT, class_color
from loco_det.report.visualize import GAP, draw_comparison, draw_predictions, pick_records, save_comparisons

SIDE = 160  # scaled by 3 to 480
BOXES = [[20, 20, 80, 90], [90, 80, 150, 150]]  # of the two objects of the fixture record, classes 0 and 1


def mask_of(x0, y0, x1, y1):
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def annotation(x0, y0, x1, y1, category, polygon=True):
    rle = mask_util.encode(np.asfortranarray(mask_of(x0, y0, x1, y1), dtype=np.uint8))
    return {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]] if polygon else rle,
    }


def predicted(boxes, classes, scores, size=(SIDE, SIDE)):
    """What a detector gives: boxes XYXY in pixels, with masks that fill them."""
    masks = [torch.from_numpy(mask_of(*box)) for box in boxes]
    return Instances(
        size,
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        pred_masks=torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
    )


def nothing(size=(SIDE, SIDE)):
    return predicted([], [], [], size)


@pytest.fixture
def metadata():
    return Metadata(name="visualize_test", thing_classes=["a", "b"])


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "street.png"
    Image.new("RGB", (SIDE, SIDE), (90, 90, 90)).save(path)
    found = [annotation(*BOXES[0], 0), annotation(*BOXES[1], 1, polygon=False)]
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
    picture = draw_comparison(record, predicted(BOXES, [0, 1], [0.9, 0.8]), metadata)
    assert picture.dtype == np.uint8 and picture.shape == (480 + CAPTION_HEIGHT, 960 + GAP, 3)
    for half in halves(picture):
        assert tinted(at(half, 60, 70), 0, metadata)
        assert tinted(at(half, 130, 130), 1, metadata)
        assert (at(half, 5, 150) == 90).all()
    assert (picture[:CAPTION_HEIGHT] < 100).any()  # the captions' letters


def test_low_scores_are_not_drawn(record, metadata):
    predictions = predicted(BOXES, [0, 1], [0.49, 0.5])
    _, right = halves(draw_comparison(record, predictions, metadata, score_threshold=0.5))
    assert (at(right, 60, 70) == 90).all()
    assert tinted(at(right, 130, 130), 1, metadata)


def test_detector_without_masks(record, metadata):
    predictions = predicted(BOXES, [0, 1], [0.9, 0.8])
    predictions.remove("pred_masks")
    _, right = halves(draw_comparison(record, predictions, metadata))
    assert (at(right, 60, 70) == 90).all()  # inside the first box
    assert any((at(right, x, 70) != 90).any() for x in (79, 80))  # its right edge


def test_hole_of_a_mask_stays_empty(record, metadata):
    ring = predicted([[20, 20, 90, 90]], [0], [0.9])
    ring.pred_masks[0, 40:70, 40:70] = False
    _, right = halves(draw_comparison(record, ring, metadata))
    assert tinted(at(right, 80, 60), 0, metadata)
    assert (at(right, 55, 60) == 90).all()


def test_nothing_predicted_nothing_annotated(record, metadata):
    record["annotations"] = []
    left, right = halves(draw_comparison(record, nothing(), metadata))
    assert (left == 90).all() and (right == 90).all()


def test_large_image_is_reduced(tmp_path, metadata):
    Image.new("RGB", (2048, 1024)).save(tmp_path / "wide.png")
    picture = draw_comparison({"file_name": str(tmp_path / "wide.png")}, nothing((1024, 2048)), metadata)
    assert picture.shape == (512 + CAPTION_HEIGHT, 2048 + GAP, 3)


@pytest.fixture
def written(monkeypatch):
    """The labels that are written on the pictures of a test."""
    texts = []
    monkeypatch.setattr(drawing.Visualizer, "draw_text", lambda self, text, *args, **kwargs: texts.append(text))
    return texts


def test_crowded_image_labels_only_the_largest(record, metadata, written):
    draw_comparison(record, predicted([[i, 20, 2 * i + 2, 40] for i in range(40)], [0] * 40, [0.9] * 40), metadata)
    assert sum(text == "a 90%" for text in written) == drawing.CROWDED
    assert {"a", "b"} < set(written)  # the two of the ground truth


def test_single_class_is_named_in_the_caption_only(record, written):
    record["annotations"] = record["annotations"][:1]
    metadata = Metadata(name="visualize_test_nuclei", thing_classes=["nucleus"])
    picture = draw_comparison(record, predicted(BOXES[:1], [0], [0.9]), metadata)
    assert [text for text in written if text] == ["90%"]
    unnamed = draw_comparison(record, predicted(BOXES[:1], [0], [0.9]), Metadata(name="visualize_test_unnamed"))
    assert (picture[:CAPTION_HEIGHT] < 100).sum() > (unnamed[:CAPTION_HEIGHT] < 100).sum()  # more letters


def test_predictions_of_another_size(record, metadata):
    with pytest.raises(ValueError, match="street.png"):
        draw_comparison(record, nothing((10, 10)), metadata)


def test_colours_of_80_classes_and_of_the_dataset(metadata):
    assert len({class_color(i, metadata) for i in range(80)}) == 80
    metadata.thing_colors = [[255, 0, 0]]
    assert class_color(0, metadata) == (1, 0, 0)
    assert len(class_color(1, metadata)) == 3  # beyond what the dataset has


def test_records_are_spread_over_those_with_annotations():
    records = [{"image_id": i, "annotations": [{}] if i else []} for i in range(10)]
    assert [r["image_id"] for r in pick_records(records, 3)] == [1, 4, 7]
    assert pick_records(records, 99) == records[1:]
    assert [r["image_id"] for r in pick_records([{"image_id": i} for i in range(4)], 2)] == [0, 2]  # none has any
    assert pick_records([], 3) == []


def test_predictions_alone(metadata):
    image = np.full((SIDE, SIDE, 3), 90, dtype=np.uint8)
    found = predicted(BOXES, [0, 1], [0.9, 0.3])
    drawn = np.asarray(draw_predictions(image, found, metadata, 0.5))[CAPTION_HEIGHT:]
    assert drawn.shape[:2] == (480, 480)
    assert tinted(at(drawn, 60, 70), 0, metadata) and not tinted(at(drawn, 120, 110), 1, metadata)


def test_each_picture_shows_its_pair(record, metadata, tmp_path):
    out = tmp_path / "run" / "pictures"
    other = record | {"file_name": str(tmp_path / "park.png")}
    Image.open(record["file_name"]).save(other["file_name"])
    pairs = [(record, nothing()), (other, predicted(BOXES, [0, 1], [0.9, 0.9])), (record, nothing())]
    paths = save_comparisons(iter(pairs), metadata, out)
    assert [p.name for p in paths] == ["000_street.png", "001_park.png", "002_street.png"]
    assert sorted(out.iterdir()) == paths
    drawn = [tinted(at(halves(np.asarray(Image.open(p)))[1], 60, 70), 0, metadata) for p in paths]
    assert drawn == [False, True, False]


def test_pictures_of_an_earlier_run_are_removed(record, metadata, tmp_path):
    out = tmp_path / "pictures"
    save_comparisons([(record, nothing())] * 3, metadata, out)
    (out / "000_other_dataset.png").write_bytes(b"")
    (out / "notes.txt").write_text("not a picture")
    paths = save_comparisons([(record, nothing())] * 2, metadata, out)
    assert sorted(out.iterdir()) == [*paths, out / "notes.txt"] and len(paths) == 2
    assert save_comparisons([], metadata, out) == []
    assert list(out.iterdir()) == [out / "notes.txt"]


def test_failure_leaves_the_earlier_pictures_and_no_half_written_file(record, metadata, tmp_path, monkeypatch):
    out = tmp_path / "pictures"
    before = save_comparisons([(record, nothing())] * 2, metadata, out)
    content = [path.read_bytes() for path in before]

    def torn(self, file, format):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", torn)
    with pytest.raises(OSError, match="No space left"):
        save_comparisons([(record, nothing())], metadata, out)
    assert sorted(out.iterdir()) == before and [path.read_bytes() for path in before] == content


@pytest.mark.parametrize("names", [["$a_{$", "名" * 300], ["x\n$a_{$" + "y" * 300]])
def test_hostile_names_are_drawn_as_they_are(record, names, tmp_path):
    for annotation in record["annotations"]:
        annotation["category_id"] = min(annotation["category_id"], len(names) - 1)
    long = tmp_path / f"{'s' * 240}.png"
    Path(record["file_name"]).rename(long)
    metadata = Metadata(name="hostile", thing_classes=names)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph")
        pair = (record | {"file_name": str(long)}, predicted(BOXES[:1], [0], [0.9]))
        (path,) = save_comparisons([pair], metadata, tmp_path / "out")
    assert Image.open(path).width < 1200 and len(path.name) < 200
