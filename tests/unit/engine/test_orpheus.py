"""Checkpoints of the Orpheus family, spoken: ids by slot, and an end apart from the codes."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from helpers import orpheus
from helpers.example import CODEC
from helpers.speaking import SETTINGS, draw_request, random_model
from sheen.engine.generation import TokenGenerator
from sheen.engine.reference import reference_prompt
from sheen.engine.sampler import SlotSampler
from sheen.engine.types import Reference, Request, RequestError, Sampling
from sheen.engine.voice import Voice, load_voice
from sheen.lm.model import SpeechLM
from sheen.speaker import Speaker
from sheen.text.forms import FORMS, FormName
from sheen.text.prompt import ReferenceForm

Made = Callable[[str, Callable[[Path], None]], Path]
LAYOUT = orpheus.LAYOUT
FRAME = 7
SLOTS = 16


def begin(decoder: TokenGenerator, slot: int, request: Request) -> None:
    decoder.start(
        slot,
        request.prompt,
        request.sampling,
        request.max_frames * FRAME,
        request.min_frames * FRAME,
    )


def run(decoder: TokenGenerator, requests: list[Request]) -> list[list[int]]:
    """The tokens of each request, at random moments beside others."""
    arrivals = random.Random(0)
    free, waiting = list(range(decoder.cache.slots)), list(enumerate(requests))
    running: dict[int, int] = {}
    tokens: list[list[int]] = [[] for _ in requests]
    while waiting or running:
        while free and waiting and (len(requests) == 1 or arrivals.random() < 0.4):
            number, request = waiting.pop(0)
            slot = free.pop()
            begin(decoder, slot, request)
            running[slot] = number
        step = decoder.step()
        if step is None:
            continue
        assert not step.failed
        for slot, token in zip(step.slots, step.read(), strict=True):
            number = running[slot]
            tokens[number].append(token)
            if token == LAYOUT.end_id or len(tokens[number]) == requests[number].max_frames * FRAME:
                decoder.stop(slot)
                free.append(slot)
                del running[slot]
    return tokens


def check_legal(tokens: list[int], request: Request) -> None:
    """Every token at its slot, and an end at a frame's beginning or where the budget is."""
    ended = tokens[-1] == LAYOUT.end_id
    whole = tokens[:-1] if ended else tokens
    codes = LAYOUT.from_ids(np.array(whole))  # refuses an id that is not legal at its slot
    assert len(codes) >= request.min_frames
    assert ended or len(codes) == request.max_frames


# The seed's requests ask for windows of all kinds too.
WINDOWS: tuple[int | str, ...] = (1, 7, 64, "all")


def windowed(number: int) -> Request:
    request = draw_request(number, frames=6, longest=200)
    kind = SETTINGS[number % len(SETTINGS)]
    sampling = Sampling(
        kind.temperature, kind.top_k, kind.top_p, number, kind.repetition_penalty,
        WINDOWS[number % 4],  # type: ignore[arg-type]
    )  # fmt: skip
    return Request(request.prompt, request.max_frames, sampling)


@pytest.fixture(scope="module")
def model() -> SpeechLM:
    return random_model(layout=LAYOUT)


@pytest.mark.parametrize("static_shapes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_requests_get_legal_tokens_and_what_each_gets_alone(
    model: SpeechLM, static_shapes: bool
) -> None:
    requests = [windowed(number) for number in range(6 if static_shapes else 9)]
    shapes = {"static_shapes": static_shapes}
    together = run(TokenGenerator(model, SLOTS, 512, **shapes), requests)
    alone = TokenGenerator(model, SLOTS, 512, **shapes)
    for request, tokens in zip(requests, together, strict=True):
        check_legal(tokens, request)
        assert run(alone, [request]) == [tokens]
    ends = sum(tokens[-1] == LAYOUT.end_id for tokens in together)
    assert 0 < ends < len(requests), "some end by themselves, and some at their budget"


def test_static_shapes_choose_what_packed_rows_do(model: SpeechLM) -> None:
    requests = [draw_request(number, frames=3, longest=90) for number in range(0, 14, 7)]
    plain, whole = (
        run(TokenGenerator(model, 4, 256, static_shapes=static), requests)
        for static in (False, True)
    )
    assert plain == whole


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(form, marks=() if form == "orpheus" else pytest.mark.slow)
        for form in get_args(FormName)
    ],
)
def voice(request: pytest.FixtureRequest, made_once: Made) -> Voice:
    form: FormName = request.param
    kind = "vyvo-qwen3" if form == "vyvo-qwen3" else "orpheus"
    folder = made_once(kind, lambda folder: orpheus.save(folder, kind))
    return load_voice(str(folder), form=form, codec=str(CODEC))


