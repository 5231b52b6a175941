"""SOLVER.AMP.ENABLED auto: what each processor gets, what is said, and that a run keeps the type that it began with."""

import logging

import pytest
import torch
from detectron2.utils import comm

from pretrain.config import get_cfg
from pretrain.engine import precision
from pretrain.engine.precision import bfloat16_support, with_precision
from pretrain.files.checkpoints import write_config
from pretrain.readout.config import get_cfg as readout_cfg

OLD_XEON = {"avx2", "avx512_f", "avx512_vnni"}
SLOW = "this CPU has no instructions for bfloat16"


@pytest.fixture
def on(monkeypatch):
    """``on(flags, bfloat16=..., float32=...)``: be on a processor with these instruction sets and times."""

    def become(flags, **seconds):
        monkeypatch.setattr(precision, "cpu_flags", lambda: set(flags))
        monkeypatch.setattr(precision, "conv_seconds", lambda dtype: seconds[str(dtype).removeprefix("torch.")])

    return become


@pytest.fixture
def said(caplog):
    """``said() -> [(level, message)]`` since the last call."""
    logging.getLogger("pretrain").propagate = True  # other tests have it log to a file
    caplog.set_level(logging.INFO)

    def messages():
        found = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == precision.__name__]
        caplog.clear()
        return found

    return messages


def config(out, enabled, build=get_cfg):
    cfg = build()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(out), "SOLVER.AMP.ENABLED", enabled])
    cfg.freeze()
    return cfg


@pytest.mark.parametrize(
    ("flags", "seconds", "expected"),
    [
        ({"avx2"}, {}, (False, SLOW)),
        (OLD_XEON, {}, (False, SLOW)),
        ({*OLD_XEON, "avx512_bf16"}, {}, (True, "this CPU has avx512_bf16")),
        ({*OLD_XEON, "avx512_bf16", "amx_bf16"}, {}, (True, "this CPU has amx_bf16 and avx512_bf16")),
        ({"neon"}, {}, (False, SLOW)),
        ({"neon", "bf16"}, {"bfloat16": 0.01, "float32": 0.02},
         (True, "a convolution took 10 ms in bfloat16, 20 in float32")),
        ({"neon", "bf16"}, {"bfloat16": 1.5, "float32": 0.02},
         (False, "a convolution took 1.5e+03 ms in bfloat16, 20 in float32")),
    ],
)  # fmt: skip
def test_processors(on, flags, seconds, expected):
    on(flags, **seconds)
    assert bfloat16_support("cpu") == expected


def test_other_devices(monkeypatch):
    for native, word in ((True, "has instructions"), (False, "has no instructions")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        found, why = bfloat16_support("cuda:1")
        assert found is native and word in why
    assert bfloat16_support("mps") == (False, "nothing is known about bfloat16 on mps")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert bfloat16_support("cpu")[0] is False


def test_this_processor_can_be_asked(monkeypatch, tmp_path):
    flags = precision.cpu_flags()
    assert flags and all(isinstance(flag, str) for flag in flags)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # older torch
    told = precision.cpu_flags() & {*precision.FAST, *precision.TO_BE_MEASURED}
    assert told in (flags & {*precision.FAST, *precision.TO_BE_MEASURED}, set())  # the latter without /proc


def test_measuring_draws_no_random_numbers():
    state = torch.get_rng_state()
    assert all(0 < precision.conv_seconds(dtype) < 10 for dtype in (torch.bfloat16, torch.float32))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("build", [get_cfg, readout_cfg])
@pytest.mark.parametrize(("enabled", "type_"), [(False, "float32"), (True, "bfloat16")])
def test_auto_is_decided_and_said(on, said, tmp_path, build, enabled, type_):
    on({"amx_bf16"} if enabled else OLD_XEON)
    cfg = config(tmp_path, "auto", build)
    decided = with_precision(cfg)
    assert decided.SOLVER.AMP.ENABLED is enabled and decided.is_frozen() and cfg.SOLVER.AMP.ENABLED == "auto"
    ((level, text),) = said()
    assert level == "INFO" and text.startswith(f"SOLVER.AMP.ENABLED auto: {type_}, because this CPU has ")


def test_an_explicit_value_is_obeyed(on, said, tmp_path):
    on(OLD_XEON)
    assert with_precision(config(tmp_path, False)).SOLVER.AMP.ENABLED is False and said() == []
    assert with_precision(config(tmp_path, True)).SOLVER.AMP.ENABLED is True
    slow = f"SOLVER.AMP.ENABLED is True, but bfloat16 is slow here, because {SLOW}: auto or False is faster"
    assert said() == [("WARNING", slow)]
    on({"avx512_bf16"})
    cfg = config(tmp_path, True)
    assert with_precision(cfg) is cfg and said() == []


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_goes_on_in_the_type_that_it_began_with(on, said, tmp_path, begun):
    here, elsewhere = (["avx512_bf16"], OLD_XEON) if begun else (OLD_XEON, ["avx512_bf16"])
    on(here)
    write_config(with_precision(config(tmp_path, "auto")))
    said()
    on(elsewhere)
    assert with_precision(config(tmp_path, "auto"), resume=True).SOLVER.AMP.ENABLED is begun
    type_ = "bfloat16" if begun else "float32"
    first, *warnings = said()
    assert first == ("INFO", f"SOLVER.AMP.ENABLED auto: {type_}, because the run began with it")
    assert [level for level, _ in warnings] == ["WARNING"] * begun
    assert with_precision(config(tmp_path, "auto")).SOLVER.AMP.ENABLED is not begun  # started anew


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"SOLVER: [1", b"SOLVER: {AMP: {ENABLED: auto}}", b"[]"])
def test_a_config_that_does_not_tell(on, tmp_path, content):
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    on({"amx_bf16"})
    assert with_precision(config(tmp_path, "auto"), resume=True).SOLVER.AMP.ENABLED is True


def test_processes_on_different_machines_agree(on, said, monkeypatch, tmp_path):
    on({"amx_bf16"})
    monkeypatch.setattr(comm, "all_gather", lambda mine: [mine, (False, SLOW, None)])
    assert with_precision(config(tmp_path, "auto")).SOLVER.AMP.ENABLED is False
    assert said() == [("INFO", f"SOLVER.AMP.ENABLED auto: float32, because {SLOW}")]
