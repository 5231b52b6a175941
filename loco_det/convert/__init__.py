"""From a pretrained encoder's checkpoint to a file that Detectron2 loads, and back, with a numeric proof.

The flow of ``conversion.convert``, a module for each step:

1. ``checkpoint_file`` reads the file, once and without running what is in it; the files beside it come with it.
2. ``search`` finds the encoders in it, ``layouts`` says which project lays them out so, and ``choose`` which one is
   meant.
3. ``source`` extracts it: ``architecture`` detects which encoder it is, ``metadata``, ``detectron2_runs``,
   ``huggingface`` and ``openmmlab`` (``python_config``) what is said of its ``conventions``, and ``weights`` makes the
   state dict whole, with torchvision's names.
4. ``detectron2_names`` renames it, ``networks`` and ``config_text`` make its config, ``writing`` leaves whole files.
5. ``verify`` loads the written file and compares both networks of ``networks``.

Networks that timm can compute go another way from the second step on: ``timm``.

``encoder``, with ``expansions``, stops after the third step: an encoder to be read out, without Detectron2.
"""

from .config_text import yaml_lines
from .conversion import Conversion, check, check_output, convert, convert_back
from .detectron2_names import to_detectron2
from .encoder import Readable, add_encoder_config, load_encoder, load_encoder_of
from .sources.architecture import infer_encoder
from .sources.checkpoint_file import CheckpointFile, read_checkpoint
from .sources.conventions import Conventions
from .sources.layouts import LAYOUTS
from .sources.source import load_source
from .sources.source_type import Source
from .timm.layouts import TIMM_LAYOUTS
from .verify import Difference, VerificationError
from .writing import check_folder

__all__ = [
    "LAYOUTS",
    "TIMM_LAYOUTS",
    "CheckpointFile",
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
    "infer_encoder",
    "load_encoder",
    "load_encoder_of",
    "load_source",
    "read_checkpoint",
    "to_detectron2",
    "yaml_lines",
]
