"""The learning rate of the highest AP on held-out images."""

import pytest

from loco_det.ranking.choice import FAILED, chosen_rate, folder_of, held_out_aps
from pretrain.files.results import DetectionResults

RATES = [0.01, 0.02, 0.04]


def write(folder, rate, ap):
    (folder / folder_of(rate)).mkdir(parents=True)
    if ap is None:
        (folder / folder_of(rate) / FAILED).write_text("error: it exploded\n")
    else:
        tasks = {"bbox": {"AP": ap}, "segm": {"AP": 99.0 - ap}}
        DetectionResults(results=tasks, dataset="held_out", problems=[]).write(
            folder / folder_of(rate) / "results.json"
        )


def test_the_best_is_chosen_when_all_are_there(tmp_path):
    write(tmp_path, 0.01, 3.0)
    write(tmp_path, 0.02, 5.0)
    assert chosen_rate(tmp_path, RATES) is None and held_out_aps(tmp_path, RATES) == {0.01: 3.0, 0.02: 5.0}
    write(tmp_path, 0.04, None)
    assert chosen_rate(tmp_path, RATES) == 0.02 and held_out_aps(tmp_path, RATES)[0.04] is None


def test_of_equal_ones_the_lowest(tmp_path):
    for rate in RATES:
        write(tmp_path, rate, 2.0)
    assert chosen_rate(tmp_path, RATES[::-1]) == 0.01


def test_a_single_rate_is_not_chosen(tmp_path):
    assert chosen_rate(tmp_path / "nothing", [0.3]) == 0.3


def test_all_explode(tmp_path):
    for rate in RATES:
        write(tmp_path, rate, None)
    with pytest.raises(ValueError, match="exploded at every learning rate of 0.01, 0.02, 0.04: give lower ones, --lrs"):
        chosen_rate(tmp_path, RATES)


def test_no_rate_has_an_ap(tmp_path):
    """Held-out images without objects are not blamed on the learning rates."""
    for rate in RATES:
        (tmp_path / folder_of(rate)).mkdir()
        results = DetectionResults(results={"bbox": {}}, dataset="held_out", problems=[])
        results.write(tmp_path / folder_of(rate) / "results.json")
    with pytest.raises(
        ValueError, match="0.04 has an AP on the held-out images, which may have no object: give a single"
    ):
        chosen_rate(tmp_path, RATES)
