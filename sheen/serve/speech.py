"""Rendering: samples -> bytes on the wire, in the speed and the format that were asked for.

Owns the order (speed, then format), which of it is computed beside the event loop, and OpenAI's
events. What a format is and how speed changes: `sheen.audio.encoders`, `sheen.audio.time_stretch`.
"""

import asyncio
import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sheen.audio.encoders import AudioEncoder
from sheen.audio.io import Samples
from sheen.audio.time_stretch import Tempo

CHEAP = {"pcm", "wav"}
"""Formats that cost less to make than to hand to another thread."""


class Renderer:
    """One response's bytes. `close` it, whatever happened."""

    def __init__(
        self,
        audio_format: str,
        speed: float,
        sample_rate: int,
        pool: ThreadPoolExecutor,
        *,
        whole: bool = False,
    ) -> None:
        """`whole`: all bytes leave at `finish`, with a header that states the length."""
        self.sample_rate = sample_rate
        self.whole = whole
        self._speed = speed
        self._tempo = Tempo(speed, sample_rate)
        self._encoder = AudioEncoder(audio_format, sample_rate, whole=whole)
        self._pool = None if audio_format in CHEAP and speed == 1.0 else pool
        # A client may leave while another thread computes: what it uses is not closed under it.
        self._lock = threading.Lock()
        self._closed = False

    async def push(self, samples: Samples) -> bytes:
        """What can be sent of these samples and those before them."""
        return await self._computed(samples)

    async def finish(self) -> bytes:
        """All that is left."""
        return await self._computed(None)

    def seconds(self, samples: Samples) -> float:
        """How long a listener hears these samples."""
        return len(samples) / self.sample_rate / self._speed

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._encoder.close()

    async def _computed(self, samples: Samples | None) -> bytes:
        if self._pool is None:
            return self._compute(samples)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._compute, samples)

    def _compute(self, samples: Samples | None) -> bytes:
        with self._lock:
            if self._closed:
                return b""
            if samples is not None:
                return self._encoder.push(self._tempo.push(samples))
            last = self._encoder.push(self._tempo.finish())
            return last + self._encoder.finish()


def delta_event(data: bytes) -> bytes:
    """Audio as one of OpenAI's server-sent events."""
    return event("speech.audio.delta", audio=base64.b64encode(data).decode())


def event(kind: str, **fields: Any) -> bytes:
    """A server-sent event of this type."""
    return f"data: {json.dumps({'type': kind, **fields})}\n\n".encode()
