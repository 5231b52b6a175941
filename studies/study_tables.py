"""The study's runs -> Markdown tables."""

import math
import statistics

from collect import Figure
from rates import LONG, MIDDLE, RATES, SHORT, chosen_rate
from rows import LATE, MAIN, ROWS, SETTINGS, SETTINGS_ROWS, TUNED
from run import DEMO, THIN18

EXPANSION = "+expansion"  # blockwise Barlow Twins' 1x1 conv, which its own probe reads
STAGES = ("res2", "res3", "res4", "res5")
BUDGETS = (SHORT, MIDDLE, LONG)


class Results:
    """The runs, and what is asked of them."""

    def __init__(self, runs):
        self.runs = runs
        self.rates = {(row, epochs): self._rate(row, epochs) for row in ROWS for epochs in BUDGETS}

    def _rate(self, row, epochs):
        row = ROWS[row].rate_of or row
        return chosen_rate(self.tried(row, SHORT), self.tried(row, MIDDLE), epochs) if row in TUNED else None

    def tried(self, row, epochs, scale=THIN18):
        """Learning rate -> accuracy of res5 on held-out training images, as run.py chooses by."""
        return {
            run["rate"]: run["held_out"]["res5"]
            for run in self.runs
            if (run["scale"], run["row"], run["epochs"], run["seed"]) == (scale, row, epochs, 0) and "held_out" in run
        }

    def of(self, row, epochs, scale=THIN18):
        """The runs of a row and budget with the row's learning rate for it, by seed."""
        found = [run for run in self.runs if (run["scale"], run["row"]) == (scale, row)]
        if ROWS[row].recipe == "imagenet/resnet50_random":
            return found
        return [run for run in found if run["epochs"] == epochs and run["rate"] == self.rates[row, epochs]]

    def figure(self, row, epochs, kind, stage, scale=THIN18, seeds=None):
        """Over the row's runs, or those with some seeds; runs whose loss exploded have no figures and do not count."""
        runs = [run for run in self.of(row, epochs, scale) if seeds is None or run["seed"] in seeds]
        return Figure([run[kind].get(stage) for run in runs if kind in run])

    def machine(self, epochs, scale=THIN18):
        """The machine of most of the main rows' runs whose cost is known: costs of two are no comparison."""
        runs = [run for row in MAIN for run in self.of(row, epochs, scale) if run["cpu_seconds"].get("pretrain")]
        return statistics.mode(run["machine"] for run in runs) if runs else None


def table(header, rows, align):
    """Markdown, cells padded so that the source can be read as well."""
    if not rows:
        return "Not run yet."
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * (w - 1) + ":" if a == "r" else "-" * w for w, a in zip(widths, align, strict=True)]
    pad = [
        [cell.rjust(w) if a == "r" else cell.ljust(w) for cell, w, a in zip(row, widths, align, strict=True)]
        for row in [header, *rows]
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [pad[0], rule, *pad[1:]])


def budgets_with_runs(results, scale=THIN18):
    return [e for e in BUDGETS if any(results.of(row, e, scale) for row in MAIN if row != "random")]


def main_table(results, scale=THIN18):
    """Linear probe of res5 by method and budget, more of the longest budget that all rows have, cost of the longest."""
    budgets = budgets_with_runs(results, scale)
    if not budgets:
        return "Not run yet."
    rows = [row for row in MAIN if any(results.of(row, e, scale) for e in budgets)]
    whole = [e for e in budgets if all(results.figure(row, e, "linear", "res5", scale).values for row in rows)]
    last = (whole or budgets)[-1]
    timed = results.machine(budgets[-1], scale)
    lines = []
    for row in rows:
        runs = [run for e in budgets for run in results.of(row, e, scale)]
        for suffix in ("", EXPANSION):
            if suffix and not any("res5" + suffix in run.get("linear", ()) for run in runs):
                continue
            cells = [results.figure(row, e, "linear", "res5" + suffix, scale) for e in budgets]
            cells.append(_best_stage(results, row, last, scale, suffix))
            cells.append(results.figure(row, last, "knn", "res5" + suffix, scale))
            cells.append(_minutes(results.of(row, budgets[-1], scale), timed))
            lines.append([_name(row, suffix), runs[0]["decoder"], *cells])
    header = ["method", "decoder", *(f"{e} epochs" for e in budgets)]
    header += [f"best stage, {last} epochs", f"kNN, {last} epochs", f"CPU minutes, {budgets[-1]} epochs"]
    return table(header, lines, "ll" + "r" * (len(budgets) + 3))


