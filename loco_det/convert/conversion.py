"""Convert a checkpoint to a verified file for ``MODEL.WEIGHTS`` and its config; and back to torchvision's names."""

import datetime
import os
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from pretrain.encoders import EncoderSpec
from pretrain.files.atomic import write_new
from pretrain.files.config_names import name_of_today
from pretrain.files.remote import shown
from pretrain.files.safe_load import checksum

from .config_text import HEADER, config_text
from .detectron2_names import to_detectron2
from .networks import detectron2_config, in_detectron2
from .sources.checkpoint_file import read_checkpoint
from .sources.conventions import Conventions
from .sources.source import load_source, load_source_of, load_timm
from .sources.source_type import Source
from .verify import Difference, source_features, verify
from .writing import check_folder, staged


@dataclass
class Conversion:
    """What was converted, and by how much the features differ.

    Attributes:
        output: the written file, as the caller named it; None if nothing was to be written.
        config_file: the Detectron2 config written beside it, or None.
        config: the part of a Detectron2 config that the weights need, nested.
        source: what was read.
        entries: number of arrays in the written file.
        size: of the written file, in bytes.
        sha256: of the source file, in hexadecimal.
        date: of the conversion, ISO 8601, UTC.
        differences: "eval" and "train" -> {stage name: Difference}, Detectron2's backbone against the encoder.
    """

    output: str | None
    config_file: str | None
    config: dict
    source: Source
    entries: int
    size: int
    sha256: str
    date: str
    differences: dict[str, dict[str, Difference]]

    @property
    def metadata(self) -> dict[str, str]:
        """What the written files say of their origin."""
        source = {key: getattr(self.source, key) for key in ("layout", "location", "arch")}
        return {"source": self.source.path.name, **source, "sha256": self.sha256, "date": self.date}

    def as_dict(self) -> dict:
        """Plain values for JSON, in the order of the attributes."""
        found = {attribute.name: getattr(self, attribute.name) for attribute in fields(self)}
        differences = {
            mode: {name: difference._asdict() for name, difference in stages.items()}
            for mode, stages in self.differences.items()
        }
        return {**found, "source": self.source.as_dict(), "differences": differences}


def convert(
    checkpoint: str | os.PathLike, output: str | os.PathLike, base: str | os.PathLike | None = None, **options: Any
) -> Conversion:
    """Convert a checkpoint to Detectron2's format. The written file is verified before it gets its name.

    Args:
        checkpoint: what :func:`loco_det.convert.load_source` reads: a file, a folder, an address, a published name.
        output: the file to write, ``*.pkl``; its config goes beside it, ``*.yaml``. Both are replaced only when
            everything went well.
        base: a config for the written one to build upon (its ``_BASE_``).
        options: of ``load_source``: arch, source, ema, prefix, unsafe, config_file.

    Returns:
        Conversion: a summary.

    Raises:
        FileNotFoundError: if the checkpoint, ``base``, or the folder of ``output`` does not exist.
        ValueError: if the checkpoint or the name ``output`` cannot be used; one line with the path.
        VerificationError: if the written file does not reproduce the source network.
        OSError: if ``output`` cannot be written.
    """
    check_output(checkpoint, output, base)
    task = _task(checkpoint, os.path.abspath(output), **options)
    source, weights = task.source, task.weights
    config_file = Path(output).with_suffix(".yaml")
    result = _summary(output, config_file, task.config, source, len(weights))
    with staged(config_file, output) as (temporary_config, temporary):
        content = {
            **_content(weights),
            # Read by our own converter only: Detectron2 returns further keys to the caller of load(), who ignores them.
            "config": task.config,
            "pretraining": source.pretraining,  # for loco_det/runs/published.py
            **result.metadata,
        }
        write_new(temporary, partial(pickle.dump, content), output)
        task.weights = {}  # in memory they would be there twice when the file is read back
        del weights, content
        write_new(temporary_config, config_text(task.config, result.metadata, config_file, base), config_file)
        result.differences = task.verify(temporary, temporary_config)
        result.size = temporary.stat().st_size
    return result


@dataclass
class _Task:
    """A conversion that has begun.

    Attributes:
        source: what the checkpoint was found to be.
        weights: names in Detectron2's backbone -> tensors.
        config: the part of a Detectron2 config that they need.
        verify: function of the written weights and config, temporary files, that returns the differences.
    """

    source: Source
    weights: dict[str, torch.Tensor]
    config: dict
    verify: Callable[[Path, Path], dict[str, dict[str, Difference]]]


def _task(checkpoint, output, unsafe=False, config_file=None, **options):
    """What :func:`convert` is to do, and the features of the source network."""
    file = read_checkpoint(checkpoint, unsafe, config_file, by_name=options.get("source") != "detectron2")
    if network := load_timm(file, **options):
        from .timm.proof import network_config, source_maps, verify_network  # import timm, which takes seconds

        source, weights = network
        config, maps = network_config(source.arch, source.conventions, output), source_maps(source, weights)
        named = {f"network.{name}": tensor for name, tensor in weights.weights.items()}
        return _Task(source, named, config, lambda path, text: verify_network(path, text, maps))
    source, state_dict = load_source_of(file, **options)
    wanted = source_features(source.encoder, state_dict, source.conventions)
    config = detectron2_config(source.encoder, source.conventions, output)
    weights = _to_backbone(source.encoder, state_dict)
    return _Task(source, weights, config, lambda path, _: verify(path, config, source.conventions, wanted))


