"""tools/report.py as a user runs it."""

import json
import os
import subprocess
import sys

from checkout import ROOT


def write_run(folder, ap=12.34):
    folder.mkdir(parents=True)
    results = {"bbox": {"AP": ap, "AP50": 30.0}, "segm": {"AP": 10.0, "AP50": None}}
    same = {"key": "0" * 12, "settings": {}}
    content = {"kind": "detection", "dataset": "demo_val", "results": results, "comparability": same}
    (folder / "results.json").write_text(json.dumps(content))


def test_writes_the_page_and_prints_the_table(run_tool, tmp_path):
    run = tmp_path / "frozen"
    write_run(run)
    done = run_tool("report.py", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "12.3" in done.stdout and "±" not in done.stdout and str(tmp_path / "report.html") in done.stdout
    assert "<!DOCTYPE html>" in (tmp_path / "report.html").read_text()
    elsewhere = tmp_path / "page" / "x.html"
    assert run_tool("report.py", run, run, "--output", elsewhere).returncode == 0
    assert elsewhere.is_file() and not (run / "report.html").exists()


def test_seeds_from_a_checkout_that_is_not_installed(tmp_path):
    for seed in (0, 1):
        for name, ap in (("frozen_loco", 10.0 + 2 * seed), ("frozen_random", 5.0)):
            write_run(tmp_path / f"seed{seed}" / name, ap)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "tools" / "report.py"), "."]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "11.0 ± 1.4" in done.stdout and "+6.0 ± 1.4" in done.stdout and (tmp_path / "report.html").is_file()


def test_readouts_have_a_table_of_their_own(run_tool, tmp_path):
    for name, figures in (
        ("linear", {"res5": {"top1": 50.5, "lr": 0.1}}),
        ("knn", {"res5": {"k20_t0.1": {"top1": 40}}}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({name: figures}))
    done = run_tool("report.py", tmp_path / "linear", tmp_path / "knn", "--markdown")
    assert (done.returncode, done.stderr) == (0, "")
    assert "50.50" in done.stdout and "40.00" in done.stdout and "detection" not in done.stdout
    assert "50.50" in (tmp_path / "linear/report.html").read_text()
    assert "50.50" in (tmp_path / "linear/report.md").read_text()


def test_pretraining_alone_prints_its_table(run_tool, tmp_path):
    (tmp_path / "loco").mkdir()
    (tmp_path / "loco" / "config.yaml").write_text("MODEL: {ENCODER: resnet18x0.5, UNITS: [[res5]]}\n")
    lines = [{"iteration": i, "loss_res5": 6.0 - i, "total_loss": 6.0 - i} for i in range(2)]
    (tmp_path / "loco" / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run_tool("report.py", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "resnet18x0.5" in done.stdout and "res5 6.00 → 5.00" in done.stdout and "report.html" in done.stdout


def test_one_line_for_a_missing_folder_no_runs_and_a_damaged_run(run_tool, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "results.json").write_text("{")
    for name, message in (("missing", "is not a folder"), ("empty", "no runs"), ("damaged", "is damaged")):
        failed = run_tool("report.py", tmp_path / name)
        assert failed.returncode == 2 and failed.stdout == ""
        assert failed.stderr.startswith("error: ") and message in failed.stderr and failed.stderr.count("\n") == 1
        assert not list((tmp_path).rglob("*.html"))


def test_help_has_an_example(run_tool):
    shown = run_tool("report.py", "--help")
    assert shown.returncode == 0 and "examples:" in shown.stdout
