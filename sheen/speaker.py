"""The Python API: a checkpoint, opened by `sheen.load`, that speaks texts.

Owns `Speaker` and `Audio`: which engine a program gets, and errors that name the argument. A text
is spoken by the code that the server uses (`sheen.engine.longform`): the same text normalization
and the same chunks. Knows nothing about Ray or HTTP.
"""

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
from sheen.default_voice import find_default_voice
from sheen.engine.engine import Engine
from sheen.engine.reference import LONGEST_S
from sheen.engine.sampler import Sampling
from sheen.engine.synthesis import Synthesis, synthesize
from sheen.engine.types import Reference, RequestError, SynthesisParams
from sheen.engine.voice import load_voice
from sheen.lm.precision import Precision
from sheen.storage import files, uris
from sheen.text.delivery import Delivery, deliver
from sheen.text.items import DeliveryError
from sheen.text.lexicon import Lexicon
from sheen.text.prompt import ReferenceForm
from sheen.text.ssml import Scope


@dataclass(frozen=True)
class Audio:
    """What was spoken."""

    samples: NDArray[np.float32]
    """`[n]`, -1 to 1, mono."""
    sample_rate: int
    """Hz."""
    finish_reason: str
    """`stop`: the model ended the speech; `length`: a limit did, in one chunk at least."""

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate

    def save(self, path: str | Path) -> None:
        """Write a file, path or URI, in the format that its ending names: .wav, .flac, .mp3, .opus,
        .aac or .pcm (raw 16-bit samples). ValueError for another ending."""
        encoder = AudioEncoder(audio_format(str(path)), self.sample_rate, whole=True)
        data = encoder.push(self.samples)
        files.write_bytes(str(path), data + encoder.finish())


def audio_format(path: str) -> str:
    """The format that a file's ending names. ValueError for an unknown one."""
    ending = Path(uris.name(path)).suffix.lower().removeprefix(".")
    if ending not in MEDIA_TYPES:
        endings = ", ".join(f".{name}" for name in MEDIA_TYPES)
        raise ValueError(f"path {path}: expected a name that ends in one of {endings}")
    return ending


class Speaker:
    """A checkpoint on one device. Several threads may use it; their requests take turns.

    Holds memory and threads until `close`, the end of a `with` block, or its own end.
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
        if not max_seconds > 0:
            raise ValueError(f"max_seconds {max_seconds}: expected more than 0")
        if dtype not in get_args(Precision):
            raise ValueError(f"dtype {dtype!r}: expected one of {', '.join(get_args(Precision))}")
        device = _checked_device(device)
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
        """Names that `voice` may have; empty for a model with one voice, which has no name."""
        return list(self._voice.info.voices)

    @property
    def tags(self) -> list[str]:
        """Words such as `<laugh>` that the model acts where they stand in a text."""
        return list(self._voice.info.tags)

    @property
    def sample_rate(self) -> int:
        """Of all audio, Hz."""
        return self._voice.codec.sample_rate

    def reference(
        self, audio: str | Path | bytes, text: str, *, form: ReferenceForm | None = None
    ) -> Reference:
        """A recording of another voice, for `synthesize` and `stream` to speak in.

        `audio`: a path, a URI, or a file's bytes; 1 to 30 s, best 3 to 10. `text`: what is said in
        it, all of it. It is encoded here, once. `form`: how it is put before a text, `one-turn` or
        `two-turn`; by default as the model was taught. Raises ValueError, which names the argument
        and says what to give instead, and where the model was taught no references.
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
        """Speak a text of any length.

        `voice`: one of `voices`; may be left out where there is one only. `reference`: a recording
        of the voice to speak in instead, from the method `reference`. `instructions`: how it is to
        be said, for a model that was trained with instructions. `speed`: 0.25 to 4, at the same
        pitch. `temperature`: 0 (the likeliest token always) to 5. `top_k`, `top_p`: draw from
        so many of the likeliest tokens, from so much of the probability; 0 and 1 are off.
        `repetition_penalty`: 0.5 to 5, 1 is off, for tokens among the last `repetition_window`, or
        "all". Of these, what is left out is as the checkpoint says, else as for Sheen's own models:
        0.3, 0, 0.95, 1, 70. `seed`: another one is another rendition; the same one gives the same
        audio. A text without a word, such as an emoji, is a moment of silence.
        `[pause:1.5s]` in the text is exactly that much silence at any speed, 60 s at most.
        `lexicon`: words, and what is said for each, such as `{"SQL": "sequel"}`. `ssml`: the text
        is an SSML document, of which `break`, `sub`, `phoneme`, `prosody rate` and `voice` are
        followed.

        Raises ValueError, which names the argument, and RuntimeError where synthesis failed or the
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
        """As `synthesize`, while it is generated: chunks of samples `[n]`, which together are its
        `samples`. Wrong arguments are refused here, before the first chunk is asked for. Closing
        the iterator ends the synthesis."""
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
        """Stop, and give back the threads. Again, it does nothing."""
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
            raise RuntimeError("this Speaker is closed: load another one")
        if reference is not None and voice is not None:
            raise ValueError(f"voice {voice!r}: a reference is given too; give one of them")
        if reference is None and voice is None and len(self.voices) == 1:
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
    """A request's errors, with the `names` that the arguments have here."""
    try:
        yield
    except RequestError as error:
        here = {"input": "text", "ref_audio": "reference", "ref_text": "reference"} | names
        raise ValueError(f"{here.get(error.field, error.field)}: {error}") from error
    except DeliveryError as error:
        raise ValueError(f"text: {error}") from error


def _checked_device(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r}: {str(error).splitlines()[0]}") from error
    return device
