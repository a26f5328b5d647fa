"""Whether a text matches its recording: its character error rate against an ASR's transcript.

Owns the limits and the verdicts. A text of another recording is rejected; a text is doubtful where
the difference may be an ASR error or an error in the text. The normalization of both sides is
`sheen.scoring.wer`'s. Runs no ASR.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sheen.scoring.wer import normalize_words, rate_of_each

REJECT_CER = 0.35
"""Nearly every wrong text is above: of 554 published prompts, exchanged at random, 0 to 0.5% were
below 0.3. Of correct texts, with whisper tiny.en, 2% are above 0.3."""
DOUBT_CER = 0.15
"""7% of correct texts are above it, with whisper tiny.en."""
SHORT = 8
"""Characters: in a shorter text, a single ASR error can exceed the limits."""

Verdict = Literal["good", "doubtful", "rejected"]
REASON = "text and audio differ"


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
    written, heard = normalizer(text), normalizer(transcript)
    if not normalize_words(written):
        return TextCheck("rejected", None, f"the text {text!r} holds no words")
    if not normalize_words(heard):
        verdict: Verdict = "doubtful" if _is_short(written) else "rejected"
        return TextCheck(verdict, None, f"the text is {text!r}, and the transcript has no words")
    (cer,) = rate_of_each("character", [written], [heard])
    if cer <= limits.doubt_cer:
        return TextCheck("good", cer, None)
    short = _is_short(written)
    verdict = "doubtful" if short or cer <= limits.reject_cer else "rejected"
    most = limits.doubt_cer if verdict == "doubtful" else limits.reject_cer
    detail = f"CER {cer:.2f}, above {most:g}: the text is {text!r}, the transcript {transcript!r}"
    return TextCheck(verdict, cer, detail)


def _is_short(text: str) -> bool:
    return len(normalize_words(text)) < SHORT
