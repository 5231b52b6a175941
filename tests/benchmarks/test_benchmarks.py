"""Every benchmark runs, writes its record and its tables; README and docs show what the records say."""

import argparse
import importlib
import itertools
import json
import os
import sys
import time

import pytest
import torch

from benchmarks import common, pretrain_step, render

NO_BENCHMARKS = ("__init__", "common", "render", "gpu_check")  # the last has tests of its own, tests/gpu
NAMES = sorted(p.stem for p in (common.ROOT / "benchmarks").glob("*.py") if p.stem not in NO_BENCHMARKS)


@pytest.fixture(autouse=True)
def _as_before():
    """Threads, denormal numbers and random numbers of the other tests stay what they were."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs(name, monkeypatch, tmp_path, capsys, request):
    """In this process, rows too, which saves the seconds of importing torch for each."""
    benchmark, megabytes = importlib.import_module(f"benchmarks.{name}"), itertools.count(100)
    if hasattr(benchmark, "call"):  # of command lines
        run_tool = request.getfixturevalue("run_tool")
        monkeypatch.setattr(benchmark, "call", lambda checkpoints, command: run_tool(*command))
    if hasattr(benchmark, "seconds_of"):
        run_tool = request.getfixturevalue("run_tool")
        monkeypatch.setattr(benchmark, "seconds_of", lambda command, until=None: timed(run_tool, command, until))
    for peer in ("lightly", "faster_coco_eval"):
        monkeypatch.setitem(sys.modules, peer, None)
    monkeypatch.setattr(common, "in_child", lambda script, *arguments, env=None: benchmark.child(*arguments))
    monkeypatch.setattr("pretrain.processes.cpu.keep_freed", lambda: True)  # which would last for all tests
    monkeypatch.setattr(common, "memory", lambda key: next(megabytes))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--smoke", "--output", str(tmp_path / "record.json")])
    common.main(benchmark)
    found = json.loads((tmp_path / "record.json").read_text())
    assert found["benchmark"] == name and found["machine"]["cores"] >= 1
    assert {"torch", "python"} <= found["versions"].keys() and found["date"][:2] == "20" and found["settings"]
    printed = capsys.readouterr().out
    assert benchmark.markdown(found) in printed and printed.count("\n|") > 2


@pytest.mark.parametrize("row", ["GIM", "LoCo, double forward", "LoCo", "lightly SimCLR"])
def test_a_step_of_a_network_of_timm(row):
    if row.startswith("lightly"):
        pytest.importorskip("lightly")
    args = argparse.Namespace(encoder="timm:test_vit", size=32, batch=2, threads=1)
    model, step = pretrain_step.build(row, args)
    found = pretrain_step.flops(row, model, step, args)
    assert 0 < found["forward"] < found["step"]


def timed(run_tool, command, until):
    """As benchmarks/start_up.py does it, for a tool in a fork that runs to its end."""
    start = time.perf_counter()
    if command[0].startswith("tools/"):
        more = ["SOLVER.MAX_ITER", 1, "SOLVER.STEPS", "()", "TEST.PRECISE_BN.NUM_ITER", 1] if until else []
        done = run_tool(command[0].removeprefix("tools/"), *command[1:], *more)
        assert done.returncode == 0 and (until or "") in done.stdout, done.stderr
    return time.perf_counter() - start


def test_rows_are_measured_in_processes_of_their_own(tmp_path):
    script = tmp_path / "bench.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(common.ROOT)!r})\n"
        "from benchmarks import common\n"
        "def child(a, b):\n"
        "    if b: import nobody_has_this\n"
        "    return [a, os.getpid(), os.environ['FOR_THE_ROW']]\n"
        "common.main(sys.modules[__name__])\n"
    )
    first, pid, value = common.in_child(str(script), 1, False, env={"FOR_THE_ROW": "x"})
    assert first == 1 and pid != os.getpid() and value == "x"
    assert common.in_child(str(script), 1, True, env={"FOR_THE_ROW": "x"}) is None


def test_a_command_is_timed_to_its_end_or_to_a_line():
    from benchmarks.start_up import seconds_of

    assert seconds_of(["-c", "import time; print('begun', flush=True); time.sleep(60)"], "begun") < 30
    assert seconds_of(["-c", ""]) > 0
    for command, until in ((["-c", "raise OSError('no room')"], None), (["-c", "print('no room')"], "begun")):
        with pytest.raises(SystemExit, match="no room"):
            seconds_of(command, until)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_readout_in_both_precisions(dtype, monkeypatch):
    from benchmarks import precision

    monkeypatch.setattr("pretrain.processes.cpu.keep_freed", lambda: True)
    assert precision.child("readout, demo's encoder", 2, dtype) > 0


def test_folders_of_a_probe_are_looked_at_first(tmp_path, monkeypatch):
    from benchmarks import demo

    monkeypatch.setattr(demo, "run", lambda *_: pytest.fail("begun"))
    command = ["demo.py", "--short", "--probe", str(tmp_path / "a"), str(tmp_path / "b")]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(tmp_path / "record.json")])
    with pytest.raises(SystemExit, match="error: .*no such folder"):
        common.main(demo)


def test_a_missing_record_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["render.py", "--check"])
    with pytest.raises(SystemExit, match="error: .*[.]json: no such record: python benchmarks/.*[.]py writes it"):
        render.main()


def test_pages_show_what_the_records_say():
    for page in render.pages():
        assert render.rendered(page.read_text()) == page.read_text(), f"{page.name}: run python benchmarks/render.py"


def test_a_figure_typed_by_hand_is_noticed():
    text = f"before\n<!-- bench: small_maps -->\n{render.block('small_maps')}\n<!-- end -->\nafter"
    assert render.rendered(text) == text
    assert render.rendered(text.replace("x |", "9x |", 1)) == text


def test_make_bench_runs_them_all_and_nothing_that_needs_a_gpu():
    line = next(line for line in (common.ROOT / "Makefile").read_text().splitlines() if "wildcard benchmarks" in line)
    assert all(f"%/{name}.py" in line for name in NO_BENCHMARKS) and line.count("%/") == len(NO_BENCHMARKS)
