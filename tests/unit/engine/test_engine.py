"""The engine: endings, refusals, cancelling, faults. No Ray, no trained model."""

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from helpers.speaking import (
    LAYOUT,
    POSITIONS,
    WAIT_S,
    Sink,
    draw_request,
    random_model,
    speak,
    speak_all,
    tiny_codec,
)
from sheen.audio.io import to_pcm16
from sheen.audio.samples import Samples
from sheen.codec.snac import Codec
from sheen.engine.audio.decoder import AudioStage, Stream
from sheen.engine.audio.streaming import StreamingDecoder
from sheen.engine.engine import Engine
from sheen.engine.scheduler import Ticket
from sheen.engine.types import EngineBusy, Finished, Playback, Request, Sampling
from sheen.lm.cache.kv_cache import CacheShape, arena_bytes
from sheen.lm.model import SpeechLM

FRAME = LAYOUT.tokens_per_frame
TOLERANCE = 1e-6
POISON = 17
"""A word that no other prompt of these tests holds."""


@pytest.fixture(scope="module")
def model() -> SpeechLM:
    return random_model()


@pytest.fixture(scope="module")
def endless() -> SpeechLM:
    return random_model(end=0.0)


@pytest.fixture(scope="module")
def tiny() -> Codec:
    return tiny_codec()


@contextmanager
def opened(model: SpeechLM, codec: Codec, **arguments: object) -> Iterator[Engine]:
    engine = Engine(model, codec, **arguments)  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        engine.close()
        assert not engine.alive()


