"""Matplotlib figures as PNG."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def quiet_fonts() -> Iterator[None]:
    """A context without matplotlib's warnings about characters that the font lacks; they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        warnings.filterwarnings("ignore", "Matplotlib currently does not support .* natively", UserWarning)
        yield


def png(figure: "Figure", dpi: float = 130) -> bytes:
    """The content of a PNG file with the figure, at ``dpi`` dots per inch."""
    buffer = io.BytesIO()
    with quiet_fonts():
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
