"""results.json of tools/linear_probe.py and tools/knn.py."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..schema import ANY, maybe, number, path, text, whole
from .base import Results, known

_KEY = re.compile(r"k(\d{1,9})_t(\d{1,9}(?:\.\d{1,99})?(?:e[+-]?\d\d)?)")
TOP5_ABOVE = 5  # classes: of fewer there is no top-5 accuracy
_ACCURACIES = {"top1": maybe(number), "top5": maybe(number)}
_LINEAR = {
    **_ACCURACIES,
    "lr": maybe(number),
    "held_out_top1": maybe(number),
    "sweep": maybe({ANY: {"top1": maybe(number), "held_out_top1": maybe(number)}}),
}
_PROTOCOL = {"chosen_on": maybe(lambda value: value in ("held-out", "test")), "base_lr": maybe([number])}


class KnnKey(NamedTuple):
    """The setting of a kNN figure; its text, as in results.json, is such as ``k200_t0.07``."""

    k: int
    temperature: float

    def __str__(self) -> str:
        return f"k{self.k}_t{self.temperature:g}"

    @classmethod
    def parse(cls, key: str) -> "KnnKey":
        """The setting of a text; ValueError if it is none."""
        if not (match := _KEY.fullmatch(key)):
            raise ValueError(f"{key!r:.50} is no setting of kNN such as k200_t0.07")
        return cls(int(match[1]), float(match[2]))


@dataclass
class Accuracies:
    """Percentages; None where features or scores are not finite, and for top-5 of 5 classes or fewer."""

    top1: float | None = None
    top5: float | None = None


@dataclass
class LinearStage(Accuracies):
    """A stage's linear classifier.

    Attributes:
        lr: learning rate of 256 images, as BASE_LR; None if all have diverged.
        held_out_top1: on the held-out training images.
        sweep: learning rate -> "top1" and "held_out_top1" of its classifier.
    """

    lr: float | None = None
    held_out_top1: float | None = None
    sweep: dict[str, dict[str, float | None]] | None = None


def _linear(stages: dict[str, dict]) -> dict[str, LinearStage]:
    names = ("top1", "top5", "lr", "held_out_top1", "sweep")
    return {stage: LinearStage(**{name: row.get(name) for name in names}) for stage, row in stages.items()}


def _knn(stages: dict[str, dict]) -> dict[str, dict[KnnKey, Accuracies]]:
    return {
        stage: {KnnKey.parse(key): Accuracies(row.get("top1"), row.get("top5")) for key, row in settings.items()}
        for stage, settings in stages.items()
    }


@dataclass(kw_only=True)
class ReadoutResults(Results):
    """What both readouts say of themselves."""

    protocol: dict[str, Any] | None = known(_PROTOCOL, "what was done, in words and numbers that need no config")
    weights: dict[str, Any] | None = known(
        {"path": maybe(path), "sha256": maybe(text), "arch": maybe(text)},
        "the checkpoint: `path`, `sha256`, `arch`, and what it was taken for",
    )
    images: dict[str, Any] | None = known(
        {ANY: maybe(whole)}, "numbers of images, `train`, `held_out` and `test`, and of `classes`"
    )
    seconds: float | None = known(number, "that it took, over all parts of a resumed run")

    def to_json(self) -> dict[str, Any]:
        content = super().to_json()
        if ((self.images or {}).get("classes") or 0) <= TOP5_ABOVE:
            for row in self._rows(content[self.FIGURES] or {}):
                if row["top5"] is None:
                    del row["top5"]
        return content

    def _rows(self, figures: dict[str, Any]) -> list[dict]:
        """The dicts with "top5" in the JSON of the figures."""
        raise NotImplementedError


@dataclass(kw_only=True)
class LinearResults(ReadoutResults):
    """What linear classifiers have reached on every stage."""

    KIND: ClassVar[str] = "linear"
    FIGURES: ClassVar[str] = "linear"

    linear: dict[str, LinearStage] = known(
        {ANY: _LINEAR},
        "stage -> `top1`, `top5` (above 5 classes), `lr` (of 256 images), `held_out_top1`, and `sweep`: learning rate "
        "-> `top1`, `held_out_top1`; percent, null where a classifier has diverged",
        load=_linear,
    )

    def _rows(self, figures: dict[str, Any]) -> list[dict]:
        return list(figures.values())


@dataclass(kw_only=True)
class KnnResults(ReadoutResults):
    """What weighted kNN has reached on every stage."""

    KIND: ClassVar[str] = "knn"
    FIGURES: ClassVar[str] = "knn"

    knn: dict[str, dict[KnnKey, Accuracies]] = known(
        {ANY: {_KEY: _ACCURACIES}},
        "stage -> setting such as `k200_t0.07` (neighbours, temperature) -> `top1`, `top5` (above 5 classes); percent",
        load=_knn,
    )

    def _rows(self, figures: dict[str, Any]) -> list[dict]:
        return [row for settings in figures.values() for row in settings.values()]
