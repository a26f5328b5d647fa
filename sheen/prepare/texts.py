"""Whether a text is what a recording speaks: its character error rate against an ASR's transcript.

Owns the limits and the two verdicts that are not good. A text is refused that is another
recording's, and doubtful where an ASR's error or a slip of the text would look alike. What both
sides go through first is `sheen.scoring.wer`'s. Hears nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sheen.scoring.wer import normalize_words, rate_of_each

REFUSE_CER = 0.35
"""Practically every text of another recording is above: of 554 published prompts, exchanged at
random, 0 to 0.5% were below 0.3. Of right texts through whisper tiny.en 2% are above 0.3."""
DOUBT_CER = 0.15
"""Of right texts through whisper tiny.en 7% are above."""
SHORT = 8
"""Characters: in a shorter text a single slip of the ASR is as much as another text."""

Verdict = Literal["good", "doubtful", "refused"]
REASON = "text and audio differ"


@dataclass(frozen=True)
class TextCheck:
    """A text beside what was heard. `cer` None: there was no text, or nothing was heard."""

    verdict: Verdict
    cer: float | None
    detail: str | None
    """Both texts; None where the verdict is good."""


@dataclass(frozen=True)
class TextLimits:
    """Character error rates: 0.35 is 35 errors in 100 characters of the text. Above `refuse_cer` a
    row is refused, above `doubt_cer` it is kept and shown."""

    refuse_cer: float = REFUSE_CER
    doubt_cer: float = DOUBT_CER

    def __post_init__(self) -> None:
        if not 0 <= self.doubt_cer <= self.refuse_cer:
            raise ValueError(
                f"the limit of doubtful texts, {self.doubt_cer:g}, must be from 0 to that of "
                f"refused ones, {self.refuse_cer:g}"
            )


def check_text(
    text: str,
    transcript: str,
    limits: TextLimits,
    normalizer: Callable[[str], str] = str,
) -> TextCheck:
    """Whether a text may be what was heard. `normalizer`: that of `scoring.wer.wer_normalizer`."""
    written, heard = normalizer(text), normalizer(transcript)
    if not normalize_words(written):
        return TextCheck("refused", None, f"the text {text!r} holds no words")
    if not normalize_words(heard):
        verdict: Verdict = "doubtful" if _is_short(written) else "refused"
        return TextCheck(verdict, None, f"the text is {text!r}, and nothing was heard")
    (cer,) = rate_of_each("character", [written], [heard])
    if cer <= limits.doubt_cer:
        return TextCheck("good", cer, None)
    short = _is_short(written)
    verdict = "doubtful" if short or cer <= limits.refuse_cer else "refused"
    most = limits.doubt_cer if verdict == "doubtful" else limits.refuse_cer
    detail = (
        f"CER {cer:.2f}, above {most:g}: the text is {text!r}, what was heard is {transcript!r}"
    )
    return TextCheck(verdict, cer, detail)


def _is_short(text: str) -> bool:
    return len(normalize_words(text)) < SHORT
