"""losses.png: what is drawn from a metrics.json, whatever state that is in, and when there is no picture."""

import json
import logging
import math
import time

import numpy as np
import pytest
from detectron2.engine import TrainerBase, hooks
from detectron2.utils.events import JSONWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pretrain.config import get_cfg
from pretrain.engine import curves
from pretrain.engine.curves import LossPlot, draw_losses
from pretrain.files.metrics import Metrics


def step(iteration, **losses):
    return {"iteration": iteration, "lr": 0.1, **{f"loss_{name}": value for name, value in losses.items()}}


def write(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.fixture
def panels(tmp_path, monkeypatch):
    """Function (lines of metrics.json, chance) -> panels of the figure, by label of the y axis."""
    drawn = []
    monkeypatch.setattr(curves, "_save", lambda figure, path: drawn.append(figure))

    def draw(lines, chance=None):
        assert draw_losses(write(tmp_path / "metrics.json", lines), tmp_path / "losses.png", chance)
        return {axes.get_ylabel(): axes for axes in drawn[-1].axes}

    return draw


def texts(axes):
    return [text.get_text() for text in axes.texts]


def points(line):
    return list(map(tuple, line.get_xydata().tolist()))


def test_what_is_drawn(panels):
    knn = {"iteration": 24, "knn/res2-top1": 31.0, "knn/res5-top1": 40.25, "knn/res5-top5": 80.0}
    drawn = panels([step(19, res3=4.0, res5=4.5), step(39, res3=3.0, res5=2.5), knn], math.log(63))
    assert list(drawn) == ["loss of each unit (nats)", "kNN top-1 (%)", "learning rate"]
    loss, accuracy, rate = drawn.values()
    assert [points(line) for line in loss.lines[:2]] == [[(20, 4.0), (40, 3.0)], [(20, 4.5), (40, 2.5)]]
    assert loss.lines[2].get_ydata() == pytest.approx([math.log(63)] * 2)
    assert texts(loss) == ["res5 2.50", "res3 3.00", "chance 4.14"]  # from the lowest
    for axes, ends in ((loss, (2.5, 3.0, math.log(63))), (accuracy, (31.0, 40.25))):
        low, high = axes.get_ylim()
        heights = [text.get_position()[1] for text in axes.texts]
        assert heights == pytest.approx([(end - low) / (high - low) for end in ends])
    assert [points(line) for line in accuracy.lines] == [[(25, 31.0)], [(25, 40.25)]]
    assert texts(accuracy) == ["res2 31.0", "res5 40.2"]
    assert points(rate.lines[0]) == [(20, 0.1), (40, 0.1)] and rate.get_xlabel() == "iteration"
    assert loss.lines[1].get_color() == accuracy.lines[1].get_color() != loss.lines[0].get_color()  # one for each stage


def test_panels_that_have_nothing_are_left_out(panels):
    assert list(panels([step(19, res5=4.0)])) == ["loss of each unit", "learning rate"]
    assert list(panels([{"iteration": 19, "loss_res5": 4.0}])) == ["loss of each unit"]
    random = panels([{"iteration": 9, "lr": 0.1}, {"iteration": 9, "knn/res5-top1": 10.0}], math.log(63))
    assert list(random) == ["kNN top-1 (%)", "learning rate"] and len(random["kNN top-1 (%)"].lines) == 1


@pytest.mark.parametrize("lines", [[], ["not JSON"], [{"iteration": 19, "lr": 0.1}], [step(19, res5=math.nan)], None])
def test_no_file_without_data(tmp_path, lines):
    if lines is not None:
        write(tmp_path / "metrics.json", lines)
    assert not draw_losses(tmp_path / "metrics.json", tmp_path / "losses.png")
    assert not (tmp_path / "losses.png").exists()


def test_resumed_runs_show_one_curve(tmp_path):
    """Stopped after 80, resumed from 40: the later lines win, and those beyond are dropped until they come again."""
    before = [step(19, res5=5.0), step(39, res5=4.0), {"iteration": 29, "knn/res5-top1": 20.0}, step(59, res5=3.0),
              {"iteration": 49, "knn/res5-top1": 30.0}, step(79, res5=2.0), '{"iteration": 99, "loss_r']  # fmt: skip
    metrics = Metrics.read(write(tmp_path / "metrics.json", [*before, step(59, res5=3.5)]))
    assert [entry["iteration"] for entry in metrics.lines] == [19, 29, 39, 49, 59]
    assert metrics.matching(r"loss_(.+)")["res5"].tolist() == [[20, 40, 60], [5.0, 4.0, 3.5]]
    assert metrics.matching(r"knn/(.+)-top1")["res5"].tolist() == [[30, 50], [20.0, 30.0]]
    anew = Metrics.read(write(tmp_path / "metrics.json", [*before, step(19, res5=6.0)]))
    assert [entry["iteration"] for entry in anew.lines] == [19]


def test_values_that_are_not_finite_are_left_out(panels):
    (loss, _) = panels([step(0, res5=1.0), step(1, res5=math.nan), step(2, res5=math.inf), step(3, res5=2.0)]).values()
    assert points(loss.lines[0]) == [(1, 1.0), (4, 2.0)]


VALUES = st.sampled_from([None, True, -1, 0.5, math.nan, math.inf, "", "7", [], {}, 10**9]) | st.integers(0, 99)
KEYS = ("lr", "loss_res2", "loss_res5", "knn/res5-top1", "knn/res5-top5", "time")
ENTRIES = st.fixed_dictionaries({"iteration": VALUES}, optional=dict.fromkeys(KEYS, VALUES))
LINES = (ENTRIES | VALUES).map(json.dumps)


@settings(max_examples=200, deadline=None)
@given(st.lists(LINES | LINES.map(lambda line: line[: len(line) // 2]) | st.text(max_size=20), max_size=30))
def test_any_file_can_be_read(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("any") / "metrics.json"
    path.write_text("\n".join(lines), errors="replace")
    metrics = Metrics.read(path)
    iterations = [int(entry["iteration"]) for entry in metrics.lines]
    assert iterations == sorted(set(iterations))
    for x, y in metrics.matching(r"loss_(.+)").values():
        assert len(x) and np.isfinite([x, y]).all()


def test_stages_from_the_image_upwards(panels):
    names = ["res2", "res3[:1]", "res3", "res4", "res5", "res6", "res7", "res10"]
    (loss,) = panels([{"iteration": i, **{f"loss_{n}": 9.0 - k for k, n in enumerate(names)}} for i in (0, 1)]).values()
    assert [text.split()[0] for text in reversed(texts(loss))] == names
    assert [line.get_ydata()[0] for line in loss.lines] == [9.0 - k for k in range(8)]
    looks = {(line.get_color(), line.get_linestyle()) for line in loss.lines}
    assert len(looks) == 8  # more than there are colours


def test_labels_do_not_overlap(panels):
    close = {f"res{i}": 1.0 + i / 1000 for i in range(2, 8)}
    loss, _ = panels([step(0, **close), step(99, **{**close, "res2": 8.0}), step(100, **close)], 9.0).values()
    heights = [text.get_position()[1] for text in loss.texts]
    assert np.diff(heights).min() > 0.04 and heights[0] > -0.02 and heights[-1] < 1.02


def test_long_curves_are_summed_up(panels):
    """Means and range of 400 parts, and the text says where the drawn curve ends."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=20000)
    loss, _ = panels([step(i, res5=5 + noise[i]) for i in range(20000)]).values()
    (line,), (band,) = loss.lines, loss.collections
    assert len(line.get_xdata()) == 400 and line.get_ydata()[7] == pytest.approx(5 + noise[350:400].mean())
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(5 + noise.max())
    assert texts(loss) == [f"res5 {5 + noise[-50:].mean():.2f}"]


def test_scale_is_logarithmic_only_where_it_must_be(panels):
    barlow_twins = [step(0, res5=5000.0), step(1, res5=100.0)]
    assert panels(barlow_twins)["loss of each unit"].get_yscale() == "log"
    assert panels(barlow_twins, 9.0)["loss of each unit (nats)"].get_yscale() == "linear"
    assert panels([step(0, res5=500.0), step(1, res5=100.0)])["loss of each unit"].get_yscale() == "linear"
    assert panels([step(0, res5=5000.0), step(1, res5=0.0)])["loss of each unit"].get_yscale() == "linear"


def test_picture_is_complete_or_as_it_was(tmp_path, monkeypatch):
    write(tmp_path / "metrics.json", [step(i, res3=5 - i / 99, res5=4 - i / 99) for i in range(99)])
    assert draw_losses(tmp_path / "metrics.json", tmp_path / "losses.png", 5.0)
    before = (tmp_path / "losses.png").read_bytes()
    image = np.asarray(Image.open(tmp_path / "losses.png").convert("RGB"))
    assert image.shape[1] > 1000 and {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= set(map(tuple, image.reshape(-1, 3)))

    def full_disk(self, file, **kwargs):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(curves.Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="No space left"):
        draw_losses(tmp_path / "metrics.json", tmp_path / "losses.png", 5.0)
    assert (tmp_path / "losses.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["losses.png", "metrics.json"]


def test_a_long_run_takes_a_second(tmp_path):
    """12,500 lines: 800 epochs of ImageNet, logged as by default. The bound leaves room for a busy machine."""
    write(tmp_path / "metrics.json", [step(i * 20, res3=5.0, res4=4.0 + i % 7, res5=3.0) for i in range(12500)])
    start = time.process_time()
    draw_losses(tmp_path / "metrics.json", tmp_path / "losses.png", 9.0)
    assert time.process_time() - start < 3


class ToyTrainer(TrainerBase):
    def run_step(self):
        self.storage.put_scalars(loss_res3=5.0 - self.iter, loss_res5=4.0 - self.iter)
        self.storage.put_scalar("lr", 0.1, smoothing_hint=False)


def config(folder, loss="info_nce"):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.LOSS.NAME, cfg.SOLVER.IMS_PER_BATCH = str(folder), loss, 32
    return cfg


def test_in_training_with_detectron2s_hooks(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "_save", lambda figure, path: drawn.append((path, figure)))
    trainer = ToyTrainer()
    trainer.register_hooks([
        hooks.EvalHook(2, lambda: {"knn": {"res5-top1": 40.0, "res5-top5": 80.0}}),
        hooks.PeriodicWriter([JSONWriter(str(tmp_path / "metrics.json"))], 2),
        hooks.PeriodicWriter([LossPlot(config(tmp_path))], 4),
    ])  # fmt: skip
    trainer.train(0, 5)
    assert [path for path, _ in drawn] == [str(tmp_path / "losses.png")] * 3  # after 4, 5, and the last evaluation
    loss, accuracy, _ = drawn[-1][1].axes
    assert points(accuracy.lines[0]) == [(2, 40.0), (4, 40.0), (6, 40.0)]  # the last one is counted after the last step
    assert [x for x, _ in points(loss.lines[0])] == [2, 4, 5] and loss.lines[2].get_ydata()[0] == math.log(63)


def test_chance_is_of_info_nce_only_and_scaled_with_it(tmp_path):
    cfg = config(tmp_path)
    cfg.LOSS.SCALE = 0.5
    assert LossPlot(cfg).chance == math.log(63) / 2
    assert LossPlot(config(tmp_path, "barlow_twins")).chance is None


def test_a_run_is_not_stopped_for_a_picture(tmp_path, caplog):
    write(tmp_path / "metrics.json", [step(0, res5=4.0)])
    (tmp_path / "losses.png").mkdir()
    with caplog.at_level(logging.WARNING, "pretrain.engine.curves"):
        LossPlot(config(tmp_path)).write()
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("losses.png is not drawn: ")
