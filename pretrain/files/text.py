"""Names of classes, runs and data sets, escaped for the place where they are written.

A name can come from an annotation file, a folder or a config, and may hold anything: line breaks, terminals' escape
sequences, HTML, Markdown, TeX. Each function returns a text that shows the name and has no other effect.
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
# Not matched, since Markdown shows them as they are: underscores within a word, brackets without a link's address
_MARKDOWN = re.compile(r"[\\`*|#~$@]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")
_LINKS = re.compile(r"://|\bwww\.", re.IGNORECASE)  # GitHub turns these into links
_NAME_BYTES = 150  # file systems allow 255, which have to hold the suffix and a temporary name, too


def for_terminal(text: object, lines: bool = False) -> str:
    r"""Text in one line, with control characters spelled out: ``\n``, ``\x1b``, ``\u202e``.

    Args:
        text: a string, or what ``str`` turns into one.
        lines: keep line breaks and tabs.
    """
    kept = _JOINERS + ("\n\t" if lines else "")
    return "".join(c if c in kept or unicodedata.category(c) not in _CONTROLS else _spelled(c) for c in str(text))


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode()


def for_log(message: str) -> str:
    """A log message without colours and with other escape sequences spelled out.

    A line break before "[", with which log entries begin, is spelled out, too: a name could forge an entry.
    """
    return for_terminal(_COLOR.sub("", message), lines=True).replace("\n[", "\\n[")


def for_markdown(text: object) -> str:
    """Text in one line that Markdown shows as it is, also in a table's cell."""
    escaped = html.escape(for_terminal(text), quote=False)
    escaped = _MARKDOWN.sub(lambda match: f"\\{match[0]}", escaped)
    return _LINKS.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", escaped)


def markdown_code(text: object) -> str:
    """Text as a code span of Markdown; pipes stay as they are, and in a table the caller escapes them."""
    shown = for_terminal(text)
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    pad = " " if shown[:1] in ("`", " ") or shown[-1:] in ("`", " ") else ""
    return f"{fence}{pad}{shown}{pad}{fence}" if shown else ""


def for_html(text: object, lines: bool = False) -> str:
    """Text as HTML's content or attribute; ``lines`` as in :func:`for_terminal`."""
    return html.escape(for_terminal(text, lines))


def for_figure(text: object, limit: int = 48) -> str:
    """Text in one line for matplotlib, without mathtext, and shown in legends even if it begins with an underscore.

    Args:
        text: a string, or what ``str`` turns into one.
        limit: columns; the middle of a longer text is left out.
    """
    shown = shortened(for_terminal(text), limit).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def shortened(text: str, limit: int) -> str:
    """Text of at most ``limit`` columns; an ellipsis replaces its middle, since names often differ at their ends.

    A Chinese, Japanese or Korean character takes two columns.
    """
    if len(text) <= limit and _columns(text) <= limit:
        return text
    end = (limit - 1) // 2
    return f"{_beginning(text, limit - 1 - end)}…{_beginning(text[::-1], end)[::-1]}"


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _beginning(text: str, columns: int) -> str:
    """The beginning of a text, at most ``columns`` wide."""
    text = text[:columns]
    while _columns(text) > columns:
        text = text[:-1]
    return text


def for_file_name(text: object) -> str:
    """Text as a part of a file's name: without separators and control characters, at most 150 bytes.

    A longer text ends with 12 digits of its SHA-256, so that texts with the same beginning stay different.
    """
    full = str(text)
    name = "".join("_" if c in "/\\" or unicodedata.category(c) in _CONTROLS else c for c in full)
    if len(name.encode()) > _NAME_BYTES:
        digest = hashlib.sha256(full.encode(errors="surrogateescape")).hexdigest()[:12]
        name = f"{name.encode()[: _NAME_BYTES - 13].decode(errors='ignore')}~{digest}"
    return name
