"""From a pretrained encoder's checkpoint to a file that Detectron2 loads, with a numeric proof that nothing was lost.

A checkpoint becomes a torchvision-style state dict (``sources``), whose architecture is recognised (``architecture``),
whose names become Detectron2's (``detectron2_names``), and whose written file is compared with the source network
(``verify``); ``conversion`` puts these in a row.
"""

from .architecture import infer_arch
from .conversion import Conversion, check_output, convert
from .detectron2_names import to_detectron2
from .sources import Source, load_source
from .verify import Difference, VerificationError

__all__ = [
    "Conversion",
    "Difference",
    "Source",
    "VerificationError",
    "check_output",
    "convert",
    "infer_arch",
    "load_source",
    "to_detectron2",
]
