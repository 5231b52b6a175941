"""Model cards: every figure against its source, the method's name for every recipe, and what is refused."""

import datetime
import json
import math
import re
import shutil
import tempfile
from pathlib import Path

import markdown
import pytest
import torch
import yaml
from detectron2.utils.collect_env import collect_env_info
from huggingface_hub import ModelCard

from pretrain.config import get_cfg
from pretrain.encoders import build_encoder
from pretrain.engine.checkpoint import AtomicCheckpointer
from pretrain.engine.decoder_text import decoder_text
from pretrain.files.atomic import sha256_of
from pretrain.learning.build import build_learner
from pretrain.model_card import write_model_card
from pretrain.model_card.method import loss_of, method_of, reach_of, schedule_of
from pretrain.model_card.run import PretrainingRun, dataset_of, portable

RECIPES = Path(__file__).resolve().parents[3] / "configs" / "pretrain"
STAGES = ("res2", "res3", "res4", "res5")
BEGUN = 1700000000  # seconds since 1970
SMALL = ["MODEL.ENCODER", "resnet18x0.5", "MODEL.DECODER.HIDDEN_DIM", 24, "MODEL.DECODER.OUT_DIM", 8, "MODEL.DEVICE",
         "cpu", "SOLVER.IMS_PER_BATCH", 4, "SOLVER.EPOCHS", 3.0, "SOLVER.WARMUP_EPOCHS", 1.0, "INPUT.CROP_SIZE", 48,
         "LOSS.TEMPERATURE", 0.25, "SEED", 17]  # fmt: skip


def make_run(folder, *options):
    """A run folder as tools/pretrain.py leaves it after 9 iterations on 12 images; no training."""
    folder.mkdir()
    cfg = get_cfg()
    home = "/home/somebody/secret"
    cfg.merge_from_list([*SMALL, "DATASETS.TRAIN", f"{home}/photos", "OUTPUT_DIR", str(folder), *options])
    learner = build_learner(cfg)
    AtomicCheckpointer(cfg, learner, 12).save("model_final", iteration=8)
    lines = []
    for i in range(2, 9, 3):
        losses = {f"loss_{unit[-1]}": 2 - i / 10 + k / 100 for k, unit in enumerate(cfg.MODEL.UNITS)}
        lines.append({"iteration": i, "lr": 0.1, "time": 200.0 + i, **losses, "knn/res5-top1": 30 + i / 3})
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = f"python {home}/code/tools/pretrain.py --config-file {home}/code/configs/pretrain/resnet50_loco.yaml"
    command += f" {{}} --dist-url tcp://10.1.2.3:99 DATASETS.TRAIN {home}/photos OUTPUT_DIR output/here"
    (folder / "command.txt").write_text(f"{command.format('SEED 17')}\n{command.format('--resume')}\n")
    for later in (0, 100000):
        (folder / f"events.out.tfevents.{BEGUN + later}.secret.1.0").touch()
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.manual_seed(0)
    return make_run(tmp_path_factory.mktemp("runs") / "loco")


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "loco"))


