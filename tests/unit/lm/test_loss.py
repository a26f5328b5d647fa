"""Packed rows and their loss: labels that fit their inputs, the numbers of a plain reference."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.utterances import LAYOUT, prompts, utterances
from sheen.codec.layout import Softmax, TokenLayout
from sheen.lm import loss
from sheen.lm.batching import Batch, check_labels, collate, sequence_lengths
from sheen.lm.loss import IGNORE_INDEX, speech_loss, token_losses

FOUR_LEVELS = TokenLayout(50, 32, (8, 4, 2, 1))

both_layouts = pytest.mark.parametrize("layout", [LAYOUT, FOUR_LEVELS])
both_softmaxes = pytest.mark.parametrize("softmax", ["masked", "full"])


def random_states(batch: Batch, layout: TokenLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """States `[T, 8]` and a head with some rows behind the layout's, as padded tables have them."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(batch.input_ids.shape[1], 8, generator=generator)
    head = torch.randn(layout.first_id + layout.size + 5, 8, generator=generator)
    return hidden.requires_grad_(), head.requires_grad_()


@both_layouts
def test_only_audio_carries_loss_and_no_tail_is_cut(layout: TokenLayout) -> None:
    codes = utterances(2, 5, layout=layout)
    batch = collate(prompts(4, 9, layout=layout), codes, layout, pad_id=0)
    first = 0
    for prompt_length, frames in zip((4, 9), codes, strict=True):
        audio = first + prompt_length
        end = audio + frames.size
        labels = batch.labels[0]
        assert (labels[first:audio] == IGNORE_INDEX).all()
        np.testing.assert_array_equal(layout.from_ids(labels[audio:end].numpy()), frames)
        assert labels[end] == layout.end_id
        assert batch.position_ids[0, first : end + 1].tolist() == list(range(end + 1 - first))
        first = end + 1
    assert batch.segments.bounds.tolist() == [0, 4 + codes[0].size + 1, first]
    assert first == batch.input_ids.shape[1]
    assert len(batch.targets) == codes[0].size + codes[1].size + 2


def as_arrays(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    return batch.input_ids[0].numpy(), batch.labels[0].numpy()


@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
def test_shifted_labels_are_caught(shift: int) -> None:
    ids, labels = as_arrays(collate(prompts(4, 9), utterances(2, 5), LAYOUT, pad_id=0))
    check_labels(ids, labels, LAYOUT, [0, 0])
    with pytest.raises(AssertionError, match="differs from its own input"):
        check_labels(ids, np.roll(labels, shift), LAYOUT, [0, 0])


def test_labels_without_their_beginning_or_end_are_caught() -> None:
    ids, labels = as_arrays(collate(prompts(4, 9), utterances(2, 5), LAYOUT, pad_id=0))
    with pytest.raises(AssertionError, match="do not end in <audio_end>"):
        check_labels(ids[:-1], labels[:-1], LAYOUT, [0, 0])
    with pytest.raises(AssertionError, match="inputs"):
        check_labels(ids, labels[:-1], LAYOUT, [0, 0])
    with pytest.raises(AssertionError, match="1 stretches of targets, 2 utterances"):
        check_labels(ids, np.where(np.arange(len(ids)) < 20, IGNORE_INDEX, labels), LAYOUT, [0, 0])
    late = labels.copy()
    late[4] = IGNORE_INDEX  # the first code
    with pytest.raises(AssertionError, match="do not follow <audio_start>"):
        check_labels(ids, late, LAYOUT, [0, 0])
    whole = ids.copy()
    whole[3] = 7  # learning begins where a decoder does not
    with pytest.raises(AssertionError, match="do not follow <audio_start>"):
        check_labels(whole, labels, LAYOUT, [0, 0])


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), max_size=5),
    st.sampled_from([LAYOUT, FOUR_LEVELS]),
    st.sampled_from([0, 300]),
)
def test_every_target_is_the_next_token_of_its_own_utterance(
    shapes: list[tuple[int, int]], layout: TokenLayout, pad_to: int
) -> None:
    codes = utterances(*(frames for _, frames in shapes), layout=layout)
    texts = prompts(*(length for length, _ in shapes), layout=layout)
    batch = collate(texts, codes, layout, 0, pad_to)
    ids, labels = as_arrays(batch)
    assert len(ids) >= pad_to
    starts = set(batch.segments.bounds.tolist())
    found = []
    for level, (positions, rows) in enumerate(
        zip(batch.targets.positions, batch.targets.rows, strict=True)
    ):
        first = layout.end_id if level == 0 else layout.blocks[level].base
        for position, row in zip(positions.tolist(), rows.tolist(), strict=True):
            assert position + 1 not in starts, "a state never predicts another utterance"
            assert ids[position + 1] == labels[position + 1] == first + row
            found.append(position + 1)
        frames = sum(len(array) for array in codes)
        ends = len(codes) if level == 0 else 0
        assert len(rows) == frames * layout.codes_per_frame[level] + ends
    assert sorted(found) == np.flatnonzero(labels != IGNORE_INDEX).tolist(), "each label once"


