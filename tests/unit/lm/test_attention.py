"""Packed rows: every utterance as if it were alone, whatever shares its row."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoConfig,
)

from helpers.small_models import (
    FAMILIES,
    FRAMES,
    LENGTHS,
    SMALL,
    graphs_compiled,
    packed,
    small_lm,
    small_model,
    three_utterances,
)
from helpers.speaking import generate
from helpers.utterances import LAYOUT, prompts, utterances
from sheen.codec.layout import Softmax
from sheen.engine.generation import TokenGenerator
from sheen.engine.types import Sampling
from sheen.lm.attention import packed as attention
from sheen.lm.attention.packed import PACKED, check_isolation, packed_attention
from sheen.lm.batching import Batch, Segments, collate
from sheen.lm.loss import token_losses
from sheen.lm.model import SpeechLM

every_family = pytest.mark.parametrize("family", list(FAMILIES))


def alone() -> list[Batch]:
    return [
        collate([text], [codes], LAYOUT, pad_id=0)
        for text, codes in zip(*three_utterances(), strict=True)
    ]


def perturbed(which: int) -> Batch:
    """The same row with another text and other codes in one of its utterances."""
    texts, codes = three_utterances()
    texts[which] = [LAYOUT.first_id - token for token in texts[which][:-1]] + [LAYOUT.start_id]
    codes[which] = LAYOUT.codebook_size - 1 - codes[which]
    return collate(texts, codes, LAYOUT, pad_id=0)


def losses_by_utterance(model: SpeechLM, batch: Batch) -> list[torch.Tensor]:
    """Every target's loss, utterance by utterance."""
    states = model.packed_states(batch)
    losses, _ = token_losses(states, batch.targets, model.head, LAYOUT, model.softmax)
    values, positions = torch.cat(losses), torch.cat(batch.targets.positions)
    owner = torch.bucketize(positions, batch.segments.bounds[1:], right=True)
    return [values[owner == utterance] for utterance in range(len(LENGTHS))]


@every_family
def test_packed_states_are_those_of_each_utterance_alone(family: str) -> None:
    model = small_model(family)
    with torch.no_grad():
        together = model.packed_states(packed()).split(LENGTHS)
        for states, batch in zip(together, alone(), strict=True):
            own = model.hidden(batch.input_ids, use_cache=False).last_hidden_state[0]
            assert model.lm.config._attn_implementation == "sdpa", "the family's own attention"
            torch.testing.assert_close(states, own, atol=1e-5, rtol=1e-5)


@every_family
@pytest.mark.parametrize("which", range(3))
def test_changing_an_utterance_moves_no_bit_of_the_others(family: str, which: int) -> None:
    model = small_model(family)
    with torch.no_grad():
        before = losses_by_utterance(model, packed())
        after = losses_by_utterance(model, perturbed(which))
    for utterance in range(3):
        assert len(before[utterance]) == FRAMES[utterance] * 7 + 1
        assert torch.equal(before[utterance], after[utterance]) == (utterance != which)


@every_family
def test_no_gradient_crosses_from_one_utterance_to_another(family: str) -> None:
    model = small_model(family)
    embedded: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        embedded.append(output)

    model.lm.get_input_embeddings().register_forward_hook(keep)
    for which in range(3):
        (gradient,) = torch.autograd.grad(
            losses_by_utterance(model, packed())[which].sum(), embedded.pop()
        )
        moved = [bool((part != 0).any()) for part in gradient[0].split(LENGTHS)]
        assert moved == [utterance == which for utterance in range(3)]


@every_family
@pytest.mark.parametrize("softmax", ["masked", "full"])
def test_loss_and_gradients_of_a_row_are_the_sums_over_its_utterances(
    family: str, softmax: Softmax
) -> None:
    model = small_model(family, softmax)
    parameters = list(model.parameters())
    sums = model(packed())
    together = torch.autograd.grad(sums.loss.sum(), parameters)
    parts = [model(batch) for batch in alone()]
    torch.testing.assert_close(sums.loss, torch.stack([part.loss for part in parts]).sum(0))
    for name in ("count", "ends", "ends_right"):
        assert torch.equal(getattr(sums, name), sum(getattr(part, name) for part in parts))
    apart = [torch.autograd.grad(part.loss.sum(), parameters) for part in parts]
    for whole, *pieces in zip(together, *apart, strict=True):
        summed = torch.stack(pieces).sum(0)
        torch.testing.assert_close(whole, summed, rtol=1e-4, atol=1e-5 * float(summed.abs().max()))


