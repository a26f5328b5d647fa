"""ASR: waveforms to text.

Owns the choice of a `Transcriber`, and the one for transformers' ASR models; faster-whisper is
`sheen.scoring.whisper`. A transcriber does not know the reference text, and a clip's transcript
does not depend on the other clips. Error rates are `sheen.scoring.wer`'s.
"""

from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sheen.scoring.transcript import Transcript, Word
from sheen.scoring.whisper import FasterWhisper, at_rate, find_whisper


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


class AsrPipeline:
    """An ASR model of transformers, by folder or hub id, in float32 with its own settings.

    `language` (such as "en") is for multilingual Whisper models, which otherwise detect it. Raises
    ValueError if the model cannot be opened or the language cannot be set.
    """

    def __init__(
        self, model: str, *, device: str = "cpu", batch_size: int = 8, language: str | None = None
    ) -> None:
        self._pipeline = _open_pipeline(model, device)
        self._whisper = self._pipeline.type == "seq2seq_whisper"
        self._rate = int(self._pipeline.feature_extractor.sampling_rate)
        # Whisper always pads clips to its window of 30 s. Other models pad to the longest clip of a
        # batch, which may change the transcripts of shorter ones.
        self._batch_size = batch_size if self._whisper else 1
        self._tells_words = _tells_words(self._pipeline)
        self.name = f"{model} (transformers {version('transformers')}, float32)"
        self._generate: dict[str, str] = {}
        if language is not None:
            generation = getattr(self._pipeline.model, "generation_config", None)
            if not self._whisper or not getattr(generation, "is_multilingual", False):
                raise ValueError(f"language {language!r}: {model!r} is not a multilingual Whisper")
            self._generate = {"language": language, "task": "transcribe"}
            self.name += f", language {language}"

    def transcribe(self, waveforms: Sequence[NDArray[np.float32]], sample_rate: int) -> list[str]:
        clips = [at_rate(waveform, sample_rate, self._rate) for waveform in waveforms]
        window = self._pipeline.feature_extractor.n_samples if self._whisper else None
        long = [window is not None and len(clip) > window for clip in clips]
        texts = [""] * len(clips)
        for is_long in (False, True):
            # ASR models do not accept an empty clip: its transcript is "".
            mine = [i for i, clip in enumerate(clips) if len(clip) and long[i] == is_long]
            if not mine:
                continue
            outputs = self._pipeline(
                [{"raw": clips[i], "sampling_rate": self._rate} for i in mine],
                batch_size=1 if is_long else self._batch_size,
                generate_kwargs=self._generate,
                # Beyond its window, Whisper continues from its own last timestamp.
                **({"return_timestamps": True} if is_long else {}),
            )
            for i, output in zip(mine, outputs, strict=True):
                texts[i] = output["text"].strip()
        return texts

    def transcribe_words(
        self, waveforms: Sequence[NDArray[np.float32]], sample_rate: int
    ) -> list[Transcript]:
        """With word times for CTC models, and, from cross-attention, for a Whisper with alignment
        heads; without for other models, and if the times are invalid. One clip at a time."""
        if not self._tells_words:
            return [Transcript(text) for text in self.transcribe(waveforms, sample_rate)]
        return [self._words(at_rate(each, sample_rate, self._rate)) for each in waveforms]

    def _words(self, clip: NDArray[np.float32]) -> Transcript:
        if not len(clip):
            return Transcript("", [])
        output = self._pipeline(
            {"raw": clip, "sampling_rate": self._rate},
            return_timestamps="word",
            generate_kwargs=self._generate,
        )
        seconds = len(clip) / self._rate
        words = []
        for chunk in output["chunks"]:
            start, end = chunk["timestamp"]
            # transformers has no end for a last word that is cut off, and Whisper's window may be
            # longer than the clip.
            end = seconds if end is None else min(end, seconds)
            words.append(Word(chunk["text"].strip(), min(start, end), end))
        text = output["text"].strip()
        spelt = "".join(word.text for word in words) == "".join(text.split())
        rising = all(a.start <= b.start for a, b in pairwise(words))
        return Transcript(text, words if spelt and rising else None)

    def guess_language(
        self, waveform: NDArray[np.float32], sample_rate: int
    ) -> tuple[str, float] | None:
        return None


def _tells_words(pipeline: Any) -> bool:
    """Whether a transformers pipeline has usable word times."""
    # From its module, because mypy does not know transformers' tokenizers. Slow to import.
    from transformers.models.wav2vec2.tokenization_wav2vec2 import Wav2Vec2CTCTokenizer

    if pipeline.type == "seq2seq_whisper":
        # A Whisper that was fine-tuned without timestamps often has neither.
        generation = pipeline.model.generation_config
        names = ("alignment_heads", "no_timestamps_token_id")
        return all(getattr(generation, name, None) for name in names)
    return pipeline.type == "ctc" and isinstance(pipeline.tokenizer, Wav2Vec2CTCTokenizer)


def open_transcriber(asr: str, device: str = "cpu", language: str | None = "en") -> Transcriber:
    """The ASR model of `--asr`.

    `asr`: a faster-whisper model by name or CTranslate2 folder, which transcribes `language` (None:
    detected), or a transformers model by folder or hub id, which detects the language. Raises
    ValueError naming the flag.
    """
    try:
        if find_whisper(asr) is not None:
            return FasterWhisper(asr, device=device, language=language)
        return AsrPipeline(asr, device=device)
    except ValueError as error:
        raise ValueError(f"--asr: {error}") from error


def check_transcriber(asr: str) -> None:
    """Raise ValueError as `open_transcriber` does, without loading the weights."""
    try:
        if find_whisper(asr) is None:
            _find_model(asr)
    except ValueError as error:
        raise ValueError(f"--asr: {error}") from error


def _find_model(model: str) -> str:
    """A folder's path, or a hub id as it is."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"ASR model {model!r}: the folder has no model; expected model.bin, "
                "tokenizer.json and a vocabulary (CTranslate2), or config.json and weights "
                "(transformers)"
            )
        return str(folder.resolve())
    if model.startswith(("/", ".", "~")) or model.count("/") != 1:
        raise ValueError(
            f"ASR model {model!r}: no such folder; give a folder, a hub id such as "
            "openai/whisper-base, or the name of a faster-whisper model such as base"
        )
    return model


def _open_pipeline(model: str, device: str) -> Any:
    found = _find_model(model)
    from transformers import pipeline  # takes seconds to import

    try:
        return pipeline(
            "automatic-speech-recognition",
            model=found,
            device=device,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"ASR model {model!r} on {device}: {error}") from error
