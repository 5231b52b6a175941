"""The sampling errors of an evaluation come from its runs' own predictions."""

import json

import pytest
from made_up_evaluation import write_settings

from loco_det.ranking.evaluation import read_evaluation
from loco_det.ranking.image_errors import PREDICTIONS, ImageErrors
from loco_det.ranking.sampling import image_error


@pytest.fixture
def predicted(evaluation_folder, tmp_path):
    """The folder, with test images and predictions of its frozen runs: loco finds more than the control."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 100, "width": 100} for i in range(1, 9)]
    objects = [{"id": i, "image_id": i, "category_id": 1, "bbox": [5.0, 5.0, 40.0, 40.0], "area": 1600.0, "iscrowd": 0}
               for i in range(1, 9)]  # fmt: skip
    truth = tmp_path / "test.json"
    truth.write_text(json.dumps({"images": images, "annotations": objects, "categories": [{"id": 1, "name": "car"}]}))
    for name, found in (("loco", 7), ("random_resnet18", 3)):
        for seed in range(3):
            path = evaluation_folder / name / "frozen" / f"seed{seed}" / PREDICTIONS
            path.parent.mkdir(exist_ok=True)
            boxes = [{"image_id": i, "category_id": 1, "bbox": [5.0, 5.0, 40.0, 40.0], "score": 0.9 - i / 100}
                     for i in range(1, found + 1)]  # fmt: skip
            path.write_text(json.dumps(boxes))
    write_settings(evaluation_folder, data={"name": "streets", "test": {"json": str(truth)}})
    return evaluation_folder, truth


def frozen(evaluation, name):
    return list(next(row for row in evaluation.rows if row.name == name).seeds["frozen"].values())


def test_they_are_those_of_the_prediction_files(predicted):
    folder, truth = predicted
    evaluation = read_evaluation(folder)
    rows = [frozen(evaluation, name) for name in ("loco", "random_resnet18")]
    found = ImageErrors(evaluation)(*rows, "bbox")
    wanted = image_error(truth, *([run.folder / PREDICTIONS for run in runs] for runs in rows))
    assert found == wanted and found.images == 8 and found.mean > 40 and found.half > 5


def test_none_where_files_are_missing_or_damaged(predicted):
    folder, truth = predicted
    evaluation = read_evaluation(folder)
    rows = [frozen(evaluation, name) for name in ("loco", "random_resnet18")]
    assert ImageErrors(evaluation)(*rows, "segm") is None  # these have no masks
    (rows[1][2].folder / PREDICTIONS).write_text("[{")
    assert ImageErrors(evaluation)(*rows, "bbox") is None
    truth.unlink()
    assert ImageErrors(evaluation)(rows[0], rows[0], "bbox") is None


def test_annotations_that_an_evaluator_has_written(predicted):
    folder, truth = predicted
    write_settings(folder, data={"name": "voc"})
    evaluation = read_evaluation(folder)
    runs = frozen(evaluation, "loco")
    assert ImageErrors(evaluation)(runs, runs, "bbox") is None
    truth.rename(runs[0].folder / "inference" / "voc_2007_test_coco_format.json")
    assert ImageErrors(evaluation)(runs, runs, "bbox").half == 0


def test_images_drawn_from_the_test_images(predicted):
    """A light head may be tested on some of them: those that it was not tested on are no misses."""
    folder, truth = predicted
    content = json.loads(truth.read_text())
    for part, key in (("images", "id"), ("annotations", "image_id")):
        content[part] = [one for one in content[part] if one[key] <= 7]
    evaluation = read_evaluation(folder)
    rows = [frozen(evaluation, name) for name in ("loco", "random_resnet18")]
    drawn = [row[0].folder / "inference" / "streets_test_drawn7_coco_format.json" for row in rows]
    drawn[0].write_text(json.dumps(content))
    assert ImageErrors(evaluation)(*rows, "bbox") is None  # the other one's are 8
    drawn[1].write_text(json.dumps(content))
    assert ImageErrors(evaluation)(*rows, "bbox").images == 7
