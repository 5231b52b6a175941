#!/usr/bin/env python3
"""Write the figures of the records in benchmarks/results/ into README.md and docs/.

    python benchmarks/render.py [--check]

A page has a pair of comments where figures stand: ``<!-- bench: NAME -->`` and ``<!-- end -->``. NAME is a benchmark,
for all of its tables, or one of the short tables below.
"""

import argparse
import importlib
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

BLOCK = re.compile(r"(<!-- bench: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
# method: units, row of the benchmark, published top-1 of a linear probe on ImageNet, ResNet-50
METHODS = {
    "LoCo": ("`[res2 res3] [res3 res4] [res4 res5]`", "LoCo, recompute stem", 69.5),
    "Greedy InfoMax (the LoCo paper's)": ("`[res2] [res3] [res4] [res5]`", "GIM", 64.7),
    "blockwise Barlow Twins": ("the same, with Barlow Twins' loss", None, 70.5),
    "SimCLR, end to end": ("`[res2 res3 res4 res5]`", "end to end", 69.8),
    "Barlow Twins, end to end": ("the same", None, 73.5),
}
DEMO = {
    "finetune_loco": "LoCo, fine-tuned",
    "frozen_loco": "LoCo, frozen",
    "frozen_random": "random, frozen (control)",
}
# row of the benchmark: what docs/pretraining.md calls it
MEMORY = {
    "end to end": "end to end",
    "end to end + conv block": "end to end",
    "GIM": "GIM",
    "LoCo, double forward": "LoCo, usual double forward",
    "LoCo": "LoCo",
    "LoCo, recompute stem": 'LoCo, `RECOMPUTE ["res2[:1]"]` (the config)',
    "LoCo, recompute res2, res3": "LoCo, `RECOMPUTE [res2, res3]`",
}


def read(name: str) -> dict:
    """The record of a benchmark.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = common.RESULTS / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such record: python benchmarks/{name}.py writes it")
    return json.loads(path.read_text())


def methods() -> str:
    """README's table of methods, with the activation memory that each saves."""
    rows, found = [], read("pretrain_step")["results"]["resnet50"]
    for method, (units, row, published) in METHODS.items():
        saving = f"{found['end to end']['resident'] / found[row]['resident']:.2f}x" if row else "-"
        rows.append([method, units, saving, f"{published:.1f}"])
    heads = ["method", "units with a loss of their own", ">activation memory saved", ">published top-1, ResNet-50"]
    return common.table(heads, rows)


def memory() -> str:
    """The time and the memory of a step by method, in short."""
    from benchmarks import pretrain_step

    record = read("pretrain_step")
    found, rows = record["results"]["resnet50"], []
    for row, name in MEMORY.items():
        decoder = pretrain_step.rows_of("resnet50")[row][1]
        base = found["end to end" if decoder == pretrain_step.MLP else "end to end + conv block"]
        time = pretrain_step.ratio(found[row], base, "seconds")
        saving = found["end to end"]["resident"] / found[row]["resident"]
        rows.append([name, decoder.replace(" + ", ", "), f"{time:.2f}x", f"{saving:.2f}x"])
    return f"{common.head(record)}:\n\n" + common.table(["rule", "decoder", ">time", ">memory saved"], rows)


def demo_table() -> str:
    """README's table of the demo, in the first precision of the record."""
    record, rows = read("demo"), []
    precision = record["settings"]["precisions"][0]
    metrics = ["box AP", "box AP50", "mask AP", "mask AP50"]
    for run, name in DEMO.items():
        found = [seed[run][precision] for seed in record["results"].values()]
        rows.append([name, *(common.spread([one[metric] for one in found]) for metric in metrics)])
    return common.table(["run", *(f">{metric}" for metric in metrics)], rows)


def block(name: str) -> str:
    """The Markdown of a block."""
    if name in SHORT:
        return SHORT[name]()
    record, benchmark = read(name), importlib.import_module(f"benchmarks.{OTHER_SETTINGS.get(name, name)}")
    return f"    {record['command']}\n\n{common.head(record)}. {benchmark.markdown(record)}"


SHORT = {
    "methods": methods,
    "memory": memory,
    "demo_table": demo_table,
}
# record -> the benchmark that has written it, with settings that are not its defaults
OTHER_SETTINGS = {"light_head_times": "light_head", "pretrain_step_timm": "pretrain_step"}


def rendered(text: str) -> str:
    """A page with its blocks filled anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{block(match[2])}\n{match[3]}", text)


def pages() -> list[Path]:
    """README and the pages of docs."""
    return [common.ROOT / "README.md", *sorted((common.ROOT / "docs").glob("*.md"))]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is not up to date")
    args = parser.parse_args()
    try:
        changed = [page for page in pages() if rendered(page.read_text()) != page.read_text()]
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    for page in changed:
        print(f"{page.relative_to(common.ROOT)}: {'is not what the records say' if args.check else 'written'}")
        if not args.check:
            page.write_text(rendered(page.read_text()))
    sys.exit(1 if args.check and changed else 0)


if __name__ == "__main__":
    main()
