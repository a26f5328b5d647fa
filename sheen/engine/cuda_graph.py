"""The decode step over all slots, in static shapes, so that a GPU can capture it as a CUDA graph.

Owns the captured graphs, one per attention length and set of sampling features, and their input
buffers. The host sends one small table per step; which rows of the head a slot may use is looked up
on the device. On a CPU the same code runs without a graph, which is how it is tested.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sheen.engine.sampler import Needs, SlotSampler
from sheen.lm.kv_cache import Rows, SlotCache
from sheen.lm.model import SpeechLM

MIN_LENGTH = 256
"""Positions of the shortest attention that is captured; further ones double."""

PLAIN = Needs(draws=True, likeliest=False, penalties=False)
GENERAL = Needs(draws=True, likeliest=True, penalties=True)
"""What is captured: the common settings, and all of them. What a request does not ask for leaves
its tokens as they are."""


def attention_lengths(capacity: int) -> list[int]:
    """The lengths at which attention over slots of `capacity` positions is cut."""
    cuts = [min(MIN_LENGTH, capacity)]
    while cuts[-1] < capacity:
        cuts.append(min(2 * cuts[-1], capacity))
    return cuts


class DecodeStep:
    """Decodes one token at every slot; what idle slots compute is discarded.

    `tokens` `[slots]` are the last ones, which a step reads and replaces.
    """

    def __init__(
        self, model: SpeechLM, cache: SlotCache, sampler: SlotSampler, tokens: Tensor
    ) -> None:
        self._model, self._cache, self._sampler, self._tokens = model, cache, sampler, tokens
        device, slots, layout = tokens.device, cache.slots, model.layout
        self._lengths = attention_lengths(cache.capacity)
        self._slots = torch.arange(slots, device=device)
        # Rows: positions, steps, first step at which a request may end.
        self._table = torch.zeros(3, slots, dtype=torch.long, device=device)
        bases = [layout.level_base(level) - 1 for level, _ in layout.slots]
        self._bases = torch.tensor(bases, device=device)
        self._columns = torch.arange(layout.codebook_size + 1, device=device)
        self._graphs: dict[tuple[int, Needs], torch.cuda.CUDAGraph] = {}

    def run(self, requests: Mapping[int, tuple[int, int, int]]) -> None:
        """One token for each request: by slot its position, its step, when it may end first."""
        spare = self._cache.spare
        rows = [requests.get(slot, (spare, 0, 0)) for slot in range(self._cache.slots)]
        table = torch.tensor(rows, dtype=torch.long).T.contiguous()
        on_gpu = self._tokens.is_cuda
        if on_gpu:
            self.capture_all()
            table = table.pin_memory()
        self._table.copy_(table, non_blocking=True)
        longest = 1 + max(position for position, _, _ in requests.values())
        length = next(cut for cut in self._lengths if cut >= longest)
        needs = PLAIN if self._sampler.needs(requests) == PLAIN else GENERAL
        if on_gpu:
            self._graphs[length, needs].replay()
        else:
            self._compute(length, needs)

    def capture_all(self) -> None:
        """Capture every graph, unless that was done: never while requests run, so that none of them
        waits for it, and none is computed more than once."""
        if self._tokens.is_cuda and not self._graphs:
            self.idle()
            for length in self._lengths:
                for needs in (PLAIN, GENERAL):
                    self._graphs[length, needs] = self._capture(length, needs)

    def idle(self) -> None:
        """Let no slot run in the steps that follow, until `run`: they change nothing."""
        self._table[0].fill_(self._cache.spare)
        self._table[1:].zero_()

    def _capture(self, length: int, needs: Needs) -> torch.cuda.CUDAGraph:
        # What is set up lazily at the first calls cannot be captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._compute(length, needs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._compute(length, needs)
        return graph

    def _compute(self, length: int, needs: Needs) -> None:
        positions, steps, minimum = self._table
        active = positions != self._cache.spare
        index = self._cache.index(self._slots, positions)
        seen = torch.where(active, positions, 0)
        rows = Rows(self._cache, index, positions=seen, length=length)
        states = self._model.slot_states(self._tokens, seen, rows)
        slots = steps % len(self._bases)
        bases = self._bases[slots]
        # All audio rows, 2% of a large vocabulary, and then those of each slot's level.
        layout = self._model.layout
        head = self._model.head[layout.start_id : layout.start_id + layout.size]
        all_rows = torch.nn.functional.linear(states, head).float()
        logits = all_rows.gather(1, bases[:, None] - layout.start_id + self._columns)
        may_end = (slots == 0) & (steps >= minimum)
        logits[:, 0] = torch.where(may_end, logits[:, 0], float("-inf"))
        chosen = self._sampler.choose(logits, self._slots, steps, bases, needs, active)
        self._tokens.copy_(torch.where(active, chosen, self._tokens))
