"""Checkpoints: everything needed to go on exactly, written atomically, read with care."""

import contextlib
import os
import re
import zipfile

import torch
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.config import CfgNode as CN

FORMAT = "loco-det pretraining"  # by which the converter knows our files
# What may change when a run is resumed, because nothing that is learned depends on it
FREE = {
    "OUTPUT_DIR", "MODEL.DEVICE", "MODEL.RECOMPUTE", "DATALOADER.NUM_WORKERS", "DATASETS.TRAIN",
    "DATASETS.MAX_UNREADABLE", "KNN.TRAIN", "KNN.TEST", "KNN.PERIOD", "KNN.K", "KNN.TEMPERATURE",
    "SOLVER.CHECKPOINT_PERIOD", "SOLVER.CHECKPOINTS_KEPT", "SOLVER.LOG_PERIOD", "SOLVER.MAX_LOSS",
}  # fmt: skip


class AtomicCheckpointer(Checkpointer):
    """fvcore's Checkpointer, whose files are complete or not there, and of which the last few are kept.

    No state of a random generator is stored because none lasts longer than a step: the order of the data and every
    augmentation are functions of the seed and of the position in the stream (``pretrain/data.py``), and the trainer
    seeds all generators anew in each step.
    """

    def __init__(self, cfg, model, num_images=0, **kwargs):
        """
        Args:
            cfg: the run's config, stored in every checkpoint.
            model: the learner.
            num_images: images that the run learns from, stored as well.
            kwargs: as fvcore's.
        """
        super().__init__(model, cfg.OUTPUT_DIR, **kwargs)
        self.cfg = cfg
        self.mine = []  # checkpoints that this run has written or goes on from, the oldest first: what may be deleted
        self.run = {"images": num_images, "processes": comm.get_world_size()}

    def resume(self):
        """Load the newest readable checkpoint of the run, which process 0 chooses for all.

        Returns:
            int: the iteration after which it was written.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if none can be read, or it is of a run with another config or other data.
        """
        found = None
        if comm.is_main_process():
            try:
                found = self._newest_readable()
            except (OSError, ValueError) as error:
                found = error
        found = comm.all_gather(found)[0]
        if isinstance(found, Exception):
            raise found
        self.logger.info(f"Resuming from {found}")
        self.mine = [name for name in reversed(self._names()) if name != "model_final.pth"]
        saved = torch.load(found, map_location="cpu", weights_only=True)
        self.model.load_state_dict(saved["model"])
        for key, obj in self.checkpointables.items():
            obj.load_state_dict(saved[key])
        return saved["iteration"]

    def _newest_readable(self):
        names = self._names()
        if not names:
            raise FileNotFoundError(f"{self.save_dir}: nothing to resume; leave out --resume to start anew")
        for name in names:
            path = os.path.join(self.save_dir, name)
            try:
                damaged = zipfile.ZipFile(path).testzip()  # torch.load compares no checksums
                if damaged:
                    raise ValueError(f"wrong checksum of {damaged}")
                saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                config, run = dict(_items(CN.load_cfg(saved["config"]))), saved["run"]
            except Exception as error:
                why = str(error).partition("\n")[0] or type(error).__name__
                self.logger.warning(f"{path} is damaged or no checkpoint of ours ({why}): trying the one before")
                continue
            self._refuse_another_run(config, run)
            return path
        raise ValueError(f"{self.save_dir}: none of {', '.join(names)} can be read: start anew without --resume")

    def _names(self):
        """Checkpoints of the run, the newest first: the one that ``last_checkpoint`` names, then those of earlier
        iterations. Those of later ones are left over from another run in the same folder."""
        names = os.listdir(self.save_dir) if os.path.isdir(self.save_dir) else []
        last = ""
        if "last_checkpoint" in names:
            with open(os.path.join(self.save_dir, "last_checkpoint"), errors="replace") as f:
                last = f.read().strip()
        if _iteration(last) is not None:
            names = {last, *(name for name in names if _iteration(name) is not None)}
            names = [name for name in names if _iteration(name) <= _iteration(last)]
        return sorted((name for name in names if _iteration(name) is not None), key=_iteration, reverse=True)

    def _refuse_another_run(self, config, run):
        mine = dict(_items(self.cfg))
        other = sorted(k for k in {*mine, *config} - FREE if k not in mine or k not in config or mine[k] != config[k])
        if other:
            raise ValueError(
                f"{self.save_dir} is a run with other values of {', '.join(other)}: resume it with its own "
                "config.yaml, or start anew in another OUTPUT_DIR"
            )
        if run["images"] != self.run["images"]:
            raise ValueError(
                f"{self.save_dir} is a run on {run['images']} images, but DATASETS.TRAIN has {self.run['images']}: "
                "resume it on the images that it began with, or start anew in another OUTPUT_DIR"
            )
        if run["processes"] != self.run["processes"]:
            self.logger.warning(
                f"this run had {run['processes']} processes and goes on with {self.run['processes']}: the batches are "
                "the same, but not the last bits of the weights"
            )

    def save(self, name, **kwargs):
        """Write ``name.pth``, name it in ``last_checkpoint``, and delete all but the last CHECKPOINTS_KEPT of this run.

        Raises:
            FloatingPointError: if a weight or a running statistic is not finite; nothing is written.
            OSError: if it cannot be written; the older files are as they were.
        """
        if not self.save_to_disk:
            return
        model = self.model.state_dict()
        for key, tensor in model.items():
            if not torch.isfinite(tensor).all():
                raise FloatingPointError(
                    f"{key} is not finite, so that {name}.pth is not written: start anew with a lower SOLVER.BASE_LR "
                    "or a longer warm-up; the checkpoints before it are kept"
                )
        data = {"format": FORMAT, "encoder": self.cfg.MODEL.ENCODER, "config": self.cfg.dump(), "run": self.run}
        data.update(model=model, **kwargs)
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        self.logger.info(f"Saving checkpoint to {os.path.join(self.save_dir, name)}.pth")
        self._write(f"{name}.pth", lambda f: torch.save(data, f))
        self.tag_last_checkpoint(f"{name}.pth")
        if name != "model_final":
            self.mine = [*(older for older in self.mine if older != f"{name}.pth"), f"{name}.pth"]
            while len(self.mine) > self.cfg.SOLVER.CHECKPOINTS_KEPT:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(os.path.join(self.save_dir, self.mine.pop(0)))

    def tag_last_checkpoint(self, last_filename_basename):
        self._write("last_checkpoint", lambda f: f.write(last_filename_basename.encode()))

    def _write(self, basename, write):
        temporary = os.path.join(self.save_dir, "checkpoint.tmp")  # one name: what a kill leaves is overwritten
        write_whole(os.path.join(self.save_dir, basename), write, temporary)


