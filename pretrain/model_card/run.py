"""What a finished pretraining run has left behind, and what it has not recorded."""

import datetime
import re
import shlex
from pathlib import Path

from fvcore.common.config import CfgNode as CN

from ..config import get_cfg
from ..encoders import build_encoder, is_own_code
from ..files.atomic import sha256_of, text_of
from ..files.checkpoints import FORMAT
from ..files.config_names import name_of_today
from ..files.metrics import Metrics
from ..files.safe_load import read_own
from ..files.text import for_terminal
from ..files.yaml_files import parse_yaml

STATISTIC = re.compile(r"\.(running_mean|running_var|num_batches_tracked)$")  # of BN: in the state dict, not learned
# Rows of Detectron2's table of the environment, collect_env_info()
ENVIRONMENT = re.compile(r"^(sys\.platform|Python|numpy|detectron2|PyTorch|torchvision|GPU [\d,]+) {2,}(.+)$", re.M)
_OTHER = "{} is no pretraining run: name a run folder of tools/pretrain.py"
SPLITS = ("train", "val", "validation", "test")  # names that tell nothing without the data set's above them


class PretrainingRun:
    """A finished run of ``tools/pretrain.py``.

    Attributes:
        folder: of the run.
        path: of its ``model_final.pth``; ``sha256`` and ``size`` (bytes) are that file's.
        cfg: the config in the checkpoint, with paths cut as by :func:`dataset_of`.
        images, processes, iterations: number of each.
        encoder: an encoder of the same architecture.
        parameters, decoder_parameters: what is learned in the encoder, and in all decoders together.
        metrics: :class:`Metrics`.
        seconds: of training, by the logged (median) time of an iteration; None if not known.
        command: the command line that began the run, without the machine's paths; None if not known.
        begun: date (UTC) of its beginning, which TensorBoard's file name tells; None if not known.
        environment: name -> version, if the log has Detectron2's table of the environment; else empty.
    """

    def __init__(self, folder: str | Path, encoder: str | None = None):
        """
        Args:
            folder: the run folder.
            encoder: the ``package.module.function`` of the user's own that the run was made with; None: it is one of
                ours. No file decides what code runs.

        Raises:
            FileNotFoundError: if there is no such folder, or its run is not finished.
            ValueError: if the run is no pretraining, the checkpoint is damaged, or its encoder is code of the user's
                own and not ``encoder``.
        """
        self.folder = Path(folder)
        self.path = self.folder / "model_final.pth"
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such run folder")
        if "META_ARCHITECTURE" in text_of(self.folder / "config.yaml"):
            raise ValueError(_OTHER.format(folder))
        last = text_of(self.folder / "last_checkpoint").strip()
        if not self.path.is_file() or last not in ("", self.path.name):  # it may be left over from an earlier run
            why = f"its last checkpoint is {for_terminal(last[:80])}" if last else "it has no model_final.pth"
            raise FileNotFoundError(f"{folder} is no finished run of tools/pretrain.py: {why}; finish it with --resume")
        self._read_checkpoint(encoder)
        self.sha256, self.size = sha256_of(self.path), self.path.stat().st_size
        self.metrics = Metrics.read(self.folder / "metrics.json")
        self.seconds = self.metrics.seconds
        commands = [words for line in text_of(self.folder / "command.txt").splitlines() if (words := _words(line))]
        fresh = [command for command in commands if "--resume" not in command]
        self.command = shlex.join(map(portable, (fresh or commands)[-1])) if commands else None
        stamps = [re.match(r"events\.out\.tfevents\.(\d+)\.", path.name) for path in self.folder.iterdir()]
        begun = min((int(stamp[1]) for stamp in stamps if stamp), default=None)
        utc = datetime.timezone.utc
        self.begun = begun and datetime.datetime.fromtimestamp(begun, utc).date().isoformat()
        rows = ENVIRONMENT.findall(text_of(self.folder / "log.txt"))
        self.environment = {name: re.split(r" [@(\[]", value)[0] for name, value in rows}  # without paths

    def _read_checkpoint(self, encoder):
        try:
            saved = read_own(self.path)
            if "format" not in saved and "model" in saved:
                raise _OtherError(_OTHER.format(self.folder))
            if saved["format"] != FORMAT:
                raise ValueError(f"its format is {saved['format']!r}")
            self.cfg = get_cfg()
            self.cfg.merge_from_other_cfg(CN(parse_yaml(saved["config"], "its config")))
            self.images, self.processes = saved["run"]["images"], saved["run"]["processes"]
            self.iterations, model = saved["iteration"] + 1, saved["model"]
            self.encoder = self._build_encoder(encoder).eval()
            weights = {name: value for name, value in model.items() if name.startswith("encoder.")}
            self.encoder.load_state_dict({name.removeprefix("encoder."): w for name, w in weights.items()})
        except _NotAskedForError as error:
            raise ValueError(f"{self.path}: {error}") from None
        except _OtherError:
            raise
        except Exception as error:  # a damaged archive can raise anything
            why = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"{self.path} is damaged, or not by this version of tools/pretrain.py: {why}") from error
        self.parameters = sum(p.numel() for p in self.encoder.parameters())
        decoders = {name: w for name, w in model.items() if name.startswith("decoders.") and not STATISTIC.search(name)}
        self.decoder_parameters = sum(w.numel() for w in decoders.values())
        self.cfg.OUTPUT_DIR = last_part(self.cfg.OUTPUT_DIR)
        for node, key in ((self.cfg.DATASETS, "TRAIN"), (self.cfg.KNN, "TRAIN"), (self.cfg.KNN, "TEST")):
            node[key] = dataset_of(node[key])

    def _build_encoder(self, asked):
        name = self.cfg.MODEL.ENCODER
        if is_own_code(name) and name != asked:
            raise _NotAskedForError(
                f"its encoder is {name!r}, code of your own, which is run only if asked for: add --encoder {name}"
            )
        return build_encoder(name)


class _NotAskedForError(ValueError):
    """The checkpoint names code of a user's own."""


class _OtherError(ValueError):
    """The run is no pretraining."""


def _words(line):
    """Words of a line of command.txt; none if an interruption tore it."""
    try:
        return shlex.split(line)
    except ValueError:
        return []


def last_part(path: str) -> str:
    """The last part of a path, which is what may be told of it."""
    return Path(path).name if path else ""


def dataset_of(folder: str) -> str:
    """What may be told of a folder of images: its name, and the data set's where that is a split's."""
    *above, name = Path(folder).parts[-2:] if folder else ("",)
    return "/".join([*above, name]) if name in SPLITS and above not in ([], ["/"], [".."]) else name


def portable(word: str) -> str:
    """A word of a command line as it may be published: without a machine's folders or address.

    A file of ``configs/`` has the name that it has today, so that the command can be run.
    """
    if re.match(r"\w+://", word):
        return f"{word.partition('://')[0]}://HOST:PORT"
    if today := name_of_today(word):
        return today
    if not word.startswith(("/", "~")):
        return word
    of_the_checkout = re.search(r"\b(configs/.+\.yaml|tools/\w+\.py)$", word)
    return of_the_checkout[1] if of_the_checkout else f"path/to/{last_part(word)}"
