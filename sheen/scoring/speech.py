"""Quality of synthesized speech: signal measures of a clip, and results by voice with intervals.

Owns the measures and the statistics: level, pauses and clipping of one clip; WER, CER, share ended
with EOS, duration, speech rate, DNSMOS, speaker accuracy and similarity of many. Runs no model: the
caller provides the results of synthesis, ASR and scoring, and a clip without a result is not
counted in its statistics.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sheen.audio.io import PCM16_MAX, to_pcm16
from sheen.scoring.mos import Mos
from sheen.scoring.speaker_id import ALL
from sheen.scoring.wer import ErrorRate, error_rate, rate_of_each, ratio_interval
from sheen.text.prompt import normalize as normalize_text

_FRAME_S = 0.02
_SILENT_DB = 40.0
"""Frames this far below the loudest are silence: speech is within about 30 dB, and a codec's noise
between words is below."""
_LEAST_LEVEL = 1e-4  # RMS of full scale, -80 dB: a clip that is nowhere louder is all silence


@dataclass(frozen=True)
class Sound:
    """Seconds and shares of one clip.

    `speaking` is from the first frame with sound to the end of the last, including pauses; `pause`
    is the longest silence in it. `clipped` is the share of samples at full scale.
    """

    seconds: float
    speaking: float
    pause: float
    clipped: float

    @property
    def silence(self) -> float:
        """The share of the clip before the first sound and after the last; 1 for a silent clip."""
        return 1 - self.speaking / self.seconds if self.seconds else 1.0


def measure_sound(waveform: NDArray[np.float32], sample_rate: int) -> Sound:
    """Measure a clip `[n]`, in -1..1 at `sample_rate` Hz. An empty clip is silent."""
    seconds = len(waveform) / sample_rate
    size = round(_FRAME_S * sample_rate)
    count = -(-len(waveform) // size)
    if not count:
        return Sound(0.0, 0.0, 0.0, 0.0)
    padded = np.zeros(count * size)
    padded[: len(waveform)] = waveform
    levels = np.sqrt((padded.reshape(count, size) ** 2).mean(axis=1))
    threshold = max(_LEAST_LEVEL, levels.max() * 10 ** (-_SILENT_DB / 20))
    sounding = np.flatnonzero(levels >= threshold)
    clipped = float((np.abs(to_pcm16(waveform)) == PCM16_MAX).mean())
    if not len(sounding):
        return Sound(seconds, 0.0, 0.0, clipped)
    end = min(seconds, (sounding[-1] + 1) * size / sample_rate)
    pause = max(0, int(np.diff(sounding, prepend=sounding[0] - 1).max()) - 1)
    return Sound(
        seconds, float(end - sounding[0] * size / sample_rate), pause * size / sample_rate, clipped
    )


_CLIPPED_SHARE = 1e-3
"""Least share of samples at full scale for a clip to count as clipped."""
_Z = 1.959964  # of a 95% interval of the normal distribution


@dataclass(frozen=True)
class SpokenClip:
    """The speech of one prompt.

    `transcript` is None without ASR, and for a text without words. `identified_speaker` is None
    without enrolled speakers, and "" for a clip without a voice. `expected_seconds` is None for a
    voice without a duration model. `dnsmos` and `speaker_similarity` are None if they were not
    requested, or if the clip cannot be scored, for the reason in `unscored`.
    """

    id: str
    voice: str | None
    text: str
    ended_with_eos: bool
    sound: Sound
    expected_seconds: float | None
    transcript: str | None = None
    identified_speaker: str | None = None
    speaker_similarity: float | None = None
    dnsmos: Mos | None = None
    unscored: str | None = None

    @property
    def duration(self) -> float | None:
        """Seconds over the seconds expected."""
        return self.sound.seconds / self.expected_seconds if self.expected_seconds else None


@dataclass(frozen=True)
class Share:
    """`count` of `of` clips, with the 95% interval of Wilson (1927), which is wide for few clips
    even without a failure."""

    rate: float
    low: float
    high: float
    count: int
    of: int


@dataclass(frozen=True)
class Mean:
    """A mean over clips with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class VoiceResult:
    """Results of one voice, or of all; None for measures that were not taken."""

    clips: int
    seconds: float
    wer: ErrorRate | None
    cer: ErrorRate | None
    ended_with_eos: Share
    dnsmos_ovrl: Mean | None
    dnsmos_sig: Mean | None
    dnsmos_bak: Mean | None
    speaker_accuracy: Share | None
    speaker_similarity: Mean | None
    unscored: Share | None
    """Clips that were silent or too short to score; None if no scores were requested."""
    duration: Mean | None
    """Seconds over the seconds expected."""
    characters_per_second: Mean | None
    """Characters of text per second of speech; None for silent clips only."""
    silence: Mean
    """Share of a clip before the first sound and after the last."""
    pause: Mean
    """Longest pause in a clip, seconds."""
    clipped: Share


