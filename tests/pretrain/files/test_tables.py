"""Tables: numbers until they are rendered, names that are data, and what sorts by what."""

import math

import markdown
import pytest

from pretrain.files.tables import (
    COUNT,
    DURATION,
    GENERAL,
    MEMORY,
    NOTHING,
    PLAIN,
    PROGRESS,
    TEXT,
    Column,
    Markdown,
    MeanStd,
    Progress,
    Table,
    decimals,
    several,
    sort_key,
)

HOSTILE = "a|b\n| c \x1b[31m\u202e <b> `d` [e](f) *g* _h_"


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (decimals(1), 12.34, "12.3"), (decimals(2), 50, "50.00"), (decimals(1), -0.04, "-0.0"),
        (decimals(1, sign=True), 2.25, "+2.2"), (decimals(1, sign=True), -2.0, "-2.0"),
        (decimals(1), MeanStd(11, 1.414), "11.0 ± 1.4"), (decimals(1), MeanStd(3.5, 0.7, signed=True), "+3.5 ± 0.7"),
        (GENERAL, 1e-05, "1e-05"), (GENERAL, 0.3, "0.3"), (GENERAL, 30.0, "30"), (PLAIN, 1234567, "1234567"),
        (COUNT, 1234567, "1,234,567"), (PROGRESS, Progress(120, 300), "120 of 300"),
        (PROGRESS, Progress(300, 300), "300"),
        (PROGRESS, Progress(7), "7"), (PROGRESS, Progress(0, 300), "0 of 300"), (DURATION, 59.4, "59 s"),
        (DURATION, 59.6, "1 min 00 s"), (DURATION, 123.4, "2 min 03 s"), (DURATION, 3599.7, "1 h 00 min"),
        (MEMORY, 2.34e9, "2.3 GB"), (several(decimals(1)), [None, 10.0, math.nan], "– / 10.0 / –"), (TEXT, "x", "x"),
        *((form, unknown, NOTHING) for form in (TEXT, GENERAL, DURATION) for unknown in (None, math.nan, math.inf)),
        (GENERAL, "all diverged", "all diverged"),
    ],
)  # fmt: skip
def test_texts_of_values(form, value, text):
    assert Column("x", form).text(value) == text


@pytest.mark.parametrize(
    ("value", "key"),
    [(12.345678901, 12.345678901), (0, 0.0), (MeanStd(3.5, 0.7), 3.5), (Progress(120, 300), 120.0), (None, None),
     (math.nan, None), ("30", None), ([1.0, 2.0], None)],
)  # fmt: skip
def test_numbers_sort_by_their_value_and_not_by_their_text(value, key):
    assert sort_key(value) == key


def table():
    columns = [Column("run"), Column("AP (%)", decimals(1)), Column("seeds", PLAIN), Column("step", COUNT, key="last")]
    return Table(columns, [{"run": "a", "AP (%)": 1.25, "last": 1000}, {"run": "b", "AP (%)": math.nan}])


def test_text_tables_are_aligned():
    lines = table().terminal().splitlines()
    assert table().markdown().splitlines() == lines and len({len(line) for line in lines}) == 1
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])] == [
        ["run", "AP (%)", "seeds", "step"],
        ["a", "1.2", "–", "1,000"],
        ["b", "–", "–", "–"],
    ]
    assert [cell[0] + cell[-1] for cell in lines[1].strip("|").split("|")] == [":-", "-:", "-:", "-:"]


def test_columns_without_anything_can_be_left_out():
    def names(table):
        return [column.name for column in table.columns]

    assert names(table().without_empty()) == ["run", "AP (%)", "step"]
    assert names(table().without_empty(["step", "run"])) == names(table())
    assert names(table().without(["run", "seeds"])) == ["AP (%)", "step"]
    assert table().texts()[1] == {"run": "b", "AP (%)": "–", "seeds": "–", "step": "–"}
    assert not Table(table().columns) and table()


def test_columns_of_one_name_keep_their_values_apart():
    columns = [Column("at step", COUNT, key="first"), Column("at step", COUNT, key="last")]
    assert Table(columns, [{"first": 1, "last": 2}]).markdown().splitlines()[2].split() == ["|", "1", "|", "2", "|"]


def test_names_are_data():
    shown = Table([Column(HOSTILE), Column("text")], [{HOSTILE: HOSTILE, "text": HOSTILE}])
    for text in (shown.terminal(), shown.markdown()):
        assert len(text.splitlines()) == 3 and "\x1b" not in text and "\u202e" not in text
    html = markdown.markdown(shown.markdown(), extensions=["tables"])
    assert html.count("<td") == 2 and html.count("<th") == 3  # two of them in the head, and the head
    assert not any(f"<{tag}" in html for tag in ("b>", "a ", "code", "em", "script"))
    long = Table([Column("name")], [{"name": "n" * 500}])
    assert max(map(len, long.terminal().splitlines())) < 110 and "n" * 500 in long.markdown()


def test_markdown_is_taken_as_it_is_but_for_pipes():
    shown = Table([Column("", key="x")], [{"x": Markdown("`a|b` **c** \\| d")}])
    assert shown.markdown().splitlines()[2].strip("| ") == "`a\\|b` **c** \\| d"