@contextmanager
def before_each_pass(model: SpeechLM, call: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Call with the token ids of every pass, in the engine's thread."""
    table = model.lm.get_input_embeddings()
    hook = table.register_forward_pre_hook(lambda _, arguments: call(arguments[0]))
    try:
        yield
    finally:
        hook.remove()


class Barrier:
    """Holds the engine's thread in its first pass until `release` is set."""

    def __init__(self) -> None:
        self.reached, self.release = threading.Event(), threading.Event()

    def __call__(self, _: object) -> None:
        self.reached.set()
        assert self.release.wait(WAIT_S)


def long(frames: int = 60, seed: int = 1) -> Request:
    return Request([1, 2, LAYOUT.start_id], frames, Sampling(seed=seed), frames)


def short(frames: int = 2, seed: int = 1) -> Request:
    return Request([3, LAYOUT.start_id], frames, Sampling(seed=seed), frames)


# What comes out


@pytest.fixture(scope="module")
def alone(model: SpeechLM, tiny: Codec) -> list[tuple[Samples, Finished]]:
    """What each of ten requests gets when nobody else asks."""
    with opened(model, tiny, slots=5) as engine:
        return [speak(engine, draw_request(number)) for number in range(10)]


@pytest.mark.parametrize("ahead", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_requests_together_get_what_each_gets_alone(
    model: SpeechLM, tiny: Codec, alone: list[tuple[Samples, Finished]], ahead: int
) -> None:
    """With steps started ahead, a slot's next request must not get its last one's tokens."""
    requests = [draw_request(number) for number in range(10)]
    with opened(model, tiny, slots=5, ahead=ahead) as engine:
        together = speak_all(engine, requests)
    for (samples, finished), (expected, ending) in zip(together, alone, strict=True):
        assert finished == ending
        assert samples.shape == expected.shape == (finished.frames * tiny.frame_samples,)
        assert np.abs(samples - expected).max(initial=0) <= TOLERANCE
        assert np.abs(to_pcm16(samples).astype(int) - to_pcm16(expected)).max(initial=0) <= 1


@pytest.mark.parametrize("frames", [1, 5])
def test_the_budget_ends_a_request_on_the_frame(
    endless: SpeechLM, tiny: Codec, frames: int
) -> None:
    with opened(endless, tiny, slots=1) as engine:
        samples, finished = speak(engine, short(frames))
    assert finished == Finished("length", frames)
    assert samples.shape == (frames * tiny.frame_samples,)
    assert samples.dtype == np.float32


def test_a_model_that_never_ends_stops_at_its_budget_and_is_counted(
    endless: SpeechLM, tiny: Codec
) -> None:
    with opened(endless, tiny, slots=4) as engine:
        results = speak_all(engine, [short(3, seed) for seed in range(6)])
        metrics = engine.metrics()
    assert {finished for _, finished in results} == {Finished("length", 3)}
    assert (metrics["length"], metrics["stop"], metrics["error"]) == (6, 0, 0)
    assert metrics["tokens"] == 6 * 3 * FRAME
    assert (metrics["waiting"], metrics["running"], metrics["slots"]) == (0, 0, 4)
    assert 0 < metrics["batch_fill"] <= 1


@pytest.mark.slow
def test_a_model_that_ends_its_request_is_counted_too(tiny: Codec) -> None:
    model = random_model(end=60.0)
    requests = [Request([n, LAYOUT.start_id], 20, Sampling(1.0, 0, 1.0, n)) for n in range(12)]
    with opened(model, tiny, slots=4) as engine:
        results = speak_all(engine, requests)
        metrics = engine.metrics()
    reasons = [finished.reason for _, finished in results]
    assert reasons.count("stop") == metrics["stop"] > 3
    assert reasons.count("length") == metrics["length"]


def test_the_slot_may_be_filled_to_its_last_position_and_no_further(
    model: SpeechLM, tiny: Codec
) -> None:
    with opened(model, tiny, slots=1, max_seq_len=100) as engine:
        room = 100 - FRAME
        full = Request([65] * (room - 1) + [LAYOUT.start_id], 1, Sampling(0.0))
        assert speak(engine, full)[1] == Finished("length", 1)
        for request in (
            Request([65] * room + [LAYOUT.start_id], 1, Sampling()),
            Request(full.prompt, 2, Sampling()),
        ):
            with pytest.raises(ValueError, match=r"maximum of 100 tokens \(.* holds 128\)"):
                engine.submit(request, Sink())
        with pytest.raises(ValueError, match="0 frames"):
            engine.submit(Request([65], 0, Sampling()), Sink())


# The queue


@pytest.mark.slow
def test_a_request_is_admitted_while_others_run(endless: SpeechLM, tiny: Codec) -> None:
    """It has ended before they have: nobody waits for a batch."""
    order: list[str] = []
    first, second = Sink(), Sink()

    def named(name: str, sink: Sink) -> Callable[[Samples | Finished], None]:
        def call(item: Samples | Finished) -> None:
            if isinstance(item, Finished):
                order.append(name)
            sink(item)

        return call

    barrier = Barrier()
    with opened(endless, tiny, slots=2) as engine, before_each_pass(endless, barrier):
        engine.submit(long(), named("long", first))
        assert barrier.reached.wait(WAIT_S)
        engine.submit(short(), named("short", second))
        barrier.release.set()
        second.wait()
        first.wait()
    assert order == ["short", "long"]


def test_beyond_what_may_wait_a_request_is_refused_and_the_others_complete(
    endless: SpeechLM, tiny: Codec
) -> None:
    barrier, sinks, refused = Barrier(), [Sink() for _ in range(3)], Sink()
    with opened(endless, tiny, slots=1, max_queue=2) as engine:
        with before_each_pass(endless, barrier):
            engine.submit(short(2, 0), sinks[0])
            assert barrier.reached.wait(WAIT_S)
            for seed, sink in enumerate(sinks[1:], start=1):
                engine.submit(short(2, seed), sink)
            with pytest.raises(EngineBusy, match="2 requests") as busy:
                engine.submit(short(), refused)
            assert busy.value.waiting == 2
            assert engine.metrics()["waiting"] == 2
            barrier.release.set()
            results = [sink.wait() for sink in sinks]
        for seed, (samples, finished) in enumerate(results):
            expected, ending = speak(engine, short(2, seed))
            assert finished == ending
            assert np.abs(samples - expected).max() <= TOLERANCE
    assert refused.items.empty()


def test_what_continues_speech_is_never_refused_and_goes_before_what_has_not_begun(
    endless: SpeechLM, tiny: Codec
) -> None:
    barrier, order = Barrier(), list[str]()
    sinks = {name: Sink() for name in ("runs", "waits", "follows", "follows too")}

    def named(name: str) -> Callable[[Samples | Finished], None]:
        def call(item: Samples | Finished) -> None:
            if isinstance(item, Finished):
                order.append(name)
            sinks[name](item)

        return call

    with opened(endless, tiny, slots=1, max_queue=1) as engine:
        with before_each_pass(endless, barrier):
            runs = engine.submit(short(), named("runs"))
            assert barrier.reached.wait(WAIT_S)
            waiting = engine.submit(short(), named("waits"))
            for name in ("follows", "follows too"):
                engine.submit(short(), named(name), follows=runs)
            # What follows takes no place of those that wait: the one that does fills them all.
            with pytest.raises(EngineBusy):
                engine.submit(short(), Sink())
            assert waiting.waited_s is None
            barrier.release.set()
            for sink in sinks.values():
                sink.wait()
        assert waiting.waited_s is not None
    assert order == ["runs", "follows", "follows too", "waits"]


@pytest.mark.slow
def test_what_is_made_ahead_takes_no_slot_that_somebody_waits_for(
    endless: SpeechLM, tiny: Codec
) -> None:
    """Else as few long texts as half the slots keep everybody else out, chunk after chunk."""
    barrier = Barrier()
    sinks = [Sink() for _ in range(5)]
    with opened(endless, tiny, slots=2) as engine, before_each_pass(endless, barrier):
        texts = [engine.submit(long(), sinks[0]), engine.submit(short(), sinks[1])]
        assert barrier.reached.wait(WAIT_S)
        ahead = engine.submit(short(), sinks[2], follows=texts[0])
        new = engine.submit(short(), sinks[3])
        after = engine.submit(short(), sinks[4], follows=texts[1])
        barrier.release.set()
        for sink in sinks:
            sink.wait()
        begun = [ticket.waited_s for ticket in (after, new, ahead)]
        opened_at = [ticket.stream.playback.opened for ticket in (after, new, ahead)]
    started = [at + (waited or 0.0) for at, waited in zip(opened_at, begun, strict=True)]
    # The second slot: what continues a text that has none, who is new, what is made ahead.
    assert started == sorted(started)


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 2])
def test_closing_finishes_what_is_queued(endless: SpeechLM, tiny: Codec, slots: int) -> None:
    engine = Engine(endless, tiny, slots=slots)
    sinks = [Sink() for _ in range(5)]
    for frames, sink in enumerate(sinks, start=1):
        engine.submit(short(frames), sink)
    engine.close()
    assert not engine.alive()
    for frames, sink in enumerate(sinks, start=1):
        samples, finished = sink.wait()
        assert finished == Finished("length", frames)
        assert len(samples) == frames * tiny.frame_samples
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(short(), Sink())


