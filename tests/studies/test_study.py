"""The study's learning rates, parts and queue; runs that are made up, and one that is real, of a few tiny images."""

import argparse
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import collect
import pytest
import run as study_run
import runner
import study_tables
from made_up_study import ROOT, STAGES, do, fake_call, study_of, tune
from rates import LONG, MIDDLE, RATES, SHORT
from rows import CROP96, ROWS, SETTINGS_ROWS
from run import THIN18, Run, Study


def test_learning_rate_is_the_best_between_two_worse_ones(faked):
    assert faked.rate("loco", SHORT) is None
    do(faked, faked.grid())
    assert faked.rate("loco", SHORT) is None  # the best so far has no worse one below
    assert faked.runs(["loco", "random"], SHORT, [0]) == [Run(THIN18, "random", RATES[2], 0, 0)]
    while runs := [run for run in faked.grid() if run.epochs == SHORT]:
        do(faked, runs)
    assert faked.rate("loco", SHORT) == faked.rate("upper_gradient", SHORT) == RATES[1]
    tried = {row: sorted(faked.tried(row, SHORT)) for row in ("loco", "gim", "simclr", "barlow")}
    assert tried == {"loco": [*RATES[:4]], "gim": [*RATES[2:]], "simclr": [*RATES[2:]], "barlow": [*RATES[1:4]]}
    assert faked.rate("gim", SHORT) == RATES[4] and faked.rate("simclr", SHORT) == RATES[-1]  # the end of the grid
    assert faked.rate("loco", MIDDLE) is None
    tune(faked)
    # the two best of the short budget (the first of equals), and what lies next to the best of these
    assert sorted(faked.tried("loco", MIDDLE)) == [*RATES[:3]]
    assert sorted(faked.tried("simclr", MIDDLE)) == [*RATES[-2:]]
    results = study_tables.Results(collect.collect(faked.folder))
    for row in ROWS:
        for epochs in (SHORT, MIDDLE, LONG):
            assert row == "random" or results.rates[row, epochs] == faked.rate(row, epochs)
    set_held_out(faked, "loco", RATES[2], SHORT, 99.0)  # by held-out images, never by the test set
    assert faked.rate("loco", SHORT) == RATES[2]
    set_held_out(faked, "loco", RATES[2], MIDDLE, 98.0)  # the best has no worse one above any more
    assert faked.rate("loco", MIDDLE) is None
    assert [(run.rate, run.epochs) for run in faked.grid()] == [(RATES[3], MIDDLE)]
    tune(faked)
    assert (faked.rate("loco", MIDDLE), faked.rate("loco", LONG)) == (RATES[2], RATES[2])
    set_held_out(faked, "loco", RATES[0], MIDDLE, 99.0)  # what is best for a few steps need not be for many
    assert [faked.rate("loco", epochs) for epochs in (SHORT, MIDDLE, LONG)] == [RATES[2], RATES[0], RATES[0]]
    results = study_tables.Results(collect.collect(faked.folder))
    assert [results.rates["loco", epochs] for epochs in (SHORT, MIDDLE, LONG)] == [RATES[2], RATES[0], RATES[0]]


def test_rates_are_tried_again_with_larger_crops_and_choose_nothing(faked):
    assert study_run.PHASES["rates96"](faked) == []  # no rate is chosen yet
    assert ("gim", MIDDLE) in faked.without_rate
    tune(faked)
    own = {row: faked.rate(row, MIDDLE) for row in SETTINGS_ROWS}
    runs = study_run.PHASES["rates96"](faked)
    assert runs == [Run(CROP96, row, rate, MIDDLE, 0) for row, rate in own.items()]
    do(faked, runs)
    set_held_out(faked, "loco", own["loco"], MIDDLE, 99.0, CROP96)
    runs = study_run.PHASES["rates96"](faked)
    place = RATES.index(own["loco"])
    assert [run.rate for run in runs if run.row == "loco"] == [RATES[place - 1], RATES[place + 1]]
    while runs := study_run.PHASES["rates96"](faked):
        do(faked, runs)
    assert own == {row: faked.rate(row, MIDDLE) for row in SETTINGS_ROWS}
    results = study_tables.Results(collect.collect(faked.folder))
    for row, rate in own.items():
        assert [run["rate"] for run in results.of(row, MIDDLE, CROP96)] == [rate]
    assert len(results.tried("loco", MIDDLE, CROP96)) == 3
    table = study_tables.grid_table(results, CROP96)
    assert table.startswith("20 epochs:") and "**99.0**" in table and table.count("**") == 2 * len(own)


