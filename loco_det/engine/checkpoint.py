"""Detectron2's checkpointer, but nothing in a file is executed, weights that do not fill the network are an error, and
files are whole or absent."""

import os
import re
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer

from pretrain.files.atomic import write_whole
from pretrain.files.checkpoints import newest_of_all
from pretrain.files.safe_load import plain, read
from pretrain.files.text import for_terminal

# What reading a file's content as a checkpoint may raise
UNREADABLE = (
    EOFError, ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, ImportError,
    AssertionError, RecursionError,
)  # fmt: skip
LONGEST = 300  # characters of a reason in a message


class GuardedCheckpointer(DetectionCheckpointer):
    """Detectron2 only warns when weights are missing or of the wrong shape, and trains from random ones.

    Attributes:
        required: prefix of the parameters and buffers that a loaded file has to fill; "" for all of them.
    """

    required = "backbone.bottom_up."

    def load(self, path, *args, **kwargs):
        """As Detectron2's; raises FileNotFoundError if the file is missing, ValueError if it is no checkpoint."""
        check_file(path)
        self._path = path
        try:
            return super().load(path, *args, **kwargs)
        except UNREADABLE as error:
            if isinstance(error, ValueError) and str(error).startswith(str(path)):  # our own
                raise
            reason = (for_terminal(error) or type(error).__name__).strip()[:LONGEST]
            raise ValueError(f"{path} is not a checkpoint that Detectron2 can load: {reason}") from error

    def resume(self, check=lambda content: None):
        """Load the newest checkpoint of the folder that is whole, which process 0 chooses for all.

        Args:
            check: as of :func:`pretrain.files.checkpoints.newest_readable`.

        Returns:
            dict: what is in it beside the model and the checkpointables, such as "iteration".

        Raises:
            FileNotFoundError, ValueError: as :func:`newest_readable` and :meth:`load`.
        """
        return self.load(newest_of_all(self.save_dir, check))

    def _load_file(self, filename):
        """Detectron2 tells formats by names and unpickles a .pkl; here the content counts, and runs nothing."""
        try:
            content = read(filename, remedy="convert it with tools/convert_to_d2.py --unsafe-load")
            model = content.get("model", content.get("model_state")) if isinstance(content, dict) else None
            if model is None and isinstance(content, dict):
                model = content.get("blobs", content)  # Detectron1's; or a bare state dict
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

    def _load_model(self, checkpoint):
        # What is really given, after name matching and dropping of wrong shapes. load_state_dict's own list of missing
        # keys will not do: Detectron2's FrozenBatchNorm2d fills in missing running statistics and says nothing.
        given = set()
        hook = self.model.register_load_state_dict_pre_hook(lambda _, state_dict, *__: given.update(state_dict))
        try:
            incompatible = super()._load_model(checkpoint)
        finally:
            hook.remove()
        # BN counts its batches for a cumulative average only, which nothing here uses
        needed = [k for k in self.model.state_dict() if not k.endswith("num_batches_tracked")]
        prefix = self.required if any(k.startswith(self.required) for k in needed) else "backbone."  # without FPN
        # In C4 detectors the last stage of the ResNet is in the head; its norm behind that stage is new
        needed = [k for k in needed if k.startswith(prefix) or (prefix and re.match(r"roi_heads\.res5\.\d", k))]
        wrong = [k for k in needed if k not in given]
        if wrong:
            what = "the backbone" if self.required else "the detector"
            raise ValueError(
                f"{self._path} fills {len(needed) - len(wrong)} of {len(needed)} tensors of {what}; not {wrong[0]}, "
                "for one: convert a checkpoint with tools/convert_to_d2.py and use the config lines that it prints, "
                "or ask for random weights with MODEL.WEIGHTS random"
            )
        return incompatible

    def save(self, name, **kwargs):
        """As Detectron2's, whole or not at all; OSError leaves the older files as they were."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **{k: v.state_dict() for k, v in self.checkpointables.items()}}
        self.logger.info(f"Saving checkpoint to {os.path.join(self.save_dir, name)}.pth")
        write_whole(os.path.join(self.save_dir, f"{name}.pth"), lambda f: torch.save({**data, **kwargs}, f))
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename):
        """Let ``last_checkpoint`` name a file; OSError if it cannot be written."""
        write_whole(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)


def check_file(path):
    """Raise FileNotFoundError if ``path`` is a local file that is not there; URLs and "" pass."""
    url = urlparse(path)  # Detectron2 takes ?matching_heuristics=True after a name
    if path and not url.scheme and not os.path.isfile(url.path):
        raise FileNotFoundError(f"{path}: no such file")