def _content(weights):
    """What Detectron2 reads of a .pkl file with these weights."""
    model = {name: tensor.numpy() for name, tensor in weights.items()}
    return {
        "model": model,
        "checksum": checksum(model),  # a .pkl has none of its own; our own reader compares it
        "__author__": "loco-det",  # Detectron2 takes a .pkl without an author for Caffe2's
        "matching_heuristics": True,  # lets the names be found under backbone.bottom_up. or any other prefix
    }


def _to_backbone(encoder: EncoderSpec, state_dict: dict) -> dict:
    """The state dict with the names of the backbone that Detectron2 builds for this encoder."""
    return to_detectron2(state_dict) if in_detectron2(encoder) else _to_encoder_backbone(state_dict)


def _to_encoder_backbone(state_dict):
    """The names in ``loco_det.modeling.backbones.EncoderBackbone``."""
    return {f"encoder.{name}": tensor for name, tensor in state_dict.items()}


def _summary(output, config_file, config, source, entries):
    """A Conversion that is not done yet."""
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    config_file = config_file and str(config_file)
    return Conversion(str(output), config_file, config, source, entries, 0, source.sha256, date, {})


def check(checkpoint: str | os.PathLike, **options: Any) -> Conversion:
    """Do everything that :func:`convert` does, in a folder of its own that is removed; returns and raises the same."""
    with tempfile.TemporaryDirectory() as folder:
        result = convert(checkpoint, Path(folder) / "checked.pkl", **options)
    result.config["MODEL"]["WEIGHTS"] = ""
    return replace(result, output=None, config_file=None)


def convert_back(checkpoint: str | os.PathLike, output: str | os.PathLike, **options: Any) -> Conversion:
    """Turn the backbone of a Detectron2 checkpoint into a state dict, verified from the written file.

    Args:
        checkpoint: a detector or backbone of Detectron2: .pth of a run, or .pkl.
        output: the file to write, for ``torch.load``: names and types are torchvision's, or those of the encoder of
            ``pretrain``, so that converting there and back gives the same bits.
        options: of ``load_source``: arch, config_file.

    Returns:
        Conversion: a summary; its ``config_file`` is None.

    Raises:
        as :func:`convert`.
    """
    if Path(output).suffix == ".pkl":
        raise ValueError(f"{output}: a state dict of torch.save, which Detectron2 cannot read by that name: use .pth")
    check_folder(checkpoint, output, by_name=False)
    source, state_dict = load_source(checkpoint, source="detectron2", **options)
    if source.conventions.stride_in_1x1:
        raise ValueError(
            f"{shown(checkpoint)}: trained with STRIDE_IN_1X1 True, while torchvision's ResNet has its strides in the "
            "3x3 convs: no torchvision network computes its features"
        )
    pixels = source.conventions[:3]
    if pixels != Conventions()[:3]:
        source.notes.append("it expects {} images with mean {} and std {}, from 0 to 255".format(*pixels))
    config = detectron2_config(source.encoder, source.conventions, str(checkpoint))
    result = _summary(output, None, config, source, len(state_dict))
    with tempfile.TemporaryDirectory() as folder, staged(output) as (temporary,):
        write_new(temporary, partial(torch.save, state_dict), output)
        # The checkpoint's own names, but not the checkpoint itself: Detectron2 would unpickle whatever is in a .pkl,
        # and in a detector there is more than the backbone.
        names = _names_in_backbone(source, state_dict)
        weights, again = {names[name]: tensor for name, tensor in state_dict.items()}, Path(folder) / "backbone.pkl"
        write_new(again, partial(pickle.dump, _content(weights)))
        del weights, state_dict  # in memory they would be there twice when the files are read back
        written = torch.load(temporary, weights_only=True, mmap=True)
        wanted = source_features(source.encoder, written, source.conventions)
        del written
        result.differences = verify(again, config, source.conventions, wanted)
        result.size = temporary.stat().st_size
    return result


def _names_in_backbone(source, state_dict):
    """Names of the state dict -> those in the backbone of Detectron2: the checkpoint's own, where they are these."""
    ours = _to_backbone(source.encoder, {name: name for name in state_dict})
    names = dict(zip(state_dict, ours, strict=True))
    renamed = in_detectron2(source.encoder) and source.location.endswith("encoder.")  # was an EncoderBackbone
    return names if renamed else names | source.names


def check_output(
    checkpoint: str | os.PathLike, output: str | os.PathLike, base: str | os.PathLike | None = None
) -> None:
    """Refuse, before anything is read, a file name that could not be written or that Detectron2 could not open.

    Raises:
        FileNotFoundError: if the folder of ``output`` or the config ``base`` does not exist.
        ValueError: if the name cannot be used.
    """
    output = Path(output)
    if output.suffix != ".pkl":
        raise ValueError(f"{output}: the name must end in .pkl, by which Detectron2 tells the format")
    if urlparse(str(output))._replace(query="").geturl() != str(output):
        raise ValueError(f"{output}: Detectron2 reads this name as a URL and drops a part of it, choose another name")
    check_folder(checkpoint, output)
    config = output.with_suffix(".yaml")
    if config.exists() and (config.is_dir() or not config.read_bytes().startswith(HEADER.encode())):
        raise ValueError(f"{config}: would be replaced, and is no config of this converter's: choose another name")
    if base is not None and not os.path.isfile(base):
        today = name_of_today(base)
        raise FileNotFoundError(f"{base}: no such config file" + (f", it is {today} now" if today else ""))
