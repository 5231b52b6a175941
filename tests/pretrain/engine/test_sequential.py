"""Units that learn one after the other: whose turn it is, the schedule, resuming in any turn, what is refused."""

import itertools
import json
import logging
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noise import write_noise_images

from pretrain.config import check, get_cfg
from pretrain.engine.optim import build_optimizer, build_scheduler
from pretrain.engine.sequential import Turns
from pretrain.engine.stage_parallel.trainer import trainer_of
from pretrain.readout.knn import knn_evaluator

STAGES = ["res2", "res3", "res4", "res5"]


@given(st.integers(1, 6), st.integers(0, 50))
def test_turns_are_equal_to_an_iteration(units, more):
    names, count = [f"u{k}" for k in range(units)], units + more
    turns = Turns(names, count)
    whose = [turns.unit_at(i) for i in range(count)]
    runs = [(name, len(list(run))) for name, run in itertools.groupby(whose)]
    assert [name for name, _ in runs] == names
    assert max(size for _, size in runs) - min(size for _, size in runs) <= 1
    ends = list(itertools.accumulate(size for _, size in runs))
    assert [i for i in range(count) if turns.begins_at(i)] == [0, *ends[:-1]]
    assert [turns.stop_of(i) for i in range(count)] == [min(end for end in ends if end > i) for i in range(count)]


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_each_turn_has_a_warm_up_and_a_cosine(warmup):
    """11 iterations, 3 units, 6 epochs: turns of 4, 3 and 4 iterations and 2 epochs each, half of them warm-up."""
    cfg = get_cfg().SOLVER
    cfg.EPOCHS, cfg.WARMUP_EPOCHS, cfg.IMS_PER_BATCH, cfg.BASE_LR = 6.0, warmup, 256, 0.5
    turns, rates = Turns(["a", "b", "c"], 11), []
    optimizer = build_optimizer(cfg, torch.nn.Linear(2, 2))
    scheduler = build_scheduler(cfg, optimizer, 11, turns)
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = []
    for size in (4, 3, 4):
        for i in range(size):
            share = i / size
            rising = 2 * share if warmup else 1.0
            falling = (1 + math.cos(math.pi * (2 * share - 1 if warmup else share))) / 2
            expected.append(0.5 * (rising if warmup and share < 0.5 else falling))
    assert rates == pytest.approx(expected, abs=1e-12)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_noise_images(tmp_path_factory.mktemp("images"), 8)


def config(images, out, **keys):
    cfg = get_cfg()
    small = {"DATASETS.TRAIN": str(images), "OUTPUT_DIR": str(out), "MODEL.DEVICE": "cpu", "INPUT.CROP_SIZE": 32,
             "MODEL.ENCODER": "resnet18x0.25", "MODEL.DECODER.HIDDEN_DIM": 16, "MODEL.NOISE": 0.1,
             "MODEL.UNITS": [[stage] for stage in STAGES], "SOLVER.IMS_PER_BATCH": 4, "SOLVER.EPOCHS": 5.5,
             "SOLVER.BASE_LR": 10.0, "SOLVER.WARMUP_EPOCHS": 0.0, "SOLVER.SEQUENTIAL": True,
             "SOLVER.LOG_PERIOD": 1, "DATALOADER.NUM_WORKERS": 0}  # fmt: skip
    cfg.merge_from_list([part for pair in {**small, **keys}.items() for part in pair])
    check(cfg)
    return cfg


def trainer(cfg, resume=False):
    torch.manual_seed(cfg.SEED)
    return trainer_of(cfg)(cfg, resume, knn_evaluator(cfg))


def train(cfg):
    made = trainer(cfg)
    made.train()
    return made


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def unit_of(name):
    """The unit of a tensor in the learner's state."""
    if name.startswith("decoders."):
        return name.split(".")[1]
    layer = name.split(".")[1]
    return f"res{int(layer[5:]) + 1}" if layer.startswith("layer") else "res2"


def states_of_a_run(made):
    """The learner's state before the run and after each iteration."""
    states, step = [{k: v.clone() for k, v in made.learner.state_dict().items()}], made.run_step

    def run_step():
        step()
        states.append({k: v.clone() for k, v in made.learner.state_dict().items()})

    made.run_step = run_step
    made.train()
    return states


