"""Which voice is heard: profiles of known voices, and an offline measure to compare clips with.

Owns what counts as a voice's likeness when nothing can be downloaded (`SpectralVoice`), and the
naming of the nearest of the known voices (`VoiceProfiles`), with any judge. Knows nothing about
words, and never says "none of them": it names one of the voices it has, and says beside it how far
the clip is from what that voice's own recordings are like.

Shapes: n samples, D dimensions of an embedding, K voices.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol, Self

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from torchaudio.functional import resample

from sheen.core import files

Floats = NDArray[np.float64]
Metric = Literal["distance", "cosine"]

MIN_SECONDS = 0.4
"""The shortest clip in which a voice is looked for; the x-vector models need 0.33 s."""
MIN_RECORDINGS = 5
"""The fewest recordings that make a profile."""

_SILENCE = 1e-4  # peak of full scale: -80 dB, three steps of 16-bit PCM
_MIN_SOUNDING_FRAMES = 10

_RATE = 16_000
_HOP = 160  # 10 ms
_WINDOW = 512  # 32 ms
_BANDS = 32
# Below 100 Hz is the hum of rooms. Recordings at 16 kHz fade out somewhere above 7 kHz, each chain
# in its own way, and what lies higher is missing from them altogether.
_LOWEST_HZ, _HIGHEST_HZ = 100.0, 7000.0
_SOUNDING_DB = 30.0  # quieter than the loudest frame by more than this: a pause
_FLOOR_DB = 50.0  # what lies deeper below the loudest band is a chain's noise, not the voice

_PITCH_WINDOW = 1024  # 64 ms: four periods of the lowest pitch
_PITCH_HOP = 320
_PITCH_HZ = (60, 400)

_FOLDS = 5
_USUAL_PERCENT = 95.0
_DISTURBED_PER_VOICE = 12
_DISTURBED_SECONDS = 0.6
_NAMING_STEP = 0.3  # dB of a band, octaves of pitch: see VoiceProfiles
_OWN_STEP = 1.0


class VoiceJudge(Protocol):
    """What turns a clip into a point, so that clips of one voice lie close together."""

    name: str
    """Identity of the measure: points of two judges with different names do not compare."""
    metric: Metric
    """How points compare. `distance`: Mahalanobis, for points whose steps are described in
    `VoiceProfiles`; `cosine`: by their direction alone."""

    def embed(self, waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        """The point `[D]` of a clip `[n]`; ValueError for a clip without a voice to look at."""


def prepare(waveform: NDArray[np.float32], sample_rate: int, target: int) -> NDArray[np.float32]:
    """A clip `[n]` at `target` Hz. ValueError when it is empty, broken, too short or silent."""
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
    clip = np.ascontiguousarray(waveform, np.float32)
    if sample_rate != target:
        clip = resample(torch.from_numpy(clip), sample_rate, target).numpy()
    return clip


class SpectralVoice:
    """The offline measure: the long-term spectrum of a clip's sounding frames, and its pitch.

    An embedding is `[33]`: the mean level of 32 mel bands from 100 to 7,000 Hz in dB, less the
    mean over the bands, so that the clip's level drops out; then the median pitch in octaves.
    Pauses do not count: they are the frames 30 dB under the loudest. Clips of 0.6 s and more are
    what it was measured with.
    """

    name = "spectral-1"
    metric: Metric = "distance"

    def embed(self, waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        """The point `[33]` of a clip; see VoiceJudge."""
        clip = prepare(waveform, sample_rate, _RATE).astype(np.float64)
        frames = sliding_window_view(clip, _WINDOW)[::_HOP]
        power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW + 1)[:-1], axis=1)) ** 2
        bands = power @ _mel_bands().T
        energy = bands.sum(axis=1)
        sounding = energy > energy.max() * 10 ** (-_SOUNDING_DB / 10)
        if sounding.sum() < _MIN_SOUNDING_FRAMES:
            raise ValueError(
                f"the clip is too short: of its {len(clip) / _RATE:.2f} s only "
                f"{sounding.sum() * _HOP / _RATE:.2f} s sound, a voice needs "
                f"{_MIN_SOUNDING_FRAMES * _HOP / _RATE} s at least"
            )
        floor = bands.max() * 10 ** (-_FLOOR_DB / 10)
        levels = 10 * np.log10(np.maximum(bands[sounding], floor)).mean(axis=0)
        return np.append(levels - levels.mean(), _pitch(clip)).astype(np.float32)


@cache
def _mel_bands() -> Floats:
    """Weights `[32, bins]` of triangular bands, each summing to 1."""
    low, high = 2595 * np.log10(1 + np.array([_LOWEST_HZ, _HIGHEST_HZ]) / 700)
    edges = 700 * (10 ** (np.linspace(low, high, _BANDS + 2) / 2595) - 1)
    hertz = np.fft.rfftfreq(_WINDOW, 1 / _RATE)
    width = np.diff(edges)[:, None]
    rising = (hertz - edges[:-2, None]) / width[:-1]
    falling = (edges[2:, None] - hertz) / width[1:]
    weights = np.maximum(0.0, np.minimum(rising, falling))
    return weights / weights.sum(axis=1, keepdims=True)


def _pitch(clip: Floats) -> float:
    """Median pitch in octaves over 1 Hz, by autocorrelation.

    The median is over the most periodic quarter of the sounding frames and not over those beyond
    a threshold, so that a hoarse or noisy clip has one too.
    """
    frames = sliding_window_view(clip, _PITCH_WINDOW)[::_PITCH_HOP]
    energy = (frames**2).sum(axis=1)
    frames = frames[energy > energy.max() * 10 ** (-_SOUNDING_DB / 10)]
    window = np.hanning(_PITCH_WINDOW)
    taper = _autocorrelation(window[None])[0]
    correlation = _autocorrelation(frames * window) / taper
    correlation /= correlation[:, :1]
    shortest = _RATE // _PITCH_HZ[1]
    likeness = correlation[:, shortest : _RATE // _PITCH_HZ[0] + 1]
    best = likeness.max(axis=1)
    # The first peak that is nearly the highest: two periods correlate as well as one.
    middle = likeness[:, 1:-1]
    peaks = (middle >= likeness[:, :-2]) & (middle >= likeness[:, 2:])
    peaks &= middle > 0.9 * best[:, None]
    lags = np.where(peaks.any(axis=1), peaks.argmax(axis=1) + 1, likeness.argmax(axis=1))
    most = np.argsort(-best, kind="stable")[: max(1, len(best) // 4)]
    return float(np.median(np.log2(_RATE / (lags[most] + shortest))))


def _autocorrelation(frames: Floats) -> Floats:
    power = np.abs(np.fft.rfft(frames, 2 * _PITCH_WINDOW)) ** 2
    return np.fft.irfft(power)[:, :_PITCH_WINDOW]


@dataclass(frozen=True)
class Heard:
    """The voice that a clip is nearest to.

    `scores` has one number per voice, the nearest voice's the highest: minus the distance, or the
    cosine. `margin` is how far the second stays behind. `strangeness` is the clip's distance as a
    multiple of the distance that 95% of the voices' own recordings stay within.
    """

    voice: str
    scores: dict[str, float]
    margin: float
    strangeness: float

    @property
    def unlikely(self) -> bool:
        """Farther from the named voice than 95% of the recordings that the profiles were made of.

        So one in twenty of a voice's own recordings is unlikely as well: over many clips, compare
        the share with 5%. Nearly every clip of a voice that the profiles lack is, and noise is.
        But so are more clips of the named voice itself where they are much shorter or noisier than
        the recordings: a quarter at 0.6 s. It says "not like the recordings", not why.
        """
        return self.strangeness > 1


class _File(BaseModel, extra="forbid"):
    """What `VoiceProfiles.save` writes."""

    format: Literal["sheen voice profiles 1"] = "sheen voice profiles 1"
    judge: str
    metric: Metric
    voices: list[str]
    centres: list[list[float]]
    naming: list[list[float]] | None
    own: list[list[float]] | None
    limit: float


@dataclass(frozen=True, eq=False)
class VoiceProfiles:
    """Known voices, each from its own recordings; see `fit`.

    With a judge of metric `distance`, a voice is a Gaussian: its mean, and one covariance for all
    voices. Two covariances are kept, because two questions are asked:

    - Which of the voices? Here the covariance also holds what a recording chain changes: noise,
      tilt, a narrow band, a cut. `fit` does these to some of the recordings, and directions in
      which that moves a point count for little. Differences under 0.3 (dB of a band, octaves of
      pitch) count for little anyway.
    - Is it like this voice at all? Only the recordings as they are, and differences under 1. The
      wider covariance would take pure noise for any of the voices.

    With metric `cosine`, a voice is the mean direction of its recordings.
    """

    judge: VoiceJudge
    voices: tuple[str, ...]
    centres: Floats
    """`[K, D]`"""
    naming: Floats | None
    """Inverse covariance `[D, D]` for the first question; None with metric `cosine`."""
    own: Floats | None
    """Inverse covariance `[D, D]` for the second."""
    limit: float
    """The distance from its own voice that 95% of the recordings stay within."""

    @classmethod
    def fit(
        cls,
        recordings: Mapping[str, Sequence[NDArray[np.float32]]],
        sample_rate: int,
        judge: VoiceJudge | None = None,
    ) -> Self:
        """Profiles from voice -> its recordings (`[n]` each); `judge` is SpectralVoice by default.

        The same recordings give the same profiles. ValueError for fewer than two voices, fewer
        than MIN_RECORDINGS of one, or a recording that cannot be judged.
        """
        judge = judge or SpectralVoice()
        if len(recordings) < 2:
            raise ValueError(f"profiles need two voices at least, got {list(recordings)}")
        for voice, clips in recordings.items():
            if len(clips) < MIN_RECORDINGS:
                raise ValueError(
                    f"voice {voice!r} has {len(clips)} recordings, a profile needs "
                    f"{MIN_RECORDINGS} at least"
                )
        points: list[Floats] = []
        changes: list[Floats] = []
        for voice, clips in recordings.items():
            own_points = []
            every = -(-len(clips) // _DISTURBED_PER_VOICE)
            for index, clip in enumerate(clips):
                try:
                    point = judge.embed(clip, sample_rate).astype(np.float64)
                    if judge.metric == "distance" and index % every == 0:
                        for disturbed in _disturbed(clip, sample_rate, seed=index):
                            changes.append(judge.embed(disturbed, sample_rate) - point)
                except ValueError as error:
                    raise ValueError(f"voice {voice!r}, recording {index}: {error}") from error
                own_points.append(point)
            points.append(np.stack(own_points))
        voices = tuple(recordings)
        limit = _usual(points, judge.metric)
        centres = _centres(points, judge.metric)
        if judge.metric == "cosine":
            return cls(judge, voices, centres, None, None, limit)
        covariance = _covariance(points, centres)
        moved = np.stack(changes)
        naming = _inverse(covariance + moved.T @ moved / len(moved), _NAMING_STEP)
        return cls(judge, voices, centres, naming, _inverse(covariance, _OWN_STEP), limit)

    def hear(self, waveform: NDArray[np.float32], sample_rate: int) -> Heard:
        """The nearest of the known voices; always one of them. ValueError as `VoiceJudge.embed`."""
        point = self.judge.embed(waveform, sample_rate).astype(np.float64)
        far = _distances(point, self.centres, self.naming)
        nearest, second = np.argsort(far, kind="stable")[:2]
        scores = 1 - far if self.naming is None else -far
        own = far if self.own is None else _distances(point, self.centres, self.own)
        return Heard(
            voice=self.voices[nearest],
            scores={voice: float(score) for voice, score in zip(self.voices, scores, strict=True)},
            margin=float(far[second] - far[nearest]),
            strangeness=float(own[nearest] / self.limit),
        )

    def save(self, location: str) -> None:
        """Write one JSON file to a path or URI; what is loaded from it judges identically."""
        content = _File(
            judge=self.judge.name,
            metric=self.judge.metric,
            voices=list(self.voices),
            centres=self.centres.tolist(),
            naming=None if self.naming is None else self.naming.tolist(),
            own=None if self.own is None else self.own.tolist(),
            limit=self.limit,
        )
        files.write_bytes(location, (json.dumps(content.model_dump()) + "\n").encode())

    @classmethod
    def load(cls, location: str, judge: VoiceJudge | None = None) -> Self:
        """Profiles that `save` wrote, with the judge they were fitted with.

        `judge` is SpectralVoice by default. ValueError when the file is no such file, or was
        fitted with another judge.
        """
        judge = judge or SpectralVoice()
        try:
            content = _File.model_validate(json.loads(files.read_bytes(location)))
        except FileNotFoundError as error:
            raise ValueError(f"voice profiles {location}: no such file") from error
        except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{location} holds no voice profiles ({error})") from error
        if (content.judge, content.metric) != (judge.name, judge.metric):
            raise ValueError(
                f"voice profiles {location} were fitted with {content.judge!r}, and do not "
                f"compare with {judge.name!r}"
            )
        return cls(
            judge,
            tuple(content.voices),
            np.array(content.centres),
            None if content.naming is None else np.array(content.naming),
            None if content.own is None else np.array(content.own),
            content.limit,
        )


def _disturbed(clip: NDArray[np.float32], sample_rate: int, seed: int) -> list[NDArray[np.float32]]:
    """A recording as other chains would have it: noisy, brighter, narrow-band, cut short."""
    noise = np.random.default_rng(seed).normal(size=len(clip))
    noise *= np.sqrt(np.mean(clip.astype(np.float64) ** 2)) * 10 ** (-15 / 20)  # 15 dB under it
    hertz = np.maximum(np.fft.rfftfreq(len(clip), 1 / sample_rate), _LOWEST_HZ / 2)
    spectrum = np.fft.rfft(clip)
    bright = np.fft.irfft(spectrum * 10 ** (3 / 20 * np.log2(hertz / 1000)), len(clip))
    narrow = np.fft.irfft(spectrum / np.sqrt(1 + (hertz / 4000) ** 16), len(clip))
    # Its loudest stretch, because another could be a pause.
    size = min(len(clip), round(_DISTURBED_SECONDS * sample_rate))
    energy = np.cumsum(np.append(0.0, clip.astype(np.float64) ** 2))
    start = int(np.argmax(energy[size:] - energy[:-size]))
    cut = clip[start : start + size]
    return [piece.astype(np.float32) for piece in (clip + noise, bright, narrow, cut)]


def _centres(points: Sequence[Floats], metric: Metric) -> Floats:
    """`[K, D]` from `[n, D]` per voice; of length 1 with metric `cosine`."""
    if metric == "distance":
        return np.stack([own.mean(axis=0) for own in points])
    return np.stack([_unit(_unit(own).mean(axis=0)) for own in points])


def _covariance(points: Sequence[Floats], centres: Floats) -> Floats:
    """Covariance `[D, D]` of the points about their own centres, pooled over the voices."""
    rest = np.concatenate([own - centre for own, centre in zip(points, centres, strict=True)])
    return rest.T @ rest / (len(rest) - len(centres))


def _inverse(covariance: Floats, step: float) -> Floats:
    """The inverse, with a variance of `step`² added in every dimension.

    It keeps few recordings from pretending to a precision that nothing supports, and makes any
    covariance invertible.
    """
    return np.asarray(np.linalg.inv(covariance + step**2 * np.eye(len(covariance))), np.float64)


def _distances(point: Floats, centres: Floats, inverse: Floats | None) -> Floats:
    """`[K]`: in standard deviations per dimension; without a covariance 1 - cosine."""
    if inverse is None:
        return 1 - centres @ _unit(point)
    apart = point - centres
    return np.sqrt(np.einsum("kd,de,ke->k", apart, inverse, apart) / len(point))


def _unit(points: Floats) -> Floats:
    return points / np.sqrt(np.einsum("...d,...d->...", points, points))[..., None]


def _usual(points: Sequence[Floats], metric: Metric) -> float:
    """The distance that 95% of the recordings have at most from their own voice.

    Distances to a centre that the recording itself moved would be too short, so each fifth of the
    recordings is judged by the other four. Not the largest distance: one odd recording would then
    make every stranger likely.
    """
    found: list[float] = []
    for fold in range(_FOLDS):
        kept = [np.delete(own, np.s_[fold::_FOLDS], axis=0) for own in points]
        centres = _centres(kept, metric)
        inverse = None
        if metric == "distance":
            inverse = _inverse(_covariance(kept, centres), _OWN_STEP)
        for index, own in enumerate(points):
            for point in own[fold::_FOLDS]:
                found.append(float(_distances(point, centres, inverse)[index]))
    # Recordings that are all the same have no distance; anything else is then infinitely strange.
    return max(float(np.percentile(found, _USUAL_PERCENT)), 1e-6)
