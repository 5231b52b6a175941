"""The card's Markdown."""

import json
import shlex
from collections.abc import Sequence
from urllib.parse import quote

import yaml

from ..encoders import is_own_code
from ..encoders.spec import TIMM
from ..engine.curves import LossPlot
from ..engine.decoder_text import decoder_text
from ..files.tables import COUNT, GENERAL, Column, Table, decimals
from ..files.text import for_markdown, for_terminal, markdown_code
from .markdown import code, count, pairs, percent
from .method import augmentation_of, loss_of, method_of, reach_of, schedule_of
from .readouts import TOOLS, Readout
from .run import PretrainingRun

SEEN_BY_LOCO = 800 * 1_281_167  # images: 800 epochs of ImageNet (LoCo, Table 1)
TITLES = {"linear": "Linear probe", "knn": "kNN", "detection": "Detection and segmentation: Mask R-CNN"}
NOT_STATED = "not stated; whoever releases the weights has to, and the licence of the images may bear on it"
DETECTION = """
python tools/convert_to_d2.py model_final.pth backbone.pkl --base configs/coco_loco_frozen.yaml{arch}
python tools/train_net.py --config-file backbone.yaml{encoder}{frozen} OUTPUT_DIR output/coco_frozen"""
PROBE = """
python tools/linear_probe.py --config-file configs/readout/imagenet/linear.yaml MODEL.WEIGHTS model_final.pth \\
   {source} DATASETS.TRAIN path/to/train DATASETS.TEST path/to/val OUTPUT_DIR output/linear"""
PYTHON = """
import torch
from pretrain.encoders import build_encoder

weights = torch.load("model_final.pth", map_location="cpu", weights_only=True)["model"]
encoder = build_encoder({encoder}).eval()
encoder.load_state_dict({{k[8:]: w for k, w in weights.items() if k.startswith("encoder.")}})
mean, std = torch.tensor([{mean}, {std}])[..., None, None]
features = encoder((images - mean) / std)  # a dict: {stages} -> (B, C, H', W')"""


def card_text(
    run: PretrainingRun,
    readouts: Sequence[Readout],
    name: str | None = None,
    licence: str | None = None,
    curves: str | None = None,
    inside: bool = True,
) -> str:
    """The whole card.

    Args:
        run: a :class:`PretrainingRun`.
        readouts: list of :class:`Readout`.
        name: the title; None: method, encoder and data.
        licence: of the weights; None: not stated.
        curves: path of the picture as a link from the card; None: there is none.
        inside: whether the card lies beside the weights.

    Returns:
        str: Markdown with a front matter in YAML.
    """
    short, method = method_of(run.cfg, run.encoder.stage_names)
    name, licence = (for_terminal(" ".join(text.split())) if text else None for text in (name, licence))
    name = name or f"{short}, {run.cfg.MODEL.ENCODER}, {run.cfg.DATASETS.TRAIN}"
    kind = "encoder, pretrained without labels" if run.cfg.MODEL.UNITS else "encoder, not trained"
    parts = [
        _front_matter(run, readouts, name, licence, short),
        f"# {for_markdown(name)}",
        f"A {for_markdown(run.cfg.MODEL.ENCODER)} {kind} ({run.parameters:,} parameters). Method: {method}.",
        "## File", _file(run, licence, inside),
        "## How it was trained", *_training(run),
        "## Encoder", _encoder(run),
        "## Losses and cost", *_losses(run, curves),
        "## What it is worth", *_worth(readouts),
        "## Input", _input(run),
        "## How to use it", *_usage(run),
        "## How to make it again", *_recipe(run),
        "## Limits", _limits(run, readouts),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _front_matter(run, readouts, name, licence, short):
    """Metadata as Hugging Face's hub reads it (its model card specification), figures as a model-index."""
    tasks = {"accuracy": "image-classification", "mean_average_precision": "object-detection"}
    results = [
        {
            "task": {"type": tasks[kind]},
            "dataset": {"name": for_terminal(data), "type": for_terminal(data)},
            "metrics": [{"type": kind, "name": for_terminal(figure), "value": round(value, 2)}],
        }
        for readout in readouts for data, figure, kind, value in readout.figures if value is not None
    ]  # fmt: skip
    general = ["self-supervised-learning", "local-learning"][: len(run.cfg.MODEL.UNITS)]  # one unit: end to end
    tags = [*general, short.lower().replace(" ", "-").replace("'", ""), run.cfg.MODEL.ENCODER]
    data = {
        "library_name": "loco-det",
        "pipeline_tag": "image-feature-extraction",
        "license": licence or "unknown",
        "tags": list(dict.fromkeys(tags)),
        "datasets": [for_terminal(run.cfg.DATASETS.TRAIN.split("/")[0])],  # without the split
    }
    if results:
        data["metrics"] = sorted({result["metrics"][0]["type"] for result in results})
        data["model-index"] = [{"name": name, "results": results}]
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True).strip()}\n---"


