"""Which encoder is better, and is any better than chance: means over seeds, and differences seed by seed."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pretrain.files.tables import MeanHalf

from ..report.verdicts import Difference, paired, t95, verdict
from ..runs.folder import Run
from ..runs.summary import comparability
from .evaluation import Evaluation, Row, figure_of
from .sampling import ImageError

METRICS = {"bbox": "box AP", "segm": "mask AP"}
WORDS = {"frozen": "frozen", "finetune": "fine-tuned"}
LIGHT = "light head"
MOST = 4  # settings that are named of those that differ

# Runs of one row and of another, seed by seed, and the task -> the sampling error of the difference of their APs over
# test images; None: not known
Sampled = Callable[[Sequence[Run], Sequence[Run], str], ImageError | None]


@dataclass(frozen=True)
class Entry:
    """A row's figure.

    Attributes:
        row: the row.
        values: seed -> AP in percent.
        missing: seed -> why there is no figure of it.
        published: AP of the published row that all of its runs are; None: they are none.
    """

    row: Row
    values: dict[int, float]
    missing: dict[int, str] = field(default_factory=dict)
    published: float | None = None

    @property
    def mean(self) -> float:
        """Over the seeds that there are."""
        return statistics.mean(self.values.values())

    @property
    def half(self) -> float | None:
        """Of the 95 % interval of Student's t, to each side; None of one seed."""
        count = len(self.values)
        if count < 2:
            return None
        return t95(count - 1) * statistics.stdev(self.values.values()) / math.sqrt(count)

    @property
    def figure(self) -> float | MeanHalf:
        """The mean with its interval, for a table."""
        return self.mean if self.half is None else MeanHalf(self.mean, self.half)


@dataclass(frozen=True)
class Comparison:
    """The difference of two rows.

    Attributes:
        first, second: names of the rows.
        kind: "control": the second is the first's random control; "neighbour": the next one in the ranking.
        difference: first − second, over the seeds that both have.
        over_images: sampling error of the difference over test images; None: not known.
        sentence: what it says, in words.
    """

    first: str
    second: str
    kind: str
    difference: Difference
    over_images: ImageError | None
    sentence: str


@dataclass(frozen=True)
class Ranking:
    """Rows whose figures may be compared, the best first.

    Attributes:
        protocol: "frozen" or "finetune".
        task: "bbox" or "segm".
        key: comparability key of all runs; None: their files have none.
        settings: what the key stands for.
        entries: at least one.
        comparisons: with the controls, and between neighbours.
        note: why these rows are apart from the first ranking of the protocol; "": they are that.
    """

    protocol: str
    task: str
    key: str | None
    settings: dict[str, Any]
    entries: list[Entry]
    comparisons: list[Comparison]
    note: str = ""

    @property
    def metric(self) -> str:
        """Such as "box AP"."""
        return METRICS[self.task]

    def entry(self, name: str) -> Entry | None:
        """The entry of a row; None if it has none here."""
        return next((entry for entry in self.entries if entry.row.name == name), None)

    def comparison(self, first: str, kind: str = "control") -> Comparison | None:
        """The comparison of a row with its control, or with its next neighbour."""
        return next((one for one in self.comparisons if one.first == first and one.kind == kind), None)


def rank(evaluation: Evaluation, sampled: Sampled | None = None) -> list[Ranking]:
    """The rankings of an evaluation.

    Args:
        evaluation: as it was read.
        sampled: gives the sampling error of a difference over test images; None: it is not known.

    Returns:
        For each protocol and task that has figures the ranking of most rows, and behind it those of other keys.
    """
    found: list[Ranking] = []
    for protocol in evaluation.detectors:
        for task in METRICS:
            groups = _groups(evaluation, protocol, task)
            for place, (key, entries) in enumerate(groups):
                settings = _settings(entries[0].row, protocol, key)
                note = "" if not place else _apart(settings, found[-place].settings, key)
                comparisons = list(_compared(evaluation, protocol, task, entries, key, sampled))
                found.append(Ranking(protocol, task, key, settings, entries, comparisons, note))
    return found


def headlines(evaluation: Evaluation, rankings: Sequence[Ranking]) -> list[str]:
    """What answers the question, a sentence for each protocol.

    Args:
        evaluation: what was ranked.
        rankings: as :func:`rank` returns them.

    Returns:
        Such as ["loco frozen 6.6 box AP, random 4.1: +2.5, one seed, 50 images."].
    """
    sentences = []
    for protocol in evaluation.detectors:
        ranking = next((one for one in rankings if one.protocol == protocol and one.task == "bbox"), None)
        best = ranking and next((entry for entry in ranking.entries if not entry.row.control), None)
        if ranking and best:
            sentences.append(_answer(evaluation, ranking, best))
    return sentences or ["No detector has been evaluated yet."]


def protocol_word(evaluation: Evaluation, protocol: str) -> str:
    """How a protocol is called in tables and sentences."""
    return LIGHT if evaluation.is_light and protocol == "frozen" else WORDS[protocol]


