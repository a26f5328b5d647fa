"""Voices from a reference: the prompt, what is kept of it, where the new audio begins, refusals."""

import random

import numpy as np
import pytest

from helpers.example import CODEC
from helpers.speaking import LAYOUT, WORDS, generate, random_model, speak, speak_all, tiny_codec
from helpers.voices import make_voice
from sheen.audio.io import encode_audio
from sheen.audio.samples import Samples
from sheen.codec.snac import Codec, load_codec
from sheen.engine.audio.streaming import StreamingDecoder
from sheen.engine.engine import Engine
from sheen.engine.generation import PREFILL_CHUNK, TokenGenerator
from sheen.engine.reference import check_text, read_recording
from sheen.engine.types import Reference, Request, RequestError, Sampling
from sheen.engine.voice import Voice
from sheen.lm.cache.kv_cache import PAGE, arena_bytes
from sheen.lm.checkpoint import ReferenceInfo
from sheen.lm.model import SpeechLM

GREEDY = Sampling(0.0)
FRAME = LAYOUT.tokens_per_frame


@pytest.fixture(scope="module")
def frozen() -> SpeechLM:
    model = random_model(end=0.0)
    model.freeze()
    return model


@pytest.fixture(scope="module")
def voice(codec: Codec) -> Voice:
    voice = make_voice(codec, {})
    voice.info.reference = ReferenceInfo(form="one-turn")
    return voice


def draw_frames(count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 4096, (count, FRAME)).astype(np.int16)


# The prompt


def test_one_turn_has_both_texts_before_the_codes(voice: Voice) -> None:
    frames = draw_frames(20)
    reference = voice.reference(frames, "four two")
    assert reference.form == "one-turn"
    request = voice.request("seven", None, GREEDY, 2.0, reference=reference)
    codes = voice.model.layout.to_ids(frames).tolist()
    plain = voice.request("four two seven", None, GREEDY, 2.0)
    assert request.prompt == [*plain.prompt, *codes]
    assert request.shared == len(request.prompt)
    assert request.before is frames


def test_two_turns_have_the_reference_as_a_row_of_its_own(voice: Voice) -> None:
    frames = draw_frames(20)
    reference = voice.reference(frames, "four two", "two-turn")
    request = voice.request("seven", None, GREEDY, 2.0, reference=reference)
    first = [
        *voice.request("four two", None, GREEDY, 2.0).prompt,
        *voice.model.layout.to_ids(frames).tolist(),
        voice.model.layout.end_id,
    ]
    assert request.prompt == [*first, *voice.request("seven", None, GREEDY, 2.0).prompt]
    assert request.shared == len(first), "any text may follow"
    assert request.before is None, "the new speech does not go on with the old"


def test_the_budget_follows_the_pace_of_the_reference(voice: Voice) -> None:
    slow = voice.reference(draw_frames(40), "four two")
    quick = voice.reference(draw_frames(12), "four two")
    most = {
        reference: voice.request("four two", None, GREEDY, 30.0, reference=reference).max_frames
        for reference in (slow, quick)
    }
    assert most == {slow: 3 * 40 + 23, quick: 3 * 12 + 23}
    assert voice.max_chunk_chars(4.0, None, quick) > voice.max_chunk_chars(4.0, None, slow)


def test_chunks_are_as_long_as_a_reference_leaves_room_for(voice: Voice) -> None:
    room = voice.model.max_positions
    frames = room // FRAME // 2
    text = "one two three four five six " * 8
    long = voice.reference(draw_frames(frames), text)
    characters = voice.max_chunk_chars(1000.0, None, long)
    assert 1 < characters < 200 == voice.max_chunk_chars(1000.0, None)
    request = voice.request("a" * characters, None, GREEDY, 1000.0, reference=long)
    assert request.max_frames > characters * frames / len(text), "there is room for its audio"


def test_a_reference_that_leaves_no_room_is_named(voice: Voice) -> None:
    long = voice.reference(draw_frames(60), "one two three four")
    with pytest.raises(RequestError, match="shorter reference") as refusal:
        voice.request("five", None, GREEDY, 2.0, 60 * FRAME, long)
    assert refusal.value.field == "ref_audio"