def seeds_line(results, scale=THIN18):
    """What "±" is over in a scale's tables, and how much seeds differ: the deviation of res5, pooled over the rows
    that learn."""
    parts = []
    for epochs in BUDGETS:
        figures = [results.figure(row, epochs, "linear", "res5", scale) for row in MAIN if row != "random"]
        figures = [figure for figure in figures if len(figure.values) > 1]
        if figures:
            counts = " or ".join(sorted({str(len(figure.values)) for figure in figures}))
            free = [len(figure.values) - 1 for figure in figures]
            squares = sum(n * figure.deviation**2 for n, figure in zip(free, figures, strict=True))
            parts.append(f"{counts} at {epochs} epochs ({math.sqrt(squares / sum(free)):.1f} pooled over rows)")
    return f'"±" is over seeds: {", ".join(parts) or "none yet"}; a figure without it is of one.'


def _name(row, suffix):
    return ROWS[row].method + (", after its 1x1 conv" if suffix else "")


def _minutes(runs, machine):
    """CPU minutes of pretraining, of the runs on one machine."""
    seconds = Figure([run["cpu_seconds"].get("pretrain") for run in runs if run["machine"] == machine])
    return f"{seconds.mean / 60:.1f}" if seconds.values else "–"


def _best_stage(results, row, epochs, scale=THIN18, suffix="", seeds=None):
    """The stage that reads best on held-out training images, and what it reads on the test images."""
    held_out = {stage: results.figure(row, epochs, "held_out", stage + suffix, scale, seeds) for stage in STAGES}
    if not any(figure.values for figure in held_out.values()):
        return "–"
    stage = max(STAGES, key=lambda s: held_out[s].mean if held_out[s].values else 0)
    return f"{stage} {results.figure(row, epochs, 'linear', stage + suffix, scale, seeds)}"


def stage_tables(results, scale=THIN18):
    """Every stage's linear probe and kNN, a table for each budget; the blockwise expansion's in lines of their own."""
    parts = []
    for epochs in budgets_with_runs(results, scale):
        lines = []
        for row in MAIN:
            runs = results.of(row, epochs, scale)
            for suffix in ("", EXPANSION):
                if not runs or (suffix and not any(suffix in stage for stage in runs[0].get("linear", ()))):
                    continue
                cells = [results.figure(row, epochs, k, s + suffix, scale) for k in ("linear", "knn") for s in STAGES]
                seeds = f"{len(cells[3].values)} of {len(runs)}" if len(cells[3].values) < len(runs) else len(runs)
                lines.append([_name(row, suffix), runs[0]["decoder"], seeds, f"{runs[0]['rate']:g}", *cells])
        header = ["method", "decoder", "seeds", "lr", *STAGES, *(f"kNN {stage}" for stage in STAGES)]
        parts.append(f"{epochs} epochs:\n\n" + table(header, lines, "ll" + "r" * 10))
    return "\n\n".join(parts) or "Not run yet."


def grid_table(results, scale=THIN18):
    """Learning rates: res5's probe on held-out training images, in bold the rates that all other tables are of.

    Rows of which one rate alone was tried are left out.
    """
    parts = []
    for epochs in (SHORT, MIDDLE):
        found_of = {row: results.tried(row, epochs, scale) for row in TUNED}
        found_of = {row: found for row, found in found_of.items() if len(found) > 1}
        tried = [rate for rate in RATES if any(rate in found for found in found_of.values())]
        lines = []
        for row, found in found_of.items():
            decoder = next(run["decoder"] for run in results.runs if run["row"] == row)
            marks = {results.rates[row, epochs]: "**{}**"}
            cells = [marks.get(rate, "{}").format(Figure([found.get(rate)])) for rate in tried]
            lines.append([ROWS[row].method, decoder, *cells])
        header = ["method", "decoder", *(f"{rate:g}" for rate in tried)]
        if lines:
            parts.append(f"{epochs} epochs:\n\n" + table(header, lines, "ll" + "r" * len(tried)))
    return "\n\n".join(parts) or "Not run yet."


