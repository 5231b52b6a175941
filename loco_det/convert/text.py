"""Names in a file are data: spelled out where a terminal would obey them."""

import unicodedata

# Control characters, surrogates, separators of lines and paragraphs, and format characters (bidirectional overrides)
_CONTROLS = {"Cc", "Cs", "Zl", "Zp", "Cf"}


def for_terminal(text):
    r"""Text in one line, with what a terminal would obey spelled out: ``\n``, ``\x1b``, ``\u202e``."""
    spelled = (c.encode("unicode_escape").decode() if unicodedata.category(c) in _CONTROLS else c for c in str(text))
    return "".join(spelled)
