"""The Python API: a checkpoint opened by `sheen.load`, which synthesizes texts.

Owns `Speaker` and `Audio`: the settings of the engine, and errors that name the argument. Synthesis
uses the same code as the server (`sheen.engine.longform`), with the same text normalization and
chunks. Knows nothing about Ray or HTTP.
"""

import math
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from sheen.audio.effects import Stretch
from sheen.audio.encoders import MEDIA_TYPES, AudioEncoder
from sheen.audio.samples import NO_SAMPLES
from sheen.engine.engine import Engine
from sheen.engine.reference import LONGEST_S
from sheen.engine.synthesis import Synthesis, synthesize
from sheen.engine.types import Reference, RequestError, Sampling, SynthesisParams
from sheen.engine.voice import load_voice
from sheen.lm.default_voice import find_default_voice
from sheen.lm.precision import Precision
from sheen.storage import files, uris
from sheen.text.delivery import Delivery, deliver
from sheen.text.items import DeliveryError
from sheen.text.lexicon import Lexicon
from sheen.text.prompt import ReferenceForm
from sheen.text.ssml import Scope


@dataclass(frozen=True)
class Audio:
    """Synthesized speech."""

    samples: NDArray[np.float32]
    """`[n]`, -1 to 1, mono."""
    sample_rate: int
    """Hz."""
    finish_reason: str
    """`stop`: ended with EOS; `length`: at least one chunk reached its limit of audio."""

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate

    def save(self, path: str | Path) -> None:
        """Write a file, path or URI, in the format of its suffix: .wav, .flac, .mp3, .opus, .aac or
        .pcm (raw 16-bit samples). ValueError for another suffix."""
        encoder = AudioEncoder(audio_format(str(path)), self.sample_rate, whole=True)
        data = encoder.push(self.samples)
        files.write_bytes(str(path), data + encoder.finish())


def audio_format(path: str) -> str:
    """The format of a file's suffix. ValueError for an unknown one."""
    suffix = Path(uris.name(path)).suffix.lower().removeprefix(".")
    if suffix not in MEDIA_TYPES:
        suffixes = ", ".join(f".{name}" for name in MEDIA_TYPES)
        raise ValueError(f"path {path}: expected a name that ends in one of {suffixes}")
    return suffix


