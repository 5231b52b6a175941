"""Checkpoints: everything needed to go on exactly, written atomically."""

import os

import torch
from fvcore.common.checkpoint import Checkpointer

FORMAT = "loco-det pretraining"  # by which the converter knows our files


class AtomicCheckpointer(Checkpointer):
    """fvcore's Checkpointer, whose files are complete or not there.

    No state of a random generator is stored because none is used: the order of the data and every augmentation are
    functions of the seed and of the position in the stream (``pretrain/data.py``).
    """

    def save(self, name, **kwargs):
        """Write ``name.pth`` and name it in ``last_checkpoint``; OSError leaves the older files as they were."""
        if not self.save_to_disk:
            return
        data = {"format": FORMAT, "model": self.model.state_dict(), **kwargs}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        self.logger.info(f"Saving checkpoint to {os.path.join(self.save_dir, name)}.pth")
        self._write(f"{name}.pth", lambda f: torch.save(data, f))
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename):
        self._write("last_checkpoint", lambda f: f.write(last_filename_basename.encode()))

    def _write(self, basename, write):
        path = os.path.join(self.save_dir, basename)
        temporary = f"{path}.tmp{os.getpid()}"
        try:
            with open(temporary, "wb") as f:
                write(f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, path)
        except RuntimeError as error:  # torch's word for a full disk
            raise OSError(f"cannot write {path}: {error}") from error
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)
