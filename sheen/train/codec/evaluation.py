"""How the codec sounds on the held-out recordings: mel distance, code usage, audio samples.

Owns nothing of training: it is given a codec and gives back sums, so that ranks can share the
recordings and add up.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sheen.core import files
from sheen.core.audio import encode_audio
from sheen.core.codec import Codec
from sheen.core.spectral import mel_distance

SAMPLES_FOLDER = "samples"


class HeldOut:
    """Sums over recordings: mel distances `[2]` with their count, uses of each code `[L, size]`."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.distances = torch.zeros(2, dtype=torch.float64)
        self.uses = torch.zeros(len(codec.strides), codec.codebook_size, dtype=torch.float64)

    def hear(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """Count one recording `[n]`; returns its reconstruction `[n]`."""
        codec = self._codec
        codes = codec.encode([torch.from_numpy(waveform)])[0]
        decoded = codec.decode([level[None] for level in codes])[0, : len(waveform)].numpy()
        distance = mel_distance(decoded, waveform, codec.sample_rate)
        self.distances += torch.tensor([distance, 1.0])
        for uses, found in zip(self.uses, codes, strict=True):
            uses += torch.bincount(
                torch.from_numpy(found.astype(np.int64)), minlength=codec.codebook_size
            )
        return decoded


def metrics_of(distances: Tensor, uses: Tensor) -> dict[str, float]:
    """Mean mel distance in dB, and per level the perplexity of the codes used."""
    metrics = {"eval_mel_distance_db": round(float(distances[0] / distances[1]), 4)}
    for level, used in enumerate(uses):
        shares = used / used.sum()
        entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
        metrics[f"eval_perplexity_level_{level}"] = round(float(entropy.exp()), 1)
    return metrics


def write_sample(
    output: str,
    folder: str,
    name: str,
    waveform: NDArray[np.float32],
    decoded: NDArray[np.float32],
    sample_rate: int,
) -> None:
    """A recording and its reconstruction as WAV, under `recordings` and under `folder`."""
    pairs: Iterable[tuple[str, NDArray[np.float32]]] = (
        ("recordings", waveform),
        (folder, decoded),
    )
    for kind, samples in pairs:
        target = files.join(output, SAMPLES_FOLDER, kind, f"{name}.wav")
        files.write_bytes(target, encode_audio(samples, sample_rate, "WAV"))
