"""Results of an ASR model for a clip: text, words with their times, confidence."""

import zlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """Times in seconds within the clip, by the ASR model: a first word begins tens, sometimes
    hundreds, of milliseconds late. `probability` 0 to 1; None if unknown."""

    text: str
    start: float
    end: float
    probability: float | None = None


@dataclass(frozen=True)
class Transcript:
    """None for values that the ASR model does not provide."""

    text: str
    words: list[Word] | None = None
    avg_logprob: float | None = None
    """Mean log probability of the tokens."""
    no_speech_prob: float | None = None
    language: str | None = None
    language_probability: float | None = None

    @property
    def compression_ratio(self) -> float:
        """Whisper's measure, which is high for a repetitive text. Not meaningful below about 80
        characters, where zlib's overhead dominates."""
        data = self.text.encode()
        return len(data) / len(zlib.compress(data)) if data else 0.0