# What a request leaves behind


def test_a_sink_that_holds_its_ticket_goes_with_it(model: SpeechLM, tiny: Codec) -> None:
    """At once: what waits for the garbage collector holds all of its audio while it waits."""

    class Listener(Sink):
        ticket: Ticket

    def listen(engine: Engine) -> weakref.ref[Listener]:
        listener = Listener()
        listener.ticket = engine.submit(draw_request(3), listener)
        listener.wait()
        return weakref.ref(listener)

    gc.disable()
    try:
        with opened(model, tiny) as engine:
            left = listen(engine)
        assert left() is None
    finally:
        gc.enable()


# Cancelling


def test_cancelling_stops_a_request_that_runs(endless: SpeechLM, tiny: Codec) -> None:
    sink, submitted, tickets = Sink(), threading.Event(), list[Ticket]()

    def cancel_at_first(item: Samples | Finished) -> None:
        assert submitted.wait(WAIT_S)
        tickets[0].cancel()
        sink(item)

    with opened(endless, tiny, slots=1) as engine:
        tickets.append(engine.submit(long(70), cancel_at_first))
        submitted.set()
        samples, finished = sink.wait()
        assert finished.reason == "cancelled"
        assert len(samples) < 70 * tiny.frame_samples
        assert speak(engine, short())[1] == Finished("length", 2)
        metrics = engine.metrics()
    assert sink.items.empty()
    assert (metrics["cancelled"], metrics["length"]) == (1, 1)


def test_cancelling_ends_a_request_that_waits(endless: SpeechLM, tiny: Codec) -> None:
    barrier, running, waiting = Barrier(), Sink(), Sink()
    with opened(endless, tiny, slots=1) as engine, before_each_pass(endless, barrier):
        engine.submit(short(), running)
        assert barrier.reached.wait(WAIT_S)
        ticket = engine.submit(long(), waiting)
        ticket.cancel()
        barrier.release.set()
        samples, finished = waiting.wait()
        assert finished == Finished("cancelled", 0)
        assert len(samples) == 0
        assert running.wait()[1].reason == "length"
        ticket.cancel()  # once more is no fault
    assert waiting.items.empty()


