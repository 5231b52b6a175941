"""A finished run folder of ``tools/pretrain.py`` -> the model card of its checkpoint, in Hugging Face's Markdown.

Every figure comes from a file: the config, the number of images and the iteration from the checkpoint itself, losses
and time from ``metrics.json``, readouts from the ``results.json`` of the tools that measured them. The same files give
the same card, to the byte.
"""

from collections.abc import Sequence
from pathlib import Path

from ..engine.curves import LossPlot, draw_losses
from ..files.atomic import write_whole
from .readouts import read_readout
from .run import PretrainingRun
from .text import card_text


def write_model_card(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    linear: Sequence[str | Path] = (),
    knn: Sequence[str | Path] = (),
    detection: Sequence[str | Path] = (),
    name: str | None = None,
    licence: str | None = None,
    encoder: str | None = None,
) -> Path:
    """Write the card; beside it the curves, ``losses.png``, or ``<card>_losses.png`` outside of the run folder.

    Args:
        folder: of a finished run of ``tools/pretrain.py``.
        output: the card, a file ``.md``; None: ``model_card.md`` in ``folder``.
        linear, knn, detection: folders with the ``results.json`` of ``tools/linear_probe.py``, ``tools/knn.py`` and
            ``tools/train_net.py``, all of this checkpoint.
        name: the card's title; None: method, encoder and data.
        licence: of the weights; None: not stated.
        encoder: the ``package.module.function`` of the user's own that the run was made with, if it was.

    Returns:
        Path: the card.

    Raises:
        FileNotFoundError: if a folder or a results.json is missing, or the run is not finished.
        ValueError: if a file is damaged, the results are those of another checkpoint, or ``output`` is no ``.md``.
        OSError: if the card cannot be written.
    """
    if output and Path(output).suffix != ".md":  # it may be the weights
        raise ValueError(f"{output}: a model card is Markdown, name a file that ends in .md")
    run = PretrainingRun(folder, encoder)
    output = Path(output) if output else run.folder / "model_card.md"
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent}: no such folder to write {output.name} to")
    kinds = {"linear": linear, "knn": knn, "detection": detection}
    readouts = [read_readout(path, kind, run.sha256) for kind, folders in kinds.items() for path in folders]
    inside = output.parent.resolve() == run.folder.resolve()
    curves = output.with_name("losses.png" if inside else f"{output.stem}_losses.png")
    picture = curves.name if _place_curves(run, curves) else None
    text = card_text(run, readouts, name, licence, picture, inside)
    write_whole(output, text)
    return output


def _place_curves(run, path):
    """Put the run's curves at ``path``; returns whether there are any."""
    drawn = run.folder / "losses.png"
    if not drawn.is_file():
        return draw_losses(run.folder / "metrics.json", path, LossPlot(run.cfg).chance)
    if drawn.resolve() != path.resolve():
        write_whole(path, drawn.read_bytes())
    return True
