"""Importing torchvision without torch's compiler, which takes as long to import as torch itself."""

import importlib
import sys
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo.utils"


def import_torchvision() -> None:
    """Import torchvision, and torch's compiler not before something is compiled or an optimiser is built.

    ``torchvision.ops.roi_align`` takes one function from the compiler's package, to ask on a GPU with deterministic
    algorithms whether it can compile. In its place there is a function that imports the package when it is called.
    """
    if COMPILER in sys.modules or "torchvision" in sys.modules:
        return
    import torch  # noqa: F401, which must not find what stands in

    stand_in = _Compiler(COMPILER)
    sys.modules[COMPILER] = stand_in
    try:
        import torchvision  # noqa: F401
    finally:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]


def ask_no_compiler() -> None:
    """Let Detectron2's convolutions ask ``torch.compiler`` whether they are being compiled, which is imported with
    torch, instead of the compiler itself."""
    import torch
    from detectron2.layers import wrappers

    wrappers.check_if_dynamo_compiling = torch.compiler.is_compiling


class _Compiler(ModuleType):
    """Stands in for the compiler's module while torchvision is imported; whatever else is asked of it is the real."""

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        return importlib.import_module(COMPILER).is_compile_supported(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of the import system
            raise AttributeError(name)
        sys.modules.pop(COMPILER, None)
        return getattr(importlib.import_module(COMPILER), name)
