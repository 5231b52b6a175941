"""metrics.json, one line a logged iteration, read alike for all kinds of runs; writers.py writes it."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from .schema import LARGEST, number

STEP = {"lr", "data_time"}  # one of these is in the line of a training step, and not in an evaluation's alone


def end_last_line(path: str | os.PathLike) -> None:
    """Append the end of line that a file of lines lacks because its writer was killed; no file is made."""
    if os.path.isfile(path) and os.path.getsize(path):
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


@dataclass
class Metrics:
    """What a run has logged.

    Attributes:
        lines: dicts, ascending by "iteration" (counted from 0), with other names of numbers, which need not be finite.
    """

    lines: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Metrics":
        """Read a metrics.json; without lines if there is no such file.

        Lines that a kill tore are skipped. Where training went back, to the checkpoint from which it was resumed or to
        the start, what had been logged from there on is dropped.
        """
        if not os.path.isfile(path):
            return cls()
        with open(path, errors="replace") as file:
            return cls(_merged(file))

    @property
    def names(self) -> set[str]:
        """All that is in any line, "iteration" too."""
        return {name for line in self.lines for name in line}

    @property
    def seconds(self) -> float | None:
        """How long the training took, by the (median) time of an iteration that is logged; None if it is not."""
        ends, times = self.matching("(time)").get("time", ([], []))
        seconds = float(sum(float(t) * float(b - a) for t, a, b in zip(times, [0, *ends], ends, strict=False)))
        return seconds if 0 < seconds < LARGEST else None

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Iterations (counted from 1) and values of one metric, also those that are not finite."""
        points = [(int(line["iteration"]) + 1, line[name]) for line in self.lines if name in line]
        return [x for x, _ in points], [y for _, y in points]

    def matching(self, pattern: str) -> dict[str, np.ndarray]:
        """Curves of the metrics whose names match.

        Args:
            pattern: regular expression; its group is the curve's name.

        Returns:
            dict: name -> (iterations, counted from 1, and values), arrays without what is not finite.
        """
        curves = {}
        for key in self.names:
            if match := re.fullmatch(pattern, key):
                points = [(x, y) for x, y in zip(*self.curve(key), strict=True) if number(y)]
                if points:
                    curves[match[1]] = np.array(points, dtype=float).T
        return curves


def _merged(file: Iterable[str]) -> list[dict[str, float]]:
    """The lines of a file by iteration, those of one iteration in one dict."""
    merged: dict[int, dict[str, float]] = {}
    last = -1
    for line in file:
        try:
            entry = _numbers(json.loads(line))
            iteration = int(entry["iteration"])
        except (ValueError, KeyError, AttributeError, OverflowError, RecursionError):
            continue
        if not 0 <= iteration <= LARGEST:
            continue
        if STEP & entry.keys():  # an evaluation's line may come after that of a later step
            if iteration <= last:
                merged = {i: m for i, m in merged.items() if i < iteration}
            last = iteration
        merged.setdefault(iteration, {}).update(entry, iteration=iteration)
    return [merged[i] for i in sorted(merged)]


def _numbers(entry: dict) -> dict[str, float]:
    """What is a number in a line, as JSONWriter writes nothing else."""
    known = {key: value for key, value in entry.items() if type(value) in (int, float)}
    return {key: value for key, value in known.items() if isinstance(value, float) or abs(value) <= LARGEST}
