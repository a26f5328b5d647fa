"""Long runs of the engine, for `make soak`."""

import random
import threading

import numpy as np
import pytest

from sheen.core.engine import Engine, EngineBusy, Finished, Request, Samples, stream
from sheen.core.sampling import Sampling
from sheen.core.voice import Voice

REQUESTS = 400
KINDS = 12


def make_request(voice: Voice, kind: int) -> Request:
    text = " ".join(["one", "two", "three", "four"][: 1 + kind % 4])
    speaker = voice.info.voices[kind % len(voice.info.voices)]
    settings = Sampling(temperature=0.0 if kind % 3 == 0 else 1.0, seed=kind)
    return voice.request(text, speaker, settings, max_seconds=0.3 + 0.2 * (kind % 5))


class Listener:
    """One request's sink; cancels it after `patience` chunks."""

    def __init__(self, kind: int, patience: int | None) -> None:
        self.kind = kind
        self.patience = patience
        self.pieces: list[Samples] = []
        self.ending: Finished | None = None
        self.done = threading.Event()
        self.ready = threading.Event()

    def __call__(self, item: Samples | Finished) -> None:
        assert self.ending is None, "nothing comes after Finished"
        if isinstance(item, Finished):
            self.ending = item
            self.done.set()
        else:
            self.pieces.append(item)
            if self.patience is not None and len(self.pieces) >= self.patience:
                self.ready.set()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_streams_under_random_cancels_are_their_own(voice: Voice) -> None:
    generator = random.Random(0)
    alone_engine = Engine(voice.model, voice.codec, max_batch=1)
    alone = []
    for kind in range(KINDS):
        items = list(stream(alone_engine, make_request(voice, kind)))
        alone.append(np.concatenate([item for item in items if not isinstance(item, Finished)]))
    alone_engine.close()
    engine = Engine(voice.model, voice.codec, max_batch=8, max_queue=32)
    listeners: list[Listener] = []
    running: list[Listener] = []
    refused = 0
    while len(listeners) < REQUESTS:
        kind = generator.randrange(KINDS)
        patience = generator.choice([None, None, 0, 1, 2])
        listener = Listener(kind, patience)
        try:
            ticket = engine.submit(make_request(voice, kind), listener)
        except EngineBusy:
            refused += 1
            running.pop(0).done.wait(120)
            continue
        if patience == 0:
            ticket.cancel()
        elif patience is not None:
            threading.Thread(
                target=lambda ticket=ticket, listener=listener: (
                    listener.ready.wait(60),
                    ticket.cancel(),
                ),
                daemon=True,
            ).start()
        listeners.append(listener)
        running.append(listener)
    engine.close()
    assert refused > 0, "the queue was never full: the test tests nothing"
    cancelled = 0
    for listener in listeners:
        assert listener.done.is_set(), "every request has an ending"
        assert listener.ending is not None
        heard = np.concatenate([np.zeros(0, np.float32), *listener.pieces])
        expected = alone[listener.kind]
        if listener.ending.reason == "cancelled":
            cancelled += 1
            expected = expected[: len(heard)]
        np.testing.assert_allclose(heard, expected, atol=1e-6)
    assert 0 < cancelled < REQUESTS
