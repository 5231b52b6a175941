"""The templates of the pages, and how names become HTML in them."""

import functools
from typing import Any

from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined
from markupsafe import Markup

from pretrain.files.tables import sort_key
from pretrain.files.text import for_html, for_terminal

PACKAGES = ("report", "ranking")  # of loco_det, whose folders have templates


class Link(str):
    """A text in a table that leads somewhere: in HTML it is a link, elsewhere it is the text.

    Attributes:
        href: a fragment of the page, or a path relative to it; quoted as addresses are.
    """

    href: str

    def __new__(cls, text: str, href: str) -> "Link":
        made = super().__new__(cls, text)
        made.href = href
        return made


def fill_in(template: str, **values: Any) -> str:
    """A page.

    Args:
        template: such as "report/page.html.j2".
        values: what the template prints; text is escaped, whatever is in it, but for that of :class:`Markup`.
    """
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PrefixLoader({name: PackageLoader("loco_det", name) for name in PACKAGES}),
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
