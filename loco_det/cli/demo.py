"""Run all steps on generated scenes: pretraining, conversion, Mask R-CNN frozen and fine-tuned, evaluation, report.

Every step is one of the project's command lines, and is printed. A step that is finished is not run again; one that was
interrupted goes on from its last checkpoint.
"""

import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from pretrain.files.text import for_terminal

from .common.arguments import described_parser
from .common.invocation import by_name, child_command

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = "example:\n  python tools/demo.py --seeds 0 1 2"
Step = tuple[str, Path, Path | None, list]


def main(argv: list[str] | None = None) -> None:
    """Run the command line; a step that fails, or Ctrl-C, exits with 1 or 130."""
    parser = described_parser(__doc__, EXAMPLE)
    output, seeds = Path("demo_output"), "of the networks (default: 0); the scenes are the same for all seeds"
    parser.add_argument("--output", type=Path, default=output, help="folder for all files (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help=seeds)
    parser.add_argument("--long", action="store_true", help="pretrain ten times as long")
    args = parser.parse_args(argv)
    out = args.output.resolve()
    if not by_name():
        os.chdir(ROOT)  # tools/*.py are there
    out = Path(os.path.relpath(out))
    todo = {step[1]: step for seed in args.seeds for step in steps(out, seed, args.long)}
    try:
        for number, step in enumerate(todo.values(), 1):
            run_step(number, len(todo), *step)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    report(out)


def steps(out: Path, seed: int, long: bool) -> Iterator[Step]:
    """The steps of one seed: (title, file that says it is finished, folder with checkpoints or None, command)."""
    data, run = out / "data", out / f"seed{seed}{'_long' if long else ''}"
    scenes = "--unlabeled 1500 --train 200 --val 50 --size 128 160 --layouts unlabeled coco".split()
    yield "generate scenes", data / "demo.json", None, ["make_demo_data.py", data, *scenes]
    for name, title in (("loco", "pretrain ResNet-18 with LoCo"), ("random", "calibrate BN of a random ResNet-18")):
        folder = run / f"pretrain_{name}"
        config = f"configs/pretrain/demo_{name}{'_long' if long and name == 'loco' else ''}.yaml"
        options = ["DATASETS.TRAIN", data / "unlabeled", "SEED", seed, "OUTPUT_DIR", folder]
        final, backbone = folder / "model_final.pth", folder / "backbone.pkl"
        yield title, final, folder, ["pretrain.py", "--config-file", config, *options]
        yield f"convert the {name} backbone to Detectron2", backbone, None, ["convert_to_d2.py", final, backbone]
    coco, custom = data / "coco", []
    for split, images in (("TRAIN", "train"), ("TEST", "val")):
        custom += [f"DATASETS.CUSTOM.{split}_JSON", coco / f"annotations/instances_{images}.json"]
        custom += [f"DATASETS.CUSTOM.{split}_IMAGES", coco / images]
    for kind, name in (("frozen", "loco"), ("frozen", "random"), ("finetune", "loco")):
        folder = run / f"{kind}_{name}"
        backbone = run / f"pretrain_{name}" / "backbone.pkl"
        options = ["MODEL.WEIGHTS", backbone, "SEED", seed, "OUTPUT_DIR", folder, *custom]
        title = f"Mask R-CNN on the {'frozen' if kind == 'frozen' else 'fine-tuned'} {name} backbone"
        config = f"configs/demo_coco_loco_{kind}.yaml"
        yield title, folder / "results.json", folder, ["train_net.py", "--config-file", config, *options]


def run_step(number: int, count: int, title: str, done: Path, checkpoints: Path | None, command: list) -> None:
    """Run one step unless its last file is there; shows lines with an ETA, keeps the rest for an error.

    Raises:
        SystemExit: if the step fails.
    """
    head = f"[{number}/{count}] {title}"
    if is_done(done):
        print(f"{head}: already done", flush=True)
        return
    command = [str(part) for part in command]
    if checkpoints and (checkpoints / "last_checkpoint").exists():
        command.insert(1, "--resume")
    child, line = child_command(command[0], *command[1:])
    print(f"{head}\n    {line}", flush=True)
    start = time.time()
    process = subprocess.Popen(child, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        last = show_progress(process.stdout or ())
    except KeyboardInterrupt:  # Ctrl-C reaches the tool too: let it put its files in order
        process.wait()
        raise
    if process.wait():
        print(*map(for_terminal, last), sep="\n", file=sys.stderr)
        sys.exit(f"error: step {number}, {title}, failed; the same command goes on from here")
    print(f"    {f'finished in {time.time() - start:.0f} s':<100}", flush=True)


def is_done(path: Path) -> bool:
    """Whether a step's last file is there; results of a detector may be there with problems."""
    if path.name != "results.json":
        return path.exists()
    from ..runs.folder import is_finished

    return is_finished(path.parent)


def show_progress(lines: Iterable[str]) -> list[str]:
    """Print what tells of the progress; returns the last lines, for an error."""
    shown, terminal, last = 0.0, sys.stdout.isatty(), deque[str](maxlen=21)
    for line in lines:
        last.append(line.rstrip())
        if words := re.search(r"about .* iterations at .* on \S+$|SOLVER.AMP.(ENABLED auto|AUTO): .*", line.rstrip()):
            print(f"    {words[0]:<100}", flush=True)
        progress = re.search(r"eta: .*?loss[^ ]*: [\d.]+|Inference done \d+/\d+.*ETA=\S+", line)
        if progress and time.time() - shown > (1 if terminal else 20):
            shown = time.time()
            print(f"    {progress[0][:100]:<100}", end="\r" if terminal else "\n", flush=True)
    return list(last)


def report(out: Path) -> None:
    """Write the page about all runs beneath a folder, and print its tables."""
    from ..report.page import write_report
    from ..report.runs import table_text
    from ..report.seeds import seeds_text
    from ..runs.find import find_runs

    runs = find_runs(out)
    page = write_report(runs, out / "report.html")
    print("", table_text(runs), seeds_text(runs), f"report: {for_terminal(page.resolve())}", sep="\n")
