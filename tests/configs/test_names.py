"""Names of configs: those of before are known, and README.md lists every file with its figures."""

import os
import re
from pathlib import Path

import pytest

from loco_det.runs.config_index import README, index, published_rows
from loco_det.runs.published import row_config
from pretrain.files.config_names import RENAMED, moved_to, name_of_today
from pretrain.files.yaml_files import read_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = [path.relative_to(CONFIGS).as_posix() for path in sorted(CONFIGS.rglob("*.yaml"))]
# Every file that had another name, by its folder of then
BEFORE = {
    "": """
        _base_cityscapes _base_coco _base_demo _base_mask_rcnn_r50_fpn cpu_loco_frozen
    """,
    "finetune": """
        _base_coco_c4_2x _base_coco_fpn_1x _base_coco_fpn_2x coco_resnet50_c4_2x_loco_800ep
        coco_resnet50_c4_2x_moco coco_resnet50_c4_2x_random coco_resnet50_c4_2x_supervised
        coco_resnet50_fpn_1x_loco_800ep coco_resnet50_fpn_1x_random coco_resnet50_fpn_1x_supervised
        coco_resnet50_fpn_2x_loco_800ep coco_resnet50_fpn_2x_random coco_resnet50_fpn_2x_supervised
    """,
    "pretrain": """
        _base_ablation _base_barlow _base_resnet50 cpu_loco presnet50_gim presnet50_loco presnet50_simclr
        resnet50_barlow resnet50_barlow_300 resnet50_blockwise_barlow resnet50_blockwise_barlow_no_noise
        resnet50_gim resnet50_loco resnet50_loco_res2 resnet50_random resnet50_simclr shufflenetv2_50_gim
        shufflenetv2_50_loco shufflenetv2_50_simclr table4_end_to_end table4_end_to_end_conv
        table4_end_to_end_mlp table4_local_1_stage table4_local_2_conv table4_local_conv
        table4_local_conv_no_downsampling table4_local_conv_sharing table4_local_full_network table4_local_mlp
        table4_local_mlp_sharing table4_local_none table4_local_none_sharing table5_no_sharing
        table5_share_1_block table5_share_1_stage table5_share_2_blocks table5_tie_1e-2 table5_tie_1e-3
        table5_tie_1e-4 table5_upper_gradient
    """,
    "readout": """
        _base_imagenet imagenet_linear imagenet_linear_barlow imagenet_linear_blockwise imagenet_linear_moco
        imagenet_linear_simclr imagenet_linear_sweep
    """,
    "table2": """
        _base_cityscapes _base_coco _base_shufflenetv2_50 cityscapes_resnet50_gim_100ep
        cityscapes_resnet50_gim_800ep cityscapes_resnet50_loco_100ep cityscapes_resnet50_loco_800ep
        cityscapes_resnet50_random cityscapes_resnet50_simclr_100ep cityscapes_resnet50_simclr_800ep
        cityscapes_resnet50_supervised cityscapes_shufflenetv2_50_gim_800ep
        cityscapes_shufflenetv2_50_loco_800ep cityscapes_shufflenetv2_50_random
        cityscapes_shufflenetv2_50_simclr_800ep coco_resnet50_gim_100ep coco_resnet50_gim_800ep
        coco_resnet50_loco_100ep coco_resnet50_loco_800ep coco_resnet50_random coco_resnet50_simclr_100ep
        coco_resnet50_simclr_800ep coco_resnet50_supervised coco_shufflenetv2_50_gim_800ep
        coco_shufflenetv2_50_loco_800ep coco_shufflenetv2_50_random coco_shufflenetv2_50_simclr_800ep
    """,
    "table3": """
        _base_coco_10k _base_coco_1k coco_10k_resnet50_gim_100ep coco_10k_resnet50_gim_800ep
        coco_10k_resnet50_loco_100ep coco_10k_resnet50_loco_800ep coco_10k_resnet50_random
        coco_10k_resnet50_simclr_100ep coco_10k_resnet50_simclr_800ep coco_10k_resnet50_supervised
        coco_1k_resnet50_gim_100ep coco_1k_resnet50_gim_800ep coco_1k_resnet50_loco_100ep
        coco_1k_resnet50_loco_800ep coco_1k_resnet50_random coco_1k_resnet50_simclr_100ep
        coco_1k_resnet50_simclr_800ep coco_1k_resnet50_supervised
    """,
}  # fmt: skip
OLD = [os.path.join(folder, name) for folder, names in BEFORE.items() for name in names.split()]
TODAY = {
    "table2/coco_resnet50_loco_800ep": "detection/coco_frozen/resnet50_loco_800ep",
    "table2/cityscapes_shufflenetv2_50_random": "detection/cityscapes_frozen/shufflenetv2_50_random",
    "table3/coco_10k_resnet50_gim_100ep": "detection/coco_10k_finetune/resnet50_gim_100ep",
    "table3/_base_coco_1k": "detection/coco_1k_finetune/_base",
    "finetune/coco_resnet50_c4_2x_moco": "detection/coco_finetune_c4_2x/resnet50_moco_v1_200ep",
    "finetune/coco_resnet50_fpn_2x_supervised": "detection/coco_finetune_fpn_2x/resnet50_supervised",
    "cpu_loco_frozen": "detection/cpu_frozen/resnet18_loco",
    "_base_mask_rcnn_r50_fpn": "detection/_base_mask_rcnn_r50_fpn",
    "pretrain/resnet50_loco": "pretrain/imagenet/resnet50_loco_800ep",
    "pretrain/resnet50_barlow": "pretrain/imagenet/resnet50_barlow_1000ep",
    "pretrain/resnet50_barlow_300": "pretrain/imagenet/resnet50_barlow_300ep",
    "pretrain/table4_end_to_end": "pretrain/imagenet/resnet50_simclr_100ep",
    "pretrain/table4_end_to_end_mlp": "pretrain/ablations/decoder/end_to_end_mlp",
    "pretrain/table5_no_sharing": "pretrain/ablations/decoder/local_conv",
    "pretrain/table5_share_1_stage": "pretrain/imagenet/resnet50_loco_100ep",
    "pretrain/table5_share_2_blocks": "pretrain/ablations/sharing/2_blocks",
    "pretrain/table5_tie_1e-3": "pretrain/ablations/sharing/tie_1e-3",
    "readout/imagenet_linear_moco": "readout/imagenet/linear_moco",
}


