"""From the names of stages to blocks: four stages of two blocks each."""

import pytest
from tiny_learner import LOCO, TinyEncoder

from pretrain.learning.learner import LocalLearner
from pretrain.learning.units import Unit, blocks_of, read_split, read_unit, read_units


@pytest.mark.parametrize(
    ("part", "blocks"),
    [
        ("res2", range(0, 2)),
        ("res4", range(4, 6)),
        ("res3[:1]", range(2, 3)),
        ("res3[1:]", range(3, 4)),
        ("res3[-1:]", range(3, 4)),
        ("res5[0:2]", range(6, 8)),
        ("res5[:]", range(6, 8)),
        ("res5[:-1]", range(6, 7)),
    ],
)
def test_a_part_is_a_range_of_blocks(part, blocks):
    assert blocks_of(part, TinyEncoder()) == blocks


@pytest.mark.parametrize(
    "part",
    ["", "res", "res3[", "res3[1]", "res3[::2]", "res3[a:]", "res3[-:]", "res3[:-]", "res3 [:1]", "res3\n", 3],
)
def test_what_is_no_part_is_refused(part):
    with pytest.raises(ValueError, match="is not a stage, or a slice of one such as res5"):
        blocks_of(part, TinyEncoder())


def test_a_unit_has_the_name_of_its_last_part():
    assert read_unit(["res2[1:]", "res3", "res4[:1]"], TinyEncoder()) == Unit("res4[:1]", range(1, 5))


def test_units_come_in_the_order_of_their_losses():
    names = [unit.name for unit in read_units(reversed(LOCO), TinyEncoder())]
    assert names == ["res3", "res4", "res5"]
    assert read_units([], TinyEncoder()) == []


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([["res2", "res4"]], "not a run of consecutive stages"),
        ([["res3", "res2"]], "not a run of consecutive stages"),
        ([["res2[:1]", "res3"]], "not a run of consecutive stages"),
        ([[]], "not a run of consecutive stages"),
        ([["conv1"]], "'conv1' is not a stage, or a slice of one such as res5"),
        ([["res3[5:]"]], "is empty: res3 has 2 blocks"),
        ([["res2", "res3"], ["res3"]], "two units end at res3"),
    ],
)
def test_units_that_cannot_be(units, message):
    with pytest.raises(ValueError, match=message):
        read_units(units, TinyEncoder())
    with pytest.raises(ValueError, match=message):
        LocalLearner(TinyEncoder(), units, {}, None)


@pytest.mark.parametrize(
    ("split", "runs"),
    [
        ([], [range(8)]),
        ([["res2", "res3"], ["res4", "res5"]], [range(4), range(4, 8)]),
        ([["res2", "res3[:1]"], ["res3[1:]"], ["res4", "res5"]], [range(3), range(3, 4), range(4, 8)]),
    ],
)
def test_split(split, runs):
    assert read_split(split, TinyEncoder()) == runs


@pytest.mark.parametrize(
    ("split", "why"),
    [
        ([["res2"], ["res4", "res5"]], r"\['res4', 'res5'\] leaves out res3\[0:1\]"),
        ([["res3"], ["res4", "res5"]], r"\['res3'\] leaves out res2\[0:1\]"),
        ([["res2", "res3"], ["res3[1:]", "res4", "res5"]], r"has again res3\[1:2\]"),
        ([["res4", "res5"], ["res2", "res3"]], "leaves out"),
        ([["res2"], ["res3", "res4"]], r"no device has res5\[0:1\]"),
        ([["res2", "res4"], ["res3", "res5"]], "not a run of consecutive stages"),
        ([["res2", "res3"], ["res9"]], "'res9' is not a stage"),
        ([["res2", "res3"], []], "not a run"),
    ],
)
def test_a_split_that_is_refused(split, why):
    with pytest.raises(ValueError, match=why):
        read_split(split, TinyEncoder())
