"""results.json with a value of another type in any place is refused, and not met later by who makes a table."""

import json

import pytest

from pretrain.files.results import read_results

GOOD = {
    "detection": {"results": {"bbox": {"AP": 1.5, "APs": None}}, "weights": "a.pkl", "iteration": 3, "problems": []},
    "test sets": {"results": {"val": {"bbox": {"AP": 1}}, "test": {"bbox": {"AP": None}}}, "published": None},
    "linear": {"linear": {"res5": {"top1": 50.0, "lr": None}}, "weights": {"path": "a.pth", "arch": "resnet18"}},
    "knn": {"knn": {"res5": {"k20_t0.07": {"top1": 40.0}, "k200_t1e-05": {"top1": None}}}},
}
BAD = [
    ("detection", {"results": {"bbox": 3}}), ("detection", {"results": {"bbox": {"AP": "1"}}}),
    ("detection", {"results": {"bbox": {"AP": float("inf")}}}), ("detection", {"results": []}),
    ("detection", {"results": None}), ("detection", {"weights": {"path": "a"}}), ("detection", {"weights": "a\0"}),
    ("detection", {"iteration": 10**400}), ("detection", {"iteration": True}), ("detection", {"seconds": "3"}),
    ("detection", {"problems": [3]}), ("detection", {"published": {"box_ap": 1.0}}), ("detection", {"published": [1]}),
    ("detection", {"published": {"row": "a", "differences": "b"}}), ("detection", {"thing_classes": [None]}),
    ("detection", {"category_ids": ["1"]}), ("detection", {"dataset": ["a"]}), ("detection", {"schedule": 1}),
    ("linear", {"weights": "a.pth"}), ("linear", {"linear": {"res5": None}}),
    ("linear", {"linear": {"res5": {"lr": "1"}}}),
    ("linear", {"protocol": {"base_lr": 0.1}}), ("linear", {"protocol": {"chosen_on": "luck"}}),
    ("knn", {"knn": {"res5": {"k_t": {}}}}), ("knn", {"knn": {"res5": {"k20_t0.07": 40.0}}}),
]  # fmt: skip


@pytest.mark.parametrize("kind", GOOD)
def test_good_results(tmp_path, kind):
    (tmp_path / "results.json").write_text(json.dumps(GOOD[kind]))
    assert read_results(tmp_path / "results.json") == GOOD[kind]


@pytest.mark.parametrize(("kind", "change"), BAD)
def test_a_value_of_another_type_is_named(tmp_path, kind, change):
    (tmp_path / "results.json").write_text(json.dumps({**GOOD[kind], **change}))
    with pytest.raises(
        ValueError, match=rf"results\.json is damaged \({next(iter(change))}.*\): evaluate that run again"
    ):
        read_results(tmp_path / "results.json")
