"""Layouts of tensors that travel without headers."""

import pytest
import torch

from pretrain.processes.messages import Layout

TENSORS = {
    "contiguous": torch.randn(2, 3, 4, 5),
    "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "one pixel": torch.randn(2, 3, 1, 1).contiguous(memory_format=torch.channels_last),
    "bfloat16": torch.randn(2, 3, 4, 5).bfloat16(),
    "float64": torch.randn(7, dtype=torch.float64),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_arrives_with_its_strides(name):
    tensor = TENSORS[name]
    layout = Layout.decoded(Layout.of(tensor).encoded())
    code = Layout.empty_code()
    assert code.copy_(layout.encoded()).shape == layout.encoded().shape  # of one size
    arrived = layout.empty(torch.device("cpu"))
    sent = layout.flat(tensor)
    assert sent.data_ptr() == tensor.data_ptr()  # nothing is copied
    layout.flat(arrived).copy_(sent)
    assert torch.equal(arrived, tensor) and arrived.stride() == tensor.stride() and arrived.dtype == tensor.dtype


def test_another_layout_is_sent_as_the_first_one():
    layout = Layout.of(TENSORS["channels_last"])
    arrived = layout.empty(torch.device("cpu"))
    layout.flat(arrived).copy_(layout.flat(TENSORS["contiguous"]))
    assert torch.equal(arrived, TENSORS["contiguous"]) and arrived.stride() == TENSORS["channels_last"].stride()
    gaps = torch.randn(2, 3, 4, 10)[..., ::2]
    arrived = Layout.of(gaps).empty(torch.device("cpu"))
    Layout.of(gaps).flat(arrived).copy_(Layout.of(gaps).flat(gaps))
    assert torch.equal(arrived, gaps)


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match="all batches must have one size"):
        Layout.of(TENSORS["contiguous"]).flat(torch.zeros(1, 3, 4, 5))
    with pytest.raises(ValueError, match="all batches must have one size"):
        Layout.of(TENSORS["contiguous"]).flat(TENSORS["bfloat16"])