# Faults


def test_an_exception_in_one_of_16_leaves_15_untouched(model: SpeechLM, tiny: Codec) -> None:
    requests = [draw_request(number, frames=4) for number in range(16)]
    requests = [
        Request([t for t in r.prompt if t != POISON], r.max_frames, r.sampling) for r in requests
    ]
    with opened(model, tiny, slots=16) as engine:
        expected = speak_all(engine, requests)
    bad = 9
    requests[bad] = Request([POISON, *requests[bad].prompt], 4, Sampling())

    def refuse(ids: torch.Tensor) -> None:
        if bool((ids == POISON).any()):
            raise RuntimeError("poisoned")

    with opened(model, tiny, slots=16) as engine, before_each_pass(model, refuse):
        results = speak_all(engine, requests)
        assert engine.alive()
        assert engine.metrics()["error"] == 1
    for number, (samples, finished) in enumerate(results):
        if number == bad:
            assert finished == Finished("error", 0, "poisoned")
            assert len(samples) == 0
        else:
            assert finished == expected[number][1]
            assert np.abs(samples - expected[number][0]).max(initial=0) <= TOLERANCE


def test_an_exception_half_way_through_one_leaves_the_others(
    endless: SpeechLM, tiny: Codec
) -> None:
    requests = [short(6, seed) for seed in range(4)]
    with opened(endless, tiny, slots=4) as engine:
        expected = speak_all(engine, requests)
    seen: list[int] = []
    lock = threading.Lock()

    def refuse(ids: torch.Tensor) -> None:
        """From the 20th pass on, every pass that holds the first request's 20th token."""
        with lock:
            seen.append(len(ids[0]))
            if len(seen) == 20:
                target.append(int(ids[0, 0]))
            if target and bool((ids == target[0]).any()):
                raise RuntimeError("half way")

    target: list[int] = []
    with opened(endless, tiny, slots=4) as engine, before_each_pass(endless, refuse):
        results = speak_all(engine, requests)
    failed = [n for n, (_, finished) in enumerate(results) if finished.reason == "error"]
    assert len(failed) == 1
    for number, (samples, finished) in enumerate(results):
        if number not in failed:
            assert finished == expected[number][1]
            assert np.abs(samples - expected[number][0]).max() <= TOLERANCE


def test_a_prompt_without_rows_reaches_its_sink(endless: SpeechLM, tiny: Codec) -> None:
    bad = Request([10**6, LAYOUT.start_id], 2, Sampling(0.0))
    with opened(endless, tiny, slots=1) as engine:
        samples, finished = speak(engine, bad)
        assert (finished.reason, finished.frames, len(samples)) == ("error", 0, 0)
        assert "ids outside" in finished.error
        assert engine.alive()
        assert speak(engine, short())[1].reason == "length"


def test_a_sink_that_raises_loses_its_request_alone(endless: SpeechLM, tiny: Codec) -> None:
    calls: list[object] = []

    def raises(item: Samples | Finished) -> None:
        calls.append(item)
        raise ValueError("not my day")

    other = Sink()
    with opened(endless, tiny, slots=2) as engine:
        engine.submit(long(), raises)
        engine.submit(short(4), other)
        assert other.wait()[1] == Finished("length", 4)
        # Its slot is free again: two others run side by side.
        assert len(speak_all(engine, [short(), short()])) == 2
        metrics = engine.metrics()
    assert len(calls) == 1
    assert metrics["cancelled"] == 1