def write_whole(path, write, temporary=None):
    """Write a file whole or not at all.

    Args:
        path: of the file.
        write: function that writes into an open binary file.
        temporary: file that is written first, on the same file system; None: one beside ``path``.

    Raises:
        OSError: if it cannot be written; what was there stays.
    """
    temporary = temporary or f"{path}.tmp{os.getpid()}"
    try:
        with named_errors(path):
            with open(temporary, "wb") as f:
                write(f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


@contextlib.contextmanager
def named_errors(path):
    """Say of which file an error is: neither a full disk nor torch does, and a temporary file is not the one.

    Raises:
        OSError: of the kind that it was.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # of torch's RuntimeError: what it met
        if isinstance(cause, OSError) and cause.errno:
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise OSError(f"cannot write {path}: {error}") from error


def write_config(cfg):
    """Write ``config.yaml`` in the run's folder, whole or not at all; OSError if it cannot be written."""
    write_whole(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), lambda f: f.write(cfg.dump().encode()))


def _iteration(name):
    """By what checkpoints are ordered; None if ``name`` is none."""
    match = re.fullmatch(r"model_(?:(\d+)|final)\.pth", name)
    return match and float(match[1] or "inf")


def _items(cfg, prefix=""):
    """All keys of a config, as "SOLVER.EPOCHS", with their values."""
    for key, value in cfg.items():
        yield from _items(value, f"{prefix}{key}.") if isinstance(value, CN) else [(prefix + key, value)]
