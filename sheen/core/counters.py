"""What an engine counts: plain numbers, for whoever exports them."""

import threading

from sheen.core.audio_stage import Stream
from sheen.core.ending import Finished


class Counters:
    """Sums since the engine's start. Safe to use from several threads."""

    def __init__(self, slots: int) -> None:
        self._lock = threading.Lock()
        self._slots = slots
        self._endings = {"stop": 0, "length": 0, "cancelled": 0, "error": 0}
        self._sums = dict.fromkeys(
            (
                "refused",
                "started",
                "queue_seconds",
                "passes",
                "tokens",
                "audio_seconds",
                "heard",
                "first_audio_seconds",
                "underruns",
            ),
            0.0,
        )

    def _add(self, **values: float) -> None:
        with self._lock:
            for name, value in values.items():
                self._sums[name] += value

    def refused(self) -> None:
        """A request found the queue full."""
        self._add(refused=1)

    def started(self, waited_s: float) -> None:
        """A request got a slot."""
        self._add(started=1, queue_seconds=waited_s)

    def passed(self, tokens: int) -> None:
        """A pass produced so many tokens."""
        self._add(passes=1, tokens=tokens)

    def ended(self, ending: Finished, stream: Stream) -> None:
        """A stream's sink got its last item."""
        playback = stream.playback
        self._add(audio_seconds=playback.seconds, underruns=playback.underruns)
        if playback.first_audio_s is not None:
            self._add(heard=1, first_audio_seconds=playback.first_audio_s)
        with self._lock:
            self._endings[ending.reason] += 1

    def values(self) -> dict[str, float]:
        """`stop`, `length`, `cancelled`, `error`: requests by how they ended; `heard`: those that
        gave audio, after `first_audio_seconds` all in all; `batch_fill`: mean share of slots that a
        pass produced tokens for; the other names as they are."""
        with self._lock:
            passes = max(1.0, self._sums["passes"])
            fill = self._sums["tokens"] / (passes * self._slots)
            return {**self._endings, **self._sums, "batch_fill": fill}