def test_a_codec_that_fails_for_one_stream_ends_that_one(tiny: Codec) -> None:
    """Together with others first, then alone."""
    ended: dict[int, Finished] = {}

    class Failing(StreamingDecoder):
        def window_frames(self, window: object) -> np.ndarray:
            raise RuntimeError("no frames")

    done = threading.Event()

    def closed(stream: Stream, ending: Finished) -> None:
        ended[id(stream)] = ending
        if len(ended) == 3:
            done.set()

    stage = AudioStage(tiny, closed)
    kinds = [StreamingDecoder, Failing, StreamingDecoder]
    sinks = [Sink() for _ in kinds]
    streams = [Stream(kind(tiny, LAYOUT, 0), sink) for kind, sink in zip(kinds, sinks, strict=True)]
    ids = LAYOUT.to_ids(np.zeros((3, FRAME), np.int16)).tolist()
    stage.feed([(stream, token) for token in ids for stream in streams])
    stage.feed([(stream, Finished("stop", 0)) for stream in streams])
    assert done.wait(WAIT_S)
    stage.close()
    assert [ended[id(stream)].reason for stream in streams] == ["stop", "error", "stop"]
    samples, finished = sinks[1].wait()
    assert (len(samples), finished) == (0, Finished("error", 3, "no frames"))
    assert len(sinks[0].wait()[0]) == 3 * tiny.frame_samples


def test_an_illegal_token_ends_its_stream_and_not_the_thread(tiny: Codec) -> None:
    stage = AudioStage(tiny, lambda stream, ending: None)
    sinks = Sink(), Sink()
    bad, good = (Stream(StreamingDecoder(tiny, LAYOUT, 0), sink) for sink in sinks)
    ids = LAYOUT.to_ids(np.zeros((4, FRAME), np.int16)).tolist()
    stage.feed([(bad, LAYOUT.start_id)] * (4 * FRAME))
    stage.feed([(good, token) for token in ids])
    stage.feed([(good, Finished("stop", 0))])
    assert sinks[0].wait()[1].reason == "error"
    assert sinks[1].wait()[1] == Finished("stop", 4)
    assert (bad.broken, good.broken) == (True, False)
    assert stage.alive()
    stage.close()
    assert not stage.alive()


# The heartbeat


def test_a_stuck_pass_and_a_stuck_sink_are_seen(endless: SpeechLM, tiny: Codec) -> None:
    barrier = Barrier()
    with opened(endless, tiny, slots=1, stall_s=0.0) as engine:
        # Nothing to do is no fault, however long.
        assert engine.alive()
        with before_each_pass(endless, barrier):
            sink = Sink()
            engine.submit(short(), sink)
            assert barrier.reached.wait(WAIT_S)
            assert not engine.alive()
            barrier.release.set()
            sink.wait()
        reached, release = threading.Event(), threading.Event()

        def stuck(item: Samples | Finished) -> None:
            reached.set()
            assert release.wait(WAIT_S)

        engine.submit(short(), stuck)
        assert reached.wait(WAIT_S)
        assert not engine.alive()
        engine._stall_s = WAIT_S  # else it would be closed with a step under way
        release.set()


