"""The template of the page, and how names become HTML in it."""

import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pretrain.files.tables import sort_key
from pretrain.files.text import for_html, for_terminal

TEMPLATE = "page.html.j2"


def fill_in(**values: Any) -> str:
    """The page.

    Args:
        values: what the template prints; text is escaped, whatever is in it, but for that of :class:`Markup`.
    """
    return _environment().get_template(TEMPLATE).render(**values)


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("loco_det", "report"),
        autoescape=True,
        finalize=_without_controls,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    made.filters |= {"breakable": breakable, "lines": _lines, "sort_key": sort_key}
    return made


def _without_controls(value: Any) -> Any:
    """What :func:`for_html` does before it escapes, as jinja2 does the escaping."""
    return value if isinstance(value, Markup) else for_terminal(value)


def breakable(text: str) -> Markup:
    """HTML of a text that may break where the words of names of runs and files end."""
    return Markup(for_html(text).replace("_", "_<wbr>").replace("/", "/<wbr>"))


def _lines(text: str) -> Markup:
    """HTML of a text of several lines."""
    return Markup(for_html(text, lines=True))
