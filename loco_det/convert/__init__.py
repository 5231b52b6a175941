"""From a pretrained encoder's checkpoint to a file that Detectron2 loads, and back, with a numeric proof.

``pretrain.files.safe_load`` reads a checkpoint of any format without running it; ``search`` finds the encoders in it,
``layouts`` and ``choose`` tell which project's it is and so which of them is meant, ``architecture`` which network that
is, ``stated``, ``openmmlab`` (``python_config``) and ``huggingface`` what the file and those beside it say of it;
``sources`` puts these in a row.
``encoder`` makes of that a network to be read out, without Detectron2's part in it.
``detectron2_names`` renames, ``networks`` builds both networks, ``verify`` compares them, ``writing`` leaves whole
files only; ``conversion`` puts these in a row.
"""

from .architecture import infer_arch
from .conversion import Conversion, check, check_output, convert, convert_back, yaml_lines
from .detectron2_names import to_detectron2
from .encoder import Readable, add_encoder_config, load_encoder, load_encoder_of
from .layouts import LAYOUTS, Conventions
from .sources import Source, load_source
from .verify import Difference, VerificationError
from .writing import check_folder

__all__ = [
    "LAYOUTS",
    "Conventions",
    "Conversion",
    "Difference",
    "Readable",
    "Source",
    "VerificationError",
    "add_encoder_config",
    "check",
    "check_folder",
    "check_output",
    "convert",
    "convert_back",
    "infer_arch",
    "load_encoder",
    "load_encoder_of",
    "load_source",
    "to_detectron2",
    "yaml_lines",
]
