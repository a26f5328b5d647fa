"""Token generation over slots: they are the model's tokens, whoever else runs."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    LogitsProcessor,
    MistralConfig,
)

from helpers.small_models import graphs_compiled
from helpers.speaking import LAYOUT, POSITIONS, WORDS, draw_request, random_model
from sheen.codec.layout import TokenLayout
from sheen.codec.snac import Codec
from sheen.engine.decode_step import DecodeStep, attention_lengths
from sheen.engine.generation import PREFILL_CHUNK, TokenGenerator
from sheen.engine.scheduler import Slots
from sheen.engine.types import Request, Sampling
from sheen.lm.attention.slots import Rows, SlotSpan
from sheen.lm.cache.kv_cache import PAGE, pages_of
from sheen.lm.model import SpeechLM

SLOTS = 16
FRAME = LAYOUT.tokens_per_frame
NEAR_A_BOUND = {6, 11, 13}
"""Requests of which a draw may fall on the other side of a bound if the weights change by 1e-5 of
their size, as another CPU might round them; the others stay as they are."""


@pytest.fixture(scope="module")
def model() -> SpeechLM:
    return random_model()


@pytest.fixture(scope="module")
def frozen() -> SpeechLM:
    """As a served model is: its weights laid out for this CPU."""
    frozen = random_model()
    frozen.freeze()
    return frozen


def begin(decoder: TokenGenerator, slot: int, request: Request) -> None:
    frame = decoder.layout.tokens_per_frame
    decoder.start(
        slot,
        request.prompt,
        request.sampling,
        request.max_frames * frame,
        request.min_frames * frame,
    )


def run(
    decoder: TokenGenerator, requests: Sequence[Request], arrivals: random.Random | None
) -> list[list[int]]:
    """The tokens of each request; they arrive at random, or all as soon as there is a slot."""
    free, waiting = list(range(decoder.cache.slots)), list(enumerate(requests))
    running: dict[int, int] = {}
    tokens: list[list[int]] = [[] for _ in requests]
    while waiting or running:
        while free and waiting and (arrivals is None or arrivals.random() < 0.4):
            number, request = waiting.pop(0)
            slot = free.pop(arrivals.randrange(len(free)) if arrivals else 0)
            begin(decoder, slot, request)
            running[slot] = number
        step = decoder.step()
        if step is None:
            continue
        assert not step.failed
        for slot, token in zip(step.slots, step.read(), strict=True):
            number = running[slot]
            tokens[number].append(token)
            whole = requests[number].max_frames * decoder.layout.tokens_per_frame
            if token == decoder.layout.end_id or len(tokens[number]) == whole:
                decoder.stop(slot)
                free.append(slot)
                del running[slot]
    return tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    "count",
    [14, pytest.param(200, marks=pytest.mark.soak)],
)
def test_requests_arriving_at_random_get_what_each_gets_alone(model: SpeechLM, count: int) -> None:
    requests = [draw_request(number, frames=7) for number in range(count)]
    decoder = TokenGenerator(model, SLOTS, POSITIONS)
    together = run(decoder, requests, random.Random(0))
    for number, request in enumerate(requests):
        assert run(decoder, [request], None) == [together[number]], f"request {number}"
    ends = sum(tokens[-1] == LAYOUT.end_id for tokens in together)
    assert count / 20 < ends < count * 0.95, "some must end by themselves, and some at their budget"
    assert any(len(request.prompt) > PREFILL_CHUNK for request in requests)


def test_requests_of_a_frozen_model_get_what_each_gets_alone(
    model: SpeechLM, frozen: SpeechLM
) -> None:
    requests = [draw_request(number, frames=7) for number in range(14)]
    together = run(TokenGenerator(frozen, SLOTS, POSITIONS), requests, random.Random(0))
    alone = TokenGenerator(frozen, SLOTS, POSITIONS)
    for number, request in enumerate(requests):
        assert run(alone, [request], None) == [together[number]], f"request {number}"
    trained = run(TokenGenerator(model, SLOTS, POSITIONS), requests, random.Random(0))
    differ = {number for number in range(14) if together[number] != trained[number]}
    assert differ <= NEAR_A_BOUND, "other roundings of the same model"


class LegalRows(LogitsProcessor):
    """transformers' generation restricted as the layout says; keeps the gap of every choice."""

    def __init__(self, prompt: int, min_tokens: int) -> None:
        self.prompt, self.min_tokens = prompt, min_tokens
        self.gaps: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt
        legal = LAYOUT.legal(step % FRAME)
        first = legal[0] + (step % FRAME == 0 and step < self.min_tokens)
        masked = torch.full_like(scores, float("-inf"))
        masked[:, first : legal[-1] + 1] = scores[:, first : legal[-1] + 1]
        best = masked[0].topk(2).values
        self.gaps.append(float(best[0] - best[1]))
        return masked


