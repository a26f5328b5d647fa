"""A loaded checkpoint with its codec: a text and a voice's name -> a request for the engine.

Owns opening the folder, converting a sentence to the model's input form, the longest text of a
chunk, and the limit of a request's audio. Refuses a codec or a text normalization other than the
recorded one, an unknown voice, an empty text, and a text too long for the model's context.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from sheen.audio.samples import Samples
from sheen.codec.identity import checked_codec
from sheen.codec.info import codec_source
from sheen.codec.snac import Codec, load_codec
from sheen.engine.reference import (
    check_text,
    encode_recording,
    read_recording,
    reference_prompt,
)
from sheen.engine.types import Reference, Request, RequestError, Sampling
from sheen.lm import checkpoint
from sheen.lm.checkpoint import DurationModel
from sheen.lm.model import SpeechLM
from sheen.lm.model_files import load_model
from sheen.lm.precision import Precision, dtype_of
from sheen.lm.recognition import describe_checkpoint, describe_separately
from sheen.storage import files, folders, hub
from sheen.text.prompt import PromptTemplate, ReferenceForm, check_characters, normalize
from sheen.text.segmentation import split_sentences
from sheen.text.steps import TextPipeline, check_steps

RUNAWAY = 3.0, 2.0
"""A request's audio is limited to the expected duration times the first number plus the second, in
seconds, so that a runaway generation stops."""
TEXT_POSITIONS = 512
"""Least tokens for the text of the longest request; half as many as for audio if that is more."""
TYPICAL = 6.0, 15.0
"""Seconds of a sentence's audio, and characters (at most a token each) per second of speech: only
for the log line about memory."""

DEFAULT_CHUNK_CHARS = 200
"""Longest chunk for a checkpoint that does not record one: a long sentence, 12 to 15 seconds, as in
the recordings of common corpora."""
NO_REFERENCES = (
    "this model was not trained to follow a reference: train one with --reference-share, or give "
    "the form of the reference to try it anyway"
)
NOT_INSTRUCTED = "this model was not trained to follow instructions; leave them out"
SLOWER = 1.5
"""A chunk may take this many times its expected duration without reaching its limit of audio."""


@dataclass(frozen=True)
class Voice:
    """A speech model and its codec on one device; see `load_voice`."""

    info: checkpoint.CheckpointInfo
    model: SpeechLM
    tokenizer: PreTrainedTokenizerBase
    codec: Codec

    @property
    def dtype(self) -> str:
        """Number format of the speech model, for a log line."""
        return str(self.model.lm.dtype).removeprefix("torch.")

    @cached_property
    def template(self) -> PromptTemplate:
        """The prompt template for the checkpoint's tokenizer."""
        return self.info.prompt.template(self.tokenizer, self.model.layout, self.info.tags)

    def sampling(self, seed: int = 0, **asked: Any) -> Sampling:
        """Sampling settings of a request; those that are None are the checkpoint's."""
        return Sampling.of(self.info.sampling_settings, seed, **asked)

    @property
    def pipeline(self) -> TextPipeline:
        """The recorded normalization steps; libraries load at first use."""
        return TextPipeline(self.info.normalizer, tuple(self.info.tags))

    @property
    def language(self) -> str | None:
        """Language of text normalization, ISO 639-1; None without normalization."""
        return self.pipeline.language

    def model_input(self, sentence: str) -> str:
        """A sentence in the model's input form, as `request` takes it; may be empty."""
        return self.pipeline.model_input(self.pipeline.words(sentence))

    def read_reference(
        self, data: bytes, text: str, form: ReferenceForm | None = None
    ) -> Reference:
        """A reference from a file's bytes and its transcript as written. Raises RequestError, see
        `read_recording` and `reference`."""
        frames = self.encode(read_recording(data, self.codec))
        sentences = map(self.model_input, split_sentences(text, self.language))
        return self.reference(frames, " ".join(filter(None, sentences)), form)

    def encode(self, recording: Samples) -> NDArray[np.int16]:
        """Codes of a recording from `read_recording`, for `reference`."""
        return encode_recording(self.codec, self.model.layout, recording)

    def reference(
        self, frames: NDArray[np.int16], text: str, form: ReferenceForm | None = None
    ) -> Reference:
        """A reference from a recording's codes and its transcript in the model's input form.

        `form`: placement in the prompt, by default as in training. Raises RequestError for a text
        that cannot be the recording's, and without a form for a model trained without references.
        """
        trained = self.info.reference
        if form is None and trained is None:
            raise RequestError("ref_audio", NO_REFERENCES)
        check_text(text, len(frames) / self._frames_per_second)
        form = form or (trained.form if trained else "one-turn")
        return Reference(frames, text, form)

    def check(
        self,
        text: str,
        speaker: str | None,
        reference: Reference | None = None,
        instruction: str | None = None,
    ) -> None:
        """Raise RequestError for an empty text or one that is not Unicode, an unknown speaker, and
        an instruction to a model trained without. With a reference, `speaker` must be None."""
        voices = self.info.voices
        if reference is not None:
            assert speaker is None, "a reference replaces the speaker"
        elif voices and speaker not in voices:
            what = "no voice was named" if speaker is None else f"unknown voice {speaker!r}"
            known = ", ".join(voices) + self.info.naming_voices
            raise RequestError("voice", f"{what}; this model has: {known}")
        elif not voices and speaker is not None and not self.info.prompt.describes:
            known = "one voice, without a name" + self.info.naming_voices
            raise RequestError("voice", f"unknown voice {speaker!r}; this model has {known}")
        if instruction and not self.info.follows_instructions:
            raise RequestError("instructions", NOT_INSTRUCTED)
        if not text.strip():
            raise RequestError("input", "the text is empty")
        for field, words in (("input", text), ("instructions", instruction or "")):
            try:
                check_characters(words, "it")
            except ValueError as error:
                raise RequestError(field, str(error)) from error

    def max_chunk_chars(
        self, max_seconds: float, speaker: str | None, reference: Reference | None = None
    ) -> int:
        """The longest text for one `request`, in characters: limited by the training texts, by
        `max_seconds` of audio, and by what a reference leaves of the context; at least 1."""
        longest = self.info.max_chunk_chars or DEFAULT_CHUNK_CHARS
        durations = self._durations(speaker, reference)
        if durations is None or durations.frames_per_char <= 0:
            return longest
        if reference is not None:
            layout = self.model.layout
            used = len(reference_prompt(self.template, layout, reference, "a")[0])
            # Per character at most one token of text, and its audio.
            each = 1 + SLOWER * durations.frames_per_char * layout.tokens_per_frame
            longest = min(longest, int((self.model.max_positions - used) / each))
        frames = max_seconds * self._frames_per_second / SLOWER
        return max(
            1, min(longest, int((frames - durations.base_frames) / durations.frames_per_char))
        )

    def longest_chunk(
        self,
        max_seconds: float,
        speaker: str | None,
        reference: Reference | None,
        others: Iterable[str | None] = (),
    ) -> int:
        """The smallest `max_chunk_chars` of the request's voice and other voices in its text."""
        limits = [self.max_chunk_chars(max_seconds, other) for other in {*others} - {speaker}]
        return min([self.max_chunk_chars(max_seconds, speaker, reference), *limits])

    def request(
        self,
        text: str,
        speaker: str | None,
        sampling: Sampling,
        max_seconds: float,
        max_seq_len: int | None = None,
        reference: Reference | None = None,
        instruction: str | None = None,
    ) -> Request:
        """A request to speak `text`, which is in the model's input form, with at most `max_seconds`
        of audio, in the voice of a `reference` or a `speaker`, following an `instruction`.

        `max_seq_len`: the engine's, if it is less than the model's. If the checkpoint has a
        duration model, it lowers the limit, see RUNAWAY. Raises RequestError as `check`, and for a
        text or an instruction that leaves too few tokens for audio.
        """
        self.check(text, speaker, reference, instruction)
        layout = self.model.layout
        try:
            if reference is None:
                prompt, shared = self.template.ids(text, speaker, instruction), 0
            else:
                prompt, shared = reference_prompt(
                    self.template, layout, reference, text, instruction
                )
        except ValueError as error:
            raise RequestError("input", str(error)) from error
        max_seq_len = min(max_seq_len or self.model.max_positions, self.model.max_positions)
        left = (max_seq_len - len(prompt)) // layout.tokens_per_frame
        if left < 1:
            what, shorter = "text", "text"
            if reference is not None:
                what, shorter = "text with its reference", "reference"
            raise RequestError(
                "input" if reference is None else "ref_audio",
                f"the {what} takes {len(prompt)} of the model's {max_seq_len} tokens "
                f"and leaves none for audio; give a shorter {shorter}",
            )
        if not max_seconds > 0:
            raise ValueError(f"max_seconds {max_seconds}: expected more than 0")
        if (expected := self.expected_seconds(text, speaker, reference)) is not None:
            max_seconds = min(max_seconds, RUNAWAY[0] * expected + RUNAWAY[1])
            needed_s = min(max_seconds, SLOWER * expected)
            if instruction and left < int(needed_s * self._frames_per_second):
                raise RequestError(
                    "instructions",
                    f"with them the text takes {len(prompt)} of the model's {max_seq_len} tokens, "
                    "which leaves too few for its audio; give shorter ones",
                )
        budget = max(1, int(min(max_seconds * self._frames_per_second, left)))
        least = min(budget, self.info.prompt.min_frames)
        if reference is None:
            return Request(prompt, budget, sampling, least)
        continued = reference.frames if reference.form == "one-turn" else None
        return Request(prompt, budget, sampling, least, shared, continued)

    @property
    def _frames_per_second(self) -> float:
        return float(self.codec.sample_rate / self.codec.frame_samples)

    def max_seq_len(self, max_seconds: float, reference_seconds: float = 0.0) -> int:
        """Tokens of the longest request: `max_seconds` of audio after a reference, and their
        texts."""
        frames = math.ceil((max_seconds + reference_seconds) * self._frames_per_second)
        audio = frames * self.model.layout.tokens_per_frame
        return min(self.model.max_positions, audio + max(TEXT_POSITIONS, audio // 2))

    def typical_seq_len(self, max_seconds: float) -> int:
        """Tokens of a request of one sentence, see TYPICAL; `request` has its limit of audio."""
        seconds, pace = TYPICAL
        budget = max_seconds
        if self.info.duration_model:
            budget = min(max_seconds, RUNAWAY[0] * seconds + RUNAWAY[1])
        frames = math.ceil(budget * self._frames_per_second)
        audio = frames * self.model.layout.tokens_per_frame
        return min(self.max_seq_len(max_seconds), audio + round(seconds * pace))

    def expected_seconds(
        self, text: str, speaker: str | None, reference: Reference | None = None
    ) -> float | None:
        """Expected duration by the voice's recordings; None without a duration model."""
        durations = self._durations(speaker, reference)
        if durations is None:
            return None
        frames = durations.base_frames + durations.frames_per_char * len(normalize(text))
        return frames / self._frames_per_second

    def _durations(self, speaker: str | None, reference: Reference | None) -> DurationModel | None:
        if reference is None:
            return self.info.duration_of(speaker)
        # The speech rate of the recording, which the model continues.
        pace = len(reference.frames) / max(1, len(normalize(reference.text)))
        return DurationModel(base_frames=0.0, frames_per_char=pace)


def load_voice(
    location: str,
    device: str | torch.device = "cpu",
    dtype: Precision = "auto",
    *,
    form: str | None = None,
    codec: str | None = None,
    info: str | None = None,
) -> Voice:
    """Open a checkpoint (folder, URI or hub id) for synthesis on one device.

    `dtype` is the speech model's; the codec is always in float32 (decision 0022). `form`
    and `info`, a file, are for checkpoints without `sheen.json`: see `describe_checkpoint`. So is
    `codec`, which may also be the checkpoint's own with another decoder.
    """
    location = hub.located(location)
    if not files.exists(location):
        raise ValueError(f"checkpoint {location}: no such folder. {checkpoint.HOW_TO_GET_ONE}")
    # Before copying a large folder from a remote store.
    known = describe_checkpoint(location, form=form, codec=codec, info=info)
    with folders.local_folder(location) as folder:
        given = None if codec is None else describe_separately(codec)
        source = checked_codec(known.codec, codec_source(str(folder), known.codec), given)
        try:
            check_steps(known.normalizer)
        except ValueError as error:
            raise ValueError(f"checkpoint {location}: {error}") from error
        model, tokenizer = load_model(
            folder, known.token_layout, dtype=dtype_of(dtype, torch.device(device))
        )
        model.to(device)
        model.freeze()
        voice = Voice(known, model, tokenizer, load_codec(source, device))
        try:
            voice.template  # noqa: B018 - raises here if the tokenizer does not fit
        except ValueError as error:
            raise ValueError(f"checkpoint {location}: {error}") from error
        return voice
