"""What the study compares: rows, tables and settings differ in what they are about only."""

import reach
import rows
import run as study_run
import torch
from made_up_study import ROOT, study_of
from rates import MIDDLE, SHORT
from rows import ROWS, SETTINGS, SETTINGS_ROWS, TABLE4, TABLE5
from run import THIN18, Run

from loco_det.runs.config_index import published_rows
from pretrain.encoders import build_encoder


def test_every_row_is_a_recipe_of_the_paper_and_names_its_decoder(tmp_path, data):
    study, decoders = study_of(tmp_path, data), {}
    for name in ROWS:
        for scale in (THIN18, study_run.THIN50):
            decoders[name] = rows.decoder(study.recipe(Run(scale, name, 0.002, SHORT, 1)))
    assert decoders["random"] == "none"
    assert decoders["simclr"] == decoders["gim"] == decoders["loco_none"] == "2-layer MLP"
    assert decoders["simclr_conv"] == decoders["gim_conv"] == decoders["loco"] == "1 conv block + 2-layer MLP"
    assert decoders["gim_full_network"] == "the rest of the network + 2-layer MLP"
    assert decoders["gim_conv_no_downsampling"] == "1 conv block without downsampling + 2-layer MLP"
    assert decoders["blockwise_barlow"] == "1x1 conv to 512 + 3-layer MLP"
    assert decoders["loco_mlp"] == "1 conv block + 4-layer MLP"


def test_rows_differ_in_method_and_decoder_only(tmp_path, data):
    """Same images, augmentation, batch, steps, optimiser: what makes a comparison fair."""
    study = study_of(tmp_path, data)
    configs = {name: study.recipe(Run(THIN18, name, 0.002, MIDDLE, 0)) for name in ROWS if name != "random"}
    first = configs["loco"]
    for cfg in configs.values():
        assert (cfg.INPUT, cfg.DATASETS, cfg.MODEL.ENCODER, cfg.MODEL.ZERO_INIT_RESIDUAL) == (
            first.INPUT, first.DATASETS, first.MODEL.ENCODER, first.MODEL.ZERO_INIT_RESIDUAL,
        )  # fmt: skip
        assert cfg.SOLVER == first.SOLVER
        assert cfg.SOLVER.EPOCHS == MIDDLE and cfg.SOLVER.WARMUP_EPOCHS == MIDDLE / 10
        if cfg.LOSS.NAME == "info_nce":
            assert cfg.LOSS == first.LOSS


def test_settings_differ_in_one_thing(tmp_path, data):
    """And the crop's blur, whose width is in pixels."""
    study = study_of(tmp_path, data)
    assert next(iter(SETTINGS)) == THIN18
    for row in SETTINGS_ROWS:
        first, *others = (flat(study.recipe(Run(scale, row, 0.002, SHORT, 0))) for scale in SETTINGS)
        changed = [{key: value for key, value in other.items() if first[key] != value} for other in others]
        assert [{"OUTPUT_DIR", *keys} for keys in (
            {"LOSS.TEMPERATURE"}, {"SOLVER.IMS_PER_BATCH"}, {"INPUT.CROP_SIZE", "INPUT.BLUR_SIGMA"},
            {"INPUT.CROP_SIZE", "INPUT.BLUR_SIGMA"}, {"MODEL.ENCODER"},
        )] == [set(keys) for keys in changed]  # fmt: skip
        for other in changed[2:4]:
            ratio = other["INPUT.CROP_SIZE"] / first["INPUT.CROP_SIZE"]
            assert other["INPUT.BLUR_SIGMA"] == [0.1, ratio * first["INPUT.BLUR_SIGMA"][1]]
        assert [config["INPUT.CROP_SIZE"] for config in (first, *others[2:4])] == list(rows.CROPS.values())
        for other, said in zip(changed, list(SETTINGS.values())[1:], strict=True):
            key = next(key for key in other if key not in ("OUTPUT_DIR", "INPUT.BLUR_SIGMA"))
            assert str(other[key]) in said and str(first[key]) in said


def test_late_updates_differ_in_nothing_else(tmp_path, data):
    study = study_of(tmp_path, data)
    exact, *others = (flat(study.recipe(Run(THIN18, row, 0.002, SHORT, 0))) for row in rows.LATE)
    for late, devices in zip(others, (2, 4), strict=True):
        changed = {key for key in exact if exact[key] != late[key]}
        assert changed == {"OUTPUT_DIR", *(f"MODEL.STAGE_PARALLEL.{key}" for key in ("DEVICES", "SPLIT", "LATE"))}
        assert late["MODEL.STAGE_PARALLEL.LATE"] and late["MODEL.STAGE_PARALLEL.DEVICES"] == devices


def test_receptive_fields_are_what_reaches_the_middle():
    """Of weights above zero and an image of zeros but for one column: what is not zero has seen it."""
    for name, stages in (("resnet18x0.125", ("res2", "res3", "res4")), ("resnet50x0.125", ("res2", "res3"))):
        encoder = build_encoder(name).eval()
        for parameter in encoder.parameters():
            torch.nn.init.constant_(parameter, 0.1 if parameter.dim() == 4 else parameter.mean())
        images = torch.eye(256)[:, None, None].expand(-1, 3, 16, -1)
        with torch.inference_mode():
            features = encoder(images)
        for stage in stages:
            middle = features[stage].mean((1, 2))[:, features[stage].shape[-1] // 2]
            assert (middle > 0).sum() == reach.receptive_fields(encoder)[stage]


def flat(config, prefix=""):
    """Dotted key -> value."""
    found = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def test_tables_hold_every_row_of_the_paper():
    rows = [row for path in (ROOT / "configs" / "pretrain").rglob("[!_]*.yaml") for row in published_rows(path)]
    left = {"LoCo, Table 4": set(), "LoCo, Table 5": {"pretrain/ablations/sharing/2_blocks.yaml"}}
    for (source, others), table in zip(left.items(), (TABLE4, TABLE5), strict=True):
        published = {row.path: row.figure for row in rows if row.source == source}
        ours = {f"pretrain/{ROWS[row].recipe}.yaml": f"{top1} top-1" for row, top1 in table.items()}
        assert published.keys() - ours.keys() == others  # of a ResNet-18 two blocks are the stage
        assert ours.items() <= published.items()
