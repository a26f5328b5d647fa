"""Encoding clips: in a batch, in chunks and as published, the codes are those of the clip alone."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from snac import SNAC

from helpers.example import CODEC, NEW_VOICE, clips_of, read_clip
from sheen.codec import inference
from sheen.codec.inference import ClipEncoder, cut_batches
from sheen.codec.snac import Codec, load_codec
from sheen.codec.transfer import Transfers

SHAPES = {
    # The published shapes with random weights, fewer channels where windows are attended to.
    "24 kHz": {
        "sampling_rate": 24000, "encoder_dim": 48, "encoder_rates": [2, 4, 8, 8],
        "decoder_dim": 64, "decoder_rates": [8, 8, 4, 2], "attn_window_size": None,
        "vq_strides": [4, 2, 1],
    },
    "32 kHz": {
        "sampling_rate": 32000, "encoder_dim": 8, "encoder_rates": [2, 3, 8, 8],
        "decoder_dim": 64, "decoder_rates": [8, 8, 3, 2], "attn_window_size": 32,
        "vq_strides": [8, 4, 2, 1],
    },
}  # fmt: skip


def made(shape: str, **changes: int) -> Codec:
    torch.manual_seed(0)
    return Codec(SNAC(**SHAPES[shape] | changes), torch.device("cpu"))


@cache
def recorded() -> np.ndarray:
    return np.concatenate([read_clip(clip) for clip in clips_of(NEW_VOICE)[:12]])


def speech(count: int, longest: float, seed: int) -> list[torch.Tensor]:
    """Parts of recordings, of random lengths from one sample on, each scaled otherwise."""
    generator = np.random.default_rng(seed)
    whole = recorded()
    clips = []
    for number in range(count):
        length = int(generator.integers(1, int(24_000 * longest))) if number else 1
        start = int(generator.integers(0, len(whole) - length))
        clip = whole[start : start + length] * np.float32(generator.uniform(0.2, 1.0))
        clips.append(torch.from_numpy(clip))
    return clips


def different(ours: list[list[np.ndarray]], theirs: list[list[np.ndarray]]) -> int:
    total = 0
    for one, other in zip(ours, theirs, strict=True):
        assert [len(level) for level in one] == [len(level) for level in other]
        total += sum(int((a != b).sum()) for a, b in zip(one, other, strict=True))
    return total


@pytest.mark.slow
@pytest.mark.parametrize("count", [12, pytest.param(300, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    ("shape", "longest"),
    [("small", 2.0), pytest.param("24 kHz", 0.3, marks=pytest.mark.slow)],
)
def test_clips_in_one_call_have_the_codes_of_each_alone(
    shape: str, longest: float, count: int
) -> None:
    codec = load_codec(str(CODEC)) if shape == "small" else made(shape)
    clips = speech(count, longest, seed=1)
    together = codec.encode(clips)
    assert different(together, [codec.encode([clip])[0] for clip in clips[::-1]][::-1]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_no_clip_of_a_batch_sees_its_padding_nor_its_neighbours(shape: str) -> None:
    """In float64, where the batch's rounding cannot hide, or be taken for, what leaks."""
    codec = made(shape, encoder_dim=8)
    codec.model.double()
    clips = [clip.double() for clip in speech(6, 1.5, seed=2)]
    block = codec.frame_samples * codec.block_frames
    lengths = [-(-len(clip) // block) * block for clip in clips]
    # Longer than any of them, and with a row of none.
    padded = torch.zeros(len(clips) + 1, max(lengths) + 2 * block, dtype=torch.float64)
    for row, clip in zip(padded[:-1], clips, strict=True):
        row[: len(clip)] = clip
    encoder = ClipEncoder(codec.model)
    with torch.inference_mode():
        together = encoder.together(padded, lengths)
        for row, length in enumerate(lengths):
            alone = encoder.alone(padded[row, :length])[0]
            same = together[row, :, : length // codec.hop]
            torch.testing.assert_close(same, alone, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.soak)])
def test_batched_codes_differ_in_near_ties_alone(count: int) -> None:
    codec = load_codec(str(CODEC))
    clips = speech(count, 3.0, seed=1)
    together = codec.encode(clips, budget=24_000 * 12, batch=True)
    codes = sum(len(level) for clip in together for level in clip)
    assert different(together, codec.encode(clips)) <= codes / 2000


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_clip_encoded_in_chunks_has_the_codes_of_the_whole(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(shape, encoder_dim=8).model.double()
    samples = 2048 * 32 * 3 if shape == "24 kHz" else 3072 * 16 * 4
    clip = torch.randn(samples, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = ClipEncoder(model)
    monkeypatch.setattr(inference, "CHUNK_BYTES", 1 << 17)
    encoder = ClipEncoder(model)
    with torch.inference_mode():
        expected = whole.together(clip[None], [samples])
        torch.testing.assert_close(encoder.alone(clip), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_batched_codes_are_those_of_the_published_package() -> None:
    torch.manual_seed(0)
    published, codec = SNAC(**SHAPES["24 kHz"]).eval(), made("24 kHz")
    clips = speech(6, 1.5, seed=3)
    with torch.inference_mode():
        theirs = [[level[0].numpy() for level in published.encode(c[None, None])] for c in clips]
    assert different(codec.encode(clips), theirs) == 0


def test_batches_keep_to_the_budget_and_hold_every_clip_once() -> None:
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 100, 500)] + [5000]
    batches = list(cut_batches(lengths, 1000))
    assert sorted(index for batch, _ in batches for index in batch) == list(range(501))
    for batch, (rows, padded) in batches:
        assert max(lengths[index] for index in batch) <= padded
        assert len(batch) <= rows
        assert rows * padded <= 1000 or rows == 1
    used = sum(lengths) - 5000
    samples = sum(rows * padded for _, (rows, padded) in batches[1:])
    assert samples < 1.2 * used, "clips of like lengths belong together"


def test_blocks_of_clips_of_any_lengths_are_batches_of_few_shapes() -> None:
    generator = np.random.default_rng(0)
    block, most = 2048, 24_000 * 120
    shapes: list[tuple[int, int]] = []
    for _ in range(300):
        lengths = generator.uniform(1.0, 15.0, 64) * 24_000
        blocks = [-(-int(length) // block) * block for length in lengths]
        shapes += [shape for _, shape in cut_batches(blocks, most, block)]
    assert len(shapes) > 900
    assert len(set(shapes)) < 80
    assert all(padded % block == 0 for _, padded in shapes)


@pytest.mark.slow
def test_a_batch_is_asked_for_before_the_codes_of_the_last_one_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codec = load_codec(str(CODEC))
    clips = speech(12, 1.0, seed=4)
    expected = codec.encode(clips, batch=True)
    order: list[str] = []
    download = Transfers.download

    def watched(transfers: Transfers, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        number = len(order) - order.count("fetched")
        order.append(f"batch {number}")
        wait = download(transfers, tensor)

        def waited() -> torch.Tensor:
            order.append("fetched")
            return wait()

        return waited

    monkeypatch.setattr(Transfers, "download", watched)
    found = codec.encode(clips, budget=24_000, batch=True)
    assert len(order) > 8
    assert order[:4] == ["batch 0", "batch 1", "fetched", "batch 2"]
    assert order[-2:] == ["fetched", "fetched"]
    assert different(found, expected) <= 1  # a near tie
