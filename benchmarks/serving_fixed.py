"""Fixed batches with streaming: how Sheen served before it had slots. The serving benchmark's (b).

A copy of that engine with nothing of the present one: requests that wait together are generated as
one batch, left-padded, with the base's own attention and a growing cache, until the last has ended;
audio is decoded between the steps. It shares the codec, its streaming windows and the model's head.
"""

import queue
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from sheen import rng
from sheen.codec.snac import Codec
from sheen.engine.sampler import Sampling
from sheen.engine.streaming import StreamingDecoder, decode_ready
from sheen.engine.types import Finished, Request, Sink
from sheen.lm.model import SpeechLM

BATCH_WAIT_S = 0.05


class _Sampler:
    def __init__(self, settings: Sequence[Sampling], device: torch.device) -> None:
        def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self._temperature = column([s.temperature for s in settings])[:, None]
        self._top_k = column([s.top_k for s in settings], torch.long)[:, None]
        self._top_p = column([s.top_p for s in settings])[:, None]
        self._seeds = column([s.seed for s in settings], torch.long)
        self._filters = any(s.top_k > 0 or s.top_p < 1.0 for s in settings)

    def choose(self, logits: Tensor, step: int) -> Tensor:
        logits = logits.float()
        scaled = logits / self._temperature.clamp(min=1e-5)
        if self._filters:
            scaled = self._filter(scaled)
        positions = step * (1 << 16) + torch.arange(logits.shape[1], device=logits.device)
        uniform = rng.uniform(self._seeds, rng.SAMPLING, positions)
        drawn = (scaled - torch.log(-torch.log(uniform))).argmax(-1)
        return torch.where(self._temperature[:, 0] == 0.0, logits.argmax(-1), drawn)

    def _filter(self, scaled: Tensor) -> Tensor:
        ordered, order = scaled.sort(dim=-1, descending=True)
        rank = torch.arange(scaled.shape[1], device=scaled.device)[None]
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        drop = (before >= self._top_p) & (self._top_p < 1.0)
        drop |= (rank >= self._top_k) & (self._top_k > 0)
        return scaled.masked_fill(drop.scatter(1, order, drop), float("-inf"))


@torch.inference_mode()
def _generate(
    model: SpeechLM, prompts: Sequence[Sequence[int]], sampler: _Sampler, minimum: Sequence[int]
) -> Iterator[NDArray[np.int64]]:
    layout, device = model.layout, model.head.device
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), layout.start_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0).to(device)
    ids, mask = ids.to(device), mask.to(device)
    ragged = bool((mask == 0).any())
    least = torch.tensor(minimum, device=device)
    cache = DynamicCache(config=model.lm.config)
    step = 0
    while True:
        states = model.hidden(
            ids,
            attention_mask=mask if ragged else None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        frame, slot = divmod(step, layout.tokens_per_frame)
        legal = layout.legal(slot)
        logits = states @ model.head[legal.start : legal.stop].T
        if legal.start == layout.end_id:
            logits[frame < least, 0] = float("-inf")
        token = legal.start + sampler.choose(logits, step)
        yield token.cpu().numpy()
        step += 1
        ids, positions = token[:, None], positions[:, -1:] + 1
        if ragged:
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)


class _Running:
    def __init__(self, request: Request, sink: Sink, decoder: StreamingDecoder) -> None:
        self.request, self.sink, self.decoder = request, sink, decoder
        self.over = self.closed = False


class FixedBatches:
    """`submit(request, sink)`; generates up to `slots` requests as one batch."""

    def __init__(self, model: SpeechLM, codec: Codec, slots: int) -> None:
        self._model, self._codec, self._slots = model, codec, slots
        self._queue: queue.Queue[_Running | None] = queue.Queue()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def submit(self, request: Request, sink: Sink) -> None:
        decoder = StreamingDecoder(self._codec, self._model.layout, request.sampling.seed)
        self._queue.put(_Running(request, sink, decoder))

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            while len(batch) < self._slots:
                try:
                    item = self._queue.get(timeout=BATCH_WAIT_S)
                except queue.Empty:
                    break
                if item is None:
                    self._queue.put(None)
                    break
                batch.append(item)
            self._run(batch)

    def _run(self, batch: Sequence[_Running]) -> None:
        layout = self._model.layout
        requests = [running.request for running in batch]
        sampler = _Sampler([r.sampling for r in requests], self._model.head.device)
        prompts = [request.prompt for request in requests]
        minimum = [request.min_frames for request in requests]
        for step, tokens in enumerate(_generate(self._model, prompts, sampler, minimum)):
            for running, token in zip(batch, tokens.tolist(), strict=True):
                if running.over:
                    continue
                if token == layout.end_id:
                    running.over = True
                else:
                    running.decoder.push([token])
                    running.over = running.decoder.frames == running.request.max_frames
                if running.over:
                    running.decoder.finish()
            if step % layout.tokens_per_frame in (0, layout.tokens_per_frame - 1):
                self._deliver(batch)
            if all(running.over for running in batch):
                self._deliver(batch)
                return

    def _deliver(self, batch: Sequence[_Running]) -> None:
        while True:
            open_ = [running for running in batch if not running.closed]
            results = decode_ready([running.decoder for running in open_])
            for running, samples in zip(open_, results, strict=True):
                if len(samples):
                    running.sink(samples)
                elif running.over:
                    running.closed = True
                    running.sink(Finished("length", running.decoder.frames))
            if not any(map(len, results)):
                return
