"""torch's compiler is imported when something is compiled, and not by torchvision."""

import subprocess
import sys

from child_processes import child_environment

CODE = """
import sys
from loco_det.cli.common.late_compiler import COMPILER, import_torchvision
import_torchvision()
import torch, torchvision, loco_det.convert
assert not [name for name in sys.modules if name.startswith("torch._dynamo")]
boxes = [torch.tensor([[0.0, 0, 4, 4]])]
out = torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 2)
assert out.eq(1).all()
late = torchvision.ops.roi_align.__globals__["is_compile_supported"]
answer = late("cpu")
from torch._dynamo.utils import is_compile_supported
assert sys.modules[COMPILER].is_compile_supported is is_compile_supported is not late
assert answer == is_compile_supported("cpu") and late("meta") == is_compile_supported("meta")
import_torchvision()
assert sys.modules[COMPILER].is_compile_supported is is_compile_supported
double = torch.compile(lambda x: 2 * x, backend="eager")
assert double(torch.ones(2)).eq(2).all()
"""


def python(code):
    done = subprocess.run([sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_compiler_comes_when_it_is_called():
    python(CODE)


def test_a_conversion_needs_no_compiler(tmp_path):
    """From the import to the proof."""
    python(
        "import sys\n"
        "from loco_det.cli.common import conversion\n"
        "conversion.as_process()\n"
        "import torch, torchvision, loco_det.convert\n"
        f"torch.save(torchvision.models.resnet18().state_dict(), {str(tmp_path / 'a.pth')!r})\n"
        f"loco_det.convert.convert({str(tmp_path / 'a.pth')!r}, {str(tmp_path / 'a.pkl')!r})\n"
        "assert not [name for name in sys.modules if name.startswith('torch._dynamo')]\n"
        "from detectron2.layers import wrappers\n"
        "def f(x):\n"
        "    return x + 1 if wrappers.check_if_dynamo_compiling() else x\n"
        "assert f(torch.zeros(1)) == 0 and torch.compile(f, backend='eager')(torch.zeros(1)) == 1\n"
    )


def test_another_name_of_it_is_the_real_one():
    """As another version of torchvision might ask for."""
    python(
        "from loco_det.cli.common.late_compiler import COMPILER, _Compiler\n"
        "import sys, torch\n"
        "sys.modules[COMPILER] = _Compiler(COMPILER)\n"
        "from torch._dynamo.utils import counters\n"
        "import torch._dynamo.utils as real\n"
        "assert real.counters is counters and type(real) is type(sys)\n"
    )
