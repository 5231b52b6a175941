"""The same test images under all encoders, side by side: the ground truth once, then what each detector finds."""

from collections.abc import Sequence
from typing import Any

from ..report.pictures import PICTURE_BYTES, as_jpeg, halves, picture
from .comparisons import protocol_word
from .evaluation import Evaluation, Row

MOST = 6  # test images
WIDTHS = (640, 480, 320, 240)  # pixels; the first with which the pictures stay within PICTURE_BYTES


def side_by_side(evaluation: Evaluation, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The pictures that the first seeds of at least one row have, in order.

    Args:
        evaluation: what the rows are of.
        rows: in the order in which they are shown.

    Returns:
        For each test image "name" and "pictures", a list of :class:`loco_det.report.pictures.Picture`; where there are
        too many bytes the last images are left out.
    """
    columns = []
    for protocol in evaluation.detectors:
        for row in rows:
            run = next(iter(row.runs(protocol)), None)
            if run and run.pictures:
                label = f"{row.name}, {protocol_word(evaluation, protocol)}"
                columns.append((label, {path.name: path for path in run.pictures}))
    names = sorted({name for _, paths in columns for name in paths})
    # Images that all have come first: those of a run with other pictures could not be compared
    names.sort(key=lambda name: -sum(name in paths for _, paths in columns))
    groups: list[dict[str, Any]] = []
    for width in WIDTHS:
        groups, total = [], 0
        for name in names[:MOST]:
            group = _group(name, columns, width)
            total += sum(len(one.uri) for one in group["pictures"])
            if total > PICTURE_BYTES:
                break
            groups += [group] if group["pictures"] else []
        else:
            break
    return groups


def _group(name, columns, width):
    """One test image."""
    shown = []
    for label, paths in columns:
        parts = halves(paths[name]) if name in paths else None
        if parts is None:
            continue
        truth, found = parts
        if not shown:
            shown.append(picture(as_jpeg(truth, width), f"Ground truth of {name}", "ground truth", "jpeg"))
        shown.append(picture(as_jpeg(found, width), f"Prediction for {name}: {label}", label, "jpeg"))
    return {"name": name.removesuffix(".png"), "pictures": shown}
