"""The study's runs -> Markdown tables."""

from collect import Figure
from rates import LONG, MIDDLE, RATES, SHORT, chosen_rate
from rows import MAIN, ROWS, TUNED
from run import THIN18

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

    def tried(self, row, epochs):
        """Learning rate -> accuracy of res5 on held-out training images, as run.py chooses by."""
        return {
            run["rate"]: run["held_out"]["res5"]
            for run in self.runs
            if (run["scale"], run["row"], run["epochs"], run["seed"]) == (THIN18, row, epochs, 0) and "held_out" in run
        }

    def of(self, row, epochs, scale=THIN18):
        """The runs of a row and budget with the row's learning rate for it, by seed."""
        found = [run for run in self.runs if (run["scale"], run["row"]) == (scale, row)]
        if ROWS[row].recipe == "resnet50_random":
            return found
        return [run for run in found if run["epochs"] == epochs and run["rate"] == self.rates[row, epochs]]

    def figure(self, row, epochs, kind, stage, scale=THIN18):
        return Figure([run[kind].get(stage) for run in self.of(row, epochs, scale) if kind in run])


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
    """Linear probe of res5 by method and budget, beside the best stage's and kNN's at the last one with all rows."""
    budgets = budgets_with_runs(results, scale)
    header = ["method", "decoder", *(f"{e} epochs" for e in budgets), "best stage", "kNN", "CPU minutes"]
    lines = []
    for row in MAIN:
        last = next((e for e in reversed(budgets) if results.of(row, e, scale)), None)
        if last is None:
            continue
        runs = results.of(row, last, scale)
        lines.append(
            [
                ROWS[row].method,
                runs[0]["decoder"],
                *(results.figure(row, e, "linear", "res5", scale) for e in budgets),
                _best_stage(results, row, last, scale),
                results.figure(row, last, "knn", "res5", scale),
                _minutes(runs),
            ]
        )
    return table(header, lines, "ll" + "r" * (len(budgets) + 3))


def _minutes(runs):
    seconds = Figure([run["cpu_seconds"].get("pretrain") for run in runs])
    return f"{seconds.mean / 60:.1f}" if seconds.values else "–"


def _best_stage(results, row, epochs, scale):
    means = {stage: results.figure(row, epochs, "linear", stage, scale) for stage in STAGES}
    stage = max(means, key=lambda s: means[s].mean)
    return f"{stage} {means[stage]}"


def stage_tables(results, scale=THIN18):
    """Every stage's linear probe and kNN, a table for each budget; the blockwise expansion's in lines of their own."""
    parts = []
    for epochs in budgets_with_runs(results, scale):
        lines = []
        for row in MAIN:
            runs = results.of(row, epochs, scale)
            for suffix in ("", "+expansion"):
                if not runs or (suffix and not any(suffix in stage for stage in runs[0].get("linear", ()))):
                    continue
                cells = [results.figure(row, epochs, k, s + suffix, scale) for k in ("linear", "knn") for s in STAGES]
                name = ROWS[row].method + (", after its 1x1 conv" if suffix else "")
                lines.append([name, runs[0]["decoder"], len(runs), f"{runs[0]['rate']:g}", *cells])
        header = ["method", "decoder", "seeds", "lr", *STAGES, *(f"kNN {stage}" for stage in STAGES)]
        parts.append(f"{epochs} epochs:\n\n" + table(header, lines, "ll" + "r" * 10))
    return "\n\n".join(parts) or "Not run yet."


def grid_table(results):
    """The choice of the learning rates: res5's probe on held-out training images, the chosen ones in bold."""
    parts = []
    for epochs in (SHORT, MIDDLE):
        tried = [rate for rate in RATES if any(rate in results.tried(row, epochs) for row in TUNED)]
        lines = []
        for row in TUNED:
            if not (found := results.tried(row, epochs)):
                continue
            decoder = next(run["decoder"] for run in results.runs if run["row"] == row)
            marks = {results.rates[row, epochs]: "**{}**"}
            cells = [marks.get(rate, "{}").format(Figure([found.get(rate)])) for rate in tried]
            lines.append([ROWS[row].method, decoder, *cells])
        header = ["method", "decoder", *(f"{rate:g}" for rate in tried)]
        parts.append(f"{epochs} epochs:\n\n" + table(header, lines, "ll" + "r" * len(tried)))
    return "\n\n".join(parts)


def ablation_table(results, rows):
    """Rows of the paper's Table 4 or 5 at this scale beside the paper's figures."""
    lines = []
    for row, published in rows.items():
        if runs := results.of(row, MIDDLE):
            cells = [results.figure(row, MIDDLE, "linear", "res5"), _best_stage(results, row, MIDDLE, THIN18)]
            lines.append([ROWS[row].method, runs[0]["decoder"], len(runs), *cells, published])
    header = ["method", "decoder", "seeds", "res5", "best stage", "paper: ImageNet, ResNet-50"]
    return table(header, lines, "llrrrr")


def detection_table(results):
    """AP of Mask R-CNN on the frozen encoders."""
    lines = []
    for data in ("nuclei", "demo"):
        for row in MAIN:
            runs = [run for run in results.runs if run["row"] == row and data in run.get("detection", {})]
            if runs:
                cells = [Figure([run["detection"][data][f"{task}_ap"] for run in runs]) for task in ("box", "mask")]
                pretrained = "demo scenes" if runs[0]["scale"].startswith("demo") else "imagenette96"
                lines.append([data, pretrained, ROWS[row].method, runs[0]["decoder"], len(runs), *cells])
    return table(["data", "pretrained on", "method", "decoder", "seeds", "box AP", "mask AP"], lines, "llllrrr")