class Speaker:
    """A checkpoint on one device. Several threads may use it; their requests take turns.

    Holds memory and threads until `close`, the end of a `with` block, or garbage collection.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        device: str | None = None,
        dtype: Precision = "auto",
        max_seconds: float = 30.0,
        form: str | None = None,
        codec: str | None = None,
        info: str | None = None,
    ) -> None:
        """As `sheen.load`."""
        if not 0 < max_seconds < math.inf:
            raise ValueError(f"max_seconds {max_seconds}: expected a number of seconds above 0")
        if dtype not in get_args(Precision):
            raise ValueError(f"dtype {dtype!r}: expected one of {', '.join(get_args(Precision))}")
        device = checked_device(device)
        location = find_default_voice() if model is None else model
        self._voice = load_voice(location, device, dtype, form=form, codec=codec, info=info)
        self._max_seconds = max_seconds
        self._engine = Engine(
            self._voice.model,
            self._voice.codec,
            slots=1,
            max_seq_len=self._voice.max_seq_len(
                max_seconds, LONGEST_S if self._voice.info.reference else 0.0
            ),
        )
        self._close = weakref.finalize(self, self._engine.close)

    @property
    def voices(self) -> list[str]:
        """Valid names for `voice`; empty for a model with a single, unnamed voice."""
        return list(self._voice.info.voices)

    @property
    def tags(self) -> list[str]:
        """Tags in a text that the model performs, such as `<laugh>`."""
        return list(self._voice.info.tags)

    @property
    def sample_rate(self) -> int:
        """Sample rate of all audio, Hz."""
        return self._voice.codec.sample_rate

    def reference(
        self, audio: str | Path | bytes, text: str, *, form: ReferenceForm | None = None
    ) -> Reference:
        """Encode a recording of another voice, for `synthesize` and `stream`.

        `audio`: a path, a URI, or a file's bytes; 1 to 30 s, best 3 to 10. `text`: its complete
        transcript. `form`: placement in the prompt, `one-turn` or `two-turn`; by default as in
        training. Raises ValueError, which names the argument and says what to give instead, and
        for a model that was trained without references.
        """
        data = audio if isinstance(audio, bytes) else files.read_bytes(str(audio))
        with _errors_by_argument(ref_audio="audio", ref_text="text"):
            return self._voice.read_reference(data, text, form)

    def synthesize(
        self,
        text: str,
        voice: str | None = None,
        *,
        reference: Reference | None = None,
        instructions: str | None = None,
        speed: float = 1.0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        repetition_window: int | Literal["all"] | None = None,
        seed: int = Sampling.seed,
        lexicon: Mapping[str, str] | None = None,
        ssml: bool = False,
    ) -> Audio:
        """Synthesize a text of any length.

        `voice`: one of `voices` (default: the first). `reference`: a result of the method
        `reference`, whose voice is used instead. `instructions`: how to say the text, for a model
        trained with instructions. `speed`: 0.25 to 4, at constant pitch.
        `temperature`: 0 (greedy) to 5. `top_k`: number of likeliest tokens kept, 0 is off; `top_p`:
        probability mass kept, 1 is off. `repetition_penalty`: 0.5 to 5, 1 is off, for ids among the
        last `repetition_window` tokens, or "all". These five default to the checkpoint's settings,
        else to 0.3, 0, 0.95, 1 and 70. `seed`: the same seed gives the same audio, another one a
        different rendition. A text without a word, such as an emoji, gives 0.2 s of silence.
        `[pause:1.5s]` in the text is exactly that much silence at any speed, at most 60 s.
        `lexicon`: pronunciations of words, such as `{"SQL": "sequel"}`. `ssml`: the text is an SSML
        document, with support for `break`, `sub`, `phoneme`, `prosody rate` and `voice`.

        Raises ValueError, which names the argument, and RuntimeError if synthesis failed or the
        speaker is closed.
        """
        sampling = self._voice.sampling(
            seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            repetition_window=repetition_window,
        )
        stretch = Stretch(speed, self.sample_rate)
        params = self._params(text, voice, sampling, lexicon, reference, instructions, ssml, speed)
        with synthesize(self._engine, self._voice, text, params) as speech:
            samples = np.concatenate([NO_SAMPLES, *_stretched(speech, stretch)])
        return Audio(samples, self.sample_rate, speech.finish_reason)

    def stream(
        self,
        text: str,
        voice: str | None = None,
        *,
        reference: Reference | None = None,
        instructions: str | None = None,
        speed: float = 1.0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        repetition_window: int | Literal["all"] | None = None,
        seed: int = Sampling.seed,
        lexicon: Mapping[str, str] | None = None,
        ssml: bool = False,
    ) -> Iterator[NDArray[np.float32]]:
        """As `synthesize`, but returns chunks of samples `[n]` as they are generated; concatenated,
        they are its `samples`. Raises errors in the arguments immediately, before the first chunk.
        Closing the iterator cancels the synthesis."""
        sampling = self._voice.sampling(
            seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            repetition_window=repetition_window,
        )
        stretch = Stretch(speed, self.sample_rate)
        params = self._params(text, voice, sampling, lexicon, reference, instructions, ssml, speed)
        return self._streamed(text, params, stretch)

    def close(self) -> None:
        """Stop, and release memory and threads. Further calls have no effect."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _params(
        self,
        text: str,
        voice: str | None,
        sampling: Sampling,
        lexicon: Mapping[str, str] | None,
        reference: Reference | None,
        instructions: str | None,
        ssml: bool,
        speed: float,
    ) -> SynthesisParams:
        if not self._close.alive:
            raise RuntimeError("this Speaker is closed; load it again")
        if reference is not None and voice is not None:
            raise ValueError(f"voice {voice!r}: a reference is given too; give only one of them")
        if reference is None and voice is None and self.voices:
            voice = self.voices[0]
        pipeline = self._voice.pipeline
        try:
            lexicons = (Lexicon(lexicon, pipeline.has_phonemes),) if lexicon else ()
        except ValueError as error:
            raise ValueError(f"lexicon: {error}") from error
        delivery = Delivery(lexicons=lexicons, tags=pipeline.tags)
        scope = None
        if ssml:
            voices = {name: name for name in self.voices}
            scope = Scope(voice, voices, pipeline.has_phonemes, pipeline.tags, speed)
        with _errors_by_argument():
            self._voice.check(text, voice, reference, instructions)
            deliver(text, self._voice.language, delivery, scope)
        return SynthesisParams(
            voice, sampling, self._max_seconds, delivery, reference, scope, instructions
        )

    def _streamed(
        self, text: str, params: SynthesisParams, stretch: Stretch
    ) -> Iterator[NDArray[np.float32]]:
        with synthesize(self._engine, self._voice, text, params) as speech:
            yield from _stretched(speech, stretch)


def _stretched(speech: Synthesis, stretch: Stretch) -> Iterator[NDArray[np.float32]]:
    with _errors_by_argument():
        for span in speech:
            if len(ready := stretch.push(span.samples, span.rate)):
                yield ready
    if len(ready := stretch.finish()):
        yield ready


@contextmanager
def _errors_by_argument(**names: str) -> Iterator[None]:
    """Convert a request's errors to ValueError with the names of the arguments here."""
    try:
        yield
    except RequestError as error:
        here = {"input": "text", "ref_audio": "reference", "ref_text": "reference"} | names
        raise ValueError(f"{here.get(error.field, error.field)}: {error}") from error
    except DeliveryError as error:
        raise ValueError(f"text: {error}") from error


def checked_device(device: str | None) -> str:
    """A torch device, by default the one to use here. ValueError for one that is not there."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r}: {str(error).splitlines()[0]}") from error
    return device
