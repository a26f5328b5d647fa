"""The engine: `submit(request, sink)`, and samples arrive at the sink while they are generated.

Owns the thread that generates tokens, and the end of every request. A request takes a free slot at
the next step (`sheen.engine.scheduler`), is generated in a batch with all running requests, and
leaves its slot at `<audio_end>`, at its limit or when cancelled; its audio is decoded concurrently
(`sheen.engine.audio.decoder`). Refuses requests beyond the queue's limit or the maximum sequence
length. Knows nothing about text, voices or HTTP.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import partial

import torch

from sheen.audio.samples import SilenceTrim
from sheen.codec.windows import WindowCodec
from sheen.engine.audio.decoder import AudioStage, Stream
from sheen.engine.audio.streaming import DEFAULT_RAMP, StreamingDecoder, WindowShapes
from sheen.engine.generation import StepOutput, TokenGenerator
from sheen.engine.memory import log_memory, most_windows, plan_cache
from sheen.engine.scheduler import RequestQueue, Ticket
from sheen.engine.types import Counters, Finished, FinishReason, Playback, Request, Sink
from sheen.lm.cache.kv_cache import PAGE, CacheShape, free_memory, pages_of
from sheen.lm.model import SpeechLM

logger = logging.getLogger(__name__)

STALL_S = 60.0
"""A step, or a batch of windows, that takes longer counts as hung."""
JOIN_S = 0.1
"""Interval of the check, while closing, whether the engine is hung."""


class Engine:
    """Generates and decodes for up to `slots` requests at a time, in its own threads.

    `max_seq_len`: longest request, prompt and audio, in tokens (default: the model's maximum).
    `cache_bytes`: memory for keys and values, allocated at startup (default: see `plan_cache`); a
    request waits until there is enough for all of its tokens. `max_queue`: how many requests may
    wait, beyond those that fit, before `submit` raises EngineBusy. `typical_seq_len`: a length for
    which the log says how many requests fit.
    `fixed_shapes`: steps, prompts and windows are computed in few shapes (default: not on a CPU).
    `warm_up`: each of these shapes is computed once before the first request.
    `ramp`, `look_ahead`: see StreamingDecoder. `trim_silence`: remove the silence before speech.
    `ahead`: steps that are started before the tokens of earlier ones are read (default: 1 on a
    GPU). `stall_s`: a step that takes longer makes `alive` false.
    """

    def __init__(
        self,
        model: SpeechLM,
        codec: WindowCodec,
        *,
        slots: int = 8,
        max_seq_len: int | None = None,
        cache_bytes: int | None = None,
        typical_seq_len: int | None = None,
        max_queue: int = 64,
        ramp: Sequence[int] = DEFAULT_RAMP,
        look_ahead: int | None = None,
        trim_silence: bool = False,
        ahead: int | None = None,
        fixed_shapes: bool | None = None,
        warm_up: bool = False,
        stall_s: float = STALL_S,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots {slots}: expected at least 1")
        longest = min(max_seq_len or model.max_positions, model.max_positions)
        shape, device = CacheShape.of(model.lm), model.head.device
        pages, reserve = plan_cache(model, codec, slots, longest, free_memory(device), cache_bytes)
        self.max_seq_len = min(longest, pages * PAGE)
        """Tokens of the longest request: as configured, or as many as the whole cache holds."""
        log_memory(shape, pages, slots, self.max_seq_len, typical_seq_len, reserve)
        self.counters = Counters(slots)
        self._model, self._codec = model, codec
        self._ramp, self._look_ahead = tuple(ramp), look_ahead
        self._trims = trim_silence
        self._stall_s = stall_s
        on_gpu = device.type == "cuda"
        fixed = device.type != "cpu" if fixed_shapes is None else fixed_shapes
        self._warms_up = warm_up and fixed
        self._generator = TokenGenerator(
            model, slots, self.max_seq_len, pages=pages, static_shapes=fixed
        )
        self.max_queue = max_queue
        self._ahead = int(on_gpu) if ahead is None else ahead
        self._queue = RequestQueue(slots, max_queue, lambda: self._generator.free_pages)
        self._running: dict[int, Ticket] = {}  # by slot, used by the token thread alone
        # A snapshot of it at each step, replaced and never modified, so that a token is not given
        # to the next request at the same slot.
        self._owners: dict[int, Ticket] = {}
        self._working_since: float | None = None
        self._audio = self._audio_stage(fixed)
        self._thread = threading.Thread(target=self._loop, name="sheen-engine", daemon=True)
        self._thread.start()

    def _audio_stage(self, fixed_shapes: bool) -> AudioStage:
        if not fixed_shapes:
            return AudioStage(self._codec, self._closed)
        most = most_windows(self.slots)
        shapes = WindowShapes.of(self._codec, self._ramp, self._look_ahead, most)
        prepare = partial(shapes.compute_all, self._codec)
        return AudioStage(self._codec, self._closed, shapes, prepare if self._warms_up else None)

    def submit(self, request: Request, sink: Sink, follows: Ticket | None = None) -> Ticket:
        """Queue a request. One that `follows` another continues a stream that is playing: it is
        never refused, has priority over new requests as soon as the other has left its slot, and
        its audio is due when that of the other has been played.

        Raises EngineBusy, ValueError for a request larger than the cache, and RuntimeError after
        `close` or a failure of the engine.
        """
        layout = self._model.layout
        tokens = request.seq_len(layout)
        if request.max_frames < 1 or tokens > self.max_seq_len:
            raise ValueError(
                f"a prompt of {len(request.prompt)} tokens and {request.max_frames} frames do not "
                f"fit the engine's maximum of {self.max_seq_len} tokens (its KV cache holds "
                f"{self._generator.cache.pool.count * PAGE})"
            )
        decoder = StreamingDecoder(
            self._codec,
            layout,
            request.sampling.seed,
            self._ramp,
            self._look_ahead,
            self._trims,
            request.before,
        )
        trim = SilenceTrim(self._codec.sample_rate) if self._trims else None
        playback = Playback() if follows is None else Playback(runs_out=follows.runs_out)
        stream = Stream(decoder, sink, trim, playback)
        ticket = Ticket(self._queue, request, stream, follows, pages_of(tokens))
        self._queue.put(ticket)
        return ticket

    @property
    def slots(self) -> int:
        return self._queue.slots

    def alive(self) -> bool:
        """Whether both stages run, and neither is hung."""
        return not self._stalled() and self._thread.is_alive() and self._audio.alive()

    def metrics(self) -> dict[str, float]:
        """Plain numbers: counts since the start, and the current state."""
        return self.counters.values() | {
            "waiting": self._queue.waiting,
            "running": self._queue.running,
            "slots": self._queue.slots,
            "pages": self._generator.cache.pool.count,
            "pages_free": self._generator.free_pages,
        }

    def close(self) -> None:
        """Finish the queued requests and stop the threads. If a thread is hung, see `stall_s`,
        returns without waiting for it; unfinished requests then get no `Finished`."""
        self._queue.close()
        while self._thread.is_alive():
            self._thread.join(JOIN_S)
            if self._stalled():
                logger.error("the engine is closed while a step hangs")
                return

    def _stalled(self) -> bool:
        since = self._working_since
        waiting = since is not None and time.monotonic() - since > self._stall_s
        return waiting or self._audio.stalled(self._stall_s)

    def _closed(self, stream: Stream, finished: Finished) -> None:
        """Called by the audio stage when a stream is finished."""
        self.counters.ended(finished.reason)
        self._queue.audio_done()

    def _loop(self) -> None:
        steps: deque[tuple[StepOutput, dict[int, Ticket]]] = deque()
        fault = "the engine stopped"
        try:
            if (device := self._generator.device).type == "cuda":
                torch.cuda.set_device(device)  # of this thread: graphs are captured there
            self._generator.prepare(every_shape=self._warms_up)
            while self._gather(bool(steps)):
                step = self._generator.step()
                if step is not None:
                    steps.append((step, self._owners))
                while steps and (step is None or len(steps) > self._ahead):
                    self._deliver(*steps.popleft())
        except BaseException as error:
            logger.exception("the engine failed")
            fault = str(error) or type(error).__name__
        finally:
            self._working_since = None
            self._abandon(fault)
            self._audio.close()

    def _gather(self, pending: bool) -> bool:
        """Admit and cancel requests; waits while there is nothing to do. False after `close`, when
        all requests have finished."""
        self._working_since = None
        work = self._queue.take(busy=pending or bool(self._running))
        if work is None:
            return False
        admitted, cancels = work
        self._working_since = time.monotonic()
        for ticket in admitted:
            self._start(ticket)
        broken = [ticket for ticket in self._running.values() if ticket.stream.broken]
        for ticket in (*cancels, *broken):
            self._end(ticket, "cancelled")
            self._audio.cancel(ticket.stream)
        return True

    def _start(self, ticket: Ticket) -> None:
        assert ticket.slot is not None
        slot = ticket.slot
        request, per_frame = ticket.request, self._model.layout.tokens_per_frame
        self._running[slot] = ticket
        self._owners = dict(self._running)
        ticket.waited_s = time.monotonic() - ticket.stream.playback.opened
        try:
            self._generator.start(
                slot,
                request.prompt,
                request.sampling,
                request.max_frames * per_frame,
                request.min_frames * per_frame,
                request.shared,
            )
        except Exception as error:
            logger.exception("a request could not be started")
            self._end(ticket, "error", error)

    def _deliver(self, step: StepOutput, owners: dict[int, Ticket]) -> None:
        """Hand a step's tokens to the streams whose requests it was computed for."""
        layout = self._model.layout
        news: list[tuple[Stream, int | Finished]] = []
        tokens = step.read()
        self.counters.stepped(len(tokens))
        for slot, token in zip(step.slots, tokens, strict=True):
            ticket = self._running.get(slot)
            if ticket is None or ticket is not owners.get(slot):
                continue  # the slot belongs to another request by now, or to none
            if token == layout.end_id:
                self._end(ticket, "stop", news=news)
                continue
            news.append((ticket.stream, token))
            ticket.tokens += 1
            if ticket.tokens == ticket.request.max_frames * layout.tokens_per_frame:
                self._end(ticket, "length", news=news)
        if news:
            self._audio.feed(news)
        for slot, error in step.failed.items():
            ticket = self._running.get(slot)
            if ticket is not None and ticket is owners.get(slot):
                self._end(ticket, "error", error)
        if any(isinstance(error, torch.AcceleratorError) for error in step.failed.values()):
            raise RuntimeError("the GPU failed and cannot be used any more in this process")

    def _end(
        self,
        ticket: Ticket,
        reason: FinishReason,
        error: Exception | None = None,
        news: list[tuple[Stream, int | Finished]] | None = None,
    ) -> None:
        """Free a request's slot and finish its stream, directly or as part of `news`."""
        ticket.ended = True
        if ticket.slot is not None:
            slot = ticket.slot
            if self._running.get(slot) is not ticket:
                return  # it had ended before
            del self._running[slot]
            self._owners = dict(self._running)
            self._generator.stop(slot)
            self._queue.give_back(slot)
        message = "" if error is None else str(error) or type(error).__name__
        item = ticket.stream, Finished(reason, 0, message)
        if news is None:
            self._audio.feed([item])
        else:
            news.append(item)

    def _abandon(self, fault: str) -> None:
        """End all unfinished requests with an error."""
        left = self._queue.end()
        error = RuntimeError(fault)
        for ticket in [*self._running.values(), *left]:
            self._end(ticket, "error", error)
