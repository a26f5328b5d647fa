"""What an ASR says of a clip beyond its text: words with their times, and how sure it was."""

import zlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """Seconds within the clip, as the ASR has them: a first word begins tens of milliseconds late,
    and now and then hundreds. `probability` 0 to 1; None where it is not known."""

    text: str
    start: float
    end: float
    probability: float | None = None


@dataclass(frozen=True)
class Transcript:
    """None is what this ASR does not tell."""

    text: str
    words: list[Word] | None = None
    avg_logprob: float | None = None
    """Mean over tokens of the log of their probability."""
    no_speech_prob: float | None = None
    language: str | None = None
    language_probability: float | None = None

    @property
    def compression_ratio(self) -> float:
        """As Whisper has it: high where a text repeats itself. It tells nothing below some 80
        characters, where zlib's own bytes outweigh the text's."""
        data = self.text.encode()
        return len(data) / len(zlib.compress(data)) if data else 0.0
