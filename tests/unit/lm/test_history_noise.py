"""History noise: whole frames of the input, at random, and nothing else of a row."""

import numpy as np
import pytest
import torch

from helpers.small_models import small_model
from helpers.utterances import LAYOUT, prompts, utterances
from sheen.codec.layout import TokenLayout
from sheen.lm.batching import Batch, add_history_noise, collate

FOUR_LEVELS = TokenLayout(50, 32, (8, 4, 2, 1))

both_layouts = pytest.mark.parametrize("layout", [LAYOUT, FOUR_LEVELS])


def row(layout: TokenLayout, count: int, frames: int, pad_to: int = 0) -> Batch:
    texts = prompts(*[3 + index % 5 for index in range(count)], layout=layout)
    return collate(texts, utterances(*[frames] * count, layout=layout), layout, 0, pad_to)


def noisy(batch: Batch, layout: TokenLayout, share: float, seed: int = 0) -> Batch:
    return add_history_noise(batch, layout, share, np.random.default_rng(seed))


def changed_frames(batch: Batch, after: Batch, layout: TokenLayout, count: int) -> np.ndarray:
    """`[count, frames]`: which frames changed; asserts that what is no frame did not."""
    bounds = batch.segments.bounds.tolist()
    changed = []
    for index in range(count):
        before, now = (
            part.input_ids[0, bounds[index] : bounds[index + 1]].numpy() for part in (batch, after)
        )
        start = before.tolist().index(layout.start_id) + 1
        np.testing.assert_array_equal(before[:start], now[:start])
        assert before[-1] == now[-1] == layout.end_id
        frames = layout.from_ids(now[start:-1])  # each code is legal at its slot
        changed.append((frames != layout.from_ids(before[start:-1])).any(1))
    return np.array(changed)


@both_layouts
def test_noise_changes_whole_frames_of_the_input_and_nothing_else(layout: TokenLayout) -> None:
    count = 12
    batch = row(layout, count, 9, pad_to=3000)
    before = batch.input_ids.clone()
    after = noisy(batch, layout, 0.4)
    changed = changed_frames(batch, after, layout, count)
    assert changed.any()
    assert not changed.all(1).any()
    assert after.input_ids.shape == (1, 3000)
    tail = batch.segments.bounds[count]
    assert torch.equal(after.input_ids[0, tail:], before[0, tail:]), "pads stay"
    assert torch.equal(batch.input_ids, before), "the row that was given stays"
    assert after.targets is batch.targets
    assert after.segments is batch.segments
    assert torch.equal(after.position_ids, batch.position_ids)
    # Of a frame that is replaced every code is drawn anew, by chance sometimes the same.
    where = batch.input_ids != after.input_ids
    drawn = int(changed.sum()) * layout.tokens_per_frame
    assert int(where.sum()) > 0.9 * drawn


def test_half_of_the_utterances_have_their_share_of_noise() -> None:
    count, frames = 400, 20
    batch = row(LAYOUT, count, frames)
    changed = changed_frames(batch, noisy(batch, LAYOUT, 0.2), LAYOUT, count)
    touched = changed.any(1)
    assert 0.4 < touched.mean() < 0.6
    assert 0.18 < changed[touched].mean() < 0.23
    whole = changed_frames(batch, noisy(batch, LAYOUT, 1.0), LAYOUT, count)
    assert set(whole.sum(1).tolist()) == {0, frames}


def test_the_same_draws_give_the_same_noise_whatever_the_padding() -> None:
    plain, padded = row(LAYOUT, 6, 5), row(LAYOUT, 6, 5, pad_to=400)
    tokens = plain.input_ids.shape[1]
    first, again = noisy(plain, LAYOUT, 0.5), noisy(plain, LAYOUT, 0.5)
    assert torch.equal(first.input_ids, again.input_ids)
    assert torch.equal(noisy(padded, LAYOUT, 0.5).input_ids[:, :tokens], first.input_ids)
    assert not torch.equal(noisy(plain, LAYOUT, 0.5, seed=1).input_ids, first.input_ids)


def test_no_frames_and_no_utterances_stay_as_they_are() -> None:
    for batch in (collate([], [], LAYOUT, pad_id=3), row(LAYOUT, 2, 0)):
        assert torch.equal(noisy(batch, LAYOUT, 1.0).input_ids, batch.input_ids)


def test_an_utterance_without_noise_is_computed_as_if_its_neighbours_had_none() -> None:
    count = 6
    batch = row(LAYOUT, count, 3)
    after = noisy(batch, LAYOUT, 1.0)
    model = small_model("qwen3")
    with torch.no_grad():
        before, now = model.packed_states(batch), model.packed_states(after)
    bounds = batch.segments.bounds.tolist()
    touched = changed_frames(batch, after, LAYOUT, count).any(1)
    assert 0 < touched.sum() < count
    for index, noise in enumerate(touched):
        part = slice(bounds[index], bounds[index + 1])
        assert torch.equal(before[part], now[part]) != noise
