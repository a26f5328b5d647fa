"""Batches and loss: labels that fit their inputs, and the numbers of a plain reference."""

import numpy as np
import pytest
import torch

from sheen.core.batches import (
    Batch,
    check_batch,
    collate,
    is_held_out,
    plan_batches,
    plan_epoch,
    plan_steps,
    sequence_lengths,
)
from sheen.core.loss import IGNORE_INDEX, audio_targets, speech_loss
from sheen.core.tokens import TokenLayout

LAYOUT = TokenLayout(50, 32, (4, 2, 1))


def utterances(*frames: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 32, (n, 7)).astype(np.int16) for n in frames]


def prompts(*lengths: int) -> list[list[int]]:
    return [[*range(1, length), LAYOUT.start_id] for length in lengths]


def test_only_audio_carries_loss_and_no_tail_is_cut() -> None:
    codes = utterances(2, 5)
    batch = collate(prompts(4, 9), codes, LAYOUT, pad_id=0)
    for row, (prompt_length, frames) in enumerate([(4, 2), (9, 5)]):
        labels = batch.labels[row]
        end = prompt_length + frames * 7
        assert (labels[:prompt_length] == IGNORE_INDEX).all()
        assert (labels[end + 1 :] == IGNORE_INDEX).all()
        assert labels[end] == LAYOUT.end_id
        ids = labels[prompt_length:end].numpy()
        np.testing.assert_array_equal(LAYOUT.from_ids(ids), codes[row])
    _, targets = audio_targets(batch.labels)
    assert len(targets) == (2 + 5) * 7 + 2


@pytest.mark.parametrize("shift", [-1, 1])
def test_shifted_labels_are_caught(shift: int) -> None:
    batch = collate(prompts(4, 9), utterances(2, 5), LAYOUT, pad_id=0)
    with pytest.raises(AssertionError, match="label"):
        check_batch(Batch(batch.input_ids, torch.roll(batch.labels, shift, dims=1)), LAYOUT)


def test_a_missing_end_or_a_short_label_row_is_caught() -> None:
    batch = collate(prompts(4), utterances(2), LAYOUT, pad_id=0)
    cut = Batch(batch.input_ids[:, :-1], batch.labels[:, :-1])
    with pytest.raises(AssertionError, match="audio_end"):
        check_batch(cut, LAYOUT)
    with pytest.raises(AssertionError, match="inputs"):
        check_batch(Batch(batch.input_ids, batch.labels[:, :-1]), LAYOUT)


def test_loss_is_a_plain_softmax_over_the_legal_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = collate(prompts(3, 6), utterances(3, 1), LAYOUT, pad_id=0)
    head = torch.randn(LAYOUT.first_id + LAYOUT.size, 8, generator=generator)
    hidden = torch.randn(*batch.input_ids.shape, 8, generator=generator)
    mask, targets = audio_targets(batch.labels)
    sums = speech_loss(hidden[:, :-1][mask], targets, head, LAYOUT)

    expected, counts = np.zeros(3), np.zeros(3, int)
    ends_right = 0
    for row in range(2):
        position = 0
        for t in range(1, batch.labels.shape[1]):
            label = int(batch.labels[row, t])
            if label == IGNORE_INDEX:
                continue
            legal = LAYOUT.legal(position % 7)
            level = LAYOUT.slots[position % 7][0]
            scores = hidden[row, t - 1].double().numpy() @ head[list(legal)].double().numpy().T
            expected[level] += np.log(np.exp(scores).sum()) - scores[label - legal.start]
            counts[level] += 1
            ends_right += label == LAYOUT.end_id and int(scores.argmax()) == 0
            position += 1
    np.testing.assert_allclose(sums.loss.numpy(), expected, rtol=1e-5)
    np.testing.assert_array_equal(sums.count.numpy(), counts)
    assert sums.ends == 2
    assert sums.ends_right == ends_right


def test_plans_cover_every_utterance_once_and_never_cut() -> None:
    lengths = np.random.default_rng(1).integers(10, 400, 333)
    indices = np.arange(0, 333, 2)
    for batch in (batches := plan_batches(lengths, indices, 1000)):
        assert lengths[batch].max() * len(batch) <= 1000 or len(batch) == 1
    assert sorted(np.concatenate(batches)) == list(indices)


def test_epochs_are_the_same_again_and_differ_from_each_other() -> None:
    lengths = np.random.default_rng(1).integers(10, 400, 200)

    def plan(seed: int, epoch: int) -> list[list[int]]:
        return [b.tolist() for b in plan_epoch(lengths, np.arange(200), 2000, seed, epoch)]

    assert plan(0, 0) == plan(0, 0)
    assert plan(0, 0) != plan(0, 1)
    assert plan(0, 0) != plan(1, 0)
    assert sorted(index for batch in plan(0, 0) for index in batch) == list(range(200))


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (1, 2), (2, 3), (8, 4)])
def test_ranks_share_a_run_without_changing_it(world: int, accumulation: int) -> None:
    batches = [np.array([i]) for i in range(19)]
    steps = plan_steps(batches, world, accumulation)
    assert all(len(step) == accumulation for step in steps)
    assert all(len(ranks) == world for step in steps for ranks in step)
    order = [int(batch[0]) for step in steps for ranks in step for batch in ranks]
    assert order[:19] == list(range(19)), "the order is that of one worker"
    assert len(order) < 19 + world * accumulation
    assert order[19:] == [i % 19 for i in range(len(order) - 19)], "filled from the front"


def test_the_split_is_stable_and_keeps_equal_texts_together() -> None:
    texts = [f"text {i}" for i in range(2000)]
    held = {text for text in texts if is_held_out(text, 0.1, 0)}
    assert 140 < len(held) < 260
    # A function of text and seed alone: more rows, or the same text again, move nothing.
    assert held == {text for text in reversed(texts * 2) if is_held_out(text, 0.1, 0)}
    assert held != {text for text in texts if is_held_out(text, 0.1, 1)}
    assert held < {text for text in texts if is_held_out(text, 0.2, 0)}
    assert not any(is_held_out(text, 0.0, 0) for text in texts)


def test_lengths_are_those_of_the_collated_rows() -> None:
    codes, texts = utterances(2, 5), prompts(4, 9)
    offsets = np.cumsum([0, 2, 5])
    lengths = sequence_lengths(texts, offsets, LAYOUT)
    for index in range(2):
        row = collate([texts[index]], [codes[index]], LAYOUT, 0).input_ids
        assert row.shape[1] == lengths[index]
