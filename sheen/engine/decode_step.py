"""From a step's states to its tokens: the rows of the head that are legal at a slot of the frame.

Owns the slot grammar on the device, in two forms. `BlockHeads` takes any rows of a step and
computes, for each block of ids, the head's rows for the states at its slots; used on a CPU, and on
a GPU for prompts. `DecodeStep` is a decode step over all slots with static shapes, which a GPU can
capture as a CUDA graph: it owns the captured graphs, one per attention length, and their input
buffers. The host sends one small table per step; legal rows and sampling settings are looked up on
the device. On a CPU the same code runs without a graph, which is how it is tested.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sheen.codec.layout import TokenLayout
from sheen.engine.sampler import Needs, RowSettings, SlotSampler
from sheen.lm.attention.slots import Rows
from sheen.lm.cache.kv_cache import PAGE, PagedCache
from sheen.lm.cpu_kernels import MIN_ROWS, MOST_ROWS, Product
from sheen.lm.model import SpeechLM, float32_logits

MIN_LENGTH = 256
"""Shortest captured attention length; each further one is twice as long."""

IDLE = -1
"""The position of an idle slot."""

ALL_NEEDS = Needs(draws=True, likeliest=True, penalties=True)
"""Operations in a captured graph: those that a request does not need do not change its tokens, and
are a hundredth of a step's kernels."""


def attention_lengths(capacity: int) -> list[int]:
    """The lengths at which attention over slots of `capacity` positions is cut."""
    cuts = [min(MIN_LENGTH, capacity)]
    while cuts[-1] < capacity:
        cuts.append(min(2 * cuts[-1], capacity))
    return cuts


class Pending(NamedTuple):
    """A request whose next token is to be chosen, and the row of its last one in a step."""

    row: int
    slot: int
    step: int
    min_tokens: int


@dataclass(frozen=True)
class _Choice:
    """The part of a step that is constant while the same requests are in it."""

    parts: list[tuple[Product, Tensor | None, int]]
    """For each block the product with the head, the rows that it takes (None: all of the step's),
    and how many of them count."""
    order: list[int]
    """Which of the pending the rows of the logits are: block by block."""
    bases: Tensor
    settings: RowSettings


def _with_end(ids: Tensor, layout: TokenLayout) -> Tensor:
    """The chosen columns as token ids: column 0 of the first block is `<audio_end>`, which in some
    layouts is not adjacent to the block's codes."""
    column = layout.blocks[0].base - 1
    return ids if column == layout.end_id else torch.where(ids == column, layout.end_id, ids)


class BlockHeads:
    """Chooses tokens from the states of a step's rows.

    `tokens` `[slots]` are the last ones, which are replaced. The columns of a request's logits are
    those of its slot's block; column 0 is `<audio_end>` in the first block, and in others a row
    that is struck out.
    """

    def __init__(self, model: SpeechLM, sampler: SlotSampler, tokens: Tensor) -> None:
        layout = model.layout
        self._layout, self._sampler, self._tokens = layout, sampler, tokens
        self._blocks = layout.slot_blocks
        self._bases = [block.base - 1 for block in layout.blocks]
        self._heads = [model.head_product(layout.columns(block)) for block in layout.blocks]
        float32 = tokens.device.type == "cpu" and model.head.dtype == torch.float32
        self._multiples = model.fewest_rows(self._heads[0]), MIN_ROWS if float32 else 1
        self._choices: dict[tuple[int, ...], _Choice] = {}

    def spare_rows(self, count: int) -> int:
        """Rows to add to `count`, so that a row's products do not depend on the number of rows."""
        return -count % self._multiples[count > MOST_ROWS]

    def forget(self) -> None:
        """Must be called when a request begins or ends."""
        self._choices.clear()

    def choose(self, states: Tensor, pending: Sequence[Pending]) -> None:
        """Choose the next token of each, from states `[T, d]`."""
        phases = [each.step % len(self._blocks) for each in pending]
        key = (len(states), *(each.row for each in pending), *(p.slot for p in pending), *phases)
        if (choice := self._choices.get(key)) is None:
            choice = self._choices[key] = self._choice(len(states), pending, phases)
        parts = [
            head(states if rows is None else states.index_select(0, rows))[:count]
            for head, rows, count in choice.parts
        ]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        endless = [
            row
            for row, at in enumerate(choice.order)
            if phases[at] or pending[at].step < pending[at].min_tokens
        ]
        if len(endless) == len(pending):
            logits.select(1, 0).fill_(float("-inf"))
        elif endless:
            logits[self._tensor(endless), 0] = float("-inf")
        steps = self._tensor([pending[at].step for at in choice.order])
        ids = self._sampler.choose(logits, choice.settings, steps, choice.bases)
        self._tokens.index_copy_(0, choice.settings.slots, _with_end(ids, self._layout))

    def _choice(self, total: int, pending: Sequence[Pending], phases: Sequence[int]) -> _Choice:
        parts: list[tuple[Product, Tensor | None, int]] = []
        order: list[int] = []
        bases: list[int] = []
        for block, (base, head) in enumerate(zip(self._bases, self._heads, strict=True)):
            own = [at for at, phase in enumerate(phases) if self._blocks[phase] == block]
            if not own:
                continue
            rows = [pending[at].row for at in own]
            rows += rows[:1] * self.spare_rows(len(rows))
            taken = None if rows == [*range(total)] else self._tensor(rows)
            parts.append((head, taken, len(own)))
            order += own
            bases += [base] * len(own)
        settings = self._sampler.settings([pending[at].slot for at in order])
        return _Choice(parts, order, self._tensor(bases), settings)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._tokens.device)


