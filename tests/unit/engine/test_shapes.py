"""With a GPU's settings the engine computes in few shapes, all of which its warm-up meets."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.speaking import LAYOUT, POSITIONS, WORDS, Sink, random_model, speak, tiny_codec
from sheen.engine.audio.streaming import (
    BATCH_COUNTS,
    DEFAULT_RAMP,
    StreamingDecoder,
    WindowShapes,
    decode_ready,
)
from sheen.engine.decode_step import attention_lengths
from sheen.engine.engine import Engine
from sheen.engine.generation import CHUNK_ROWS, PREFILL_CHUNK, TokenGenerator
from sheen.engine.types import Request, Sampling

ATTENTION = "scaled_dot_product_attention"
CONVOLUTIONS = "conv1d", "conv2d", "conv_transpose1d"
Call = tuple[str, tuple[tuple[int, ...], ...], bool]
"""The name, the shapes of the tensors, and whether keys are shared by heads in the call."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every attention and convolution that any thread computes."""
    found: list[Call] = []

    def watched(name: str, compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*tensors: Any, **others: Any) -> Tensor:
            shapes = tuple(tuple(part.shape) for part in tensors if isinstance(part, Tensor))
            found.append((name, shapes, bool(others.get("enable_gqa"))))
            return compute(*tensors, **others)

        return call

    for name in (ATTENTION, *CONVOLUTIONS):
        monkeypatch.setattr(F, name, watched(name, getattr(F, name)))
    return found


