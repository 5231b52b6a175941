"""metrics.json, one line a logged iteration, read alike for all kinds of runs; writers.py writes it."""

import json
import os
import re

import numpy as np

from .schema import LARGEST, number

STEP = {"lr", "data_time"}  # one of these is in the line of a training step, and not in an evaluation's alone


def end_last_line(path):
    """Append the end of line that a file of lines lacks because its writer was killed; no file is made."""
    if os.path.isfile(path) and os.path.getsize(path):
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def read_metrics(path):
    """Lines of a metrics.json by iteration, ascending.

    Lines that a kill tore are skipped. Where training went back, to the checkpoint from which it was resumed or to
    the start, what had been logged from there on is dropped.

    Returns:
        list of dicts, each with "iteration" (counted from 0) and other names of numbers, which need not be finite;
        empty if there is no such file.
    """
    merged, last = {}, -1
    if os.path.isfile(path):
        with open(path, errors="replace") as file:
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


def _numbers(entry):
    """What is a number in a line, as JSONWriter writes nothing else."""
    known = {key: value for key, value in entry.items() if type(value) in (int, float)}
    return {key: value for key, value in known.items() if isinstance(value, float) or abs(value) <= LARGEST}


def training_seconds(metrics):
    """How long a training took, by the (median) time of an iteration that its metrics tell; None if they do not."""
    ends, times = series(metrics, "(time)").get("time", ([], []))
    seconds = float(sum(float(t) * float(b - a) for t, a, b in zip(times, [0, *ends], ends, strict=False)))
    return seconds if 0 < seconds < LARGEST else None


def series(metrics, pattern):
    """Curves of the metrics whose names match.

    Args:
        metrics: of :func:`read_metrics`.
        pattern: regular expression; its group is the curve's name.

    Returns:
        dict: name -> (iterations, counted from 1, and values), arrays without what is not finite.
    """
    curves = {}
    for key in {key for entry in metrics for key in entry}:
        if match := re.fullmatch(pattern, key):
            points = [(entry["iteration"] + 1, entry.get(key)) for entry in metrics]
            points = [(x, y) for x, y in points if number(y)]
            if points:
                curves[match[1]] = np.array(points, dtype=float).T
    return curves
