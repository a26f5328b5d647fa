"""A codec computes in float32 on a GPU too: the setting for it, which can be read without a GPU."""

import threading

import numpy as np
import pytest
import torch

from helpers.speaking import WAIT_S, tiny_codec
from sheen.codec.snac import Codec, full_float32

OUTSIDE = "tf32"


def precision() -> str:
    return str(torch.backends.cudnn.conv.fp32_precision)


@pytest.fixture(scope="module")
def tiny() -> Codec:
    return tiny_codec()


def test_torch_rounds_convolutions_unless_told_otherwise() -> None:
    """When this fails, torch has another default, and `sheen.codec.snac` has nothing to do."""
    assert precision() == OUTSIDE


def test_a_codec_computes_its_convolutions_in_full_float32(tiny: Codec) -> None:
    seen: list[str] = []
    hooks = [
        layer.register_forward_hook(lambda *_: seen.append(precision()))
        for layer in tiny.model.modules()
        if isinstance(layer, torch.nn.Conv1d)
    ]
    (codes,) = tiny.encode([torch.zeros(4096)])
    encoding = len(seen)
    tiny.decode([level[None] for level in codes], [0])
    for hook in hooks:
        hook.remove()
    assert 0 < encoding < len(seen)
    assert set(seen) == {"ieee"}
    assert precision() == OUTSIDE


def test_the_precision_setting_is_given_back_when_the_work_fails(tiny: Codec) -> None:
    with pytest.raises(ValueError, match="waveform 0 has shape"):
        tiny.encode([torch.zeros(0)])
    with pytest.raises(IndexError):
        tiny.decode([np.full((1, frames), 9999, np.int16) for frames in (1, 2, 4)])
    assert precision() == OUTSIDE


def test_the_last_of_several_threads_gives_the_precision_setting_back() -> None:
    inside, leave = threading.Barrier(2), threading.Event()

    def stay() -> None:
        with full_float32():
            inside.wait(WAIT_S)
            leave.wait(WAIT_S)

    thread = threading.Thread(target=stay)
    with full_float32():
        thread.start()
        inside.wait(WAIT_S)
    assert precision() == "ieee"
    leave.set()
    thread.join()
    assert precision() == OUTSIDE


def test_torchs_older_settings_say_the_same_and_can_be_read() -> None:
    """transformers' CTC loss, for one, reads and sets them, in any thread."""
    cudnn = torch.backends.cudnn
    with full_float32():
        assert cudnn.allow_tf32 is False
        with cudnn.flags(enabled=True):
            pass
        assert cudnn.allow_tf32 is False
    assert cudnn.allow_tf32 is True
    assert str(cudnn.rnn.fp32_precision) == OUTSIDE
