"""What a GPU keeps free beside the KV cache: the arithmetic, and the log that states it."""

import logging
from typing import Any

import pytest
import torch
from snac import SNAC

from helpers.speaking import random_model, tiny_codec
from sheen.codec.windows import WindowCodec
from sheen.engine import engine as engine_module
from sheen.engine.engine import Engine
from sheen.engine.memory import WORKSPACE_BYTES, Reserve, log_memory, plan_cache, plan_reserve
from sheen.lm.attention.slots import GATHERED_BYTES
from sheen.lm.cache.kv_cache import CacheShape, arena_bytes


class Shape(WindowCodec):
    def decode(self, *_: Any) -> torch.Tensor:
        raise AssertionError("it has no weights")


@pytest.fixture(scope="module")
def published() -> Shape:
    """The shape of the 24 kHz codec, without its weights."""
    with torch.device("meta"):
        model = SNAC(
            24_000, 48, [2, 4, 8, 8], None, 1024, [8, 8, 4, 2], None, 4096, 8, [4, 2, 1], True, True
        )
    return Shape(model)


def test_the_widest_activation_of_the_published_codec_has_64_values_a_sample(
    published: Shape,
) -> None:
    assert published.widest == 64


def test_each_part_of_the_reserve_grows_with_what_causes_it(published: Shape) -> None:
    model = random_model()
    small = plan_reserve(model, published, 8, 512)
    # Sixteen windows of 36 frames and 6 of context, four activations of 64 values a sample.
    assert small.codec == 16 * 42 * 2048 * 64 * 4 * 4
    assert plan_reserve(model, published, 4, 512).codec == small.codec // 2
    assert GATHERED_BYTES < small.steps < 1.2 * GATHERED_BYTES
    assert plan_reserve(model, published, 256, 512).steps > small.steps
    longer = plan_reserve(model, published, 8, 1024)
    graph = longer.graphs - small.graphs
    assert small.graphs == 2 * graph + 3 * WORKSPACE_BYTES
    assert small.total == small.steps + small.graphs + small.codec


def test_an_engine_takes_the_memory_that_all_else_leaves_free_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a device with so much free memory; nothing else of it is needed here."""
    model, codec = random_model(), tiny_codec()
    shape, reserve = CacheShape.of(model.lm), plan_reserve(model, codec, 64, 512)
    free = reserve.total + arena_bytes(shape, 12)
    assert plan_cache(model, codec, 64, 512, free) == (12, reserve)
    assert plan_cache(model, codec, 64, 512, None) == (64 * 8, None)
    with pytest.raises(ValueError, match=r"GB of them are needed for the rest"):
        plan_cache(model, codec, 64, 512, free, arena_bytes(shape, 13))
    monkeypatch.setattr(engine_module, "free_memory", lambda device: free)
    with caplog.at_level(logging.INFO, "sheen"):
        engine = Engine(model, codec, slots=64, max_seq_len=512)
    engine.close()
    assert engine.metrics()["pages"] == 12
    assert f"12 + 1 pages of 64 tokens of {shape}" in caplog.text
    assert f"64 slots; kept free for the rest: {reserve}" in caplog.text


def test_the_log_states_the_memory_that_is_kept_free(caplog: pytest.LogCaptureFixture) -> None:
    shape = CacheShape(layers=2, kv_heads=2, head_dim=32, dtype=torch.bfloat16)
    with caplog.at_level(logging.INFO, "sheen"):
        log_memory(shape, 24, 3, 512, None, Reserve(300_000_000, 100_000_000, 1_210_000_000))
    assert (
        "3 slots; kept free for the rest: "
        "1.61 GB (steps 0.30, CUDA graphs 0.10, codec windows 1.21)"
    ) in caplog.text
