"""The text of the Detectron2 config that a conversion writes beside the weights."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from pretrain.files.yaml_files import read_config

HEADER = "# Written by loco-det's converter"  # first line of its configs: others are never replaced


def config_text(
    config: dict, metadata: dict, config_file: str | os.PathLike, base: str | os.PathLike | None = None
) -> str:
    """The whole text of a config file.

    Args:
        config: what the weights need, nested.
        metadata: what the comments say of the weights' origin.
        config_file: where it will be, to which ``base`` is relative.
        base: a config for it to build upon.

    Raises:
        OSError, ValueError: if ``base`` cannot be read.
    """
    # In JSON, because a line break in a name would end the comment, and a checkpoint could write the config
    lines = [HEADER, *(f"# {key}: {json.dumps(value)}" for key, value in metadata.items())]
    lines.append("# The norm is the recipe's to choose: RESNETS.NORM BN, SyncBN and FrozenBN all read these weights.")
    if base is not None:  # relative, so that the folder can be moved with what is around it
        path = os.path.relpath(base, Path(config_file).parent)
        lines += yaml_lines({"_BASE_": path})
        if "PUBLISHED" in read_config(str(base)):  # figures for that config's weights, not for these
            lines += yaml_lines({"PUBLISHED": {"ROW": "", "BOX_AP": 0.0, "MASK_AP": 0.0}})
    return "\n".join([*lines, *yaml_lines(config)]) + "\n"


def yaml_lines(config: dict, indent: str = "") -> Iterator[str]:
    """Nested dictionaries as lines of YAML, in their order, with values in one line each."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from yaml_lines(value, indent + "  ")
        else:
            plain = not isinstance(value, str) or value.isprintable()  # a path may hold line breaks
            style = {"allow_unicode": plain, "default_style": None if plain else '"'}
            text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), **style)
            yield f"{indent}{key}: {text.splitlines()[0]}"
