"""A codec at work: clips keep their lengths, the control its codes; use is counted by level."""

import numpy as np
import pytest
import torch

from helpers.example import VOICES, clips_of, read_clip
from sheen.codec.layout import Codes
from sheen.codec.snac import Codec
from sheen.scoring.code_usage import LevelUse, code_usage, decode_clip, shuffle_codes


def test_a_clip_decodes_to_as_many_samples_as_it_had(codec: Codec) -> None:
    """No multiple of a frame: the padding must not be heard or seen."""
    wave = torch.from_numpy(read_clip(clips_of(VOICES[0])[0])[: 3 * codec.frame_samples + 7])
    (codes,) = codec.encode([wave])
    assert len(codes[0]) == 4
    whole = decode_clip(codec, codes, 4 * codec.frame_samples, 0)
    np.testing.assert_array_equal(decode_clip(codec, codes, len(wave), 0), whole[: len(wave)])


def test_shuffling_keeps_the_codes_of_each_level() -> None:
    draws = np.random.default_rng(0)
    codes = [draws.integers(0, 9, n).astype(np.int16) for n in (30, 60, 120)]
    before = [level.copy() for level in codes]
    shuffled = shuffle_codes(codes, 5)
    for level, kept, moved in zip(codes, before, shuffled, strict=True):
        np.testing.assert_array_equal(level, kept)
        assert moved.dtype == np.int16
        assert not np.array_equal(moved, level)
        np.testing.assert_array_equal(np.sort(moved), np.sort(level))
    for level, again in zip(shuffled, shuffle_codes(codes, 5), strict=True):
        np.testing.assert_array_equal(level, again)
    assert not np.array_equal(shuffle_codes(codes, 6)[2], shuffled[2])


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_perplexity_of_uniform_use_is_the_number_of_codes(count: int) -> None:
    clips: list[Codes] = [[np.arange(count, dtype=np.int16)] for _ in range(3)]
    assert code_usage(clips, 64) == [LevelUse(3 * count, count, float(count), 64)]


def test_usage_is_counted_over_clips_level_by_level() -> None:
    clips = [
        [np.array([5, 5], np.int16), np.array([0, 1, 0, 2], np.int16)],
        [np.array([5], np.int16), np.array([1, 3], np.int16)],
    ]
    coarse, fine = code_usage(clips, 8)
    assert coarse == LevelUse(3, 1, 1.0, 8)
    # Shares 1/3, 1/3, 1/6, 1/6: the entropy is ln 3 / 1.5 + ln 6 / 3, whose exponential is 3.78.
    assert fine == LevelUse(6, 4, 3.8, 8)