def _file(run, licence, inside):
    rows = [
        ("file", f"`{run.path.name}`" + ("" if inside else ", not beside this card: made by the command below")),
        ("size", f"{run.size:,} bytes, with decoders and optimiser"),
        ("SHA-256", f"`{run.sha256}`"),
        ("begun", f"{run.begun} (UTC)" if run.begun else "not recorded by the run"),
        ("licence of the weights", for_markdown(licence or NOT_STATED)),
    ]
    return pairs(rows)


def _training(run):
    cfg = run.cfg
    epochs = run.iterations / max(1, run.images // cfg.SOLVER.IMS_PER_BATCH)
    chunk = f", in chunks of {cfg.SOLVER.IMS_PER_CHUNK}" if cfg.SOLVER.IMS_PER_CHUNK else ""
    rows = [("images", f"{markdown_code(cfg.DATASETS.TRAIN)}: {count(run.images, 'image')}, no labels")]
    rows.append(("views", f"two of each image: {augmentation_of(cfg)}"))
    if cfg.MODEL.UNITS:
        units = " ".join(f"[{' '.join(unit)}]" for unit in cfg.MODEL.UNITS)
        text = decoder_text(cfg.MODEL.DECODER, full=True)
        decoder = f"{text}; one a unit, together {run.decoder_parameters:,} parameters, not used afterwards"
        rows += [
            ("units", for_markdown(f"{len(cfg.MODEL.UNITS)}: {units}")),
            ("decoder", decoder),
            ("loss", loss_of(cfg)),
        ]
        rows.append(("optimiser", schedule_of(cfg)))
    if cfg.MODEL.NOISE:
        rows.append(("noise", f"Gaussian on each stage's output, {cfg.MODEL.NOISE:g} x its standard deviation"))
    environment = ", ".join(f"{k} {v}" for k, v in run.environment.items())
    rows += [
        ("steps", f"{run.iterations:,} ({epochs:.4g} epochs)"),
        ("batch", f"{count(cfg.SOLVER.IMS_PER_BATCH, 'image')} over {count(run.processes, 'process', 'es')}{chunk}"),
        ("seed", str(cfg.SEED)),
        ("precision", "bfloat16 autocast, losses in float32" if cfg.SOLVER.AMP.ENABLED else "float32"),
        ("device", markdown_code(cfg.MODEL.DEVICE)),
        ("software, machine", for_markdown(environment) or "not recorded by the run"),
        ("commit of loco-det", "not recorded by the run"),
    ]
    if not cfg.MODEL.UNITS:
        return [pairs(rows)]
    reach = reach_of(cfg, run.encoder.stage_names)
    rows_of_reach = [{"stage": stage, "is trained by": text} for stage, text in reach.items()]
    text = "The gradient of a loss stops at its unit's input. How far each reaches, decoders aside:"
    return [pairs(rows), text, Table([Column("stage"), Column("is trained by")], rows_of_reach).markdown()]


def _encoder(run):
    encoder, columns = run.encoder, [Column("stage"), Column("blocks", COUNT), Column("channels", COUNT)]
    shown = Table([*columns, Column("stride (px)", GENERAL), Column("parameters", COUNT)])
    strides = getattr(encoder, "strides", None) or [None] * len(encoder.stages)
    parts = zip(encoder.stage_names, encoder.stages, encoder.channels, strides, strict=True)
    for name, stage, channels, stride in parts:
        row = {
            "stage": name,
            "blocks": len(stage),
            "channels": channels,
            "stride (px)": None if stride is None else float(stride),
        }
        shown.rows.append(row | {"parameters": sum(p.numel() for p in stage.parameters())})
    return shown.without_empty().markdown()


def _losses(run, curves):
    cfg, texts = run.cfg, [f"![Losses of the run]({quote(curves)})"] if curves else []
    figure = decimals(4)
    columns = [
        Column("loss"),
        Column("first logged", figure, key="first"),
        Column("at step", COUNT, key="begin"),
        Column("last logged", figure, key="last"),
        Column("at step", COUNT, key="end"),
    ]
    rows = [
        {"loss": f"loss_{name}", "first": y[0], "begin": int(x[0]), "last": y[-1], "end": int(x[-1])}
        for name, (x, y) in sorted(run.metrics.matching(r"loss_(.+)").items())
    ]
    if rows:
        chance = LossPlot(cfg).chance
        level = f" Chance level, ln(2B - 1) x scale: {chance:.4f} nats." if chance else ""
        texts += [Table(columns, rows).markdown(), f"Medians of up to 20 steps, as logged.{level}"]
    else:
        texts.append("Losses: not recorded." if cfg.MODEL.UNITS else "No loss: nothing was learned.")
    knn = sorted(run.metrics.matching(r"knn/(.+)-top1").items())
    if knn:
        figures = ", ".join(f"{for_markdown(stage)} {percent(values[-1])}" for stage, (_, values) in knn)
        settings = f"{markdown_code(cfg.KNN.TRAIN)}, k {cfg.KNN.K}, temperature {cfg.KNN.TEMPERATURE:g}"
        texts.append(f"kNN while training, its last top-1 in % ({settings}): {figures}.")
    if run.seconds is None:
        return [*texts, "Cost: not recorded."]
    processes = f" on each of {run.processes} processes" if run.processes > 1 else ""
    cost = f"{run.seconds / 3600:.3g} hours ({run.seconds:,.1f} s) of training steps{processes}"
    return [
        *texts,
        f"Cost: {cost}, device {markdown_code(cfg.MODEL.DEVICE)}; checkpoints and evaluations are not counted.",
    ]


def _worth(readouts):
    texts = []
    for kind, title in TITLES.items():
        chosen = [readout for readout in readouts if readout.kind == kind]
        texts += [f"### {title}", *([] if chosen else ["Not measured."])]
        for readout in chosen:
            on = "" if kind == "detection" else f" on {markdown_code(readout.dataset)}"
            texts.append(
                " ".join([f"{markdown_code(readout.run)}, by `{TOOLS[kind]}`{on}.", *map(for_markdown, readout.notes)])
            )
            texts.append(readout.table.without_empty().markdown())
    return texts


def _input(run):
    mean, std = list(run.cfg.MODEL.PIXEL_MEAN), list(run.cfg.MODEL.PIXEL_STD)
    return (
        f"RGB from 0 to 255, channels first, minus the mean {mean}, over the standard deviation {std}. It saw crops of "
        f"{run.cfg.INPUT.CROP_SIZE} px; images of other sizes fit, too."
    )


def _usage(run):
    cfg, stages = run.cfg.MODEL, ", ".join(run.encoder.stage_names)
    own = dict.fromkeys(("arch", "encoder", "source", "frozen"), "")
    if cfg.ENCODER.startswith(TIMM):  # 5 of the config would leave most of a ViT's blocks learning
        own["frozen"] = " MODEL.BACKBONE.FREEZE_AT 99"
    if is_own_code(cfg.ENCODER):  # no file decides what code runs: each command line names it
        name = shlex.quote(cfg.ENCODER)
        own |= {
            "arch": f" --arch {name}",
            "encoder": f" MODEL.ENCODER {name}",
            "source": f" MODEL.SOURCE.ENCODER {name}",
        }
    python = PYTHON.format(
        encoder=json.dumps(cfg.ENCODER), mean=list(cfg.PIXEL_MEAN), std=list(cfg.PIXEL_STD), stages=stages
    )
    return [
        "Under Mask R-CNN in Detectron2, and under a linear classifier, in a checkout of loco-det:",
        code("sh", (DETECTION + PROBE).format(**own)),
        "In Python, with `images` a tensor (B, 3, H, W):",
        code("python", python),
    ]


def _recipe(run):
    many = f" It ran in {run.processes} processes." if run.processes > 1 else ""
    return [
        f"The seed fixes initialisation, order of the images and augmentation.{many}",
        code("sh", run.command) if run.command else "The command line is not recorded; the config is.",
        "The config in the checkpoint, its paths cut to their last part:",
        f"<details><summary>config.yaml</summary>\n\n{code('yaml', run.cfg.dump())}\n\n</details>",
    ]


def _limits(run, readouts):
    lines = ["A control: its weights are random. It shows what the architecture is worth without learning."]
    if run.cfg.MODEL.UNITS:
        seen = run.iterations * run.cfg.SOLVER.IMS_PER_BATCH
        lines = [
            f"Scale: {seen:,} images seen (steps x batch), of {run.images:,} different ones. The runs of LoCo's "
            f"Table 1 see {SEEN_BY_LOCO:,} (800 epochs of ImageNet): this is {seen / SEEN_BY_LOCO:.2g} of that."
        ]
    lines.append("One run with one seed: how far the figures vary between seeds is not known from this card.")
    if not readouts:
        lines.append("Nothing was measured of it: how good its features are is not known from this card.")
    if any(readout.flattered for readout in readouts):
        lines.append("The learning rate of a linear probe was chosen on the test set, which flatters its figures.")
    lines.append(
        "What the images show, whom, and under which licence is not recorded: that is for those to state who have "
        f"{markdown_code(run.cfg.DATASETS.TRAIN)}. The features may carry its biases."
    )
    return "\n".join(f"- {line}" for line in lines)