def with_half(difference: Difference) -> str:
    """A difference with its interval, such as "+2.5 ± 0.4"."""
    return f"{difference.mean:+.1f}" + ("" if difference.half is None else f" ± {difference.half:.1f}")


def _answer(evaluation: Evaluation, ranking: Ranking, best: Entry) -> str:
    word = protocol_word(evaluation, ranking.protocol)
    word = f"with a {LIGHT}" if word == LIGHT else word
    others = [entry for entry in ranking.entries if not entry.row.control]
    text = f"{best.row.name} {word} {best.mean:.1f} {ranking.metric}"
    if len(others) > 1:
        text = f"{word.capitalize()}, {best.row.name} is best of {len(others)}: {best.mean:.1f} {ranking.metric}"
    chance, seeds = ranking.comparison(best.row.name), len(best.values)
    control = chance and ranking.entry(chance.second)
    if chance and control:
        text += f", random {control.mean:.1f}: {with_half(chance.difference)}"
        text += " (not above chance)" if _is_open(chance) else ""
        seeds = chance.difference.seeds
    else:
        text += ", no random control"
    text += f", {'one seed' if seeds == 1 else f'{seeds} seeds'}"
    text += " that both have" if control and {*control.values} != {*best.values} else ""
    text += f", {evaluation.test_images} images" if evaluation.test_images else ""
    second = ranking.comparison(best.row.name, "neighbour")
    return f"{text}; it cannot be told apart from {second.second}." if second and _is_open(second) else f"{text}."


def _is_open(comparison: Comparison) -> bool:
    """Whether the first may be no better than the second: an interval goes below 0, or there is none and it is not."""
    mean, half, _ = comparison.difference
    return mean <= max(half or 0, comparison.over_images.half if comparison.over_images else 0)


def _groups(evaluation: Evaluation, protocol: str, task: str) -> list[tuple[str | None, list[Entry]]]:
    """Key and entries, the best first, of the runs of equal keys; the largest group first."""
    groups: dict[str | None, list[Entry]] = {}
    for row in evaluation.rows:
        by_key: dict[str | None, dict[int, float]] = {}
        missing, runs = {}, row.seeds.get(protocol, {})
        for seed, run in runs.items():
            figure = figure_of(run, task)
            if figure is None or not math.isfinite(figure):
                missing[seed] = run.state if not run.results else f"no {METRICS[task]}"
            else:
                by_key.setdefault(comparability(run).get("key"), {})[seed] = figure
        for key, values in by_key.items():
            published = None if evaluation.is_light else _published([runs[seed] for seed in values], task)
            groups.setdefault(key, []).append(Entry(row, values, missing, published))
    for entries in groups.values():
        entries.sort(key=lambda entry: -entry.mean)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _published(runs: Sequence[Run], task: str) -> float | None:
    rows = [run.published for run in runs]
    known = {
        getattr(row, f"{'box' if task == 'bbox' else 'mask'}_ap") if row and row.comparable else None for row in rows
    }
    return known.pop() if len(known) == 1 else None


def _settings(row: Row, protocol: str, key: str | None) -> dict[str, Any]:
    about = (comparability(run) for run in row.seeds[protocol].values())
    settings = next((found.get("settings") for found in about if found.get("key") == key), None)
    return settings if isinstance(settings, dict) else {}


def _apart(settings: dict[str, Any], others: dict[str, Any], key: str | None) -> str:
    """Why rows are not in the first ranking."""
    if key is None:
        return "Not comparable with the ranking above: these runs do not say under which settings they were made."
    one, other = dict(_flat(settings)), dict(_flat(others))
    names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    texts = [f"{name} {one.get(name, 'none')}, above {other.get(name, 'none')}" for name in names[:MOST]]
    texts += [f"and {len(names) - MOST} more"] if len(names) > MOST else []
    return f"Not comparable with the ranking above: other settings ({'; '.join(texts) or 'their key differs'})."


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for name, value in settings.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return pairs


def _compared(evaluation, protocol, task, entries, key, sampled):
    """The comparisons of a group: each row with its control, then neighbours that are not compared yet."""
    by_name = {entry.row.name: entry for entry in entries}
    pairs = []
    for entry in entries:
        control = evaluation.control_of(entry.row)
        if control and control.name in by_name:
            pairs.append((entry, by_name[control.name], "control"))
    done = {frozenset((first.row.name, second.row.name)) for first, second, _ in pairs}
    for first, second in zip(entries, entries[1:], strict=False):
        if frozenset((first.row.name, second.row.name)) not in done:
            pairs.append((first, second, "neighbour"))
    for first, second, kind in pairs:
        difference = paired(first.values, second.values)
        if difference:
            yield _comparison(first, second, kind, difference, protocol, task, sampled)


def _comparison(first, second, kind, difference, protocol, task, sampled):
    seeds = [seed for seed in first.values if seed in second.values]
    runs = [[entry.row.seeds[protocol][seed] for seed in seeds] for entry in (first, second)]
    error = sampled(*runs, task) if sampled else None
    sentence = verdict(first.row.name, second.row.name, difference, METRICS[task], error, kind == "control")
    return Comparison(first.row.name, second.row.name, kind, difference, error, sentence)
