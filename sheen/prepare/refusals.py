"""Which segments are no material for training, and why: pure functions of what was measured.

Owns the reasons and the limits. They are applied when the manifest is written, to rows that hold
the measures, so that another limit costs no transcription. Measures nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from sheen.prepare.channels import CROSSTALK_DB
from sheen.prepare.cutting import CUT_OFF, CutSettings, Segment
from sheen.scoring.transcript import Transcript, Word
from sheen.scoring.wer import normalize_words

SILENT_DB = -60.0
"""A segment whose loudest 10 ms are softer is no speech, whatever voice activity says of it."""
MAX_COMPRESSION = 2.4
"""Whisper's own limit of a text that repeats itself."""
MIN_UNIQUE, UNIQUE_OF = 0.4, 6
"""Least share of different words, of a text of at least so many: NeMo's."""

Fault = tuple[str, str]
"""A reason, and what was measured."""

WORD_MARGIN_S = 0.06
"""A cut is within a word that begins so much before it and ends so much after it: the times of
words without a pause between them are about as uncertain."""
SURE_LANGUAGE = 0.7
"""Probability from which on a guess of the language counts: NeMo's."""


@dataclass(frozen=True)
class Limits:
    """Whisper's own limits of a hallucination: it must be likely no speech, and unsure. Text rates
    are characters per second of speech."""

    max_no_speech: float = 0.6
    min_logprob: float = -1.0
    min_text_rate: float = 2.0
    max_text_rate: float = 30.0


def segment_fault(segment: Segment, settings: CutSettings) -> Fault | None:
    """What keeps a segment from being transcribed."""
    if segment.seconds < settings.min_seconds:
        return (
            "too short",
            f"{segment.seconds:.2f} s with nothing near enough to join; the minimum is "
            f"{settings.min_seconds:g} s",
        )
    for where, at in (("begins", segment.start_at), ("ends", segment.end_at)):
        if at == CUT_OFF:
            return "cut off", f"the recording {where} within speech"
    if segment.crosstalk_db is not None and segment.crosstalk_db > CROSSTALK_DB:
        return (
            "heard on another channel",
            f"{segment.crosstalk_db:.0f} dB louder there than on channel {segment.channel}",
        )
    if segment.level_db < SILENT_DB:
        return "silent", f"its loudest 10 ms have {segment.level_db:.0f} dB of full scale"
    return None


def transcript_fault(transcript: Transcript, speech_seconds: float, limits: Limits) -> Fault | None:
    """What keeps a transcript from being taught."""
    words = normalize_words(transcript.text).split()
    if not words:
        return "no words", f"the transcript is {transcript.text!r}"
    no_speech, logprob = transcript.no_speech_prob, transcript.avg_logprob
    if (
        no_speech is not None
        and logprob is not None
        and no_speech > limits.max_no_speech
        and logprob < limits.min_logprob
    ):
        return (
            "not speech",
            f"{transcript.text!r} at a probability of {no_speech:.2f} that there is no speech and "
            f"a mean log probability of {logprob:.2f}",
        )
    if (ratio := transcript.compression_ratio) > MAX_COMPRESSION:
        return "repeats itself", f"compression ratio {ratio:.2f}, at most {MAX_COMPRESSION}"
    most, count = Counter(words).most_common(1)[0]
    if len(words) >= UNIQUE_OF and len(set(words)) / len(words) <= MIN_UNIQUE:
        return (
            "repeats itself",
            f"{len(words)} words, {len(set(words))} different, {most!r} {count}x",
        )
    rate = len(transcript.text) / max(speech_seconds, 0.01)
    if not limits.min_text_rate <= rate <= limits.max_text_rate:
        return (
            "implausible speech rate",
            f"{len(transcript.text)} characters in {speech_seconds:.2f} s of speech are {rate:.1f} "
            f"per second, expected {limits.min_text_rate:g} to {limits.max_text_rate:g}",
        )
    return None


def word_at(words: Iterable[Word], at: float) -> str | None:
    """The word within which a time lies, if there is one."""
    for word in words:
        if word.start + WORD_MARGIN_S < at < word.end - WORD_MARGIN_S:
            return word.text
    return None


def languages_of(
    guesses: Iterable[tuple[Hashable, str, float, float]],
) -> dict[Hashable, str]:
    """The language of each recording: `(recording, language, probability, seconds)` of segments ->
    the one that most of the time is sure of. A recording without a sure guess has none."""
    votes: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for recording, language, probability, seconds in guesses:
        if probability >= SURE_LANGUAGE:
            votes[recording][language] += round(seconds * 1000)
    # Of two with the same time, the first by name: the order of rows must not matter.
    return {
        recording: max(sorted(counted), key=counted.__getitem__)
        for recording, counted in votes.items()
    }


def language_fault(own: str | None, recording: str | None, asked: str | None) -> Fault | None:
    """`own`: what a segment was transcribed as; `recording`: what most of its recording is."""
    if asked is not None:
        if recording in (None, asked):
            return None
        return "another language", f"the recording is {recording!r} by most of it, not {asked!r}"
    if None in (own, recording) or own == recording:
        return None
    return "another language", f"heard as {own!r}, most of the recording as {recording!r}"