# What is kept


def shared_request(length: int, text: int, frames: int = 5, end: int = 0) -> Request:
    """Of a beginning that is the same for one `length`, and a `text` of its own after it."""
    beginning = random.Random(length)
    own = random.Random(text)
    prompt = [beginning.randrange(WORDS) for _ in range(length)]
    prompt += [own.randrange(WORDS) for _ in range(20)]
    return Request([*prompt, LAYOUT.start_id], frames, Sampling(seed=text), frames, shared=length)


@pytest.mark.parametrize("static", [False, True])
def test_tokens_after_a_kept_beginning_are_those_after_a_computed_one(
    frozen: SpeechLM, static: bool
) -> None:
    """To the bit, while others run, and through as many chunks as there are."""
    generator = TokenGenerator(frozen, 3, 512, static_shapes=static)
    beginning = [random.Random(1).randrange(WORDS) for _ in range(300)]
    prompts = [[*beginning, *range(text, text + 30), LAYOUT.start_id] for text in (10, 20)]
    alone = [generate(frozen, [prompt], 30)[0] for prompt in prompts]

    def run(slot: int, prompt: list[int]) -> tuple[list[int], int]:
        generator.start(slot, prompt, GREEDY, 30, FRAME, shared=300)
        tokens, steps = list[int](), 0
        while len(tokens) < 30:
            step = generator.step()
            assert step is not None
            steps += 1
            if slot in step.slots:
                tokens.append(step.read()[step.slots.index(slot)])
        generator.stop(slot)
        return tokens, steps

    other = [5, 6, 7, LAYOUT.start_id]
    generator.start(2, other, GREEDY, 150)
    first, steps = run(0, prompts[0])
    assert first == alone[0]
    second, fewer = run(1, prompts[1])
    assert second == alone[1]
    assert fewer == steps - 1, "a chunk of 256 tokens less"
    assert run(0, prompts[0])[0] == alone[0]


def test_two_requests_with_one_reference_share_its_pages(frozen: SpeechLM) -> None:
    generator = TokenGenerator(frozen, 2, 512)
    for slot, text in enumerate((1, 2)):
        request = shared_request(300, text)
        generator.start(slot, request.prompt, GREEDY, 30, FRAME, shared=300)
        for _ in range(2):
            generator.step()
    pages = [generator.cache.pages_at(slot) for slot in (0, 1)]
    whole = PREFILL_CHUNK // PAGE
    assert pages[0][:whole] == pages[1][:whole]
    assert not set(pages[0][whole:]) & set(pages[1][whole:])
    before = generator.free_pages
    generator.stop(0)
    assert generator.free_pages == before + len(pages[0]) - whole, "the other has the beginning"
    generator.stop(1)
    assert generator.free_pages == generator.cache.pool.count, "what is kept can be had"


@pytest.mark.slow
def test_audio_is_the_same_with_few_pages_where_beginnings_come_and_go(frozen: SpeechLM) -> None:
    """Pages for one and a half requests: what is kept gives way, and nobody waits for ever."""
    codec = tiny_codec()
    requests = [shared_request(length, text) for text in range(4) for length in (300, 280)]
    with_room = Engine(frozen, codec, slots=1)
    expected = [speak(with_room, request) for request in requests]
    with_room.close()
    shape = with_room._generator.cache.shape
    engine = Engine(frozen, codec, slots=3, cache_bytes=arena_bytes(shape, 9))
    together = speak_all(engine, requests)
    assert engine.metrics()["pages_free"] == 9
    engine.close()
    for (samples, finished), (alone, ending) in zip(together, expected, strict=True):
        assert finished == ending
        np.testing.assert_array_equal(samples, alone)


# Where the new audio begins