@every_family
def test_padding_moves_no_loss(family: str) -> None:
    model = small_model(family)
    with torch.no_grad():
        plain = model(packed()).loss
        padded = collate(*three_utterances(), LAYOUT, pad_id=5, pad_to=100)
        torch.testing.assert_close(model(padded).loss, plain, rtol=1e-6, atol=1e-5)


@every_family
def test_generation_goes_on_as_before_a_packed_row(family: str) -> None:
    """Training speaks between its steps: each must find its own attention."""
    model = small_model(family)

    def speak() -> list[list[int]]:
        return generate(model, prompts(3, 12), 20)

    before = speak()
    model(packed())
    assert model.lm.config._attn_implementation == PACKED
    assert speak() == before
    losses = model(packed()).loss
    assert torch.equal(model(packed()).loss, losses)


@every_family
def test_bases_of_attention_alone_are_accepted(family: str) -> None:
    lm = small_lm(FAMILIES[family])
    check_isolation(lm)
    with torch.autocast("cpu", torch.bfloat16):
        check_isolation(lm)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mamba", {}, "'mamba' mixes utterances"),  # recurrent
        ("lfm2", {"full_attn_idxs": [1]}, "'lfm2' mixes utterances"),  # a convolution, attention
        ("qwen3_next", {}, "'qwen3_next' mixes utterances"),  # linear attention
        ("bloom", {}, "'bloom' mixes utterances"),  # attention of its own
        ("gemma2", {}, "'softcap'"),
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1}, "'s_aux'"),  # sinks
    ],
)
def test_bases_that_packing_would_change_are_refused(
    name: str, changes: dict[str, Any], message: str
) -> None:
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    lm = small_lm(AutoConfig.for_model(name, **SMALL, **special, **changes))
    with pytest.raises(ValueError, match=message):
        check_isolation(lm)


def test_a_base_that_counts_positions_over_the_whole_row_is_refused() -> None:
    lm = small_lm(FAMILIES["gpt2"])
    lm.transformer.wpe.register_forward_pre_hook(
        lambda module, inputs: torch.arange(inputs[0].shape[1])[None]
    )
    with pytest.raises(ValueError, match="mixes utterances"):
        check_isolation(lm)


def test_a_base_that_mixes_only_a_little_is_refused() -> None:
    """Less than what rounding is allowed to change; such a leak would never be noticed."""
    lm = small_lm(FAMILIES["qwen3"])
    lm.model.layers[0].register_forward_hook(
        lambda module, inputs, output: output + 1e-3 * output.cumsum(1)
    )
    with pytest.raises(ValueError, match="mixes utterances"):
        check_isolation(lm)


def test_a_row_of_one_token_and_rows_of_powers_of_two_have_their_bounds() -> None:
    assert Segments.of([1]).longest == 1
    assert Segments.of([3, 64, 1]).longest == 64
    assert Segments.of([65]).longest == 128
    segments = Segments.of([3, 64, 1])
    assert segments.bounds.tolist() == [0, 3, 67, 68]
    assert segments.bounds.dtype == torch.int32


def plain_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
) -> torch.Tensor:
    """`[T, heads, d]` of one utterance, worked out score by score."""
    key, value = (
        part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value)
    )
    scores = torch.einsum("qhd,khd->hqk", query, key) * query.shape[2] ** -0.5
    distance = torch.arange(len(query))[:, None] - torch.arange(len(query))
    hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value)


@pytest.mark.parametrize("window", [None, 1, 5])
def test_attention_is_that_of_a_plain_reference(window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, sum(LENGTHS), 8, generator=generator) for heads in (4, 2, 2)
    )
    out, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None,
        segments=Segments.of(LENGTHS), sliding_window=window,
    )  # fmt: skip
    parts = [part[0].transpose(0, 1).split(LENGTHS) for part in (query, key, value)]
    expected = torch.cat([plain_attention(*three, window) for three in zip(*parts, strict=True)])
    torch.testing.assert_close(out[0], expected)


