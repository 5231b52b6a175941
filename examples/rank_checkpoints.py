"""Rank checkpoints on data of your own, and read the figures in Python.

    python examples/rank_checkpoints.py OUTPUT TRAIN.json IMAGES TEST.json IMAGES NAME=CHECKPOINT...

The command goes on where it was interrupted; of a finished evaluation this only reads the figures.
"""

import subprocess
import sys

from loco_det import rank, read_evaluation


def main(arguments: list[str]) -> dict[str, tuple[float, str]]:
    """Evaluate in minutes, with a light head; returns each row's box AP and whether it is above chance."""
    output, data, checkpoints = arguments[0], arguments[1:5], arguments[5:]
    if checkpoints:
        command = [sys.executable, "-m", "loco_det", "evaluate", *checkpoints, "--data", *data]
        subprocess.run([*command, "--budget", "minutes", "--output", output], check=True)

    ranking = next(found for found in rank(read_evaluation(output)) if found.task == "bbox")
    rows = {}
    for entry in ranking.entries:  # the best first
        chance = ranking.comparison(entry.row.name, "control")
        verdict = chance.sentence if chance else "the control" if entry.row.control else "no control"
        rows[entry.row.name] = (entry.mean, verdict)
        print(f"{entry.row.name}: {entry.mean:.1f} box AP over seeds {', '.join(map(str, entry.values))}. {verdict}")
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