@pytest.fixture
def results(run, tmp_path):
    """A function that writes a results.json of this checkpoint and returns its folder."""
    sha256 = sha256_of(run / "model_final.pth")

    def write(kind, **changes):
        weights = {"path": "/home/somebody/x.pth", "sha256": sha256, "source": "loco-det", "arch": "resnet18x0.5"}
        images = {"train": 9000, "held_out": 1000, "test": 3925, "classes": 10}
        content = {"weights": weights, "images": images, "seconds": 1.0}
        if kind == "linear":
            protocol = {"base_lr": [30.0, 3.0], "schedule": "x 0.1", "from": "/home/me/x.pth", "chosen_on": "held-out"}
            content |= {"protocol": protocol, "linear": {
                "res4": {"top1": 41.26, "top5": 80.04, "lr": 3.0, "held_out_top1": 42.5, "sweep": {"30": {}, "3": {}}},
                "res5+expansion": {"top1": 51.0, "top5": None, "lr": 30.0, "held_out_top1": 52.5, "sweep": {"30": {}}},
            }}  # fmt: skip
        elif kind == "knn":
            content["protocol"] = {"crop_size": 48, "leave_one_out": False, "nothing": None}
            rows = {"k200_t0.07": {"top1": 37.13, "top5": 77.7}, "k20_t0.1": {"top1": 36.0, "top5": 71.0}}
            content["knn"] = {"res5": rows}
        else:
            content = {"results": {"bbox": {"AP": 32.61, "AP50": 51.2}, "segm": {"AP": 30.1, "AP50": None}},
                       "dataset": "my_test", "schedule": "1x", "frozen": True, "freeze_at": 5, "norm": "FrozenBN",
                       "heads_norm": "SyncBN", "weights_metadata": {"sha256": sha256}}  # fmt: skip
        folder = tmp_path / f"{kind}_{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(content | changes))
        (folder / "config.yaml").write_text("DATASETS: {TRAIN: /home/somebody/nette/train, TEST: /home/x/nette/val}")
        return folder

    return write


