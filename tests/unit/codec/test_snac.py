"""The codec and the streaming decoder: batched equals single, streamed equals whole."""

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import snac.layers
import torch
from snac import SNAC
from torch import nn

from helpers.example import CODEC, NEW_VOICE, VOICES, clips_of, read_clip
from helpers.tiny_codec import TINY
from sheen import rng
from sheen.codec.inference import DilatedConv, TransposedConv
from sheen.codec.info import CONFIG_FILE, NEEDED, describe_codec
from sheen.codec.layout import TokenLayout
from sheen.codec.snac import Codec, load_codec, open_codec
from sheen.codec.training import CodecFiles
from sheen.engine.audio.streaming import StreamingDecoder, decode_ready

TOLERANCE = 1e-6


PUBLISHED = {
    "sampling_rate": 24_000,
    "encoder_dim": 48,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 1024,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "vq_strides": [4, 2, 1],
}


@pytest.fixture(scope="module", params=["small trained, 24 kHz", "attention, 4 levels"])
def any_codec(request: pytest.FixtureRequest) -> Codec:
    if request.param == "small trained, 24 kHz":
        return load_codec(str(CODEC))
    return with_attention()


def with_attention() -> Codec:
    torch.manual_seed(0)
    # The published 32 kHz shape with fewer channels; random weights.
    model = SNAC(
        sampling_rate=32000,
        encoder_dim=16,
        encoder_rates=[2, 3, 8, 8],
        decoder_dim=128,
        decoder_rates=[8, 8, 3, 2],
        attn_window_size=32,
        vq_strides=[8, 4, 2, 1],
    )
    return Codec(model, torch.device("cpu"))


def layout_of(codec: Codec) -> TokenLayout:
    return TokenLayout(500, codec.codebook_size, codec.strides)


