"""The Detectron2 installer, offline: a tiny stand-in for the published wheel, the whole command without an index."""

import base64
import csv
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from loco_det.cli import install_detectron2 as installer

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "tools" / "install_detectron2.py"


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of a throwaway environment with nothing but pip: whatever breaks, the running one is never changed."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / "bin" / "python"


def write_wheel(folder: Path, *requirements: str) -> Path:
    """Write a wheel laid out as the published one: compiled part, stray tools package, wrong tags."""
    folder.mkdir()
    wheel = folder / "sal_detectron2-0.7.2-cp310-none-any.whl"
    info = "sal_detectron2-0.7.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr("detectron2/__init__.py", '__version__ = "0.6"\n')
        out.writestr("detectron2/engine/__init__.py", "")
        out.writestr("detectron2/_C.cpython-310-x86_64-linux-gnu.so", b"\x7fELF")
        out.writestr("tools/__init__.py", "")
        out.writestr("tools/train_net.py", "")
        head = "Metadata-Version: 2.1\nName: sal-detectron2\nVersion: 0.7.2\n"
        out.writestr(f"{info}/METADATA", head + "".join(f"Requires-Dist: {name}\n" for name in requirements) + "\n")
        out.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp310-cp310-linux_x86_64\n")
        out.writestr(f"{info}/top_level.txt", "detectron2\ntools\n")
        out.writestr(f"{info}/RECORD", "detectron2/__init__.py,sha256=wrong,1\n")
    return wheel


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The stand-in with the published one's kind of requirements."""
    return write_wheel(tmp_path / "index", "numpy<2", "black")


def test_repacked_wheel_is_valid_and_has_neither_compiled_part_nor_tools(published: Path, tmp_path: Path):
    wheel = installer.repack(published, tmp_path)
    assert wheel.name == "sal_detectron2-0.7.2+py-py3-none-any.whl"
    info = "sal_detectron2-0.7.2+py.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert not [name for name in names if "_C" in name or name.startswith("tools")]
        metadata = archive.read(f"{info}/METADATA").decode().splitlines()
        assert "Version: 0.7.2+py" in metadata
        required = {line.removeprefix("Requires-Dist: ") for line in metadata if line.startswith("Requires-Dist")}
        assert required == {"numpy", "black", "fvcore>=0.1.5", "iopath>=0.1.7"}
        assert archive.read(f"{info}/WHEEL").decode().splitlines()[1:] == ["Root-Is-Purelib: true", "Tag: py3-none-any"]
        assert archive.read(f"{info}/top_level.txt").decode().split() == ["detectron2"]

        rows = list(csv.reader(archive.read(f"{info}/RECORD").decode().splitlines()))
        assert sorted(row[0] for row in rows) == sorted(names)
        for name, digest, size in rows:
            if name.endswith("/RECORD"):
                assert (digest, size) == ("", "")
                continue
            expected = base64.urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={expected}", str(len(archive.read(name))))


