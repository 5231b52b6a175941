"""Several processes that share the stages train what one process trains, in float64, and write what it writes."""

import json
import math
import signal

import pytest
import torch
from checkout import ROOT
from noise import write_noise_images

# Run by each process with its rank, their number and a folder. Process 0 trains alone first.
ALL_RANKS = """
import os, signal, sys, torch
from detectron2.utils import comm
from pretrain.config import check, get_cfg
from pretrain.engine.stage_parallel.trainer import trainer_of
from pretrain.readout.knn import knn_evaluator
rank, count, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
SPLITS = {
    2: [["res2", "res3"], ["res4", "res5"]],
    3: [["res2"], ["res3", "res4[:1]"], ["res4[1:]", "res5"]],
    4: [["res2"], ["res3"], ["res4"], ["res5"]],
}
RULES = {
    "loco": {"SOLVER.LOG_PERIOD": 2, "MODEL.RECOMPUTE": ["res3"]},
    "gim": {"MODEL.UNITS": [[f"res{k}"] for k in (2, 3, 4, 5)], "SOLVER.OPTIMIZER": "SGD"},
    "blockwise": {"MODEL.UNITS": [[f"res{k}"] for k in (2, 3, 4, 5)], "LOSS.NAME": "barlow_twins", "MODEL.NOISE": 0.25,
                  "SOLVER.OPTIMIZER": "AdamW", "SOLVER.BASE_LR": 0.1},
}

def trainer(name, resume=False, devices=1, split=(), seed=5, **keys):
    cfg = get_cfg()
    small = {"DATASETS.TRAIN": f"{folder}/images", "OUTPUT_DIR": f"{folder}/{name}", "MODEL.DEVICE": "cpu",
             "MODEL.ENCODER": "resnet18x0.25", "INPUT.CROP_SIZE": 32, "MODEL.DECODER.HIDDEN_DIM": 16,
             "SOLVER.IMS_PER_BATCH": 4, "SOLVER.EPOCHS": 2.5, "SOLVER.WARMUP_EPOCHS": 0.0, "SOLVER.BASE_LR": 10.0,
             "DATALOADER.NUM_WORKERS": 0, "SOLVER.CHECKPOINT_PERIOD": 3, "SOLVER.LOG_PERIOD": 1,
             "MODEL.STAGE_PARALLEL.DEVICES": devices, "MODEL.STAGE_PARALLEL.SPLIT": list(split)}
    cfg.merge_from_list([part for pair in {**small, **keys}.items() for part in pair])
    check(cfg)
    torch.manual_seed(seed)
    return trainer_of(cfg)(cfg, resume, knn_evaluator(cfg))

def join():
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)

def attempt(do):
    try:
        return do()
    except (FloatingPointError, ValueError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
"""


def contents(folder, name, last=True):
    path = max(folder.glob(f"{name}/model_*.pth"), key=lambda path: path.name)
    assert not last or path.name == "model_final.pth"
    return torch.load(path, weights_only=True)


def assert_same(found, expected, tolerance=1e-10):
    """Two files' contents: the same names, types, strides and order, numbers within a tolerance."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            if key != "config":
                assert_same(found[key], expected[key], tolerance)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b, tolerance)
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and found.stride() == expected.stride()
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    else:
        assert found == expected


def lines(folder, name):
    return [json.loads(line) for line in (folder / name / "metrics.json").read_text().splitlines()]


ALL_RULES = """
if rank == 0:
    for name, keys in RULES.items():
        trainer(f"one {name}", **keys).train()