@pytest.mark.slow
@pytest.mark.parametrize(("given", "frames"), [(1, 1), (3, 9), (17, 5)])
def test_audio_after_a_reference_is_cut_at_the_sample(given: int, frames: int) -> None:
    """What is heard is what the whole of both has there, to the bit, noise and all."""
    codec = load_codec(str(CODEC))
    codes = draw_frames(given + frames)
    levels = [level[None] for level in LAYOUT.deinterleave(codes)]
    whole = codec.decode(levels, [7])[0].numpy()
    decoder = StreamingDecoder(codec, LAYOUT, 7, before=codes[:given])
    assert decoder.needed == StreamingDecoder(codec, LAYOUT, 7).needed
    ids = LAYOUT.to_ids(codes[given:]).tolist()
    pieces = [decoder.decode(ids[at : at + 5]) for at in range(0, len(ids), 5)]
    heard = np.concatenate([*pieces, decoder.flush()])
    np.testing.assert_array_equal(heard, whole[given * codec.frame_samples :])
    assert decoder.frames == frames


def test_an_engine_gives_out_the_new_audio_alone(frozen: SpeechLM) -> None:
    codec = tiny_codec()
    before = draw_frames(8)
    prompt = [1, 2, LAYOUT.start_id, *LAYOUT.to_ids(before).tolist()]
    engine = Engine(frozen, codec, slots=1)
    samples, finished = speak(engine, Request(prompt, 6, GREEDY, 6, len(prompt), before))
    engine.close()
    assert finished.frames == 6
    ids = generate(frozen, [prompt], 6 * FRAME)[0]
    codes = np.concatenate([before, LAYOUT.from_ids(np.array(ids))])
    levels = [level[None] for level in LAYOUT.deinterleave(codes)]
    whole = codec.decode(levels, [0])[0].numpy()
    np.testing.assert_array_equal(samples, whole[8 * codec.frame_samples :])


# Recordings and texts


def tone(seconds: float, rate: int = 16_000, height: float = 0.3) -> Samples:
    at = np.arange(round(seconds * rate)) / rate
    return (height * np.sin(2 * np.pi * 220.0 * at)).astype(np.float32)


def test_a_recording_loses_its_silence_and_what_is_no_whole_frame() -> None:
    codec = tiny_codec()
    silence = np.zeros(16_000, np.float32)
    speech = np.concatenate([silence, tone(2.0), silence])
    samples = read_recording(encode_audio(speech, 16_000, "WAV"), codec)
    assert len(samples) % codec.frame_samples == 0
    assert 0 <= 2.4 * 24_000 - len(samples) < codec.frame_samples
    assert np.abs(samples[: round(0.15 * 24_000)]).max() < 0.01
    assert np.abs(samples[round(0.25 * 24_000) :][:2400]).max() > 0.2


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.zeros(48_000, np.float32), "silent .*3 to 10 s"),
        (np.clip(tone(3.0, height=2.0), -0.9, 0.9), "clipped .* lower level"),
        (tone(60.0), "longer than 30 s: .*the transcript of that part"),
        (tone(0.2), r"0\.20 s of speech, expected 1 to 30 s: give 3 to 10 s"),
    ],
)
def test_a_recording_that_cannot_be_a_reference_is_refused(samples: Samples, expected: str) -> None:
    with pytest.raises(RequestError, match=expected) as refusal:
        read_recording(encode_audio(samples, 16_000, "WAV"), tiny_codec())
    assert refusal.value.field == "ref_audio"


@pytest.mark.parametrize("data", [b"", b"RIFF", b"\x00" * 5000])
def test_bytes_that_are_no_recording_are_refused_as_a_reference(data: bytes) -> None:
    with pytest.raises(RequestError, match=r"the recording cannot be read .* give a WAV"):
        read_recording(data, tiny_codec())


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 3.0), ("Hello there, everybody who is here.", 0.5), ("Hm.", 20.0)]
)
def test_a_text_that_cannot_be_the_recordings_is_refused(text: str, seconds: float) -> None:
    with pytest.raises(RequestError, match=r"ive .* words") as refusal:
        check_text(text, seconds)
    assert refusal.value.field == "ref_text"


def test_a_model_that_was_taught_no_references_says_so(codec: Codec) -> None:
    untaught = make_voice(codec, {})
    with pytest.raises(RequestError, match="--reference-share"):
        untaught.reference(draw_frames(20), "four two")
    tried = untaught.reference(draw_frames(20), "four two", "two-turn")
    assert isinstance(tried, Reference)
