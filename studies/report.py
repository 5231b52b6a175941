#!/usr/bin/env python3
"""Tables and figures of the study: from its run folders into docs/study.{json,png}, docs/study.md and README.md.

What stands between <!-- study: NAME --> and <!-- end --> in the two Markdown files is replaced; nothing in it is typed.
With --record docs/study.json the runs in it count as well, unless the folder has them; the record alone, without a
folder, makes the same figures again.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FINDINGS = Path(__file__).with_name("findings.md")

from collect import collect
from matplotlib import rc_context
from matplotlib.figure import Figure as Canvas
from rates import MIDDLE, SHORT
from reach import reach_table
from rows import CROP96, CROPS, MAIN, ROWS, SETTINGS_ROWS, TABLE4, TABLE5
from run import THIN18, THIN50, read_record, run_of, write
from study_tables import (
    BUDGETS,
    STAGES,
    Results,
    ablation_table,
    budgets_with_runs,
    detection_table,
    grid_table,
    late_table,
    main_table,
    seeds_line,
    settings_table,
    stage_tables,
)

from loco_det.cli.common.errors import one_line_errors
from pretrain.engine.curves import COLORS, GREY, STYLE

REST = "\n\n---\n\n"  # between the findings and their details
# A row for README
ROW = """| linear probe of res5, top-1 in % | SimCLR | LoCo | Greedy InfoMax |
| --- | ---: | ---: | ---: |
| crops of 96 px, 20 epochs | {linear simclr 20 res5 imagenette96_resnet18_crop96} | \
{linear loco 20 res5 imagenette96_resnet18_crop96} | {linear gim 20 res5 imagenette96_resnet18_crop96} |"""


def draw(results, path):
    """Top-1 by stage and method, a panel for each budget; and res5's by budget."""
    budgets = budgets_with_runs(results)
    panels = [(f"every stage, {e} epochs", {stage: (e, stage, THIN18) for stage in STAGES}) for e in budgets]
    panels.append(("res5 by epochs of pretraining", {str(e): (e, "res5", THIN18) for e in budgets}))
    _draw(results, path, panels, MAIN)


def draw_crops(results, path):
    """Top-1 by stage and method, a panel for each budget and size of crops, of the longer budget if it was run."""
    panels = [
        (f"crops of {size} px, {epochs} epochs", {stage: (epochs, stage, scale) for stage in STAGES})
        for epochs in (SHORT, MIDDLE)
        for scale, size in CROPS.items()
        if epochs == SHORT or any(results.of(row, epochs, scale) for row in SETTINGS_ROWS)
    ]
    _draw(results, path, panels, SETTINGS_ROWS)


def _draw(results, path, panels, rows):
    """A picture of panels, each a title and, by the name of its place, what is read there: (epochs, stage, scale)."""
    with rc_context(STYLE):
        canvas = Canvas(figsize=(1.2 + 3.2 * len(panels), 4.6), layout="constrained")
        axes = canvas.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for panel, (title, places) in zip(axes, panels, strict=True):
            for row in rows:
                _curve(panel, results, row, places.values())
            panel.set_title(title, fontsize=10)
            panel.set_xticks(range(len(places)), places)
        canvas.supylabel("linear probe, top-1 (%)", fontsize=10)
        curves = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        canvas.legend(
            curves.values(), curves, loc="outside lower center", ncols=min(3, len(panels)), frameon=False, fontsize=8
        )
        canvas.savefig(path, dpi=110)


def _curve(panel, results, row, places):
    """A row's linear probe, mean and deviation, at the places where it was run."""
    found = [results.figure(row, epochs, "linear", stage, scale) for epochs, stage, scale in places]
    points = [(x, figure) for x, figure in enumerate(found) if figure.values]
    if points:
        decoder = next(run["decoder"] for run in results.runs if run["row"] == row)
        place = MAIN.index(row)
        panel.errorbar(
            [x + 0.04 * (place - len(MAIN) / 2) for x, _ in points],  # or the bars lie on each other
            [figure.mean for _, figure in points],
            [figure.deviation for _, figure in points],  # of one seed not a number, and not drawn
            color=GREY if row == "random" else COLORS[place - 1],
            ls=":" if row == "random" else "-" if " conv block" in decoder else "--",
            lw=1.6, marker="o", ms=4, capsize=2,
            label=f"{ROWS[row].method}, {decoder}" if row != "random" else ROWS[row].method,
        )  # fmt: skip


