"""Token generation over slots: one forward pass per step, for prompts and running requests alike.

Owns the content of a step, the positions and step counts of every slot, and the slot grammar: only
the head's rows that are legal at a request's slot of the frame are computed. A request's tokens do
not depend on the rest of a step: attention is computed slot by slot, prompts are cut at fixed
places, and a step has enough rows that its matrix products always add in the same order. Knows
nothing about queues, time limits or audio.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sheen.engine.decode_step import BlockHeads, DecodeStep, Pending, attention_lengths
from sheen.engine.sampler import SlotSampler
from sheen.engine.types import Sampling
from sheen.lm.attention.slots import Rows, SlotSpan
from sheen.lm.cache.kv_cache import PAGE, CacheShape, PagedCache, free_memory, plan_pages
from sheen.lm.cache.prefixes import Key, PrefixCache
from sheen.lm.model import SpeechLM

logger = logging.getLogger(__name__)

PREFILL_CHUNK = 256
"""Most tokens of a prompt in a step. Prompts are always cut at this length, because the cut
determines how attention rounds."""
CHUNK_ROWS = 16, 32, 64, 128, PREFILL_CHUNK
"""With static shapes, rows of a chunk of a prompt: prompts have any length, and each new shape may
cost a GPU's libraries a plan. Unused rows cost next to nothing: such steps wait for the weights."""
PREFILL_ROWS = 512
"""Most tokens of all prompts in a step, beyond the first chunk: it bounds how long running requests
wait."""


@dataclass
class _Request:
    prompt: Sequence[int]
    max_tokens: int
    min_tokens: int
    keys: Sequence[Key] = ()
    """Keys of the prompt's chunks of PREFILL_CHUNK tokens that are to be kept."""
    written: int = 0
    """Tokens of the prompt in the cache."""
    step: int = 0
    """Tokens generated."""

    @property
    def position(self) -> int:
        """Position of its last token."""
        return len(self.prompt) + self.step - 1


@dataclass(frozen=True)
class StepOutput:
    """The result of a step: one token for each of `slots`, an exception for those in `failed`.

    `read` waits for the device.
    """

    slots: list[int]
    failed: dict[int, Exception] = field(default_factory=dict)
    _tokens: Tensor | None = None
    _event: "torch.cuda.Event | None" = None

    def read(self) -> list[int]:
        """The tokens of `slots`."""
        if self._event is not None:
            self._event.synchronize()
        if self._tokens is None:
            return []
        tokens: list[int] = self._tokens.tolist()
        return [tokens[slot] for slot in self.slots]


