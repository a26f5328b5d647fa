"""The engine: `submit(request, sink)`, and PCM arrives at the sink while it is generated.

Owns the queue, the thread that computes, and every request's ending. Requests that wait together
are generated as one fixed batch; requests that come later wait for the next. It knows nothing
about text, voices or HTTP.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sheen.core.codec import Codec
from sheen.core.generate import generate
from sheen.core.model import SpeechLM
from sheen.core.sampling import Sampler, Sampling
from sheen.core.streaming import StreamingDecoder, decode_ready

logger = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "cancelled", "error"]
Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """`prompt` ends in `<audio_start>`; `min_frames` to `max_frames` frames are generated."""

    prompt: Sequence[int]
    max_frames: int
    sampling: Sampling
    min_frames: int = 1


@dataclass(frozen=True)
class Finished:
    """The last thing a sink gets. `stop`: the model ended; `length`: the budget did."""

    reason: FinishReason
    frames: int
    error: str = ""


Sink = Callable[[Samples | Finished], object]
"""Called from the engine's thread; it must not block."""


class EngineBusy(RuntimeError):
    """The queue is full; `waiting` requests are before this one."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests are waiting already")
        self.waiting = waiting


class Ticket:
    """A submitted request. After `cancel()` its sink gets `Finished("cancelled")` and no more."""

    def __init__(self, request: Request, sink: Sink, decoder: StreamingDecoder) -> None:
        self.request = request
        self._sink = sink
        self._decoder = decoder
        self._cancelled = threading.Event()
        self._ending: FinishReason | None = None
        self._closed = False

    def cancel(self) -> None:
        self._cancelled.set()

    def _emit(self, item: Samples | Finished) -> None:
        """Hand an item to the sink; a sink that raises ends its own request and no other."""
        if self._closed:
            return
        self._closed = isinstance(item, Finished)
        try:
            self._sink(item)
        except Exception:  # a sink is the caller's code: it may raise anything
            logger.exception("the sink of a request failed; the request is dropped")
            self._closed = True
            self._ending = self._ending or "cancelled"


class Engine:
    """Generates and decodes for up to `max_batch` requests at a time, in a thread of its own.

    `batch_wait_s`: how long a batch that is not full waits for one more request. `max_queue`: how
    many requests may wait before `submit` raises EngineBusy. `noise`: the codec's own noise, drawn
    from each request's seed.
    """

    def __init__(
        self,
        model: SpeechLM,
        codec: Codec,
        *,
        max_batch: int = 8,
        max_queue: int = 64,
        batch_wait_s: float = 0.05,
        noise: bool = True,
    ) -> None:
        self._model = model
        self._codec = codec
        self._max_batch = max_batch
        self._batch_wait_s = batch_wait_s
        self._noise = noise
        self._queue: queue.Queue[Ticket | None] = queue.Queue(max_queue)
        self._closing = False
        self._submitting = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="sheen-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, sink: Sink) -> Ticket:
        """Queue a request.

        Raises EngineBusy, ValueError for one that cannot fit the model, and RuntimeError after
        `close`.
        """
        layout = self._model.layout
        positions = len(request.prompt) + request.max_frames * layout.tokens_per_frame
        if request.max_frames < 1 or positions > self._model.max_positions:
            raise ValueError(
                f"a prompt of {len(request.prompt)} tokens and {request.max_frames} frames do not "
                f"fit the model's {self._model.max_positions} positions"
            )
        seed = request.sampling.seed if self._noise else None
        ticket = Ticket(request, sink, StreamingDecoder(self._codec, layout, seed))
        with self._submitting:
            if self._closing:
                raise RuntimeError("the engine is closed")
            try:
                self._queue.put_nowait(ticket)
            except queue.Full:
                raise EngineBusy(self._queue.qsize()) from None
        return ticket

    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """Finish what is queued and stop the thread."""
        with self._submitting:
            self._closing = True
        self._queue.put(None)  # nothing is queued after it
        self._thread.join()

    def _loop(self) -> None:
        last = False
        while not last:
            batch, last = self._gather()
            if not batch:
                return
            started = time.monotonic()
            try:
                self._run(batch)
            except Exception as error:  # whatever broke, the waiting clients must hear of it
                logger.exception("a batch of %d requests failed", len(batch))
                for ticket in batch:
                    ticket._emit(Finished("error", ticket._decoder.frames, str(error)))
            logger.info(
                "batch fill %d of %d, longest %d frames, %.2f s, %d waiting",
                len(batch),
                self._max_batch,
                max(ticket._decoder.frames for ticket in batch),
                time.monotonic() - started,
                self._queue.qsize(),
            )

    def _gather(self) -> tuple[list[Ticket], bool]:
        """The next batch, and whether it is the last one before the engine closes."""
        first = self._queue.get()
        if first is None:
            return [], True
        batch = [first]
        while len(batch) < self._max_batch:
            try:
                ticket = self._queue.get(timeout=self._batch_wait_s)
            except queue.Empty:
                break
            if ticket is None:
                return batch, True
            batch.append(ticket)
        return batch, False

    def _run(self, batch: list[Ticket]) -> None:
        layout = self._model.layout
        sampler = Sampler([t.request.sampling for t in batch], self._model.head.device)
        prompts = [ticket.request.prompt for ticket in batch]
        minimum = [ticket.request.min_frames for ticket in batch]
        for step, tokens in enumerate(generate(self._model, prompts, sampler, minimum)):
            for ticket, token in zip(batch, tokens.tolist(), strict=True):
                if ticket._ending is not None:
                    continue
                if ticket._cancelled.is_set():
                    ticket._ending = "cancelled"
                    ticket._emit(Finished("cancelled", ticket._decoder.frames))
                elif token == layout.end_id:
                    self._end(ticket, "stop")
                else:
                    ticket._decoder.push([token])
                    if ticket._decoder.frames == ticket.request.max_frames:
                        self._end(ticket, "length")
            # Windows can only become ready when a frame is whole or a stream has ended.
            if step % layout.tokens_per_frame in (0, layout.tokens_per_frame - 1):
                self._deliver(batch)
            if all(ticket._ending is not None for ticket in batch):
                self._deliver(batch)
                return

    def _end(self, ticket: Ticket, reason: FinishReason) -> None:
        ticket._ending = reason
        ticket._decoder.finish()

    def _deliver(self, batch: list[Ticket]) -> None:
        """Decode what is ready; streams that have ended are emptied and closed."""
        while True:
            open_tickets = [ticket for ticket in batch if not ticket._closed]
            results = decode_ready([ticket._decoder for ticket in open_tickets])
            for ticket, samples in zip(open_tickets, results, strict=True):
                if len(samples):
                    ticket._emit(samples)
                elif ticket._ending is not None:
                    ticket._emit(Finished(ticket._ending, ticket._decoder.frames))
            if not any(len(samples) for samples in results):
                return


def stream(engine: Engine, request: Request) -> Iterator[Samples | Finished]:
    """Submit a request and yield what its sink gets: samples, and `Finished` as the last item.

    Raises RuntimeError when the engine failed. Closing the iterator cancels the request.
    """
    items: queue.Queue[Samples | Finished] = queue.Queue()
    ticket = engine.submit(request, items.put)
    try:
        while True:
            item = items.get()
            if isinstance(item, Finished) and item.reason == "error":
                raise RuntimeError(f"the engine failed: {item.error}")
            yield item
            if isinstance(item, Finished):
                return
    finally:
        ticket.cancel()


def synthesise(engine: Engine, requests: Sequence[Request]) -> list[tuple[Samples, Finished]]:
    """Submit requests together and wait: whole waveforms `[n]` and how each ended, in order.

    Raises EngineBusy when the queue does not take them all, and RuntimeError when the engine
    failed.
    """
    items: list[queue.Queue[Samples | Finished]] = [queue.Queue() for _ in requests]
    tickets: list[Ticket] = []
    try:
        for request, sink in zip(requests, items, strict=True):
            tickets.append(engine.submit(request, sink.put))
        results = []
        for sink in items:
            pieces: list[Samples] = [np.zeros(0, np.float32)]
            while not isinstance(item := sink.get(), Finished):
                pieces.append(item)
            if item.reason == "error":
                raise RuntimeError(f"the engine failed: {item.error}")
            results.append((np.concatenate(pieces), item))
        return results
    finally:
        for ticket in tickets:
            ticket.cancel()
