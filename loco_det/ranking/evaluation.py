"""The folder of ``loco-det evaluate``, read: its settings, its rows, and the runs of each row."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pretrain.files.atomic import text_of
from pretrain.files.results import NewerVersionError
from pretrain.files.schema import read_json, whole

from ..runs.folder import Run, lost_run, read_run
from .choice import FAILED, folder_of
from .settings import FILE, read_settings

DETECTORS = ("frozen", "finetune")
READOUTS = ("probe", "knn")


@dataclass
class Row:
    """A line of the ranking.

    Attributes:
        name: of the line and of its folder.
        folder: the row's.
        checkpoints: as they were named: one for all seeds, or one for each; of a control "random".
        control: whether the weights are random.
        architecture: name of the encoder; None: not known.
        sha256: of the checkpoints' files.
        problem: why it has no figures, such as what the converter said; "": it has, or will have.
        conversions: what the converter found, a dict for each of its files.
        seeds: protocol -> seed -> run of the test figures; a run that is not there, or damaged, has its ``problem``.
        choices: protocol -> learning rate -> run that chose it on held-out training images.
        readouts: "probe" and "knn" -> run.
    """

    name: str
    folder: Path
    checkpoints: list[str] = field(default_factory=list)
    control: bool = False
    architecture: str | None = None
    sha256: list[str] = field(default_factory=list)
    problem: str = ""
    conversions: list[dict[str, Any]] = field(default_factory=list)
    seeds: dict[str, dict[int, Run]] = field(default_factory=dict)
    choices: dict[str, dict[float, Run]] = field(default_factory=dict)
    readouts: dict[str, Run] = field(default_factory=dict)

    def runs(self, protocol: str) -> Iterator[Run]:
        """The runs of a detector's protocol that could be read, named as the row."""
        yield from (replace(run, name=self.name) for run in self.seeds.get(protocol, {}).values() if not run.problem)

    def chosen(self, protocol: str) -> float | None:
        """The learning rate of the test figures; before there are any the best on held-out images, None if unknown."""
        rates = {run.key("SOLVER.BASE_LR") for run in self.runs(protocol)} - {None}
        choices = self.choices.get(protocol, {})
        if len(rates) == 1:
            rate = rates.pop()  # of the grid: a text such as 0.0028284 is rounded
            return next((known for known in choices if math.isclose(known, rate, rel_tol=1e-4)), rate)
        aps = {known: figure for known, run in sorted(choices.items()) if (figure := figure_of(run)) is not None}
        return max(aps, key=lambda known: aps[known]) if aps else None


@dataclass
class Evaluation:
    """What is in the folder.

    Attributes:
        folder: the folder.
        version: of loco-det that wrote it.
        data: "name", "train", "test", "train_images", "test_images", "classes", as far as they are known.
        budget: "paper", "short" or "minutes".
        protocols: those of ``DETECTORS`` and ``READOUTS`` that were asked for.
        seeds: how many.
        rates: protocol -> learning rates that were chosen from; a single one was given.
        settings: evaluation.yaml as it is, without its rows.
        rows: the rows.
        commands: text of commands.txt, perhaps empty.
    """

    folder: Path
    version: str | None
    data: dict[str, Any]
    budget: str
    protocols: list[str]
    seeds: int
    rates: dict[str, list[float]]
    settings: dict[str, Any]
    rows: list[Row]
    commands: str = ""

    @property
    def detectors(self) -> list[str]:
        """The protocols whose figures are AP."""
        return [name for name in DETECTORS if name in self.protocols]

    @property
    def is_light(self) -> bool:
        """Whether "frozen" is a light head on cached features, whose figures are no Mask R-CNN's."""
        return self.budget == "minutes"

    @property
    def test_images(self) -> int | None:
        """Number of test images, from an analysis, as they may be drawn from all; or else from the settings; None: not
        known."""
        runs = (run for row in self.rows for protocol in self.detectors for run in row.runs(protocol))
        found = next((count for run in runs if whole(count := run.analysis.get("images"))), None)
        return found or self.data.get("test_images")

    def control_of(self, row: Row) -> Row | None:
        """The random control of a row: that of its architecture; None if there is none, or it is one itself."""
        if row.control or not row.architecture:
            return None
        return next((other for other in self.rows if other.control and other.architecture == row.architecture), None)


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read the folder of ``loco-det evaluate``, finished or not.

    Args:
        folder: its ``--output``.

    Returns:
        Evaluation: runs that are missing, damaged or not finished stand in it as such.

    Raises:
        FileNotFoundError: if the folder has no evaluation.yaml.
        ValueError: if that file is damaged, or of a later version; one line that names it.
        OSError: if it cannot be read.
    """
    folder = Path(folder)
    content = read_settings(folder)
    if content is None:
        raise FileNotFoundError(f"{folder} is not an evaluation: it has no {FILE}")
    made = Evaluation(
        folder=folder,
        version=content.get("loco_det"),
        data=content["data"],
        budget=content.get("budget") or "",
        protocols=content["protocols"],
        seeds=content["seeds"],
        rates=content.get("rates") or {},
        settings={key: value for key, value in content.items() if key != "rows"},
        rows=[],
        commands=text_of(folder / "commands.txt").strip(),
    )
    made.rows = [_row(made, row) for row in content["rows"]]
    return made


def figure_of(run: Run, task: str = "bbox", metric: str = "AP") -> float | None:
    """A figure of a run on its first test set, in percent; None if it has none."""
    return next(iter(run.evaluations.values()), {}).get(task, {}).get(metric)


def _row(evaluation: Evaluation, content: dict[str, Any]) -> Row:
    folder = evaluation.folder / content["name"]
    row = Row(
        name=content["name"],
        folder=folder,
        checkpoints=content["checkpoints"],
        control=bool(content.get("control")),
        architecture=content.get("architecture"),
        sha256=[part for part in content.get("sha256") or [] if part],
        problem=content.get("problem") or "",
        conversions=list(_conversions(folder)),
    )
    if row.problem:
        return row
    for protocol in evaluation.detectors:
        place = folder / protocol
        row.seeds[protocol] = {seed: _run(place / f"seed{seed}") for seed in range(evaluation.seeds)}
        rates = evaluation.rates.get(protocol, [])
        if len(rates) > 1:
            row.choices[protocol] = {rate: _run(place / "choice" / folder_of(rate)) for rate in rates}
    row.readouts = {name: _run(folder / name) for name in READOUTS if name in evaluation.protocols}
    return row


def _conversions(folder: Path) -> Iterator[dict[str, Any]]:
    for file in [folder / "conversion.json", *sorted(folder.glob("seed*/conversion.json"))]:
        try:
            content = read_json(file)
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            yield content


def _run(folder: Path) -> Run:
    """The run of a folder; one with a ``problem`` if there is none that could be read."""
    if (folder / FAILED).is_file() and not (folder / "results.json").is_file():
        return lost_run(folder, "its loss exploded")
    try:
        return read_run(folder)
    except FileNotFoundError:
        return lost_run(folder, "not run yet")
    except NewerVersionError:
        return lost_run(folder, "of a later version")
    except (OSError, ValueError):
        return lost_run(folder, "damaged")
