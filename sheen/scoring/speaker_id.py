"""Speaker identification and similarity of clips, compared with enrolled speakers.

Owns the embedding, the speaker profiles, the scale of similarity, and the choice of recordings for
the profiles. The embedding is GE2E (Wan et al. 2018) with the weights of package resemblyzer: an
LSTM over 1.6 s of mel spectrogram. Closed-set: it always names one of the enrolled speakers.

Shapes: n samples, D dimensions of an embedding, K speakers.
"""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from sheen.audio.effects import trim
from sheen.audio.io import decode_audio
from sheen.data.corpus import plain_rows
from sheen.scoring.packaged import FAR_BELOW_DB, RATE, package_file, prepare_clip
from sheen.storage import files, uris
from sheen.text.prompt import normalize

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

ALL = "all"
"""Key for all clips together in reports by voice; no voice may have this name."""

MIN_RECORDINGS = 5
"""Fewest recordings for a profile."""

PROFILE_RECORDINGS = 20
"""Most recordings per voice for its profile, spread evenly over its list."""

_LEAST_SCALE = 0.04  # of cosines: two halves of one speaker's recordings differ by up to 0.03

_HOP = 160
_WINDOW, _STEP = 160, 77  # frames of a window of the LSTM, and between windows: 1.3 a second
_LEAST_SHARE = 0.75  # a last window with less of the clip is skipped
_LEVEL = 10 ** (-30 / 20)  # RMS of full scale; the network's input is magnitudes, not logarithms


