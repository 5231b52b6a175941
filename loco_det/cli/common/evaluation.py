"""How an evaluation is planned: the rows that a command line names, their architectures, the recipes."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.files.text import for_terminal

if TYPE_CHECKING:
    from ...ranking.settings import Candidate, Settings
    from ...ranking.steps import Plan

FEATURES = "features"  # folder of the light head's stored features
# Keys that make a row what it is: set for all of them, rows or protocols would be the same
OWN_KEYS = re.compile(
    r"MODEL\.(WEIGHTS|ENCODER|TIMM\.NAME|BACKBONE\.FREEZE_AT)|DATASETS\.(TRAIN|TEST|HELD_OUT|CUSTOM\..*)|SEED|OUTPUT_DIR"
)
USUAL = {"model_final", "model", "checkpoint", "backbone", "last", "best", "pytorch_model", "final", "latest"}


def named_rows(words: list[str], seeds: int) -> list[Candidate]:
    """The rows that a command line names.

    Raises:
        ValueError: if two have one name, or a row has neither one checkpoint nor one for each seed.
        FileNotFoundError: if one is neither a file nor an address nor a published name.
    """
    from ...checkpoints import check_named
    from ...ranking.recipes import DETECTORS
    from ...ranking.settings import OWN_FILES, Candidate
    from ...ranking.steps import LINKS

    rows = []
    for word in words:
        found = None if os.path.lexists(word) else re.fullmatch(r"(\w[\w.+-]*)=(.+)", word)
        checkpoints = [word]
        if found:
            text = found[2]
            commas = r",(?=\w+://)" if "://" in text else ","  # an address may have commas of its own
            checkpoints = [text] if os.path.lexists(text) else re.split(commas, text)
        if len(checkpoints) not in (1, seeds):
            raise ValueError(f"{word}: {len(checkpoints)} checkpoints, but --seeds {seeds}: one, or one for each seed")
        for checkpoint in checkpoints:
            check_named(checkpoint)
        rows.append(Candidate(found[1] if found else name_of(word), checkpoints))
    name, count = Counter(row.name for row in rows).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} checkpoints are called {name}: name their rows, NAME=CHECKPOINT")
    own = {FEATURES, LINKS, *OWN_FILES, *(f"{name}.yaml" for name in DETECTORS)}
    if taken := [row.name for row in rows if row.name in own]:
        raise ValueError(f"{taken[0]} is what the evaluation calls a file of its own: name the row, NAME=CHECKPOINT")
    if reserved := [row.name for row in rows if row.name.startswith("random_")]:
        raise ValueError(f"{reserved[0]}: names with random_ are of the controls: name the row, NAME=CHECKPOINT")
    return rows


def name_of(checkpoint: str) -> str:
    """What a checkpoint is called in tables: its file's name, or the folder's if all of its files are called so."""
    path = checkpoint.split("://")[-1].rstrip("/").split("?")[0]
    folder, _, file = path.rpartition("/")
    stem = re.sub(r"(\.(pth|pt|tar|ckpt|pkl|safetensors|npz|bin))+$", "", file)
    if stem in USUAL and not folder:
        stem = Path.cwd().name if "://" not in checkpoint else stem
    elif stem in USUAL:
        stem = folder.rpartition("/")[2]
    return re.sub(r"[^\w.+-]+", "_", stem).lstrip(".+-") or "checkpoint"


def make_plan(args: argparse.Namespace, rows: list[Candidate]) -> Plan:
    """The plan of a command line, with the rows that the folder has already.

    Raises:
        ValueError: if options, data or the folder are refused.
        OSError: if a file is missing or cannot be read.
    """
    from detectron2.config import get_cfg

    from pretrain.processes.cores import usable_cores

    from ...config import add_loco_config
    from ...ranking.data import find_data
    from ...ranking.recipes import DETECTORS, HELD_OUT, base_config, recipe
    from ...ranking.settings import Settings, join_before
    from ...ranking.steps import Plan
    from .config import merge_config

    if own := [key for key in args.opts[::2] if OWN_KEYS.fullmatch(key)]:
        raise ValueError(f"--opts {own[0]}: the evaluation sets this key itself, for each row and protocol")
    boxes_only = args.budget == "minutes" or re.search(r"MODEL\.MASK_ON False", " ".join(args.opts))
    data = find_data(args.data, Path(os.environ.get("DETECTRON2_DATASETS", "datasets")), masks=not boxes_only)
    if not args.plan and not data.images.is_dir():
        raise FileNotFoundError(
            f"--data {data.name}: {data.images} is not there; DETECTRON2_DATASETS has to be the folder that holds it"
        )
    cfg = get_cfg()
    add_loco_config(cfg)
    names = argparse.Namespace(config_file=base_config(data, args.budget), overlay=args.overlay)
    names.opts = list(args.opts)
    merge_config(cfg, names)
    scheduled = "SOLVER.MAX_ITER" in args.opts
    given = [] if args.lrs == ["auto"] else args.lrs
    detectors = [name for name in DETECTORS if name in args.protocol]
    recipes = {name: recipe(cfg, data, args.budget, name, given, scheduled) for name in detectors}
    rates = {name: found.rates for name, found in recipes.items()}
    settings = Settings(data.record, args.budget, list(args.protocol), args.seeds, rates, HELD_OUT, list(args.opts),
                        list(args.overlay), list(args.labelled), data.notes, rows)  # fmt: skip
    settings = join_before(settings, args.output)
    choices = max(map(len, settings.rates.values()), default=0) > 1
    if choices and data.train_images * HELD_OUT < 100:
        raise ValueError(
            f"{data.train_images} training images are too few to choose a learning rate on {HELD_OUT} % of them: "
            "give a single one, --lrs"
        )
    for name in settings.protocols:
        if name in DETECTORS and name not in recipes:
            recipes[name] = recipe(cfg, data, args.budget, name, settings.rates[name], scheduled)
    if args.budget == "minutes" and "frozen" in recipes:  # shared by all seeds and rates of a backbone
        recipes["frozen"].keys["MODEL"]["LIGHT_HEAD"] = {"FEATURES": str(args.output / FEATURES)}
    if not args.no_control:
        add_controls(settings, args)
    cores = max(usable_cores() // args.jobs, 1)
    size = readout_size(settings.labelled[0]) if settings.labelled else 224
    return Plan(settings, data, recipes, args.output, cfg.MODEL.DEVICE, cores, args.num_gpus, size)


def readout_size(folder: str) -> int:
    """Side of the crops of labelled images in pixels: 224, or what the median of some smaller images has."""
    import statistics

    from PIL import Image

    from pretrain.files.image_folders import expect_folder

    expect_folder(folder, key="--labelled")
    sides = []
    for path in sorted(Path(folder).glob("*/*"))[::97][:50] or sorted(Path(folder).glob("*/*"))[:50]:
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
        except OSError:
            continue
    return min(max(round(statistics.median(sides) / 32) * 32, 32), 224) if sides else 224


def add_controls(settings: Settings, args: argparse.Namespace) -> None:
    """A row with random weights for each architecture, which is found in the checkpoints without converting them."""
    from ...ranking.settings import Candidate

    identify(settings, args, download=not args.plan)
    have = {row.architecture for row in settings.rows if row.control}
    for architecture in dict.fromkeys(row.architecture for row in settings.rows if row.architecture):
        if architecture in have:
            continue
        if lacks := why_no_control(architecture):
            print(f"warning: no random control of {architecture}: {lacks}", file=sys.stderr)
        else:
            settings.rows.append(Candidate(f"random_{architecture}", ["random"], True, architecture))


def why_no_control(architecture: str) -> str | None:
    """Why tools/pretrain.py, which makes random weights, has no such network of timm; None if it has, or is to see."""
    import torch

    from pretrain.encoders import build_encoder

    from ...ranking.recipes import is_timms

    if is_timms(architecture):
        try:
            with torch.device("meta"):
                build_encoder(f"timm:{architecture}")
        except ValueError as error:
            return str(error)
    return None


def identify(settings: Settings, args: argparse.Namespace, download: bool = True) -> None:
    """Find the architecture of each row's checkpoints, or why they are refused.

    Args:
        settings: whose rows are changed.
        args: of the command line.
        download: False: of an address, a ResNet-50 is taken for granted.

    Raises:
        ValueError: if checkpoints of a row have several architectures, or one has been replaced since it was converted.
    """
    from pretrain.files.atomic import sha256_of
    from pretrain.files.remote import is_remote

    from ...checkpoints import check_named, local_checkpoint
    from ...convert import load_source

    for row in settings.rows:
        if row.control or row.architecture or row.problem:
            continue
        found = set()
        for seed, checkpoint in enumerate(row.checkpoints):
            entry = check_named(checkpoint)
            if not download and (entry or is_remote(checkpoint)):
                found.add(entry.arch if entry else "resnet50")
                if not entry:
                    print(f"{for_terminal(row.name)}: not downloaded for a plan, which takes it for a ResNet-50")
                continue
            try:
                path = local_checkpoint(checkpoint)
                source, _ = load_source(path)
            except (OSError, ValueError) as error:
                row.problem = f"refused: {error}"
                print(f"warning: {for_terminal(row.name)}: {for_terminal(row.problem)}", file=sys.stderr)
                break
            found.add(source.arch)
            row.sha256.append(sha256_of(path) if Path(path).is_file() else "")
            refuse_replaced(checkpoint, row, args.output / row.place(seed), row.sha256[-1])
        if len(found) > 1:
            raise ValueError(f"{row.name}: its checkpoints are of several architectures: {', '.join(sorted(found))}")
        row.architecture = None if row.problem else found.pop()


def refuse_replaced(checkpoint: str, row: Candidate, folder: Path, sha256: str) -> None:
    """ValueError if a folder has the conversion of another checkpoint than the file that is there now."""
    from pretrain.files.schema import read_json

    try:
        before = read_json(folder / "conversion.json")["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if sha256 and before != sha256:
        raise ValueError(
            f"{checkpoint} has been replaced since {folder} was made of it (SHA-256 {before}, now {sha256}): "
            f"give it a row of its own, NAME={checkpoint}, or remove the folder of row {row.name}"
        )


def link_images(plan: Plan) -> None:
    """A folder with links to the training images, whole or not at all, if their own holds others, too."""
    import tempfile

    from ...ranking.steps import LINKS

    folder = plan.folder / LINKS
    if not plan.data.mixed or folder.exists() or not any(row.control for row in plan.settings.rows):
        return
    with tempfile.TemporaryDirectory(suffix=".tmp", dir=plan.folder) as temporary:
        links = Path(temporary) / LINKS
        links.mkdir()
        for number, path in enumerate(plan.data.mixed):
            (links / f"{number:07d}{path.suffix}").symlink_to(path.resolve())
        links.rename(folder)


def write_recipes(plan: Plan) -> None:
    """What each protocol merges over the config, as files that a user can read and use."""
    import yaml

    from pretrain.files.atomic import write_whole

    for name, found in plan.recipes.items():
        text = f"# {name}, budget {plan.settings.budget}: merged over {found.config}\n"
        write_whole(plan.folder / f"{name}.yaml", text + yaml.safe_dump(found.keys))
