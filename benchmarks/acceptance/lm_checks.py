"""Part "slots": what the engine generates over slots is what a CPU generates.

In float32 greedy tokens are the CPU's, or differ first where two logits are a near tie; a replayed
CUDA graph gives the bits that the same calls give without one. In bfloat16, the format that is
served, the distribution of the first token is close to float32's, and the rotary frequencies are
not rounded. A random model's distributions are flat, so that 0.01 nats are a strict bound: a wrong
mask or position costs nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acceptance import references
from acceptance.bench import Bench
from acceptance.models import REFERENCE, digest, reference_lm, reference_prompts
from sheen.engine.generation import TokenGenerator
from sheen.engine.types import Sampling
from sheen.lm.model import SpeechLM, float32_logits

TOKENS = 70
"""Generated for each prompt: ten frames."""
GREEDY = Sampling(temperature=0.0)
NEAR_TIE = 1e-3
"""Nats between two logits below which either may be the larger."""
LOGITS, DIVERGENCE = 1e-3, 0.01
FAR = 3000
"""A position at which frequencies rounded to bfloat16 would be off by radians."""


def drawn(seed: int) -> Sampling:
    return Sampling(temperature=0.7, top_p=0.95, seed=seed, repetition_penalty=1.1)


def check(bench: Bench) -> None:
    expected = references.read()
    model = reference_lm(bench.device)
    references.check(expected, "lm", digest(model))
    prompts = reference_prompts()
    logits = first_logits(model, prompts)
    error = float(np.abs(logits - expected["logits"]).max())
    bench.row(
        "logits in float32 as on a CPU",
        error,
        "nats, at most",
        expected=f"<= {LOGITS:g}",
        passed=error <= LOGITS,
    )
    _check_bfloat16(bench, logits, prompts)
    model.freeze()
    tokens = bench.pick(TOKENS, 21)
    of_a_cpu = {name: expected[name][:, :tokens] for name in ("greedy", "drawn")}
    settings = [GREEDY] * len(prompts)
    greedy = generate(model, prompts, settings, tokens=tokens)
    eager = generate(model, prompts, settings, tokens=tokens, graphs=False)
    bench.row(
        "greedy tokens with CUDA graphs as without",
        float((greedy == eager).mean()),
        "of tokens",
        expected="all",
        passed=bool((greedy == eager).all()),
    )
    gap = _widest_gap(reference_lm(bench.device), prompts, greedy, of_a_cpu["greedy"])
    bench.row(
        "greedy tokens as on a CPU",
        float((greedy == of_a_cpu["greedy"]).mean()),
        "of tokens",
        expected=f"all, or the first that differs a tie within {NEAR_TIE:g} nats",
        passed=gap <= NEAR_TIE,
        widest_gap=gap,
    )
    settings = [drawn(seed) for seed in range(len(prompts))]
    samples = generate(model, prompts, settings, tokens=tokens)
    equal = int((samples == of_a_cpu["drawn"]).all(1).sum())
    bench.row(
        "requests with the CPU's draws",
        equal,
        f"of {len(prompts)}",
        expected=f">= {len(prompts) - 1}: a draw may lie on the edge of a token's share",
        passed=equal >= len(prompts) - 1,
    )


def _check_bfloat16(
    bench: Bench, logits: NDArray[np.float32], prompts: Sequence[Sequence[int]]
) -> None:
    half = reference_lm(bench.device, torch.bfloat16)
    rounded = first_logits(half, prompts)
    one = torch.from_numpy(logits).log_softmax(-1)
    other = torch.from_numpy(rounded).log_softmax(-1)
    divergence = float((one.exp() * (one - other)).sum(-1).max())
    bench.row(
        "divergence of bfloat16 from float32",
        divergence,
        "nats, at most",
        expected=f"<= {DIVERGENCE:g}",
        passed=divergence <= DIVERGENCE,
    )
    base: Any = half.lm.base_model
    own: Tensor = base.rotary_emb.inv_freq
    width = REFERENCE.head_dim
    true = 1e6 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    error = float((own.double().cpu() - true).abs().max()) * FAR
    bench.row(
        f"rotary angle at position {FAR:,} in bfloat16",
        error,
        "rad off, at most",
        expected="<= 0.001",
        passed=error <= 1e-3,
    )


@torch.no_grad()
def first_logits(model: SpeechLM, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """`[prompts, 4097]`: of the rows that are legal where a frame begins, after each prompt."""
    rows = []
    for prompt in prompts:
        rows.append(next_logits(model, prompt, slot=0)[-1])
    return torch.stack(rows).cpu().numpy()


@torch.no_grad()
def next_logits(model: SpeechLM, ids: Sequence[int], slot: int) -> Tensor:
    """`[T, rows]`: logits of the rows that are legal at a slot of the frame, after each token."""
    tokens = torch.tensor([list(ids)], device=model.head.device)
    states = model.hidden(tokens, use_cache=False).last_hidden_state[0]
    base = int(model.layout.slot_bases[slot]) - 1
    return float32_logits(states, model.head[base : base + model.layout.codebook_size + 1])


def generate(
    model: SpeechLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sequence[Sampling],
    *,
    tokens: int = TOKENS,
    graphs: bool = True,
    static_shapes: bool = True,
) -> NDArray[np.int64]:
    """`[prompts, tokens]`, all generated at once, none ending before."""
    longest = max(map(len, prompts)) + tokens
    generator = TokenGenerator(model, len(prompts), longest, static_shapes=static_shapes)
    generator.prepare()
    if not graphs:
        replay_eagerly(generator)
    for slot, (prompt, settings) in enumerate(zip(prompts, sampling, strict=True)):
        generator.start(slot, prompt, settings, tokens, tokens)
    found: list[list[int]] = [[] for _ in prompts]
    while (step := generator.step()) is not None:
        if step.failed:
            raise next(iter(step.failed.values()))
        for slot, token in zip(step.slots, step.read(), strict=True):
            found[slot].append(token)
    return np.array(found)


@dataclass
class _Calls:
    """In a graph's place: the calls that it was captured from."""

    step: Any
    length: int

    @torch.inference_mode()
    def replay(self) -> None:
        self.step._compute(self.length)