join()
trainer("traced", devices=count, split=SPLITS[count], **{"MODEL.STAGE_PARALLEL.TRACE": 2}).train()
for name, keys in RULES.items():
    t = trainer(f"several {name}", devices=count, split=SPLITS[count], **keys)
    t.train()
    assert not hasattr(t, "batches") or rank == 0  # others have no loader
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("count", [2, 3, 4])
def test_all_rules_learn_what_one_process_learns(run_ranks, tmp_path, count):
    write_noise_images(tmp_path / "images", 8)
    run_ranks(count, ALL_RANKS + ALL_RULES, count, tmp_path, OMP_NUM_THREADS="1")
    events = json.loads((tmp_path / "traced" / "trace.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == set(range(count)) and (tmp_path / "traced" / "timeline.png").exists()
    assert {event["args"]["iteration"] for event in events if event["ph"] == "X"} == {2, 3}
    for name in ("loco", "gim", "blockwise"):
        one, several = (contents(tmp_path, f"{kind} {name}") for kind in ("one", "several"))
        assert_same(several, one)
        assert torch.equal(several["model"]["encoder.conv1.weight"], one["model"]["encoder.conv1.weight"]) or count == 3
        mine, theirs = (lines(tmp_path, f"{kind} {name}") for kind in ("one", "several"))
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert a.keys() == b.keys()
            for key in (key for key in a if "loss" in key or key in ("grad_norm", "lr", "iteration")):
                assert math.isclose(a[key], b[key], rel_tol=1e-9), key


TWO_BY_TWO = """
keys = dict(RULES["loco"], **{"MODEL.NOISE": 0.1})
if rank < 2:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/two", rank=rank, world_size=2)
    for loss in ("info_nce", "barlow_twins", "vicreg"):
        trainer(f"one {loss}", **keys, **{"LOSS.NAME": loss}).train()
    torch.distributed.destroy_process_group()
    comm._get_global_gloo_group.cache_clear()
join()
for loss in ("info_nce", "barlow_twins", "vicreg"):
    trainer(f"several {loss}", devices=2, split=SPLITS[2], **keys, **{"LOSS.NAME": loss}).train()
torch.distributed.destroy_process_group()
"""


def test_two_by_two_processes_learn_what_two_that_divide_the_batch_learn(run_ranks, tmp_path):
    write_noise_images(tmp_path / "images", 8)
    run_ranks(4, ALL_RANKS + TWO_BY_TWO, 4, tmp_path, OMP_NUM_THREADS="1")
    for loss in ("info_nce", "barlow_twins", "vicreg"):
        assert_same(contents(tmp_path, f"several {loss}"), contents(tmp_path, f"one {loss}"))


RESUMED = """
if rank == 0:
    trainer("one", **RULES["loco"]).train()
join()

def stop_after(t, iteration, by):
    step = t.run_step
    def run_step():
        if rank == by and t.iter == iteration:
            os.kill(os.getpid(), signal.SIGTERM)
        step()
    t.run_step = run_step
    t.train()
    return t.iter

split = SPLITS[3]
found = {"stopped": stop_after(trainer("several", devices=3, split=split, **RULES["loco"]), 1, 2)}
found["resumed from"] = (t := trainer("several", True, devices=3, split=[["res2"], ["res3", "res4"], ["res5"]],
                                      **RULES["loco"])).start_iter
t.train()
trainer("several", True, devices=3, split=split, **RULES["loco"]).train()  # nothing is left to do

t = trainer("nan", devices=3, split=split, **RULES["loco"])
if rank == 1:
    loss = t.learner.loss
    t.learner.loss = lambda a, b: loss(a, b) * (float("nan") if t.iter == 1 else 1)
found["nan"] = attempt(t.train)
torch.save(found, f"{folder}/{rank}.pt")
"""


def test_sigterm_resume_and_nan(run_ranks, tmp_path):
    write_noise_images(tmp_path / "images", 8)
    run_ranks(3, ALL_RANKS + RESUMED, 3, tmp_path, OMP_NUM_THREADS="1")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    stopped = found[0]["stopped"]
    assert stopped in (2, 3, 4) and all(of["stopped"] == stopped for of in found)
    assert all(of["resumed from"] == stopped + 1 for of in found)
    assert_same(contents(tmp_path, "several"), contents(tmp_path, "one"))
    assert found[1]["nan"].startswith("FloatingPointError: loss_res3 is not finite at iteration 1: ")
    # The gradient that went down was not finite either: process 0 may see it first
    assert found[0]["nan"].startswith(("PeerLostError: process 1 (", "FloatingPointError: the gradient of res2 is not"))
    assert found[2]["nan"].startswith(
        (
            "PeerLostError: process 1 (res3, res4[:1]) has failed: loss_res3 is not finite",
            "PeerLostError: process 0 (res2) has failed: the gradient of res2 is not",
        )
    )
    assert not list(tmp_path.glob("nan/*.pth"))


OTHER_COUNT = """
if rank == 0:
    t = trainer("several", True, **RULES["loco"])
    assert t.start_iter == 3
    t.train()
"""


def test_a_run_goes_on_with_another_number_of_devices(run_ranks, tmp_path):
    """One process begins, four go on; four begin, one goes on: what one process alone trains."""
    write_noise_images(tmp_path / "images", 8)
    stop = "\nt.max_iter = 3\nt.train()\n"
    begin = "if rank == 0:\n    t = trainer('one', **RULES['loco'])" + stop.replace("\n", "\n    ")
    end = "\ntrainer('one', True, devices=4, split=SPLITS[4], **RULES['loco']).train()\n"
    whole = "\nif rank == 0:\n    trainer('whole', **RULES['loco']).train()\n"
    several = "\nt = trainer('several', devices=4, split=SPLITS[4], **RULES['loco'])" + stop
    run_ranks(4, ALL_RANKS + begin + whole + "\njoin()" + end + several, 4, tmp_path, OMP_NUM_THREADS="1")
    (tmp_path / "several" / "model_final.pth").unlink()  # of three iterations
    (tmp_path / "several" / "last_checkpoint").write_text("model_0000002.pth")
    run_ranks(1, ALL_RANKS + OTHER_COUNT, 1, tmp_path, OMP_NUM_THREADS="1")
    for name in ("one", "several"):
        assert_same(contents(tmp_path, name), contents(tmp_path, "whole"))


LATE = """
join()
keys = dict(RULES["loco"], **{"MODEL.STAGE_PARALLEL.LATE": True})
trainer("whole", devices=3, split=SPLITS[3], **keys).train()
t = trainer("parts", devices=3, split=SPLITS[3], **keys)
t.max_iter = 3
t.train()
trainer("other", devices=3, split=SPLITS[3], **keys, **{"SOLVER.CHECKPOINT_PERIOD": 2}).train()
"""
LATE_RESUMED = """
join()
if rank == 0:
    os.remove(f"{folder}/parts/model_final.pth")
    open(f"{folder}/parts/last_checkpoint", "w").write("model_0000002.pth")
torch.distributed.barrier()
keys = dict(RULES["loco"], **{"MODEL.STAGE_PARALLEL.LATE": True})
trainer("parts", True, devices=3, split=SPLITS[3], **keys).train()
"""


def test_late_is_resumed_exactly_and_checkpoints_change_nothing(run_ranks, tmp_path):
    write_noise_images(tmp_path / "images", 8)
    run_ranks(3, ALL_RANKS + LATE, 3, tmp_path, OMP_NUM_THREADS="1")
    (tmp_path / "store").unlink()
    run_ranks(3, ALL_RANKS + LATE_RESUMED, 3, tmp_path, OMP_NUM_THREADS="1")
    whole, other = contents(tmp_path, "whole"), contents(tmp_path, "other")
    assert {name.split(".")[1] for name in whole["late"]} == {"conv1", "bn1", "layer1", "layer2", "layer3"}
    assert_same(contents(tmp_path, "parts"), whole, 0)
    assert_same({k: v for k, v in other.items() if k != "config"}, {k: v for k, v in whole.items() if k != "config"}, 0)


AUTO = """
join()
t = trainer("auto", devices=2, **RULES["loco"])
t.train()
again = trainer("auto", True, devices=2, **RULES["loco"]) if write(t) else None
trainer("precision", devices=2, **RULES["loco"], **{"SOLVER.AMP.ENABLED": "auto"})
torch.save((t.cfg.MODEL.STAGE_PARALLEL.SPLIT, again.cfg.MODEL.STAGE_PARALLEL.SPLIT), f"{folder}/{rank}.pt")
"""
WRITE = """
def write(t):
    from pretrain.files.checkpoints import write_config
    if rank == 0:
        write_config(t.cfg)
    torch.distributed.barrier()
    return True
"""


def test_a_split_is_chosen_by_measured_times_and_kept(run_ranks, tmp_path):
    write_noise_images(tmp_path / "images", 8)
    run_ranks(2, ALL_RANKS + WRITE + AUTO, 2, tmp_path, OMP_NUM_THREADS="1")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert found[0] == found[1] and found[0][0] == found[0][1] and len(found[0][0]) == 2


REFUSED = """
from pretrain.engine.stage_parallel import split as chosen_split
chosen_split.measure = None  # nothing of this is measured first
join()
trainer("there", devices=2, split=SPLITS[2], **RULES["gim"], **{"SOLVER.EPOCHS": 0.5}).train()
found = [
    attempt(lambda: trainer("x", devices=4)),
    attempt(lambda: trainer("x", devices=10)),
    attempt(lambda: trainer("x", devices=2, split=[["res2"], ["res4", "res5"]])),
    attempt(lambda: trainer("x", devices=2, split=[["res2", "res3"], ["res3", "res4", "res5"]])),
    attempt(lambda: trainer("x", devices=2, split=[["res2", "res3"], ["res6"]])),
    attempt(lambda: trainer("x", devices=2, split=[["res2", "res3", "res4", "res5"], []])),
    attempt(lambda: trainer("x", devices=2, **{"SOLVER.IMS_PER_CHUNK": 2})),
    attempt(lambda: trainer("x", devices=2, **RULES["gim"], **{"SOLVER.SEQUENTIAL": True})),
    attempt(lambda: trainer("x", devices=2, **{"MODEL.UNITS": [["res2", "res3", "res4", "res5"]]})),
    attempt(lambda: trainer("x", devices=2, split=SPLITS[2], **{"MODEL.UNITS": [["res2"], ["res9"]]})),
    attempt(lambda: trainer("x", devices=2, split=SPLITS[2], **{"MODEL.UNITS": [["res2", "res3", "res4", "res5"]]})),
    attempt(lambda: trainer("x", devices=2, split=SPLITS[2], **RULES["gim"], **{"MODEL.STAGE_PARALLEL.LATE": True})),
    attempt(lambda: trainer("x", devices=2, split=SPLITS[2],
                            **{"MODEL.STAGE_PARALLEL.LATE": True, "MODEL.COMPILE": True})),
    attempt(lambda: trainer("x", devices=2, split=SPLITS[2], **{"MODEL.DECODER.STAGES": 1, "MODEL.DECODER.TIE": 1.0})),
    attempt(lambda: trainer("x", devices=2, split=SPLITS[2], **{"DATASETS.TRAIN": f"{folder}/nowhere"})),
    attempt(lambda: trainer("x", devices=2, split=SPLITS[2], **{"SOLVER.IMS_PER_BATCH": 16})),
    attempt(lambda: trainer("x", True, devices=2, split=SPLITS[2])),
    attempt(lambda: trainer("there", True, devices=2, split=[["res2"], ["res3", "res4", "res5"]], **RULES["gim"],
                            **{"MODEL.ENCODER": "resnet34x0.25", "SOLVER.EPOCHS": 0.5})),
    attempt(lambda: trainer("there", True, devices=2, split=[["res2[:4]"], ["res2[4:]", "res3", "res4", "res5"]],
                            **RULES["gim"], **{"MODEL.ENCODER": "resnet34x0.25", "SOLVER.EPOCHS": 0.5})),
]
torch.save(found, f"{folder}/{rank}.pt")
"""
WHY = [
    "ValueError: MODEL.STAGE_PARALLEL.DEVICES is 4, but there are 2 processes: start 4",
    "ValueError: MODEL.STAGE_PARALLEL.DEVICES is 10, but resnet18x0.25 has 9 blocks: each device needs one",
    "ValueError: MODEL.STAGE_PARALLEL.SPLIT: ['res4', 'res5'] leaves out res3[0:1]",
    "ValueError: MODEL.STAGE_PARALLEL.SPLIT: ['res3', 'res4', 'res5'] has again res3[0:1]",
    "ValueError: MODEL.STAGE_PARALLEL.SPLIT: 'res6' is not a stage",
    "ValueError: MODEL.STAGE_PARALLEL.SPLIT: device [] is not a run of consecutive stages",
    "ValueError: SOLVER.IMS_PER_CHUNK runs every stage twice",
    "ValueError: SOLVER.SEQUENTIAL trains one unit at a time",
    "ValueError: MODEL.STAGE_PARALLEL: the unit of res5 has all stages: end-to-end learning",
    "ValueError: MODEL.UNITS: ['res9'] does not end with one of",
    "ValueError: MODEL.STAGE_PARALLEL: the unit of res5 has all stages: end-to-end learning",
    "ValueError: MODEL.STAGE_PARALLEL: no unit has stages on two devices",
    "ValueError: MODEL.STAGE_PARALLEL.LATE runs stages with copies of their weights",
    "ValueError: MODEL.STAGE_PARALLEL: a penalty ties decoders to stages",
    "FileNotFoundError: ",
    "ValueError: 8 images are fewer than SOLVER.IMS_PER_BATCH 16",
    "FileNotFoundError: ",
    "ValueError: /",  # FOLDER is a run with other values of
    "ValueError: MODEL.STAGE_PARALLEL.SPLIT: 'res2[4:]' is empty: res2 has 4 blocks",
]


def test_what_is_refused_is_refused_in_all_processes(run_two_ranks, tmp_path):
    write_noise_images(tmp_path / "images", 8)
    run_two_ranks(ALL_RANKS + REFUSED, 2, tmp_path, OMP_NUM_THREADS="1")
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for text, why in zip(found, WHY, strict=True):
            assert isinstance(text, str) and text.startswith(why), (text, why)
            assert "\n" not in text
        assert found[-2].partition(" is a run ")[2].startswith("with other values of MODEL.ENCODER: resume it with")


DEAD = """
import time
pid = 0
for rank in range(3):
    pid = os.fork()
    if not pid:
        break
    if rank == int(sys.argv[4]):
        victim = pid
if pid:  # the parent: kills one of them, and notes how the others end
    while not os.path.exists(f"{folder}/running"):
        time.sleep(0.1)
    os.kill(victim, int(sys.argv[5]))
    begun, ends = time.monotonic(), []
    for number in range(3):
        if number == 2 and int(sys.argv[5]) == signal.SIGSTOP:
            os.kill(victim, signal.SIGKILL)
        ended, status = os.wait()
        ends.append((ended == victim, os.waitstatus_to_exitcode(status), time.monotonic() - begun))
    torch.save(ends, f"{folder}/ends.pt")
else:
    count = 3
    join()
    t = trainer("dead", devices=3, split=SPLITS[3], **RULES["loco"], **{"SOLVER.EPOCHS": 1e6})
    step = t.run_step
    def run_step():
        if t.iter == 3 and rank == 2:
            open(f"{folder}/running", "w").close()
        step()
    t.run_step = run_step
    try:
        t.train()
    except RuntimeError as error:
        print(f"process {rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
"""


@pytest.mark.parametrize(
    ("victim", "number"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (2, signal.SIGKILL), (2, signal.SIGSTOP)]
)
def test_the_end_of_one_process_ends_all(run_tool, tmp_path, victim, number):
    """Also of one whose connections stay open, as those of a machine that is gone do."""
    write_noise_images(tmp_path / "images", 8)
    helper = ROOT / "tests" / "helpers" / "ranks.py"
    done = run_tool(helper, 1, ALL_RANKS + DEAD, 3, tmp_path, victim, int(number), timeout=120, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    ends = torch.load(tmp_path / "ends.pt")
    assert sorted(code for killed, code, _ in ends if not killed) == [1, 1]
    assert max(seconds for *_, seconds in ends) < 30
    name = ["process 0 (res2)", "process 1 (res3, res4[:1])", "process 2 (res4[1:], res5)"][victim]
    told = [line for line in done.stderr.splitlines() if line.startswith("process ")]
    assert len(told) == 2 and all(f"{name} has ended; go on with --resume" in line for line in told), done.stderr


KILLED = """
launch = int(sys.argv[4])
if rank == 0 and launch == 0:
    trainer("one", **RULES["loco"]).train()
join()
t = trainer("several", launch > 0, devices=3, split=SPLITS[3], **RULES["loco"], **{"SOLVER.CHECKPOINT_PERIOD": 1})
step = t.run_step
def run_step():
    if rank == launch and t.iter == launch + 1:
        os.kill(os.getpid(), signal.SIGKILL)
    step()
t.run_step = run_step
t.train()
torch.distributed.destroy_process_group()
"""


def test_a_run_whose_processes_were_killed_is_resumed_exactly(run_tool, tmp_path):
    write_noise_images(tmp_path / "images", 8)
    helper = ROOT / "tests" / "helpers" / "ranks.py"
    for launch in range(4):  # the first three end with SIGKILL of process 0, 1 and 2
        done = run_tool(helper, 3, ALL_RANKS + KILLED, 3, tmp_path, launch, timeout=120, OMP_NUM_THREADS="1")
        assert done.returncode == (launch < 3), done.stderr
        assert (tmp_path / "several" / "model_final.pth").exists() == (launch == 3)
        (tmp_path / "store").unlink()
    one, several = contents(tmp_path, "one"), contents(tmp_path, "several")
    assert_same(several, one)


def test_a_file_that_cannot_be_written_is_one_line_of_all_processes(run_tool, tmp_path):
    write_noise_images(tmp_path / "images", 8)
    (tmp_path / "out" / "model_0000001.pth").mkdir(parents=True)
    keys = {"DATASETS.TRAIN": tmp_path / "images", "OUTPUT_DIR": tmp_path / "out", "MODEL.DEVICE": "cpu",
            "MODEL.ENCODER": "resnet18x0.25", "INPUT.CROP_SIZE": 32, "MODEL.DECODER.HIDDEN_DIM": 16,
            "SOLVER.IMS_PER_BATCH": 4, "SOLVER.EPOCHS": 9, "SOLVER.WARMUP_EPOCHS": 0.0, "DATALOADER.NUM_WORKERS": 0,
            "SOLVER.CHECKPOINT_PERIOD": 2, "MODEL.STAGE_PARALLEL.DEVICES": 2,
            "MODEL.STAGE_PARALLEL.SPLIT": '[["res2", "res3"], ["res4", "res5"]]'}  # fmt: skip
    pairs = [part for pair in keys.items() for part in pair]
    done = run_tool("pretrain.py", "--num-gpus", 2, *pairs, timeout=120, OMP_NUM_THREADS="1")
    assert done.returncode == 2  # a folder in its place
    told = [line for line in done.stderr.splitlines() if not line.startswith("[") and "arning" not in line]
    assert len(told) == 1 and told[0].startswith("error: ") and "model_0000001.pth" in told[0], done.stderr


SLOW = """
import time
from pretrain.processes import peers
peers.SILENT, peers.POLL, peers.GRACE = 3.0, 0.2, 0.5
join()
t = trainer("slow", devices=2, split=SPLITS[2], **RULES["gim"])
time.sleep(5 * rank)
t.train()
torch.distributed.destroy_process_group()
"""


def test_a_process_that_begins_late_is_not_taken_for_dead(run_two_ranks, tmp_path):
    write_noise_images(tmp_path / "images", 8)
    run_two_ranks(ALL_RANKS + SLOW, 2, tmp_path, OMP_NUM_THREADS="1")
    assert contents(tmp_path, "slow")["iteration"] == 4


KNN = """
torch.set_default_dtype(torch.float32)  # as kNN's images
keys = {"KNN.TRAIN": f"{folder}/labelled", "KNN.PERIOD": 1.0, "KNN.K": 1, "SOLVER.LOG_PERIOD": 2, **RULES["gim"]}
if rank == 0:
    trainer("one", **keys).train()
join()
trainer("several", devices=2, split=SPLITS[2], **keys).train()
torch.distributed.destroy_process_group()
"""


PRECISION = """
import functools
from pretrain.learning.learner import LocalLearner
torch.set_default_dtype(torch.float32)
LocalLearner.compile = functools.partialmethod(LocalLearner.compile, backend="aot_eager")  # needs no compiler
rows = {"bfloat16": {"SOLVER.AMP.ENABLED": True, "MODEL.NOISE": 0.1}, "compiled": {"MODEL.COMPILE": True}}
if rank == 0:
    for name, keys in rows.items():
        trainer(f"one {name}", **RULES["loco"], **keys).train()
join()
for name, keys in rows.items():
    # Process 0 draws the initial weights of all, and others another number of random numbers
    t = trainer(f"several {name}", devices=2, split=SPLITS[2], seed=5 + rank, **RULES["loco"], **keys)
    assert all((s.module._compiled_call_impl is not None) == (name == "compiled" and len(s.losses) < 2)
               for s in t.learner.segments)
    t.train()
    assert t.ports._above is None or str(t.ports._above.dtype)[6:] == {"compiled": "float32"}.get(name, name)
torch.distributed.destroy_process_group()
"""


def test_bfloat16_and_compiled_stages_learn_what_one_process_learns(run_two_ranks, tmp_path):
    write_noise_images(tmp_path / "images", 8)
    run_two_ranks(ALL_RANKS + PRECISION, 2, tmp_path, OMP_NUM_THREADS="1")
    for name in ("bfloat16", "compiled"):
        assert_same(contents(tmp_path, f"several {name}"), contents(tmp_path, f"one {name}"), 0)


def test_knn_sees_the_whole_encoder(run_two_ranks, tmp_path):
    write_noise_images(tmp_path / "images", 8)
    for label in "ab":
        write_noise_images(tmp_path / "labelled" / label, 3)
    run_two_ranks(ALL_RANKS + KNN, 2, tmp_path, OMP_NUM_THREADS="1")
    one, several = (
        [{key: value for key, value in line.items() if "time" not in key and "second" not in key} for line in found]
        for found in (lines(tmp_path, "one"), lines(tmp_path, "several"))
    )
    assert sum("knn/res5-top1" in line for line in one) == 3
    assert one == several
    assert_same(contents(tmp_path, "several"), contents(tmp_path, "one"), 0)