# --- names of before --------------------------------------------------------------------------------------------------


def test_every_old_name_is_a_file_today():
    assert len(OLD) == len(set(OLD)) == 110 and set(TODAY) <= set(OLD)
    found = {name: name_of_today(f"configs/{name}.yaml") for name in OLD}
    assert not [name for name in OLD if (CONFIGS / f"{name}.yaml").exists()]
    assert not [name for name, today in found.items() if not today or not (CONFIGS.parent / today).is_file()]
    twice = {"pretrain/table5_no_sharing", "pretrain/table5_share_1_stage"}  # rows of Table 4, too
    assert len({today for name, today in found.items() if name not in twice}) == len(OLD) - len(twice)
    used = {next(old for old in RENAMED if re.fullmatch(old.replace("*", ".+"), name)) for name in OLD}
    assert used == set(RENAMED)


@pytest.mark.parametrize(("old", "today"), TODAY.items())
def test_names_of_today(old, today, tmp_path):
    for path in (f"configs/{old}.yaml", f"/somewhere/else/configs/{old}.yaml", CONFIGS / f"{old}.yaml"):
        assert name_of_today(path) == f"configs/{today}.yaml"
    assert moved_to(CONFIGS / "detection" / ".." / f"{old}.yaml") == str(CONFIGS / f"{today}.yaml")
    assert moved_to(tmp_path / "configs" / f"{old}.yaml") is None  # a folder configs/ of somebody else's