def filled_in(text, results):
    """Prose with its figures: {linear loco 20 res5} becomes mean and deviation of that row, budget and stage, and
    {linear loco 20 res5 imagenette96_resnet50} those at that scale.

    Raises:
        ValueError: if there is no such figure.
    """

    def figure(match):
        kind, row, epochs, stage, *scale = match[1].split()
        known = row in ROWS and int(epochs) in BUDGETS or row == "random"
        found = results.figure(row, float(epochs), kind, stage, *scale) if known else None
        if not found or not found.values:
            raise ValueError(f"findings.md: {match[0]} is not among the results")
        return str(found)

    return re.sub(r"\{(\w+ \w+ \d+ [\w+]+( \w+)?)\}", figure, text).strip()


def environment(runs):
    """Machines, versions and dates in words."""
    by_machine = {}
    for run in runs:
        by_machine.setdefault(run["machine"], []).append(run["finished"])
    return "; ".join(
        f"{machine}: {len(dates)} runs, {' to '.join(sorted({min(dates), max(dates)}))}"
        for machine, dates in sorted(by_machine.items(), key=lambda item: min(item[1]))
    )


def inserted(path, sections):
    """A Markdown file's text with its generated parts replaced.

    Raises:
        ValueError: if the file has no place for a part.
    """
    text = path.read_text()
    for name, content in sections.items():
        pattern = re.compile(rf"(<!-- study: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{path} has no <!-- study: {name} --> ... <!-- end -->")
        text = pattern.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


def main(args):
    data = read_record(args.record) if args.record else {"data": {}, "runs": []}
    if args.folder:
        runs = {run_of(run): run for run in data["runs"]} | {run_of(run): run for run in collect(args.folder)}
        images = json.loads((Path(args.folder) / "study.json").read_text())["data"]
        if other := [name for name in images if data["data"].get(name, images[name]) != images[name]]:
            raise ValueError(f"{args.record} has runs on other images of {', '.join(other)} than {args.folder}")
        data = {"data": {**data["data"], **images}, "runs": [runs[key] for key in sorted(runs)]}
    elif not args.record:
        raise ValueError("nothing to report on: give the folder of run.py, or --record docs/study.json, or both")
    results, root = Results(data["runs"]), Path(args.root)
    findings = filled_in((Path(args.findings) if args.findings else FINDINGS).read_text(), results)
    try:
        row = filled_in(ROW, results)
    except ValueError:
        row = "Not run yet."
    sections = {
        "findings": findings.replace(REST, "\n\n"),
        "main": f"{main_table(results)}\n\n{seeds_line(results)} Runs: {environment(data['runs'])}.",
        "stages": stage_tables(results),
        "rates": grid_table(results),
        "table4": ablation_table(results, TABLE4),
        "table5": ablation_table(results, TABLE5),
        "settings": settings_table(results),
        "reach": reach_table(),
        "crops": "\n\n".join(
            f"Crops of {size} px, {stage_tables(results, scale)}\n\n{seeds_line(results, scale)}"
            for scale, size in CROPS.items()
            if scale != THIN18
        ),
        "rates96": grid_table(results, CROP96),
        "late": late_table(results),
        "resnet50": stage_tables(results, THIN50),
        "detection": detection_table(results),
    }
    texts = {  # all of them before the first one is written
        "docs/study.json": json.dumps(data, indent=1) + "\n",
        "docs/study.md": inserted(root / "docs" / "study.md", sections),
        "README.md": inserted(root / "README.md", {"row": row}),
    }
    draw(results, root / "docs" / "study.png")
    draw_crops(results, root / "docs" / "study_crops.png")
    for name, text in texts.items():
        write(root / name, text)
    print(sections["main"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="what run.py has as --output")
    parser.add_argument("--record", help="a study.json of before")
    parser.add_argument(
        "--findings",
        help="text with places for figures (default: findings.md)",
    )
    parser.add_argument("--root", default=ROOT, help="the checkout whose files are written (default: this one)")
    arguments = parser.parse_args()
    with one_line_errors():
        main(arguments)