def tables(text):
    """First cell of every row of every table -> the others."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_figures_are_those_of_the_files(run):
    text = write_model_card(run).read_text()
    cells, path = tables(text), run / "model_final.pth"
    saved = torch.load(path, weights_only=True)
    assert cells["SHA-256"] == [f"`{sha256_of(path)}`"]
    assert cells["size"][0].startswith(f"{path.stat().st_size:,} bytes")
    assert cells["begun"] == [f"{datetime.datetime.fromtimestamp(BEGUN, datetime.timezone.utc):%Y-%m-%d} (UTC)"]
    assert cells["images"] == ["`photos`: 12 images, no labels"] and cells["seed"] == ["17"]
    assert cells["steps"] == ["9 (3 epochs)"] and cells["batch"] == ["4 images over 1 process"]
    assert cells["precision"] == ["float32"] and cells["device"] == ["`cpu`"]
    learner = build_learner(PretrainingRun(run).cfg)
    for stage, module in zip(STAGES, learner.encoder.stages, strict=True):
        channels = str({"res2": 32, "res3": 64, "res4": 128, "res5": 256}[stage])
        size = f"{sum(p.numel() for p in module.parameters()):,}"
        assert [stage, "2" if stage != "res2" else "3", channels, str(2 ** int(stage[3])), size] in [
            [k, *v] for k, v in table_rows(text) if len(v) == 4
        ]
    assert f"({sum(p.numel() for p in learner.encoder.parameters()):,} parameters)" in text
    size = sum(p.numel() for p in learner.decoders.parameters())
    assert f"MLP 24-8 (2 layers, BN at its end); one a unit, together {size:,} parameters" in cells["decoder"][0]
    assert cells["units"] == ["3: [res2 res3] [res3 res4] [res4 res5]"]
    for k, stage in enumerate(STAGES[1:]):
        assert cells[f"loss_{stage}"] == [f"{1.8 + k / 100:.4f}", "3", f"{1.2 + k / 100:.4f}", "9"]
    assert f"Chance level, ln(2B - 1) x scale: {math.log(7):.4f} nats" in text
    seconds = 3 * (202 + 205 + 208)
    assert f"Cost: {seconds / 3600:.3g} hours ({seconds:,}.0 s) of training steps, device `cpu`" in text
    assert "kNN while training" in text and "res5 32.7." in text
    assert "Scale: 36 images seen (steps x batch), of 12 different ones" in text
    assert yaml.safe_load(blocks(text, "yaml")[0])["LOSS"] == yaml.safe_load(saved["config"])["LOSS"]
    assert "minus the mean [123.675, 116.28, 103.53], over the standard deviation [58.395, 57.12, 57.375]" in text
    assert "crops of 48 px" in text


def table_rows(text):
    return [(k, v) for line in text.splitlines() if line[:1] == "|" for k, v in tables(line).items()]


def test_the_same_files_give_the_same_bytes_and_tell_nothing_of_the_machine(run, results, tmp_path):
    readouts = {"linear": [results("linear")], "knn": [results("knn")], "detection": [results("detection")]}
    first = write_model_card(run, **readouts).read_bytes()
    assert write_model_card(run, **readouts).read_bytes() == first
    text = first.decode()
    for secret in ("/home", "somebody", "secret", str(tmp_path), "10.1.2.3"):
        assert secret not in text
    assert (
        "python tools/pretrain.py --config-file configs/pretrain/imagenet/resnet50_loco_800ep.yaml SEED 17 "
        "--dist-url tcp://HOST:PORT DATASETS.TRAIN path/to/photos OUTPUT_DIR output/here\n" in text
    )
    assert not list(run.glob("*.tmp*"))


def test_front_matter_is_what_hugging_face_reads(run, results):
    folders = {kind: [results(kind)] for kind in ("linear", "knn", "detection")}
    text = write_model_card(run, **folders, name="LoCo:\n small", licence="cc-by-4.0").read_text()
    data = yaml.safe_load(text.split("---\n")[1])
    assert data["library_name"] == "loco-det" and data["license"] == "cc-by-4.0" and data["datasets"] == ["photos"]
    assert data["tags"] == ["self-supervised-learning", "local-learning", "loco", "resnet18x0.5"]
    assert data["metrics"] == ["accuracy", "mean_average_precision"]
    card = ModelCard(text).data
    figures = {result.metric_name: result.metric_value for result in card.eval_results}
    assert card.model_name == "LoCo: small" and "\n# LoCo: small\n" in text
    assert figures["linear probe top-1, res4"] == 41.26
    assert figures["kNN top-1, res5, k 20, temperature 0.1"] == 36.0
    assert figures["box AP, Mask R-CNN, backbone frozen (detection_3)"] == 32.61
    assert len(figures) == 6 and {result.dataset_name for result in card.eval_results} == {"nette/val", "my_test"}
    bare = write_model_card(run).read_text()
    assert ModelCard(bare).data.license == "unknown" and "licence of the weights | not stated" in bare
    assert "model-index" not in bare and "metrics" not in yaml.safe_load(bare.split("---\n")[1])


def test_readouts_in_tables(run, results):
    linear, knn, detection = results("linear"), results("knn"), results("detection")
    text = write_model_card(run, linear=[linear], knn=[knn], detection=[detection]).read_text()
    rows = table_rows(text)
    assert ("features", ["top-1 (%)", "top-5 (%)", "learning rate", "held-out top-1 (%)"]) in rows
    assert ("res4", ["41.3", "80.0", "3", "42.5"]) in rows
    assert ("res5+expansion", ["51.0", "–", "30", "52.5"]) in rows
    assert "9,000 images to learn from, 1,000 held out, 3,925 to test, 10 classes." in text
    assert "Learning rates tried: 30, 3; chosen, for each stage by itself, on images of the training set held" in text
    assert "Protocol: schedule x 0.1, from x.pth." in text
    assert f"`{linear.name}`, by `tools/linear_probe.py` on `nette/val`." in text
    assert "Protocol: crop_size 48, leave_one_out false." in text
    assert ("res5", ["200", "0.07", "37.1", "77.7"]) in rows and ("res5", ["20", "0.1", "36.0", "71.0"]) in rows
    found = tables(text)[detection.name]
    assert found == ["my_test", "1x", "frozen", "FrozenBN", "SyncBN", "32.6", "51.2", "30.1"]  # no mask AP50
    assert "Not measured" not in text and "Nothing was measured" not in text
    assert "on the test set" not in text and "largest tried" not in text
    bare = write_model_card(run).read_text()
    assert bare.count("Not measured.") == 3 and "Nothing was measured of it" in bare


def test_a_learning_rate_chosen_on_the_test_set_is_named(run, results):
    folder = results("linear", protocol={"base_lr": [3.0, 10.0, 30.0], "chosen_on": "test"})
    text = write_model_card(run, linear=[folder]).read_text()
    assert "Best at the least or largest rate tried, beyond which a better may lie: res4, res5+expansion." in text
    assert "chosen, for each stage by itself, on the test set itself, which flatters" in text
    assert "- The learning rate of a linear probe was chosen on the test set" in text


def test_classifiers_that_have_all_diverged(run, results):
    row = {"top1": None, "top5": None, "lr": None, "held_out_top1": None, "sweep": {"3": {}}}
    folder = results("linear", linear={"res5": row})
    text = write_model_card(run, linear=[folder]).read_text()
    assert ("res5", ["all diverged"]) in table_rows(text) and "model-index" not in text


def test_several_test_sets_and_a_fine_tuned_backbone(run, results):
    sets = {"a_test": {"bbox": {"AP": 1.0, "AP50": 2.0}}, "b_test": {"bbox": {"AP": 3.0, "AP50": 4.0}}}
    folder = results("detection", results=sets, frozen=False, freeze_at=2)
    text = write_model_card(run, detection=[folder]).read_text()
    for name, figures in (("a_test", ["1.0", "2.0"]), ("b_test", ["3.0", "4.0"])):
        row = (folder.name, [name, "1x", "fine-tuned, FREEZE_AT 2", "FrozenBN", "SyncBN", *figures])
        assert row in table_rows(text)


def test_links_exist_and_curves_are_drawn_or_copied(run, tmp_path):
    inside = write_model_card(run)
    assert inside == run / "model_card.md" and links(inside) == ["losses.png"]  # drawn: there was none
    (run / "losses.png").write_bytes(b"the run's own")
    (tmp_path / "cards").mkdir()
    outside = write_model_card(run, tmp_path / "cards" / "small.md")
    assert links(outside) == ["small_losses.png"]
    assert (outside.parent / "small_losses.png").read_bytes() == b"the run's own"
    assert "not beside this card" in outside.read_text() and "not beside this card" not in inside.read_text()


def links(card):
    """The relative links of a card, rendered; all must lead to a file."""
    html = markdown.markdown(card.read_text().split("---\n", 2)[2], extensions=["tables", "fenced_code"])
    found = re.findall(r'(?:src|href)="([^"]+)"', html)
    for link in found:
        assert (card.parent / link).is_file(), link
    return found


def test_the_python_of_the_card_runs(run, monkeypatch):
    text = write_model_card(run).read_text()
    monkeypatch.chdir(run)
    images = torch.rand(2, 3, 64, 96) * 255
    names = {"images": images}
    exec(blocks(text, "python")[0], names)
    assert {k: tuple(f.shape) for k, f in names["features"].items()} == {
        "res2": (2, 32, 16, 24), "res3": (2, 64, 8, 12), "res4": (2, 128, 4, 6), "res5": (2, 256, 2, 3)
    }  # fmt: skip
    learner = build_learner(PretrainingRun(run).cfg).eval()
    learner.load_state_dict(torch.load(run / "model_final.pth", weights_only=True)["model"])
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    expected = learner.encoder((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    torch.testing.assert_close(names["features"], expected, rtol=1e-3, atol=1e-4)


def test_what_the_run_has_not_recorded_is_said(run):
    for name in ("metrics.json", "command.txt"):
        (run / name).unlink()
    for path in run.glob("events*"):
        path.unlink()
    text = write_model_card(run).read_text()
    cells = tables(text)
    for key in ("begun", "software, machine", "commit of loco-det"):
        assert cells[key] == ["not recorded by the run"]
    assert "Losses: not recorded." in text and "Cost: not recorded." in text and "![" not in text
    assert "The command line is not recorded; the config is." in text


def test_versions_come_from_the_log(run):
    (run / "log.txt").write_text(f"[11/22 09:41:21] pretrain INFO: Environment info:\n{collect_env_info()}\n")
    software = tables(write_model_card(run).read_text())["software, machine"][0]
    assert f"PyTorch {torch.__version__}" in software and "Python 3." in software and "/" not in software


def test_random_control(tmp_path):
    text = write_model_card(make_run(tmp_path / "random", "MODEL.UNITS", [])).read_text()
    assert "Method: random initialisation, the control" in text and "No loss: nothing was learned." in text
    assert not {"decoder", "loss", "units", "optimiser"} & tables(text).keys()
    assert yaml.safe_load(text.split("---\n")[1])["tags"] == ["random", "resnet18x0.5"]
    assert "- A control: its weights are random." in text


def test_a_network_of_timm(tmp_path):
    card = ModelCard.load(write_model_card(make_run(tmp_path / "vit", "MODEL.ENCODER", "timm:test_vit")))
    assert "timm:test_vit" in card.data.tags and 'build_encoder("timm:test_vit")' in card.content
    parameters = sum(p.numel() for p in build_encoder("timm:test_vit").parameters())
    assert f"A timm:test_vit encoder, pretrained without labels ({parameters:,} parameters)" in card.content
    assert "train_net.py --config-file backbone.yaml MODEL.BACKBONE.FREEZE_AT 99 OUTPUT_DIR" in card.content
    vit, resnet = recipe("imagenet/vit_small_loco_300ep"), recipe("imagenet/resnet50_loco_800ep")
    assert "(none on norms, biases, tokens and position embeddings)" in schedule_of(vit)
    assert "(none on BN and biases)" in schedule_of(resnet)


def test_an_encoder_of_your_own_is_named_on_each_command_line(tmp_path, monkeypatch):
    (tmp_path / "my_net.py").write_text(
        "from pretrain.encoders import build_encoder\ndef build():\n    return build_encoder('resnet18x0.5')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = make_run(tmp_path / "mine", "MODEL.ENCODER", "my_net.build")
    text = write_model_card(folder, encoder="my_net.build").read_text()
    assert 'build_encoder("my_net.build")' in text
    assert "coco_loco_frozen.yaml --arch my_net.build\n" in text
    assert "backbone.yaml MODEL.ENCODER my_net.build OUTPUT_DIR" in text
    assert "\n    MODEL.SOURCE.ENCODER my_net.build DATASETS.TRAIN" in text


@pytest.mark.parametrize("asked", [None, "os.getcwd"])
def test_no_checkpoint_decides_what_code_runs(tmp_path, monkeypatch, asked):
    calls = []
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *_: calls.append(1))
    folder = make_run(tmp_path / "mine")
    path = folder / "model_final.pth"
    content = torch.load(path, weights_only=True)
    content["config"] = content["config"].replace("ENCODER: resnet18x0.5", "ENCODER: tempfile.mkdtemp")
    assert "tempfile" in content["config"]
    torch.save(content, path)
    with pytest.raises(ValueError, match="its encoder is 'tempfile.mkdtemp', code of your own.*: add --encoder"):
        write_model_card(folder, encoder=asked)
    assert not calls and not (folder / "model_card.md").exists()


@pytest.mark.parametrize(
    "pattern, name",
    [("imagenet/*_simclr_*", "SimCLR"), ("ablations/decoder/end_to_end*", "SimCLR"), ("imagenet/*_gim_*", "GIM"),
     ("ablations/decoder/local_*_sharing", "LoCo"), ("ablations/decoder/local_[12cf]*", "GIM"),
     ("imagenet/*50_loco_*", "LoCo"), ("demo_loco*", "LoCo"), ("cpu/*_loco", "LoCo"),
     ("ablations/sharing/upper_gradient", "LoCo"), ("ablations/sharing/tie_*", "GIM"),
     ("ablations/sharing/*_block*", "local learning"), ("imagenet/resnet50_blockwise_*", "blockwise Barlow Twins"),
     ("ablations/blockwise/[gls]*", "blockwise Barlow Twins"), ("ablations/blockwise/vicreg", "blockwise VICReg"),
     ("imagenet/resnet50_vicreg_*", "VICReg"), ("imagenet/resnet50_barlow_*", "Barlow Twins"),
     ("*_random", "random"), ("imagenet/*_random", "random")],
)  # fmt: skip
def test_method_of_every_recipe(pattern, name):
    recipes = list(RECIPES.glob(f"{pattern}.yaml"))
    assert recipes
    for path in recipes:
        cfg = recipe(path.relative_to(RECIPES).with_suffix(""))
        stages = (*STAGES, "res6", "res7") if path.stem.startswith("presnet50") else STAGES
        short, method = method_of(cfg, stages)
        assert short == name, path.name
        assert name != "LoCo" or "arXiv 2008.01342" in method


def test_loco_with_a_loss_on_res2_is_told_from_loco():
    assert method_of(recipe("imagenet/resnet50_loco_800ep"), STAGES)[1].endswith("2008.01342)")
    assert "further loss on res2" in method_of(recipe("imagenet/resnet50_loco_res2_800ep"), STAGES)[1]


def recipe(name, *options):
    cfg = get_cfg()
    cfg.merge_from_file(RECIPES / f"{name}.yaml")
    cfg.merge_from_list(options)
    return cfg


def test_the_source_of_blockwise_vicreg():
    method = method_of(recipe("ablations/blockwise/vicreg"), STAGES)[1]
    assert method == "blockwise VICReg (Siddiqui, Krueger, LeCun, Deny 2023, arXiv 2302.01647)"
    loco = method_of(recipe("imagenet/resnet50_loco_800ep", "LOSS.NAME", "vicreg"), STAGES)
    assert loco[0] == "LoCo with VICReg's loss" and loco[1].startswith("LoCo with VICReg's loss (Xiong")


def test_reach_of_gradients():
    assert reach_of(recipe("imagenet/resnet50_loco_800ep"), STAGES) == {
        "res2": "loss_res3", "res3": "loss_res3, loss_res4", "res4": "loss_res4, loss_res5", "res5": "loss_res5"
    }  # fmt: skip
    assert reach_of(recipe("imagenet/resnet50_gim_800ep"), STAGES) == {stage: f"loss_{stage}" for stage in STAGES}
    upper = reach_of(recipe("ablations/sharing/upper_gradient"), STAGES)
    assert upper["res3"] == "loss_res4 only; loss_res3 passes through" and upper["res2"] == "loss_res3"
    blocks = reach_of(recipe("ablations/sharing/1_block"), STAGES)
    assert blocks["res2"] == "loss_res3[:1]"
    assert blocks["res3"] == "loss_res3[:1], loss_res4[:1]"
    lowest = get_cfg()
    lowest.MODEL.UNITS = [["res2"]]
    assert reach_of(lowest, STAGES)["res3"] == "none: as initialised"


def test_decoder_loss_and_schedule_in_words():
    def decoder_of(cfg):
        return decoder_text(cfg.MODEL.DECODER, full=True)

    pool, mlp = "global average pooling", "MLP 2048-128 (2 layers, BN at its end)"
    block = "1 residual conv block with stride 2 (downsampling)"
    assert decoder_of(recipe("imagenet/resnet50_loco_800ep")) == f"{block} → {pool} → {mlp}"
    assert decoder_of(recipe("imagenet/resnet50_simclr_800ep")) == f"no conv block → {pool} → {mlp}"
    assert "1 residual conv block of stride 1 →" in decoder_of(recipe("ablations/decoder/local_conv_no_downsampling"))
    assert "2 residual conv blocks, the first with stride 2 →" in decoder_of(recipe("ablations/decoder/local_2_conv"))
    assert decoder_of(recipe("ablations/decoder/local_full_network")).startswith("copy of all stages above →")
    tied = decoder_of(recipe("ablations/sharing/tie_1e-3"))
    assert tied.startswith("copy of the next stage, tied to the original by L2")
    blockwise = recipe("imagenet/resnet50_blockwise_barlow_300ep")
    mlp = "MLP 8192-8192-8192 (3 layers, no BN at its end)"
    assert decoder_of(blockwise) == f"no conv block → 1x1 conv to 2048 channels, BN, ReLU → {pool} → {mlp}"
    assert loss_of(blockwise) == "Barlow Twins, λ 0.0051, x 0.024, plain sum over the units"
    weighted = "VICReg, 25 x invariance + 25 x variance + 1 x covariance"
    assert loss_of(recipe("imagenet/resnet50_vicreg_1000ep")) == weighted
    assert loss_of(recipe("ablations/blockwise/vicreg")) == f"{weighted}, plain sum over the units"
    sequential = recipe("ablations/blockwise/sequential")
    assert loss_of(sequential) == "Barlow Twins, λ 0.0051, x 0.024, of one unit after the other"
    assert schedule_of(sequential).endswith("warm-up, cosine to 0 in each of 4 equal turns, stages below frozen")
    assert loss_of(recipe("imagenet/resnet50_simclr_800ep")).endswith("temperature 0.1")
    assert schedule_of(recipe("imagenet/resnet50_loco_800ep")) == (
        "LARS, momentum 0.9, weight decay 1e-06 (none on BN and biases); learning rate 4.8 = 0.3 x 4096 / 256, "
        "10 epochs of linear warm-up, cosine to 0"
    )


@pytest.mark.parametrize(
    "word, expected",
    [("/home/me/data/photos/", "path/to/photos"), ("data/photos", "data/photos"), ("SEED", "SEED"),
     ("/home/me/loco-det/tools/pretrain.py", "tools/pretrain.py"), ("/data/tools/me/photos", "path/to/photos"),
     ("/x/configs/pretrain/a.yaml", "configs/pretrain/a.yaml"), ("tcp://host:1", "tcp://HOST:PORT"), ("/", "path/to/")],
)  # fmt: skip
def test_words_of_the_command_line(word, expected):
    assert portable(word) == expected


@pytest.mark.parametrize(
    "folder, expected",
    [("/home/me/imagenet/train", "imagenet/train"), ("datasets/photos", "photos"), ("/data/photos/", "photos"),
     ("train", "train"), ("/val", "val"), ("../test", "test"), ("", "")],
)  # fmt: skip
def test_what_is_told_of_a_folder_of_images(folder, expected):
    assert dataset_of(folder) == expected


def one_line(error, *words):
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_folder_that_is_no_finished_run(run, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        write_model_card(tmp_path / "nowhere")
    one_line(error, "nowhere: no such run folder")
    (run / "last_checkpoint").write_text("model_0000004.pth")  # begun anew in the same folder
    with pytest.raises(FileNotFoundError) as error:
        write_model_card(run)
    one_line(error, "is no finished run", "its last checkpoint is model_0000004.pth")
    (run / "last_checkpoint").unlink()
    (run / "model_final.pth").unlink()
    with pytest.raises(FileNotFoundError) as error:
        write_model_card(run)
    one_line(error, "is no finished run", "it has no model_final.pth", "--resume")


def test_damaged_or_foreign_checkpoint(run):
    path = run / "model_final.pth"
    saved = torch.load(path, weights_only=True)
    whole = path.read_bytes()
    torch.save({**saved, "format": "another"}, path)
    with pytest.raises(ValueError) as error:
        write_model_card(run)
    one_line(error, "model_final.pth is damaged, or not by this version", "its format is 'another'")
    del saved["model"]["encoder.conv1.weight"]
    torch.save(saved, path)
    with pytest.raises(ValueError) as error:
        write_model_card(run)
    one_line(error, "model_final.pth is damaged")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError) as error:
        write_model_card(run)
    one_line(error, "model_final.pth is damaged")
    assert not (run / "model_card.md").exists()


@pytest.mark.parametrize("kind", ["linear", "knn", "detection"])
def test_results_that_are_refused(run, results, tmp_path, kind):
    def refused(error, folder, *words):
        with pytest.raises(error) as found:
            write_model_card(run, **{kind: [folder]})
        one_line(found, *words)
        assert not (run / "model_card.md").exists()

    other = {"sha256": "0" * 64}
    folder = results(kind, **{"weights_metadata" if kind == "detection" else "weights": other})
    refused(ValueError, folder, "results.json holds results of another checkpoint, SHA-256 000000")
    if kind == "detection":
        refused(ValueError, results(kind, weights_metadata=None), "weights whose origin it does not tell")
    refused(FileNotFoundError, tmp_path, "results.json: no such file; run tools/")
    wrong = results({"linear": "knn", "knn": "detection", "detection": "linear"}[kind])
    refused(ValueError, wrong, "results.json is damaged, or not by tools/")
    folder = results(kind)
    for text in ('{"weights": {', "[]", "null", "{}"):
        (folder / "results.json").write_text(text)
        refused(ValueError, folder, "results.json is damaged, or not by tools/")
    key = "results" if kind == "detection" else kind
    for figures in ({}, {"res5": 3}, {"res5": {"top1": "high"}}, {"bbox": {"AP": "high"}}):
        if kind != "detection" or figures == {"bbox": {"AP": "high"}}:
            refused(ValueError, results(kind, **{key: figures}), "results.json is damaged, or not by tools/")


@pytest.mark.parametrize("config", ["MODEL: {META_ARCHITECTURE: GeneralizedRCNN}", ""])
def test_a_detectors_run_is_no_pretraining(tmp_path, config):
    torch.save({"model": {}, "trainer": {}, "iteration": 1}, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(ValueError) as error:
        write_model_card(tmp_path)
    assert str(error.value) == f"{tmp_path} is no pretraining run: name a run folder of tools/pretrain.py"


def test_folder_of_the_card_must_be_there(run, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        write_model_card(run, tmp_path / "missing" / "card.md")
    one_line(error, "missing: no such folder to write card.md to")


def test_a_card_is_not_written_over_weights(run):
    before = (run / "model_final.pth").read_bytes()
    with pytest.raises(ValueError) as error:
        write_model_card(run, run / "model_final.pth")
    one_line(error, "model_final.pth: a model card is Markdown, name a file that ends in .md")
    assert (run / "model_final.pth").read_bytes() == before


def test_torn_lines_of_the_commands_are_left_out(run):
    whole = PretrainingRun(run).command
    with open(run / "command.txt", "a") as f:
        f.write("\npython tools/pretrain.py NAME 'torn\n")
    assert PretrainingRun(run).command == whole
    (run / "command.txt").write_text("python 'torn")
    assert PretrainingRun(run).command is None


def test_hostile_names_are_data(run, results):
    name = "x\n---\n<script>`a`</script> [b](javascript:c) | \x1b[31m\u202e"
    (run / "command.txt").write_text("python tools/pretrain.py '```' '<script>'\n")
    folder = results("detection", dataset=name)
    text = write_model_card(run, detection=[folder], name=name, licence=name).read_text()
    assert "\x1b" not in text and "\u202e" not in text
    head, body = text.split("\n---\n", 1)
    data = yaml.safe_load(head.removeprefix("---\n"))
    assert data["model-index"][0]["name"].startswith("x --- <script>") and data["library_name"] == "loco-det"
    assert "# x --- &lt;script&gt;\\`a\\`" in body
    prose = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", body, flags=re.DOTALL | re.MULTILINE)  # blocks show what they hold
    assert "<script>" not in prose and "[b](javascript" not in prose
    assert "python tools/pretrain.py '```' '<script>'" in body


def test_results_with_problems_are_refused(run, results):
    folder = results("detection", problems=["evaluation on b: it failed"])
    with pytest.raises(ValueError, match="has not succeeded: evaluation on b: it failed"):
        write_model_card(run, detection=[folder])
