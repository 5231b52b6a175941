"""Settings by which a network of timm was built anew: what its name does not say, and its weights need not show."""

import re
from argparse import Namespace
from typing import Any

from ..sources.checkpoint_file import CheckpointFile
from ..sources.messages import brief, first_few

# Of the classifier, of training and of the images' size: no map depends on them
HARMLESS = re.compile(
    r"(num_classes|global_pool|in_chans|drop_rate|\w+_drop_rate|drop_path_rate|pretrained\w*|weight_init|fix_init"
    r"|img_size|dynamic_img_size|dynamic_img_pad|strict_img_size|fc_norm|head_\w+)$"
)
# What the names and shapes of the weights show, which are compared
SHOWN = re.compile(
    r"(embed_dim|dims|depths?|patch_size|window_size|mlp_ratio|init_values|ls_init_value|class_token|reg_tokens"
    r"|no_embed_class|qkv_bias|qk_norm|use_grn|conv_mlp)$"
)


def refuse_settings(file: CheckpointFile, card: dict[str, Any], name: str) -> None:
    """Refuse a network of timm that was built with other settings than those of its name.

    timm writes them into config.json ("model_args"), and its train.py into the checkpoint ("args"). Another number of
    heads or another activation has the same names and shapes of weights.

    Args:
        file: the checkpoint.
        card: timm's config.json beside it; empty: there is none.
        name: timm's name of the network.

    Raises:
        ValueError: if there is such a setting, by its name.
    """
    args = file.get("args")
    sources = [("config.json beside it", card.get("model_args"))]
    sources += [("its args", vars(args).get("model_kwargs"))] if isinstance(args, Namespace) else []
    for where, settings in sources:
        found = settings if isinstance(settings, dict) else {}
        changed = [
            f"{brief(key)} {brief(value)}"
            for key, value in found.items()
            if value is not None and not (HARMLESS.match(str(key)) or SHOWN.match(str(key)))
        ]
        if changed:
            raise ValueError(f"{where} has settings that {name} may not have ({first_few(changed)}): not converted")