GREEDY = [Request(draw_request(number).prompt, 5, Sampling(0.0)) for number in range(14)]


@pytest.fixture(scope="module")
def generated() -> list[tuple[list[int], list[float]]]:
    """Tokens of transformers for each request, and the gap of every choice."""
    model = random_model()
    model.lm.set_attn_implementation("sdpa")
    found = []
    for request in GREEDY:
        prompt = torch.tensor([request.prompt])
        rows = LegalRows(prompt.shape[1], FRAME)
        tokens = model.lm.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=5 * FRAME,
            eos_token_id=LAYOUT.end_id,
            pad_token_id=0,
            logits_processor=[rows],
        )[0, prompt.shape[1] :].tolist()
        found.append((tokens, rows.gaps))
    return found


@pytest.mark.parametrize("freezes", [False, True])
def test_greedy_tokens_are_those_of_transformers(
    model: SpeechLM,
    frozen: SpeechLM,
    generated: list[tuple[list[int], list[float]]],
    freezes: bool,
) -> None:
    decoder = TokenGenerator(frozen if freezes else model, SLOTS, POSITIONS)
    assert min(min(gaps) for _, gaps in generated) > 1e-4, "no choice is left to the rounding"
    assert run(decoder, GREEDY, random.Random(1)) == [tokens for tokens, _ in generated]


# The same in every way of computing it


@pytest.mark.slow
def test_all_slots_at_once_give_the_same_tokens() -> None:
    """The shape of passes that a GPU records, unrecorded. In 64 bits, so that no draw is left to
    the rounding of other shapes."""
    model = random_model()
    model.lm.double()
    requests = [draw_request(number, frames=7) for number in range(14)]
    packed = run(TokenGenerator(model, 4, POSITIONS), requests, random.Random(0))
    whole = run(TokenGenerator(model, 4, POSITIONS, static_shapes=True), requests, random.Random(0))
    assert packed == whole


@pytest.mark.slow
@pytest.mark.parametrize("static_shapes", [False, True])
def test_a_penalised_request_gets_the_same_tokens_whoever_joins(
    model: SpeechLM, static_shapes: bool
) -> None:
    """While its prompt is read others run, and its first token counts in its window like any. A
    penalty below 1 makes repeating likelier, so that each token in the window shows."""
    penalised = [
        Request(draw_request(number).prompt, 6, Sampling(temperature, repetition_penalty=0.5), 6)
        for number, temperature in ((1, 0.0), (2, 0.7), (3, 0.0))
    ]
    others = [Request(draw_request(number).prompt, 12, Sampling(1.0), 12) for number in (4, 5)]
    alone = [
        run(TokenGenerator(model, 4, POSITIONS, static_shapes=static_shapes), [request], None)[0]
        for request in penalised
    ]
    generator = TokenGenerator(model, 4, POSITIONS, static_shapes=static_shapes)
    together = run(generator, [*others, *penalised], random.Random(3))
    assert together[len(others) :] == alone


@pytest.mark.slow
def test_a_step_in_which_no_slot_runs_changes_no_request(model: SpeechLM) -> None:
    """Such steps warm up what a GPU captures, also when requests are there already."""
    request = Request(draw_request(2).prompt, 6, Sampling(0.7, repetition_penalty=0.5), 6)
    generator = TokenGenerator(model, 2, POSITIONS, static_shapes=True)
    expected = run(generator, [request], None)[0]
    step = DecodeStep(model, generator.cache, generator.sampler, generator._tokens)
    begin(generator, 0, request)
    tokens = []
    while len(tokens) < len(expected):
        output = generator.step()
        assert output is not None
        tokens += output.read()
        step.idle()
        step._compute(256)
    assert tokens == expected