@both_layouts
@both_softmaxes
def test_loss_is_that_of_a_plain_reference(layout: TokenLayout, softmax: Softmax) -> None:
    """Worked out anew in float64, target by target, from the codes alone."""
    codes = utterances(3, 1, layout=layout)
    texts = prompts(3, 6, layout=layout)
    batch = collate(texts, codes, layout, pad_id=0)
    hidden, head = random_states(batch, layout)
    ends = np.cumsum([len(text) + c.size + 1 for text, c in zip(texts, codes, strict=True)]) - 1
    with torch.no_grad():  # the model ranks the first utterance's end highest, the second's lowest
        hidden[ends[0] - 1] = 9 * head[layout.end_id]
        hidden[ends[1] - 1] = -9 * head[layout.end_id]
    sums = speech_loss(hidden, batch.targets, head, layout, softmax)

    expected, counts = np.zeros(layout.levels), np.zeros(layout.levels, int)
    first = 0
    for text, frames in zip(texts, codes, strict=True):
        targets = [*layout.to_ids(frames).tolist(), layout.end_id]
        for at, target in enumerate(targets):
            slot = at % layout.tokens_per_frame
            state = hidden[first + len(text) - 1 + at].detach().double().numpy()
            scores = head.detach().double().numpy() @ state
            score = scores[target]
            if softmax == "masked":
                scores = scores[list(layout.legal(slot))]
            largest = scores.max()
            level = layout.slots[slot][0]
            expected[level] += largest + np.log(np.exp(scores - largest).sum()) - score
            counts[level] += 1
        first += len(text) + len(targets)
    np.testing.assert_allclose(sums.loss.detach().numpy(), expected, rtol=1e-5)
    np.testing.assert_array_equal(sums.count.numpy(), counts)
    assert (int(sums.ends), int(sums.ends_right)) == (2, 1)

    losses, _ = token_losses(hidden, batch.targets, head, layout, softmax)
    assert [len(part) for part in losses] == counts.tolist()
    torch.testing.assert_close(torch.stack([part.sum() for part in losses]), sums.loss)


@both_softmaxes
def test_an_end_ranked_first_where_none_is_due_is_not_right(softmax: Softmax) -> None:
    batch = collate(prompts(3), utterances(2), LAYOUT, pad_id=0)
    hidden, head = random_states(batch, LAYOUT)
    with torch.no_grad():
        head[LAYOUT.end_id] *= 9
        hidden[:-2] = 9 * head[LAYOUT.end_id]  # at every state but the one before <audio_end>
        hidden[-2] = -9 * head[LAYOUT.end_id]
    sums = speech_loss(hidden, batch.targets, head, LAYOUT, softmax)
    assert (int(sums.ends), int(sums.ends_right)) == (1, 0)


