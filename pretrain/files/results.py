"""results.json of linear probe, kNN and detection: its keys, as far as other tools read them, and their types."""

import re

from .schema import ANY, either, fault, flag, maybe, number, path, read_json, text, whole

READOUTS = {"linear", "knn"}  # where results.json of a readout has its figures
_ACCURACIES = {"top1": maybe(number), "top5": maybe(number), "lr": maybe(number), "held_out_top1": maybe(number)}
_METRICS = {ANY: maybe(number)}
_PUBLISHED = {
    "row": text,
    "box_ap": maybe(number),
    "mask_ap": maybe(number),
    "differences": maybe([text]),
}
_PROTOCOL = {"chosen_on": maybe(lambda value: value in ("held-out", "test")), "base_lr": maybe([number])}
RESULTS = {
    "results": maybe({ANY: either(_METRICS, {ANY: _METRICS})}),
    "linear": maybe({ANY: _ACCURACIES}),
    "knn": maybe({ANY: {re.compile(r"k\d{1,9}_t\d+(\.\d+)?(e[+-]?\d\d)?"): _ACCURACIES}}),
    "protocol": maybe(_PROTOCOL),
    "images": maybe({ANY: maybe(whole)}),
    "weights": maybe(either(path, {"path": maybe(path), "sha256": maybe(text), "arch": maybe(text)})),
    "weights_metadata": maybe({"sha256": maybe(text), "source": maybe(text)}),
    "published": maybe(_PUBLISHED),
    "problems": maybe([text]),
    "thing_classes": maybe([text]),
    "category_ids": maybe([whole]),
    "frozen": maybe(flag),
    **dict.fromkeys(("dataset", "schedule", "backbone", "decoder", "norm", "heads_norm"), maybe(text)),
    **dict.fromkeys(("seconds", "peak_memory"), maybe(number)),
    **dict.fromkeys(("iteration", "freeze_at"), maybe(whole)),
}


def read_results(file):
    """What a results.json holds.

    Args:
        file: its path.

    Returns:
        dict: with "results" (detection), "linear" or "knn"; keys of ``RESULTS`` have the types that stand there.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged; one line that names it.
    """
    content = read_json(file)
    place = fault(content, RESULTS)
    if not place and not any(content.get(part) is not None for part in ("results", *READOUTS)):
        place = "results"
    weights = content.get("weights") if not place else None
    if weights is not None and isinstance(weights, dict) != _is_readout(content):
        place = "weights"
    if place:
        raise ValueError(f"{file} is damaged ({place}): evaluate that run again")
    return content


def _is_readout(content):
    return any(content.get(part) is not None for part in READOUTS)
