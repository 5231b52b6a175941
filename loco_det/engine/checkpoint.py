"""Checkpoints of a detector. Loading runs no code from a file and refuses incomplete weights; writing is atomic."""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import _IncompatibleKeys

from pretrain.engine.logs import log_to_file
from pretrain.files.atomic import write_whole
from pretrain.files.checkpoints import newest_of_all
from pretrain.files.remote import is_remote, local_copy, shown
from pretrain.files.safe_load import plain, read
from pretrain.files.text import for_terminal

# Exceptions of reading a file that is not a checkpoint
UNREADABLE = (
    EOFError, ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, ImportError,
    AssertionError, RecursionError,
)  # fmt: skip
LOADERS = ("fvcore.common.checkpoint", "detectron2.checkpoint.c2_model_loading")  # loggers
NOT_FOUND = "Some model parameters or buffers are not found in the checkpoint"  # fvcore's words
HEURISTICS = "?matching_heuristics=True"  # Detectron2's, behind the name of weights
PLAIN = "backbone.net."  # of a plain ViT under ViTDet's pyramid
LONGEST = 300  # characters of a reason in an error message


class GuardedCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer that refuses weights that are missing or of the wrong shape.

    Detectron2 only warns of them, and trains from random weights.

    Attributes:
        required: prefix of the parameters and buffers that a loaded file must fill; "": all.
    """

    required = "backbone.bottom_up."

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Detectron2's.

        Args:
            path: file or address, with ``?matching_heuristics=True`` behind it if wanted; "": nothing is loaded.
            args: as Detectron2's.
            kwargs: as Detectron2's.

        Returns:
            The content apart from the model and the checkpointables, such as "iteration".

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if it is no checkpoint, or does not fill what is ``required``.
        """
        check_file(path)
        self._path = shown(path)
        try:
            with _warnings_of_loading():
                return super().load(local_weights(path), *args, **kwargs)
        except UNREADABLE as error:
            if isinstance(error, ValueError) and str(error).startswith(self._path):  # raised below
                raise
            reason = (for_terminal(error) or type(error).__name__).strip()[:LONGEST]
            raise ValueError(f"{self._path} is not a checkpoint that Detectron2 can load: {reason}") from error

    def resume(self, check: Callable[[Any], None] = lambda content: None) -> dict[str, Any]:
        """Load the newest intact checkpoint in the folder; process 0 chooses it for all processes.

        Args:
            check: as in :func:`pretrain.files.checkpoints.newest_readable`.

        Returns:
            As :meth:`load`.

        Raises:
            FileNotFoundError, ValueError: as :func:`newest_readable` and :meth:`load`.
        """
        return self.load(newest_of_all(self.save_dir, check))

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Read a file by its content, without running code; Detectron2 goes by its name and unpickles a .pkl."""
        try:
            content = read(filename, remedy="convert it with tools/convert_to_d2.py --unsafe-load")
            model = content.get("model", content.get("model_state")) if isinstance(content, dict) else None
            if model is None and isinstance(content, dict):
                model = content.get("blobs", content)  # of Detectron 1, or a bare state dict
            content = {**content, "model": plain(model)} if isinstance(model, dict) else None
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{self._path} is not a checkpoint that Detectron2 can load: {error}") from None
        if content is None:
            raise ValueError(f"{self._path} is not a checkpoint that Detectron2 can load: it holds no state dict")
        if "model_state" in content:  # pycls
            content |= {"__author__": "pycls", "matching_heuristics": True}
        elif filename.endswith(".pkl") and "__author__" not in content:
            model = {key: value for key, value in content["model"].items() if not key.endswith("_momentum")}
            content = {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
        if self._parsed_url_during_load.query == "matching_heuristics=True":
            content["matching_heuristics"] = True
        elif self._parsed_url_during_load.query:
            raise ValueError(f"{self._path}: unknown option {self._parsed_url_during_load.query!r} behind its name")
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        # The names that reach the model, after name matching and dropping of wrong shapes. The missing keys that
        # load_state_dict returns are incomplete: Detectron2's FrozenBatchNorm2d fills in running statistics silently.
        given: set[str] = set()
        hook = self.model.register_load_state_dict_pre_hook(lambda _, state_dict, *__: given.update(state_dict))
        try:
            incompatible = super()._load_model(checkpoint)
        finally:
            hook.remove()
        # num_batches_tracked is used for cumulative averages only, which nothing here computes
        needed = [k for k in self.model.state_dict() if not k.endswith("num_batches_tracked")]
        prefixes = (
            [p for p in (self.required, PLAIN) if any(k.startswith(p) for k in needed)] if self.required else [""]
        )
        prefix = prefixes[0] if prefixes else "backbone."  # without FPN
        # In C4 detectors the last stage of the ResNet is in the head; the norm after that stage is new
        needed = [k for k in needed if k.startswith(prefix) or (prefix and re.match(r"roi_heads\.res5\.\d", k))]
        wrong = [k for k in needed if k not in given]
        if wrong:
            what = "the backbone" if self.required else "the detector"
            advice = "convert a checkpoint with tools/convert_to_d2.py and use the config lines that it prints"
            config = Path(urlparse(self._path).path).with_suffix(".yaml")
            if self.required and self._path.endswith(".pkl") and config.is_file():  # the converter's
                advice = f"these weights were converted with a config of their own, add --overlay {config}"
            raise ValueError(
                f"{self._path} fills {len(needed) - len(wrong)} of {len(needed)} tensors of {what}; not {wrong[0]}, "
                f"for one: {advice}, or ask for random weights with MODEL.WEIGHTS random"
            )
        return incompatible

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth`` atomically, and name it in ``last_checkpoint``.

        Args:
            name: of the file, without its suffix.
            kwargs: further content, such as the iteration.

        Raises:
            OSError: if it cannot be written; older files stay as they were.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **{k: v.state_dict() for k, v in self.checkpointables.items()}}
        self.logger.info(f"Saving checkpoint to {os.path.join(self.save_dir, name)}.pth")
        write_whole(os.path.join(self.save_dir, f"{name}.pth"), lambda f: torch.save({**data, **kwargs}, f))
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of a file into ``last_checkpoint``; raises OSError if it cannot be written."""
        write_whole(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)


