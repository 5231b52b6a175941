"""Matplotlib figures as PNG."""

import contextlib
import io
import warnings


@contextlib.contextmanager
def quiet_fonts():
    """Text is drawn without a line on stderr for each character that the font lacks; a box stands for these."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        warnings.filterwarnings("ignore", "Matplotlib currently does not support .* natively", UserWarning)
        yield


def png(figure, dpi=130):
    """A figure's PNG, as bytes."""
    buffer = io.BytesIO()
    with quiet_fonts():
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
