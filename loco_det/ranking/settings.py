"""evaluation.yaml: the settings of an evaluation and its rows. A folder takes further rows, seeds and protocols of the
same settings, and nothing else."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pretrain.files.atomic import write_whole
from pretrain.files.schema import ANY, either, fault, flag, maybe, number, path, text, whole
from pretrain.files.version import version
from pretrain.files.yaml_files import parse_yaml

from .recipes import PROTOCOLS

FILE = "evaluation.yaml"
OWN_FILES = (FILE, "commands.txt", "index.html", "results.csv", "results.json")
VERSION = 1
MOST_SEEDS = 1000
_WORDS = maybe([text])


def _is_name(value: Any) -> bool:
    """Whether a value is the name of a folder in the evaluation's."""
    return path(value) and value not in ("", ".", "..") and not re.search(r"[/\\]", value)


_FILES = {ANY: maybe(either(text, [text]))}
SCHEMA = {
    "version": maybe(lambda value: whole(value) and value > 0),
    "loco_det": maybe(text),
    "data": {
        "name": maybe(text),
        **dict.fromkeys(("train", "test"), maybe(_FILES)),
        **dict.fromkeys(("train_images", "test_images"), maybe(whole)),
        "classes": _WORDS,
    },
    "budget": maybe(text),
    "protocols": [lambda value: value in PROTOCOLS],
    "seeds": lambda value: whole(value) and 0 < value <= MOST_SEEDS,
    "rates": maybe({ANY: [number]}),
    "held_out": maybe(whole),
    **dict.fromkeys(("options", "overlays", "labelled", "notes"), _WORDS),
    "rows": [
        {
            "name": _is_name,
            "checkpoints": lambda value: bool(value) and not fault(value, [text]),
            "control": maybe(flag),
            "architecture": maybe(text),
            "sha256": _WORDS,
            "problem": maybe(text),
        }
    ],
}
FIXED = ("data", "budget", "held_out", "options", "overlays")


@dataclass
class Candidate:
    """A checkpoint that is evaluated, or a control: a row of the ranking.

    Attributes:
        name: of the line and of its folder.
        checkpoints: as the user named them: one for all seeds, or one for each; of a control ["random"].
        control: whether the weights are random, with calibrated BN.
        architecture: name of the encoder; None: not known, as the checkpoint was refused.
        sha256: of the checkpoints' files.
        problem: why it has no figures; "": it has, or will have.
    """

    name: str
    checkpoints: list[str]
    control: bool = False
    architecture: str | None = None
    sha256: list[str] = field(default_factory=list)
    problem: str = ""

    def place(self, seed: int) -> str:
        """Folder of the backbone for a seed, relative to the evaluation's."""
        return f"{self.name}/seed{seed}" if self.control or len(self.checkpoints) > 1 else self.name


@dataclass
class Settings:
    """What an evaluation is.

    Attributes:
        data: of :class:`.data.Data`, its record.
        budget: a key of :data:`.recipes.BUDGETS`.
        protocols: of :data:`.recipes.PROTOCOLS`.
        seeds: how many; they are 0, 1, ...
        rates: protocol -> learning rates that are chosen from.
        held_out: percent of the training images that they are chosen on.
        options: KEY VALUE pairs for all detectors.
        overlays: configs for all detectors.
        labelled: folders of labelled images to train and test readouts on; empty: none.
        notes: what a reader of the figures has to know, a sentence each.
        rows: the rows.
    """

    data: dict[str, Any]
    budget: str
    protocols: list[str]
    seeds: int
    rates: dict[str, list[float]]
    held_out: int
    options: list[str]
    overlays: list[str]
    labelled: list[str]
    notes: list[str]
    rows: list[Candidate]

    def write(self, folder: Path) -> None:
        """Write the file, whole or not at all; OSError if it cannot be written."""
        content = {"version": VERSION, "loco_det": version(), **asdict(self)}
        write_whole(folder / FILE, yaml.safe_dump(content, sort_keys=False))


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The content of evaluation.yaml; None if there is none.

    Raises:
        ValueError: if it is damaged, or of a later version; one line that names it.
        OSError: if it cannot be read.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    content = parse_yaml(file.read_bytes(), file)
    version = content.get("version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise ValueError(f"{file} has version {version}, this loco-det reads up to {VERSION}: use a later one")
    if place := fault(content, SCHEMA):
        raise ValueError(f"{file} is damaged ({place})")
    return content


def join_before(settings: Settings, folder: Path) -> Settings:
    """The settings with the rows, protocols and seeds that the folder has already.

    Args:
        settings: of this call.
        folder: of the evaluation.

    Raises:
        ValueError: if the folder holds an evaluation of other settings, a row of the same name that is another
            checkpoint, or files of something else; or if a row has neither one checkpoint nor one for each seed.
    """
    before = read_settings(folder)
    if before is None:
        if other := [name for name in OWN_FILES[1:] if (folder / name).exists()]:
            raise ValueError(f"{folder} has the {other[0]} of something else: choose another --output")
        return settings
    now = asdict(settings)
    changed = [key for key in FIXED if before.get(key) != now[key]]
    labelled = before.get("labelled") or []
    changed += ["labelled"] if labelled and settings.labelled not in ([], labelled) else []
    shared = set(before.get("rates") or {}) & set(settings.rates)
    changed += [f"rates of {name}" for name in sorted(shared) if before["rates"][name] != settings.rates[name]]
    if changed:
        raise ValueError(
            f"{folder} holds an evaluation with other settings ({', '.join(changed)}), and a ranking compares equal "
            "ones only: choose another --output, or remove that folder"
        )
    names = {row.name: row for row in settings.rows}
    kept = []
    for known in before.get("rows") or []:
        row = names.get(known["name"])
        if row and row.checkpoints != known["checkpoints"]:
            raise ValueError(
                f"{folder} has a row {row.name} of {', '.join(known['checkpoints'])}: give this one another name, "
                f"NAME={','.join(row.checkpoints)}"
            )
        if not row:
            kept.append(Candidate(**{key: known[key] for key in Candidate.__dataclass_fields__ if known.get(key)}))
            if kept[-1].control:  # nobody names it, to try it again
                kept[-1].problem = ""
    settings.rows = sorted([*kept, *settings.rows], key=lambda row: row.control)  # controls are last
    settings.protocols = [*dict.fromkeys([*(before.get("protocols") or []), *settings.protocols])]
    settings.rates = {**(before.get("rates") or {}), **settings.rates}
    settings.seeds = max(settings.seeds, before.get("seeds") or 0)
    settings.labelled = settings.labelled or labelled
    for row in settings.rows:
        if len(row.checkpoints) not in (1, settings.seeds):
            raise ValueError(
                f"{folder} would have {settings.seeds} seeds in all rows, but {row.name} has {len(row.checkpoints)} "
                "checkpoints: one, or one for each seed"
            )
    return settings