def set_held_out(study, row, rate, epochs, accuracy, scale=THIN18):
    path = study.folder / Run(scale, row, rate, epochs, 0).name / "linear_probe" / "results.json"
    path.write_text(json.dumps({"linear": {s: {"top1": 0.0, "held_out_top1": accuracy} for s in STAGES}}))


def test_a_loss_that_explodes_is_an_outcome_and_other_failures_are_not(faked, monkeypatch):
    said = f"error: loss_res5 is not finite at iteration 3: {study_run.EXPLODED} or a longer warm-up"
    source = (ROOT / "pretrain" / "engine" / "divergence.py").read_text()
    assert study_run.EXPLODED in source.replace('"\n                "', "")
    works = Study.call

    def call(self, run, tool, *arguments):
        if run.row == "gim" and run.rate > RATES[3]:
            folder = self.folder / run.name
            (folder / "log.txt").write_text(said if run.rate == RATES[4] else "error: disk full")
            (folder / "pretrain").mkdir(exist_ok=True)
            (folder / "pretrain" / "config.yaml").write_text((folder / "recipe.yaml").read_text())
            (folder / "pretrain" / "metrics.json").write_text('{"iteration": 2}\n')
            (folder / "cost.jsonl").write_text(
                '{"what": "pretrain", "start": 0, "seconds": 1, "exit_code": 1, "machine": "x"}\n'
            )
            raise RuntimeError("exit code 1")
        works(self, run, tool, *arguments)

    monkeypatch.setattr(Study, "call", call)
    tune(faked)
    assert not faked.failed and faked.tried("gim", SHORT)[RATES[4]] == 0 and faked.rate("gim", SHORT) == RATES[3]
    results = study_tables.Results(collect.collect(faked.folder))
    assert results.rates["gim", MIDDLE] == faked.rate("gim", MIDDLE) and results.tried("gim", SHORT)[RATES[4]] == 0
    do(faked, [Run(THIN18, "gim", RATES[5], SHORT, 0)])
    assert faked.failed == [f"{THIN18}/gim/5ep_lr0.054_seed0"]


def test_finished_runs_are_not_run_again_and_broken_ones_are_reported(faked, monkeypatch, capsys):
    runs = faked.grid()[:2]
    do(faked, runs)
    costs = [(faked.folder / run.name / "cost.jsonl").read_text() for run in runs]
    assert all(cost.count("\n") == 3 for cost in costs)  # pretraining, linear probe, kNN
    do(faked, runs)
    assert costs == [(faked.folder / run.name / "cost.jsonl").read_text() for run in runs]
    (faked.folder / runs[0].name / "knn" / "results.json").unlink()
    shutil.rmtree(faked.folder / runs[0].name / "knn")
    do(faked, runs)
    assert (faked.folder / runs[0].name / "cost.jsonl").read_text().count("\n") == 4

    def broken(self, run, tool, *arguments):
        raise RuntimeError(f"{run.name}: {tool}.py ended with exit code 1, see log.txt")

    monkeypatch.setattr(Study, "call", broken)
    more = faked.grid()[0]
    do(faked, [*runs, more])
    assert faked.failed == [more.name] and "FAILED" in capsys.readouterr().out


def test_a_run_begins_when_its_learning_rate_is_known_and_its_folder_free(faked, monkeypatch):
    """One queue: the first phases first, but no worker waits for one that cannot begin."""
    begun, now, most, works = [], [], [], Study.do

    def slow(self, run):
        begun.append(run)
        now.append(run.name)
        most.append(len(now))
        assert len(set(now)) == len(now)
        time.sleep(0.01)
        works(self, run)
        now.remove(run.name)

    monkeypatch.setattr(Study, "do", slow)
    long, random = (faked.runs, ["loco"], LONG, [0]), (faked.runs, ["random"], LONG, [0])
    phases = [long, (faked.grid,), random]
    faked.work(lambda: [run for function, *arguments in phases for run in function(*arguments)])
    assert max(most) == 2 and len(begun) == len(set(begun))
    (place,) = [i for i, run in enumerate(begun) if run.epochs == LONG]
    (control,) = [i for i, run in enumerate(begun) if run.row == "random"]
    assert control > place  # the grid had something to do until then
    last = max(i for i, run in enumerate(begun) if run.row == "loco" and run.epochs == MIDDLE)
    assert last < place <= last + 3