def ablation_table(results, rows):
    """Rows of the paper's Table 4 or 5 at this scale beside the paper's figures, as far as they were run.

    A column for each budget, on the seeds that all its rows have, so that no row is compared on other seeds.
    """
    columns, first = [], {}
    for epochs in (SHORT, MIDDLE):
        found = {row: [run for run in results.of(row, epochs) if "linear" in run] for row in rows}
        found = {row: runs for row, runs in found.items() if runs}
        if found:
            seeds = set.intersection(*({run["seed"] for run in runs} for runs in found.values()))
            columns.append((epochs, seeds))
            first |= {row: runs[0] for row, runs in found.items() if row not in first}
    lines = []
    for row in (row for row in rows if row in first):
        tuned = ROWS[row].rate_of or row
        donor = "itself" if tuned == row else f"{ROWS[tuned].method}, {first[tuned]['decoder']}"
        cells = [results.figure(row, epochs, "linear", "res5", seeds=seeds) for epochs, seeds in columns]
        cells += [_best_stage(results, row, epochs, seeds=seeds) for epochs, seeds in columns]
        lines.append([ROWS[row].method, first[row]["decoder"], donor, *cells, rows[row]])
    header = ["method", "decoder", "lr tuned for"]
    header += [
        f"{what}, {e} epochs, {len(s)} seed{'s'[: len(s) > 1]}" for what in ("res5", "best stage") for e, s in columns
    ]
    return table([*header, "paper: ImageNet, ResNet-50"], lines, "lll" + "r" * (2 * len(columns) + 1))


def settings_table(results):
    """res5's linear probe and kNN where one setting is another."""
    lines = []
    for epochs in (SHORT, MIDDLE):
        found = {scale: _readings(results, epochs, scale) for scale in SETTINGS}
        if any(seeds for scale, (seeds, *_) in found.items() if scale != THIN18):
            lines += [[epochs, SETTINGS[scale], *cells] for scale, cells in found.items() if cells[0]]
    decoders = {run["row"]: run["decoder"] for run in results.runs}
    header = ["epochs", "setting", "seeds", *(f"{ROWS[row].method}, {decoders.get(row)}" for row in SETTINGS_ROWS)]
    return table(header, lines, "rlr" + "r" * len(SETTINGS_ROWS))


def _readings(results, epochs, scale):
    """On how many seeds the settings' rows were all run, as far as they were, and what each of them reads on those."""
    done = {row: {run["seed"] for run in results.of(row, epochs, scale) if "linear" in run} for row in SETTINGS_ROWS}
    seeds = set.intersection(*filter(None, done.values())) if any(done.values()) else set()
    cells = []
    for row in SETTINGS_ROWS:
        linear, knn = (results.figure(row, epochs, kind, "res5", scale, seeds) for kind in ("linear", "knn"))
        cells.append(f"{linear} / {knn}" if linear.values else "–")
    return [len(seeds), *cells]


def late_table(results):
    """Every stage's linear probe where all updates are exact, and where those of all stages but one are late."""
    lines = []
    for epochs in (SHORT, MIDDLE):
        found = [row for row in LATE if results.of(row, epochs)]
        for row in found if len(found) > 1 else ():
            cells = [results.figure(row, epochs, "linear", stage) for stage in STAGES]
            lines.append([epochs, ROWS[row].method if row != LATE[0] else "exact", len(cells[0].values), *cells])
    return table(["epochs", "updates", "seeds", *STAGES], lines, "rlr" + "r" * len(STAGES))


def detection_table(results):
    """AP of Mask R-CNN on the frozen encoders."""
    lines, order = [], [("random", 0), *((row, epochs) for epochs in BUDGETS for row in MAIN if row != "random")]
    for data, scale, images in (("nuclei", THIN18, "imagenette96"), ("demo", DEMO, "demo scenes")):
        for row, epochs in order:
            runs = [run for run in results.of(row, epochs, scale) if data in run.get("detection", {})]
            if runs:
                cells = [Figure([run["detection"][data][f"{task}_ap"] for run in runs]) for task in ("box", "mask")]
                lines.append([data, images, ROWS[row].method, runs[0]["decoder"], epochs, len(runs), *cells])
    header = ["data", "pretrained on", "method", "decoder", "epochs", "seeds", "box AP", "mask AP"]
    return table(header, lines, "llllrrrr")
