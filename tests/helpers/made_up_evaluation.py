"""A made-up folder of ``loco-det evaluate``, for the tests of what is read, compared and written of it."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

CLASSES = ["car", "tram"]
FROZEN = {"loco": (6.0, 7.0, 8.0), "simclr": (5.0, 6.5, 6.5), "random_resnet18": (4.0, 4.5, 5.0)}
FINETUNE = {"loco": (10.0, 11.0, 12.0), "simclr": (14.0, 15.0, 16.0), "random_resnet18": (9.0, None, 9.0)}
RATES = [0.02, 0.04, 0.08]
HELD_OUT = {"loco": (3.0, 5.0, 6.0), "simclr": (3.0, 5.0, 4.0), "random_resnet18": (2.0, 1.0, None)}
CHOSEN = {"loco": 0.08, "simclr": 0.04, "random_resnet18": 0.02}


def write_run(folder, ap, rate=0.02, seed=0, **results):
    """A finished detector: box AP ``ap``, mask AP half of it."""
    (folder / "pictures").mkdir(parents=True)
    aps = {task: {"AP": ap * share, "AP50": 2 * ap * share, "APs": None, "APm": ap * share, "AP-car": ap * share}
           for task, share in (("bbox", 1), ("segm", 0.5))}  # fmt: skip
    content = {
        "kind": "detection", "version": 1, "dataset": "made_up_test", "iteration": 40, "max_iter": 40, "seconds": 60.0,
        "evaluation_seconds": 2.0, "peak_memory": 2_000_000_000, "backbone": "ResNet-18", "frozen": True,
        "weights": "b.pkl", "weights_sha256": f"{seed}" * 64, "thing_classes": CLASSES, "problems": [], "results": aps,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(content | results))
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"SOLVER": {"BASE_LR": rate}, "MODEL": {"META_ARCHITECTURE": "X"}})
    )
    lines = [{"iteration": i, "total_loss": 2.0, "loss_mask": 0.7, "data_time": 0, "time": 1.0} for i in (19, 39)]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    picture = np.full((60, 108, 3), 255, np.uint8)
    picture[10:, :50], picture[10:, 58:] = (0, 200, 0), (200, 0, round(10 * ap))  # truth, gap, prediction
    for name in ("000_a.png", "001_b.png"):
        Image.fromarray(picture).save(folder / "pictures" / name)


def write_settings(folder, **changes):
    """evaluation.yaml with some keys changed."""
    path = folder / "evaluation.yaml"
    content = yaml.safe_load(path.read_text()) | changes
    content["rows"] = [{"checkpoints": [f"{row['name']}.pth"]} | row for row in content["rows"]]
    path.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def evaluation_folder(tmp_path):
    """Two encoders, one that the converter refused, and their control, of which one run is missing."""
    folder = tmp_path / "evaluated"
    for protocol, figures in (("frozen", FROZEN), ("finetune", FINETUNE)):
        for name, aps in figures.items():
            for seed, ap in enumerate(aps):
                if ap is not None:
                    rate = CHOSEN[name] if protocol == "frozen" else 0.01
                    write_run(folder / name / protocol / f"seed{seed}", ap, rate, seed)
    for name, aps in HELD_OUT.items():
        for rate, ap in zip(RATES, aps, strict=True):
            place = folder / name / "frozen" / "choice" / f"lr{rate:g}"
            if ap is None:
                place.mkdir(parents=True)
                (place / "failed.txt").write_text("the loss is not finite")
            else:
                write_run(place, ap, rate)
    (folder / "loco" / "conversion.json").write_text(json.dumps({"layout": "loco-det", "arch": "resnet18"}))
    probe = folder / "loco" / "probe"
    probe.mkdir()
    stages = {"res4": {"top1": 40.0, "top5": 80.0, "lr": 0.1}, "res5": {"top1": 50.0, "top5": 90.0, "lr": 0.3}}
    (probe / "results.json").write_text(json.dumps({"kind": "linear", "linear": stages, "seconds": 3.0}))
    refused = "the converter refused it: it has 3 <stages>"
    rows = [
        {
            "name": "simclr",
            "checkpoints": ["simclr.pth"],
            "architecture": "resnet18",
            "sha256": ["a" * 64],
            "problem": "",
        },
        {"name": "loco", "checkpoints": ["loco.pth"], "architecture": "resnet18", "sha256": ["b" * 64], "problem": ""},
        {"name": "odd", "checkpoints": ["odd.pth"], "architecture": None, "sha256": None, "problem": refused},
        {"name": "random_resnet18", "checkpoints": ["random"], "control": True, "architecture": "resnet18"},
    ]
    part = {"json": "train.json", "images": "images", "sha256": "c" * 64}
    data = {"name": "streets", "train": part, "test": part | {"json": "test.json"}, "train_images": 200}
    settings = {
        "version": 1, "loco_det": "0.2.0", "data": {**data, "test_images": 50, "classes": CLASSES}, "budget": "short",
        "protocols": ["frozen", "finetune", "probe"], "seeds": 3, "rates": {"frozen": RATES, "finetune": [0.01]},
        "held_out": 20, "options": ["SOLVER.MAX_ITER", "40"], "overlays": [], "rows": rows,
    }  # fmt: skip
    (folder / "evaluation.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (folder / "commands.txt").write_text("loco-det train --config-file <x>\n")
    return folder
