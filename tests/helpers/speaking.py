"""What the engine's tests share: a small model with random weights that sometimes ends, requests of
many kinds, and sinks. Nothing here needs Ray."""

import queue
import random
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from snac import SNAC
from transformers import Qwen3Config, Qwen3ForCausalLM

from sheen.audio.samples import Samples
from sheen.codec.layout import TokenLayout
from sheen.codec.snac import Codec
from sheen.engine.engine import Engine
from sheen.engine.generation import TokenGenerator
from sheen.engine.types import Finished, Request, Sampling, Span
from sheen.lm.model import SpeechLM

WAIT_S = 600
"""Far longer than anything takes: what a failing engine costs, never a passing one."""

WORDS = 258
LAYOUT = TokenLayout(WORDS, 4096, (4, 2, 1))
POSITIONS = 512


def random_model(end: float = 6.0, layout: TokenLayout = LAYOUT, seed: int = 0) -> SpeechLM:
    """Two layers, two query heads for each of keys. `end` scales the row of `<audio_end>`: at 6 a
    request ends after a few frames; at 0 a sampled one hardly ever does."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=layout.first_id + layout.size,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
    )
    lm = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    for weight in lm.parameters():
        if weight.ndim > 1:
            weight.mul_(4.0)  # as transformers draws them, attention hardly tells tokens apart
    lm.get_output_embeddings().weight[layout.end_id] *= end
    return SpeechLM(lm, layout)


SETTINGS = [
    Sampling(0.0),
    Sampling(),
    Sampling(1.0, 0, 1.0),
    Sampling(0.9, 50, 0.9),
    Sampling(1.2, 300, 0.99),
    Sampling(0.0, repetition_penalty=1.3),
    Sampling(0.8, repetition_penalty=1.2),
]


def tiny_codec() -> Codec:
    """SNAC's geometry with next to no channels, for tests that are not about sound."""
    torch.manual_seed(0)
    model = SNAC(
        sampling_rate=24_000,
        encoder_dim=2,
        encoder_rates=[2, 4, 8, 8],
        decoder_dim=32,
        decoder_rates=[8, 8, 4, 2],
        attn_window_size=None,
        vq_strides=[4, 2, 1],
    )
    codec = Codec(model, torch.device("cpu"))
    # As loud as speech: random weights alone drive it to full scale, where float32 has its largest
    # steps, and two ways of rounding are further apart than in any recording.
    final = model.decoder.model[-2]
    final.weight.mul_(0.2)
    final.bias.mul_(0.2)
    return codec


def draw_request(number: int, frames: int = 12, longest: int = 300) -> Request:
    """The same request for the same number: any prompt, any settings, up to `frames` frames."""
    generator = random.Random(number)
    length = generator.choice([1, 2, 5, 12, 40, 90, longest])
    prompt = [*(generator.randrange(WORDS) for _ in range(length)), LAYOUT.start_id]
    kind = SETTINGS[number % len(SETTINGS)]
    sampling = Sampling(kind.temperature, kind.top_k, kind.top_p, number, kind.repetition_penalty)
    return Request(prompt, generator.randrange(1, frames + 1), sampling)


def generate(model: SpeechLM, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Greedy tokens of prompts that run together, each until it ends or has so many."""
    longest = max(map(len, prompts)) + tokens
    decoder = TokenGenerator(model, len(prompts), longest)
    for slot, prompt in enumerate(prompts):
        decoder.start(slot, prompt, Sampling(0.0), tokens, model.layout.tokens_per_frame)
    produced: list[list[int]] = [[] for _ in prompts]
    while (step := decoder.step()) is not None:
        assert not step.failed
        for slot, token in zip(step.slots, step.read(), strict=True):
            produced[slot].append(token)
            if token == model.layout.end_id:
                decoder.stop(slot)
    return produced


class Sink:
    """Collects what a request gets."""

    def __init__(self) -> None:
        self.items: queue.Queue[Samples | Finished] = queue.Queue()

    def __call__(self, item: Samples | Finished) -> None:
        self.items.put(item)

    def wait(self) -> tuple[Samples, Finished]:
        """All samples and the ending. The ending must be the last thing that came."""
        chunks = [np.zeros(0, np.float32)]
        while not isinstance(item := self.items.get(timeout=WAIT_S), Finished):
            chunks.append(item)
        assert self.items.empty()
        return np.concatenate(chunks), item


def speak(engine: Engine, request: Request) -> tuple[Samples, Finished]:
    sink = Sink()
    engine.submit(request, sink)
    return sink.wait()


def speak_all(engine: Engine, requests: Sequence[Request]) -> list[tuple[Samples, Finished]]:
    sinks = [Sink() for _ in requests]
    for request, sink in zip(requests, sinks, strict=True):
        engine.submit(request, sink)
    return [sink.wait() for sink in sinks]


def assert_close(samples: NDArray[np.int16], expected: NDArray[np.int16]) -> None:
    """Equal to one step of 16 bits: the same speech, whichever way a float's last bit fell."""
    assert samples.shape == expected.shape
    assert len(samples)
    assert np.abs(samples.astype(int) - expected).max() <= 1


def samples_of(spans: Iterable[Span]) -> Samples:
    """All of them, as one array."""
    return np.concatenate([span.samples for span in spans])


def silences(samples: NDArray[np.generic], shortest: int = 1000) -> list[int]:
    """Lengths of the runs of at least so many zeros."""
    sounds = np.concatenate([[-1], np.flatnonzero(samples), [len(samples)]])
    return [int(run) for run in np.diff(sounds) - 1 if run >= shortest]
