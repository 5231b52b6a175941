"""Around the iterations: evaluation, precise BN on one and two processes, wandb."""

import contextlib
import sys
import types

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage
from torch import nn

from loco_det.config import add_loco_config
from loco_det.engine.hooks import EvaluationHook, SamePreciseBN, WandbWriter


class Stop:
    """As StopOnSigterm; notes when long work begins and ends."""

    def __init__(self, ended=False):
        self.ended, self.notes = ended, []

    @contextlib.contextmanager
    def at_once(self):
        self.notes.append("begun")
        yield
        self.notes.append("done")


class Loader:
    """Batches of noise from a position on, as the training loader's."""

    def __init__(self, rank=0, world=1):
        self.rank, self.world = rank, world
        self.batch_sampler = types.SimpleNamespace(start=0, seed=0, rank=rank)

    def __iter__(self):
        for i in range(self.batch_sampler.start * self.world + self.rank, 1000, self.world):
            yield torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(i)) * (i + 1) + i

    def at(self, iteration):
        self.batch_sampler.start = iteration
        return iter(self)


def precise(loader, batches, iteration):
    """Mean and variance of a BatchNorm after the hook has run at an iteration, twice."""
    found, network = [], nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3, momentum=0.3))
    hook = SamePreciseBN(0, network, loader, batches, Stop())
    hook.trainer = types.SimpleNamespace(iter=iteration)
    for _ in range(2):
        hook.update_stats()
        found.append({k: v.clone() for k, v in network.state_dict().items() if "running" in k})
        assert network[0].num_batches_tracked == 0  # it has learned from none
    assert network[2].momentum == 0.3 and hook.stop.notes == ["begun", "done"] * 2
    return found


def test_precise_bn_takes_the_batches_that_come_next():
    """From scratch at each call: an earlier one, or a resumed run that lacks it, changes nothing."""
    (first, again), (other, _) = precise(Loader(), 3, 4), precise(Loader(), 3, 5)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.allclose(first["0.running_mean"], other["0.running_mean"])
    stream = Loader().at(5)  # iteration 4 is done
    data = torch.cat([next(stream) for _ in range(3)])
    torch.testing.assert_close(first["0.running_mean"], data.mean((0, 2, 3)))
    torch.testing.assert_close(first["0.running_var"], data.var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


def test_precise_bn_takes_other_loaders_and_networks_without_bn():
    batch = torch.randn(4, 3, 5, 5)
    (found, _) = precise([batch] * 2, 2, 7)  # as Detectron2's own, without a batch_sampler
    torch.testing.assert_close(found["0.running_mean"], batch.mean((0, 2, 3)))
    hook = SamePreciseBN(0, nn.Linear(2, 2), None, 2, Stop())
    hook.update_stats()  # has nothing to do
    assert hook.stop.notes == []


@pytest.mark.parametrize("ended", [False, True])
def test_evaluation_may_be_stopped_and_is_left_out_after_that(ended):
    stop = Stop(ended)
    hook = EvaluationHook(2, lambda: stop.notes.append("evaluated") or {}, stop)
    hook.trainer = types.SimpleNamespace(iter=1, max_iter=4, storage=None)
    hook.after_step()
    hook.trainer.iter = 4
    hook.after_train()
    assert stop.notes == ([] if ended else ["begun", "evaluated", "done"] * 2)


ONE_RANK = """
import importlib.util, sys, torch
from detectron2.utils import comm
rank, folder, file = int(sys.argv[1]), sys.argv[2], sys.argv[3]
spec = importlib.util.spec_from_file_location("shared", file)
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
comm.create_local_process_group(2)
torch.save(shared.precise(shared.Loader(rank, 2), 3, 4)[0], f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_processes(run_two_ranks, tmp_path_factory):
    """Statistics of precise BN of each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    run_two_ranks(ONE_RANK, folder, __file__, timeout=60, OMP_NUM_THREADS="1")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_precise_bn_on_two_processes_is_that_of_all_images(two_processes):
    one, two = two_processes
    assert len(one) == 4 and all(torch.equal(one[k], two[k]) for k in one)
    stream = Loader(world=1).at(10)
    data = torch.cat([next(stream) for _ in range(6)])
    torch.testing.assert_close(one["0.running_mean"], data.mean((0, 2, 3)))
    torch.testing.assert_close(one["0.running_var"], data.var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


# --- Weights & Biases -------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb_cfg(tmp_path):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.OUTPUT_DIR, cfg.WANDB.PROJECT = str(tmp_path), "mine"
    return cfg


def test_without_wandb_it_says_how_to_get_it(wandb_cfg, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="^WANDB.PROJECT is set, but wandb is not installed: pip install wandb$"):
        WandbWriter(wandb_cfg)


def test_each_scalar_goes_to_wandb_once_with_its_iteration(wandb_cfg, monkeypatch):
    lines, begun, ended = [], [], []
    logged = types.SimpleNamespace(log=lambda d, step: lines.append((step, d)), finish=lambda: ended.append(1))
    fake = types.SimpleNamespace(init=lambda **how: begun.append(how) or logged)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    writer = WandbWriter(wandb_cfg)
    assert begun[0]["project"] == "mine" and begun[0]["dir"] == wandb_cfg.OUTPUT_DIR
    assert begun[0]["config"]["WANDB"]["PROJECT"] == "mine"
    with EventStorage(0) as storage:
        writer.write()
        for storage.iter in range(3):
            storage.put_scalar("loss", 10.0 - storage.iter)
            if storage.iter == 1:
                storage.put_scalar("bbox/AP", 5.0)
        writer.write()
        writer.write()
        storage.iter = 3
        storage.put_scalar("loss", 7.0)
        writer.write()
    writer.close()
    assert lines == [(1, {"bbox/AP": 5.0}), (2, {"loss": 8.0}), (3, {"loss": 7.0})] and ended == [1]


@pytest.mark.parametrize(("reached", "evaluated"), [(5, 1), (4, 0), (3, 0)])
def test_only_a_training_that_has_ended_is_evaluated(reached, evaluated):
    """Of 5 iterations; when the last one fails, the trainer is at 4."""
    calls = []
    hook = EvaluationHook(0, lambda: calls.append(0), Stop())
    hook.trainer = types.SimpleNamespace(iter=reached, max_iter=5)
    hook.after_train()
    assert len(calls) == evaluated and hook.stop.notes == ["begun", "done"] * evaluated
