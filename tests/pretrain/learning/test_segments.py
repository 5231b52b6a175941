"""Where an encoder of four stages of two blocks is cut."""

import pytest
from tiny_learner import LOCO, RULES, TinyEncoder

from pretrain.encoders import STAGE_NAMES
from pretrain.learning.segments import cut
from pretrain.learning.units import read_units


def segments_of(units, recompute=()):
    encoder = TinyEncoder()
    return cut(encoder, read_units(units, encoder), recompute), encoder


def sizes(units, recompute=()):
    return [len(segment.module) for segment in segments_of(units, recompute)[0]]


@pytest.mark.parametrize(
    ("units", "recompute", "expected"),
    [
        (LOCO, [], [2, 2, 2, 2]),
        ([], [], [2, 2, 2, 2]),  # noise is added at the ends of stages
        ([["res2", "res3[:1]"]], [], [2, 1, 1, 2, 2]),
        ([["res2[1:]", "res3"]], [], [1, 1, 2, 2, 2]),
        (LOCO, ["res3"], [2, 1, 1, 2, 2]),
        (LOCO, ["res3[:1]"], [2, 1, 1, 2, 2]),
    ],
)
def test_cuts(units, recompute, expected):
    assert sizes(units, recompute) == expected


@pytest.mark.parametrize("rule", RULES)
def test_segments_are_the_encoders_own_blocks_in_order(rule):
    segments, encoder = segments_of(RULES[rule], ["res2[:1]"])
    assert [segment.index for segment in segments] == list(range(len(segments)))
    blocks = [block for segment in segments for block in segment.module]
    assert all(mine is theirs for mine, theirs in zip(blocks, (b for s in encoder.stages for b in s), strict=True))


def test_what_loco_asks_of_each_segment():
    segments, _ = segments_of(LOCO)
    assert [segment.top_of for segment in segments] == [None, "res3", "res4", "res5"]
    assert [segment.losses for segment in segments] == [("res3",), ("res3", "res4"), ("res4", "res5"), ("res5",)]
    assert [segment.needs_input_gradient for segment in segments] == [False, True, True, True]
    assert all(segment.keeps_graph and segment.ends_stage and not segment.recompute for segment in segments)


def test_a_graph_is_not_kept_where_a_loss_comes_later_and_it_can_be_made_again():
    segments, _ = segments_of(LOCO, ["res2", "res3[:1]"])
    assert [segment.recompute for segment in segments] == [True, True, True, False, False, False]
    # The backward pass of the loss of res3 comes before res4 runs.
    assert [segment.keeps_graph for segment in segments] == [False, False, True, True, True, True]
    assert [segment.ends_stage for segment in segments] == [False, True, False, True, True, True]


def test_no_graph_where_no_loss_is():
    assert not any(segment.keeps_graph for segment in segments_of([], STAGE_NAMES)[0])
    assert [segment.keeps_graph for segment in segments_of([["res3"]])[0]] == [False, True, False, False]


def test_an_unknown_stage_to_recompute_is_refused():
    with pytest.raises(ValueError, match="'res6' is not a stage"):
        segments_of(LOCO, ["res6"])
