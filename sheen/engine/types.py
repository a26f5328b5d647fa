"""The types of the engine's interface: requests, results, playback, counters.

Owns no behavior beyond plain arithmetic: `Playback` computes when a client that plays from the
first chunk on runs out of audio, `Counters` sums the exported metrics. `Sampling` refuses settings
beyond their limits; the engine checks its other arguments itself. Imports no torch, so that the
API's schema can be built without it.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sheen.audio.samples import Samples
from sheen.codec.layout import TokenLayout
from sheen.text.prompt import ReferenceForm

if TYPE_CHECKING:  # the engine runs where nothing that reads texts is installed
    from sheen.text.delivery import Delivery
    from sheen.text.ssml import Scope

REPETITION_WINDOW = 70
"""Generated tokens that the repetition penalty looks back at by default: ten frames at 24 kHz, 0.85
s. Over all tokens it would suppress sounds that speech needs."""
LARGEST = 1 << 20
"""Largest count of rows or tokens: more than any table or request has, and exact in float32."""


@dataclass(frozen=True)
class Sampling:
    """One request's settings. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off.

    `repetition_penalty` divides positive logits, and multiplies negative ones, of token ids among
    the request's last `repetition_window` generated tokens, or all of them; 1 is off. The prompt
    does not count. In a layout with ids by slot, ids repeat less often than in one with ids by
    level, so that the same penalty has a weaker effect.
    """

    temperature: float = 0.3
    top_k: int = 0
    top_p: float = 0.95
    seed: int = 0
    repetition_penalty: float = 1.0
    repetition_window: int | Literal["all"] = REPETITION_WINDOW

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 5.0:
            raise ValueError(f"temperature {self.temperature}: expected 0 to 5")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k}: expected 0 (off) or more")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p {self.top_p}: expected above 0, at most 1")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed {self.seed}: expected 0 to 2**63 - 1")
        if not 0.5 <= self.repetition_penalty <= 5.0:
            raise ValueError(
                f"repetition_penalty {self.repetition_penalty}: expected 0.5 to 5 (1 is off)"
            )
        if self.repetition_window != "all" and self.repetition_window < 1:
            raise ValueError(
                f"repetition_window {self.repetition_window}: expected 1 or more tokens, or all"
            )

    @property
    def reach(self) -> int:
        """The number of past tokens that the penalty counts."""
        window = self.repetition_window
        return LARGEST if window == "all" else min(window, LARGEST)

    @classmethod
    def of(cls, own: Mapping[str, Any], seed: int = 0, **asked: Any) -> "Sampling":
        """The settings in `asked` that are not None, else a model's `own`, else the defaults."""
        given = {name: value for name, value in asked.items() if value is not None}
        return cls(seed=seed, **{**own, **given})


FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Finished:
    """The last item of a sink. `stop`: ended with EOS; `length`: reached its limit of audio."""

    reason: FinishReason
    frames: int
    error: str = ""


Sink = Callable[[Samples | Finished], object]
"""Called from a thread of the engine; it must not block."""


@dataclass(frozen=True)
class Request:
    """`min_frames` to `max_frames` frames are generated after `prompt`, which ends with
    `<audio_start>`, or with whole frames of codes to be continued."""

    prompt: Sequence[int]
    max_frames: int
    sampling: Sampling
    min_frames: int = 1
    shared: int = 0
    """Length of the beginning of the prompt that other requests may share, whose keys and values
    are kept for them, tokens."""
    before: NDArray[np.int16] | None = field(default=None, compare=False)
    """Codes `[frames, tokens_per_frame]` that the generated ones continue: they are context for
    decoding, and their audio is not returned."""

    def seq_len(self, layout: TokenLayout) -> int:
        """Longest sequence of the request, tokens."""
        return len(self.prompt) + self.max_frames * layout.tokens_per_frame


@dataclass(frozen=True)
class Span:
    """Samples `[n]` of a stream with one tempo."""

    samples: Samples
    rate: float | None = 1.0
    """Factor of the request's speed; None for a pause, whose length does not depend on speed."""


class EngineBusy(RuntimeError):
    """The queue is full, with `waiting` requests."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"the queue is full: {waiting} requests are waiting")
        self.waiting = waiting


class RequestError(ValueError):
    """An invalid request; `field`: `input`, `voice`, `instructions`, `ref_audio` or `ref_text`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class SpeechFailed(RuntimeError):
    """The engine failed on a chunk."""


@dataclass(frozen=True, eq=False)
class Reference:
    """An encoded recording of a voice. Requests share its keys and values where possible."""

    frames: NDArray[np.int16]
    """Its codes `[frames, tokens_per_frame]`, in slot order."""
    text: str
    """Its transcript, in the model's input form."""
    form: ReferenceForm
    """Its placement in the prompt."""


def _as_written() -> "Delivery":
    from sheen.text.delivery import Delivery

    return Delivery()


@dataclass(frozen=True)
class SynthesisParams:
    """Settings for the synthesis of a text, the same for all of its chunks."""

    speaker: str | None = None
    """One of the model's voices; None for a model with one voice, which has no name."""
    sampling: Sampling = field(default_factory=Sampling)
    chunk_seconds: float = 30.0
    """Longest audio of a chunk."""
    delivery: "Delivery" = field(default_factory=_as_written)
    reference: Reference | None = None
    """A reference for the voice, instead of a speaker."""
    ssml: "Scope | None" = None
    """For an SSML document: the names that it may use."""
    instruction: str | None = None
    """How to say the text, for a model trained with instructions."""


@dataclass
class Progress:
    """Statistics of a text's synthesis so far."""

    finish_reason: FinishReason | Literal[""] = ""
    """`length` if a finished chunk reached its limit; empty before the first finished chunk."""
    chunks: int = 0
    input_tokens: int = 0
    """Tokens of the prompts; `input_audio_tokens` of them are a reference recording's."""
    input_audio_tokens: int = 0
    output_tokens: int = 0
    queue_s: float | None = None


@dataclass
class Playback:
    """A client that plays a stream from its first chunk on. Times are of `time.monotonic`."""

    opened: float = field(default_factory=time.monotonic)
    runs_out: float | None = None
    """When all audio sent so far will have been played; None before the first audio, unless an
    earlier chunk of the text was sent."""
    first_audio_s: float | None = None
    """Seconds from `opened` to the first samples."""
    seconds: float = 0.0
    """Seconds of audio sent."""
    underruns: int = 0
    """Chunks that were sent after the audio before them had been played."""

    def came(self, seconds: float) -> None:
        """Count audio that is sent now."""
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
        """Count a step that produced this many tokens."""
        with self._lock:
            self._steps += 1
            self._tokens += tokens

    def ended(self, reason: FinishReason) -> None:
        """Count a finished request."""
        with self._lock:
            self._finish_reasons[reason] += 1

    def values(self) -> dict[str, float]:
        """Requests by finish reason, `tokens`, and `batch_fill`: the mean share of slots with a
        token in a step."""
        with self._lock:
            fill = self._tokens / (max(1, self._steps) * self._slots)
            return {**self._finish_reasons, "tokens": self._tokens, "batch_fill": fill}