def test_masked_and_full_softmax_differ_in_which_rows_learn() -> None:
    batch = collate(prompts(3, 6), utterances(3, 1), LAYOUT, pad_id=0)
    hidden, head = random_states(batch, LAYOUT)
    (legal,) = torch.autograd.grad(
        speech_loss(hidden, batch.targets, head, LAYOUT).loss.sum(), head
    )
    moved = legal.abs().sum(1) > 0
    assert moved.nonzero()[:, 0].tolist() == [*range(LAYOUT.end_id, LAYOUT.first_id + LAYOUT.size)]
    sums = speech_loss(hidden, batch.targets, head, LAYOUT, "full")
    (everywhere,) = torch.autograd.grad(sums.loss.sum(), head)
    assert (everywhere.abs().sum(1) > 0).all()


@pytest.mark.parametrize("chunk", [1, 5, 7])
def test_chunks_of_all_rows_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate(prompts(3, 6), utterances(3, 1), LAYOUT, pad_id=0)
    hidden, head = random_states(batch, LAYOUT)
    results = []
    for size in (loss.CHUNK, chunk):
        monkeypatch.setattr(loss, "CHUNK", size)
        losses = torch.cat(token_losses(hidden, batch.targets, head, LAYOUT, "full")[0])
        # Targets weighted apart, so that none can pass for another.
        weighted = (losses * torch.arange(len(losses))).sum()
        results.append((losses, *torch.autograd.grad(weighted, [hidden, head])))
    torch.testing.assert_close(results[0], results[1])


@both_softmaxes
def test_padding_carries_nothing(softmax: Softmax) -> None:
    texts, codes = prompts(3, 6), utterances(3, 1)
    batch = collate(texts, codes, LAYOUT, pad_id=0)
    padded = collate(texts, codes, LAYOUT, pad_id=0, pad_to=100)
    tokens = batch.input_ids.shape[1]
    assert padded.input_ids.shape == padded.position_ids.shape == (1, 100)
    assert padded.segments.lengths == (*batch.segments.lengths, 100 - tokens)
    assert padded.position_ids[0, tokens:].tolist() == list(range(100 - tokens))
    hidden, head = random_states(padded, LAYOUT)
    sums = speech_loss(hidden, padded.targets, head, LAYOUT, softmax)
    shorter = speech_loss(hidden[:tokens], batch.targets, head, LAYOUT, softmax)
    assert torch.equal(sums.loss, shorter.loss)
    assert torch.equal(sums.count, shorter.count)
    (gradient,) = torch.autograd.grad(sums.loss.sum(), hidden)
    assert (gradient[tokens - 1 :] == 0).all(), "neither the pads nor the last <audio_end>"
    full = collate(texts, codes, LAYOUT, pad_id=0, pad_to=tokens)
    assert full.segments.lengths == batch.segments.lengths, "a full row is not padded"
    assert collate(texts, codes, LAYOUT, 0, pad_to=5).input_ids.shape == (1, tokens), "nor cut"


@both_softmaxes
@pytest.mark.parametrize("pad_to", [0, 64])
def test_a_row_without_utterances_has_no_loss_and_still_a_gradient(
    softmax: Softmax, pad_to: int
) -> None:
    """Ranks compute together: one whose rows ran out must take part, and move nothing."""
    batch = collate([], [], LAYOUT, pad_id=3, pad_to=pad_to)
    assert batch.input_ids.tolist() == [[3] * max(1, pad_to)]
    hidden, head = random_states(batch, LAYOUT)
    sums = speech_loss(hidden, batch.targets, head, LAYOUT, softmax)
    assert sums.loss.tolist() == [0.0, 0.0, 0.0]
    assert sums.count.tolist() == [0, 0, 0]
    assert (int(sums.ends), int(sums.ends_right)) == (0, 0)
    for gradient in torch.autograd.grad(sums.loss.sum(), [hidden, head]):
        assert (gradient == 0).all()


@both_layouts
def test_lengths_are_those_of_the_collated_rows(layout: TokenLayout) -> None:
    codes, texts = utterances(2, 5, layout=layout), prompts(4, 9, layout=layout)
    lengths = sequence_lengths(texts, np.cumsum([0, 2, 5]), layout)
    assert collate(texts, codes, layout, 0).segments.lengths == tuple(lengths)
