"""Two processes: mean gradients whatever the order in which reductions finish, the same weights, a common end."""

import pytest
import torch
from noise import write_noise_images

# Run by each of two processes with its rank and a folder; `results` are what the tests look at.
ONE_RANK = """
import os, signal, sys, torch
from pretrain.config import get_cfg
from pretrain.processes.distributed import GradientReducer, worst_of_processes
from pretrain.engine.trainer import Trainer
from pretrain.readout.knn import knn_evaluator
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
results = {}

def gradients(reduce):
    torch.manual_seed(rank)
    layers = [torch.nn.Linear(3, 5), torch.nn.Linear(300, 500), torch.nn.Linear(5, 2).double(),
              torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)]
    layers[0].bias.requires_grad_(False)
    for layer in layers:
        for p in layer.parameters():
            p.grad = torch.randn_like(p) if p.requires_grad else None
    reduce(layers)
    return [p.grad for layer in layers for p in layer.parameters() if p.grad is not None]

reducer = GradientReducer()
def unit_by_unit(layers):
    reducer(layers[0].parameters())  # small, large and mixed: they need not finish in this order
    reducer(layers[1].parameters())
    reducer([*layers[2].parameters(), *layers[3].parameters()])
    reducer([])
    reducer.wait()
    reducer.wait()  # nothing is left to do

results["own"], results["mean"] = gradients(lambda _: None), gradients(unit_by_unit)
results["worst"] = worst_of_processes([torch.tensor(float(rank)), torch.tensor(float("nan") if rank else 1.0)])

def trainer(name, resume=False):
    cfg = get_cfg()
    cfg.merge_from_list(["DATASETS.TRAIN", f"{folder}/images", "OUTPUT_DIR", f"{folder}/{name}", "MODEL.DEVICE", "cpu",
        "MODEL.ENCODER", "resnet18x0.25", "INPUT.CROP_SIZE", 32, "MODEL.DECODER.HIDDEN_DIM", 16,
        "SOLVER.IMS_PER_BATCH", 8, "SOLVER.EPOCHS", 4.0, "SOLVER.WARMUP_EPOCHS", 0.0, "DATALOADER.NUM_WORKERS", 0,
        "MODEL.NOISE", 0.1])
    torch.manual_seed(rank)  # process 0's weights count
    return Trainer(cfg, resume)

t = trainer("whole")
t.train()
results["weights"] = [p.detach() for p in t.learner.parameters()]

def attempt(do):
    try:
        do()
    except (FloatingPointError, ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"

t = trainer("nan")
step = t.learner.forward_backward
def nan_in_process_1(*args, **options):
    losses = step(*args, **options)
    if rank == 1 and t.iter == 2:
        losses["res4"] *= float("nan")
    return losses
t.learner.forward_backward = nan_in_process_1
results["nan"] = attempt(t.train)

t = trainer("sigterm")
step = t.run_step
def sigterm_to_process_1():
    if rank == 1 and t.iter == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    step()
t.run_step = sigterm_to_process_1
handler = signal.getsignal(signal.SIGTERM)
t.train()
results["sigterm"] = (t.iter, t.storage.iter)
results["handler restored"] = signal.getsignal(signal.SIGTERM) is handler

t = trainer("sigterm", resume=True)
t.train()
results["resumed"] = [p.detach() for p in t.learner.parameters()]

results["nothing"] = attempt(lambda: trainer("nowhere", resume=True))
torch.save(results, f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def results(run_two_ranks, folder):
    """What the two processes have found."""
    write_noise_images(folder / "images", 8)
    run_two_ranks(ONE_RANK, folder, OMP_NUM_THREADS="1")
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_gradients_become_their_means(results):
    for own0, own1, mean0, mean1 in zip(*(r[key] for key in ("own", "mean") for r in results), strict=True):
        assert not torch.equal(own0, own1) and torch.equal(mean0, mean1)
        torch.testing.assert_close(mean0, (own0 + own1) / 2)
        assert mean0.stride() == own0.stride()
    assert {grad.dtype for grad in results[0]["mean"]} == {torch.float32, torch.float64}


def test_the_worst_figure_counts(results):
    assert results[0]["worst"] == results[1]["worst"] == [1.0, float("inf")]


def test_the_weights_stay_the_same_in_all_processes(results):
    assert all(torch.equal(a, b) for a, b in zip(results[0]["weights"], results[1]["weights"], strict=True))


def test_a_bad_loss_in_one_process_stops_all(results, folder):
    assert results[0]["nan"] == results[1]["nan"]
    assert results[0]["nan"].startswith("FloatingPointError: loss_res4 is not finite at iteration 2: ")
    assert not list(folder.glob("nan/*.pth"))


def test_sigterm_to_one_process_stops_all_after_the_iteration(results, folder):
    assert results[0]["sigterm"] == results[1]["sigterm"] == (1, 1)
    assert all(r["handler restored"] for r in results)
    assert [p.name for p in folder.glob("sigterm/model_0*.pth")] == ["model_0000001.pth"]
    assert all(torch.equal(a, b) for a, b in zip(results[0]["resumed"], results[0]["weights"], strict=True))


def test_what_one_process_cannot_resume_none_does(results):
    assert results[0]["nothing"] == results[1]["nothing"]
    assert results[0]["nothing"].startswith("FileNotFoundError: ") and "nothing to resume" in results[0]["nothing"]
