"""Which segments are unfit for training, and why: pure functions of the stored measures.

Owns the reasons and the limits. They are applied when the manifest is written, so that changing a
limit needs no new transcription. A text of another recording is told by its character error rate
against the ASR's transcript: it is rejected, or doubtful where the difference may be an ASR error
or an error in the text. The normalization of both sides is `sheen.scoring.wer`'s. Measures nothing,
and runs no ASR.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Literal

from sheen.prepare.cutting.cut import CUT_OFF, CutSettings, Segment
from sheen.scoring.asr.transcript import Transcript, Word
from sheen.scoring.wer import normalize_words, rate_of_each

SILENT_DB = -60.0
"""A segment whose loudest 10 ms are softer is not speech, whatever the voice activity."""
CROSSTALK_DB = 12.0
"""Speech that is louder by this much on another channel is crosstalk. Crosstalk is weaker by 20 dB
or more with a headset and by 10 to 20 dB with a loudspeaker; two people who speak at once differ by
less, unless one of them is hardly audible."""
MAX_COMPRESSION = 2.4
"""Whisper's own limit for a repetitive text."""
MIN_UNIQUE, UNIQUE_OF = 0.4, 6
"""Least share of different words, in a text of at least this many words: NeMo's values."""

Fault = tuple[str, str]
"""A reason, and the measured value."""

WORD_MARGIN_S = 0.06
"""A cut is within a word that begins this much before it and ends this much after it, which is
about the uncertainty of word times without a pause."""
SURE_LANGUAGE = 0.7
"""Least probability of a language guess that counts: NeMo's value."""
REJECT_CER = 0.35
"""Nearly every wrong text is above: of 554 published prompts, exchanged at random, 0 to 0.5% were
below 0.3. Of correct texts, with whisper tiny.en, 2% are above 0.3."""
DOUBT_CER = 0.15
"""7% of correct texts are above it, with whisper tiny.en."""
SHORT = 8
"""Characters: in a shorter text, a single ASR error can exceed the limits."""

Verdict = Literal["good", "doubtful", "rejected"]
TEXT_DIFFERS = "text and audio differ"


@dataclass(frozen=True)
class Limits:
    """Whisper's own limits for a hallucination, which must exceed both: probability of no speech,
    and mean log probability. Text rates are characters per second of speech."""

    max_no_speech: float = 0.6
    min_logprob: float = -1.0
    min_text_rate: float = 2.0
    max_text_rate: float = 30.0


def segment_fault(segment: Segment, settings: CutSettings) -> Fault | None:
    """Why a segment is not transcribed, or None."""
    if segment.seconds < settings.min_seconds:
        return (
            "too short",
            f"{segment.seconds:.2f} s with nothing near enough to join within "
            f"{settings.max_seconds:g} s; the minimum is {settings.min_seconds:g} s",
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
    """Why a transcript is rejected, or None."""
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
            f"{transcript.text!r} with a probability of {no_speech:.2f} that there is no speech, "
            f"and a mean log probability of {logprob:.2f}",
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
    """The word that contains a time, with WORD_MARGIN_S on both sides; None if there is none."""
    for word in words:
        if word.start + WORD_MARGIN_S < at < word.end - WORD_MARGIN_S:
            return word.text
    return None


def languages_of(
    guesses: Iterable[tuple[Hashable, str, float, float]],
) -> dict[Hashable, str]:
    """The language of each recording, from `(recording, language, probability, seconds)` of its
    segments: the one with most seconds of sure guesses. A recording without a sure guess has
    none."""
    votes: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for recording, language, probability, seconds in guesses:
        if probability >= SURE_LANGUAGE:
            votes[recording][language] += round(seconds * 1000)
    # With equal times, the first by name: the order of rows must not matter.
    return {
        recording: max(sorted(counted), key=counted.__getitem__)
        for recording, counted in votes.items()
    }


def language_fault(own: str | None, recording: str | None, asked: str | None) -> Fault | None:
    """`own`: language of the segment's transcript; `recording`: that of most of its recording;
    `asked`: that of `--language`."""
    if asked is not None:
        if recording in (None, asked):
            return None
        return "another language", f"most of the recording is {recording!r}, not {asked!r}"
    if None in (own, recording) or own == recording:
        return None
    return "another language", f"transcribed as {own!r}, most of the recording as {recording!r}"


@dataclass(frozen=True)
class TextCheck:
    """A text compared with its transcript. `cer` is None if either has no words."""

    verdict: Verdict
    cer: float | None
    detail: str | None
    """Both texts; None for the verdict good."""


@dataclass(frozen=True)
class TextLimits:
    """Character error rates: 0.35 is 35 errors in 100 characters of the text. Above `reject_cer` a
    row is rejected, above `doubt_cer` it is kept and marked."""

    reject_cer: float = REJECT_CER
    doubt_cer: float = DOUBT_CER

    def __post_init__(self) -> None:
        if not 0 <= self.doubt_cer <= self.reject_cer:
            raise ValueError(
                f"the limit of doubtful texts, {self.doubt_cer:g}, must be from 0 to that of "
                f"rejected ones, {self.reject_cer:g}"
            )


def check_text(
    text: str,
    transcript: str,
    limits: TextLimits,
    normalizer: Callable[[str], str] = str,
) -> TextCheck:
    """Compare a text with its transcript. `normalizer`: see `scoring.wer.language_normalizer`."""
    written, spoken = normalizer(text), normalizer(transcript)
    if not normalize_words(written):
        return TextCheck("rejected", None, f"the text {text!r} holds no words")
    if not normalize_words(spoken):
        verdict: Verdict = "doubtful" if _is_short(written) else "rejected"
        return TextCheck(verdict, None, f"the text is {text!r}, and the transcript has no words")
    (cer,) = rate_of_each("character", [written], [spoken])
    if cer <= limits.doubt_cer:
        return TextCheck("good", cer, None)
    short = _is_short(written)
    verdict = "doubtful" if short or cer <= limits.reject_cer else "rejected"
    most = limits.doubt_cer if verdict == "doubtful" else limits.reject_cer
    detail = f"CER {cer:.2f}, above {most:g}: the text is {text!r}, the transcript {transcript!r}"
    return TextCheck(verdict, cer, detail)


def _is_short(text: str) -> bool:
    return len(normalize_words(text)) < SHORT
