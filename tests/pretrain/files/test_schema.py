"""Schemas of files: where a value is not as it should be, and JSON that is none."""

import re

import pytest

from pretrain.files.schema import ANY, either, fault, flag, maybe, number, path, read_json, text, whole

SCHEMA = {
    "name": text,
    "of": maybe([whole]),
    "by": maybe({re.compile(r"k\d"): {"top1": maybe(number)}}),
    "on": maybe(flag),
}


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"name": "a"}, None),
        ({"name": "a", "of": [1, 2], "by": {"k1": {"top1": None}, "k2": {}}, "on": True, "else": []}, None),
        ({}, "name"),
        ([], "content"),
        ({"name": "a", "of": [1, True]}, "of"),
        ({"name": "a", "by": {"k": {}}}, "by"),
    ],
)
def test_the_first_fault_is_named(value, place):
    assert fault(value, SCHEMA) == place


def test_the_place_of_a_fault():
    assert fault({"a": [{"b": 1}, {"b": "1"}]}, {"a": [{"b": whole}]}) == "a[1].b"
    assert fault({"res5": {"k": 1.0, "t": "x"}}, {ANY: {ANY: number}}) == "res5.t"
    assert fault({"x": 1}, {re.compile("k"): whole}) == "'x'"
    assert fault([1], either([text], [whole])) is None and fault([1.5], either([text], [whole])) == "content"


def test_numbers_are_finite_and_no_booleans():
    for value in (True, None, "1", float("nan"), float("inf"), 10**400, 2**53 + 1, [1]):
        assert not number(value) and not whole(value)
    assert number(-1.5) and number(2**53) and whole(-3) and not whole(1.0)
    assert path("a/b") and not path("a\0b") and text("a\0b")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"9" * 5000, b'{"a": 1}}'])
def test_what_is_no_json_is_named_in_a_short_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is damaged: ") as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
