"""Attributes of others are as they were afterwards, whatever happens in between."""

import types

import pytest

from loco_det.evaluation.replaced import replaced


class Library:
    of_the_class = 1

    def __init__(self):
        self.there = 2


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("target", [Library(), types.ModuleType("library")])
def test_attributes_are_put_back(target, fails):
    target.there = 2
    before = dict(vars(target))
    try:
        with replaced(target, there=3, missing=4, of_the_class=5):
            assert (target.there, target.missing, target.of_the_class) == (3, 4, 5)
            del target.missing
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert vars(target) == before
