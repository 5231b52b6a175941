"""Checkpoints: everything needed to go on exactly, written atomically."""

import os

import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.config import CfgNode as CN

from .config import value_of

FORMAT = "loco-det pretraining"  # by which the converter knows our files
# What may change when a run is resumed, because nothing that is learned depends on it
FREE = {
    "OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "DATASETS.TRAIN", "DATASETS.MAX_UNREADABLE",
    "SOLVER.CHECKPOINT_PERIOD", "SOLVER.LOG_PERIOD",
}  # fmt: skip


class AtomicCheckpointer(Checkpointer):
    """fvcore's Checkpointer, whose files are complete or not there.

    No state of a random generator is stored because none is used: the order of the data and every augmentation are
    functions of the seed and of the position in the stream (``pretrain/data.py``).
    """

    def __init__(self, cfg, model, **kwargs):
        """
        Args:
            cfg: the run's config, stored in every checkpoint.
            model: the learner.
            kwargs: as fvcore's.
        """
        super().__init__(model, cfg.OUTPUT_DIR, **kwargs)
        self.cfg = cfg

    def resume(self):
        """Load the last checkpoint of the run; returns the iteration after which it was written.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, or of a run with another config.
        """
        if not self.has_checkpoint():
            raise FileNotFoundError(f"{self.save_dir}: nothing to resume; leave out --resume to start anew")
        path = self.get_checkpoint_file()
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: last_checkpoint names it, but it is not there")
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            config = CN.load_cfg(saved["config"])
        except Exception as error:
            raise ValueError(f"{path} is damaged or no checkpoint of ours: it cannot be resumed") from error
        other = [key for key in _keys(self.cfg) if key not in FREE and value_of(config, key) != value_of(self.cfg, key)]
        if other:
            raise ValueError(
                f"{self.save_dir} is a run with other values of {', '.join(other)}: resume it with its own "
                "config.yaml, or start anew in another OUTPUT_DIR"
            )
        return self.load(path)["iteration"]

    def save(self, name, **kwargs):
        """Write ``name.pth`` and name it in ``last_checkpoint``; OSError leaves the older files as they were."""
        if not self.save_to_disk:
            return
        data = {"format": FORMAT, "encoder": self.cfg.MODEL.ENCODER, "config": self.cfg.dump(), **kwargs}
        data["model"] = self.model.state_dict()
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


def _keys(cfg, prefix=""):
    """All keys of a config, as "SOLVER.EPOCHS"."""
    for key, value in cfg.items():
        yield from _keys(value, f"{prefix}{key}.") if isinstance(value, CN) else [prefix + key]
