"""Streamed audio equals whole audio, whatever the chunks; and where it is asked not to."""

import numpy as np
import pytest
import torch
from snac import SNAC

from helpers.example import CODEC
from sheen.audio.samples import SilenceTrim
from sheen.codec.layout import TokenLayout
from sheen.codec.snac import Codec, load_codec
from sheen.engine.audio.streaming import StreamingDecoder, WindowShapes, decode_ready

TOLERANCE = 1e-6
LAYOUT = TokenLayout(500, 4096, (4, 2, 1))


@pytest.fixture(scope="module", params=["small", "published shape"])
def any_codec(request: pytest.FixtureRequest) -> Codec:
    if request.param == "small":
        return load_codec(str(CODEC))
    torch.manual_seed(0)
    model = SNAC(  # hubertsiuzdak/snac_24khz, random weights
        sampling_rate=24_000,
        encoder_dim=48,
        encoder_rates=[2, 4, 8, 8],
        decoder_dim=1024,
        decoder_rates=[8, 8, 4, 2],
        attn_window_size=None,
        codebook_size=4096,
        codebook_dim=8,
        vq_strides=[4, 2, 1],
        noise=True,
        depthwise=True,
    )
    return Codec(model, torch.device("cpu"))


@pytest.fixture(scope="module")
def small() -> Codec:
    return load_codec(str(CODEC))


def draw_codes(generator: np.random.Generator, frames: int) -> np.ndarray:
    codes = generator.integers(0, 4096, (frames, LAYOUT.tokens_per_frame)).astype(np.int16)
    codes[generator.integers(frames)] = 0  # code 0 is a code
    return codes


def whole(codec: Codec, codes: np.ndarray, seed: int) -> np.ndarray:
    levels = [level[None] for level in LAYOUT.deinterleave(codes)]
    return codec.decode(levels, [seed])[0].numpy()


