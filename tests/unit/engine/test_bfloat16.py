"""bfloat16 as it is served: through pages, attention over slots and a GPU's step of all slots."""

import random

import pytest
import torch
from torch import Tensor

from helpers.speaking import LAYOUT, POSITIONS, WORDS, random_model
from sheen.engine.generation import PREFILL_CHUNK, TokenGenerator
from sheen.engine.sampler import RowSettings
from sheen.engine.types import Sampling
from sheen.lm.model import SpeechLM, float32_logits

FRAMES = 4
TOKENS = FRAMES * LAYOUT.tokens_per_frame
LENGTHS = 5, 90, PREFILL_CHUNK + 40
"""Of prompts; one is computed in two chunks."""

Served = list[tuple[list[int], list[Tensor]]]
"""For each request its ids with the prompt's, and the logits of its tokens."""


def halved(model: SpeechLM) -> SpeechLM:
    """With weights in bfloat16 and buffers as they were, which is how `from_pretrained` loads."""
    for weight in model.parameters():
        weight.data = weight.data.bfloat16()
    return model


def serve(model: SpeechLM, static_shapes: bool) -> Served:
    """What requests that run together get. Their slots hold pages that are not neighbours."""
    generator = random.Random(0)
    prompts = [[*(generator.randrange(WORDS) for _ in range(n)), LAYOUT.start_id] for n in LENGTHS]
    decoder = TokenGenerator(model, len(prompts), POSITIONS, static_shapes=static_shapes)
    # Every other page is taken, so that no request finds neighbours.
    pool = decoder.cache.pool
    taken = pool.take(pool.count)
    pool.give_back(taken[::2])
    rows: list[list[Tensor]] = [[] for _ in prompts]
    choose = decoder.sampler.choose

    def watched(
        logits: Tensor,
        settings: RowSettings,
        steps: Tensor,
        bases: Tensor,
        active: Tensor | None = None,
    ) -> Tensor:
        for row, slot in enumerate(settings.slots.tolist()):
            if active is None or active[row]:
                rows[slot].append(logits[row].clone())
        return choose(logits, settings, steps, bases, active)

    decoder.sampler.choose = watched  # type: ignore[method-assign]
    for slot, prompt in enumerate(prompts):
        decoder.start(slot, prompt, Sampling(0.0), TOKENS, TOKENS)
    ids = [list(prompt) for prompt in prompts]
    while (step := decoder.step()) is not None:
        assert not step.failed
        for slot, token in zip(step.slots, step.read(), strict=True):
            ids[slot].append(token)
    return list(zip(ids, rows, strict=True))


def own_logits(model: SpeechLM, ids: list[int], prompt: int) -> list[Tensor]:
    """The logits of the tokens behind a prompt, by the base's own attention over the whole row."""
    with torch.inference_mode():
        states = model.hidden(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        rows = []
        for step, state in enumerate(states[prompt - 1 : -1]):
            block = LAYOUT.blocks[LAYOUT.slot_blocks[step % LAYOUT.tokens_per_frame]]
            head = model.head[torch.tensor(list(LAYOUT.columns(block)))]
            rows.append(float32_logits(state[None], head)[0])
    return rows


@pytest.fixture(scope="module", params=[False, True], ids=["slot by slot", "all slots"])
def served(request: pytest.FixtureRequest) -> Served:
    return serve(halved(random_model()), request.param)


def test_logits_of_a_step_are_not_rounded_to_bfloat16(served: Served) -> None:
    for _, rows in served:
        assert len(rows) == TOKENS
        for logits in rows:
            legal = logits[logits.isfinite()]
            assert logits.dtype == torch.float32
            assert not torch.equal(legal, legal.bfloat16().float())


def test_logits_are_those_of_the_bases_own_attention_within_rounding(served: Served) -> None:
    """No further from the same weights' float32 than the base's own bfloat16 is, but for chance."""
    own, exact = halved(random_model()), random_model()
    for weight in exact.parameters():
        weight.data = weight.data.bfloat16().float()
    for (ids, rows), length in zip(served, LENGTHS, strict=True):
        assert len(ids) == length + 1 + TOKENS
        right, theirs = (torch.stack(own_logits(m, ids, length + 1)) for m in (exact, own))
        ours = torch.stack(rows)
        legal = ours.isfinite()
        assert int((~legal).sum()) <= TOKENS, "the end where it may not be, and nothing else"
        rounded = (theirs - right)[legal].norm()
        assert 1e-4 < rounded / right[legal].norm() < 0.1
        assert (ours - right)[legal].norm() < 1.5 * rounded
