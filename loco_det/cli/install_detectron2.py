"""Install Detectron2 into the running Python, without a compiler.

Detectron2 is not on PyPI under its own name, and building it from source needs a compiler and an installed torch. If
detectron2 can already be imported, it is kept. Otherwise this command downloads with pip the wheel of a published copy
of its Python files (equal to upstream commit a59f0563 but for a two-line fix), checks its SHA-256, drops the part that
was compiled for one old torch, and installs the rest for any Python. What needs ``detectron2._C`` is then missing:
deformable convolution, rotated boxes and the C++ COCO evaluator (pycocotools is used instead).

Example:
    loco-det install-detectron2 --constraint constraints.txt
"""

# It imports what needs the standard library only: it has to work before anything else is installed.

import base64
import hashlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from .common.arguments import described_parser

NAME, VERSION = "sal-detectron2", "0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
# pip would refuse the wheel's own tags on any other Python, so they are asked for by name.
WHEEL_TAGS = "--only-binary=:all: --python-version 3.10 --implementation cp --abi none --platform any".split()
# The local part "+py" tells our repacked wheel from the published one.
REPACKED = f"{VERSION}+py"
PROBE = "import detectron2, detectron2.engine; print(detectron2.__version__)"


class InstallError(RuntimeError):
    """Something that failed outside our hands; the message is one line for the user."""


def run(*arguments: str) -> str:
    """Run this Python with ``arguments`` and return its standard output.

    Raises:
        InstallError: if it fails, with the line of its output that says most.
    """
    # In a fresh folder, because a source checkout of detectron2 in the current one would be imported instead.
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR:")]
        raise InstallError(errors[-1] if errors else lines[-1])
    return done.stdout.strip()


def pip(*arguments: str) -> str:
    """Run this Python's pip; see `run`."""
    return run("-m", "pip", "--disable-pip-version-check", *arguments)


def is_installed(distribution: str) -> bool:
    """Whether pip knows ``distribution`` here, importable or not."""
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def check_sha256(path: Path, expected: str) -> None:
    """Raise InstallError unless the file at ``path`` has the SHA-256 ``expected`` (hexadecimal)."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise InstallError(f"{path.name} has SHA-256 {found}, expected {expected}: not installed")


def new_metadata(name: str, text: str) -> str:
    """The text of a dist-info file ``name`` (METADATA, WHEEL, top_level.txt) for the pure Python wheel."""
    if name == "METADATA":
        text = re.sub(r"(?m)^Version: .*$", f"Version: {REPACKED}", text, count=1)
        # What we use runs on numpy 2; fvcore and iopath are imported by Detectron2 but missing from this list.
        required = "Requires-Dist: numpy\nRequires-Dist: fvcore>=0.1.5\nRequires-Dist: iopath>=0.1.7"
        return re.sub(r"(?m)^Requires-Dist: numpy<2$", required, text)
    if name == "WHEEL":
        text = re.sub(r"(?m)^Root-Is-Purelib: .*$", "Root-Is-Purelib: true", text)
        return re.sub(r"(?m)^Tag: .*$", "Tag: py3-none-any", text)
    if name == "top_level.txt":
        return "detectron2\n"
    return text


def repack(wheel: Path, folder: Path) -> Path:
    """Write to ``folder`` the pure Python form of ``wheel`` and return its path.

    Left out: the compiled ``detectron2/_C*`` and the top-level package ``tools``, which would hide other folders of
    that name. RECORD is written anew.
    """
    stem = NAME.replace("-", "_")
    source_info, info = f"{stem}-{VERSION}.dist-info/", f"{stem}-{REPACKED}.dist-info/"
    target = folder / f"{stem}-{REPACKED}-py3-none-any.whl"
    record = []
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
        for name in source.namelist():
            if name.startswith(("detectron2/_C.", "tools/")) or name.endswith("/") or name == source_info + "RECORD":
                continue
            data = source.read(name)
            if name.startswith(source_info):
                name = name.removeprefix(source_info)
                if name in ("METADATA", "WHEEL", "top_level.txt"):
                    data = new_metadata(name, data.decode()).encode()
                name = info + name
            out.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}\n")
        out.writestr(info + "RECORD", "".join(record) + f"{info}RECORD,,\n")
    return target


def keep_or_install(constraint: Path | None = None) -> str:
    """Keep a detectron2 that imports, else fetch, check, repack and install one; return one line on what was done.

    Args:
        constraint: a pip constraints file that pins the ordinary requirements.

    Raises:
        InstallError: if a step fails; then nothing was changed, or what was installed is removed again.
    """
    try:
        return f"detectron2 {run('-c', PROBE)} already imports: kept"
    except InstallError as problem:
        if is_installed("detectron2"):  # somebody's own build: not ours to overwrite
            message = f"detectron2 is installed but does not import ({problem}): rebuild it or uninstall it first"
            raise InstallError(message) from None
    with tempfile.TemporaryDirectory(prefix="install-detectron2-") as folder:
        pip("download", "--no-deps", *WHEEL_TAGS, "--dest", folder, f"{NAME}=={VERSION}")
        (published,) = Path(folder).glob("*.whl")
        check_sha256(published, SHA256)
        wheel = repack(published, Path(folder))
        if is_installed(NAME):  # a damaged one of an earlier run, which pip would take for installed
            pip("uninstall", "--yes", NAME)
        pip("install", *(["--constraint", str(constraint.resolve())] if constraint else []), str(wheel))
    try:
        version = run("-c", PROBE)
    except InstallError as problem:
        pip("uninstall", "--yes", NAME)
        raise InstallError(f"the installed detectron2 did not import and was removed again: {problem}") from None
    return f"detectron2 {version} installed from {NAME}=={VERSION}, SHA-256 checked, without its compiled part"


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = described_parser(summary, rest)
    parser.add_argument("--constraint", metavar="FILE", type=Path, help="pip constraints for Detectron2's requirements")
    options = parser.parse_args(argv)
    if options.constraint and not options.constraint.is_file():
        parser.error(f"no constraints file at {options.constraint}")
    if importlib.util.find_spec("torch") is None:
        parser.error("Detectron2 needs torch: install torch and torchvision first, for example with `make setup`")
    print(keep_or_install(options.constraint))