@dataclass(frozen=True)
class SpeechReport:
    """`voices` has the result of each voice and of ALL; `clip_wer[i]` is the WER of clip i, None
    without a transcript. `asr`: name of the ASR model."""

    clips: list[SpokenClip]
    clip_wer: list[float | None]
    voices: dict[str, VoiceResult]
    asr: str | None
    seed: int


def share(count: int, of: int) -> Share:
    """A share with its interval; `of` must be at least 1."""
    rate = count / of
    middle = (rate + _Z**2 / (2 * of)) / (1 + _Z**2 / of)
    half = _Z / (1 + _Z**2 / of) * math.sqrt(rate * (1 - rate) / of + _Z**2 / (4 * of**2))
    return Share(rate, max(0.0, middle - half), min(1.0, middle + half), count, of)


def score_speech(
    clips: Sequence[SpokenClip],
    *,
    asr: str | None,
    enrolled: Sequence[str] = (),
    normalize: Callable[[str], str] = str,
    seed: int = 0,
) -> SpeechReport:
    """Score clips, by voice and together.

    `asr`: name of the ASR model. Speaker accuracy counts clips whose voice is in `enrolled`.
    `normalize` is applied to text and transcript before `wer.normalize_words`. Raises ValueError
    without clips, for a voice named ALL, or for a text without words that has a transcript.
    """
    if not clips:
        raise ValueError("there are no clips to score")
    if any(clip.voice == ALL for clip in clips):
        raise ValueError(f"no voice may be named {ALL!r}")
    texts, transcripts = _transcripts(clips, normalize)
    rates = iter(rate_of_each("word", texts, transcripts) if texts else [])
    clip_wer = [None if clip.transcript is None else next(rates) for clip in clips]
    groups: dict[str, list[SpokenClip]] = {}
    for clip in clips:
        groups.setdefault(clip.voice or ALL, []).append(clip)
    groups = {voice: groups[voice] for voice in sorted(groups) if voice != ALL} | {ALL: [*clips]}
    voices = {
        voice: _voice_result(members, enrolled, normalize, seed)
        for voice, members in groups.items()
    }
    return SpeechReport(list(clips), clip_wer, voices, asr, seed)


def _voice_result(
    clips: Sequence[SpokenClip],
    enrolled: Sequence[str],
    normalize: Callable[[str], str],
    seed: int,
) -> VoiceResult:
    texts, transcripts = _transcripts(clips, normalize)
    wer = cer = None
    if texts:
        wer = error_rate("word", texts, transcripts, seed=seed)
        cer = error_rate("character", texts, transcripts, seed=seed)
    named = [
        clip for clip in clips if clip.identified_speaker is not None and clip.voice in enrolled
    ]
    right = sum(clip.identified_speaker == clip.voice for clip in named)
    scored = [clip.dnsmos for clip in clips if clip.dnsmos is not None]
    lost = sum(clip.unscored is not None for clip in clips)
    asked = [c for c in clips if c.unscored or c.dnsmos or c.identified_speaker is not None]
    sounds = [clip.sound for clip in clips]
    return VoiceResult(
        clips=len(clips),
        seconds=round(sum(sound.seconds for sound in sounds), 1),
        wer=wer,
        cer=cer,
        ended_with_eos=share(sum(clip.ended_with_eos for clip in clips), len(clips)),
        dnsmos_ovrl=_mean([mos.ovrl for mos in scored], seed),
        dnsmos_sig=_mean([mos.sig for mos in scored], seed),
        dnsmos_bak=_mean([mos.bak for mos in scored], seed),
        speaker_accuracy=share(right, len(named)) if named else None,
        speaker_similarity=_mean(
            [c.speaker_similarity for c in clips if c.speaker_similarity is not None], seed
        ),
        unscored=share(lost, len(asked)) if asked else None,
        duration=_mean([ratio for clip in clips if (ratio := clip.duration) is not None], seed),
        characters_per_second=_mean(
            [len(normalize_text(c.text)) / c.sound.speaking for c in clips if c.sound.speaking],
            seed,
        ),
        silence=_required_mean([sound.silence for sound in sounds], seed),
        pause=_required_mean([sound.pause for sound in sounds], seed),
        clipped=share(sum(sound.clipped >= _CLIPPED_SHARE for sound in sounds), len(clips)),
    )


def _transcripts(
    clips: Sequence[SpokenClip], normalize: Callable[[str], str]
) -> tuple[list[str], list[str]]:
    """Texts and transcripts of the clips that have both."""
    pairs = [
        (normalize(clip.text), normalize(clip.transcript))
        for clip in clips
        if clip.transcript is not None
    ]
    return [text for text, _ in pairs], [transcript for _, transcript in pairs]


def _mean(values: Sequence[float], seed: int) -> Mean | None:
    return _required_mean(values, seed) if values else None


def _required_mean(values: Sequence[float], seed: int) -> Mean:
    numbers = np.array(values, np.float64)
    low, high = ratio_interval(numbers, np.ones(len(numbers)), seed)
    return Mean(float(numbers.mean()), low, high)
