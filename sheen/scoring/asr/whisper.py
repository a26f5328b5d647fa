"""Whisper by faster-whisper: waveforms -> transcripts, on a CPU several times faster than torch.

Owns which sources are faster-whisper's (names of published models, folders in CTranslate2's format)
and the settings: greedy, temperature 0, clips transcribed separately. Models in transformers'
format are `sheen.scoring.asr.pipeline`'s. Imports faster-whisper, which takes seconds, only to
load a model.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sheen.audio.io import resampled
from sheen.scoring.asr.transcript import Transcript, Word

RATE = 16_000
"""Sample rate of every Whisper, Hz."""
NAMES = (
    frozenset(
        f"{size}{english}"
        for size in ("tiny", "base", "small", "medium")
        for english in ("", ".en")
    )
    | {"large-v1", "large-v2", "large-v3", "large", "large-v3-turbo", "turbo"}
    | {f"distil-{size}" for size in ("small.en", "medium.en", "large-v2", "large-v3", "large-v3.5")}
)
"""Names of published models, which faster-whisper downloads: its `available_models()`."""
WINDOW_S = 30
"""Window of every Whisper model."""
STEP_S = 0.02
"""Time between positions of the encoder."""
MAX_TOKENS = 440
"""Most tokens of a text: the decoder has 448 positions, some for the language and the task."""
MULTILINGUAL_TOKENS = 51_865
"""Least size of the vocabulary of a multilingual Whisper: CTranslate2's criterion."""
_WEIGHTS = "model.bin"
_TOKENIZER = "tokenizer.json"
_VOCABULARIES = ("vocabulary.json", "vocabulary.txt")


def find_whisper(source: str) -> str | None:
    """A name in NAMES, the path of a CTranslate2 folder, or None if `source` is neither.

    A name takes precedence over a folder of that name, which is ./NAME. Raises ValueError for a
    folder with model.bin in which other files are missing.
    """
    if source in NAMES:
        return source
    folder = Path(source).expanduser()
    if not (folder / _WEIGHTS).is_file():
        return None
    missing = [] if (folder / _TOKENIZER).is_file() else [_TOKENIZER]
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        missing.append(" or ".join(_VOCABULARIES))
    if missing:
        raise ValueError(
            f"ASR model {source!r}: {_WEIGHTS} without {' and '.join(missing)}; expected a folder "
            "as ct2-transformers-converter writes it, with --copy_files tokenizer.json"
        )
    return str(folder.resolve())


def check_whisper(model: str, language: str | None, fetch: bool = False) -> None:
    """Raise ValueError as FasterWhisper does, without loading the weights; `model` is one of
    `find_whisper`. With `fetch`, the files of a published model are downloaded."""
    source = find_whisper(model)
    assert source is not None
    if language is not None and not _is_multilingual(source):
        check_language(model, language, ["en"])
    elif language is not None:
        from faster_whisper.tokenizer import _LANGUAGE_CODES

        check_language(model, language, _LANGUAGE_CODES)
    if fetch and source in NAMES:
        from faster_whisper import download_model

        try:
            download_model(source)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"ASR model {model!r}: {' '.join(str(error).split())}") from error


class UnknownLanguageError(ValueError):
    """The ASR model does not know the language."""


def check_language(model: str, language: str, known: Iterable[str]) -> None:
    """Raise UnknownLanguageError naming the model and the languages that it knows, by ISO 639-1
    code."""
    known = list(known)
    if language not in known:
        raise UnknownLanguageError(
            f"ASR model {model!r} does not know language {language!r}; it knows {', '.join(known)}"
        )


def _is_multilingual(source: str) -> bool:
    if source in NAMES:
        return not source.endswith(".en")
    folder = Path(source)
    listed = folder / _VOCABULARIES[0]
    if listed.is_file():
        return len(json.loads(listed.read_bytes())) >= MULTILINGUAL_TOKENS
    return (folder / _VOCABULARIES[1]).read_bytes().count(b"\n") >= MULTILINGUAL_TOKENS


