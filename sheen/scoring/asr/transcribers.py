"""ASR: waveforms to text.

Owns what a `Transcriber` is, and the choice of one; those of faster-whisper are
`sheen.scoring.asr.whisper`'s, those of transformers `sheen.scoring.asr.pipeline`'s. A transcriber
does not know the reference text, and a clip's transcript does not depend on the other clips. Error
rates are `sheen.scoring.wer`'s.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sheen.scoring.asr.pipeline import AsrPipeline, check_pipeline, find_model
from sheen.scoring.asr.transcript import Transcript
from sheen.scoring.asr.whisper import (
    FasterWhisper,
    UnknownLanguageError,
    check_whisper,
    find_whisper,
)


class Transcriber(Protocol):
    """`name` is for reports: the program, its version and its settings."""

    name: str

    def transcribe(self, waveforms: Sequence[NDArray[np.float32]], sample_rate: int) -> list[str]:
        """The text of each waveform `[n]` (in -1..1, at `sample_rate` Hz), "" for no speech.

        In the order given, not normalized.
        """
        ...

    def transcribe_words(
        self, waveforms: Sequence[NDArray[np.float32]], sample_rate: int
    ) -> list[Transcript]:
        """The same, with word times and confidence as far as the model provides them. Slower."""
        ...

    def guess_language(
        self, waveform: NDArray[np.float32], sample_rate: int
    ) -> tuple[str, float] | None:
        """ISO 639-1 code and its probability, whatever language is set; None if not supported."""
        ...


def open_transcriber(asr: str, device: str = "cpu", language: str | None = "en") -> Transcriber:
    """The ASR model of `--asr`.

    `asr`: a faster-whisper model by name or CTranslate2 folder, or a transformers model by folder
    or hub id. Either transcribes `language` (None: detected), if it is a multilingual Whisper.
    Raises ValueError naming the flag.
    """
    try:
        if find_whisper(asr) is not None:
            return FasterWhisper(asr, device=device, language=language)
        return AsrPipeline(asr, device=device, language=language)
    except ValueError as error:
        raise ValueError(f"--asr: {error}") from error


def check_transcriber(
    asr: str,
    language: str | None = None,
    *,
    fetch: bool = False,
    language_flag: str = "--asr-language",
) -> None:
    """Raise ValueError as `open_transcriber` does, without loading the weights. Of a language that
    the model does not know, it names `language_flag`.

    Only with `fetch` a hub is asked: for a published model's files, or for what they are.
    """
    try:
        if find_whisper(asr) is not None:
            check_whisper(asr, language, fetch)
        elif Path(found := find_model(asr)).is_dir() or fetch:
            check_pipeline(asr, found, language)
    except UnknownLanguageError as error:
        raise ValueError(f"{language_flag}: {error}") from error
    except ValueError as error:
        raise ValueError(f"--asr: {error}") from error