def test_repacked_wheel_installs_and_imports(published: Path, tmp_path: Path):
    wheel = installer.repack(published, tmp_path)
    site = tmp_path / "site"
    installer.pip("install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    assert not (site / "tools").exists()
    code = f"import sys; sys.path.insert(0, {str(site)!r}); {installer.PROBE}"
    assert installer.run("-c", code) == "0.6"


def fake_modules(folder: Path, **sources: str) -> Path:
    """Write ``name.py`` for every name and return the folder, to be the PYTHONPATH of the command."""
    folder.mkdir()
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return folder


def run_script(python: Path, *arguments: str, modules: Path, packages: Path, script: Path = SCRIPT):
    """Run the command line as a user does, with ``modules`` to import and ``packages`` as the only place for pip."""
    temporary = modules.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    env = os.environ | {
        "PYTHONPATH": str(modules),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(packages),
        "PIP_CONFIG_FILE": os.devnull,
        "TMPDIR": str(temporary),
    }
    done = subprocess.run([python, str(script), *arguments], env=env, capture_output=True, text=True)
    assert list(temporary.iterdir()) == [], "temporary files were left"
    assert "Traceback" not in done.stderr
    return done


def installed(python: Path) -> str:
    """What pip lists in the throwaway environment."""
    return subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout


BROKEN = 'raise ImportError("broken on purpose")'


def test_keeps_a_detectron2_that_imports(python: Path, tmp_path: Path):
    modules = fake_modules(tmp_path / "modules", torch="")
    (modules / "detectron2").mkdir()
    (modules / "detectron2" / "__init__.py").write_text('__version__ = "9.9"')
    (modules / "detectron2" / "engine.py").write_text("")
    done = run_script(python, modules=modules, packages=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "detectron2 9.9 already imports: kept\n"


def test_wheel_with_another_hash_is_refused(python: Path, tmp_path: Path):
    wheel = write_wheel(tmp_path / "index")
    done = run_script(python, modules=fake_modules(tmp_path / "modules", torch=""), packages=wheel.parent)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "SHA-256" in done.stderr and installer.SHA256 in done.stderr
    assert "detectron2" not in installed(python)


def script_for(wheel: Path, folder: Path) -> Path:
    """The script, but expecting the SHA-256 of ``wheel``."""
    script = folder / "script.py"
    expected = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lines = ("import sys", f"sys.path.insert(0, {str(ROOT)!r})", "from loco_det.cli import install_detectron2, main")
    calls = (f"install_detectron2.SHA256 = {expected!r}", "sys.exit(main.script('install_detectron2'))")
    script.write_text("\n".join((*lines, *calls)))
    return script


def test_installs_then_keeps_then_repairs(python: Path, tmp_path: Path):
    wheel = write_wheel(tmp_path / "index")
    where = {
        "modules": fake_modules(tmp_path / "modules", torch=""),
        "packages": wheel.parent,
        "script": script_for(wheel, tmp_path),
    }
    try:
        done = run_script(python, **where)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("detectron2 0.6 installed from sal-detectron2==0.7.2")
        assert run_script(python, **where).stdout == "detectron2 0.6 already imports: kept\n"

        (engine,) = python.parents[1].glob("lib/python*/site-packages/detectron2/engine")
        (engine / "__init__.py").write_text(BROKEN)
        assert "installed from" in run_script(python, **where).stdout
        assert run_script(python, **where).stdout == "detectron2 0.6 already imports: kept\n"
    finally:
        subprocess.run([python, "-m", "pip", "uninstall", "--yes", "sal-detectron2"], capture_output=True)


def test_what_does_not_import_is_removed_again(python: Path, tmp_path: Path):
    wheel = write_wheel(tmp_path / "index")
    modules = fake_modules(tmp_path / "modules", torch="", detectron2=BROKEN)
    done = run_script(python, modules=modules, packages=wheel.parent, script=script_for(wheel, tmp_path))
    assert done.returncode == 1
    assert "removed again" in done.stderr and "broken on purpose" in done.stderr
    assert "detectron2" not in installed(python)


def test_no_network_is_one_line(python: Path, tmp_path: Path):
    modules = fake_modules(tmp_path / "modules", torch="")
    done = run_script(python, modules=modules, packages=tmp_path / "nothing")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "sal-detectron2==0.7.2" in done.stderr


def test_a_broken_detectron2_of_the_users_own_is_left_alone(python: Path, tmp_path: Path):
    modules = fake_modules(tmp_path / "modules", torch="", detectron2=BROKEN)
    info = modules / "detectron2-0.6.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: detectron2\nVersion: 0.6\n")
    done = run_script(python, modules=modules, packages=tmp_path)
    assert done.returncode == 1
    assert "broken on purpose" in done.stderr and "uninstall it first" in done.stderr


def test_torch_must_come_first(python: Path, tmp_path: Path):
    done = run_script(python, modules=fake_modules(tmp_path / "modules"), packages=tmp_path)
    assert done.returncode == 2
    assert "install torch" in done.stderr


def test_constraints_file_must_exist(python: Path, tmp_path: Path):
    modules = fake_modules(tmp_path / "modules", torch="")
    done = run_script(python, "--constraint", str(tmp_path / "none.txt"), modules=modules, packages=tmp_path)
    assert done.returncode == 2
    assert "none.txt" in done.stderr


def test_help_has_an_example(python: Path, tmp_path: Path):
    done = run_script(python, "--help", modules=fake_modules(tmp_path / "modules"), packages=tmp_path)
    assert done.returncode == 0
    assert "loco-det install-detectron2 --constraint" in done.stdout