@pytest.mark.slow
@pytest.mark.parametrize("count", [7, pytest.param(200, marks=pytest.mark.soak)])
def test_requests_of_a_form_are_legal_and_what_each_gets_alone(voice: Voice, count: int) -> None:
    draw = random.Random(7)
    speakers = voice.info.voices or [None]
    requests = []
    for number in range(count):
        text = "".join(draw.choices("abc <>_1", k=draw.randint(1, 60))) + "x"
        sampling = voice.sampling(number)
        asked = voice.request(text, draw.choice(speakers), sampling, draw.uniform(0.05, 0.6))
        requests.append(asked)
    longest = max(request.seq_len(LAYOUT) for request in requests)
    together = run(TokenGenerator(voice.model, SLOTS, longest), requests)
    alone = TokenGenerator(voice.model, SLOTS, longest)
    for request, tokens in zip(requests, together, strict=True):
        check_legal(tokens, request)
        assert run(alone, [request]) == [tokens]


def test_a_form_has_its_own_sampling_and_budgets(voice: Voice) -> None:
    form = FORMS[voice.info.prompt.name]  # type: ignore[index]
    assert voice.sampling(3) == Sampling(
        form.temperature, 0, form.top_p, 3, form.repetition_penalty, 64
    )
    assert voice.sampling(temperature=0.0, top_k=None).temperature == 0.0
    speaker = voice.info.voices[0] if voice.info.voices else None
    assert voice.expected_seconds("x" * 100, speaker) is not None
    assert 1 <= voice.max_chunk_chars(30.0, speaker) <= form.chunk_chars
    assert voice.request("hi", speaker, Sampling(), 1.0).min_frames == form.min_frames
    assert voice.request("hi", speaker, Sampling(), 0.1).min_frames == 1, "the budget's one frame"
    with pytest.raises(RequestError, match="empty"):
        voice.request(" ", speaker, Sampling(), 1.0)
    if form.description is not None:
        described = voice.request("hi", "an old woman", Sampling(), 1.0)
        assert "an old woman" in voice.tokenizer.decode(described.prompt)
        for placed in get_args(ReferenceForm):
            reference = Reference(np.zeros((3, FRAME), np.int16), "so", placed)
            ids, _ = reference_prompt(voice.template, LAYOUT, reference, "hi")
            assert "description" not in voice.tokenizer.decode(ids), "it could contradict"
    else:
        with pytest.raises(RequestError, match=r"unknown voice.*`sheen inspect --voices`"):
            voice.request("hi", "an old woman", Sampling(), 1.0)


@pytest.mark.slow
def test_a_bare_folder_speaks(made_once: Made) -> None:
    folder = made_once("orpheus", orpheus.save)
    with Speaker(str(folder), form="orpheus", codec=str(CODEC), max_seconds=2.0) as speaker:
        assert "tara" in speaker.voices
        first, again = (speaker.synthesize("hi <3", "tara") for _ in range(2))
        assert np.array_equal(first.samples, again.samples)
        assert 0 < first.seconds <= 2.0
    with pytest.raises(ValueError, match="give the form: orpheus"):
        Speaker(str(folder), codec=str(CODEC))


# The penalty's window


@pytest.mark.parametrize("window", [1, 3, 500, "all"])
def test_the_penalty_counts_ids_of_the_window_and_of_the_slots_own_block(
    window: int | str,
) -> None:
    """Token by token as written down: an id that the request drew among its last tokens."""
    layout = orpheus.LAYOUT
    sampler = SlotSampler(1, 60, torch.device("cpu"))
    sampler.set(0, Sampling(0.0, repetition_penalty=4.0, repetition_window=window), 60)  # type: ignore[arg-type]
    torch.manual_seed(0)
    reach = 10**6 if window == "all" else int(window)
    past: list[int] = []
    for step in range(56):
        block = layout.blocks[layout.slot_blocks[step % FRAME]]
        columns = list(layout.columns(block))
        # The same few codes are the likeliest at every slot, so that the past decides.
        logits = torch.full((1, 4097), -9.0)
        logits[0, 1:6] = 2.0 + torch.rand(5)
        expected = logits.clone()
        for column, token in enumerate(columns):
            if token in past[-reach:]:
                expected[0, column] /= 4.0
        found = sampler.choose(
            logits, sampler.settings([0]), torch.tensor([step]), torch.tensor([block.base - 1])
        )
        assert int(found) == columns[int(expected.argmax())]
        past.append(int(found))