@contextlib.contextmanager
def _warnings_of_loading() -> Iterator[None]:
    """Hold Detectron2's warnings back until it is known what they are worth: those that an error of ours sums up, and
    that of the parts which only begin to learn, are for log.txt alone."""
    held: list[logging.LogRecord] = []

    def hold(record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING:
            held.append(record)
        return record.levelno != logging.WARNING

    for name in LOADERS:
        logging.getLogger(name).addFilter(hold)
    failed = True
    try:
        yield
        failed = False
    finally:
        for name in LOADERS:
            logging.getLogger(name).removeFilter(hold)
        for record in held:
            if failed or record.getMessage().startswith(NOT_FOUND):
                log_to_file(record)
            else:
                logging.getLogger(record.name).handle(record)


def local_weights(path: str) -> str:
    """The local path of weights: an address is downloaded to the cache, everything else stays as it is.

    Args:
        path: file or address, with ``?matching_heuristics=True`` behind it if wanted, which stays.

    Raises:
        FileNotFoundError, ValueError, OSError: as :func:`pretrain.files.remote.local_copy`.
    """
    name = path.removesuffix(HEURISTICS)
    return local_copy(name) + path[len(name) :] if is_remote(name) else path


def check_file(path: str) -> None:
    """Raise FileNotFoundError if ``path`` is a local file that does not exist.

    An address is downloaded, and raises what :func:`local_weights` does. One that only Detectron2's path manager may
    know passes, and so does "".
    """
    url = urlparse(local_weights(path))  # without Detectron2's ?matching_heuristics=True
    if path and not url.scheme and not os.path.isfile(url.path):
        raise FileNotFoundError(f"{path}: no such file")
