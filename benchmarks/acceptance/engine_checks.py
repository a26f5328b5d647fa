"""Part "engine": requests come, end, fail and are refused as they should, and nobody stalls.

The reference model and codec, eight streams with audio. A stall is the longest time without a
token while requests run, seen by a thread that looks every two milliseconds: a graph captured, a
kernel compiled or a plan made during service shows there.
"""

import threading
import time
from typing import Any

import torch

from acceptance.bench import Bench
from acceptance.models import reference_codec, reference_lm, reference_prompts
from sheen.audio.samples import Samples
from sheen.engine.decode_step import attention_lengths
from sheen.engine.engine import Engine
from sheen.engine.types import EngineBusy, Finished, Request, Sampling

SLOTS = 8
LONG = 10
"""The request that is cancelled is so many times as long: it must not end before."""
STALL_S = 0.05
LOOK_S = 0.002
PATIENCE_S = 600.0


class Heard:
    """A sink that counts, and fails at its first samples if it is to."""

    def __init__(self, fails: bool = False) -> None:
        self.samples, self.fails = 0, fails
        self.ending: Finished | None = None
        self.begun, self.done = threading.Event(), threading.Event()

    def __call__(self, item: Samples | Finished) -> None:
        self.begun.set()
        if self.fails:
            self.done.set()
            raise RuntimeError("this sink fails, as the acceptance wants")
        if isinstance(item, Finished):
            self.ending = item
            self.done.set()
        else:
            self.samples += len(item)

    def wait(self) -> str:
        """Why it ended."""
        if not self.done.wait(PATIENCE_S):
            raise TimeoutError("a request does not end")
        return self.ending.reason if self.ending is not None else "failed"


class Stalls:
    """Watches an engine from `begin` to `end`."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._over = engine, threading.Event()
        self._longest = 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        tokens, since = -1.0, time.perf_counter()
        while not self._over.wait(LOOK_S):
            now, found = time.perf_counter(), self._engine.metrics()
            if found["tokens"] != tokens or not found["running"]:
                tokens, since = found["tokens"], now
            self._longest = max(self._longest, now - since)

    def end(self) -> float:
        """Seconds of the longest stall."""
        self._over.set()
        self._thread.join()
        return self._longest


def check(bench: Bench) -> None:
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    model = reference_lm(bench.device, dtype)
    model.freeze()
    codec = reference_codec(bench.device)
    frames = bench.pick(60, 4)
    prompts = reference_prompts()
    long = LONG * frames
    longest = max(map(len, prompts)) + long * model.layout.tokens_per_frame
    engine = Engine(model, codec, slots=SLOTS, max_seq_len=longest, max_queue=1, warm_up=True)

    def request(number: int, count: int = frames, sampling: Sampling | None = None) -> Request:
        sampling = sampling or Sampling(seed=number)
        return Request(prompts[number % len(prompts)], count, sampling, count)

    def speak(number: int, sink: Heard, **arguments: Any) -> Any:
        return engine.submit(request(number, **arguments), sink)

    try:
        warm = Heard()
        speak(0, warm, count=1)
        warm.wait()
        graphs = _graphs(engine)
        watched = Stalls(engine)
        sinks = [Heard() for _ in range(SLOTS - 2)]
        for number, sink in enumerate(sinks):
            speak(number, sink)
        broken, cancelled = Heard(fails=True), Heard()
        speak(6, broken)
        ticket = speak(7, cancelled, count=long)
        refused = _refused(speak)
        cancelled.begun.wait(PATIENCE_S)
        ticket.cancel()
        broken.wait()
        greedy = Heard()
        _admitted(speak, greedy)
        ends = [sink.wait() for sink in (*sinks, greedy)]
        cancelled.wait()
        stall = watched.end()
        made = _graphs(engine) - graphs
        whole = frames * codec.frame_samples
        complete = sum(sink.samples == whole for sink in (*sinks, greedy))
        alive = engine.alive()
    finally:
        engine.close()
    bench.row(
        "requests that ended at their budget with all of their audio",
        complete,
        f"of {SLOTS - 1}",
        expected="all",
        passed=complete == SLOTS - 1 and set(ends) == {"length"},
    )
    assert cancelled.ending is not None
    right = [
        refused,
        cancelled.ending.reason == "cancelled",
        cancelled.samples < long * codec.frame_samples,
        broken.ending is None,
        alive,
        _too_long(bench, model, codec),
    ]
    bench.row(
        "refused when full or too long, cancelled, a sink that raises dropped, alive after it",
        sum(right),
        f"of {len(right)}",
        expected="all",
        passed=all(right),
        by_case=right,
    )
    bench.row(
        "longest time without a token",
        1e3 * stall,
        "ms",
        expected=f"<= {1e3 * STALL_S:.0f}",
        passed=bench.judged(stall <= STALL_S),
    )
    bench.row("graphs captured during service", made, "graphs", expected="0", passed=made == 0)
    lengths = len(attention_lengths(engine.max_seq_len))
    bench.row(
        "graphs captured before it",
        graphs,
        "graphs",
        expected=f"{lengths}, one per attention length",
        passed=bench.judged(graphs == lengths),
    )


def _refused(speak: Any) -> bool:
    """Whether one of the requests beyond the queue's bound is refused."""
    extra = [Heard() for _ in range(2 * SLOTS)]
    tickets = []
    try:
        for number, sink in enumerate(extra):
            tickets.append(speak(number, sink))
    except EngineBusy:
        return True
    finally:
        for ticket in tickets:
            ticket.cancel()
        for sink, _ in zip(extra, tickets, strict=False):
            sink.wait()
    return False


def _admitted(speak: Any, sink: Heard) -> None:
    """A greedy request, as soon as there is room."""
    ends = time.monotonic() + PATIENCE_S
    while True:
        try:
            speak(3, sink, sampling=Sampling(temperature=0.0, repetition_penalty=1.2))
            return
        except EngineBusy:
            if time.monotonic() > ends:
                raise
            time.sleep(LOOK_S)


def _too_long(bench: Bench, model: Any, codec: Any) -> bool:
    """Whether more than the device's memory, and more than the longest request, are refused."""
    if bench.on_gpu:
        try:
            Engine(model, codec, slots=1, cache_bytes=1 << 50)
        except ValueError:
            pass
        else:
            return False
    engine = Engine(model, codec, slots=1, max_seq_len=64)
    try:
        engine.submit(Request([1] * 60, 4, Sampling()), Heard())
    except ValueError:
        return True
    finally:
        engine.close()
    return False


def _graphs(engine: Engine) -> int:
    step: Any = engine._generator._decode_step
    return 0 if step is None else len(step._graphs)
