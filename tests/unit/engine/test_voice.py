"""Budgets and room: what a text's request may take."""

from dataclasses import replace

import pytest

from helpers.speaking import speak
from helpers.voices import make_voice
from sheen.codec.snac import Codec
from sheen.engine.engine import Engine
from sheen.engine.types import RequestError, Sampling
from sheen.engine.voice import DEFAULT_CHUNK_CHARS, RUNAWAY, Voice
from sheen.lm.checkpoint import DurationModel

FRAMES_PER_SECOND = 24_000 / 2048
GREEDY = Sampling(0.0)


@pytest.fixture(scope="module")
def unpaced(codec: Codec) -> Voice:
    return make_voice(codec, {})


@pytest.fixture(scope="module")
def paced(codec: Codec) -> Voice:
    slow = DurationModel(base_frames=4, frames_per_char=2)
    quick = DurationModel(base_frames=1, frames_per_char=0.1)
    return make_voice(codec, {"slow": slow, "quick": quick}, ["quick", "slow", "unknown"])


def test_the_budget_follows_the_text(paced: Voice) -> None:
    """A model that does not end stops soon after it should have."""
    times, more = RUNAWAY
    for text in ("one", "one two three four"):
        for speaker, frames in (("slow", 4 + 2 * len(text)), ("quick", 1 + 0.1 * len(text))):
            request = paced.request(text, speaker, GREEDY, 60.0)
            assert request.max_frames == int(times * frames + more * FRAMES_PER_SECOND)


def test_no_text_gets_a_longer_budget_than_the_cap(paced: Voice, unpaced: Voice) -> None:
    assert paced.request("one " * 40, "slow", GREEDY, 3.0).max_frames == 35
    assert unpaced.request("one", None, GREEDY, 3.0).max_frames == 35
    # A voice whose pace is not known: the cap alone.
    assert paced.request("one", "unknown", GREEDY, 3.0).max_frames == 35
    with pytest.raises(ValueError, match="max_seconds"):
        unpaced.request("one", None, GREEDY, 0.0)


def test_a_text_may_fill_the_model_and_then_leaves_less_audio(unpaced: Voice) -> None:
    max_seq_len = unpaced.model.max_positions
    request = unpaced.request("a" * (max_seq_len - 50), None, GREEDY, 30.0)
    assert request.max_frames == (max_seq_len - len(request.prompt)) // 7
    with pytest.raises(RequestError, match="shorter text"):
        unpaced.request("a" * max_seq_len, None, GREEDY, 30.0)


def test_an_engine_with_a_shorter_maximum_leaves_less_too(unpaced: Voice) -> None:
    request = unpaced.request("a" * 50, None, GREEDY, 30.0, max_seq_len=100)
    assert request.max_frames == (100 - 51) // 7
    assert request.seq_len(unpaced.model.layout) <= 100
    with pytest.raises(RequestError, match="100 tokens"):
        unpaced.request("a" * 95, None, GREEDY, 30.0, max_seq_len=100)


def test_the_longest_request_has_room_for_its_text(unpaced: Voice) -> None:
    for seconds in (0.5, 10.0):
        max_seq_len = unpaced.max_seq_len(seconds)
        request = unpaced.request("a" * 500, None, GREEDY, seconds, max_seq_len)
        assert request.max_frames == int(seconds * FRAMES_PER_SECOND)
    assert unpaced.max_seq_len(600.0) == unpaced.model.max_positions


def test_an_instruction_is_for_a_model_that_was_trained_with_some(paced: Voice) -> None:
    how = "so that all can hear it"
    with pytest.raises(RequestError, match="not trained to follow instructions") as refused:
        paced.request("one two", "slow", GREEDY, 30.0, instruction=how)
    assert refused.value.field == "instructions"
    told = replace(paced, info=paced.info.model_copy(update={"instructions": True}))
    request = told.request("one two", "slow", GREEDY, 30.0, instruction=how)
    assert request.prompt == told.template.ids("one two", "slow", how)
    alone = told.request("one two", "slow", GREEDY, 30.0)
    assert request.max_frames == alone.max_frames
    assert alone.prompt == paced.request("one two", "slow", GREEDY, 30.0).prompt
    # One that leaves no room for the speech is refused, and not the speech cut.
    with pytest.raises(RequestError, match="shorter ones") as refused:
        told.request("one two", "slow", GREEDY, 30.0, max_seq_len=200, instruction="loud " * 30)
    assert refused.value.field == "instructions"


def test_a_piece_is_no_longer_than_what_the_model_was_taught(paced: Voice, unpaced: Voice) -> None:
    """Nor than the seconds that it may take; half as many again are left for a slow one."""
    assert unpaced.max_chunk_chars(30.0, None) == DEFAULT_CHUNK_CHARS
    taught = replace(unpaced, info=unpaced.info.model_copy(update={"max_chunk_chars": 34}))
    assert taught.max_chunk_chars(30.0, None) == 34
    assert paced.max_chunk_chars(30.0, "quick") == DEFAULT_CHUNK_CHARS
    slow = paced.max_chunk_chars(30.0, "slow")
    assert slow == int((20 * FRAMES_PER_SECOND - 4) / 2)
    expected = paced.expected_seconds("a" * slow, "slow")
    assert expected is not None
    assert 19.8 < expected <= 20.0
    assert paced.max_chunk_chars(0.1, "slow") == 1


def test_a_request_that_nothing_ends_is_ended(unpaced: Voice) -> None:
    engine = Engine(unpaced.model, unpaced.codec, slots=1, max_seq_len=unpaced.max_seq_len(0.3))
    request = unpaced.request("four", None, GREEDY, 0.3)
    samples, finished = speak(engine, request)
    engine.close()
    assert (finished.reason, finished.frames) == ("length", 3)
    assert len(samples) == 3 * 2048
