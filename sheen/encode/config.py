"""The encode job's fields, and the limits on recordings and texts.

Owns the limits and their reasons for rejection. Reads no files; samples are in -1..1.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from sheen.audio.samples import Samples
from sheen.codec.info import DEFAULT_CODEC
from sheen.config import JobConfig, OneOrMore
from sheen.text.kept import as_tag

FULL_SCALE = 0.999
"""A sample from this level on counts as clipped."""


@dataclass(frozen=True)
class RecordingLimits:
    """None leaves a limit out. Text rates are characters per second of recording, so far apart that
    only another recording's text is beyond them, in any script."""

    min_seconds: float = 0.2
    max_seconds: float | None = 60.0
    silent_below_db: float | None = -60.0
    """dB of full scale that the loudest sample must reach."""
    max_clipped: float | None = 0.01
    """Share of samples at full scale."""
    min_text_rate: float = 1.0
    max_text_rate: float = 50.0


def length_fault(seconds: float, limits: RecordingLimits) -> tuple[str, str] | None:
    """The reason and the measured value, or None."""
    if seconds < limits.min_seconds:
        return "too short", f"{seconds:.3f} s, the minimum is {limits.min_seconds:g} s"
    if limits.max_seconds is not None and seconds > limits.max_seconds:
        return "too long", f"{seconds:.1f} s, the maximum is {limits.max_seconds:g} s"
    return None


def sound_fault(samples: Samples, limits: RecordingLimits) -> tuple[str, str] | None:
    """The reason to reject samples `[n]`, n >= 1, and the measured value, or None."""
    level = np.abs(samples)
    loudest = 20 * math.log10(max(float(level.max()), 1e-9))
    if limits.silent_below_db is not None and loudest < limits.silent_below_db:
        return (
            "silent",
            f"the loudest sample has {loudest:.0f} dB, the minimum is {limits.silent_below_db:g}",
        )
    if limits.max_clipped is not None:
        clipped = float((level >= FULL_SCALE).mean())
        if clipped > limits.max_clipped:
            return (
                "clipped",
                f"{clipped:.1%} of the samples are at full scale, the maximum is "
                f"{limits.max_clipped:.1%}",
            )
    return None


def text_fault(text: str, seconds: float, limits: RecordingLimits) -> tuple[str, str] | None:
    """The reason to reject a text for its recording's length, and the measured value, or None."""
    least, most = limits.min_text_rate, limits.max_text_rate
    rate = len(text) / seconds
    if least <= rate <= most:
        return None
    return (
        "implausible speech rate",
        f"{len(text)} characters in {seconds:.2f} s are {rate:.1f} per second, expected "
        f"{least:g} to {most:g}",
    )


class EncodeConfig(JobConfig):
    """Encode recordings into SNAC codes: one Parquet dataset with a report of every row."""

    input: Annotated[
        list[str],
        OneOrMore,
        Field(
            min_length=1,
            description="LJSpeech folder (metadata.csv and wavs/); .jsonl manifest with audio, "
            "text and optional id, speaker, instruction, start, end (seconds); .parquet of the "
            "Hugging Face layout; .tar shards of WebDataset; .jsonl with text and snac_codes; or a "
            "folder of these. Path, URI or glob. May be repeated: --input A --input B",
        ),
    ]
    form: Annotated[
        Literal["ljspeech", "jsonl", "parquet", "webdataset", "codes"] | None,
        Field(description="the form of --input; default: recognized by its content"),
    ] = None
    codec: Annotated[
        str, Field(description="SNAC hub id, or folder with config.json and pytorch_model.bin")
    ] = DEFAULT_CODEC
    limit: Annotated[
        int | None, Field(ge=1, description="encode only the first N rows of the input")
    ] = None
    speakers: Annotated[
        list[str] | None,
        Field(description="encode only the rows of these speakers; default: all rows"),
    ] = None
    jsonl: Annotated[
        str | None, Field(description="also write lines of {text, snac_codes} to this file")
    ] = None
    min_seconds: Annotated[
        float, Field(ge=0.0, description="shorter recordings are rejected, seconds")
    ] = RecordingLimits.min_seconds
    max_seconds: Annotated[
        float | None, Field(gt=0.0, description="longer recordings are rejected, seconds")
    ] = RecordingLimits.max_seconds
    max_clipped: Annotated[
        float | None,
        Field(
            ge=0.0,
            le=1.0,
            description="largest share of full-scale samples; beyond it: rejected",
        ),
    ] = RecordingLimits.max_clipped
    language: Annotated[
        str | None,
        Field(
            description="language of the texts, e.g. en: write numbers, money, dates, times and "
            'abbreviations out as words ("$5" as "five dollars"); models trained on the dataset do '
            "the same. Default: texts are not changed"
        ),
    ] = None
    phonemes: Annotated[
        bool,
        Field(
            description="convert the words to phonemes; models trained on the dataset do the same. "
            "A small model then needs fewer hours of speech. English only: needs --language en, "
            "and pip install 'sheen[phonemes]'"
        ),
    ] = False
    tags: Annotated[
        list[Annotated[str, AfterValidator(as_tag)]] | None,
        Field(
            description="tags such as <laugh> to keep in the texts, for a model that learns to "
            "perform them: --tags laugh,sigh"
        ),
    ] = None
    trim_db: Annotated[
        float | None,
        Field(lt=0.0, description="remove softer sound at both ends, dB of full scale, e.g. -50"),
    ] = None
    loudness_lufs: Annotated[
        float | None,
        Field(
            lt=0.0, description="normalize recordings to this loudness (BS.1770), LUFS, e.g. -23"
        ),
    ] = None
    shifts: Annotated[
        int,
        Field(
            ge=1,
            description="encode every recording this many times, each time shifted by another part "
            "of a codec frame (24 kHz: 85 ms), which yields different codes for the same speech: "
            "for few recordings",
        ),
    ] = 1
    batch_seconds: Annotated[
        float,
        Field(
            gt=0.0,
            description="audio of one batch on a GPU, padding included, seconds. On a CPU clips "
            "are encoded one by one: batches gain nothing there",
        ),
    ] = 120.0

    @property
    def limits(self) -> RecordingLimits:
        return RecordingLimits(
            min_seconds=self.min_seconds,
            max_seconds=self.max_seconds,
            max_clipped=self.max_clipped,
        )
