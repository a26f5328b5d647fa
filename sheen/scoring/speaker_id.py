"""Speaker identification: profiles of enrolled speakers, and the nearest of them to a clip.

Owns which recordings a profile is made of, the profiles, and the distance to them. Closed-set: it
names one of the enrolled speakers, never "none of them". Knows nothing about words; embeddings are
`sheen.scoring.voice_features`'.

Shapes: n samples, D dimensions of an embedding, K speakers.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from sheen.audio.io import decode_audio
from sheen.data.corpus import plain_rows
from sheen.scoring.voice_features import Floats, Metric, SpectralVoice, disturbed
from sheen.storage import files, uris

ALL = "all"
"""In reports by voice the key of all clips together; no voice may have this name."""

MIN_RECORDINGS = 5
"""The fewest recordings that make a profile."""

_FOLDS = 5
_USUAL_PERCENT = 95.0
_DISTURBED_PER_VOICE = 12
_NAMING_STEP = 0.3  # dB of a band, octaves of pitch: see SpeakerProfiles
_OWN_STEP = 1.0


class VoiceJudge(Protocol):
    """What turns a clip into a point, so that clips of one voice lie close together."""

    name: str
    """Identity of the measure: points of two judges with different names do not compare."""
    metric: Metric
    """How points compare. `distance`: Mahalanobis, for points whose steps are described in
    `SpeakerProfiles`; `cosine`: by their direction alone."""

    def embed(self, waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        """The point `[D]` of a clip `[n]`; ValueError for a clip without a voice to look at."""


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
    """What `SpeakerProfiles.save` writes."""

    format: Literal["sheen voice profiles 1"] = "sheen voice profiles 1"
    judge: str
    metric: Metric
    voices: list[str]
    centres: list[list[float]]
    naming: list[list[float]] | None
    own: list[list[float]] | None
    limit: float


@dataclass(frozen=True, eq=False)
class SpeakerProfiles:
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
                        for changed in disturbed(clip, sample_rate, seed=index):
                            changes.append(judge.embed(changed, sample_rate) - point)
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


logger = logging.getLogger(__name__)

PROFILE_RECORDINGS = 40
"""Recordings of each voice that its profile is made of, spread evenly over its list."""


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
        logger.warning("%s: %d recordings not used for voices: %s", location, count, reason)
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
