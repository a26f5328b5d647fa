"""Long runs of the engine, for `make soak`."""

import random
import resource
import threading
from pathlib import Path

import numpy as np
import pytest

from helpers.speaking import WAIT_S, draw_request, random_model, speak, tiny_codec
from sheen.audio.io import to_pcm16
from sheen.audio.samples import Samples
from sheen.engine.engine import Engine
from sheen.engine.scheduler import Ticket
from sheen.engine.types import EngineBusy, Finished

REQUESTS = 10_000
KINDS = 40
SLOTS = 12
FRAMES = 4


class Listener:
    """One request's sink. It cancels its request after `patience` chunks; None: never."""

    def __init__(self, kind: int, patience: int | None) -> None:
        self.kind, self.patience = kind, patience
        self.pieces: list[Samples] = []
        self.ending: Finished | None = None
        self.done, self.submitted = threading.Event(), threading.Event()
        self.ticket: Ticket | None = None

    def __call__(self, item: Samples | Finished) -> None:
        assert self.ending is None, "nothing comes after Finished"
        if isinstance(item, Finished):
            self.ending = item
            self.done.set()
            return
        self.pieces.append(item)
        if len(self.pieces) == self.patience:
            assert self.submitted.wait(WAIT_S)
            assert self.ticket is not None
            self.ticket.cancel()

    def check(self, alone: Samples) -> bool:
        """Whether it was cancelled; what it heard must be its own request's, to one step."""
        assert self.done.wait(WAIT_S), "every request has an ending"
        assert self.ending is not None
        heard = to_pcm16(np.concatenate([np.zeros(0, np.float32), *self.pieces])).astype(int)
        cancelled = self.ending.reason == "cancelled"
        expected = to_pcm16(alone)[: len(heard) if cancelled else None]
        assert len(heard) == len(expected)
        assert np.abs(heard - expected).max(initial=0) <= 1
        return cancelled


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("ahead", [0, 1])
def test_10000_requests_under_random_cancels(ahead: int) -> None:
    generator = random.Random(ahead)
    model, codec = random_model(), tiny_codec()
    requests = [draw_request(kind, FRAMES, longest=60) for kind in range(KINDS)]
    with_alone = Engine(model, codec, slots=1)
    alone = [speak(with_alone, request)[0] for request in requests]
    with_alone.close()

    engine = Engine(model, codec, slots=SLOTS, max_queue=8, ahead=ahead)
    running: list[Listener] = []
    refused = cancelled = early = 0
    sent = 0
    memory: list[int] = []
    while sent < REQUESTS:
        kind = generator.randrange(KINDS)
        listener = Listener(kind, generator.choice([None, None, 0, 1, 2]))
        try:
            ticket = engine.submit(requests[kind], listener)
        except EngineBusy:
            refused += 1
            first = running.pop(0)
            cancelled += first.check(alone[first.kind])
            continue
        listener.ticket = ticket
        listener.submitted.set()
        if listener.patience == 0:
            ticket.cancel()
            early += 1
        running.append(listener)
        sent += 1
        if sent % 1000 == 0:
            memory.append(resident())
    for listener in running:
        cancelled += listener.check(alone[listener.kind])
    metrics = engine.metrics()
    assert engine.alive()
    # No slot leaks: all are free, and a full house finds room at once.
    assert (metrics["waiting"], metrics["running"]) == (0, 0)
    engine.close()
    assert not engine._audio._streams
    endings = {name: metrics[name] for name in ("stop", "length", "cancelled", "error")}
    print(f"{endings}, {refused} refused, memory {[round(m / 1e6) for m in memory]} MB")
    assert sum(endings.values()) == REQUESTS
    assert endings["error"] == 0
    assert endings["cancelled"] == cancelled
    assert 0 < early < REQUESTS
    assert min(endings["stop"], endings["length"], endings["cancelled"]) > 100
    assert refused > 0, "the queue was never full: the test tests nothing"
    # A request that left 1 kB behind would show.
    assert memory[-1] - memory[2] < 5e6
