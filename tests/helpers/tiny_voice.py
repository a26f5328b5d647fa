"""A checkpoint that no training made: the example's codec, and a model with random weights.

It speaks noise of any length, and is what the tests use wherever training is not what they test.
Its texts take little time: 0.7 s have room for a chunk of 22 characters.
"""

import shutil
from pathlib import Path

from helpers.example import CODEC, VOICES
from sheen.codec.info import CODEC_FOLDER, describe_codec
from sheen.lm.checkpoint import CheckpointInfo, DurationModel, LayoutInfo, write_info
from sheen.lm.model import extend
from sheen.lm.model_files import load_base, save_model


def save_checkpoint(folder: Path, base: Path) -> None:
    """Make `folder` a checkpoint of `base` with the codec's tokens, as training would leave it."""
    codec = describe_codec(str(CODEC))
    lm, tokenizer = load_base(str(base))
    model = extend(lm, tokenizer, codec.codebook_size, codec.strides, seed=0)
    folder.mkdir(parents=True)
    save_model(model, tokenizer, folder)
    info = CheckpointInfo(
        layout=LayoutInfo.of(model.layout),
        codec=codec,
        sample_rate=codec.sample_rate,
        voices=sorted(VOICES),
        duration_model={
            voice: DurationModel(base_frames=1.0, frames_per_char=0.2) for voice in VOICES
        },
        max_seq_len=model.max_positions,
    )
    write_info(folder, info)
    shutil.copytree(CODEC, folder / CODEC_FOLDER)