def documented_varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest: int,
    longest_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """What torch documents of the function that GPUs have: (left, 0), -1 for no limit."""
    assert {query.dtype, key.dtype, value.dtype} == {torch.bfloat16}, "all it takes"
    assert bounds.dtype == key_bounds.dtype == torch.int32
    left, right = window_size
    assert right == 0
    assert scale == query.shape[2] ** -0.5
    lengths = bounds.diff().tolist()
    assert max(lengths) <= longest == longest_key
    window = None if left == -1 else left + 1
    parts = [part.float().split(lengths) for part in (query, key, value)]
    outs = [plain_attention(*three, window) for three in zip(*parts, strict=True)]
    return torch.cat(outs).to(query.dtype)


@every_family
def test_mixed_precision_takes_the_fast_attention(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms and rotary embeddings leave float32 queries there, which GPUs' attention refuses."""
    model = small_model(family)
    calls = []

    def fast(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(options)
        return documented_varlen_attn(*arguments, **options)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        slow = model.packed_states(packed())
        monkeypatch.setattr(attention, "varlen_attn", fast)
        monkeypatch.setattr(attention, "_is_flash", lambda query, dropout: True)
        states = model.packed_states(packed())
    assert len(calls) == 2, "one a layer"
    off = (states - slow).float().norm() / slow.float().norm()
    assert off < 0.03


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, for FlashAttention")
@every_family
def test_fast_attention_computes_the_same_and_mixes_nothing(family: str) -> None:
    device = torch.device("cuda")
    model = small_model(family).to(device)
    batches = [batch.to(device) for batch in (packed(), perturbed(0))]
    with torch.autocast("cuda", torch.bfloat16):
        check_isolation(model.lm)
        before, after = (losses_by_utterance(model, batch) for batch in batches)
        assert torch.equal(before[1], after[1])
        assert torch.equal(before[2], after[2])
        fast = torch.autograd.grad(sum(part.sum() for part in before), list(model.parameters()))
    slow = torch.autograd.grad(model(batches[0]).loss.sum(), list(model.parameters()))
    for half, whole in zip(fast, slow, strict=True):
        assert F.cosine_similarity(half.flatten(), whole.flatten(), dim=0) > 0.99


def test_over_slots_the_backend_that_plans_each_new_shape_is_left_out() -> None:
    model = small_model("gpt2")
    allowed: list[dict[str, bool]] = []

    def look(*_: object) -> None:
        found = {
            "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "math": torch.backends.cuda.math_sdp_enabled(),
        }
        allowed.append(found)

    model.lm.base_model.register_forward_hook(look)
    generator = TokenGenerator(model, slots=2, max_seq_len=64)
    generator.start(0, prompts(5)[0], Sampling(), 3, 3)
    for _ in range(3):
        assert generator.step() is not None
    assert allowed == [{"cudnn": False, "flash": True, "math": True}] * 3


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_compiled_layers_compute_the_same(precision: torch.dtype) -> None:
    model = small_model("qwen3")
    batches = [packed(), perturbed(1), collate(prompts(5), utterances(3), LAYOUT, 0)]

    def results() -> list[torch.Tensor]:
        found = []
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            for batch in batches:
                loss = model(batch).loss
                found += [loss, *torch.autograd.grad(loss.sum(), list(model.parameters()))]
                with torch.no_grad():  # what an evaluation does in between
                    found.append(model.hidden(batch.input_ids[:, :5]).last_hidden_state)
        return found

    plain = results()
    for layer in model.lm.model.layers:
        layer.compile()
    for compiled, expected in zip(results(), plain, strict=True):
        off = (compiled - expected).norm() / expected.norm()
        assert off < (1e-4 if precision == torch.float32 else 0.05)


# Of torch, which looks at what its own tracing is given.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("guided", [False, True])
def test_compiled_layers_are_the_same_for_rows_of_any_number_of_utterances(guided: bool) -> None:
    model = small_model("qwen3")
    compiled = graphs_compiled(model)
    counts = []
    # Torch gives up, and computes without compiling, at the ninth variant.
    for number in (3, 1, 2, 5, 7, 4, 6, 8, 9, 10, 11, 12):
        model(collate(prompts(*[4] * number), utterances(*[2] * number), LAYOUT, 0, 400), guided)
        counts.append(len(compiled))
    assert counts[0] > 0
    assert set(counts) == {counts[0]}
