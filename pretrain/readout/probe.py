"""The linear readout: linear classifiers on a frozen encoder's features, for all stages and learning rates."""

import contextlib
import logging
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from fvcore.common.config import CfgNode

from ..engine.estimate import TimeEstimate, times_due, warning_of_size
from ..engine.evaluation import Evaluation
from ..engine.loop import hooks_of_every_loop
from ..files.results import LinearResults
from ..processes.distributed import GradientReducer, worst_of_processes
from ..processes.signals import Terminated
from ..processes.sigterm import stop_at_once
from ..processes.sigterm_hook import StopOnSigterm
from .checkpoint import ProbeCheckpointer, Stopwatch
from .curves import ProbePlot
from .features import PooledEncoder, digest_of
from .linear import LinearClassifiers, build_optimizer, build_scheduler
from .results import at_the_edge, linear_stages, protocol, rate_name, table
from .streams import AugmentedStream, CachedStream

logger = logging.getLogger(__name__)
STEP_SECONDS = 0.44  # for a million pixels through a frozen ResNet-50 (2 cores of an AMD EPYC, float32)
FEW = 100  # held-out images; with fewer, each is more than a percentage point


class LinearProbe(TrainerBase):
    """Trains linear classifiers on a frozen encoder's pooled features, and tests them.

    ``metrics.json`` and TensorBoard get ``train/<stage>-lr<rate>``, each classifier's cross-entropy in nats;
    ``loss_<stage>``, the minimum of a stage; ``lr``, for the first of BASE_LR; ``images_per_second``, ``time``,
    ``data_time``, ``eta_seconds``; and ``test/<stage>-lr<rate>-top1`` (and top5, and ``held_out/``), in percent.
    """

    def __init__(self, cfg: CfgNode, encoder: PooledEncoder, weights: Mapping[str, Any], resume: bool = False) -> None:
        """
        Args:
            cfg: the readout's config.
            encoder: on MODEL.DEVICE; put in eval mode.
            weights: description of the weights for results.json; with "path" and "sha256".
            resume: resume from the newest checkpoint in OUTPUT_DIR.

        Raises:
            FileNotFoundError, OSError: if images are missing or unreadable, or there is nothing to resume.
            ValueError: if the config cannot work, or the checkpoint is damaged or of another run.
        """
        super().__init__()
        stopwatch = Stopwatch()
        self.cfg, self.weights = cfg, weights
        solver, encoder, size = cfg.SOLVER, encoder.eval(), cfg.INPUT.CROP_SIZE
        large = warning_of_size(
            cfg.MODEL.DEVICE, solver.IMS_PER_BATCH, size, size, STEP_SECONDS, "configs/readout/cached.yaml"
        )
        if large and not cfg.FEATURES.CACHED and comm.is_main_process():
            logger.warning(large)
        with torch.no_grad():  # also checks MODEL.STAGES
            shapes = encoder(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=cfg.MODEL.DEVICE))
        channels = {name: features.shape[1] for name, features in shapes.items()}
        self.stream: CachedStream | AugmentedStream
        self.stream = CachedStream(cfg, encoder, weights) if cfg.FEATURES.CACHED else AugmentedStream(cfg, encoder)
        counts = self.stream.counts
        self.classifiers = LinearClassifiers(
            channels, len(solver.BASE_LR), counts["classes"], cfg.SEED, cfg.FEATURES.STANDARDIZE
        ).to(cfg.MODEL.DEVICE)
        if isinstance(self.stream, CachedStream):
            self.classifiers.fix_statistics(self.stream.features, self.stream.rows)
        epoch_iters = counts["train"] // solver.IMS_PER_BATCH
        self.max_iter = max(1, round(solver.EPOCHS * epoch_iters))
        self.optimizer = build_optimizer(solver, self.classifiers)
        self.scheduler = build_scheduler(solver, self.optimizer, epoch_iters, self.max_iter)
        same = {"sha256 of the weights": weights["sha256"], **{f"number of {name}": n for name, n in counts.items()}}
        for name, images in (("training", self.stream.train), ("test", self.stream.test)):
            same[f"{name} images"] = digest_of(images.paths, times=False)
        self.checkpointer = ProbeCheckpointer(
            cfg,
            self.classifiers,
            same,
            save_to_disk=comm.is_main_process(),
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            stopwatch=stopwatch,
        )
        self.stopwatch = stopwatch
        self.start_iter = self.checkpointer.resume() + 1 if resume else 0
        self.reduce_gradients = GradientReducer()
        self.diverged: set[str] = set()
        self.results_path = os.path.join(cfg.OUTPUT_DIR, "results.json")
        self.stop = StopOnSigterm()
        self.register_hooks(self._build_hooks(max(1, round(solver.EVAL_PERIOD * epoch_iters))))

    def _build_hooks(self, eval_period: int) -> list[HookBase]:
        solver = self.cfg.SOLVER
        chosen, writers = hooks_of_every_loop(
            self.cfg, self.optimizer, self.scheduler, self.checkpointer, self.stop, self.max_iter
        )
        chosen.append(Evaluation(eval_period, self._test, writers, self.stop))
        chosen.append(TimeEstimate(self.cfg.MODEL.DEVICE, [("tests", self._iterations_of_tests(eval_period))]))
        if comm.is_main_process():
            chosen.append(hooks.PeriodicWriter([ProbePlot(self.cfg)], solver.CHECKPOINT_PERIOD))
        return chosen

    def _iterations_of_tests(self, eval_period: int) -> float:
        """Duration of all tests in iterations; an image takes as long in a test as in training."""
        if self.cfg.FEATURES.CACHED:
            return 0
        images = self.stream.counts["test"] + self.stream.counts["held_out"]
        return times_due(self.start_iter, self.max_iter, eval_period) * images / self.cfg.SOLVER.IMS_PER_BATCH

    def train(self) -> LinearResults | None:
        """Train to the last iteration, test, and write results.json.

        On SIGTERM the iteration at hand is finished and saved. A test is left at once; --resume goes on after it,
        except that it repeats the last one.

        Returns:
            What is in results.json; None in all processes but process 0, and after SIGTERM.

        Raises:
            FloatingPointError: if all classifiers have diverged.
            OSError: if images are unreadable, or a file cannot be written.
        """
        self._log_plan()
        self.batches = self.stream.batches(self.start_iter)
        try:
            if self.start_iter < self.max_iter:
                if comm.is_main_process():
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(self.results_path)  # of an earlier run
                super().train(self.start_iter, self.max_iter)
            else:
                logger.info(f"{self.cfg.OUTPUT_DIR}: all {self.max_iter} iterations are done, only tests remain")
                self.checkpointer.save_final(self.start_iter - 1)
                if comm.is_main_process():
                    ProbePlot(self.cfg).write()  # missing if the run was killed after its last checkpoint
                with stop_at_once(lambda: logger.info("SIGTERM: the tests are not done; go on with --resume"), 0):
                    self._test()
        except Terminated:
            return None
        return self._write_results() if comm.is_main_process() else None

    def _log_plan(self) -> None:
        solver, counts = self.cfg.SOLVER, self.stream.counts
        rates, batch = ", ".join(map(rate_name, solver.BASE_LR)), solver.IMS_PER_BATCH
        logger.info(
            f"linear classifiers on {', '.join(self.classifiers.heads)}; learning rates {rates} (x {batch} / 256); "
            f"{counts['train']} training, {counts['held_out']} held-out and {counts['test']} test images of "
            f"{counts['classes']} classes; {self.max_iter} iterations of {batch} images, "
            f"{comm.get_world_size()} processes"
        )
        if len(solver.BASE_LR) > 1 and 0 < counts["held_out"] < FEW:
            logger.warning(
                f"each learning rate is chosen on {counts['held_out']} held-out images, of which one is "
                f"{100 / counts['held_out']:.1f} points: a larger DATASETS.HELD_OUT makes the choice more reliable"
            )

    def run_step(self) -> None:
        """One iteration. It draws no random numbers: those of the stream are functions of the position."""
        start = time.perf_counter()
        features, labels = next(self.batches)
        data_time = time.perf_counter() - start  # with augmentation it includes the encoder
        losses = self.classifiers.losses(features, labels)
        torch.stack([loss.sum() for loss in losses.values()]).sum().backward()
        self.reduce_gradients(self.classifiers.parameters())
        self.reduce_gradients.wait()
        self._record(losses)
        self.optimizer.step()
        self.optimizer.zero_grad()
        storage = get_event_storage()
        storage.put_scalar("data_time", data_time)
        storage.put_scalar("images_per_second", self.cfg.SOLVER.IMS_PER_BATCH / (time.perf_counter() - start))

    def _record(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Log the losses, warn of classifiers that diverge, and raise FloatingPointError if all have diverged, in all
        processes together."""
        names = [f"{name}-lr{rate_name(rate)}" for name in losses for rate in self.cfg.SOLVER.BASE_LR]
        values = torch.cat([*losses.values()]).detach()
        worst = worst_of_processes([*values])
        diverged = {name for name, value in zip(names, worst, strict=True) if math.isinf(value)}
        if len(diverged) == len(names):
            raise FloatingPointError(
                f"all {len(names)} classifiers have diverged at iteration {self.iter}, or the features are not finite: "
                "start anew with a lower SOLVER.BASE_LR, or check MODEL.WEIGHTS"
            )
        for name in sorted(diverged - self.diverged):
            logger.warning(f"{name}: the loss is not finite from iteration {self.iter} on; the others go on")
        self.diverged |= diverged
        storage = get_event_storage()
        storage.put_scalars(**{f"train/{name}": value for name, value in zip(names, values.tolist(), strict=True)})
        storage.put_scalars(
            **{f"loss_{name}": loss.nan_to_num(torch.inf).min().item() for name, loss in losses.items()}
        )

    def _test(self) -> dict[str, dict[str, float]]:
        """Accuracies of all classifiers, stored in ``self.tops`` and returned for Detectron2's EvalHook."""
        sets = self.stream.test_features()
        if not comm.is_main_process():
            return {}
        self.tops = {name: self.classifiers.accuracies(*part) for name, part in sets.items()}
        results: dict[str, dict[str, float]] = {}
        for which, stages in self.tops.items():
            results[which] = {
                f"{stage}-lr{rate_name(rate)}-{top}": value
                for stage, tops in stages.items()
                for top, values in tops.items()
                for rate, value in zip(self.cfg.SOLVER.BASE_LR, values, strict=True)
            }
        return results

    def _write_results(self) -> LinearResults:
        held_out = self.tops.get("held_out")
        results = LinearResults(
            protocol=protocol(self.cfg, held_out),
            weights=dict(self.weights),
            images=self.stream.counts,
            seconds=round(self.stopwatch.state_dict()["seconds"], 1),
            linear=linear_stages(self.cfg, self.tops["test"], held_out),
        )
        results.write(self.results_path)
        logger.info(f"accuracy (%) of linear classifiers on {self.stream.counts['test']} images:\n{table(results)}")
        for name in at_the_edge(results):
            logger.warning(f"{name}: the best learning rate is at the edge of the grid: a better one may lie beyond it")
        return results
