"""Checkpoints of a linear readout: as of pretraining, but one is enough, and a diverged classifier stops nothing."""

import contextlib
import os
import time

import torch

from ..engine.checkpoint import AtomicCheckpointer
from ..files.atomic import write_whole
from ..files.checkpoints import items_of

# What may change when a run is resumed. Of the weights and the images the content counts, not where they are.
FREE = {
    "OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "DATASETS.TRAIN", "DATASETS.TEST", "DATALOADER.NUM_WORKERS",
    "FEATURES.CACHE", "SOLVER.EVAL_PERIOD", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.LOG_PERIOD", "KNN.K",
    "KNN.TEMPERATURE",
}  # fmt: skip


class ProbeCheckpointer(AtomicCheckpointer):
    """The classifiers, optimiser and schedule of :class:`LinearProbe`; the newest checkpoint only."""

    def __init__(self, cfg, classifiers, run, **kwargs):
        """
        Args:
            cfg: the readout's config.
            classifiers: :class:`LinearClassifiers`.
            run: dict of what must be the same when the run is resumed.
            kwargs: as of fvcore's Checkpointer.
        """
        super().__init__(cfg, classifiers, **kwargs)
        self.run = {**run, "processes": self.run["processes"]}

    def _refuse_another_run(self, config, run):
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

    def save(self, name, **kwargs):
        """Write ``name.pth``, name it in ``last_checkpoint``, and delete the one before.

        Raises:
            OSError: if it cannot be written; the older one is as it was.
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
    """Seconds that a run has taken, over its interruptions."""

    def __init__(self):
        self.begun = time.time()

    def state_dict(self):
        return {"seconds": time.time() - self.begun}

    def load_state_dict(self, state):
        self.begun -= state["seconds"]
