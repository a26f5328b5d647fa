"""English as WER compares it: one spelling for numbers, money, times, contractions and dialects.

Owns what is added around Whisper's English normaliser (package whisper-normalization, OpenAI's code
and its table of spellings), which does the work. Its output has words, digits and spaces alone, so
that `sheen.scoring.wer` compares exactly these words. For both sides of a comparison whose
ASR writes numerals; a reference in digits spoken one by one is `--spell-digits`' business.
"""

import re
from collections.abc import Callable
from functools import cache

from whisper_normalization import EnglishTextNormalizer

from sheen.scoring.whisper import find_whisper

_BRACKETS = re.compile(r"[()\[\]<>]")
_CLOCK = re.compile(r"\b(\d{1,2}):(\d{2})(?!\d)")
_CLOCK_WITH_POINT = re.compile(r"\b(\d{1,2})\.(\d{2})(?=\s*[ap]\.?\s?m\b)", re.IGNORECASE)
_NOON = re.compile(r"\b([ap])\.?\s?m\b\.?", re.IGNORECASE)
_SYMBOLS = {"$": "dollars", "£": "pounds", "€": "euros", "¢": "cents"}
_MONEY = re.compile(r"([$£€¢])(\d+(?:\.\d+)?)")


def wer_normaliser(asr: str | None, language: str | None) -> Callable[[str], str]:
    """What both sides of a WER go through: `normalise_english` for faster-whisper in English, else
    nothing. Arguments as in `sheen.scoring.asr.open_transcriber`."""
    whisper = asr is not None and find_whisper(asr) is not None
    return normalise_english if whisper and language == "en" else str


def normalise_english(text: str) -> str:
    """`text` in lower case and numerals: "Five thirty p.m., $24.99" is "530 pm 24 99 dollars".

    Text that the library would leave empty ("Um.") stays, so that no reference is without words.
    """
    # The library drops what stands in brackets, as a note on the sound. In a text to be spoken it
    # is spoken, and in a transcript a note on a sound that nothing made is an error.
    spoken = _BRACKETS.sub(" ", text)
    spoken = _CLOCK_WITH_POINT.sub(_time, _CLOCK.sub(_time, spoken))
    spoken = _NOON.sub(lambda match: match[1].lower() + "m ", spoken)
    written = _library()(spoken)
    written = _MONEY.sub(lambda match: f"{match[2]} {_SYMBOLS[match[1]]}", written)
    written = written.replace("%", " percent").replace(".", " ")
    return " ".join(written.split()) or text.casefold()


def _time(match: re.Match[str]) -> str:
    """5:30 as the library writes "five thirty", and 5:00 as it writes "five"."""
    hour, minute = int(match[1]), match[2]
    return str(hour) if minute == "00" else f"{hour}{minute}"


@cache
def _library() -> EnglishTextNormalizer:
    return EnglishTextNormalizer()