def replay_eagerly(generator: TokenGenerator) -> None:
    """Replace the captured graphs; on a CPU there are none."""
    step: Any = generator._decode_step
    if step is not None:
        step._graphs = {length: _Calls(step, length) for length in step._graphs}


def _widest_gap(
    model: SpeechLM,
    prompts: Sequence[Sequence[int]],
    found: NDArray[np.int64],
    expected: NDArray[np.int64],
) -> float:
    """Nats between the two tokens where a request's first differ; of all requests the most."""
    widest = 0.0
    slots = model.layout.tokens_per_frame
    for prompt, ours, theirs in zip(prompts, found, expected, strict=True):
        if (ours == theirs).all():
            continue
        at = int(np.flatnonzero(ours != theirs)[0])
        slot = at % slots
        logits = next_logits(model, [*prompt, *ours[:at].tolist()], slot)[-1]
        base = int(model.layout.slot_bases[slot]) - 1
        widest = max(widest, abs(float(logits[ours[at] - base] - logits[theirs[at] - base])))
    return widest


def answers(model: SpeechLM) -> dict[str, NDArray[Any]]:
    """Of a CPU, for the references: in the way that a CPU serves, row by row."""
    prompts = reference_prompts()
    found: dict[str, NDArray[Any]] = {"logits": first_logits(model, prompts)}
    model.freeze()
    for name, sampling in (
        ("greedy", [GREEDY] * len(prompts)),
        ("drawn", [drawn(seed) for seed in range(len(prompts))]),
    ):
        tokens = generate(model, prompts, sampling, static_shapes=False)
        found[name] = tokens.astype(np.int32)
    return found
