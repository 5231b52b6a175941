"""What all benchmarks share: their command line, rows in processes of their own, and the record that each writes.

A benchmark is a script with

- ``add_arguments(parser)``, its options, and ``SMOKE``, their values for a run of seconds that shows that it works;
- ``measure(args)``, which returns the results as plain values for JSON;
- ``markdown(record)``, the tables of a record, for the terminal and for docs (``python benchmarks/render.py``);
- ``child(...)``, where rows are measured in processes of their own: see :func:`in_child`.

Its record, ``benchmarks/results/NAME.json``, says what was measured with what on which machine, so that no figure in
README or docs is typed by hand.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = (
    "torch",
    "torchvision",
    "detectron2",
    "sal-detectron2",
    "numpy",
    "lightly",
    "timm",
    "pycocotools",
    "hotcoco",
)
CHILD = "--child"


def main(benchmark) -> dict | None:
    """Run a benchmark's command line.

    Args:
        benchmark: the module of the script.

    Returns:
        The record; None in the process of a row.
    """
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(benchmark.child(*json.loads(sys.argv[2]))))
        return None
    name, args = Path(benchmark.__file__).stem, parser(benchmark).parse_args()
    if args.smoke:
        vars(args).update(benchmark.SMOKE)
    output = args.output or (None if args.smoke else RESULTS / f"{name}.json")
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "smoke")}
    try:
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)  # before what takes minutes
        found = record(name, settings, benchmark.measure(args))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(head(found), benchmark.markdown(found), sep="\n\n")
    if output:
        output.write_text(json.dumps(found, indent=1) + "\n")
        print(f"\nrecord: {output}", file=sys.stderr)
    return found


def parser(benchmark) -> argparse.ArgumentParser:
    """The options of a benchmark, those of all benchmarks among them."""
    name = Path(benchmark.__file__).stem
    found = argparse.ArgumentParser(description=benchmark.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmark.add_arguments(found)
    found.add_argument("--smoke", action="store_true", help="show in seconds that it works: the figures mean nothing")
    found.add_argument("--output", metavar="FILE.json", type=Path, help="the record (default: benchmarks/results/"
                        f"{name}.json, with --smoke none)")  # fmt: skip
    return found


def record(name: str, settings: dict, results: object) -> dict:
    """A benchmark's results with all that they depend on."""
    from pretrain.files.version import version

    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    arguments = [word for word in sys.argv[1:] if word != "--smoke"]
    return {
        "benchmark": name,
        "command": shlex.join(["python", f"benchmarks/{name}.py", *arguments]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "version": version(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **found},
        "settings": settings,
        "results": results,
    }


def machine() -> dict:
    """The processor, what it can do, its cores, memory in GB, the load before the benchmark's own, and :func:`gpu`."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in values.items()}
    flags = set(fields.get("flags", "").split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": fields.get("model name", platform.processor() or platform.machine()),
        "instructions": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 2**30),
        "system": platform.system(),
        "load": round(os.getloadavg()[0], 1),
        **gpu(),
    }


def gpu() -> dict:
    """Name, memory in GB, driver and CUDA version of the first GPU, as "gpu"; nothing if torch has used none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    properties, driver = torch.cuda.get_device_properties(0), ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    name, memory = properties.name, round(properties.total_memory / 2**30)
    return {"gpu": {"name": name, "memory_gb": memory, "driver": driver, "cuda": torch.version.cuda}}


def head(found: dict) -> str:
    """A line that says where and when a record was made."""
    there, kinds = found["machine"], {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 with bfloat16", "avx512f": "AVX-512"}
    kind = next((text for flag, text in kinds.items() if flag in there["instructions"]), "")
    cores = f"{there['cores']} cores of an {there['processor']}{f' ({kind})' if kind else ''}"
    if card := there.get("gpu"):
        cores = f"{card['name']} (driver {card['driver']}, CUDA {card['cuda']}), {cores}"
    return f"{cores}, torch {found['versions']['torch']}, {found['date'][:10]}, loco-det {found['version']}"


def in_child(script: str, *arguments: object, env: dict[str, str] | None = None) -> object:
    """Call a benchmark's ``child`` in a process of its own.

    Args:
        script: ``__file__`` of the benchmark.
        arguments: of its ``child``, plain values.
        env: environment variables to be added.

    Returns:
        What it returns; None if a package is not installed that only this row needs.
    """
    command = [sys.executable, "-W", "ignore", script, CHILD, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})})
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        if last and last[0].startswith("ModuleNotFoundError: "):
            print(f"left out: {last[0].partition(': ')[2]}", file=sys.stderr)
            return None
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def progress(text: str) -> None:
    """Say on stderr what is being measured."""
    print(text, file=sys.stderr, flush=True)


def memory(key: str) -> float:
    """A figure of this process's memory, such as VmRSS, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(key))


def forget_peak() -> None:
    """Begin this process's high-water mark of memory (VmHWM) anew."""
    Path("/proc/self/clear_refs").write_text("5")


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median of the ratios of figures of the same round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def parts_table(results: dict, decimals: int, unit: str = "s") -> str:
    """The table of rows beside stock Detectron2, by size of the images and part of the work.

    Args:
        results: size such as "480x640" -> {"seconds": part -> row -> seconds of each round}; a row is "stock".
        decimals: of the medians.
        unit: of the seconds, for the head.
    """
    rows = []
    for size, found in results.items():
        for part, seconds in found["seconds"].items():
            for name, figures in seconds.items():
                ratio = f"{median_ratio(seconds['stock'], figures):.2f}x"
                rows.append([size.replace("x", " x "), part, name, f"{statistics.median(figures):.{decimals}f}", ratio])
    return table(["pixels", "part", "row", f">{unit}", ">times as fast as stock"], rows)


def spread(values: list[float], form: str = ".1f") -> str:
    """Mean and standard deviation of a sample, as text."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{deviation}"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Markdown; all columns but the leading ones that hold words are aligned to the right.

    Args:
        columns: their heads; those of numbers begin with ">".
        rows: texts.
    """
    lines = [
        [column.lstrip(">") for column in columns],
        ["---:" if c.startswith(">") else "---" for c in columns],
        *rows,
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
