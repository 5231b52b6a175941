"""Which losses reach and train which sections."""

import pytest
from tiny_learner import LOCO, TinyEncoder

from pretrain.encoders import STAGE_NAMES
from pretrain.learning.plan import make_plan


def sections(units, **options):
    """Name of a unit -> the indices of the segments, the losses and the trainers of its sections, from the top down."""
    plan = make_plan(TinyEncoder(), units, **options)
    return {
        name: [([segment.index for segment in section.segments], section.losses, section.trained_by) for section in of]
        for name, of in plan.sections.items()
    }


def test_loco_has_a_section_for_each_stage():
    assert sections(LOCO) == {
        "res3": [([1], ("res3", "res4"), ("res3", "res4")), ([0], ("res3",), ("res3",))],
        "res4": [([2], ("res4", "res5"), ("res4", "res5")), ([1], ("res3", "res4"), ("res3", "res4"))],
        "res5": [([3], ("res5",), ("res5",)), ([2], ("res4", "res5"), ("res4", "res5"))],
    }


def test_end_to_end_is_one_section():
    assert sections([list(STAGE_NAMES)]) == {"res5": [([3, 2, 1, 0], ("res5",), ("res5",))]}
    assert sections([]) == {}


def test_recomputed_blocks_are_segments_of_one_section():
    assert sections([["res2", "res3"]], recompute=["res2"]) == {"res3": [([2, 1, 0], ("res3",), ("res3",))]}


def test_the_uppermost_loss_alone_trains_a_shared_section():
    (shared, own) = sections(LOCO, shared_gradient="upper")["res3"]
    assert shared == ([1], ("res3", "res4"), ("res4",)) and own == ([0], ("res3",), ("res3",))


def test_losses_come_in_the_order_of_the_forward_pass():
    assert sections([["res2", "res3", "res4"], ["res2"], ["res2", "res3"]])["res2"] == [
        ([0], ("res2", "res3", "res4"), ("res2", "res3", "res4"))
    ]


def test_other_options_are_refused():
    with pytest.raises(ValueError, match="choose all or upper"):
        make_plan(TinyEncoder(), [], shared_gradient="lower")


def test_sections_end_where_a_device_begins():
    split = [["res2", "res3[:1]"], ["res3[1:]", "res4", "res5"]]
    plan = make_plan(TinyEncoder(), LOCO, split=split)
    assert [[segment.name for segment in device] for device in plan.devices] == [
        ["res2", "res3[0:1]"],
        ["res3[1:2]", "res4", "res5"],
    ]
    assert sections(LOCO, split=split)["res4"] == [
        ([3], ("res4", "res5"), ("res4", "res5")),
        ([2], ("res3", "res4"), ("res3", "res4")),
        ([1], ("res3", "res4"), ("res3", "res4")),
    ]
