"""What a run has written."""

import json


def metrics(out):
    """Lines of metrics.json."""
    return [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]


def results(out):
    """Content of results.json."""
    return json.loads((out / "results.json").read_text())