@pytest.mark.slow
def test_one_graph_is_captured_per_length_on_one_stream_and_none_in_service(
    model: SpeechLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the requests ask for, which go on past the first length. Stand-ins of torch.cuda's,
    which a CPU has not, note what is captured and compute it when it is replayed."""
    requests = [
        Request([number] * 230 + [LAYOUT.start_id], 8, sampling, 8)
        for number, sampling in enumerate(
            (Sampling(0.0), Sampling(0.7), Sampling(0.7, repetition_penalty=1.3), Sampling(1, 9))
        )
    ]
    expected = run(TokenGenerator(model, 4, POSITIONS, static_shapes=True), requests, None)
    generator = TokenGenerator(model, 4, POSITIONS, static_shapes=True)
    step = generator._decode_step
    assert step is not None
    computed: list[int] = []
    compute = step._compute

    def counted(length: int) -> None:
        computed.append(length)
        compute(length)

    class Graph:
        length = 0

        def pool(self) -> str:
            return "the first one's"

        def replay(self) -> None:
            compute(self.length)

    captured: list[tuple[int, Any, Any]] = []

    @contextmanager
    def capture(graph: Graph, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        yield
        graph.length = computed[-1]
        captured.append((graph.length, pool, stream))

    monkeypatch.setattr(step, "_compute", counted)
    monkeypatch.setattr(step, "_captures", True)
    monkeypatch.setattr(torch.cuda, "Stream", Mock)
    monkeypatch.setattr(torch.cuda, "current_stream", Mock)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    generator.prepare()
    lengths, pools, streams = zip(*captured, strict=True)
    assert list(lengths) == attention_lengths(POSITIONS)[::-1] == [512, 256]
    assert pools == (None, "the first one's")
    assert len({id(stream) for stream in streams}) == 1
    before = len(computed)
    assert run(generator, requests, None) == expected
    assert len(computed) == before


SHAPE: dict[str, Any] = {
    "vocab_size": 224,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SHAPE),
        MistralConfig(**SHAPE, sliding_window=20),
        GPT2Config(vocab_size=224, n_embd=32, n_layer=2, n_head=4, n_positions=512),
    ],
    ids=["llama", "mistral with a window", "gpt2"],
)
def test_tokens_of_other_bases_are_the_best_of_their_own_whole_forward(
    config: Any, whole: bool
) -> None:
    layout = TokenLayout(100, 40, (4, 2, 1))
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for weight in lm.parameters():
        weight.mul_(3.0 if weight.ndim > 1 else 1.0)
    model = SpeechLM(lm, layout)
    generator = random.Random(0)
    requests = [
        Request([*(generator.randrange(100) for _ in range(n)), layout.start_id], 4, Sampling(0.0))
        for n in (1, 7, 40, PREFILL_CHUNK + 30)
    ]
    produced = run(TokenGenerator(model, 3, 400, static_shapes=whole), requests, random.Random(0))
    lm.set_attn_implementation("eager")
    for request, tokens in zip(requests, produced, strict=True):
        ids = torch.tensor([[*request.prompt, *tokens]])
        with torch.inference_mode():
            logits = lm(ids).logits[0, len(request.prompt) - 1 :]
        for step, token in enumerate(tokens):
            slot = step % layout.tokens_per_frame
            legal = layout.legal(slot)
            start = legal[0] + (slot == 0 and step < layout.tokens_per_frame)
            best = logits[step, start : legal[-1] + 1]
            assert best.max() - best[token - start] < 1e-3


def test_a_prompt_prefilled_in_chunks_gives_the_tokens_of_the_whole(model: SpeechLM) -> None:
    """Its last state beside the base's own forward pass over the whole of it."""
    generator = random.Random(0)
    prompt = [*(generator.randrange(WORDS) for _ in range(PREFILL_CHUNK + 100)), LAYOUT.start_id]
    decoder = TokenGenerator(model, 2, POSITIONS)
    begin(decoder, 1, Request(prompt, 1, Sampling(0.0)))
    first, second = decoder.step(), decoder.step()
    assert first is not None
    assert second is not None
    assert (first.slots, second.slots) == ([], [1])
    with torch.inference_mode():
        states = model.hidden(torch.tensor([prompt]), use_cache=False).last_hidden_state[0, -1]
    legal = LAYOUT.legal(0)
    logits = model.head[legal[0] + 1 : legal[-1] + 1] @ states
    assert second.read() == [legal[0] + 1 + int(logits.argmax())]


@pytest.mark.slow
@pytest.mark.parametrize("count", [25, pytest.param(250, marks=pytest.mark.soak)])
def test_an_untrained_model_gives_legal_codes_over_their_whole_range(count: int) -> None:
    model, frames = random_model(end=0.0), 20
    decoder = TokenGenerator(model, 64, POSITIONS)
    settings = [Sampling(1.0, 0, 1.0), Sampling(5.0, 0, 1.0), Sampling(1.0, 100, 1.0)]
    requests = [
        Request(
            [number % WORDS, LAYOUT.start_id],
            frames,
            Sampling(kind.temperature, kind.top_k, kind.top_p, number),
            min_frames=frames,
        )
        for number in range(count)
        for kind in [settings[number % len(settings)]]
    ]
    spoken = [LAYOUT.from_ids(np.array(tokens)) for tokens in run(decoder, requests, None)]
    codes = np.concatenate(spoken)
    assert codes.shape == (frames * count, FRAME)
    # Every code of every level can come, the first and the last included.
    for slot in range(FRAME):
        assert codes[:, slot].min() < 50_000 / len(codes)
        assert codes[:, slot].max() > 4095 - 50_000 / len(codes)


@pytest.mark.slow
def test_frames_of_an_untrained_model_decode_to_finite_audio(codec: Codec) -> None:
    requests = [Request([LAYOUT.start_id], 20, Sampling(1.0, 0, 1.0, n), 20) for n in range(4)]
    tokens = run(TokenGenerator(random_model(end=0.0), 4, POSITIONS), requests, None)
    frames = np.stack([LAYOUT.from_ids(np.array(ids)) for ids in tokens])
    levels = [LAYOUT.deinterleave(utterance) for utterance in frames]
    samples = codec.decode([np.stack(level) for level in zip(*levels, strict=True)])
    assert samples.shape == (4, 20 * codec.frame_samples)
    assert torch.isfinite(samples).all()


# Endings and failures


@pytest.mark.slow
def test_the_end_comes_no_sooner_than_allowed_and_only_where_a_frame_begins() -> None:
    model = random_model(end=60.0)  # it wants to end at once
    requests = [
        Request([number, LAYOUT.start_id], 20, Sampling(1.0, 0, 1.0, number), 1 + number % 3)
        for number in range(30)
    ]
    ended = 0
    for request, tokens in zip(
        requests, run(TokenGenerator(model, 8, POSITIONS), requests, None), strict=True
    ):
        if LAYOUT.end_id in tokens:
            frames, rest = divmod(tokens.index(LAYOUT.end_id), FRAME)
            assert rest == 0
            assert frames >= request.min_frames
            ended += 1
    assert ended > 10


@pytest.mark.parametrize("whole", [False, True])
def test_a_pass_that_fails_for_one_goes_on_for_the_others(model: SpeechLM, whole: bool) -> None:
    requests = [draw_request(number) for number in range(6)]
    poison = 17
    requests[3] = Request([poison, *requests[3].prompt], 3, Sampling())
    for number in (0, 1, 2, 4, 5):
        prompt = [token for token in requests[number].prompt if token != poison]
        requests[number] = Request(prompt, 3, Sampling(seed=number), 3)
    decoder = TokenGenerator(model, 8, POSITIONS, static_shapes=whole)
    others = [request for number, request in enumerate(requests) if number != 3]
    expected = run(decoder, others, None)

    def refuse(_: object, arguments: tuple[torch.Tensor, ...]) -> None:
        if bool((arguments[0] == poison).any()):
            raise RuntimeError("poisoned")

    hook = model.lm.get_input_embeddings().register_forward_pre_hook(refuse)
    try:
        for slot, request in enumerate(requests):
            begin(decoder, slot, request)
        tokens: dict[int, list[int]] = {slot: [] for slot in range(6)}
        failures: dict[int, Exception] = {}
        while (step := decoder.step()) is not None:
            failures |= step.failed
            for slot, token in zip(step.slots, step.read(), strict=True):
                tokens[slot].append(token)
    finally:
        hook.remove()
    assert list(failures) == [3]
    assert str(failures[3]) == "poisoned"
    assert tokens.pop(3) == []
    assert list(tokens.values()) == expected


@pytest.mark.slow
def test_layers_that_training_compiled_are_never_compiled_anew_for_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither for what a GPU captures before the first request, nor for a step that failed and is
    tried again one request at a time."""
    model = random_model()
    compiled = graphs_compiled(model)
    generator = TokenGenerator(model, 2, POSITIONS, static_shapes=True)
    # A CPU captures nothing: what would be captured is computed.
    monkeypatch.setattr(DecodeStep, "capture_all", lambda step: step._compute(256))
    generator.prepare()
    for slot in range(2):
        generator.start(slot, [1, 2, LAYOUT.start_id], Sampling(seed=slot), 7)
    packed, failures = TokenGenerator._packed, [RuntimeError("once")]

    def fails_once(self: TokenGenerator, *step: Any) -> None:
        if failures:
            raise failures.pop()
        packed(self, *step)

    monkeypatch.setattr(TokenGenerator, "_packed", fails_once)
    for _ in range(2):
        output = generator.step()
        assert output is not None
        assert len(output.read()) == 2
    assert not compiled


def test_a_prompt_that_the_model_has_no_rows_for_is_refused(model: SpeechLM) -> None:
    decoder = TokenGenerator(model, 1, 64)
    for prompt in ([], [-1], [10**6, LAYOUT.start_id]):
        with pytest.raises(ValueError, match="ids outside"):
            decoder.start(0, prompt, Sampling(), 7)
    with pytest.raises(ValueError, match="of 64 tokens"):
        decoder.start(0, [1] * 60, Sampling(), 7)
    assert decoder.step() is None


# Slots and pages


def test_a_freed_slot_is_taken_again_and_freed_once() -> None:
    slots = Slots(2)
    assert (slots.take(), slots.take(), slots.free) == (0, 1, 0)
    slots.give_back(0)
    assert slots.take() == 0
    slots.give_back(1)
    with pytest.raises(AssertionError, match="free already"):
        slots.give_back(1)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_requests_in_scattered_pages_get_what_each_gets_in_neighbours(
    model: SpeechLM, whole: bool
) -> None:
    """In fewer pages than the slots could use, and leaving none behind; some are cancelled."""
    generator = random.Random(2)
    requests = []
    for number in range(15):
        words = [generator.randrange(WORDS) for _ in range(generator.randrange(1, 200))]
        frames = generator.randrange(2, 6)
        requests.append(Request([*words, LAYOUT.start_id], frames, Sampling(seed=number), frames))
    decoder = TokenGenerator(model, 4, 256, pages=9, static_shapes=whole)
    pool, scattered = decoder.cache.pool, 0
    running: dict[int, int] = {}
    tokens: list[list[int]] = [[] for _ in requests]
    waiting = list(range(len(requests)))
    while waiting or running:
        free = [slot for slot in range(4) if slot not in running]
        if waiting and free:
            slot, request = generator.choice(free), requests[waiting[0]]
            if pages_of(request.seq_len(LAYOUT)) <= pool.free:
                begin(decoder, slot, request)
                running[slot] = waiting.pop(0)
                scattered += np.diff(decoder.cache.pages_at(slot)).max(initial=1) > 1
            else:
                before = pool.free
                with pytest.raises(ValueError, match="pages of the KV cache are needed"):
                    begin(decoder, slot, request)
                assert pool.free == before
        step = decoder.step()
        assert step is not None
        for slot, token in zip(step.slots, step.read(), strict=True):
            number = running[slot]
            tokens[number].append(token)
            most = requests[number].max_frames * FRAME if number % 5 else 10
            if token == LAYOUT.end_id or len(tokens[number]) == most:
                decoder.stop(slot)
                del running[slot]
    assert pool.free == pool.count
    assert scattered > 2
    alone = TokenGenerator(model, 1, 256, static_shapes=whole)
    for request, found in zip(requests, tokens, strict=True):
        assert found == run(alone, [request], None)[0][: len(found)]


def test_a_shared_beginning_is_read_as_ones_own(model: SpeechLM) -> None:
    """What another request has written of the same prompt is not computed again."""
    generator = random.Random(4)
    prompt = [generator.randrange(WORDS) for _ in range(2 * PAGE)]
    ends = [[generator.randrange(WORDS) for _ in range(length)] for length in (40, 70)]
    decoder = TokenGenerator(model, 3, POSITIONS)
    cache = decoder.cache

    def states(slot: int, ids: Sequence[int], start: int) -> torch.Tensor:
        span = SlotSpan(slot, start, len(ids))
        kept = torch.tensor(list(cache.rows(slot, start, len(ids))))
        rows = Rows(cache, kept[:, None] + cache.heads, [span])
        places = torch.arange(start, start + len(ids))
        with torch.inference_mode():
            return model.slot_states(torch.tensor(ids), places, rows)

    cache.open(0, 300)
    cache.open(1, 300)
    states(0, prompt, 0)
    states(1, prompt, 0)
    cache.open(2, 300, cache.pages_at(0)[:2])
    before = cache.pages[:, :, list(cache.pages_at(0)[:2])].clone()
    states(0, ends[0], 2 * PAGE)
    assert torch.equal(states(2, ends[1], 2 * PAGE), states(1, ends[1], 2 * PAGE))
    assert torch.equal(cache.pages[:, :, list(cache.pages_at(2)[:2])], before)
    for slot in range(3):
        cache.close(slot)
    assert cache.pool.free == cache.pool.count