@pytest.mark.parametrize("case", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_any_codes_in_any_chunks_decode_to_the_samples_of_the_whole(
    any_codec: Codec, case: int
) -> None:
    """To the bit: several streams at once, tokens in random handfuls, random ramps, noise on."""
    generator = np.random.default_rng(case)
    utterances = [draw_codes(generator, int(n)) for n in generator.integers(1, 14, 3)]
    ramps = [tuple(generator.integers(1, 6, generator.integers(1, 4)).tolist()) for _ in utterances]
    seeds = generator.integers(0, 2**62, len(utterances)).tolist()
    decoders = [
        StreamingDecoder(any_codec, LAYOUT, seed, ramp)
        for seed, ramp in zip(seeds, ramps, strict=True)
    ]
    left = [LAYOUT.to_ids(codes).tolist() for codes in utterances]
    pieces: list[list[np.ndarray]] = [[] for _ in utterances]
    over = [False] * len(utterances)
    while not all(over):
        for index, decoder in enumerate(decoders):
            count = int(generator.integers(0, 30))
            handful, left[index] = left[index][:count], left[index][count:]
            if handful:
                decoder.push(handful)
            elif not left[index] and not over[index]:
                decoder.finish()
                over[index] = True
        while any(map(len, chunk := decode_ready(decoders))):
            for kept, samples in zip(pieces, chunk, strict=True):
                kept.append(samples)
    for codes, seed, kept in zip(utterances, seeds, pieces, strict=True):
        streamed, expected = np.concatenate(kept), whole(any_codec, codes, seed)
        assert streamed.shape == expected.shape == (len(codes) * any_codec.frame_samples,)
        np.testing.assert_array_equal(streamed, expected)


def test_padded_to_few_shapes_windows_give_the_same_samples(small: Codec) -> None:
    """To the bit, as on a GPU: with and without noise, exact and not, in full and odd batches."""
    generator = np.random.default_rng(5)
    ramp = (1, 2, 4)
    shapes = WindowShapes.of(small, ramp, 1, 4)
    utterances = [draw_codes(generator, int(n)) for n in (1, 3, 8, 17, 23, 29)]
    streamed: list[list[np.ndarray]] = []
    for padded in (None, shapes):
        decoders = [
            StreamingDecoder(small, LAYOUT, None if n == 2 else n, ramp, 1 if n % 2 else None)
            for n in range(len(utterances))
        ]
        pieces: list[list[np.ndarray]] = [[] for _ in utterances]
        for frame in range(max(map(len, utterances)) + 1):
            for decoder, codes in zip(decoders, utterances, strict=True):
                if frame < len(codes):
                    decoder.push(LAYOUT.to_ids(codes[frame : frame + 1]))
                elif frame == len(codes):
                    decoder.finish()
            # Those with an even number fall behind.
            ready = [n for n in range(len(decoders)) if n % 2 or frame % 9 == 8 or frame == 29]
            for at in range(0, len(ready), 4):
                some = ready[at : at + 4]
                while any(map(len, found := decode_ready([decoders[n] for n in some], padded))):
                    for n, samples in zip(some, found, strict=True):
                        pieces[n].append(samples)
        streamed.append([np.concatenate(kept) for kept in pieces])
    for n, (alone, padded_, codes) in enumerate(zip(*streamed, utterances, strict=True)):
        assert len(padded_) == len(codes) * small.frame_samples
        np.testing.assert_array_equal(padded_, alone, f"utterance {n}")


def test_a_window_decodes_once_the_frames_that_it_needs_are_there(small: Codec) -> None:
    ids = LAYOUT.to_ids(draw_codes(np.random.default_rng(0), 30))
    decoder = StreamingDecoder(small, LAYOUT, 0, (1, 3, 5))
    frame = 0
    while frame < 30:
        needed = decoder.needed
        assert len(decode_ready([decoder])[0]) == 0
        while frame < min(needed, 30):
            assert decoder.next_window() is None
            decoder.push(ids[7 * frame : 7 * frame + 7])
            frame += 1
        if needed <= 30:
            assert len(decode_ready([decoder])[0])


def test_streams_without_noise_beside_streams_with_it(small: Codec) -> None:
    codes = draw_codes(np.random.default_rng(0), 4)
    decoders = [StreamingDecoder(small, LAYOUT, seed) for seed in (None, 0)]
    pieces = [decoder.decode(LAYOUT.to_ids(codes)) for decoder in decoders]
    assert np.abs(pieces[0] - pieces[1]).max() > 1e-5


def test_a_decoding_that_fails_can_be_done_again(
    small: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, also of streams whose group was decoded before the fault."""
    codes = draw_codes(np.random.default_rng(0), 8)
    decoders = [StreamingDecoder(small, LAYOUT, 0, ramp) for ramp in ((1,), (2,))]
    for decoder in decoders:
        decoder.push(LAYOUT.to_ids(codes))
    decode, calls = small.decode, iter(range(9))

    def fails_second(*arguments: object, **others: object) -> torch.Tensor:
        if next(calls) == 1:
            raise MemoryError("no more")
        return decode(*arguments, **others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(small, "decode", fails_second)
        with pytest.raises(MemoryError):
            decode_ready(decoders)
    expected = whole(small, codes, 0)
    for decoder in decoders:
        assert np.abs(decoder.flush() - expected).max() <= TOLERANCE


# A shorter look-ahead


@pytest.mark.parametrize("look_ahead", [0, 1, 2])
def test_a_shorter_look_ahead_starts_sooner_and_errs_in_the_first_chunk_alone(
    small: Codec, look_ahead: int
) -> None:
    codes = draw_codes(np.random.default_rng(look_ahead), 9)
    ids = LAYOUT.to_ids(codes)
    decoder = StreamingDecoder(small, LAYOUT, 5, (1, 2), look_ahead)
    assert decoder.needed == 1 + look_ahead
    frame = LAYOUT.tokens_per_frame
    assert len(decoder.decode(ids[: (1 + look_ahead) * frame - 1])) == 0
    first = decoder.decode(ids[(1 + look_ahead) * frame - 1 : (1 + look_ahead) * frame])
    assert len(first) == small.frame_samples
    rest = np.concatenate([decoder.decode(ids[(1 + look_ahead) * frame :]), decoder.flush()])
    expected = whole(small, codes, 5)
    assert np.abs(rest - expected[len(first) :]).max() <= TOLERANCE
    error = np.abs(first - expected[: len(first)])
    assert error.max() > TOLERANCE
    # What is missing lies ahead: the samples that the missing frames do not reach are exact.
    reach = small.window(0, 1, None).stop - 1 - look_ahead
    exact = max(0, len(first) - reach * small.frame_samples)
    assert error[:exact].max(initial=0) <= TOLERANCE


@pytest.mark.parametrize("at_once", [False, True])
def test_until_one_is_heard_every_chunk_is_early_however_its_tokens_come(
    small: Codec, at_once: bool
) -> None:
    """Two chunks are silence that is trimmed, the third is audible, and from the fourth on all are
    exact."""
    codes = draw_codes(np.random.default_rng(3), 12)
    decoder = StreamingDecoder(small, LAYOUT, 5, (1, 1, 1, 2), 1, trims=True)
    if at_once:
        decoder.push(LAYOUT.to_ids(codes))
    chunks: list[np.ndarray] = []
    for frame in codes:
        if not at_once:
            decoder.push(LAYOUT.to_ids(frame[None]))
        while len(samples := decode_ready([decoder])[0]):
            decoder.audible = len(chunks) >= 2
            chunks.append(samples)
            if not at_once and len(chunks) <= 3:
                assert decoder.frames == len(chunks) + 1, "one frame of look-ahead"
    streamed = np.concatenate([*chunks, decoder.flush()])
    lengths = [len(chunk) // small.frame_samples for chunk in chunks[:3]]
    assert lengths == [1, 1, 1]
    error = np.abs(streamed - whole(small, codes, 5)).reshape(12, -1).max(1)
    assert (error[:3] > TOLERANCE).all()
    assert error[3:].max() <= TOLERANCE


def test_a_look_ahead_that_is_long_enough_makes_streaming_exact(small: Codec) -> None:
    codes = draw_codes(np.random.default_rng(0), 6)
    decoder = StreamingDecoder(small, LAYOUT, 5, look_ahead=3)
    streamed = np.concatenate([decoder.decode(LAYOUT.to_ids(codes)), decoder.flush()])
    assert np.abs(streamed - whole(small, codes, 5)).max() <= TOLERANCE
    with pytest.raises(ValueError, match="look_ahead"):
        StreamingDecoder(small, LAYOUT, 5, look_ahead=-1)


# Silence before speech


def trimmed(samples: np.ndarray, chunk: int) -> np.ndarray:
    trim = SilenceTrim(1000, threshold=0.1, keep_s=0.02, longest_s=0.5)
    pieces = [trim.push(samples[at : at + chunk]) for at in range(0, len(samples), chunk)]
    return np.concatenate([*pieces, trim.flush()])


@pytest.mark.parametrize("chunk", [1, 7, 64, 5000])
@pytest.mark.parametrize("silence", [0, 5, 20, 300, 519])
def test_silence_before_speech_is_left_out_but_for_the_onset(chunk: int, silence: int) -> None:
    generator = np.random.default_rng(silence)
    quiet = generator.uniform(-0.09, 0.09, silence)
    speech = np.concatenate([[0.5], generator.uniform(-1, 1, 400), np.zeros(300)])
    samples = np.concatenate([quiet, speech]).astype(np.float32)
    np.testing.assert_array_equal(trimmed(samples, chunk), samples[max(0, silence - 20) :])


@pytest.mark.parametrize("chunk", [1, 64, 5000])
def test_silence_beyond_the_longest_lead_in_is_kept(chunk: int) -> None:
    samples = np.arange(2000, dtype=np.float32) / 1e6
    np.testing.assert_array_equal(trimmed(samples, chunk), samples[500:])
    # One that ends before: what an onset might have needed.
    np.testing.assert_array_equal(trimmed(samples[:300], chunk), samples[280:300])


# Windows


@pytest.mark.slow
def test_a_stream_that_fell_behind_takes_several_chunks_as_one_window(small: Codec) -> None:
    codes = draw_codes(np.random.default_rng(0), 60)
    ids = LAYOUT.to_ids(codes).tolist()
    decoder = StreamingDecoder(small, LAYOUT, 7, ramp=(1, 2, 4))
    decoder.push(ids)
    pieces = []
    ends = []
    while len(samples := decode_ready([decoder])[0]):
        pieces.append(samples)
        ends.append(sum(map(len, pieces)) // small.frame_samples)
    # The first chunk alone, then 2 + 8 * 4 frames (36 is the most), then what the end allows:
    # 3 frames of context are missing for the chunk that ends at 59.
    assert ends == [1, 35, 55]
    pieces.append(decoder.flush())
    whole_ = whole(small, codes, 7)
    np.testing.assert_array_equal(np.concatenate(pieces), whole_)
