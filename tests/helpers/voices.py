"""Voices of untrained models, for tests that are not about what is said."""

from helpers.example import CODEC, ENGLISH, load_script
from sheen.codec.info import describe_codec
from sheen.codec.snac import Codec
from sheen.engine.voice import Voice
from sheen.lm.checkpoint import CheckpointInfo, DurationModel, LayoutInfo
from sheen.lm.model import SpeechLM, extend


def make_voice(
    codec: Codec, durations: dict[str, DurationModel], voices: list[str] | None = None
) -> Voice:
    """It speaks noise, and hardly ever ends by itself: requests meet their budgets."""
    make_base = load_script(ENGLISH / "make_base.py")
    tokenizer = make_base.build_tokenizer()
    lm = make_base.build_model(tokenizer, 64, 1, seed=0)
    model: SpeechLM = extend(lm, tokenizer, 4096, (4, 2, 1), seed=0)
    model.lm.eval().requires_grad_(False)
    layout = model.layout
    info = CheckpointInfo(
        layout=LayoutInfo.of(layout),
        codec=describe_codec(str(CODEC)),
        sample_rate=24_000,
        voices=voices or [],
        duration_model=durations,
        max_seq_len=model.max_positions,
    )
    return Voice(info, model, tokenizer, codec)
