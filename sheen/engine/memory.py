"""GPU memory that an engine needs in addition to weights and KV cache.

Owns the arithmetic, so that the cache leaves this much free, and its description in the startup
log. These are estimates from shapes, rounded up; `benchmarks/gpu_acceptance.py` measures them on a
device. Allocates nothing.
"""

import logging
from dataclasses import dataclass

from sheen.codec.windows import WindowCodec
from sheen.engine.audio.decoder import BATCH
from sheen.engine.audio.streaming import LONGEST_WINDOW
from sheen.engine.decode_step import attention_lengths
from sheen.engine.generation import PREFILL_ROWS
from sheen.engine.scheduler import MAX_IN_FLIGHT_PER_SLOT
from sheen.lm.attention.slots import GATHERED_BYTES
from sheen.lm.cache.kv_cache import PAGE, CacheShape, arena_bytes, pages_of, plan_pages
from sheen.lm.model import SpeechLM

logger = logging.getLogger(__name__)

LIVE_WIDE, LIVE_NARROW = 4, 6
"""Float32 activations in a layer at a time, of the MLP's width and of the model's."""
LIVE_LOGITS = 14
"""Float32 values per legal row of the head during sampling: logits, probabilities, sorted
probabilities with int64 order, cumulative sums, and the sort's temporary copies."""
LAYER_NODES, OTHER_NODES = 62, 200
"""Kernels and copies of a decode step: per layer, and others; counted for Qwen3-0.6B."""
NODE_BYTES = 10_000
"""Memory per node of a captured graph, outside torch's allocator."""
WORKSPACE_BYTES = 32 << 20
"""cuBLAS workspace on Hopper GPUs for each stream with matrix products: torch's default."""
STREAMS = 3
"""Of the token thread, of graph capture, and of the audio thread."""
LIVE_ACTIVATIONS = 4
"""Activations of the codec's widest layer at a time: the input of a residual unit, two of its
snake, and a convolution's output."""


@dataclass(frozen=True)
class Reserve:
    """Bytes kept back from the KV cache."""

    steps: int
    """Activations, gathered pages and logits of the largest step."""
    graphs: int
    """Captured decode steps, and the workspaces of the streams."""
    codec: int
    """The most windows of audio that are decoded at once."""

    @property
    def total(self) -> int:
        return self.steps + self.graphs + self.codec

    def __str__(self) -> str:
        parts = (self.steps, self.graphs, self.codec)
        steps, graphs, codec = (f"{part / 1e9:.2f}" for part in parts)
        return (
            f"{self.total / 1e9:.2f} GB (steps {steps}, CUDA graphs {graphs}, codec windows "
            f"{codec})"
        )


def most_windows(slots: int) -> int:
    """Windows that are decoded at once on a GPU, at most."""
    return min(BATCH, MAX_IN_FLIGHT_PER_SLOT * slots)


def plan_reserve(model: SpeechLM, codec: WindowCodec, slots: int, max_seq_len: int) -> Reserve:
    """An estimate of an engine's largest GPU memory in addition to weights and cache."""
    config = model.lm.config.get_text_config()
    shape, layout = CacheShape.of(model.lm), model.layout
    hidden = int(config.hidden_size)
    wide = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    rows = max(slots, PREFILL_ROWS)
    layer = rows * (LIVE_WIDE * wide + LIVE_NARROW * hidden) * 4
    one_slot = pages_of(max_seq_len) * PAGE * shape.token_bytes // shape.layers
    logits = slots * (layout.size + LIVE_LOGITS * (layout.codebook_size + 1)) * 4
    nodes = LAYER_NODES * shape.layers + OTHER_NODES
    graphs = len(attention_lengths(pages_of(max_seq_len) * PAGE)) * nodes * NODE_BYTES
    windows = most_windows(slots)
    longest = codec.window(LONGEST_WINDOW, 2 * LONGEST_WINDOW, None)
    samples = windows * (longest.stop - longest.start) * codec.frame_samples
    return Reserve(
        steps=layer + max(GATHERED_BYTES, one_slot) + logits,
        graphs=graphs + STREAMS * WORKSPACE_BYTES,
        codec=samples * codec.widest * LIVE_ACTIVATIONS * 4,
    )


def plan_cache(
    model: SpeechLM,
    codec: WindowCodec,
    slots: int,
    max_seq_len: int,
    free: int | None,
    cache_bytes: int | None = None,
) -> tuple[int, Reserve | None]:
    """Pages of an engine's KV cache, see `plan_pages`, and what a GPU with `free` bytes keeps free
    in addition; None where `free` is: elsewhere nothing is kept back."""
    reserve = None
    if free is not None:
        reserve = plan_reserve(model, codec, slots, max_seq_len)
    kept = 0 if reserve is None else reserve.total
    return plan_pages(CacheShape.of(model.lm), slots, max_seq_len, free, cache_bytes, kept), reserve


def log_memory(
    shape: CacheShape,
    pages: int,
    slots: int,
    max_seq_len: int,
    typical_seq_len: int | None,
    reserve: Reserve | None,
) -> None:
    """Log how much an engine takes and how many requests that is for."""
    capacity = f"{pages // pages_of(max_seq_len)} of the longest ({max_seq_len} tokens)"
    if typical_seq_len is not None and typical_seq_len < max_seq_len:
        streams = pages // pages_of(typical_seq_len)
        capacity = (
            f"{streams} streams of a typical length ({typical_seq_len} tokens), or {capacity}"
        )
    logger.info(
        "KV cache: %d + 1 pages of %d tokens of %s = %.1f MB; room for %s; %d slots%s",
        pages,
        PAGE,
        shape,
        arena_bytes(shape, pages) / 1e6,
        capacity,
        slots,
        "" if reserve is None else f"; kept free for the rest: {reserve}",
    )
