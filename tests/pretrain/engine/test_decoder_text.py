"""The decoder of a config in words, in a table's cell and in full; the keys may be an old config's, or a new one's."""

import pytest

from pretrain.config import get_cfg
from pretrain.engine.decoder_text import decoder_text

END = "global average pooling → MLP 2048-128 (2 layers, BN at its end)"
SMALL = "global average pooling → MLP 128 (1 layer, BN at its end)"
NO_BN = "global average pooling → MLP 2048-128 (2 layers, no BN at its end)"


@pytest.mark.parametrize(
    ("keys", "text", "full"),
    [
        ({}, "1 conv block, downsampling, MLP 2048-128",
         f"1 residual conv block with stride 2 (downsampling) → {END}"),
        ({"CONV_BLOCKS": 2, "DOWNSAMPLE": False, "MLP_LAYERS": 1}, "2 conv blocks, MLP 128",
         f"2 residual conv blocks of stride 1 → {SMALL}"),
        ({"CONV_BLOCKS": 0, "STAGES": 1, "TIE": 0.001, "OUT_BN": False},
         "copy of the next stage, tied 0.001, no conv block, MLP 2048-128",
         f"copy of the next stage, tied to the original by L2 x 0.001 → no conv block → {NO_BN}"),
        ({"CONV_BLOCKS": 3, "STAGES": -1, "EXPANSION": 64},
         "copy of all stages above, 3 conv blocks, downsampling, 1x1 conv 64, MLP 2048-128",
         "copy of all stages above → 3 residual conv blocks, the first with stride 2 → 1x1 conv to 64 channels, BN, "
         f"ReLU → {END}"),
        ({"CONV_BLOCKS": 0, "POOL_FEATURES": 512}, "no conv block, local pooling 512, MLP 2048-128",
         f"no conv block → {END.replace('global average pooling', 'average pooling over cells to 512 features')}"),
        ({"STAGES": 2, "CONV_BLOCKS": 0}, "copy of the next 2 stages, no conv block, MLP 2048-128",
         f"copy of the next 2 stages → no conv block → {END}"),
    ],
)  # fmt: skip
def test_decoders(keys, text, full):
    node = get_cfg().MODEL.DECODER
    node.merge_from_other_cfg(type(node)(keys))
    assert decoder_text(node) == decoder_text(dict(node)) == text
    assert decoder_text(node, full=True) == full


def test_keys_that_an_old_config_lacks():
    assert decoder_text({"CONV_BLOCKS": 1, "HIDDEN_DIM": 512, "OUT_DIM": 64}) == "1 conv block, MLP 512-64"
