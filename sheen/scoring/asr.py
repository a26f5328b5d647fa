"""ASR: waveforms to text.

Owns the choice of a `Transcriber` and one of them, any transformers speech recognition model;
faster-whisper is `sheen.scoring.whisper`. A transcriber never sees the reference text, and a clip's
transcript does not depend on the other clips. Error rates are `sheen.scoring.wer`'s.
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample

from sheen.scoring.transcript import Transcript, Word
from sheen.scoring.whisper import FasterWhisper, find_whisper


class Transcriber(Protocol):
    """`name` is for reports: the program, its version and its settings."""

    name: str

    def transcribe(self, waveforms: Sequence[NDArray[np.float32]], sample_rate: int) -> list[str]:
        """The text of each waveform `[n]` (in -1..1, at `sample_rate` Hz), "" where there is none.

        In the order given, as the recogniser writes it: compare after normalization.
        """
        ...

    def transcribe_words(
        self, waveforms: Sequence[NDArray[np.float32]], sample_rate: int
    ) -> list[Transcript]:
        """The same with all that the recogniser says of each clip. Slower."""
        ...

    def guess_language(
        self, waveform: NDArray[np.float32], sample_rate: int
    ) -> tuple[str, float] | None:
        """ISO 639-1 code and its probability, whatever language is set; None: it cannot guess."""
        ...


class AsrPipeline:
    """A speech recogniser of transformers: a folder or a hub id, in float32, at its own settings.

    `language` (such as "en") is for multilingual Whisper models, which guess it otherwise. Raises
    ValueError when the model cannot be opened or the language not be set.
    """

    def __init__(
        self, model: str, *, device: str = "cpu", batch_size: int = 8, language: str | None = None
    ) -> None:
        self._pipeline = _open_pipeline(model, device)
        self._whisper = self._pipeline.type == "seq2seq_whisper"
        self._rate = int(self._pipeline.feature_extractor.sampling_rate)
        # Whisper pads every clip to its window of 30 s, alone or in a batch. What pads to the
        # longest clip of a batch may transcribe a clip differently next to a longer one.
        self._batch_size = batch_size if self._whisper else 1
        self._tells_words = _tells_words(self._pipeline)
        self.name = f"{model} (transformers {version('transformers')}, float32)"
        self._generate: dict[str, str] = {}
        if language is not None:
            generation = getattr(self._pipeline.model, "generation_config", None)
            if not self._whisper or not getattr(generation, "is_multilingual", False):
                raise ValueError(f"language {language!r}: {model!r} is no multilingual Whisper")
            self._generate = {"language": language, "task": "transcribe"}
            self.name += f", language {language}"

    def transcribe(self, waveforms: Sequence[NDArray[np.float32]], sample_rate: int) -> list[str]:
        clips = list(_resampled(waveforms, sample_rate, self._rate))
        window = self._pipeline.feature_extractor.n_samples if self._whisper else None
        long = [window is not None and len(clip) > window for clip in clips]
        texts = [""] * len(clips)
        for is_long in (False, True):
            # No recogniser takes an empty clip: its transcript is "".
            mine = [i for i, clip in enumerate(clips) if len(clip) and long[i] == is_long]
            if not mine:
                continue
            outputs = self._pipeline(
                [{"raw": clips[i], "sampling_rate": self._rate} for i in mine],
                batch_size=1 if is_long else self._batch_size,
                generate_kwargs=self._generate,
                # Past its window Whisper resumes from its own last timestamp.
                **({"return_timestamps": True} if is_long else {}),
            )
            for i, output in zip(mine, outputs, strict=True):
                texts[i] = output["text"].strip()
        return texts

    def transcribe_words(
        self, waveforms: Sequence[NDArray[np.float32]], sample_rate: int
    ) -> list[Transcript]:
        """Words of a Whisper that knows its alignment heads, by its cross attention, and of a CTC
        model; else, and where the times that come out are none, without. One clip at a time."""
        if not self._tells_words:
            return [Transcript(text) for text in self.transcribe(waveforms, sample_rate)]
        return [self._words(clip) for clip in _resampled(waveforms, sample_rate, self._rate)]

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
            # Of a last word that is cut off, transformers gives no end; and Whisper's window may be
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
    """Whether a transformers pipeline has word times that mean something."""
    # By its module: of transformers itself mypy knows no tokenizers. It takes seconds to import.
    from transformers.models.wav2vec2.tokenization_wav2vec2 import Wav2Vec2CTCTokenizer

    if pipeline.type == "seq2seq_whisper":
        # Of a Whisper that was tuned without timestamps both are often missing.
        generation = pipeline.model.generation_config
        names = ("alignment_heads", "no_timestamps_token_id")
        return all(getattr(generation, name, None) for name in names)
    return pipeline.type == "ctc" and isinstance(pipeline.tokenizer, Wav2Vec2CTCTokenizer)


def open_transcriber(asr: str, device: str = "cpu", language: str | None = "en") -> Transcriber:
    """The ASR that `--asr` names.

    It is a faster-whisper model's name or CTranslate2 folder, which transcribes `language` (None
    guesses it), or a transformers model's folder or hub id, which guesses it. Raises ValueError
    naming the flag.
    """
    try:
        if find_whisper(asr) is not None:
            return FasterWhisper(asr, device=device, language=language)
        return AsrPipeline(asr, device=device)
    except ValueError as error:
        raise ValueError(f"--asr: {error}") from error


def check_transcriber(asr: str) -> None:
    """Raise ValueError, as `open_transcriber` would, short of loading a recogniser's weights."""
    try:
        if find_whisper(asr) is None:
            _find_recogniser(asr)
    except ValueError as error:
        raise ValueError(f"--asr: {error}") from error


def _find_recogniser(model: str) -> str:
    """A folder's path, or a hub id as it is."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"recogniser {model!r}: a folder that holds no model; expected model.bin, "
                "tokenizer.json and a vocabulary (CTranslate2), or config.json and weights "
                "(transformers)"
            )
        return str(folder.resolve())
    if model.startswith(("/", ".", "~")) or model.count("/") != 1:
        raise ValueError(
            f"recogniser {model!r}: no such folder; give a folder, a hub id such as "
            "openai/whisper-base, or a name of faster-whisper's such as base"
        )
    return model


def _open_pipeline(model: str, device: str) -> Any:
    found = _find_recogniser(model)
    from transformers import pipeline  # takes seconds to import

    try:
        return pipeline(
            "automatic-speech-recognition",
            model=found,
            device=device,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"recogniser {model!r} on {device}: {error}") from error


def _resampled(
    waveforms: Sequence[NDArray[np.float32]], source_rate: int, rate: int
) -> Iterator[NDArray[np.float32]]:
    for index, waveform in enumerate(waveforms):
        if waveform.ndim != 1:
            raise ValueError(f"waveform {index} has shape {waveform.shape}, expected [n]")
        if len(waveform) == 0 or source_rate == rate:
            yield waveform
        else:
            yield resample(torch.from_numpy(waveform), source_rate, rate).numpy()
