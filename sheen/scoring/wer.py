"""Word and character error rates with confidence intervals, and English normalization for them.

Owns the normalization of references and hypotheses, WER and CER, and the paired difference of two
WERs. jiwer aligns and counts; intervals are bootstrap intervals over utterances. Runs no ASR.

For ASR models that write numerals, `normalize_english` gives numbers, money, times, contractions
and dialects a common spelling. It uses Whisper's English normalizer (package whisper-normalization,
OpenAI's code and spelling table), whose output has only words, digits and spaces.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import jiwer
import numpy as np
from numpy.typing import NDArray
from whisper_normalization import EnglishTextNormalizer

from sheen.scoring.asr.whisper import find_whisper

_APOSTROPHES = re.compile(r"['\u2019\u02bc]")
_PERCENTILES = (2.5, 97.5)
_DRAWN_AT_ONCE = 1 << 18
"""Utterances of resamples: a few megabytes."""

Unit = Literal["word", "character"]


@dataclass(frozen=True)
class ErrorRate:
    """Errors over units of the reference, as a share: 0.08 is 8%; above 1 is possible.

    `low` to `high` is the 95% percentile bootstrap interval, utterances drawn with replacement.
    Without any error, or with a single utterance, it is a point.
    """

    rate: float
    low: float
    high: float
    errors: int
    """Substitutions, deletions and insertions."""
    units: int
    """Words or characters of the references."""
    utterances: int


@dataclass(frozen=True)
class ErrorDifference:
    """Rate of b minus rate of a on the same texts, as a share: 0.03 is 3 percentage points.

    `low` to `high` is its 95% interval. Utterances are drawn for both sides together, so that the
    difficulty of a text does not widen it.
    """

    difference: float
    low: float
    high: float
    utterances: int


def normalize_words(text: str) -> str:
    """The text for comparison: Unicode NFKC, case folded, words separated by one space.

    Apostrophes are removed ("don't" is "dont"). Every other character that is not a letter, mark or
    number separates words.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = (
        character if unicodedata.category(character)[0] in "LMN" else " "
        for character in _APOSTROPHES.sub("", folded)
    )
    return " ".join("".join(kept).split())


