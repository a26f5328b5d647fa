"""A speech model in bfloat16, as a GPU serves it: which numbers are rounded, and which are not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import sheen
from helpers.small_models import small_model
from sheen.codec.snac import load_codec
from sheen.engine import voice as voice_module
from sheen.engine.voice import Voice, load_voice
from sheen.lm.model import SpeechLM, float32_logits
from sheen.lm.precision import Precision, dtype_of

ON_A_GPU: list[tuple[str | torch.device, Precision]] = [
    (torch.device("cuda", 0), "auto"),
    ("cuda", "float32"),
]
FAR = 3000
"""A position: at it bfloat16's 8 bits of a frequency are radians of an angle."""


@pytest.fixture(scope="module")
def halved(checkpoint: Path) -> Voice:
    return load_voice(str(checkpoint), dtype="bfloat16")


def test_the_default_is_bfloat16_on_a_gpu_and_float32_on_a_cpu(voice: Voice) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert dtype_of("auto", cuda) == dtype_of("bfloat16", cpu) == torch.bfloat16
    assert dtype_of("auto", cpu) == dtype_of("float32", cuda) == torch.float32
    assert {part.dtype for part in voice.model.parameters()} == {torch.float32}


def test_a_voice_in_bfloat16_has_all_weights_in_it_and_its_codec_in_float32(halved: Voice) -> None:
    assert {part.dtype for part in halved.model.parameters()} == {torch.bfloat16}
    assert {part.dtype for part in halved.codec.model.parameters()} == {torch.float32}
    assert halved.dtype == "bfloat16"


def test_on_a_gpu_a_voice_is_loaded_in_bfloat16(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are read into it. They stay on the CPU, because no GPU is here."""
    monkeypatch.setattr(SpeechLM, "to", lambda model, device: model)
    monkeypatch.setattr(voice_module, "load_codec", lambda source, device: load_codec(source))
    asked: list[torch.dtype] = []
    read = AutoModelForCausalLM.from_pretrained

    def watched(source: str, dtype: torch.dtype, **others: Any) -> Any:
        asked.append(dtype)
        return read(source, dtype=dtype, **others)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    loaded = [load_voice(str(checkpoint), device, dtype).dtype for device, dtype in ON_A_GPU]
    assert asked == [torch.bfloat16, torch.float32]
    assert loaded == ["bfloat16", "float32"]


def test_far_positions_are_rotated_by_float32_angles(voice: Voice, halved: Voice) -> None:
    at = torch.tensor([[FAR]])
    exact, found = (
        model.lm.base_model.rotary_emb(torch.zeros(1, dtype=torch.float32), at)
        for model in (voice.model, halved.model)
    )
    assert halved.model.lm.base_model.rotary_emb.inv_freq.dtype == torch.float32
    for expected, angles in zip(exact, found, strict=True):
        assert torch.equal(expected, angles)


@pytest.mark.parametrize("frozen", [False, True])
def test_logits_of_bfloat16_states_are_not_rounded(frozen: bool) -> None:
    model = small_model("qwen3")
    model.lm.bfloat16()
    if frozen:
        model.freeze()
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits = model.head_product(range(100, 117))(states)
    exact = states.double() @ model.head[100:117].double().T
    torch.testing.assert_close(logits.double(), exact, rtol=1e-6, atol=1e-6)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, float32_logits(states, model.head[100:117]))
    assert not torch.equal(logits, logits.bfloat16().float())


def test_a_speaker_has_the_dtype_that_it_is_given(checkpoint: Path) -> None:
    with sheen.load(str(checkpoint), dtype="bfloat16", max_seconds=0.2) as speaker:
        assert speaker._voice.dtype == "bfloat16"
        assert len(speaker.synthesize("one", speaker.voices[0]).samples)
    with pytest.raises(ValueError, match="dtype 'half': expected one of auto"):
        sheen.load(str(checkpoint), dtype="half")  # type: ignore[arg-type]
