"""Detectron2's checkpointer, but weights that do not fill the network are an error, and files are whole or absent."""

import os
import pickle

import torch
from detectron2.checkpoint import DetectionCheckpointer


class GuardedCheckpointer(DetectionCheckpointer):
    """Detectron2 only warns when weights are missing or of the wrong shape, and trains from random ones.

    Attributes:
        required: prefix of the parameters and buffers that a loaded file has to fill; "" for all of them.
    """

    required = "backbone.bottom_up."

    def load(self, path, *args, **kwargs):
        """As Detectron2's; raises FileNotFoundError if the file is missing, ValueError if it is no checkpoint."""
        if path and "://" not in path and not os.path.isfile(path):
            raise FileNotFoundError(f"MODEL.WEIGHTS {path}: no such file")
        self._path = path
        try:
            return super().load(path, *args, **kwargs)
        except (pickle.UnpicklingError, EOFError, UnicodeDecodeError, RuntimeError, TypeError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"{path} is not a checkpoint that Detectron2 can load: {reason}") from error

    def _load_model(self, checkpoint):
        if not isinstance(checkpoint["model"], dict):
            raise ValueError(f"{self._path} is not a checkpoint that Detectron2 can load: it holds no state dict")
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
        needed = [k for k in needed if k.startswith(self.required)]
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
        """As Detectron2's, through a temporary file beside it; OSError leaves the older files as they were."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **{k: v.state_dict() for k, v in self.checkpointables.items()}}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        temporary = f"{path}.tmp{os.getpid()}"
        try:
            torch.save({**data, **kwargs}, temporary)
            os.replace(temporary, path)
        except RuntimeError as error:  # torch's word for a full disk
            raise OSError(f"cannot write {path}: {error}") from error
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)
        self.tag_last_checkpoint(f"{name}.pth")
