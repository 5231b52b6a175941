"""The project's own files: metadata without torch, what make and continuous integration would run, pinned versions."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT


def setup_metadata(tmp_path: Path, *arguments: str) -> str:
    """Output of setup.py in a Python where importing torch, numpy or detectron2 fails."""
    for name in ("torch", "numpy", "detectron2"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('setup.py must not import this')")
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_setup_reads_metadata_without_torch(tmp_path: Path):
    assert setup_metadata(tmp_path, "--name", "--license") == "loco-det\nApache-2.0"


def test_packages_are_the_two_of_the_project(tmp_path: Path):
    setup_metadata(tmp_path, "egg_info", "--egg-base", str(tmp_path))
    info = tmp_path / "loco_det.egg-info"
    assert (info / "top_level.txt").read_text().split() == ["loco_det", "pretrain"]
    sources = (info / "SOURCES.txt").read_text().splitlines()
    for package in ("loco_det", "pretrain"):
        folders = {path.parent for path in (ROOT / package).rglob("*.py")}
        missing = [str(folder) for folder in folders if not (folder / "__init__.py").exists()]
        assert not missing, f"folders with Python files that pip would leave out: {missing}"
        assert f"{package}/__init__.py" in sources
    assert {f"loco_det/report/{name}.html.j2" for name in ("base", "macros", "page")} <= set(sources)
    assert {"loco_det/ranking/page.html.j2", "loco_det/checkpoints/checkpoints.yaml"} <= set(sources)


@pytest.mark.parametrize(
    "target",
    ["setup", "demo", "demo-long", "test", "test-fast", "durations", "lint", "docs", "bench", "clean", "distclean"],
)
def test_make_targets_exist(target: str):
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", ["setup", "demo", "test", "test-fast", "durations", "lint", "docs", "bench"])
def test_every_target_installs_first_on_a_fresh_clone(target: str, tmp_path: Path):
    variables = [f"VENV={tmp_path / 'venv'}", "PYTHON=python3.99"]
    done = subprocess.run(["make", "--dry-run", target, *variables], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = ["python3.99 -m venv", "pip install", "tools/install_detectron2.py", "touch"]
    positions = [done.stdout.index(step) for step in steps]
    assert positions == sorted(positions)


def test_clean_keeps_the_installation():
    done = subprocess.run(["make", "--dry-run", "clean"], cwd=ROOT, capture_output=True, text=True)
    assert not re.search(r"rm -rf [^{\n]*\.venv", done.stdout)


def test_continuous_integration_runs_lint_and_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make lint docs test" in script.read_text()


def test_a_commit_is_checked_as_make_lint_does():
    """.pre-commit-config.yaml has the checks of `make lint` and no other."""
    done = subprocess.run(["make", "--dry-run", "lint"], cwd=ROOT, capture_output=True, text=True)
    checks = [
        line.split(" -m ")[1].removesuffix(" .") for line in done.stdout.splitlines() if re.search("ruff|mypy", line)
    ]
    hooks = re.findall(r"entry: \S+ -m (.+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == checks and len(hooks) == 3


def test_constraints_are_exact_and_cover_what_setup_requires(tmp_path: Path):
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)==[^\s;]+( *; .+)?", line) for line in lines if line]
    assert all(pins), "every line must be NAME==VERSION, with a marker at most"
    pinned = {re.sub(r"[-_.]+", "-", pin[1]).lower() for pin in pins}

    setup_metadata(tmp_path, "egg_info", "--egg-base", str(tmp_path))
    requires = (tmp_path / "loco_det.egg-info" / "requires.txt").read_text()
    names = {re.match(r"[A-Za-z0-9._-]+", line)[0].lower() for line in requires.splitlines() if line[:1].isalpha()}
    assert {"torch", "torchvision", "pytest", "setuptools"} <= names
    assert names <= pinned, f"not pinned: {names - pinned}"


@pytest.mark.parametrize("package", ["loco_det", "pretrain"])
def test_a_package_knows_its_version_and_stays_light(package: str):
    code = f"import sys, {package}; print({package}.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S* False\n", done.stdout), done.stderr
