"""Codec measurements with an ASR that is told what to hear."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from helpers.example import RATE, VOICE
from sheen.codec.layout import Codes
from sheen.scoring.codec import CodecReport, Recording, Waveform, measure_codec

CODED = (VOICE, "bf_alice")
"""Voices of the example, in the order of their measured recordings."""
Measured = tuple[CodecReport, list[Waveform]]


class PcmCodec:
    """The perfect codec: its codes are the samples, of 15 bits."""

    sample_rate = RATE
    codebook_size = 1 << 15
    strides = (1,)
    frame_samples = 1

    def encode(self, waveforms: Sequence[torch.Tensor]) -> list[Codes]:
        return [[np.rint(wave.numpy() * 16384 + 16384).astype(np.int16)] for wave in waveforms]

    def decode(self, codes: Codes, seeds: Sequence[int]) -> torch.Tensor:
        return (torch.from_numpy(codes[0]).float() - 16384) / 16384


class Told:
    """Hears the given texts: those of recordings, then of reconstructions, then of the control."""

    name = "told"

    def __init__(self, *texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.clips: list[list[Waveform]] = []

    def transcribe(self, waveforms: Sequence[Waveform], sample_rate: int) -> list[str]:
        assert sample_rate == RATE
        self.clips.append(list(waveforms))
        return list(self.texts[len(self.clips) - 1])


def noisy(name: str, text: str | None = None, voice: str | None = None, n: int = 2400) -> Recording:
    """Sound without a meaning, of samples that PcmCodec has codes for."""
    draws = np.random.default_rng(list(name.encode())).uniform(-0.5, 0.5, n)
    return Recording(name, (np.rint(draws * 16384) / 16384).astype(np.float32), text, voice)


def measure(
    recordings: Sequence[Recording], asr: Told | None = None, **arguments: Any
) -> CodecReport:
    pcm: Any = PcmCodec()
    return measure_codec(pcm, "pcm", recordings, asr=asr, **arguments)[0]