@pytest.mark.parametrize("optimizer", ["LARS", "AdamW"])
def test_one_unit_changes_at_a_time(images, tmp_path, caplog, optimizer):
    """11 iterations: 3, 3, 2 and 3. All of the unit changes, BN's averages too, and nothing else: no decay either."""
    logging.getLogger("pretrain").propagate = True  # other tests have it log to a file
    made = trainer(config(images, tmp_path, **{"SOLVER.OPTIMIZER": optimizer, "SOLVER.WEIGHT_DECAY": 0.01}))
    with caplog.at_level(logging.INFO):
        states = states_of_a_run(made)
    whose = ["res2"] * 3 + ["res3"] * 3 + ["res4"] * 2 + ["res5"] * 3
    assert [made.turns.unit_at(i) for i in range(11)] == whose
    for unit, before, after in zip(whose, states, states[1:], strict=False):
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert {unit_of(name) for name in changed} == {unit}
        weights = {n for n, p in made.learner.named_parameters() if unit_of(n) == unit and p.ndim > 1}
        assert weights | {n for n in before if "running" in n and unit_of(n) == unit} <= changed
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [[key for key in row if "loss" in key] for row in rows] == [[f"loss_{unit}", "total_loss"] for unit in whose]
    lines = set(caplog.text.splitlines())  # a logger of another test may still show each of them twice
    for first, unit in ((0, "res2"), (3, "res3"), (6, "res4"), (8, "res5")):  # no figure is smoothed over two turns
        assert rows[first]["total_loss"] == rows[first][f"loss_{unit}"]
        assert sum(f"loss: {rows[first]['total_loss']:.4f}" in line for line in lines) == 1
    peak = 10.0 * 4 / 256
    assert [row["lr"] for row in rows if row["iteration"] in (0, 3, 6, 8)] == pytest.approx([peak] * 4)
    assert "units [['res2'], ['res3'], ['res4'], ['res5']] one after the other, 8 images" in caplog.text
    assert "the unit of res4 learns alone, from iteration 7 to 8" in caplog.text
    lines = {record.getMessage() for record in caplog.records if "images/s" in record.getMessage()}
    for line in lines:
        unit = whose[int(line.partition("iter: ")[2].partition("/")[0]) - 1]
        assert [name for name in STAGES if f"loss_{name}: " in line] == [unit]
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    all_at_once = trainer(config(images, tmp_path / "at_once", **{"SOLVER.SEQUENTIAL": False}))
    assert list(content["model"]) == list(all_at_once.learner.state_dict())  # of the same layout
    assert_same_state(content["model"], states[-1])


def test_the_first_turn_is_a_run_of_that_unit_alone(images, tmp_path):
    turn = states_of_a_run(trainer(config(images, tmp_path / "all", **{"SOLVER.EPOCHS": 6.0})))[3]
    alone = train(config(images, tmp_path / "one", **{"SOLVER.EPOCHS": 1.5, "SOLVER.SEQUENTIAL": False,
                                                      "MODEL.UNITS": [["res2"]]})).learner.state_dict()  # fmt: skip
    own = [name for name in alone if unit_of(name) == "res2"]
    assert any("decoders" in name for name in own) and all(torch.equal(turn[name], alone[name]) for name in own)


@pytest.mark.parametrize(
    "keys",
    [
        {"SOLVER.OPTIMIZER": "LARS"},
        {"SOLVER.OPTIMIZER": "AdamW", "SOLVER.BASE_LR": 0.1, "SOLVER.WARMUP_EPOCHS": 0.5, "LOSS.NAME": "vicreg"},
        {"SOLVER.OPTIMIZER": "SGD", "SOLVER.BASE_LR": 1.0, "SOLVER.IMS_PER_CHUNK": 2, "MODEL.RECOMPUTE": ["res3"]},
    ],
)
def test_resumed_in_any_turn_the_bits_are_the_same(images, tmp_path, keys):
    keys |= {"SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.CHECKPOINTS_KEPT": 20}
    whole = train(config(images, tmp_path, **keys)).learner.state_dict()
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    for last in range(10):
        out = tmp_path / str(last)
        out.mkdir()
        (out / "model_0000000.pth").with_name(f"model_{last:07d}.pth").symlink_to(tmp_path / f"model_{last:07d}.pth")
        resumed = trainer(config(images, out, **keys), resume=True)
        assert resumed.start_iter == last + 1
        resumed.train()
        assert_same_state(resumed.learner.state_dict(), whole)
        for line, expected in zip((out / "metrics.json").read_text().splitlines(), lines[last + 1 :], strict=True):
            a, b = json.loads(line), json.loads(expected)
            assert [key for key in a if "loss" in key] == [key for key in b if "loss" in key]
            assert all(a[key] == b[key] for key in ("total_loss", "grad_norm", "lr"))