class FasterWhisper:
    """A Whisper in int8 on a CPU, in float16 on a GPU.

    `model` as in `find_whisper`; on a CPU it uses as many threads as torch in this process.
    `language` is an ISO 639-1 code, None to detect it for each clip. Raises ValueError if the model
    cannot be opened or does not know the language.
    """

    def __init__(self, model: str, *, device: str = "cpu", language: str | None = "en") -> None:
        source = find_whisper(model)
        if source is None:
            raise ValueError(
                f"ASR model {model!r}: expected a folder with {_WEIGHTS} or one of "
                f"{', '.join(sorted(NAMES))}"
            )
        kind, _, index = device.partition(":")
        precision = "int8" if kind == "cpu" else "float16"
        self._model = _open(model, source, kind, int(index or 0), precision)
        if language is not None:
            check_language(model, language, self._model.supported_languages)
        self._language = language
        self.name = (
            f"{model} (faster-whisper {version('faster-whisper')}, {precision}, greedy, "
            f"language {language or 'guessed'})"
        )

    def transcribe(self, waveforms: Sequence[NDArray[np.float32]], sample_rate: int) -> list[str]:
        """As `sheen.scoring.asr.transcribers.Transcriber`; clips are independent of one another."""
        return [self._text(waveform, sample_rate) for waveform in waveforms]

    def transcribe_words(
        self, waveforms: Sequence[NDArray[np.float32]], sample_rate: int
    ) -> list[Transcript]:
        """As `sheen.scoring.asr.transcribers.Transcriber`. Includes Whisper's text for noise, which
        `transcribe` drops: the caller decides by the confidence."""
        return [self._words(waveform, sample_rate) for waveform in waveforms]

    def align(
        self, waveform: NDArray[np.float32], sample_rate: int, words: Sequence[str]
    ) -> list[tuple[float, float]]:
        """Forced alignment: start and end in seconds of each of the given words in a clip `[n]`, by
        the cross-attention of the decoder, in steps of 20 ms.

        A word lasts until the next one begins, including silence between them. ValueError for a
        clip longer than WINDOW_S, and for more words than fit into the decoder.
        """
        waveform = at_rate(waveform, sample_rate)
        if len(waveform) > WINDOW_S * RATE:
            raise ValueError(f"a clip of {len(waveform) / RATE:.1f} s; at most {WINDOW_S} s")
        if not words or not len(waveform):
            return [(0.0, len(waveform) / RATE)] * len(words)
        from faster_whisper.audio import pad_or_trim
        from faster_whisper.tokenizer import Tokenizer

        multilingual = self._model.model.is_multilingual
        language = self._language or "en"
        tokenizer = Tokenizer(self._model.hf_tokenizer, multilingual, "transcribe", language)
        tokens = [tokenizer.encode(f" {word}") for word in words]
        if sum(map(len, tokens)) > MAX_TOKENS:
            raise ValueError(f"{len(words)} words have more than {MAX_TOKENS} tokens")
        features = self._model.feature_extractor(waveform)[..., :-1]
        [aligned] = self._model.model.align(
            self._model.encode(pad_or_trim(features)),
            tokenizer.sot_sequence,
            [[token for word in tokens for token in word]],
            features.shape[-1],
        )
        # Pairs of a token and a time step, both increasing.
        places, steps = np.asarray(aligned.alignments, int).T
        begins = steps[np.diff(places, prepend=-1) > 0] * STEP_S
        edges = np.cumsum([0, *map(len, tokens)])  # the last one is that of <|endoftext|>
        times = np.minimum(begins[edges], len(waveform) / RATE)
        return [(float(start), float(end)) for start, end in pairwise(times)]

    def guess_language(
        self, waveform: NDArray[np.float32], sample_rate: int
    ) -> tuple[str, float] | None:
        """As `sheen.scoring.asr.transcribers.Transcriber`; None for an English-only model."""
        if not self._model.model.is_multilingual or not len(waveform):
            return None
        language, probability, _ = self._model.detect_language(at_rate(waveform, sample_rate))
        return language, float(probability)

    def _text(self, waveform: NDArray[np.float32], sample_rate: int) -> str:
        segments, _ = self._run(waveform, sample_rate)
        return _joined(segments)

    def _words(self, waveform: NDArray[np.float32], sample_rate: int) -> Transcript:
        segments, info = self._run(
            waveform,
            sample_rate,
            word_timestamps=True,
            # The defaults silently drop the text of a clip.
            no_speech_threshold=None,
            log_prob_threshold=None,
            compression_ratio_threshold=None,
        )
        if info is None:
            return Transcript("", [])
        # Whisper's mean includes the end token of each segment.
        weights = [len(segment.tokens) + 1 for segment in segments]
        logprobs = [segment.avg_logprob for segment in segments]
        return Transcript(
            text=_joined(segments),
            words=[
                Word(word.word.strip(), float(word.start), float(word.end), float(word.probability))
                for segment in segments
                for word in segment.words
            ],
            avg_logprob=float(np.average(logprobs, weights=weights)) if segments else None,
            no_speech_prob=max((segment.no_speech_prob for segment in segments), default=None),
            language=info.language,
            language_probability=float(info.language_probability),
        )

    def _run(
        self, waveform: NDArray[np.float32], sample_rate: int, **options: Any
    ) -> tuple[list[Any], Any]:
        """The segments, and faster-whisper's information on the clip; None for an empty clip."""
        waveform = at_rate(waveform, sample_rate)
        if not len(waveform):  # faster-whisper would divide by its length
            return [], None
        segments, info = self._model.transcribe(
            waveform,
            language=self._language,
            beam_size=1,
            # A single temperature: with several, it samples again if it doubts a transcript.
            temperature=0.0,
            condition_on_previous_text=False,
            **options,
        )
        return list(segments), info


def at_rate(
    waveform: NDArray[np.float32], sample_rate: int, rate: int = RATE
) -> NDArray[np.float32]:
    """A clip `[n]` at another rate; ValueError for another shape."""
    if waveform.ndim != 1:
        raise ValueError(f"a waveform has shape {waveform.shape}, expected [n]")
    return resampled(waveform, sample_rate, rate) if len(waveform) else waveform


def _joined(segments: Sequence[Any]) -> str:
    return " ".join(segment.text.strip() for segment in segments).strip()


def _open(model: str, source: str, kind: str, index: int, precision: str) -> Any:
    from faster_whisper import WhisperModel  # takes seconds to import

    logging.getLogger("faster_whisper").setLevel(logging.WARNING)  # it logs every clip
    try:
        return WhisperModel(
            source,
            device=kind,
            device_index=index,
            compute_type=precision,
            cpu_threads=torch.get_num_threads(),
        )
    except (OSError, ValueError, RuntimeError) as error:
        # Messages of the hub have several lines.
        reason = " ".join(str(error).split())
        raise ValueError(f"ASR model {model!r} on {kind}: {reason}") from error
