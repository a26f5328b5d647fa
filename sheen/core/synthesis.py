"""An engine for code that waits: an iterator over one request, or whole waveforms of many."""

import queue
from collections.abc import Iterator, Sequence

import numpy as np

from sheen.core.codec import Codec
from sheen.core.ending import Finished, Samples
from sheen.core.engine import Engine
from sheen.core.model import SpeechLM
from sheen.core.request_queue import Ticket
from sheen.core.requests import Request


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


def synthesise_all(
    model: SpeechLM, codec: Codec, requests: Sequence[Request], slots: int
) -> list[tuple[Samples, Finished]]:
    """`synthesise` with an engine of its own: any number of requests, `slots` of them at a time, in
    memory for the longest of them."""
    if not requests:
        return []
    longest = max(request.positions(model.layout) for request in requests)
    engine = Engine(
        model,
        codec,
        slots=min(slots, len(requests)),
        positions=longest,
        max_queue=len(requests),
    )
    try:
        # The longest first: whatever runs last runs alone.
        order = sorted(range(len(requests)), key=lambda i: -requests[i].max_frames)
        results = synthesise(engine, [requests[index] for index in order])
    finally:
        engine.close()
    return [result for _, result in sorted(zip(order, results, strict=True), key=lambda p: p[0])]
