"""Names of classes, runs and data sets are data: escaped for wherever they are written.

A name can come from an annotation file, a folder or a config, and may hold anything: line breaks, escape sequences of
terminals, HTML, Markdown, TeX. Each function takes such a text, and returns what shows it and does nothing else.
"""

import hashlib
import html
import re
import unicodedata

# Control characters (C0, C1), surrogates (undecodable bytes in names of files), line and paragraph separators, and
# format characters, which reorder or hide text (bidirectional overrides, zero-width spaces)
_CONTROLS = {"Cc", "Cs", "Zl", "Zp", "Cf"}
_JOINERS = "\u200c\u200d"  # format characters that spelling needs: in Persian and Indic scripts, in emoji
_COLOR = re.compile(r"\x1b\[[0-9;]*m")  # what termcolor writes
# An underscore within a word is none to Markdown, and brackets are no link without what follows them
_MARKDOWN = re.compile(r"[\\`*|#~$@]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")
_LINKS = re.compile(r"://|\bwww\.", re.IGNORECASE)  # GitHub makes links of these by itself
_NAME_BYTES = 150  # of the 255 that file systems allow: there is an ending, and a temporary name around it


def for_terminal(text, lines=False):
    r"""Text in one line, with what a terminal would obey spelled out: ``\n``, ``\x1b``, ``\u202e``.

    Args:
        text: anything with a ``str``.
        lines: keep line breaks and tabs, for texts of several lines.
    """
    kept = _JOINERS + ("\n\t" if lines else "")
    return "".join(c if c in kept or unicodedata.category(c) not in _CONTROLS else _spelled(c) for c in str(text))


def _spelled(character):
    return character.encode("unicode_escape").decode()


def for_log(message):
    """A message of a log, without the colours that it may have, and with other escape sequences spelled out.

    A line break before what looks like the beginning of another entry is spelled out, too: a name could forge one.
    """
    return for_terminal(_COLOR.sub("", message), lines=True).replace("\n[", "\\n[")


def for_markdown(text):
    """Text in one line that Markdown shows as it is, in a table's cell as well."""
    escaped = html.escape(for_terminal(text), quote=False)
    escaped = _MARKDOWN.sub(lambda match: f"\\{match[0]}", escaped)
    return _LINKS.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", escaped)


def markdown_code(text):
    """Text as a code span of Markdown; outside of tables pipes need no escape, and tables escape them."""
    text = for_terminal(text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text[:1] in ("`", " ") or text[-1:] in ("`", " ") else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else ""


def for_html(text, lines=False):
    """Text as HTML's content or attribute; ``lines`` as in :func:`for_terminal`."""
    return html.escape(for_terminal(text, lines))


def for_figure(text, limit=48):
    """Text in one line for matplotlib: no mathtext, and a legend does not hide it for a leading underscore.

    Args:
        text: anything with a ``str``.
        limit: columns; of a longer text the middle is left out.
    """
    text = shortened(for_terminal(text), limit).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def shortened(text, limit):
    """Text of at most ``limit`` columns, with an ellipsis for its middle: names often differ at their ends.

    A Chinese, Japanese or Korean character takes two columns.
    """
    if len(text) <= limit and _columns(text) <= limit:
        return text
    end = (limit - 1) // 2
    return f"{_beginning(text, limit - 1 - end)}…{_beginning(text[::-1], end)[::-1]}"


def _columns(text):
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _beginning(text, columns):
    """As much of the text as ``columns`` hold."""
    text = text[:columns]
    while _columns(text) > columns:
        text = text[:-1]
    return text


def for_file_name(text):
    """Text as a part of a file's name: without separators and control characters, and short enough.

    Of a text that is too long, a part of its SHA-256 tells it from others that begin alike.
    """
    text = str(text)
    name = "".join("_" if c in "/\\" or unicodedata.category(c) in _CONTROLS else c for c in text)
    if len(name.encode()) > _NAME_BYTES:
        digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]
        name = f"{name.encode()[: _NAME_BYTES - 13].decode(errors='ignore')}~{digest}"
    return name