class SpeakerEncoder(nn.Module):
    """The network, on the CPU. Raises ValueError when the package is not installed."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        weights = package_file("resemblyzer", "pretrained.pt")
        state = torch.load(weights, map_location="cpu", weights_only=True)["model_state"]
        # The file also has two parameters of the training loss.
        self.load_state_dict({name: state[name] for name in self.state_dict()})
        self.mel = MelSpectrogram(
            RATE, 400, hop_length=_HOP, n_mels=40, norm="slaney", mel_scale="slaney",
            pad_mode="constant",
        )  # fmt: skip

    def forward(self, mels: Tensor) -> Tensor:
        """Mel power spectrograms `[B, frames, 40]` -> embeddings `[B, D]` of length 1."""
        _, (hidden, _) = self.lstm(mels)
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])))

    def embed(self, waveform: NDArray[np.float32], sample_rate: int) -> Floats:
        """The embedding `[D]`, of length 1, of a clip `[n]`: the mean over its windows.

        As Resemblyzer's `embed_utterance`, but always at one level and without silence at the ends,
        where that package raises soft clips alone and has a speech detector. Raises UnscorableError
        for a clip that is empty, too short or silent.
        """
        return self.embed_windows([self.windows(waveform, sample_rate)])[0]

    @torch.inference_mode()
    def windows(self, waveform: NDArray[np.float32], sample_rate: int) -> Tensor:
        """What the network takes of a clip `[n]`: windows of its mel spectrogram, `[B, frames,
        40]`. Raises as `embed` does."""
        clip = prepare_clip(waveform, sample_rate)
        clip = trim(clip, RATE, 20 * math.log10(np.abs(clip).max()) - FAR_BELOW_DB)
        clip = clip * np.float32(_LEVEL / np.sqrt(np.mean(clip**2)))
        starts = list(range(0, max(1, len(clip) // _HOP + 2 - _WINDOW + _STEP), _STEP))
        if len(starts) > 1 and len(clip) < _HOP * (starts[-1] + _LEAST_SHARE * _WINDOW):
            starts.pop()
        mel = self.mel(torch.from_numpy(np.pad(clip, (0, _HOP * _WINDOW)))).T
        return torch.stack([mel[start : start + _WINDOW] for start in starts])

    @torch.inference_mode()
    def embed_windows(self, clips: Sequence[Tensor]) -> list[Floats]:
        """The embedding of each clip, given as its `windows`: all in one pass, which takes little
        longer for several."""
        if not clips:
            return []
        points = self(torch.cat(list(clips))).double().split([len(clip) for clip in clips])
        return [_unit(windows.mean(dim=0).numpy()) for windows in points]


@dataclass(frozen=True, eq=False)
class SpeakerProfiles:
    """Enrolled speakers: the centroid of each one's recordings, and the scale of similarity.

    `centroids` is `[K, D]`, of length 1. `own` and `nearest`, both `[K]`, are mean cosines with a
    speaker's centroid: those of its own recordings, each compared with the centroid of the others,
    and those of the nearest other speaker's recordings. `digest` is a hash of the recordings.
    """

    voices: tuple[str, ...]
    centroids: Floats
    own: Floats
    nearest: Floats
    digest: str

    @classmethod
    def fit(cls, recordings: Mapping[str, Sequence[NDArray[np.float32]]], sample_rate: int) -> Self:
        """Profiles from voice -> its recordings (`[n]` each); deterministic.

        ValueError for fewer than two voices, fewer than MIN_RECORDINGS of one, a recording without
        a voice, or a voice that another one's recordings resemble as much as its own.
        """
        if len(recordings) < 2:
            raise ValueError(f"profiles need at least two voices, got {list(recordings)}")
        encoder, digest = SpeakerEncoder(), hashlib.sha256()
        embeddings: list[Floats] = []  # of each voice `[recordings, D]`
        for voice, clips in recordings.items():
            if len(clips) < MIN_RECORDINGS:
                raise ValueError(
                    f"voice {voice!r} has {len(clips)} recordings, a profile needs at least "
                    f"{MIN_RECORDINGS}"
                )
            points = []
            for index, clip in enumerate(clips):
                digest.update(f"{voice} {sample_rate} {len(clip)}\n".encode() + clip.tobytes())
                try:
                    points.append(encoder.embed(clip, sample_rate))
                except ValueError as error:
                    raise ValueError(f"voice {voice!r}, recording {index}: {error}") from error
            embeddings.append(np.stack(points))
        voices = tuple(recordings)
        centroids = np.stack([_unit(points.sum(axis=0)) for points in embeddings])
        own = [
            np.mean([point @ _unit(points.sum(axis=0) - point) for point in points])
            for points in embeddings
        ]
        # Row: whose recordings; column: whose centroid.
        cosines = np.stack([(points @ centroids.T).mean(axis=0) for points in embeddings])
        np.fill_diagonal(cosines, -np.inf)
        nearest = cosines.max(axis=0)
        for voice, inside, outside, other in zip(
            voices, own, nearest, cosines.argmax(axis=0), strict=True
        ):
            if inside - outside < _LEAST_SCALE:
                raise ValueError(
                    f"voice {voice!r}: recordings of {voices[other]!r} are as similar to it as its "
                    "own, so that there is no scale of similarity; omit one of the two"
                )
        return cls(voices, centroids, np.array(own), nearest, digest.hexdigest())

    def identify(self, embedding: Floats) -> str:
        """The speaker whose centroid is nearest to an embedding `[D]`."""
        return self.voices[int(np.argmax(self.centroids @ embedding))]

    def similarity(self, embedding: Floats, voice: str) -> float:
        """Similarity of a clip's embedding `[D]` to an enrolled voice.

        1 is the mean of the voice's own recordings and 0 that of the nearest other voice's, so that
        single clips may be above 1 or below 0.
        """
        place = self.voices.index(voice)
        cosine = self.centroids[place] @ embedding
        scale = self.own[place] - self.nearest[place]
        return float((cosine - self.nearest[place]) / scale)


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / np.linalg.norm(vector))


def enroll_speakers(location: str, sample_rate: int) -> SpeakerProfiles:
    """Profiles of the voices of an LJSpeech folder or a .jsonl manifest with speakers.

    See `read_speakers`. Raises ValueError also for a voice with too few recordings.
    """
    return SpeakerProfiles.fit(read_speakers(location, sample_rate), sample_rate)


def read_speakers(
    location: str, sample_rate: int, needs_text: bool = True
) -> dict[str, list[NDArray[np.float32]]]:
    """Up to PROFILE_RECORDINGS recordings of each voice of an LJSpeech folder or a manifest.

    Rows that cannot be used, and rows without a speaker, are counted in the log. Raises ValueError
    for a manifest that cannot be read, and for audio that cannot be decoded.
    """
    usable = (None,) if needs_text else (None, "no text")
    by_voice: dict[str, list[dict[str, Any]]] = {}
    skipped: Counter[str] = Counter()
    for row in plain_rows(uris.absolute(location)):
        speaker = normalize(row["speaker"] or "")  # as in prompts
        if not speaker:
            skipped["no speaker"] += 1
            continue
        rows = by_voice.setdefault(speaker, [])
        if row["reason"] in usable:
            rows.append(row)
        else:
            skipped[row["reason"]] += 1
    for reason, count in skipped.items():
        logger.warning("%s: %d recordings skipped for enrollment: %s", location, count, reason)
    recordings: dict[str, list[NDArray[np.float32]]] = {}
    for voice, rows in by_voice.items():
        count = min(PROFILE_RECORDINGS, len(rows))
        chosen = [rows[place * len(rows) // count] for place in range(count)]
        recordings[voice] = [_read(row["audio"], sample_rate) for row in chosen]
    return recordings


def _read(path: str, sample_rate: int) -> NDArray[np.float32]:
    try:
        return decode_audio(files.read_bytes(path), sample_rate)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