class TokenGenerator:
    """Runs the started requests, one token each per `step`.

    `static_shapes` computes all slots at once with constant shapes, which CUDA graphs need, and
    prompts in few shapes; the default on a GPU. `pages` of the KV cache: by default from
    `plan_pages`, which raises ValueError if the device does not have enough memory.
    """

    def __init__(
        self,
        model: SpeechLM,
        slots: int,
        max_seq_len: int,
        *,
        pages: int | None = None,
        static_shapes: bool | None = None,
    ) -> None:
        self.model = model
        self.layout = model.layout
        self.max_seq_len = max_seq_len
        self.device = model.head.device
        on_cpu = self.device.type == "cpu"
        self._static_shapes = not on_cpu if static_shapes is None else static_shapes
        shape = CacheShape.of(model.lm)
        if pages is None:
            pages = plan_pages(shape, slots, max_seq_len, free_memory(self.device))
        self.cache = PagedCache(shape, slots, max_seq_len, pages, self.device)
        self._prefixes = PrefixCache(self.cache.pool, PREFILL_CHUNK)
        self.sampler = SlotSampler(slots, max_seq_len, self.device)
        self._tokens = torch.zeros(slots, dtype=torch.long, device=self.device)
        self._requests: dict[int, _Request] = {}
        # Slots as tensors, see `_last_tokens`; cached until a request starts or ends.
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self._vocabulary = len(model.tables[0])
        self._heads = BlockHeads(model, self.sampler, self._tokens)
        self._decode_step = None
        if self._static_shapes:
            self._decode_step = DecodeStep(model, self.cache, self.sampler, self._tokens)
        # Layers compiled by training would be recompiled for every number of rows.
        self._compiled = any(part._compiled_call_impl is not None for part in model.lm.modules())

    @torch.inference_mode()
    def prepare(self, every_shape: bool = False) -> None:
        """Do now what would delay the first requests, which must not run yet. With `every_shape`
        each static shape of a step is computed once."""
        if self._decode_step is not None:
            with self._eagerly():
                self._decode_step.capture_all()
                if every_shape:
                    self._decode_step.compute_all()
                    self._compute_prompts()

    def _compute_prompts(self) -> None:
        """A chunk of each shape, at a slot that has no pages."""
        for length in attention_lengths(self.cache.capacity):
            for count in CHUNK_ROWS:
                zeros = torch.zeros(count, dtype=torch.long, device=self.device)
                index = (zeros + self.cache.spare_row)[:, None] + self.cache.heads
                rows = Rows(self.cache, index, [SlotSpan(0, 0, count, count, length)])
                self.model.slot_states(zeros, zeros, rows)

    @torch.inference_mode()
    def start(
        self,
        slot: int,
        prompt: Sequence[int],
        sampling: Sampling,
        max_tokens: int,
        min_tokens: int = 1,
        shared: int = 0,
    ) -> None:
        """Run a request at a free slot from the next step on.

        The first `shared` tokens of its prompt may occur in other prompts too: their keys and
        values are reused if they are in the cache, else computed and kept.

        ValueError for unknown token ids, too many tokens, and too few free pages of the KV cache.
        """
        if not prompt or min(prompt) < 0 or max(prompt) >= self._vocabulary:
            raise ValueError(f"the prompt holds ids outside 0..{self._vocabulary - 1}")
        if len(prompt) + max_tokens > self.max_seq_len:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and {max_tokens} to generate exceed the maximum "
                f"sequence length of {self.max_seq_len} tokens"
            )
        keys = self._prefixes.keys(prompt, shared)
        prefix = self._prefixes.find(keys)
        try:
            self.cache.open(slot, len(prompt) + max_tokens, prefix, self._prefixes.make_room)
        finally:
            self._prefixes.recount()
        self.sampler.set(slot, sampling, max_tokens)
        written = len(prefix) * PAGE
        self._requests[slot] = _Request(prompt, max_tokens, min_tokens, keys, written)
        self._forget()

    def stop(self, slot: int) -> None:
        """Free a slot and its pages, if it is in use. Steps that were already started may still
        write to them; the device orders these writes before those of the next request."""
        self._requests.pop(slot, None)
        self.cache.close(slot)
        self._prefixes.recount()
        self._forget()

    @torch.inference_mode()
    def step(self) -> StepOutput | None:
        """One step over all running requests; None if there are none.

        A request that has reached its `max_tokens` is skipped until it is stopped.
        """
        running, chunks = self._plan()
        if not running and not chunks:
            return None
        failed: dict[int, Exception] = {}
        try:
            self._run(running, chunks)
        except Exception as error:  # the base is third-party code and may raise anything
            logger.exception("a step of %d requests failed", len(running) + len(chunks))
            failed = self._run_apart(running, chunks, error)
        produced = []
        for span in [*(self._last_row(slot) for slot in running), *chunks]:
            if span.slot in failed:
                continue
            request = self._requests[span.slot]
            if not request.step:
                request.written += span.count
                self._keep(span.slot, request)
            if request.written == len(request.prompt):
                request.step += 1
                produced.append(span.slot)
        for slot in failed:
            self.stop(slot)
        return self._copied(produced, failed)

    @property
    def free_pages(self) -> int:
        """Pages of the KV cache for new requests: free ones, and kept ones that no running request
        uses. Any thread may read it."""
        return self.cache.pool.free + self._prefixes.reclaimable

    def _keep(self, slot: int, request: _Request) -> None:
        """Keep the last chunk of a prompt, if it is complete and to be kept."""
        number, rest = divmod(request.written, PREFILL_CHUNK)
        if not rest and 0 < number <= len(request.keys):
            self._prefixes.keep(request.keys[:number], self.cache.pages_at(slot))

    def _eagerly(self) -> AbstractContextManager[Any]:
        """Within this context, layers compiled by training run uncompiled."""
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

    def _plan(self) -> tuple[list[int], list[SlotSpan]]:
        """The slots that generate a token, and the chunks of prompts, of the next step."""
        running: list[int] = []
        chunks: list[SlotSpan] = []
        rows = 0
        for slot, request in self._requests.items():
            if request.step:
                if request.step < request.max_tokens:
                    running.append(slot)
                continue
            span = self._next_chunk(slot, request)
            count = span.count + span.spare
            if not chunks or rows + count <= PREFILL_ROWS:
                chunks.append(span)
                rows += count
        return running, chunks

    def _next_chunk(self, slot: int, request: _Request) -> SlotSpan:
        start = request.written
        count = min(PREFILL_CHUNK, len(request.prompt) - start)
        if self._decode_step is None:
            return SlotSpan(slot, start, count)
        rows = next(rows for rows in CHUNK_ROWS if rows >= count)
        return SlotSpan(slot, start, count, rows, self._decode_step.length_for(start + count))

    def _last_row(self, slot: int) -> SlotSpan:
        return SlotSpan(slot, self._requests[slot].position, 1)

    def _run(self, running: Sequence[int], chunks: Sequence[SlotSpan]) -> None:
        with self._eagerly():
            if self._decode_step is None:
                self._packed(running, chunks)
                return
            if chunks:
                self._packed([], chunks)
            if running:
                at = {slot: self._requests[slot] for slot in running}
                self._decode_step.run(
                    {slot: (r.position, r.step, r.min_tokens) for slot, r in at.items()}
                )

    def _run_apart(
        self, running: Sequence[int], chunks: Sequence[SlotSpan], error: Exception
    ) -> dict[int, Exception]:
        """Repeat a failed step one request at a time, to find the request that failed."""
        if len(running) + len(chunks) == 1:
            return {next(iter([*running, *(span.slot for span in chunks)])): error}
        failed: dict[int, Exception] = {}
        for slot in running:
            try:
                self._run([slot], [])
            except Exception as error:  # noqa: BLE001 - as above
                failed[slot] = error
        for span in chunks:
            try:
                self._run([], [span])
            except Exception as error:  # noqa: BLE001 - as above
                failed[span.slot] = error
        return failed

    def _packed(self, running: Sequence[int], chunks: Sequence[SlotSpan]) -> None:
        """Compute the rows of a step, and sample tokens for requests whose prompt is complete."""
        spans = [*(self._last_row(slot) for slot in running), *chunks]
        places: list[int] = []
        kept: list[int] = []
        for span in spans:
            places += range(span.start, span.start + span.count)
            kept += self.cache.rows(span.slot, span.start, span.count)
            if unused := span.spare:
                places += [0] * unused
                kept += [self.cache.spare_row] * unused
        ids = self._last_tokens(tuple(running))
        prompts: list[int] = []
        for span in chunks:
            prompts += self._requests[span.slot].prompt[span.start : span.start + span.count]
            prompts += [0] * span.spare
        spare = self._heads.spare_rows(len(places))
        places += [0] * spare
        kept += [self.cache.spare_row] * spare
        prompts += [0] * spare
        if prompts:
            ids = torch.cat([ids, self._tensor(prompts)])
        positions = self._tensor(places)
        index = self._tensor(kept)[:, None] + self.cache.heads
        states = self.model.slot_states(ids, positions, Rows(self.cache, index, spans))

        pending, row = [], -1
        for span in spans:
            row += span.count
            request = self._requests[span.slot]
            if span.start + span.count >= len(request.prompt):
                pending.append(Pending(row, span.slot, request.step, request.min_tokens))
            row += span.spare
        if pending:
            self._heads.choose(states, pending)

    def _last_tokens(self, slots: tuple[int, ...]) -> Tensor:
        """The last tokens at some slots `[T]`."""
        if (where := self._kept.get(slots)) is None:
            where = self._kept[slots] = self._tensor(slots)
        return self._tokens.index_select(0, where)

    def _forget(self) -> None:
        self._kept.clear()
        self._heads.forget()

    def _copied(self, produced: list[int], failed: dict[int, Exception]) -> StepOutput:
        if not produced:
            return StepOutput([], failed)
        if self.device.type != "cuda":
            return StepOutput(produced, failed, self._tokens.clone())
        host = torch.empty(len(self._tokens), dtype=torch.long, pin_memory=True)
        host.copy_(self._tokens, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return StepOutput(produced, failed, host, event)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)
