"""What passes between the engine and its callers: requests, how they end, playback, counters.

Owns the vocabulary of the engine's interface and no behaviour beyond plain arithmetic: `Playback`
tells when a listener who plays from the first chunk on runs out of audio, `Counters` sums what is
exported. Refuses nothing; the engine checks what it is given.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sheen.audio.samples import Samples
from sheen.codec.layout import TokenLayout
from sheen.engine.sampler import Sampling
from sheen.text.prompt import ReferenceForm

if TYPE_CHECKING:  # the engine runs where nothing that reads texts is installed
    from sheen.text.delivery import Delivery
    from sheen.text.ssml import Scope

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Finished:
    """The last thing a sink gets. `stop`: the model ended; `length`: the budget did."""

    reason: FinishReason
    frames: int
    error: str = ""


Sink = Callable[[Samples | Finished], object]
"""Called from a thread of the engine; it must not block."""


@dataclass(frozen=True)
class Request:
    """`min_frames` to `max_frames` frames are generated after `prompt`, which ends in
    `<audio_start>`, or in whole frames of codes that are continued."""

    prompt: Sequence[int]
    max_frames: int
    sampling: Sampling
    min_frames: int = 1
    shared: int = 0
    """Tokens of the prompt's beginning that other requests may have too: what of it is computed is
    kept for them."""
    before: NDArray[np.int16] | None = field(default=None, compare=False)
    """Codes `[frames, tokens_per_frame]` of the audio that the generated one continues: it is
    decoded as their continuation, and they are not heard."""

    def seq_len(self, layout: TokenLayout) -> int:
        """Positions of a slot that it needs."""
        return len(self.prompt) + self.max_frames * layout.tokens_per_frame


@dataclass(frozen=True)
class Span:
    """Samples `[n]` of a stream that are heard at one tempo."""

    samples: Samples
    rate: float | None = 1.0
    """Times the request's speed; None: silence of a stated length, the same at any speed."""


class EngineBusy(RuntimeError):
    """The queue is full; `waiting` requests are before this one."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests are waiting already")
        self.waiting = waiting


class RequestError(ValueError):
    """A request that cannot be spoken; `field` is `input`, `voice`, `instructions`, `ref_audio` or
    `ref_text`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class SpeechFailed(RuntimeError):
    """The engine gave up on a chunk."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A recording of the voice to speak in, encoded. Requests share what was computed of it."""

    frames: NDArray[np.int16]
    """Its codes `[frames, tokens_per_frame]`, in slot order."""
    text: str
    """What is said in it, in the form that the model was taught."""
    form: ReferenceForm
    """How it is placed in the prompt."""


def _as_written() -> "Delivery":
    from sheen.text.delivery import Delivery

    return Delivery()


@dataclass(frozen=True)
class SynthesisParams:
    """How a text is to be spoken: the same for each of its chunks."""

    speaker: str | None = None
    """One of the model's voices; None for a model with one voice, which has no name."""
    sampling: Sampling = field(default_factory=Sampling)
    chunk_seconds: float = 30.0
    """Longest audio of a chunk."""
    delivery: "Delivery" = field(default_factory=_as_written)
    reference: Reference | None = None
    """Whose voice it is spoken in; the speaker is None then."""
    ssml: "Scope | None" = None
    """The text is an SSML document, which may name so much."""
    instruction: str | None = None
    """How it is to be said, for a model that was trained with instructions."""


@dataclass
class Progress:
    """What has been synthesized of a text so far."""

    finish_reason: FinishReason | Literal[""] = ""
    """Of the chunks so far: `length` if one of them met its budget; empty where there is none."""
    chunks: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    queue_s: float | None = None


@dataclass
class Playback:
    """A listener who plays a stream from its first chunk on. Times are of `time.monotonic`."""

    opened: float = field(default_factory=time.monotonic)
    runs_out: float | None = None
    """When everything sent so far will have been played; None before the first audio, unless the
    same listener had audio before."""
    first_audio_s: float | None = None
    """From `opened` to the first samples."""
    seconds: float = 0.0
    """Of audio that was sent."""
    underruns: int = 0
    """Chunks that were sent after the audio before them had been played."""

    def came(self, seconds: float) -> None:
        """So much audio has come now."""
        now = time.monotonic()
        if self.first_audio_s is None:
            self.first_audio_s = now - self.opened
        if self.runs_out is not None and now > self.runs_out:
            self.underruns += 1
        self.runs_out = max(self.runs_out or now, now) + seconds
        self.seconds += seconds


class Counters:
    """Sums since the engine's start. Safe to use from several threads."""

    def __init__(self, slots: int) -> None:
        self._lock = threading.Lock()
        self._slots = slots
        self._finish_reasons: dict[str, float] = dict.fromkeys(get_args(FinishReason), 0)
        self._steps = self._tokens = 0

    def stepped(self, tokens: int) -> None:
        """A step produced this many tokens."""
        with self._lock:
            self._steps += 1
            self._tokens += tokens

    def ended(self, reason: FinishReason) -> None:
        """A stream's sink got its last item."""
        with self._lock:
            self._finish_reasons[reason] += 1

    def values(self) -> dict[str, float]:
        """Requests by finish reason, `tokens`, and `batch_fill`: the mean share of slots that a
        step produced tokens for."""
        with self._lock:
            fill = self._tokens / (max(1, self._steps) * self._slots)
            return {**self._finish_reasons, "tokens": self._tokens, "batch_fill": fill}