def test_an_engine_with_a_stuck_codec_closes_all_the_same(
    endless: SpeechLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, reached, release = tiny_codec(), threading.Event(), threading.Event()

    def stuck(*arguments: object, **named: object) -> None:
        reached.set()
        assert release.wait(WAIT_S)
        raise RuntimeError("it was stuck")

    monkeypatch.setattr(codec, "decode", stuck)
    engine = Engine(endless, codec, slots=1, stall_s=0.5)
    engine.submit(short(), Sink())
    assert reached.wait(WAIT_S)
    closing = threading.Thread(target=engine.close, daemon=True)
    closing.start()
    closing.join(60)
    closed = not closing.is_alive()
    release.set()
    assert closed
    engine._thread.join(WAIT_S)


def test_an_engine_whose_thread_ends_tells_everybody(endless: SpeechLM, tiny: Codec) -> None:
    barrier, sinks = Barrier(), [Sink() for _ in range(3)]
    engine = Engine(endless, tiny, slots=1)

    def stop(ids: torch.Tensor) -> None:
        barrier(ids)
        raise KeyboardInterrupt

    with before_each_pass(endless, stop):
        for sink in sinks:
            engine.submit(short(), sink)
        assert barrier.reached.wait(WAIT_S)
        barrier.release.set()
        for sink in sinks:
            assert sink.wait()[1].reason == "error"
    engine.close()
    assert not engine.alive()
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(short(), Sink())


# Whose turn it is


def test_first_audio_comes_before_later_audio_and_then_the_deadline_decides(tiny: Codec) -> None:
    def made(opened: float, runs_out: float | None) -> Stream:
        playback = Playback(opened, runs_out)
        return Stream(StreamingDecoder(tiny, LAYOUT, 0), Sink(), playback=playback)

    old, new = made(1.0, None), made(2.0, None)
    soon, late = made(0.5, 3.0), made(0.1, 9.0)
    order = sorted([late, soon, new, old], key=lambda stream: stream.urgency)
    assert order == [old, new, soon, late]


# The KV cache


def cache_of(model: SpeechLM, pages: int) -> int:
    """Bytes of an arena of so many pages."""
    return arena_bytes(CacheShape.of(model.lm), pages)


def test_memory_is_stated_before_it_is_taken(
    model: SpeechLM, tiny: Codec, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level("INFO", "sheen"),
        opened(model, tiny, slots=3, max_seq_len=POSITIONS, typical_seq_len=100),
    ):
        pass
    assert (
        "KV cache: 24 + 1 pages of 64 tokens of 2 x 2 layers x 2 heads x 32 x 4 bytes = 1.6 MB; "
        "room for 12 streams of a typical length (100 tokens), or 3 of the longest (512 tokens); "
        "3 slots"
    ) in caplog.text


@pytest.mark.slow
def test_a_request_waits_for_pages_and_nobody_passes_it(endless: SpeechLM, tiny: Codec) -> None:
    """Four slots, and pages for one long request and a short one."""
    barrier = Barrier()
    requests = [long(20), long(20, 2), short(), short(1)]
    sinks = [Sink() for _ in requests]
    with opened(endless, tiny, slots=4, max_queue=3, cache_bytes=cache_of(endless, 4)) as engine:
        with before_each_pass(endless, barrier):
            tickets = [engine.submit(requests[0], sinks[0])]
            assert barrier.reached.wait(WAIT_S)
            for request, sink in zip(requests[1:], sinks[1:], strict=True):
                tickets.append(engine.submit(request, sink))
            with pytest.raises(EngineBusy, match="3 requests"):
                engine.submit(short(), Sink())
            assert engine.metrics()["waiting"] == 3
            barrier.release.set()
            ends = [sink.wait()[1] for sink in sinks]
        metrics = engine.metrics()
    assert ends == [Finished("length", request.max_frames) for request in requests]
    assert (metrics["pages_free"], metrics["pages"]) == (4, 4)
    begun = [ticket.stream.playback.opened + (ticket.waited_s or 0.0) for ticket in tickets]
    assert begun == sorted(begun)


def test_a_request_larger_than_the_whole_cache_is_refused_by_name(
    endless: SpeechLM, tiny: Codec
) -> None:
    with opened(endless, tiny, slots=2, cache_bytes=cache_of(endless, 1)) as engine:
        assert engine.max_seq_len == 64
        with pytest.raises(ValueError, match=r"3 tokens and 9 frames .* KV cache holds 64"):
            engine.submit(long(9), Sink())
        assert speak(engine, long(8))[1] == Finished("length", 8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_requests_that_come_end_fail_and_are_cancelled_at_random_leave_no_page(
    model: SpeechLM, tiny: Codec, seed: int
) -> None:
    """In fewer pages than the slots could use; those that end have what each gets alone."""
    generator = random.Random(seed)
    requests = [draw_request(number, frames=4) for number in range(16)]
    with opened(model, tiny, slots=5) as engine:
        alone = speak_all(engine, requests)
    sinks: list[Sink] = []
    with opened(model, tiny, slots=5, max_queue=16, cache_bytes=cache_of(model, 8)) as engine:
        for number, request in enumerate(requests):
            sink = Sink()
            sinks.append(sink)
            if number % 8 == 3:
                engine.submit(Request([10**6, LAYOUT.start_id], 40, Sampling()), sink)
                continue
            ticket = engine.submit(request, sink)
            if generator.random() < 0.3:
                time.sleep(generator.random() * 0.05)
                ticket.cancel()
        results = [sink.wait() for sink in sinks]
        pool = engine._generator.cache.pool
        reasons = [finished.reason for _, finished in results]
        metrics = engine.metrics()
    assert pool.free == pool.count == metrics["pages"] == 8
    assert reasons.count("error") == 2
    for (samples, finished), (expected, ending) in zip(results, alone, strict=True):
        if finished.reason in ("stop", "length"):
            assert finished == ending
            assert np.abs(samples - expected).max(initial=0) <= TOLERANCE