def error_rate(
    unit: Unit,
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> ErrorRate:
    """Word or character error rate: the errors of all utterances over all units of the references.

    Both sides are normalized here; the spaces between words are characters. A hypothesis may be
    empty: all its units are deletions. Raises ValueError for a reference without words, no
    references, or lists of unequal length.
    """
    errors, units = _count(unit, references, hypotheses)
    low, high = ratio_interval(errors, units, seed, resamples)
    total, of = int(errors.sum()), int(units.sum())
    return ErrorRate(total / of, low, high, total, of, len(units))


def word_error_difference(
    references: Sequence[str],
    hypotheses_a: Sequence[str],
    hypotheses_b: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> ErrorDifference:
    """How much higher the word error rate of b is than that of a. Raises as `error_rate`."""
    errors_a, units = _count("word", references, hypotheses_a)
    errors_b, _ = _count("word", references, hypotheses_b)
    # The denominator is the same, so the difference is itself a ratio of sums.
    more = errors_b - errors_a
    low, high = ratio_interval(more, units, seed, resamples)
    return ErrorDifference(float(more.sum() / units.sum()), low, high, len(units))


def rate_of_each(
    unit: Unit,
    references: Sequence[str],
    hypotheses: Sequence[str],
) -> list[float]:
    """The error rate of each utterance. Raises as `error_rate`."""
    errors, units = _count(unit, references, hypotheses)
    return [float(rate) for rate in errors / units]


def _count(
    unit: Unit, references: Sequence[str], hypotheses: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Errors and reference units of each utterance, both `[n]`."""
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses")
    if not references:
        raise ValueError("there are no references")
    expected = [normalize_words(text) for text in references]
    recognized = [normalize_words(text) for text in hypotheses]
    for index, text in enumerate(expected):
        if not text:
            raise ValueError(f"reference {index} holds no words: {references[index]!r}")
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    output = process(expected, recognized)
    errors = [
        sum(
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in chunks
            if chunk.type != "equal"
        )
        for chunks in output.alignments
    ]
    return np.array(errors), np.array([len(reference) for reference in output.references])


def ratio_interval(
    numerators: NDArray[np.generic],
    denominators: NDArray[np.generic],
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of sum(numerators) / sum(denominators), both `[n]`."""
    rng = np.random.default_rng(seed)
    count = len(denominators)
    at_once = max(1, _DRAWN_AT_ONCE // count)
    rates = []
    for first in range(0, resamples, at_once):
        drawn = rng.integers(count, size=(min(at_once, resamples - first), count))
        rates.append(numerators[drawn].sum(1) / denominators[drawn].sum(1))
    low, high = np.percentile(np.concatenate(rates), _PERCENTILES)
    return float(low), float(high)


_BRACKETS = re.compile(r"[()\[\]<>]")
_CLOCK = re.compile(r"\b(\d{1,2}):(\d{2})(?!\d)")
_CLOCK_WITH_POINT = re.compile(r"\b(\d{1,2})\.(\d{2})(?=\s*[ap]\.?\s?m\b)", re.IGNORECASE)
_NOON = re.compile(r"\b([ap])\.?\s?m\b\.?", re.IGNORECASE)
_SYMBOLS = {"$": "dollars", "£": "pounds", "€": "euros", "¢": "cents"}
_MONEY = re.compile(r"([$£€¢])(\d+(?:\.\d+)?)")
_SIGN_AFTER = re.compile(
    r"(\d|\b(?:hundred|thousand|million|billion|trillion))\s*([$£€¢])(?!\d)", re.IGNORECASE
)
_SPACED_BEFORE = re.compile(r"([$£€¢])\s+(?=\d)")
_SPACED_PERCENT = re.compile(r"(?<=\d)\s+(?=%)")


def wer_normalizer(asr: str | None, language: str | None) -> Callable[[str], str]:
    """The normalizer for both sides of a WER: `normalize_english` for faster-whisper in English,
    else none. Arguments as in `sheen.scoring.asr.transcribers.open_transcriber`."""
    whisper = asr is not None and find_whisper(asr) is not None
    return language_normalizer(language if whisper else None)


def language_normalizer(language: str | None) -> Callable[[str], str]:
    """The normalizer for texts of a language: `normalize_english`, or none."""
    return normalize_english if language == "en" else str


def normalize_english(text: str) -> str:
    """`text` in lower case and numerals: "Five thirty p.m., $24.99" is "530 pm 24 99 dollars".

    Text that the library would leave without words ("Um.", "Um $.") is kept, so that every
    reference has some.
    """
    # The library drops text in brackets, as notes on sounds. In a text to be spoken it is spoken,
    # and in a transcript a note on a sound that is not there is an error.
    spoken = _BRACKETS.sub(" ", text)
    spoken = _CLOCK_WITH_POINT.sub(_time, _CLOCK.sub(_time, spoken))
    spoken = _NOON.sub(lambda match: match[1].lower() + "m ", spoken)
    # The library knows signs that touch a number, of currencies before it; it drops the others.
    spoken = _SIGN_AFTER.sub(lambda match: f"{match[1]} {_SYMBOLS[match[2]]} ", spoken)
    spoken = _SPACED_PERCENT.sub("", _SPACED_BEFORE.sub(r"\1", spoken))
    written = _library()(spoken)
    written = _MONEY.sub(lambda match: f"{match[2]} {_SYMBOLS[match[1]]}", written)
    written = written.replace("%", " percent").replace(".", " ")
    written = " ".join(written.split())
    return written if normalize_words(written) else text.casefold()


def _time(match: re.Match[str]) -> str:
    """5:30 as the library writes "five thirty", and 5:00 as it writes "five"."""
    hour, minute = int(match[1]), match[2]
    return str(hour) if minute == "00" else f"{hour}{minute}"


@cache
def _library() -> EnglishTextNormalizer:
    return EnglishTextNormalizer()
