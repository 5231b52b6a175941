"""A checkpoint's file, read once: what comes later gets its content and its neighbours' from here, and no path."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pretrain.files.safe_load import read
from pretrain.files.text import for_terminal
from pretrain.files.yaml_files import parse_yaml, read_config

from ...checkpoints import local_checkpoint
from .messages import first_few

FORMAT = "loco-det pretraining"  # what our pretraining checkpoints say they are
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks for them


@dataclass
class CheckpointFile:
    """A checkpoint that was read, and the files beside it, each of which is read when it is first asked for.

    Attributes:
        path: of the file; if a folder was named, of that in it. For messages: whoever has this object opens nothing.
        content: nested dictionaries of tensors; those of a torch archive stay in the file (memory-mapped) until used.
        notes: what the user should know of the choice of the file, a line each.
        config_file: of the run, as named by the user, or None.
    """

    path: Path
    content: Any
    notes: list[str] = field(default_factory=list)
    config_file: str | os.PathLike | None = None
    _json: dict = field(default_factory=dict, init=False, repr=False)

    def get(self, key: str) -> Any:
        """The content's value of a key; None if it is no dictionary, or has no such key."""
        return dict.get(self.content, key) if isinstance(self.content, dict) else None

    @property
    def is_ours(self) -> bool:
        """Whether it says that it is one of our pretraining checkpoints."""
        return self.get("format") == FORMAT

    @cached_property
    def pretraining_config(self) -> Any:
        """The config, a text, in one of our pretraining checkpoints, parsed; raises an error if it has none."""
        return parse_yaml(self.content["config"], "its config")

    def json_beside(self, name: str) -> dict | None:
        """The object in the JSON file of that name beside the checkpoint, None without such a file.

        Raises:
            ValueError: if it cannot be read or holds no object.
        """
        if name not in self._json:
            self._json[name] = _read_json(self.path.parent / name)
        return self._json[name]

    @cached_property
    def run_config(self) -> Any:
        """The config of a Detectron2 run: ``config_file``, or the ``config.yaml`` beside the checkpoint, or None.

        Raises:
            FileNotFoundError: if there is no file ``config_file``.
            ValueError: if it cannot be read.
        """
        beside = self.path.parent / "config.yaml"
        if not self.config_file and not beside.is_file():
            return None
        try:
            return read_config(str(self.config_file or beside))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error.filename or self.config_file}: no such config file") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.config_file or beside} is no config that can be read ({error})") from None


def read_checkpoint(
    path: str | os.PathLike,
    unsafe: bool = False,
    config_file: str | os.PathLike | None = None,
    by_name: bool = True,
) -> CheckpointFile:
    """Read a checkpoint of any format; the only place of the converter that opens one.

    Args:
        path: the file: .pth, .pt, .tar, .ckpt, .safetensors, .pkl, .npz; or a folder of Hugging Face's transformers; or
            an address or a name of a file that is downloaded (:func:`loco_det.checkpoints.local_checkpoint`).
        unsafe: unpickle whatever is in the file, which can run code that it brings along.
        config_file: of the run, for Detectron2's checkpoints; None: the ``config.yaml`` beside the file.
        by_name: whether ``path`` may be the name of a published checkpoint.

    Returns:
        CheckpointFile.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read; one line that begins with the path.
        OSError: if it cannot be downloaded; one line that begins with the address.
    """
    path = local_checkpoint(path, by_name)
    with errors_naming(path):
        weights, notes = weights_file(path)
    with errors_naming(weights):
        return CheckpointFile(Path(weights), read(weights, unsafe), notes, config_file)


@contextmanager
def errors_naming(path: str | os.PathLike) -> Iterator[None]:
    """Let the ValueErrors and FileNotFoundErrors of a block begin with the path, in one line."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(for_terminal(f"{path}: {error}")) from None


def weights_file(path: str | os.PathLike) -> tuple[str | os.PathLike, list[str]]:
    """The file with the weights: ``path`` itself, or what transformers would load of a folder.

    Returns:
        tuple: path, and notes for the user.

    Raises:
        ValueError: if it is a folder without one such file; one line without the path.
    """
    if not os.path.isdir(path):
        return path, []
    path = Path(path)
    there = [name for name in WEIGHTS if (path / name).is_file()]
    if there:
        beside = f" ({there[1]} is left)" if there[1:] else ""
        return path / there[0], [f"of the folder {path.name!r}, {there[0]} was read{beside}"]
    if shards := [name for name in WEIGHTS if (path / f"{name}.index.json").exists()]:
        raise ValueError(
            f"a folder whose {shards[0]} is split into several files: save it as one, with transformers' "
            "save_pretrained(folder, max_shard_size='100GB')"
        )
    if gone := [name for name in WEIGHTS if (path / name).is_symlink()]:
        raise ValueError(f"a folder whose {gone[0]} is a link to a file that is not there: download it again")
    if inside := sorted(found for name in WEIGHTS for found in path.glob(f"snapshots/*/{name}") if found.is_file()):
        snapshot = str(inside[0].parent.relative_to(path))
        raise ValueError(f"the hub's cache folder: name the snapshot in it, {snapshot!r}")
    names = sorted(os.listdir(path))
    listed = f"it holds {first_few(map(repr, names))}" if names else "it is empty"
    raise ValueError(
        f"a folder, expected a checkpoint file, or a folder of transformers with {' or '.join(WEIGHTS)}; {listed}"
    )


def _read_json(path: Path) -> dict | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} beside it cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} beside it holds no JSON object")
    return content