def test_knn_between_steps_changes_nothing(images, tmp_path):
    for i, path in enumerate(sorted(images.iterdir())):
        (tmp_path / "labelled" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "labelled" / "ab"[i % 2] / path.name).write_bytes(path.read_bytes())
    expected = train(config(images, tmp_path / "without")).learner.state_dict()
    keys = {"KNN.TRAIN": str(tmp_path / "labelled"), "KNN.PERIOD": 1.0}
    assert_same_state(train(config(images, tmp_path / "with", **keys)).learner.state_dict(), expected)


PAIRS = [["res2", "res3"], ["res4", "res5"]]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"MODEL.UNITS": get_cfg().MODEL.UNITS}, "res3 is in the units of res3 and res4, whose gradients"),
        ({"MODEL.UNITS": [["res2"], ["res3"]]}, "no unit contains res4, which would never run in training mode"),
        ({"MODEL.UNITS": [STAGES]}, r"SOLVER.SEQUENTIAL needs several units that take turns, but there is \['res5'\]"),
        ({"MODEL.UNITS": []}, "SOLVER.SEQUENTIAL needs several units that take turns, but there is none"),
        ({"MODEL.DECODER.STAGES": 1, "MODEL.DECODER.TIE": 0.1}, "MODEL.DECODER.TIE ties decoders to stages"),
        ({"SOLVER.EPOCHS": 1.5}, r"3 iterations are fewer than 4 units \(SOLVER.SEQUENTIAL\)"),
        ({"SOLVER.WARMUP_EPOCHS": 2.0}, r"SOLVER.WARMUP_EPOCHS 2.0 must be less than SOLVER.EPOCHS 5.5 / 4 units"),
        ({"MODEL.STAGE_PARALLEL.DEVICES": 2, "MODEL.STAGE_PARALLEL.SPLIT": PAIRS},
         "SOLVER.SEQUENTIAL trains one unit at a time, so that one device would work at a time"),
    ],
)  # fmt: skip
def test_what_is_refused(images, tmp_path, keys, why):
    with pytest.raises(ValueError, match=f"^{why}") as error:
        trainer(config(images, tmp_path, **keys))
    assert "\n" not in str(error.value)


ONE_RANK = """
import os, signal, sys, torch
from pathlib import Path
rank, folder, tests = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
sys.path += [tests, f"{tests}/../../helpers"]
from test_sequential import config, states_of_a_run, trainer
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
keys = {"LOSS.NAME": "vicreg", "SOLVER.IMS_PER_BATCH": 8, "SOLVER.EPOCHS": 11.0, "SOLVER.BASE_LR": 1.0}
t = trainer(config(folder / "images", folder / "whole", **keys))
t.train()
found = {"whole": t.learner.state_dict()}
t = trainer(config(folder / "images", folder / "stopped", **keys))
step = t.run_step
def run_step():
    if rank == 1 and t.iter == 6:  # in the turn of res4
        os.kill(os.getpid(), signal.SIGTERM)
    step()
t.run_step = run_step
t.train()
t = trainer(config(folder / "images", folder / "stopped", **keys), resume=True)
found["start"] = t.start_iter
t.train()
found["resumed"] = t.learner.state_dict()
torch.save(found, f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_and_resumed_in_the_third_turn(run_two_ranks, tmp_path):
    write_noise_images(tmp_path / "images", 8)
    run_two_ranks(ONE_RANK, tmp_path, Path(__file__).parent, OMP_NUM_THREADS="1")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert found[0]["start"] == found[1]["start"] == 7
    for name, value in found[0]["whole"].items():
        running = "running" in name and unit_of(name) == "res5"  # of the last turn each process has its own
        assert torch.equal(value, found[1]["whole"][name]) or running, name
        assert torch.equal(value, found[0]["resumed"][name]), name
