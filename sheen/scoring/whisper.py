"""Whisper by faster-whisper: waveforms -> transcripts, on a CPU several times faster than torch.

Owns which sources are faster-whisper's (names of published models, folders in CTranslate2's format)
and the settings: greedy, temperature 0, every clip on its own. Models in transformers' format are
`sheen.scoring.asr`'s. Imports faster-whisper, which takes seconds, only to load a model.
"""

import logging
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample

from sheen.scoring.transcript import Transcript, Word

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
"""What faster-whisper calls the published models, which it downloads: its `available_models()`."""
WINDOW_S = 30
"""Of every Whisper."""
STEP_S = 0.02
"""Of its encoder's positions."""
MAX_TOKENS = 440
"""Of the 448 positions of the decoder, some are for the language and the task."""
_WEIGHTS = "model.bin"
_TOKENIZER = "tokenizer.json"
_VOCABULARIES = ("vocabulary.json", "vocabulary.txt")


def find_whisper(source: str) -> str | None:
    """A name of NAMES as it is, a CTranslate2 folder's path, or None where it is neither.

    A name wins over a folder of that name, which is ./NAME. Raises ValueError for a folder with
    model.bin that lacks what belongs to it.
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


class FasterWhisper:
    """A Whisper in int8 on a CPU, in float16 on a GPU.

    `model` as in `find_whisper`; on a CPU it runs on as many threads as torch does in this process.
    `language` is an ISO 639-1 code, None to guess it for each clip. Raises ValueError when the
    model cannot be opened or does not know the language.
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
        known = self._model.supported_languages
        if language is not None and language not in known:
            raise ValueError(
                f"ASR model {model!r} does not know language {language!r}; it knows "
                f"{', '.join(known)}"
            )
        self._language = language
        self.name = (
            f"{model} (faster-whisper {version('faster-whisper')}, {precision}, greedy, "
            f"language {language or 'guessed'})"
        )

    def transcribe(self, waveforms: Sequence[NDArray[np.float32]], sample_rate: int) -> list[str]:
        """As `sheen.scoring.asr.Transcriber`; clips are independent of one another."""
        return [self._text(waveform, sample_rate) for waveform in waveforms]

    def transcribe_words(
        self, waveforms: Sequence[NDArray[np.float32]], sample_rate: int
    ) -> list[Transcript]:
        """As `sheen.scoring.asr.Transcriber`. The text is what Whisper writes for noise too, which
        `transcribe` would leave out: what it says of itself is for the caller to judge."""
        return [self._words(waveform, sample_rate) for waveform in waveforms]

    def align(
        self, waveform: NDArray[np.float32], sample_rate: int, words: Sequence[str]
    ) -> list[tuple[float, float]]:
        """When each word of a clip `[n]` begins and ends, in seconds, its words being known (forced
        alignment): by the attention of the decoder's heads to the sound, in steps of 20 ms.

        A word lasts until the next one begins, whatever silence is between. ValueError for a clip
        of more than WINDOW_S, and for more words than the decoder has places for.
        """
        waveform = _at_rate(waveform, sample_rate)
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
        # Pairs of a token and a step of time, both rising; where a token begins, its row does.
        places, steps = np.asarray(aligned.alignments, int).T
        begins = steps[np.diff(places, prepend=-1) > 0] * STEP_S
        edges = np.cumsum([0, *map(len, tokens)])  # the last one is the end's, <|endoftext|>
        times = np.minimum(begins[edges], len(waveform) / RATE)
        return [(float(start), float(end)) for start, end in pairwise(times)]

    def guess_language(
        self, waveform: NDArray[np.float32], sample_rate: int
    ) -> tuple[str, float] | None:
        """As `sheen.scoring.asr.Transcriber`; a model of English alone cannot."""
        if not self._model.model.is_multilingual or not len(waveform):
            return None
        language, probability, _ = self._model.detect_language(_at_rate(waveform, sample_rate))
        return language, float(probability)

    def _text(self, waveform: NDArray[np.float32], sample_rate: int) -> str:
        segments, _ = self._run(waveform, sample_rate)
        return _joined(segments)

    def _words(self, waveform: NDArray[np.float32], sample_rate: int) -> Transcript:
        segments, info = self._run(
            waveform,
            sample_rate,
            word_timestamps=True,
            # Left at their values, they drop the text of a clip without a trace.
            no_speech_threshold=None,
            log_prob_threshold=None,
            compression_ratio_threshold=None,
        )
        if info is None:
            return Transcript("", [])
        # Its mean counts the token that ends each part too.
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
        """Its segments and what it says of the clip, None of an empty one."""
        waveform = _at_rate(waveform, sample_rate)
        if not len(waveform):  # it would divide by its length
            return [], None
        segments, info = self._model.transcribe(
            waveform,
            language=self._language,
            beam_size=1,
            # One temperature: with more of them it samples again where it doubts a transcript.
            temperature=0.0,
            condition_on_previous_text=False,
            **options,
        )
        return list(segments), info


def _at_rate(waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    if waveform.ndim != 1:
        raise ValueError(f"a waveform has shape {waveform.shape}, expected [n]")
    if sample_rate != RATE and len(waveform):
        waveform = resample(torch.from_numpy(waveform), sample_rate, RATE).numpy()
    return waveform


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