def test_runs_of_one_folder_take_turns(faked, monkeypatch):
    now = []

    def slow(self, run):
        now.append(run.name)
        assert now.count(run.name) == 1
        time.sleep(0.1)
        now.remove(run.name)

    monkeypatch.setattr(Study, "do", slow)
    run = faked.grid()[0]
    detection = run._replace(detect="nuclei")
    do(faked, [run, detection, run])
    assert not faked.failed and faked.seen == {run, detection} and not faked.busy


def test_parts_are_chosen_by_phase_row_and_budget(faked, data, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    faked.hold.close()

    def run(**parts):
        parts = dict.fromkeys(("nuclei", "record", "phase", "rows", "epochs")) | parts
        study_run.main(argparse.Namespace(imagenette=data, output=faked.folder, jobs=2, **parts))
        return {path.parent.name + "/" + path.name for path in faked.folder.glob(f"{THIN18}/*/*")}

    for parts in (
        {"phase": ["short"], "rows": ["loco"]},
        {"phase": ["long"], "epochs": [LONG]},
        {"phase": ["table5"], "rows": ["upper_gradient"]},
    ):
        with pytest.raises(ValueError, match="learning rates of .* run --phase grid first"):
            run(**parts)
    shutil.rmtree(faked.folder / THIN18)
    assert run(phase=["short"], rows=["random"]) == {f"random/0ep_lr0.002_seed{seed}" for seed in range(3)}
    done = run(phase=["grid"], rows=["gim"], epochs=[SHORT])
    assert {name.split("_")[0] for name in done} == {"random/0ep", "gim/5ep"}
    before, done = done, run(phase=["grid", "middle"], rows=["gim"])
    assert {name.split("_")[0] for name in done - before} == {"gim/20ep"}
    assert {name.split("_")[-1] for name in done - before} == {"seed0", "seed1", "seed2"}
    done = run(phase=["short"], rows=["gim"], epochs=[SHORT])  # which needs no rate of longer ones
    before, done = done, run(phase=["grid", "table5"], rows=["upper_gradient"], epochs=[MIDDLE])
    assert {name.partition("/")[0] for name in done - before} == {"loco", "upper_gradient"}
    assert len([name for name in done if name.startswith("upper_gradient/")]) == 1


def test_what_a_record_has_is_not_run_again(faked, tmp_path, data):
    tune(faked)
    images = json.loads((faked.folder / "study.json").read_text())["data"]
    record = {"data": images, "runs": collect.collect(faked.folder)}
    (tmp_path / "record.json").write_text(json.dumps(record))
    rate = faked.rate("loco", MIDDLE)
    faked.hold.close()
    shutil.rmtree(faked.folder)
    again = study_of(tmp_path, data, tmp_path / "record.json")
    again.begin(["imagenette"])
    assert again.grid() == [] and again.rate("loco", MIDDLE) == rate is not None
    known, new = again.runs(["loco"], MIDDLE, range(2))
    do(again, [known, new])
    assert [path.name for path in again.folder.glob("*/*/*")] == [new.name.split("/")[-1]]
    # a detector needs the encoder itself
    calls = []
    again.call = lambda run, tool, *arguments: (calls.append(tool), fake_call(again, run, tool, *arguments))
    with pytest.raises(ValueError, match="needs --nuclei"):
        again.do(known._replace(detect="nuclei"))
    assert calls == ["pretrain", "linear_probe", "knn"]
    (data / "val" / "class0" / "more.png").write_bytes(b"")
    again.hold.close()
    with pytest.raises(ValueError, match="has runs on other images of imagenette"):
        again = study_of(tmp_path / "elsewhere", data, tmp_path / "record.json")
        again.begin(["imagenette"])
    for content in ({"data": images, "runs": []}, {"runs": record["runs"]}, [], None):
        (tmp_path / "record.json").write_text(json.dumps(content) if content is not None else '{"runs": [')
        with pytest.raises(ValueError, match=r"no study\.json with runs"):
            study_of(tmp_path, data, tmp_path / "record.json")


def test_another_recipe_in_the_folder_is_refused(faked, capsys):
    run = faked.grid()[0]
    do(faked, [run])
    path = faked.folder / run.name / "pretrain" / "config.yaml"
    path.write_text(path.read_text().replace("TEMPERATURE: 0.2", "TEMPERATURE: 0.5"))
    do(faked, [run])
    assert faked.failed == [run.name] and "another recipe" in capsys.readouterr().out


def test_stop_lets_the_tools_make_a_checkpoint(tmp_path, data, monkeypatch):
    """Ctrl-C does not reach a tool, it is in another session; stop() sends it SIGTERM, and nothing is begun."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "slow.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('checkpoint', flush=True), sys.exit(0)))\n"
        "print('session', os.getsid(0), flush=True)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    study, run, raised = study_of(tmp_path, data), Run(THIN18, "loco", 0.002, SHORT, 0), []
    folder = study.folder / run.name
    folder.mkdir(parents=True)

    def call():
        try:
            study.call(run, "slow")
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    deadline = time.time() + 60
    while "session" not in ((folder / "log.txt").read_text() if (folder / "log.txt").exists() else ""):
        assert time.time() < deadline
        time.sleep(0.05)
    study.stop(signal.SIGINT, None)
    thread.join(60)
    log = (folder / "log.txt").read_text().split()
    assert log[0] == "session" and int(log[1]) != os.getsid(0) and log[2:] == ["checkpoint"]
    assert raised == [f"{run.name}: slow.py ended with exit code 0, see {folder / 'log.txt'}"]
    begun, ended = map(json.loads, (folder / "cost.jsonl").read_text().splitlines())
    assert begun["machine"] == runner.this_machine() and str(os.cpu_count()) in begun["machine"]
    assert begun.items() <= ended.items() and ended["exit_code"] == 0 and 0 < ended["cpu_seconds"] < ended["seconds"]
    with pytest.raises(KeyboardInterrupt):
        do(study, [Run(THIN18, "gim", 0.002, SHORT, 0)])
    assert not (study.folder / THIN18 / "gim").exists()


def test_one_study_a_folder_and_one_data_set(faked, tmp_path, data, monkeypatch):
    with pytest.raises(ValueError, match="another study is running there"):
        study_of(tmp_path, data).begin(["imagenette"])
    faked.hold.close()
    (data / "val" / "class0" / "more.png").write_bytes(b"")
    with pytest.raises(ValueError, match="other images of imagenette"):
        study_of(tmp_path, data).begin(["imagenette"])
    with pytest.raises(ValueError, match="needs --nuclei FOLDER"):
        study_of(tmp_path, data).begin(["nuclei"])
    monkeypatch.chdir(tmp_path)
    assert study_of(Path("."), data).folder == tmp_path / "study"  # the tools run elsewhere


def test_damaged_config_is_one_line(faked, capsys):
    run = faked.grid()[0]
    do(faked, [run])
    (faked.folder / run.name / "pretrain" / "config.yaml").write_text("")
    do(faked, [run])
    assert faked.failed == [run.name] and "config.yaml is damaged" in capsys.readouterr().out


def test_one_real_run(tmp_path, data, monkeypatch):
    """Tiny images, a few steps: pretrained, read out, resumed; the command lines fit together."""
    study = study_of(tmp_path, data)
    recipe = Study.recipe

    def tiny(self, run):
        cfg = recipe(self, run)
        cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.EPOCHS, cfg.INPUT.CROP_SIZE = 10, 0.125, 32  # 4 steps
        cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.WARMUP_EPOCHS = False, 0.0
        return cfg

    monkeypatch.setattr(Study, "recipe", tiny)
    run = Run(THIN18, "blockwise_barlow", 0.002, SHORT, 0)
    do(study, [run])
    log = study.folder / run.name / "log.txt"
    assert not study.failed, log.read_text()[-2000:]
    (found,) = collect.collect(study.folder)
    assert found["row"] == "blockwise_barlow"
    assert set(found["linear"]) == set(found["knn"]) == {*STAGES, *(f"{stage}+expansion" for stage in STAGES)}
    assert all(0 <= value <= 100 for value in (*found["linear"].values(), *found["knn"].values()))
    assert set(found["cpu_seconds"]) == {"pretrain", "linear_probe", "knn"} and min(found["cpu_seconds"].values()) > 1
    assert not (study.folder / run.name / "features.pth").exists()
