"""Checkpoints of a linear readout: only the newest is kept, and a diverged classifier is saved like the others."""

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from ..engine.checkpoint import AtomicCheckpointer
from ..files.atomic import write_whole
from ..files.checkpoints import items_of

# Keys that may change when a run is resumed. Weights and images are compared by content.
FREE = {
    "OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.KEEP_FREED_MEMORY", "DATASETS.TRAIN", "DATASETS.TEST",
    "DATALOADER.NUM_WORKERS",
    "FEATURES.CACHE", "SOLVER.EVAL_PERIOD", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.LOG_PERIOD", "KNN.K",
    "KNN.TEMPERATURE",
}  # fmt: skip


class ProbeCheckpointer(AtomicCheckpointer):
    """Saves the classifiers, optimiser and schedule of :class:`LinearProbe`."""

    def __init__(self, cfg: CfgNode, classifiers: nn.Module, run: Mapping[str, Any], **kwargs: Any) -> None:
        """
        Args:
            cfg: the readout's config.
            classifiers: :class:`LinearClassifiers`.
            run: values that must be the same when the run is resumed, by the names that error messages use.
            kwargs: as of fvcore's Checkpointer.
        """
        super().__init__(cfg, classifiers, **kwargs)
        self.run = {**run, "processes": self.run["processes"]}

    def _refuse_another_run(self, config: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        mine, processes = {**dict(items_of(self.cfg)), **self.run}, self.run["processes"]
        other = {**config, **run}
        wrong = sorted(k for k in {*mine, *other} - FREE - {"processes"} if mine.get(k) != other.get(k))
        if wrong:
            raise ValueError(
                f"{self.save_dir} is a run with other {', '.join(wrong)}: resume it with its own config.yaml, weights "
                "and images, or start anew in another OUTPUT_DIR"
            )
        if run["processes"] != processes:
            self.logger.warning(
                f"this run had {run['processes']} processes and goes on with {processes}: the batches are the same, "
                "but not the last bits of the classifiers"
            )

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth``, name it in ``last_checkpoint``, and delete the previous checkpoint.

        Args:
            name: of the file, without its suffix.
            kwargs: further content, such as the iteration.

        Raises:
            OSError: if it cannot be written; the previous one stays as it was.
        """
        if not self.save_to_disk:
            return
        data = {"format": "loco-det linear readout", "config": self.cfg.dump(), "run": self.run}
        data.update(model=self.model.state_dict(), **kwargs)
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        write_whole(os.path.join(self.save_dir, f"{name}.pth"), lambda f: torch.save(data, f))
        self.tag_last_checkpoint(f"{name}.pth")
        for older in (older for older in self.mine if older != f"{name}.pth"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(self.save_dir, older))
        self.mine = [f"{name}.pth"]


class Stopwatch:
    """Duration of a run in seconds, without its interruptions."""

    def __init__(self) -> None:
        self.begun = time.time()

    def state_dict(self) -> dict[str, float]:
        return {"seconds": time.time() - self.begun}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.begun -= state["seconds"]
