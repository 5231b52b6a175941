"""The report of the checks of a data set: findings, counts, and a table of classes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .kinds import KINDS, SEVERITIES, Severity

EXAMPLES = 5  # printed for each kind
KEPT = 10_000  # examples kept for each kind, for --json-report: a million would take gigabytes
SMALL, MEDIUM = 32**2, 96**2  # upper limits of COCO's small and medium areas, in square pixels


@dataclass
class Finding:
    """How often a kind was found, and examples in words, at most ``KEPT``."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class Report:
    """Findings and counts of one data set.

    Attributes:
        name: of the data set or file, for messages.
        findings: by kind, a key of ``KINDS``.
        images, annotations: how many there are.
        classes: {category id: name}, in the order of the ids, which is the order of Detectron2's classes.
        table: {category id: {"images", "instances", "small", "medium", "large"}}, without crowd regions.
        has_rle: whether any object other than a crowd region has an RLE mask.
    """

    name: str
    findings: dict[str, Finding] = field(default_factory=dict)
    images: int = 0
    annotations: int = 0
    classes: dict[int, str] = field(default_factory=dict)
    table: dict[int, dict[str, int]] = field(default_factory=dict)
    has_rle: bool = False

    def add(self, kind: str, example: str | Callable[[], str] = "", count: int = 1) -> None:
        """Count findings of a kind.

        Args:
            kind: a key of ``KINDS``.
            example: text, or a function that makes it, which is called only if the example is kept.
            count: how many findings this is.
        """
        found = self.findings.setdefault(kind, Finding())
        found.count += count
        if example and len(found.examples) < KEPT:
            text = example() if callable(example) else example
            found.examples.append(text.encode(errors="backslashreplace").decode())  # file names that are not UTF-8

    def add_each(self, kind: str, which: np.ndarray | Sequence[int], describe: Callable[[int], str]) -> None:
        """Count one finding for each index in ``which``; ``describe(index)`` makes its example."""
        for item in which[:KEPT]:
            self.add(kind, describe(item))
        if len(which) > KEPT:
            self.add(kind, count=len(which) - KEPT)

    def of(self, severity: Severity) -> dict[str, Finding]:
        """The findings of a severity, in the order of ``KINDS``."""
        return {key: self.findings[key] for key in KINDS if key in self.findings and KINDS[key].severity == severity}

    def sentence(self, kind: str) -> str:
        """A finding in words: what, how often, an example and the outcome."""
        found = self.findings[kind]
        example = found.examples[0] if found.examples else self.name
        return f"{KINDS[kind].what} ({found.count}): {example}. {KINDS[kind].outcome}"

    def lines(self) -> Iterator[str]:
        """The report as text: the table of classes, then errors, warnings and notes with examples."""
        yield f"{self.name}: {self.images} images, {self.annotations} annotations, {len(self.classes)} classes"
        columns = ("images", "instances", "small", "medium", "large")
        width = max(map(len, ("class", *map(str, self.classes.values()))))
        if self.table:
            yield "  ".join(["   id", "class".ljust(width), *(f"{c:>9}" for c in columns)])
        for key, row in self.table.items():
            cells = (f"{row[c]:>9}" for c in columns)
            yield "  ".join([f"{key:>5}", str(self.classes[key]).ljust(width), *cells])
        for severity in SEVERITIES:
            for kind, found in self.of(severity).items():
                yield f"{severity}: {KINDS[kind].what}: {found.count}. {KINDS[kind].outcome}."
                yield from (f"    {example}" for example in found.examples[:EXAMPLES])
                if found.examples and found.count > EXAMPLES:
                    yield f"    ... and {found.count - EXAMPLES} more (--json-report lists them)"
        yield f"{len(self.of('error'))} kinds of errors, {len(self.of('warning'))} of warnings"

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON: plain types only."""
        findings = [
            {
                "kind": kind,
                "severity": severity,
                "what": KINDS[kind].what,
                "outcome": KINDS[kind].outcome,
                "count": found.count,
                "examples": found.examples,
            }
            for severity in SEVERITIES
            for kind, found in self.of(severity).items()
        ]
        classes = [{"id": key, "name": name, **self.table.get(key, {})} for key, name in self.classes.items()]
        counts = {"images": self.images, "annotations": self.annotations}
        return {"name": self.name, **counts, "classes": classes, "findings": findings}


def fill_table(report: Report, category: Iterable[int], image: Iterable[Any], area: Iterable[float]) -> None:
    """Count the objects of each class.

    Args:
        report: its ``classes`` are known; its ``table`` is filled.
        category, image, area: category id, image id and area in square pixels of each object; no crowd regions.
    """
    table = {key: {"images": 0, "instances": 0, "small": 0, "medium": 0, "large": 0} for key in report.classes}
    images: dict[int, set[Any]] = {key: set() for key in report.classes}
    for c, i, a in zip(category, image, area, strict=True):
        images[c].add(i)
        table[c]["instances"] += 1
        table[c]["small" if a < SMALL else "medium" if a < MEDIUM else "large"] += 1
    for key, row in table.items():
        row["images"] = len(images[key])
    report.table = table
    unused = [report.classes[key] for key, row in table.items() if not row["instances"]]
    if unused:
        report.add("category_empty", ", ".join(map(str, unused[:20])), len(unused))
