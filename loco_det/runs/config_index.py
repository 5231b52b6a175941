"""``configs/README.md``: which file is which row of which published table, from the files themselves.

``python -m loco_det.runs.config_index`` writes it. A detection config has its row and figures in PUBLISHED. One of
pretraining or of a readout has them in the comment at its top, a line for each: ``# SOURCE: ROW: 69.5 top-1``.
"""

import itertools
import re
from pathlib import Path
from typing import NamedTuple

from pretrain.files.shipped_configs import CONFIGS
from pretrain.files.yaml_files import read_yaml

README = CONFIGS / "README.md"
HEAD = """# Configs

`python -m loco_det.runs.config_index` writes this page from the configs. Change those, not this page.

- **Names** are `TASK/DATA/ENCODER_METHOD_EPOCHS.yaml`; EPOCHS are those of the pretraining.
  `pretrain/imagenet/resnet50_loco_800ep.yaml` pretrains an encoder; `pretrain/ablations/` has other decoders and other
  sharing, for 100 epochs of a ResNet-50, and variants of blockwise learning.
  `detection/coco_frozen/resnet50_loco_800ep.yaml` trains a detector on that encoder: the folder names the data, what is
  trained, and the network and schedule where there are several (`coco_finetune_fpn_1x`). `readout/imagenet/linear.yaml`
  is a linear probe; `readout/cached.yaml` and `readout/knn.yaml` are for any data.
- **`_BASE_`**: a config holds only what differs from the file, or the files, that it names as `_BASE_`. A file whose
  name begins with `_` is only a base for others.
- **Start** with the four configs at the top level. They are configs of the folders under short names. The other ones
  there, and `pretrain/demo_*.yaml`, belong to the demo. For a CPU: `pretrain/cpu/` and `detection/cpu_frozen/`.
- **Old names**, such as `table2/coco_resnet50_loco_800ep.yaml`, are in `pretrain/files/config_names.py`. A command line
  with an old name says the new one; runs and configs that name an old one are still read.

All figures are published ones; none was measured here. They are top-1 of a linear classifier on ImageNet, and box and
mask AP, all in percent; VOC has boxes only. A row that is in two tables is one file.
"""
TASKS = {"pretrain": "Pretraining", "detection": "Detection", "readout": "Readout"}
OTHERS = {  # folder -> title, what its configs are for
    "evaluate": ("Evaluation in minutes", "`tools/light_head.py` takes them: figures that rank encoders."),
    "overlays": ("Overlays", "`--overlay NAME` merges one over a config."),
}
PAPERS = {
    "LoCo": "Xiong, Ren, Urtasun 2020, arXiv 2008.01342",
    "Barlow Twins": "Zbontar et al. 2021, arXiv 2103.03230",
    "VICReg": "Bardes et al. 2022, arXiv 2105.04906",
    "Blockwise SSL": "Siddiqui et al. 2023, arXiv 2302.01647",
    "MoCo": "He et al. 2020, arXiv 1911.05722",
    "SimCLR": "Chen et al. 2020, arXiv 2002.05709",
    "InfoMin": "HobbitLong/PyContrast, pycontrast/detection/README.md",
}
TOP1 = re.compile(r"# (?P<source>[^:]+): (?P<row>[^:]+): (?P<figure>(?:about )?[\d.]+ top-1(?:, [\d.]+ top-5)?)\b")


SENTENCE_END = re.compile(r"(?<!\bal)(?<!\bSec)(?<!\bFig)(?<!\bvs)\. (?=[A-Z])")  # not behind an abbreviation


class Published(NamedTuple):
    """A row of a published table.

    Attributes:
        source: the paper and its table, such as "LoCo, Table 2".
        row: what the row is, in words.
        figure: such as "69.5 top-1" or "34.5 / 32.0", box and mask AP; "–" for a mask AP that there is not.
        path: of the config, below ``configs/``.
    """

    source: str
    row: str
    figure: str
    path: str


def comment_of(path: Path) -> list[str]:
    """The lines of the comment at a config's top."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return list(itertools.takewhile(lambda line: line.startswith("#"), lines))


def description(path: Path) -> str:
    """The first sentence of the comment at a config's top, or its first line if that is a published row."""
    comment = comment_of(path)
    if comment and (row := TOP1.match(comment[0])):
        return row[0].lstrip("# ")
    text = " ".join(line.lstrip("# ") for line in comment)
    return SENTENCE_END.split(text)[0].rstrip(".")


def published_rows(path: Path) -> list[Published]:
    """The rows of published tables that a config defines.

    Args:
        path: of a file in ``configs/``.

    Returns:
        list of Published; empty if nobody has published a figure for it, or if it has its row from a ``_BASE_``.
    """
    name = Path(path).relative_to(CONFIGS).as_posix()
    published = read_yaml(path).get("PUBLISHED") or {}
    if published:
        row, _, source = published["ROW"].removesuffix(")").rpartition(" (")
        return [Published(source, row, f"{published['BOX_AP']} / {published.get('MASK_AP', '–')}", name)]
    return [Published(match[1], match[2], match[3], name) for line in comment_of(path) if (match := TOP1.match(line))]


def index() -> str:
    """The text of ``configs/README.md``."""
    files = [path for path in sorted(CONFIGS.rglob("*.yaml")) if not path.name.startswith("_")]
    rows = {path: published_rows(path) for path in files}
    on_top = [path for path in files if path.parent == CONFIGS]
    parts = [HEAD, "## Top level\n", _table(("file", "what it is"), map(_described, on_top)), "## Papers\n"]
    parts.append("\n".join(f"- {paper}: {where}" for paper, where in PAPERS.items()) + "\n")
    for task, title in TASKS.items():
        parts.append(f"## {title}\n")
        found = [row for path in files for row in rows[path] if row.path.startswith(f"{task}/")]
        found.sort(key=lambda row: (list(PAPERS).index(row.source.partition(",")[0]), row.source))
        figure = "box / mask AP" if task == "detection" else "top-1"
        for source, group in itertools.groupby(found, key=lambda row: row.source):
            cells = [(row.row, _link(row.path), row.figure.replace(" top-1", "")) for row in group]
            parts += [f"### {source}\n", _table(("row", "file", f"published {figure}"), cells)]
        others = [path for path in files if not rows[path] and path.relative_to(CONFIGS).parts[0] == task]
        parts += ["### Without a published figure\n", _table(("file", "what it is"), map(_described, others))]
    for folder, (title, text) in OTHERS.items():
        those = [path for path in files if path.relative_to(CONFIGS).parts[0] == folder]
        parts += [f"## {title}\n", f"{text}\n", _table(("file", "what it is"), map(_described, those))]
    return "\n".join(parts)


def _link(name):
    return f"[{name.removesuffix('.yaml')}]({name})"


def _described(path):
    """Cells for a config: a link, and the first sentence of its comment."""
    return _link(path.relative_to(CONFIGS).as_posix()), description(path)


def _table(head, rows):
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write ``configs/README.md``."""
    README.write_text(index(), encoding="utf-8")


if __name__ == "__main__":
    main()
