"""results.json of every kind of run: one dataclass each, which reads, checks and writes it.

The keys are the names of the fields; ``docs/run_folders.md`` lists them with the fields' own texts.
"""

from .base import VERSION, NewerVersionError, Results, kind_of
from .detection import Comparability, DetectionResults, Published
from .reading import KINDS, read_results
from .readouts import Accuracies, KnnKey, KnnResults, LinearResults, LinearStage, ReadoutResults

__all__ = [
    "KINDS",
    "VERSION",
    "Accuracies",
    "Comparability",
    "DetectionResults",
    "KnnKey",
    "KnnResults",
    "LinearResults",
    "LinearStage",
    "NewerVersionError",
    "Published",
    "ReadoutResults",
    "Results",
    "kind_of",
    "read_results",
]
