"""Decoding audio: tokens of streams in, samples at their sinks, in a separate thread.

Owns the order of work. Windows of several streams are decoded in one batch, most urgent first:
streams without audio yet, in order of arrival, then those whose clients run out of audio soonest.
A failure in one stream (its tokens, its sink) ends only that stream. Knows nothing about models or
slots.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from sheen.audio.samples import Samples, SilenceTrim
from sheen.codec.windows import WindowCodec
from sheen.engine.audio.streaming import StreamingDecoder, WindowShapes, decode_ready
from sheen.engine.types import Finished, Playback, Sink

logger = logging.getLogger(__name__)

BATCH, CPU_BATCH = 16, 2
"""Most windows in a batch: a new stream waits for one batch. Larger batches are not faster on a
CPU: per window, batches of 16 took longer than single windows."""


@dataclass(eq=False)
class Stream:
    """The state of one request between its tokens and its sink, owned by the stage."""

    decoder: StreamingDecoder
    sink: Sink | None
    """None after the end. Sinks may refer to their requests' tickets, which refer to streams: such
    a cycle would keep a request's audio until the garbage collector's next full collection."""
    trim: SilenceTrim | None = None
    playback: Playback = field(default_factory=Playback)
    """Playback of a client that plays immediately."""
    tokens: list[int] = field(default_factory=list)
    """Tokens received, and not in the decoder yet."""
    received: int = 0
    """Number of tokens received."""
    needed: int = 0
    """Number of tokens with which the next chunk can be decoded."""
    finished: Finished | None = None
    """The end of the request, to be reported to the sink after all samples."""
    broken: bool = False
    """The stream failed, maybe before its last token: its slot must be freed."""

    def __post_init__(self) -> None:
        self.needed = self.decoder.needed * self.decoder.layout.tokens_per_frame

    @property
    def closed(self) -> bool:
        return self.sink is None

    @property
    def urgency(self) -> tuple[bool, float]:
        playback = self.playback
        return playback.runs_out is not None, playback.runs_out or playback.opened

    @property
    def frames(self) -> int:
        """Whole frames received."""
        return self.received // self.decoder.layout.tokens_per_frame

    @property
    def ready(self) -> bool:
        return self.finished is not None or self.received >= self.needed


class AudioStage:
    """The thread that decodes. It calls `closed` when a stream ends, and then tells its sink.

    One thread: on a GPU, more would only contend for Python's lock, and on a CPU for the cores that
    more replicas can use. `shapes`: batches are of these alone. `prepare` is called by the thread
    before the first stream: a GPU's plans for convolutions are a thread's own. If it raises, every
    stream fails.
    """

    def __init__(
        self,
        codec: WindowCodec,
        closed: Callable[[Stream, Finished], object],
        shapes: WindowShapes | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self._codec = codec
        self._shapes = shapes
        self._batch = CPU_BATCH if codec.device.type == "cpu" else BATCH
        if shapes is not None:
            self._batch = shapes.counts[-1]
        self._closed = closed
        self._prepare = prepare
        self._fault: Exception | None = None
        self._streams: set[Stream] = set()
        self._wake = threading.Condition()
        self._closing = False
        self._working_since: float | None = None
        self._thread = threading.Thread(target=self._loop, name="sheen-audio", daemon=True)
        self._thread.start()

    def feed(self, news: Iterable[tuple[Stream, int | Finished]]) -> None:
        """Tokens and ends, as they come. After its end a stream takes nothing more."""
        with self._wake:
            for stream, item in news:
                if stream.closed or stream.finished is not None:
                    continue
                self._streams.add(stream)
                if isinstance(item, Finished):
                    stream.finished = item
                else:
                    stream.tokens.append(item)
                    stream.received += 1
                if stream.ready:
                    self._wake.notify()

    def cancel(self, stream: Stream) -> None:
        """End a stream now, also one whose tokens have ended and whose audio is not all out."""
        with self._wake:
            if not stream.closed:
                self._streams.add(stream)
                stream.finished = Finished("cancelled", 0)
                self._wake.notify()

    def alive(self) -> bool:
        """Whether the thread and the codec run."""
        return self._thread.is_alive() and self._codec.alive()

    def stalled(self, stall_s: float) -> bool:
        """Whether the thread is at one batch for longer than this."""
        since = self._working_since
        return since is not None and time.monotonic() - since > stall_s

    def close(self) -> None:
        """Finish the streams that have an end, and stop the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        on_gpu = self._codec.device.type == "cuda"
        # A GPU's queue of its own: audio must not wait for the tokens computed meanwhile.
        side = torch.cuda.Stream(self._codec.device) if on_gpu else None
        with torch.cuda.stream(side):  # nothing for None
            self._get_ready()
            while streams := self._take():
                self._working_since = time.monotonic()
                try:
                    self._serve(streams)
                except Exception:  # a fault of this file: the thread must outlive it
                    logger.exception("the audio stage failed")
                    for stream in streams:
                        self._fail(stream, RuntimeError("the audio stage failed"))
                with self._wake:
                    self._streams.difference_update(each for each in streams if each.closed)
                self._working_since = None

    def _get_ready(self) -> None:
        if self._prepare is None:
            return
        try:
            self._prepare()
        except Exception as error:
            logger.exception("the audio stage cannot decode")
            self._fault = error

    def _take(self) -> list[Stream]:
        """The most urgent streams that something can be done for; none when the stage closes."""
        with self._wake:
            while True:
                ready = [stream for stream in self._streams if stream.ready]
                if ready:
                    ready.sort(key=lambda stream: stream.urgency)
                    return ready[: self._batch]
                if self._closing and not self._streams:
                    return []
                self._wake.wait()

    def _serve(self, streams: Sequence[Stream]) -> None:
        """Take in what came, and give out one chunk of each stream, or its end."""
        live, over = [], set()
        if self._fault is not None:
            for stream in streams:
                self._fail(stream, self._fault)
            return
        for stream in streams:
            with self._wake:
                tokens, stream.tokens = stream.tokens, []
                finished = stream.finished
            if finished is not None and finished.reason in ("cancelled", "error"):
                self._end(stream, finished)
                continue
            try:
                if tokens:
                    stream.decoder.push(tokens)
                if finished is not None:
                    stream.decoder.finish()
                    over.add(stream)
            except Exception as error:  # noqa: BLE001 - it is told to the sink
                self._fail(stream, error)
                continue
            live.append(stream)
        for stream, samples in zip(live, self._decode(live), strict=True):
            if samples is None:
                continue
            if len(samples):
                self._give(stream, samples)
            elif stream in over and stream.finished is not None:
                if stream.trim is not None and len(held := stream.trim.flush()):
                    self._hand(stream, held)
                self._end(stream, stream.finished)
            stream.needed = stream.decoder.needed * stream.decoder.layout.tokens_per_frame

    def _decode(self, streams: Sequence[Stream]) -> list[Samples | None]:
        """The next chunk of each; None for one that failed. Together, unless that fails."""
        try:
            return list(decode_ready([stream.decoder for stream in streams], self._shapes))
        except Exception:
            logger.exception("a batch of %d windows failed; now each alone", len(streams))
        results: list[Samples | None] = []
        for stream in streams:
            try:
                results.append(decode_ready([stream.decoder], self._shapes)[0])
            except Exception as error:  # noqa: BLE001 - it is told to the sink
                self._fail(stream, error)
                results.append(None)
        return results

    def _give(self, stream: Stream, samples: Samples) -> None:
        passed = samples if stream.trim is None else stream.trim.push(samples)
        if len(passed):
            stream.decoder.audible = True
            self._hand(stream, passed)

    def _hand(self, stream: Stream, samples: Samples) -> None:
        """Hand samples to the sink, and reckon how long they will last."""
        if not self._call(stream, samples):
            return
        stream.playback.came(len(samples) / self._codec.sample_rate)

    def _call(self, stream: Stream, item: Samples | Finished) -> bool:
        """False when the sink raised: its request is over, and no other."""
        sink = stream.sink
        if sink is None:
            return False
        if isinstance(item, Finished):
            stream.sink = None
        try:
            sink(item)
        except Exception:  # a sink is the caller's code: it may raise anything
            logger.exception("the sink of a request failed; the request is dropped")
            if stream.sink is not None:
                stream.sink = None
                stream.broken = True
                self._closed(stream, Finished("cancelled", stream.frames))
            return False
        return True

    def _end(self, stream: Stream, finished: Finished) -> None:
        if not stream.closed:
            finished = Finished(finished.reason, stream.frames, finished.error)
            # Counted first: who hears of an ending may ask for the counts.
            self._closed(stream, finished)
            self._call(stream, finished)

    def _fail(self, stream: Stream, error: Exception) -> None:
        if not stream.closed:
            logger.error("a stream failed: %s", error, exc_info=error)
            stream.broken = True
            self._end(stream, Finished("error", 0, str(error) or type(error).__name__))
