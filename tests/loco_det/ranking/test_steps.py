"""The steps of an evaluation: which commands, in which order, with which learning rate."""

from pathlib import Path

import pytest
from detectron2.config import get_cfg

from loco_det.config import add_loco_config
from loco_det.ranking.choice import folder_of
from loco_det.ranking.data import NARROW, Data
from loco_det.ranking.recipes import recipe
from loco_det.ranking.settings import Candidate, Settings
from loco_det.ranking.steps import CHOSEN, Plan, total
from pretrain.files.results import DetectionResults
from pretrain.files.shipped_configs import CONFIGS
from pretrain.files.yaml_files import merge_config_file


@pytest.fixture
def plan(tmp_path):
    data = Data("own", NARROW, Path("images"), 200, {"NAME": "own"}, 128)
    cfg = get_cfg()
    add_loco_config(cfg)
    merge_config_file(cfg, CONFIGS / NARROW)
    recipes = {name: recipe(cfg, data, "short", name, [0.1, 0.2]) for name in ("frozen", "finetune")}
    rows = [
        Candidate("a", ["a.pth"], architecture="resnet18"),
        Candidate("b", ["b0.pth", "b1.pth"], architecture="resnet18"),
        Candidate("bad", ["x"], problem="refused: x"),
        Candidate("random_resnet18", ["random"], True, "resnet18"),
    ]
    rates = {name: found.rates for name, found in recipes.items()}
    settings = Settings({"name": "own"}, "short", ["frozen", "finetune", "probe", "knn"], 2, rates, 20,
                        ["TEST.NUM_PICTURES", "3"], ["cpu"], ["train", "val"], [], rows)  # fmt: skip
    return Plan(settings, data, recipes, tmp_path)


def titled(steps, start):
    return [step for step in steps if step.title.startswith(start)]


def test_each_row_has_all_of_it(plan):
    steps = plan.steps()
    tools = [step.tool for step in steps if step.row == "a"]
    detectors = ["train_net.py"] * (2 + 2)
    assert tools == ["convert_to_d2.py", *detectors, *detectors, "linear_probe.py", "knn.py"]
    assert [step.tool for step in steps if step.row == "b"][:2] == ["convert_to_d2.py"] * 2
    control = [step.tool for step in steps if step.row == "random_resnet18"]
    assert control[:4] == ["pretrain.py", "convert_to_d2.py"] * 2 and control[4:] == [*tools[1:]]
    assert not [step for step in steps if step.row == "bad"]
    order = {step: number for number, step in enumerate(steps)}
    assert all(order[need] < order[step] for step in steps for need in step.needs)


def test_all_of_a_network_of_timm_is_frozen(plan):
    """FREEZE_AT counts the blocks of a ViT, so that 5 of the recipe would leave most of it to learn."""
    name = "vit_small_patch16_224"
    plan.settings.rows = [Candidate("a", ["a.pth"], architecture=name), Candidate("c", ["random"], True, name)]
    steps = plan.steps()
    assert {step.tool for step in steps} == {"pretrain.py", "convert_to_d2.py", "train_net.py"}, "no readouts"
    for step in steps:
        words = step.words()
        if step.tool == "pretrain.py":
            assert words[words.index("MODEL.ENCODER") + 1] == f"timm:{name}"
            assert words[words.index("SOLVER.IMS_PER_BATCH") + 1] == "1", "it has no BN that images would calibrate"
            assert words[words.index("SOLVER.EPOCHS") + 1] == "0.5" and "calibrated" not in step.title
        elif step.tool == "train_net.py":
            frozen = words[words.index("MODEL.BACKBONE.FREEZE_AT") + 1] if "MODEL.BACKBONE.FREEZE_AT" in words else None
            assert frozen == ("99" if "frozen" in step.title else None)
            assert any(word.endswith("backbone.yaml") for word in words), "which names the network"


