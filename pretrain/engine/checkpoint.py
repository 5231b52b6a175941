"""Checkpoints of pretraining, from which a run resumes bit for bit."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.config import CfgNode
from torch import nn

from ..encoders import Encoder, build_encoder, is_own_code
from ..files.atomic import write_whole
from ..files.checkpoints import (
    FORMAT,
    checkpoint_names,
    differing_keys,
    newest_of_all,
    refuse_other_config,
    saved_config,
)
from ..files.safe_load import read_own

# Keys that may change when a run is resumed, because no weight depends on them
FREE = {
    "OUTPUT_DIR", "MODEL.DEVICE", "MODEL.KEEP_FREED_MEMORY", "MODEL.RECOMPUTE", "MODEL.STAGE_PARALLEL.DEVICES",
    "MODEL.STAGE_PARALLEL.SPLIT", "MODEL.STAGE_PARALLEL.TRACE", "DATALOADER.NUM_WORKERS",
    "DATASETS.TRAIN", "DATASETS.MAX_UNREADABLE", "KNN.TRAIN", "KNN.TEST", "KNN.PERIOD", "KNN.K", "KNN.TEMPERATURE",
    "SOLVER.CHECKPOINT_PERIOD", "SOLVER.CHECKPOINTS_KEPT", "SOLVER.LOG_PERIOD", "SOLVER.MAX_LOSS",
}  # fmt: skip
# What checkpoints without these keys were trained with
LATER_KEYS: dict[str, Any] = {
    "MODEL.STAGE_PARALLEL.LATE": False, "MODEL.DECODER.POOL_FEATURES": 0, "LOSS.VICREG": [25.0, 25.0, 1.0],
    "SOLVER.SEQUENTIAL": False,
}  # fmt: skip


def load_encoder(path: str | os.PathLike[str], encoder: Encoder | None = None) -> Encoder:
    """The encoder in a checkpoint of pretraining, with its weights, in evaluation mode on the CPU.

    ``loco_det.load_encoder`` reads those of other projects, too.

    Args:
        path: a checkpoint of tools/pretrain.py.
        encoder: your own, if the checkpoint's is ``package.module.function``: no file decides which code runs.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such checkpoint, or its encoder is your own and is not given.
    """
    try:
        content = read_own(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of pretraining: loco_det.load_encoder reads those of other projects")
    name, model = content.get("encoder"), content.get("model")
    if not isinstance(name, str) or not isinstance(model, dict) or not all(isinstance(key, str) for key in model):
        raise ValueError(f"{path} is damaged: it has no encoder, or no weights")
    if encoder is None and is_own_code(name):
        raise ValueError(f"{path}: its encoder is {name}, code of your own: build it and hand it in as `encoder`")
    encoder = build_encoder(name) if encoder is None else encoder
    prefix = "encoder."
    weights = {key.removeprefix(prefix): value for key, value in model.items() if key.startswith(prefix)}
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: its weights do not fit {name}: {' '.join(str(error).split())[:200]}") from None
    return encoder.eval()


class AtomicCheckpointer(Checkpointer):
    """fvcore's Checkpointer that writes files atomically, and keeps the last few.

    No state of a random generator is stored: the order of the data and every augmentation are functions of the seed and
    of the position in the stream (``pretrain/data/loader.py``), and the trainer seeds all generators in each step.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, num_images: int = 0, names: str = "", **kwargs: Any) -> None:
        """
        Args:
            cfg: the run's config, stored in every checkpoint.
            model: the learner.
            num_images: number of training images, stored as well.
            names: digest of the images' names, stored as well; "": not known.
            kwargs: as fvcore's, such as checkpointables.
        """
        super().__init__(model, cfg.OUTPUT_DIR, **kwargs)
        self.cfg = cfg
        self.mine: list[str] = []  # checkpoints of this run, oldest first; only these are ever deleted
        self.run: dict[str, Any] = {"images": num_images, "names": names, "processes": comm.get_world_size()}

    def resume(self) -> int:
        """Load the newest readable checkpoint of the run; process 0 chooses it for all processes.

        Returns:
            The iteration after which it was written.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if none can be read, or the run had another config or other data.
        """
        found = newest_of_all(self.save_dir, self._check)
        self.logger.info(f"Resuming from {found}")
        self.mine = [name for name in reversed(checkpoint_names(self.save_dir)) if name != "model_final.pth"]
        saved = torch.load(found, map_location="cpu", weights_only=True)
        try:
            self._take(saved)
            return int(saved["iteration"])
        except (RuntimeError, TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
            why = " ".join(str(error).split())[:300]
            raise ValueError(f"{found} is not of this run ({why}): start anew without --resume") from error

    def _take(self, saved: Mapping[str, Any]) -> None:
        """Load the content of a checkpoint."""
        self.model.load_state_dict(saved["model"])
        for key, obj in self.checkpointables.items():
            obj.load_state_dict(saved[key])

    def _states(self) -> dict[str, Any]:
        """What a checkpoint holds of the run: "model", and the states of the checkpointables."""
        return {"model": self.model.state_dict()} | {k: obj.state_dict() for k, obj in self.checkpointables.items()}

    def _check(self, content: Mapping[str, Any]) -> None:
        """Raise ValueError for a checkpoint of another run, KeyError or TypeError for a file that is none of ours."""
        older = LATER_KEYS if "STAGE_PARALLEL" in self.cfg.MODEL else {}  # a readout's config never has them
        self._refuse_another_run(older | saved_config(content), content["run"])

    def _refuse_another_run(self, config: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        refuse_other_config(self.save_dir, differing_keys(self.cfg, config, FREE))
        if run["images"] != self.run["images"]:
            raise ValueError(
                f"{self.save_dir} is a run on {run['images']} images, but DATASETS.TRAIN has {self.run['images']}: "
                "resume it on the images that it began with, or start anew in another OUTPUT_DIR"
            )
        if run.get("names") not in (None, self.run["names"]):  # version 0.1 did not store it
            raise ValueError(
                f"{self.save_dir} is a run on images of other names than those in DATASETS.TRAIN "
                f"{self.cfg.DATASETS.TRAIN}: resume it on the images that it began with, or start anew in another "
                "OUTPUT_DIR"
            )
        if run["processes"] != self.run["processes"]:
            self.logger.warning(
                f"this run had {run['processes']} processes and goes on with {self.run['processes']}: the batches are "
                "the same, but not the last bits of the weights"
            )

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth``, name it in ``last_checkpoint``, and delete all but the last CHECKPOINTS_KEPT of this run.

        Args:
            name: of the file, without its suffix.
            kwargs: further content, such as the iteration.

        Raises:
            FloatingPointError: if a weight or a running statistic is not finite; nothing is written.
            OSError: if it cannot be written; older files stay as they were.
        """
        if not self.save_to_disk:
            return
        states = self._states()
        for key, tensor in states["model"].items():
            if not torch.isfinite(tensor).all():
                raise FloatingPointError(
                    f"{key} is not finite, so that {name}.pth is not written: start anew with a lower SOLVER.BASE_LR "
                    "or a longer warm-up; the checkpoints before it are kept"
                )
        data = {"format": FORMAT, "encoder": self.cfg.MODEL.ENCODER, "config": self.cfg.dump(), "run": self.run}
        data.update(model=states.pop("model"), **kwargs)
        data.update(states)
        self.logger.info(f"Saving checkpoint to {os.path.join(self.save_dir, name)}.pth")
        write_whole(os.path.join(self.save_dir, f"{name}.pth"), lambda f: torch.save(data, f))
        self.tag_last_checkpoint(f"{name}.pth")
        if name != "model_final":
            self.mine = [*(older for older in self.mine if older != f"{name}.pth"), f"{name}.pth"]
            while len(self.mine) > self.cfg.SOLVER.CHECKPOINTS_KEPT:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(os.path.join(self.save_dir, self.mine.pop(0)))

    def save_final(self, iteration: int) -> None:
        """Write ``model_final.pth`` if it is missing because the run was killed after its last checkpoint.

        Args:
            iteration: the last one, counted from 0.

        Raises:
            FloatingPointError, OSError: as :meth:`save`.
        """
        if self.save_to_disk and checkpoint_names(self.save_dir)[0] != "model_final.pth":
            self.save("model_final", iteration=iteration)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of a file into ``last_checkpoint``; raises OSError if it cannot be written."""
        write_whole(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)