def test_what_had_no_other_name():
    others = ["mine.yaml", "table2/mine.yaml", "table2/coco_mine.yaml", "table2/coco_resnet50_loco_800ep.yml"]
    for path in ["", "configs", "resnet50_loco.yaml", *(f"configs/{name}" for name in (*others, *FILES))]:
        assert name_of_today(path) is None, path


@pytest.mark.parametrize("tool", ["train_net", "low_shot"])
def test_a_command_line_with_an_old_path_is_told_the_new_one(call_tool, capsys, tmp_path, tool):
    old = "configs/table3/coco_1k_resnet50_random.yaml"
    assert call_tool(tool, "--config-file", old, "OUTPUT_DIR", tmp_path / "out") == 2
    said = capsys.readouterr().err.strip()
    assert said == f"error: {old}: no such file, it is configs/detection/coco_1k_finetune/resnet50_random.yaml now"


def test_a_missing_file_is_said_to_be_no_other():
    with pytest.raises(FileNotFoundError, match="No such file or directory: 'configs/mine.yaml'"):
        read_config("configs/mine.yaml")


def test_a_config_upon_an_old_path_is_read(tmp_path):
    """As the converter writes one beside its weights: with the base of the command line, relative."""
    path = tmp_path / "moco.yaml"
    for old in ("table2/coco_resnet50_loco_800ep", "_base_mask_rcnn_r50_fpn"):
        base = os.path.relpath(CONFIGS / f"{old}.yaml", tmp_path)
        path.write_text(f"_BASE_: {base}\nMODEL:\n  WEIGHTS: moco.pkl\n")
        expected = read_config(name_of_today(CONFIGS / f"{old}.yaml"))
        expected["MODEL"]["WEIGHTS"] = "moco.pkl"
        assert read_config(path) == expected
    path.write_text("_BASE_: configs/table2/coco_resnet50_loco_800ep.yaml\n")  # there is no configs/ beside it
    with pytest.raises(FileNotFoundError, match="no such _BASE_, which .*moco.yaml names"):
        read_config(path)


# --- configs/README.md ------------------------------------------------------------------------------------------------


def test_the_readme_is_what_the_files_say():
    assert README.read_text() == index(), "python -m loco_det.runs.config_index"


def test_every_config_is_in_the_readme_and_every_link_leads_to_a_file():
    linked = re.findall(r"\]\(([^)]+)\)", README.read_text())
    assert set(linked) == {name for name in FILES if not os.path.basename(name).startswith("_")}


def test_every_published_figure_is_in_the_readme():
    """Each figure of a comment or of PUBLISHED, beside its own file."""
    lines, found = README.read_text().splitlines(), 0
    for name in FILES:
        text = (CONFIGS / name).read_text()
        box, mask = (re.search(rf"^  {key}_AP: (\S+)$", text, re.MULTILINE) for key in ("BOX", "MASK"))
        top1 = re.findall(r"^# .*: (?:about )?([\d.]+) top-1", text, re.MULTILINE)
        figures = [f"{box[1]} / {mask[1] if mask else '–'}"] if box else top1
        for figure in figures:
            assert any(f"({name}) |" in line and re.search(rf"\b{figure}(?!\w)", line) for line in lines), (
                name,
                figure,
            )
        rows = published_rows(CONFIGS / name)
        assert len(rows) == len(figures) and all(row.path == name for row in rows)
        found += len(rows)
    assert found > 80


def test_a_row_of_a_stored_run_is_still_found():
    """PUBLISHED.ROW is words, and those stay: the file that they belong to has moved."""
    for row, name in (
        ("LoCo 800 epochs, R50, frozen, COCO 1x (LoCo, Table 2)", "coco_frozen/resnet50_loco_800ep"),
        ("random, R50, fine-tuned on 1K COCO images, mean of 5 (LoCo, Table 3)", "coco_1k_finetune/resnet50_random"),
        ("supervised, R50-C4, fine-tuned, COCO 2x (MoCo, Table 5)", "coco_finetune_c4_2x/resnet50_supervised"),
    ):
        assert row_config(row).OUTPUT_DIR == f"output/detection/{name}"
