"""Speaker identification: profiles of enrolled speakers, and the nearest of them to a clip.

Owns the embedding (a long-term spectrum, so that no model is downloaded), the profiles, and which
recordings they are made of. Closed-set: it names one of the enrolled speakers, never "none of
them". It tells a few speakers of one recording chain apart and is no measure of similarity.

Shapes: n samples, D dimensions of an embedding, K speakers.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample

from sheen.audio.io import decode_audio
from sheen.audio.spectral import REPORT_BANDS, hz_to_mel, log_mel_db
from sheen.data.corpus import plain_rows
from sheen.storage import files, uris

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

ALL = "all"
"""In reports by voice the key of all clips together; no voice may have this name."""

MIN_RECORDINGS = 5
"""The fewest recordings that make a profile."""

PROFILE_RECORDINGS = 40
"""Recordings of each voice that its profile is made of, spread evenly over its list."""

MIN_SECONDS = 0.4
"""The shortest clip in which a voice is looked for."""

_RATE = 16_000
# Up to 4 kHz: what lies above depends on the recording chain.
_BANDS = int((REPORT_BANDS + 1) * hz_to_mel(4000.0) / hz_to_mel(_RATE / 2))
_SILENCE = 1e-4  # peak of full scale: -80 dB, three steps of 16-bit PCM
_SOUNDING_DB = 30.0  # quieter than the loudest frame by more than this: a pause
_FLOOR_DB = 50.0  # what lies deeper below the loudest band is a chain's noise, not the voice
_MIN_SOUNDING_FRAMES = 10  # of 16 ms
_STEP_DB = 1.0  # differences below this count for little


@dataclass(frozen=True, eq=False)
class SpeakerProfiles:
    """Enrolled speakers: a Gaussian each, of its own mean and one covariance for all.

    `means` is `[K, D]`; `precision` `[D, D]`, the inverse of the covariance.
    """

    voices: tuple[str, ...]
    means: Floats
    precision: Floats

    @classmethod
    def fit(cls, recordings: Mapping[str, Sequence[NDArray[np.float32]]], sample_rate: int) -> Self:
        """Profiles from voice -> its recordings (`[n]` each); deterministic.

        ValueError for fewer than two voices, fewer than MIN_RECORDINGS of one, or a recording
        without a voice.
        """
        if len(recordings) < 2:
            raise ValueError(f"profiles need two voices at least, got {list(recordings)}")
        means, residuals = [], []
        for voice, clips in recordings.items():
            if len(clips) < MIN_RECORDINGS:
                raise ValueError(
                    f"voice {voice!r} has {len(clips)} recordings, a profile needs "
                    f"{MIN_RECORDINGS} at least"
                )
            points = []
            for index, clip in enumerate(clips):
                try:
                    points.append(_embed(clip, sample_rate))
                except ValueError as error:
                    raise ValueError(f"voice {voice!r}, recording {index}: {error}") from error
            means.append(np.mean(points, axis=0))
            residuals.append(np.stack(points) - means[-1])
        rest = np.concatenate(residuals)
        covariance = rest.T @ rest / (len(rest) - len(means))
        # The added variance makes any covariance invertible, and keeps few recordings from
        # pretending to a precision that nothing supports.
        precision = np.linalg.inv(covariance + _STEP_DB**2 * np.eye(len(covariance)))
        return cls(tuple(recordings), np.stack(means), np.asarray(precision, np.float64))

    def identify(self, waveform: NDArray[np.float32], sample_rate: int) -> str:
        """The enrolled speaker nearest to a clip `[n]`; ValueError for one without a voice."""
        apart = self.means - _embed(waveform, sample_rate)
        distances = np.einsum("kd,de,ke->k", apart, self.precision, apart)
        return self.voices[int(np.argmin(distances))]


def _embed(waveform: NDArray[np.float32], sample_rate: int) -> Floats:
    """Mean level `[D]` in dB of the mel bands below 4 kHz over the frames that sound, less its
    mean over the bands, so that the clip's level drops out."""
    mel = log_mel_db(_prepare(waveform, sample_rate), _RATE)[:_BANDS]
    level = mel.max(axis=0)
    sounding = level > level.max() - _SOUNDING_DB
    if sounding.sum() < _MIN_SOUNDING_FRAMES:
        raise ValueError(
            f"the clip is too short: only {sounding.sum()} of its {len(level)} frames of 16 ms "
            f"sound, a voice needs {_MIN_SOUNDING_FRAMES} at least"
        )
    levels = np.maximum(mel[:, sounding], mel.max() - _FLOOR_DB).mean(axis=1, dtype=np.float64)
    return np.asarray(levels - levels.mean())


def _prepare(waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """A clip `[n]` at `_RATE` Hz. ValueError when it is empty, broken, too short or silent."""
    if waveform.ndim != 1:
        raise ValueError(f"the clip has shape {waveform.shape}, expected [n]: one channel")
    if len(waveform) == 0:
        raise ValueError("the clip is empty: it holds 0 samples")
    if not np.isfinite(waveform).all():
        raise ValueError("the clip holds samples that are no numbers (NaN or infinite)")
    seconds = len(waveform) / sample_rate
    if seconds < MIN_SECONDS:
        raise ValueError(
            f"the clip is too short: {seconds:.2f} s, a voice needs {MIN_SECONDS} s at least"
        )
    peak = float(np.abs(waveform).max())
    if peak < _SILENCE:
        raise ValueError(f"the clip is silent: its peak is {peak:.1e} of full scale")
    clip = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))
    resampled: NDArray[np.float32] = resample(clip, sample_rate, _RATE).numpy()
    return resampled


def enroll_speakers(location: str, sample_rate: int) -> SpeakerProfiles:
    """Profiles of the voices of an LJSpeech folder or a .jsonl manifest with speakers.

    Rows that cannot be used, and rows without a speaker, are counted in the log. Raises ValueError
    for a manifest that cannot be read, for audio that cannot be decoded, and for a voice with too
    few recordings.
    """
    by_voice: dict[str, list[dict[str, Any]]] = {}
    skipped: Counter[str] = Counter()
    for row in plain_rows(uris.absolute(location)):
        if not row["speaker"]:
            skipped["no speaker"] += 1
            continue
        usable = by_voice.setdefault(row["speaker"], [])
        if row["reason"] is not None:
            skipped[row["reason"]] += 1
        else:
            usable.append(row)
    for reason, count in skipped.items():
        logger.warning("%s: %d recordings skipped for enrollment: %s", location, count, reason)
    recordings: dict[str, list[NDArray[np.float32]]] = {}
    for voice, rows in by_voice.items():
        count = min(PROFILE_RECORDINGS, len(rows))
        chosen = [rows[place * len(rows) // count] for place in range(count)]
        recordings[voice] = [_read(row["audio"], sample_rate) for row in chosen]
    return SpeakerProfiles.fit(recordings, sample_rate)


def _read(path: str, sample_rate: int) -> NDArray[np.float32]:
    try:
        return decode_audio(files.read_bytes(path), sample_rate)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