def test_running_averages_of_a_network_of_timm_are_calibrated(plan):
    plan.settings.rows = [Candidate("c", ["random"], True, "regnety_004")]
    words = titled(plan.steps(), "c, seed 1: random weights, calibrated BN")[0].words()
    assert words[words.index("SOLVER.IMS_PER_BATCH") + 1] == "64"


def test_the_rate_is_chosen_on_held_out_images_and_never_on_the_test_images(plan, tmp_path):
    steps = plan.steps()
    choice, final = titled(steps, "b frozen: learning rate"), titled(steps, "b frozen, seed")
    assert [step.choice for step in choice + final] == [True, True, False, False]
    for step, rate in zip(choice, (0.1, 0.2), strict=True):
        words = step.words()
        assert words[words.index("DATASETS.HELD_OUT") + 1] == "20" and words[words.index("SEED") + 1] == "0"
        assert words[words.index("SOLVER.BASE_LR") + 1] == f"{rate:g}"
        assert str(tmp_path / "b" / "seed0" / "backbone.yaml") in words
    for seed, step in enumerate(final):
        words = step.words()
        assert "DATASETS.HELD_OUT" not in words and words[words.index("SOLVER.BASE_LR") + 1] == CHOSEN
        assert set(choice) < set(step.needs) and str(tmp_path / "b" / f"seed{seed}" / "backbone.yaml") in words
    for rate, ap in ((0.1, 4.0), (0.2, 3.0)):
        folder = tmp_path / "b" / "frozen" / "choice" / folder_of(rate)
        folder.mkdir(parents=True)
        DetectionResults(results={"bbox": {"AP": ap}}, dataset="x", problems=[]).write(folder / "results.json")
    words = final[1].words()
    assert words[words.index("SOLVER.BASE_LR") + 1] == "0.1" and choice[0].is_done and not final[0].is_done


def test_all_rows_have_the_same_settings_but_for_weights_and_rate(plan):
    def settings(row):
        words = titled(plan.steps(), f"{row} finetune, seed 1")[0].words()
        return [word.replace(f"/{row}/", "/ROW/").replace("ROW/seed1/backbone", "ROW/backbone") for word in words]

    assert settings("a") == settings("b") == settings("random_resnet18")
    assert "TEST.NUM_PICTURES" in settings("a") and "cpu" in settings("a")


def test_the_control_is_calibrated_on_the_training_images(plan, tmp_path):
    words = titled(plan.steps(), "random_resnet18, seed 1: random weights")[0].words()
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    assert pairs["DATASETS.TRAIN"] == "images" and pairs["SEED"] == "1" and pairs["MODEL.ENCODER"] == "resnet18"
    assert pairs["INPUT.CROP_SIZE"] == "64" and float(pairs["SOLVER.EPOCHS"]) * (200 // 64) == pytest.approx(
        100, abs=0.01
    )


def test_readouts_take_the_checkpoint_itself(plan, tmp_path):
    probe, knn = (titled(plan.steps(), f"random_resnet18 {name}")[0] for name in ("linear probe", "kNN"))
    weights = str(tmp_path / "random_resnet18" / "seed0" / "pretrain" / "model_final.pth")
    assert weights in probe.words() and weights in knn.words() and probe.folder and not knn.folder
    assert "a.pth" in titled(plan.steps(), "a linear probe")[0].words()


def test_time_and_disk_of_what_is_left(plan, tmp_path):
    steps = plan.steps()
    seconds, size = total(steps, 1)
    assert seconds == pytest.approx(2 * total(steps, 2)[0]) and size > 1e8
    folder = tmp_path / "a" / "frozen" / "seed0"
    folder.mkdir(parents=True)
    done = DetectionResults(
        results={"bbox": {"AP": 1.0}}, dataset="x", problems=[], seconds=10.0, evaluation_seconds=2.0
    )
    done.write(folder / "results.json")
    steps = plan.steps()
    assert {step.seconds for step in titled(steps, "b frozen")} == {12.0}  # as the finished one took
    assert total(steps, 1)[0] < seconds and titled(steps, "a frozen, seed 0")[0].is_done