def random_frames(codec: Codec, frames: int, seed: int) -> np.ndarray:
    layout = layout_of(codec)
    generator = np.random.default_rng(seed)
    frames_of_codes = generator.integers(0, 4096, (frames, layout.tokens_per_frame))
    frames_of_codes[frames // 2] = 0  # code 0 is a code
    return frames_of_codes.astype(np.int16)


def whole(codec: Codec, frames: np.ndarray, seed: int | None) -> np.ndarray:
    levels = [level[None] for level in layout_of(codec).deinterleave(frames)]
    samples = codec.decode(levels, None if seed is None else [seed])
    return samples[0].numpy()


def test_encoding_in_a_batch_equals_encoding_alone(codec: Codec) -> None:
    clips = [torch.from_numpy(read_clip(clip)) for clip in clips_of(NEW_VOICE)[:5]]
    clips += [clips[0][:1], clips[1][:2048], clips[2][:2049]]
    together = codec.encode(clips)
    for clip, codes in zip(clips, together, strict=True):
        (alone,) = codec.encode([clip])
        for batched, single in zip(codes, alone, strict=True):
            np.testing.assert_array_equal(batched, single)
        assert len(codes[0]) == -(-len(clip) // codec.frame_samples)


def test_our_codes_are_the_published_codes(codec: Codec) -> None:
    """Folded weights may round a tie the other way; nothing more may differ."""
    published = SNAC.from_pretrained(str(CODEC)).eval()
    differing, total = 0, 0
    for clip in [clips_of(voice)[0] for voice in VOICES]:
        samples = torch.from_numpy(read_clip(clip))
        with torch.inference_mode():
            theirs = published.encode(samples[None, None])
        for ours, their in zip(codec.encode([samples])[0], theirs, strict=True):
            differing += int((ours != their[0].numpy()).sum())
            total += len(ours)
    assert total > 400
    assert differing / total <= 0.005


@pytest.mark.parametrize("dilation", [3, 9])
@pytest.mark.parametrize("samples", [1, 8, 500, 3001])
def test_a_dilated_convolution_is_the_published_one(samples: int, dilation: int) -> None:
    torch.manual_seed(samples)
    arguments = {"padding": 3 * dilation, "dilation": dilation, "groups": 16}
    published = nn.Conv1d(16, 16, 7, **arguments).requires_grad_(False)
    assert DilatedConv.fits(published)
    ours, x = DilatedConv(published), torch.randn(3, 16, samples)
    torch.testing.assert_close(ours(x), published(x), rtol=1e-4, atol=1e-6)
    # Nor does a sample depend on where it lies, nor on the rows beside it.
    assert torch.equal(ours(x[1:2]), ours(x)[1:2])
    longer = nn.functional.pad(x, (5, 40))
    assert torch.equal(ours(longer)[..., 5 : 5 + samples], ours(x))


def test_only_depthwise_convolutions_that_keep_the_length_are_replaced() -> None:
    fitting = {"kernel_size": 7, "padding": 9, "dilation": 3, "groups": 4}
    assert DilatedConv.fits(nn.Conv1d(4, 4, **fitting))
    for other in ({"dilation": 1, "padding": 3}, {"groups": 2}, {"padding": 8}, {"stride": 2}):
        assert not DilatedConv.fits(nn.Conv1d(4, 4, **fitting | other)), other


@pytest.mark.parametrize("rate", [2, 3, 8])
def test_an_upsampling_is_the_published_one(rate: int) -> None:
    torch.manual_seed(rate)
    published = nn.ConvTranspose1d(
        6, 4, 2 * rate, rate, padding=-(-rate // 2), output_padding=rate % 2
    ).requires_grad_(False)
    assert TransposedConv.fits(published)
    for samples in (1, 2, 50):
        x = torch.randn(3, 6, samples)
        torch.testing.assert_close(TransposedConv(published)(x), published(x), atol=1e-6, rtol=1e-4)
    assert not TransposedConv.fits(nn.ConvTranspose1d(6, 4, 3 * rate, rate, padding=rate))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    ["small", *(pytest.param(s, marks=pytest.mark.slow) for s in ("published", "attention"))],
)
def test_a_frame_has_the_same_samples_in_every_window(shape: str) -> None:
    """To the bit, and whatever is decoded with it: which windows a stream is decoded in, and in
    whose company, depends on how busy the machine is."""
    if shape == "small":
        codec, lengths = load_codec(str(CODEC)), [1, 5, 36]
    elif shape == "published":  # one of its frames takes as long as fifteen of the small one's
        torch.manual_seed(0)
        codec, lengths = Codec(SNAC(**PUBLISHED), torch.device("cpu")), [1, 12]
    else:
        codec, lengths = with_attention(), [1, 5, 20]
    frames = random_frames(codec, 22 if shape == "published" else 45, 1)
    levels = [level[None] for level in layout_of(codec).deinterleave(frames)]
    per_frame = [codec.strides[0] // stride for stride in codec.strides]
    expected = codec.decode(levels, [5])[0]
    for length in lengths:
        for first in (0, 2, 7):
            window = codec.window(first, first + length, None)
            if window.stop > len(frames):
                continue
            seen = [
                level[:, window.start * n : window.stop * n]
                for level, n in zip(levels, per_frame, strict=True)
            ]
            neighbour = [np.concatenate([level, level[:, ::-1]]) for level in seen]
            at = (first - window.start) * codec.frame_samples
            for decoded in (
                codec.decode(seen, [5], [window.start]),
                codec.decode(neighbour, [5, 6], [window.start, 3]),
            ):
                samples = decoded[0, at : at + length * codec.frame_samples]
                wanted = expected[first * codec.frame_samples :][: len(samples)]
                assert torch.equal(samples, wanted), window


@pytest.mark.parametrize("seeds", [None, [3, 4, 5, 6]])
def test_rows_that_are_padded_have_the_samples_of_their_own_frames(
    any_codec: Codec, seeds: list[int] | None
) -> None:
    """To the bit. Behind the frames that count are code 0, and other rows' frames."""
    lengths, frames, layout = [12, 5, 1, 8], 12, layout_of(any_codec)
    codes = [random_frames(any_codec, frames, row) for row in range(4)]
    for row, length in zip(codes, lengths, strict=True):
        row[length:] = 0
    rows = [layout.deinterleave(row) for row in codes]
    levels = [np.stack(level) for level in zip(*rows, strict=True)]
    together = any_codec.decode(levels, seeds, [0, 2, 0, 4], lengths)
    for row, length in enumerate(lengths):
        own = [level[None] for level in layout.deinterleave(codes[row][:length])]
        alone = any_codec.decode(own, seeds and seeds[row : row + 1], [[0, 2, 0, 4][row]])[0]
        np.testing.assert_array_equal(together[row, : len(alone)].numpy(), alone.numpy())


def test_our_decode_is_the_published_decode(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same codes, same noise: snac's own class gives the same samples."""
    frames = random_frames(codec, 9, 1)
    levels = layout_of(codec).deinterleave(frames)
    published = SNAC.from_pretrained(str(CODEC))
    blocks = iter(range(4))

    def noise(shape: tuple[int, ...], **_: object) -> torch.Tensor:
        at = torch.arange(shape[-1])
        return rng.normal(torch.tensor([42]), rng.NOISE + next(blocks), at)[None]

    monkeypatch.setattr(snac.layers.torch, "randn", noise)
    with torch.inference_mode():
        theirs = published.decode([torch.from_numpy(level)[None].long() for level in levels])
    assert next(blocks, None) is None, "every NoiseBlock drew once"
    np.testing.assert_allclose(whole(codec, frames, 42), theirs[0, 0].numpy(), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("frames", "seed"),
    [
        *product([1, 2, 7], [None, 3]),
        (30, 3),
        pytest.param(30, None, marks=pytest.mark.slow),
    ],
)
def test_streamed_equals_whole(any_codec: Codec, frames: int, seed: int | None) -> None:
    codes = random_frames(any_codec, frames, frames)
    layout = layout_of(any_codec)
    ids = layout.to_ids(codes)
    expected = whole(any_codec, codes, seed)
    assert len(expected) == frames * any_codec.frame_samples
    generator = np.random.default_rng(frames)
    for ramp in [(1, 2, 4, 8, 12), (1,), (5, 3)]:
        decoder = StreamingDecoder(any_codec, layout, seed, ramp)
        chunks, position = [], 0
        while position < len(ids):
            step = int(generator.integers(1, 40))
            chunks.append(decoder.decode(ids[position : position + step]))
            position += step
        chunks.append(decoder.flush())
        streamed = np.concatenate(chunks)
        assert len(streamed) == len(expected)
        assert np.abs(streamed - expected).max() <= TOLERANCE


def test_noise_is_of_the_position_and_the_seed(codec: Codec) -> None:
    codes = random_frames(codec, 4, 0)
    np.testing.assert_array_equal(whole(codec, codes, 1), whole(codec, codes, 1))
    assert np.abs(whole(codec, codes, 1) - whole(codec, codes, 2)).max() > 1e-4
    assert np.abs(whole(codec, codes, 1) - whole(codec, codes, None)).max() > 1e-4


def test_streams_decoded_together_do_not_mix(codec: Codec) -> None:
    layout = layout_of(codec)
    utterances = [random_frames(codec, frames, frames) for frames in (3, 10, 10, 17)]
    decoders = [StreamingDecoder(codec, layout, seed) for seed in range(4)]
    chunks: list[list[np.ndarray]] = [[] for _ in decoders]
    for frame in range(17):
        for decoder, codes in zip(decoders, utterances, strict=True):
            if frame < len(codes):
                decoder.push(layout.to_ids(codes[frame : frame + 1]))
            if frame == len(codes) - 1:
                decoder.finish()
        while True:
            results = decode_ready(decoders)
            if not any(len(samples) for samples in results):
                break
            for kept, samples in zip(chunks, results, strict=True):
                kept.append(samples)
    for seed, (codes, kept) in enumerate(zip(utterances, chunks, strict=True)):
        difference = np.concatenate(kept) - whole(codec, codes, seed)
        assert np.abs(difference).max() <= TOLERANCE


def test_the_first_chunk_waits_for_no_more_than_its_context(codec: Codec) -> None:
    layout = layout_of(codec)
    ids = layout.to_ids(random_frames(codec, 6, 0))
    decoder = StreamingDecoder(codec, layout, None)
    needed = codec.window(0, 1, None).stop * layout.tokens_per_frame
    assert needed == 28  # one frame and three of look-ahead
    assert len(decoder.decode(ids[: needed - 1])) == 0
    assert len(decoder.decode(ids[needed - 1 : needed])) == codec.frame_samples


def test_illegal_tokens_are_refused(codec: Codec) -> None:
    layout = layout_of(codec)
    decoder = StreamingDecoder(codec, layout, None)
    with pytest.raises(ValueError, match="slot 0"):
        decoder.decode([layout.blocks[1].base] * 7)


def test_speech_survives_the_small_codec(codec: Codec) -> None:
    """A reconstruction that lost the speech (wrong slot order, say) has another envelope."""
    recording = read_clip(clips_of("am_onyx")[0])
    assert len(recording)
    (codes,) = codec.encode([torch.from_numpy(recording)])
    back = codec.decode([level[None] for level in codes])[0].numpy()[: len(recording)]
    envelopes = [
        np.sqrt((x[: len(x) // 480 * 480].reshape(-1, 480) ** 2).mean(1)) for x in (recording, back)
    ]
    assert np.corrcoef(*envelopes)[0, 1] > 0.9


def test_a_folder_that_is_no_codec_says_what_is_missing_or_unknown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        load_codec(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load_codec(str(tmp_path))
    shutil.copytree(CODEC, tmp_path / "codec")
    (tmp_path / "codec" / "config.json").write_text('{"sampling_rate": 24000, "colour": 1}')
    with pytest.raises(ValueError, match="colour"):
        load_codec(str(tmp_path / "codec"))


@pytest.mark.parametrize("absent", NEEDED)
def test_what_a_codecs_file_leaves_out_has_snacs_default(tmp_path: Path, absent: str) -> None:
    arguments = {name: value for name, value in TINY.items() if name != absent}
    model = SNAC(**arguments)
    CodecFiles(arguments, torch.float32).write(tmp_path, model.state_dict())
    info = describe_codec(str(tmp_path))
    assert info.sample_rate == model.sampling_rate
    assert info.codebook_size == model.codebook_size
    assert list(info.strides) == list(model.vq_strides)
    assert open_codec(str(tmp_path))[1] == info.config  # as a codec that is trained from it has it


@pytest.mark.parametrize("content", ["{", "[1]", "null"])
def test_a_codecs_file_that_holds_no_arguments_is_named(tmp_path: Path, content: str) -> None:
    CodecFiles(TINY, torch.float32).write(tmp_path, {})
    (tmp_path / CONFIG_FILE).write_text(content)
    for use in (describe_codec, open_codec):
        with pytest.raises(ValueError, match=rf"{CONFIG_FILE}: not (a )?JSON"):
            use(str(tmp_path))


def test_a_codec_is_known_by_its_weights(tmp_path: Path) -> None:
    shutil.copytree(CODEC, tmp_path / "codec")
    assert describe_codec(str(tmp_path / "codec")).sha256 == describe_codec(str(CODEC)).sha256
    state = torch.load(tmp_path / "codec" / "pytorch_model.bin", weights_only=True)
    next(iter(state.values())).add_(1)
    torch.save(state, tmp_path / "codec" / "pytorch_model.bin")
    assert describe_codec(str(tmp_path / "codec")).sha256 != describe_codec(str(CODEC)).sha256
