"""A loaded checkpoint with its codec: a text and a voice's name -> a request the engine can run.

Owns opening the folder, the spoken form of a sentence, the longest text of a chunk, and a request's
budget of audio. Refuses a codec or a text normalization other than the recorded one, a voice that
the model does not have, and a text without a word or too long for the model's context. Generates
nothing: that is the engine's.
"""

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from sheen.codec.info import codec_source
from sheen.codec.snac import Codec, load_codec
from sheen.engine.sampler import Sampling
from sheen.engine.types import Request
from sheen.lm import checkpoint
from sheen.lm.model import SpeechLM, load_model
from sheen.lm.precision import Precision, dtype_of
from sheen.storage import files, folders
from sheen.text.prompt import normalise, prompt_ids
from sheen.text.steps import TextPipeline, check_steps

RUNAWAY = 3.0, 2.0
"""A request gets this many times the seconds that its text is expected to take, and so many more:
a model that does not end is not waited for."""
TEXT_POSITIONS = 512
"""Of the longest request, at least; half as many as its audio's where that is more."""
TYPICAL = 6.0, 15.0
"""Seconds of a sentence's audio, and characters that speech takes a second, each a token at most:
for a log line, and for nothing that is computed."""

DEFAULT_CHUNK_CHARS = 200
"""Longest chunk for a checkpoint that does not say what it was taught: a long sentence, 12 to 15
seconds, as the recordings of common corpora are."""
SLOWER = 1.5
"""A chunk may take this many times its expected seconds without meeting a request's cap."""


class RequestError(ValueError):
    """A request that cannot be spoken; `field` is `input` or `voice`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Voice:
    """A speech model and its codec on one device; see `load_voice`."""

    info: checkpoint.CheckpointInfo
    model: SpeechLM
    tokenizer: PreTrainedTokenizerBase
    codec: Codec

    @property
    def dtype(self) -> str:
        """Of the speech model, for a log line."""
        return str(self.model.lm.dtype).removeprefix("torch.")

    @property
    def pipeline(self) -> TextPipeline:
        """The steps that the model's texts were taken through; libraries load at first use."""
        return TextPipeline(self.info.normalizer, tuple(self.info.tags))

    @property
    def language(self) -> str | None:
        """What texts are normalized as, ISO 639-1; None where the model takes them as they are."""
        return self.pipeline.language

    def spoken(self, sentence: str) -> str:
        """A sentence in the form that the model was taught, which is what `request` takes; empty
        when there is nothing to say."""
        return self.pipeline.taught(self.pipeline.words(sentence))

    def check(self, text: str, speaker: str | None) -> None:
        """Raise RequestError for an empty text, and a speaker that the model does not know."""
        voices = self.info.voices
        if voices and speaker not in voices:
            what = "no voice was named" if speaker is None else f"unknown voice {speaker!r}"
            raise RequestError("voice", f"{what}; this model has: {', '.join(voices)}")
        if not voices and speaker is not None:
            raise RequestError(
                "voice", f"unknown voice {speaker!r}; this model has one voice, without a name"
            )
        if not text.strip():
            raise RequestError("input", "the text is empty")

    def max_chunk_chars(self, max_seconds: float, speaker: str | None) -> int:
        """The most characters of spoken text to be given to `request` at once: no more than the
        model was taught, and than `max_seconds` of audio hold; at least 1."""
        taught = self.info.max_chunk_chars or DEFAULT_CHUNK_CHARS
        durations = self.info.duration_model.get(speaker or "")
        if durations is None or durations.frames_per_char <= 0:
            return taught
        frames = max_seconds * self._frames_per_second / SLOWER
        return max(
            1, min(taught, int((frames - durations.base_frames) / durations.frames_per_char))
        )

    def request(
        self,
        text: str,
        speaker: str | None,
        sampling: Sampling,
        max_seconds: float,
        max_seq_len: int | None = None,
    ) -> Request:
        """A request to speak `text`, which is in its spoken form already, in at most `max_seconds`
        of audio, or what the model's context leaves.

        `max_seq_len` is the engine's, where it is less than the model's. Where the checkpoint
        knows how long texts take, one that runs away ends sooner, see RUNAWAY. Raises RequestError
        for an empty text, a speaker the model does not know, and a text that leaves no tokens for
        audio.
        """
        self.check(text, speaker)
        layout = self.model.layout
        prompt = prompt_ids(self.tokenizer, layout.start_id, text, speaker)
        max_seq_len = min(max_seq_len or self.model.max_positions, self.model.max_positions)
        left = (max_seq_len - len(prompt)) // layout.tokens_per_frame
        if left < 1:
            raise RequestError(
                "input",
                f"the text takes {len(prompt)} of the model's {max_seq_len} tokens "
                "and leaves none for audio; give a shorter text",
            )
        if not max_seconds > 0:
            raise ValueError(f"max_seconds {max_seconds}: expected more than 0")
        if (expected := self.expected_seconds(text, speaker)) is not None:
            max_seconds = min(max_seconds, RUNAWAY[0] * expected + RUNAWAY[1])
        budget = max(1, int(min(max_seconds * self._frames_per_second, left)))
        return Request(prompt, budget, sampling)

    @property
    def _frames_per_second(self) -> float:
        return float(self.codec.sample_rate / self.codec.frame_samples)

    def max_seq_len(self, max_seconds: float) -> int:
        """Positions for a request of `max_seconds` of audio and a text to fill them."""
        frames = math.ceil(max_seconds * self._frames_per_second)
        audio = frames * self.model.layout.tokens_per_frame
        return min(self.model.max_positions, audio + max(TEXT_POSITIONS, audio // 2))

    def typical_seq_len(self, max_seconds: float) -> int:
        """Positions for a request of one sentence: see TYPICAL, and `request` for its budget."""
        seconds, pace = TYPICAL
        budget = max_seconds
        if self.info.duration_model:
            budget = min(max_seconds, RUNAWAY[0] * seconds + RUNAWAY[1])
        frames = math.ceil(budget * self._frames_per_second)
        audio = frames * self.model.layout.tokens_per_frame
        return min(self.max_seq_len(max_seconds), audio + round(seconds * pace))

    def expected_seconds(self, text: str, speaker: str | None) -> float | None:
        """How long the voice's own recordings would take; None without a record."""
        durations = self.info.duration_model.get(speaker or "")
        if durations is None:
            return None
        frames = durations.base_frames + durations.frames_per_char * len(normalise(text))
        return frames / self._frames_per_second


def load_voice(
    location: str, device: str | torch.device = "cpu", dtype: Precision = "auto"
) -> Voice:
    """Open a checkpoint folder (path or URI) for synthesis on one device.

    `dtype` is the speech model's; the codec is in float32 always (decision 0022).
    """
    if not files.exists(location):
        raise ValueError(
            f"checkpoint {location}: no such folder. Train one with `sheen train`; "
            "examples/digits/voice of a checkout is a small one that speaks digits."
        )
    info = checkpoint.read_info(location)  # before a large folder is copied from elsewhere
    with folders.local_folder(location) as folder:
        source = codec_source(str(folder), info.codec)
        checkpoint.check_codec(info, source)
        try:
            check_steps(info.normalizer)
        except ValueError as error:
            raise ValueError(f"checkpoint {location}: {error}") from error
        model, tokenizer = load_model(
            folder, info.token_layout, dtype=dtype_of(dtype, torch.device(device))
        )
        model.to(device)
        model.freeze()
        return Voice(info, model, tokenizer, load_codec(source, device))