def draw(generator: random.Random) -> Request:
    """Any prompt, budget and sampling; some continue a reference, whose beginning is shared."""
    words = generator.randrange(1, 400)
    frames = generator.randrange(1, min(30, (POSITIONS - words - 1) // LAYOUT.tokens_per_frame))
    prompt = [*(generator.randrange(WORDS) for _ in range(words)), LAYOUT.start_id]
    sampling = Sampling(generator.choice([0.0, 1.0]), seed=generator.randrange(99))
    if generator.random() < 0.7:
        return Request(prompt, frames, sampling)
    before = np.zeros((generator.randrange(1, 20), LAYOUT.tokens_per_frame), np.int16)
    shared = min(words, PREFILL_CHUNK)
    prompt[:shared] = [1] * shared
    return Request(prompt, frames, sampling, shared=shared, before=before)


@pytest.mark.slow
@pytest.mark.parametrize("look_ahead", [None, 1])
def test_no_load_makes_a_new_shape_after_the_warm_up(
    calls: list[Call], look_ahead: int | None
) -> None:
    engine = Engine(
        random_model(),
        tiny_codec(),
        slots=3,
        max_seq_len=POSITIONS,
        fixed_shapes=True,
        warm_up=True,
        look_ahead=look_ahead,
        trim_silence=look_ahead is not None,
    )
    speak(engine, Request([1, LAYOUT.start_id], 1, Sampling(), 1))
    met = set(calls)
    calls.clear()
    generator = random.Random(0)
    sinks = []
    for number in range(24):
        sinks.append(Sink())
        ticket = engine.submit(draw(generator), sinks[-1])
        if number % 8 == 7:
            ticket.cancel()
    endings = [sink.wait()[1].reason for sink in sinks]
    engine.close()
    assert "error" not in endings
    assert len(set(endings)) > 1
    assert not set(calls) - met
    assert len({shapes for name, shapes, _ in calls if name == ATTENTION}) > 5
    assert len({shapes for name, shapes, _ in calls if name != ATTENTION}) > 40


@pytest.mark.slow
def test_any_windows_together_are_a_batch_that_the_warm_up_has_met(calls: list[Call]) -> None:
    """As many as there may be at once, of streams at any place."""
    codec, generator = tiny_codec(), random.Random(0)
    shapes = WindowShapes.of(codec, DEFAULT_RAMP, 1, 6)
    shapes.compute_all(codec)
    met = set(calls)
    calls.clear()
    for number in range(18):
        decoders = []
        for seed in range(1 + number % 6):
            decoder = StreamingDecoder(codec, LAYOUT, seed, look_ahead=generator.choice([None, 1]))
            frames = 20 if number < 6 else generator.randrange(1, 50)
            decoder.push(LAYOUT.to_ids(np.zeros((frames, 7), np.int16)))
            if number >= 6 and generator.random() < 0.5:
                decoder.finish()
            decoders.append(decoder)
        for _ in range(3):
            decode_ready(decoders, shapes)
    assert not set(calls) - met
    batches = {tensors[0][0] for _, tensors, _ in calls}
    assert batches == {1, 2, 4, 6}


def test_a_published_codec_is_asked_for_few_windows() -> None:
    shapes = WindowShapes.of(tiny_codec(), DEFAULT_RAMP, None, 16)
    assert shapes == WindowShapes((4, 6, 10, 14, 18, 30, 42), BATCH_COUNTS)
    assert WindowShapes.of(tiny_codec(), DEFAULT_RAMP, 1, 16).lengths == (
        *(2, 4, 6, 8, 10, 12, 14, 16, 18),
        *(30, 42),
    )
    assert [shapes.length(frames) for frames in (1, 4, 7, 18, 19, 42)] == [4, 4, 10, 18, 30, 42]
    assert [shapes.count(windows) for windows in (1, 3, 9, 16)] == [1, 4, 12, 16]
    assert WindowShapes.of(tiny_codec(), DEFAULT_RAMP, None, 6).counts == (1, 2, 4, 6)


@pytest.mark.parametrize("ramp", [(1,), (3, 50), (2, 2, 4, 8, 12)])
@pytest.mark.parametrize("look_ahead", [None, 0, 2])
def test_every_window_of_a_stream_fits_one_of_the_lengths(
    ramp: tuple[int, ...], look_ahead: int | None
) -> None:
    codec, generator = tiny_codec(), random.Random(0)
    shapes = WindowShapes.of(codec, ramp, look_ahead, 16)
    assert len(shapes.lengths) < 20
    for _ in range(20):
        before = np.zeros((generator.choice([0, 0, 1, 9]), LAYOUT.tokens_per_frame), np.int16)
        decoder = StreamingDecoder(codec, LAYOUT, None, ramp, look_ahead, before=before)
        frames = LAYOUT.to_ids(np.zeros((generator.randrange(1, 150), 7), np.int16)).tolist()
        while True:
            count = generator.randrange(1, 7 * generator.choice([2, 12, 150]))
            decoder.push(frames[:count])
            del frames[:count]
            if not frames:
                decoder.finish()
            while window := decoder.next_window():
                length = len(decoder.window_frames(window))
                assert length <= shapes.length(length)
                decoder.accept(window, np.zeros(length * codec.frame_samples, np.float32))
            if not frames:
                break


def test_prompts_of_any_length_are_attended_to_in_few_calls_that_fast_kernels_take(
    calls: list[Call],
) -> None:
    """On a GPU neither flash nor the efficient kernel takes a mask and shared keys in one call."""
    model, generator = random_model(), random.Random(1)
    decoder = TokenGenerator(model, 4, POSITIONS, static_shapes=True)
    for length in (1, 15, 16, 17, 100, PREFILL_CHUNK, PREFILL_CHUNK + 1, 400):
        words = [generator.randrange(WORDS) for _ in range(length)]
        decoder.start(0, [*words, LAYOUT.start_id], Sampling(), 1)
        while decoder.step() is not None:
            pass
        decoder.stop(0)
    found = set(calls)
    group, width = 2, 32
    possible = {
        ((1, 2, group * rows, width), *[(1, 2, length, width)] * 2, (group * rows, length))
        for rows in CHUNK_ROWS
        for length in attention_lengths(POSITIONS)
    }
    assert {shapes for _, shapes, _ in found} <= possible
    assert not any(shared for _, _, shared in found)
    assert len(found) == 6


def test_a_warm_up_that_fails_ends_every_request_with_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError("too few bytes")

    monkeypatch.setattr(WindowShapes, "compute_all", refuse)
    engine = Engine(random_model(), tiny_codec(), slots=2, fixed_shapes=True, warm_up=True)
    for _ in range(3):
        _, ending = speak(engine, Request([1, LAYOUT.start_id], 1, Sampling(), 1))
        assert (ending.reason, ending.error) == ("error", "too few bytes")
    engine.close()


@torch.inference_mode()
def test_a_warm_up_leaves_tokens_as_they_are() -> None:
    request = Request([5] * 300 + [LAYOUT.start_id], 3, Sampling(seed=3), 3)

    def tokens(warm: bool) -> list[int]:
        decoder = TokenGenerator(random_model(), 2, POSITIONS, static_shapes=True)
        if warm:
            decoder.prepare(every_shape=True)
        decoder.start(1, request.prompt, request.sampling, 21, 21)
        produced: list[int] = []
        while (step := decoder.step()) is not None:
            produced += step.read()
        return produced

    assert tokens(warm=True) == tokens(warm=False)
