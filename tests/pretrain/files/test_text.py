"""Hostile names are shown, and do nothing, wherever they are written."""

import html
import unicodedata
import warnings

import pytest
from matplotlib.figure import Figure

from pretrain.files.figures import png
from pretrain.files.text import for_figure, for_file_name, for_html, for_log, for_markdown, for_terminal, markdown_code

HOSTILE = [
    "a\nb", "a\r\x1b[2Kb", "\x1b]0;title\x07", "\x9b31m", "a\x00b", "a\u202eb", "a\u2066b", "a\u2028b", "a\u200bb",
    "a\udcffb", "\ufeffa",
]  # fmt: skip
HARMLESS = ["tram", "Straße", "电车", "می\u200cخواهم", "e\u0301", "$5 | <b>", ""]


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_that_is_obeyed_or_hidden_is_left(name):
    for escape in (for_terminal, for_markdown, markdown_code, for_html, for_figure, for_file_name):
        text = escape(name)
        assert not {unicodedata.category(c) for c in text} & {"Cc", "Cf", "Cs", "Zl", "Zp"}, escape
        text.encode()


@pytest.mark.parametrize("name", HARMLESS)
def test_other_names_stay_as_they_are(name):
    assert for_terminal(name) == name
    assert html.unescape(for_html(name)) == name


def test_controls_are_spelled():
    assert for_terminal("a\n\t\x1b[31m\x85\u202e\udcff") == r"a\n\t\x1b[31m\x85\u202e\udcff"
    assert for_terminal("a\n\tb\r", lines=True) == "a\n\tb\\r"
    assert for_terminal(3) == "3"


def test_logs_lose_colours_and_keep_lines():
    assert for_log("\x1b[36mtable\x1b[0m\n|a\x1b[2J|\r") == "table\n|a\\x1b[2J|\\r"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a|b", r"a\|b"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("&lt;", "&amp;lt;"),
        ("`a` *b* ~c~ #1 $x$ @d", r"\`a\` \*b\* \~c\~ \#1 \$x\$ \@d"),
        ("[a](javascript:b) [c][d]", r"[a\](javascript:b) [c\][d]"),
        ("http://a www.b", r"http:/\/a www\.b"),
        ("coco_1k_seed0, _a_ [res2]", r"coco_1k_seed0, \_a\_ [res2]"),
        ("a\\|b\n", r"a\\\|b\\n"),
    ],
)
def test_markdown(name, text):
    assert for_markdown(name) == text


def test_code_spans_hold_backticks():
    assert markdown_code("a b") == "`a b`"
    assert markdown_code("a``b") == "```a``b```"
    assert markdown_code("`a`") == "`` `a` ``"
    assert markdown_code("") == ""


@pytest.mark.parametrize("name", ["$5 to $10", "a_$x^{$", r"\$a$", r"\$", "_hidden", "$", "a\nb", "电车", "名" * 300])
def test_matplotlib_shows_names_as_they_are_and_is_silent(name):
    """Broken mathtext raises, a missing glyph warns, and an underscore hides a label from the legend."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = Figure()
        axes = figure.subplots()
        axes.plot([0, 1], label=for_figure(name))
        axes.set_title(for_figure(name))
        (label,) = axes.legend().get_texts()
        assert png(figure)[:4] == b"\x89PNG"
    shown, is_math = label._preprocess_math(label.get_text())
    assert not is_math and len(shown) <= 48
    assert shown.strip() == for_terminal(name) or len(name) == 300


def test_long_names_keep_both_ends():
    assert for_figure("a" * 200 + "_end", 11) == "aaaaa…a_end"


@pytest.mark.parametrize("name", ["a/b", "a\0b", "..", "名" * 300, "x" * 300, "a\nb", "\udcff" * 300])
def test_names_of_files(name, tmp_path):
    path = tmp_path / f"000_{for_file_name(name)}.png"
    path.write_bytes(b"")
    assert path.parent == tmp_path
    path.with_name(f".{path.name}.1234567.tmp").write_bytes(b"")  # as for files that are written whole


def test_long_names_of_files_are_told_apart():
    assert for_file_name("x" * 300 + "1") != for_file_name("x" * 300 + "2")
    assert for_file_name("street_01") == "street_01"
