"""Which codecs can stand for one another: those whose decoders alone differ."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from helpers.tiny_codec import TINY, tiny
from sheen.codec.identity import checked_codec, makes_same_codes
from sheen.codec.info import CodecInfo, describe_codec
from sheen.codec.training import CodecFiles


def varied(folder: Path, parts: Iterable[str] = ()) -> tuple[CodecInfo, str]:
    """A codec of which one weight of each of these parts is another."""
    model = tiny()
    with torch.no_grad():
        for part in parts:
            list(model.get_submodule(part).parameters())[-1].view(-1)[-1] += 1e-3
    CodecFiles(TINY, torch.float32).write(folder, model.state_dict())
    return describe_codec(str(folder)), str(folder)


@pytest.fixture
def own(tmp_path: Path) -> tuple[CodecInfo, str]:
    return varied(tmp_path / "own")


def test_a_codec_with_another_decoder_stands_for_a_checkpoints(
    own: tuple[CodecInfo, str], tmp_path: Path
) -> None:
    other, at = varied(tmp_path / "other", ["decoder"])
    assert own[0].sha256 != other.sha256
    assert makes_same_codes(*own, other, at)
    assert checked_codec(*own, None) == own[1]
    assert checked_codec(*own, other) == at


@pytest.mark.parametrize(
    "part",
    ["encoder", *(f"quantizer.quantizers.{level}" for level in range(3))],
)
def test_a_codec_with_any_other_weight_does_not_stand_for_a_checkpoints(
    own: tuple[CodecInfo, str], tmp_path: Path, part: str
) -> None:
    other, at = varied(tmp_path / "other", [part, "decoder"])
    assert not makes_same_codes(*own, other, at)
    with pytest.raises(ValueError, match="give that codec, or one that differs in the decoder"):
        checked_codec(*own, other)


def test_a_codec_whose_files_are_not_those_of_its_record_stands_for_none(
    own: tuple[CodecInfo, str], tmp_path: Path
) -> None:
    other, at = varied(tmp_path / "other", ["decoder"])
    record = own[0].model_copy(update={"sha256": "0" * 64})
    assert not makes_same_codes(record, own[1], other, at)
    with pytest.raises(ValueError, match=r"has weights .*but the checkpoint was trained"):
        checked_codec(record, own[1], None)
