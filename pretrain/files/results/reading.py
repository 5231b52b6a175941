"""A results.json of any kind."""

import os

from .base import checked_json, kind_of
from .detection import DetectionResults
from .readouts import KnnResults, LinearResults

KINDS = {results.KIND: results for results in (DetectionResults, LinearResults, KnnResults)}


def read_results(path: str | os.PathLike) -> DetectionResults | LinearResults | KnnResults:
    """The results of whatever run wrote the file.

    Args:
        path: of results.json.

    Raises:
        OSError, ValueError: as :meth:`Results.read`.
    """
    content = checked_json(path)
    return KINDS[kind_of(content)].from_json(content, path)
