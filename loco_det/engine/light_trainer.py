"""Training of the light head on stored features of a frozen backbone."""

import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetFromList, MapDataset
from detectron2.data.build import trivial_batch_collator
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from pretrain.processes.loader import Loader

from ..data.loader import Batches, build_train_loader
from .evaluate import evaluate_each
from .feature_store import FeatureMapper, FeatureStore, mirrors
from .trainer import Trainer

logger = logging.getLogger(__name__)


class LightTrainer(Trainer):
    """Trains and evaluates a :class:`~loco_det.modeling.light_detector.LightDetector`; all else is as in
    :class:`.trainer.Trainer`: checkpoints, resuming, logs and results."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: the config, for one process.
        """
        self.store = FeatureStore()
        super().__init__(cfg)

    def build_train_loader(self, cfg: CfgNode) -> Loader:  # type: ignore[override]  # of Detectron2, a class method
        """As the trainer's, of features instead of images; the store is filled before the first batch."""
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # nothing is left to do for them
        return build_train_loader(cfg, FeatureMapper(cfg, self.store, is_train=True))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW, with which few iterations suffice: SGD needs about three times as many."""
        parameters = get_default_optimizer_params(model, base_lr=cfg.SOLVER.BASE_LR)
        return torch.optim.AdamW(parameters, cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)

    def resume_or_load(self, resume: bool = True) -> None:
        """As the trainer's, and read or compute the features of all images.

        Raises:
            OSError, ValueError: as :meth:`.feature_store.FeatureStore.fill`, too.
        """
        super().resume_or_load(resume)
        model: Any = self.checkpointer.model
        batches: Any = self._trainer.data_loader.batch_sampler
        assert isinstance(batches, Batches)
        self.store.fill(self.cfg, model, batches.records, mirrors(self.cfg))
        for name in self.cfg.DATASETS.TEST:
            self.store.fill(self.cfg, model, DatasetCatalog.get(name), mirrored=False)

    def _evaluate(self) -> dict[str, Any]:
        self.evaluation = evaluate_each(self.cfg, self.model, self._test)
        self._last_eval_results = self.evaluation.results
        return self.evaluation.results

    def _test(self, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """As :meth:`.trainer.Trainer.test` on the only data set of DATASETS.TEST, from its features."""
        (name,) = cfg.DATASETS.TEST
        images = MapDataset(
            DatasetFromList(DatasetCatalog.get(name), copy=False), FeatureMapper(cfg, self.store, is_train=False)
        )
        loader = Loader(images, batch_size=1, collate_fn=trivial_batch_collator, generator=torch.Generator())
        results = inference_on_dataset(model, loader, self.build_evaluator(cfg, name))
        print_csv_format(results)
        return results
