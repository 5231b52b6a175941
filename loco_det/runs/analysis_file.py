"""analysis.json of a detection run, as far as reports read it."""

import re
from pathlib import Path
from typing import Any

from pretrain.files.schema import ANY, fault, maybe, number, read_json, text, whole

CURVES = ("recall", "0.50", "0.50:0.95")  # that are drawn
_CURVE = [maybe(number)]
_TASK = {
    "per_class": {ANY: {"objects": whole, "AP": maybe(number)}},
    "curves": {"recall": [number], "0.50": _CURVE, "0.50:0.95": _CURVE},
}
ANALYSIS = {
    "dataset": maybe(text),
    "classes": [text],
    "tasks": {re.compile("bbox|segm"): _TASK},
    "confusion": {ANY: lambda value: True},
}


def read_analysis(path: str | Path) -> dict[str, Any]:
    """The content of an analysis.json.

    Args:
        path: of the file.

    Returns:
        dict: as :func:`loco_det.evaluation.analysis.analyze` returns it, with "dataset"; empty if there is no such
        file or it is no analysis: a report then does without its part.
    """
    try:
        content = read_json(path)
    except (FileNotFoundError, ValueError):
        return {}
    if fault(content, ANALYSIS) or not content["tasks"]:
        return {}
    curves = [task["curves"] for task in content["tasks"].values()]
    return content if all(len({len(part[name]) for name in CURVES}) == 1 for part in curves) else {}
