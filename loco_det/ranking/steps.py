"""The steps of an evaluation: command lines of the project, and which of them have to be done before which."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..runs.folder import is_finished
from . import estimate
from .choice import FAILED, chosen_rate, folder_of
from .data import Data
from .recipes import DETECTORS, FREEZE_ALL, HELD_OUT, Recipe, has_batchnorm, is_timms
from .settings import Candidate, Settings

CHOSEN = "CHOSEN"  # stands for a learning rate that is not known yet
LINKS = "training_images"  # folder of links to them, where their own holds others, too
BN_BATCHES = 100  # of the control's calibration, the least that pretrain.py does without units


@dataclass(eq=False)
class Step:
    """A command line.

    Attributes:
        title: what it does.
        row: name of the row that it is for.
        tool: such as "train_net.py".
        done: the file that says it is finished.
        words: function that returns the tool's arguments, when the steps that it needs are done.
        needs: steps.
        folder: of a run that can be resumed; None: it starts anew.
        output: file for what it prints; None: none.
        choice: whether it is there to choose a learning rate: there, a loss that explodes is an answer.
        seconds: estimate; None: not known.
        size: estimate of what it leaves, in bytes.
    """

    title: str
    row: str
    tool: str
    done: Path
    words: Callable[[], list[str]]
    needs: list["Step"] = field(default_factory=list)
    folder: Path | None = None
    output: Path | None = None
    choice: bool = False
    seconds: float | None = None
    size: float = 0.0

    @property
    def is_done(self) -> bool:
        """Whether its last file is there, and of a detector has no problems."""
        if self.done.name != "results.json":
            return self.done.exists()
        failed = self.choice and (self.done.parent / FAILED).exists()
        return failed or is_finished(self.done.parent)


@dataclass
class Plan:
    """How the steps of an evaluation are made.

    Attributes:
        settings: of the evaluation.
        data: what is trained on.
        recipes: protocol -> recipe, of the detectors' protocols.
        folder: of the evaluation.
        device: MODEL.DEVICE.
        cores: of the CPU for each run.
        gpus: for each run.
        readout_size: side of the crops for probe and kNN, in pixels.
    """

    settings: Settings
    data: Data
    recipes: dict[str, Recipe]
    folder: Path
    device: str = "cpu"
    cores: int = 2
    gpus: int = 1
    readout_size: int = 224

    def steps(self) -> list[Step]:
        """All steps, those that others need before these."""
        return [step for row in self.settings.rows if not row.problem for step in self._row(row)]

    def _row(self, row: Candidate) -> Iterator[Step]:
        backbones: dict[str, Step] = {}
        for seed in range(self.settings.seeds):
            place = row.place(seed)
            if place not in backbones:
                steps = self._backbone(row, place, seed)
                backbones[place] = steps[-1]
                yield from steps
        for protocol in (name for name in DETECTORS if name in self.settings.protocols):
            yield from self._detectors(row, protocol, backbones)
        for protocol in (name for name in ("probe", "knn") if name in self.settings.protocols):
            if not is_timms(row.architecture):  # whose maps readouts do not take
                yield self._readout(row, protocol, backbones[row.place(0)])

    def _backbone(self, row: Candidate, place: str, seed: int) -> list[Step]:
        """From a checkpoint to verified weights; of the control, calibration first."""
        folder, before = self.folder / place, []
        checkpoint = row.checkpoints[seed % len(row.checkpoints)]
        which = f"{row.name}, seed {seed}" if place != row.name else row.name
        if row.control:
            before, checkpoint = [self._calibration(row, folder, seed)], str(folder / "pretrain" / "model_final.pth")
        words = [checkpoint, str(folder / "backbone.pkl"), "--json"]
        done = folder / "conversion.json"
        title = f"{which}: convert and verify"
        convert = Step(title, row.name, "convert_to_d2.py", done, lambda: words, before, output=done)
        convert.seconds, convert.size = 6, 1e8
        return [*before, convert]

    def _calibration(self, row: Candidate, folder: Path, seed: int) -> Step:
        images, run = self.data.train_images, folder / "pretrain"
        calibrated = has_batchnorm(row.architecture)
        batch = min(64, images) if calibrated else 1  # the images change nothing
        pairs = {
            "MODEL.ENCODER": f"timm:{row.architecture}" if is_timms(row.architecture) else row.architecture,
            "DATASETS.TRAIN": self.folder / LINKS if self.data.mixed else self.data.images,
            "INPUT.CROP_SIZE": self.data.side // 2 if self.data.side else 224,
            "SOLVER.IMS_PER_BATCH": batch,
            "SOLVER.EPOCHS": f"{BN_BATCHES / (images // batch):.6g}",
            "SEED": seed,
            "OUTPUT_DIR": run,
        }
        words = ["--config-file", "configs/pretrain/random.yaml", *_words(pairs)]
        title = f"{row.name}, seed {seed}: random weights{', calibrated BN' if calibrated else ''}"
        return Step(title, row.name, "pretrain.py", run / "model_final.pth", lambda: words, folder=run, seconds=60)

    def _detectors(self, row: Candidate, protocol: str, backbones: dict[str, Step]) -> Iterator[Step]:
        recipe, folder = self.recipes[protocol], self.folder / row.name / protocol
        choice, rates = [], self.settings.rates[protocol]
        for rate in rates if len(rates) > 1 else []:
            run = folder / "choice" / folder_of(rate)
            words = self._words(row, protocol, run, 0, lambda rate=rate: rate, HELD_OUT)
            title = f"{row.name} {protocol}: learning rate {rate:g} on held-out training images"
            step = Step(title, row.name, recipe.tool, run / "results.json", words, [backbones[row.place(0)]], run)
            step.choice, step.seconds, step.size = True, self._seconds(recipe, protocol, folder), 5e6
            choice.append(step)
        yield from choice
        for seed in range(self.settings.seeds):
            run = folder / f"seed{seed}"
            words = self._words(row, protocol, run, seed, lambda: chosen_rate(folder / "choice", rates))
            needs = [backbones[row.place(seed)], *choice]
            title = f"{row.name} {protocol}, seed {seed}"
            step = Step(title, row.name, recipe.tool, run / "results.json", words, needs, run)
            step.seconds = self._seconds(recipe, protocol, folder)
            step.size = estimate.training_bytes(recipe, protocol)
            yield step

    def _seconds(self, recipe, protocol, folder):
        """Of runs of this protocol: as those took that are finished, or by the tables."""
        finished = self.folder.glob(f"*/{protocol}/seed*")
        guess = estimate.training_seconds(recipe, protocol, self.device, self.cores, self.gpus)
        return estimate.measured_seconds(finished) or guess

    def _words(self, row, protocol, run, seed, rate, held_out=0):
        """A function that returns the arguments of a detector's training."""
        recipe, settings = self.recipes[protocol], self.settings
        config = ["--config-file", f"configs/{recipe.config}"]
        backbone = self.folder / row.place(seed)
        overlays = [*settings.overlays, self.folder / f"{protocol}.yaml", backbone / "backbone.yaml"]
        config += [word for path in overlays for word in ("--overlay", str(path))]
        config += ["--num-gpus", str(self.gpus)] if self.gpus > 1 else []

        def words() -> list[str]:
            value = rate()
            pairs = {"SOLVER.BASE_LR": CHOSEN if value is None else f"{value:g}", "SEED": seed, "OUTPUT_DIR": run}
            if protocol == "frozen" and is_timms(row.architecture):
                pairs["MODEL.BACKBONE.FREEZE_AT"] = FREEZE_ALL
            pairs |= {"DATASETS.HELD_OUT": held_out, "TEST.NUM_PICTURES": 0} if held_out else {}
            return [*config, *settings.options, *_words(pairs)]

        return words

    def _readout(self, row: Candidate, protocol: str, backbone: Step) -> Step:
        tool, config = {
            "probe": ("linear_probe.py", "configs/readout/cached.yaml"),
            "knn": ("knn.py", "configs/readout/knn.yaml"),
        }[protocol]
        run, (train, test) = self.folder / row.name / protocol, self.settings.labelled
        weights = row.checkpoints[0]
        if row.control:
            weights = str(self.folder / row.place(0) / "pretrain" / "model_final.pth")
        pairs = {"MODEL.WEIGHTS": weights, "DATASETS.TRAIN": train, "DATASETS.TEST": test}
        pairs |= {"INPUT.CROP_SIZE": str(self.readout_size), "OUTPUT_DIR": str(run), "SEED": "0"}
        words = ["--config-file", config, *_words(pairs)]
        title = f"{row.name} {'linear probe' if protocol == 'probe' else 'kNN'} of every stage"
        folder = run if protocol == "probe" else None
        return Step(title, row.name, tool, run / "results.json", lambda: words, [backbone], folder)


def _words(pairs) -> list[str]:
    return [str(word) for pair in pairs.items() for word in pair]


def total(steps: Sequence[Step], jobs: int) -> tuple[float, float]:
    """Seconds and bytes of the steps that are not done, with that many jobs at a time."""
    left = [step for step in steps if not step.is_done]
    return sum(step.seconds or 0 for step in left) / jobs, sum(step.size for step in left)