class DecodeStep:
    """Decodes one token at every slot; what idle slots compute is discarded.

    `tokens` `[slots]` are the last ones, which a step reads and replaces.
    """

    def __init__(
        self, model: SpeechLM, cache: PagedCache, sampler: SlotSampler, tokens: Tensor
    ) -> None:
        self._model, self._cache, self._sampler, self._tokens = model, cache, sampler, tokens
        device, slots, layout = tokens.device, cache.slots, model.layout
        self._lengths = attention_lengths(cache.capacity)
        self._slots = torch.arange(slots, device=device)
        # Rows: positions (of idle slots IDLE), steps, first step at which a request may end.
        self._table = torch.zeros(3, slots, dtype=torch.long, device=device)
        blocks = [layout.blocks[number] for number in layout.slot_blocks]
        self._bases = torch.tensor([block.base - 1 for block in blocks], device=device)
        columns = [list(layout.columns(block)) for block in blocks]
        self._columns = torch.tensor(columns, device=device) - layout.first_id
        """`[tokens_per_frame, codebook_size + 1]`: where the audio rows have those of a slot."""
        self._captures = tokens.is_cuda
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def run(self, requests: Mapping[int, tuple[int, int, int]]) -> None:
        """One token for each request: by slot its position, its step, when it may end first."""
        rows = [requests.get(slot, (IDLE, 0, 0)) for slot in range(self._cache.slots)]
        table = torch.tensor(rows, dtype=torch.long).T.contiguous()
        if self._captures:
            self.capture_all()
            table = table.pin_memory()
        self._table.copy_(table, non_blocking=True)
        longest = 1 + max(position for position, _, _ in requests.values())
        length = self.length_for(longest)
        if self._captures:
            self._graphs[length].replay()
        else:
            self._compute(length)

    def capture_all(self) -> None:
        """Capture every graph, unless that was done: never while requests run, so that none of them
        waits for it, and none is computed more than once."""
        if not self._captures or self._graphs:
            return
        self.idle()
        # All on one stream, because cuBLAS keeps a workspace for each, and in one pool, in which
        # none leaves anything for another: the longest first, so that the others fit into it.
        stream = torch.cuda.Stream()
        pool: Any = None
        graphs: dict[int, torch.cuda.CUDAGraph] = {}
        stream.wait_stream(torch.cuda.current_stream())
        for length in reversed(self._lengths):
            with torch.cuda.stream(stream):
                # What is set up lazily at the first calls cannot be captured.
                for _ in range(2):
                    self._compute(length)
            graph = graphs[length] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                self._compute(length)
            pool = graph.pool()
        torch.cuda.current_stream().wait_stream(stream)
        self._graphs = graphs

    def compute_all(self) -> None:
        """Compute a step of every shape once, unless graphs were captured, which does."""
        if not self._graphs:
            self.idle()
            for length in self._lengths:
                self._compute(length)

    def length_for(self, positions: int) -> int:
        """The attention length for so many positions of a slot."""
        return next(length for length in self._lengths if length >= positions)

    def idle(self) -> None:
        """Let no slot run in the steps that follow, until `run`: they change nothing."""
        self._table[0].fill_(IDLE)
        self._table[1:].zero_()

    def _compute(self, length: int) -> None:
        positions, steps, minimum = self._table
        active = positions != IDLE
        seen = torch.where(active, positions, 0)
        tables = self._cache.tables
        pages = tables.gather(1, (seen // PAGE)[:, None])[:, 0]
        kept = torch.where(active, pages * PAGE + seen % PAGE, self._cache.spare_row)
        rows = Rows(
            self._cache,
            kept[:, None] + self._cache.heads,
            positions=seen,
            tables=tables[:, : length // PAGE],
            length=length,
        )
        states = self._model.slot_states(self._tokens, seen, rows)
        slots = steps % len(self._bases)
        bases = self._bases[slots]
        # All audio rows, 2% of a large vocabulary (and of 3B weights with ids by slot), and then
        # those of each slot's block.
        layout = self._model.layout
        head = self._model.head[layout.first_id : layout.first_id + layout.size]
        all_rows = float32_logits(states, head)
        logits = all_rows.gather(1, self._columns[slots])
        may_end = (slots == 0) & (steps >= minimum)
        logits[:, 0] = torch.where(may_end, logits[:, 0], float("-inf"))
        settings = self._sampler.settings_on_device(self._slots, ALL_NEEDS)
        chosen = self._sampler.choose(logits, settings, steps, bases, active)
        chosen = _with_end(chosen, layout)
        self._tokens.copy_(torch.where(active, chosen, self._tokens))
