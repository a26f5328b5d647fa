"""Long-form synthesis for code that waits, and that every way in gives the same speech."""

import asyncio
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from numpy.typing import NDArray

from helpers.example import CHECKPOINT, VOICE
from helpers.speaking import assert_close, samples_of, silences
from helpers.voices import make_voice
from sheen.__main__ import main
from sheen.codec.snac import Codec
from sheen.engine.engine import Engine
from sheen.engine.synthesis import Synthesized, synthesize, synthesize_all
from sheen.engine.types import RequestError, Sampling, SynthesisParams
from sheen.engine.voice import Voice
from sheen.evaluate.output import PROMPT_SCHEMA
from sheen.evaluate.speak_stage import SpeakWorker
from sheen.rng import step_seed
from sheen.serve.answers.responses import answer
from sheen.serve.backend import Backend
from sheen.serve.config import ServeArgs
from sheen.serve.request_log import RequestRecord, close_record
from sheen.serve.schema.requests import SpeechRequest

CHUNK_S = 0.5
LONG = "Good morning. It's half past two."
SHORT = SynthesisParams(chunk_seconds=0.4)


@pytest.fixture(scope="module")
def voice(codec: Codec) -> Voice:
    return make_voice(codec, {})


@pytest.fixture
def engine(voice: Voice) -> Iterator[Engine]:
    engine = Engine(voice.model, voice.codec, slots=2, max_seq_len=voice.max_seq_len(0.4))
    yield engine
    engine.close()


def served(text: str, sampling: Sampling) -> tuple[NDArray[np.int16], RequestRecord]:
    """What the server answers with, behind its routes."""
    args = ServeArgs(auth="none", max_seconds=CHUNK_S, slots=2)
    backend, record = Backend(args, str(CHECKPOINT), codec_process=False), RequestRecord()
    body = SpeechRequest(
        model="sheen",
        input=text,
        voice=VOICE,
        response_format="pcm",
        seed=sampling.seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
    )

    async def ask() -> bytes:
        response = await answer(backend, body, record, 600.0)
        return b"".join([chunk async for chunk in response.body_iterator])  # type: ignore[attr-defined]

    try:
        return np.frombuffer(asyncio.run(ask()), np.int16), record
    finally:
        close_record(record)
        backend.close()


@pytest.mark.slow
def test_the_command_line_and_evaluation_speak_a_long_text_as_the_server_does(
    tmp_path: Path,
) -> None:
    key, seed = 3, 5
    sampling = Sampling(seed=step_seed(seed, key))
    expected, record = served(LONG, sampling)
    assert record.chunks >= 2

    path = tmp_path / "out.wav"
    command = ["speak", LONG, "--model", str(CHECKPOINT), "--voice", VOICE, "-o", str(path)]
    assert main([*command, "--seed", str(sampling.seed), "--max-seconds", str(CHUNK_S)]) == 0
    assert_close(soundfile.read(path, dtype="int16")[0], expected)

    worker = SpeakWorker(str(CHECKPOINT), "cpu", [], {}, seed, CHUNK_S, slots=2)
    prompt = {"key": key, "id": "long", "text": LONG, "speaker": VOICE}
    [row] = worker(pa.Table.from_pylist([prompt], schema=PROMPT_SCHEMA)).to_pylist()
    flac = io.BytesIO(row["audio"]["bytes"])
    assert_close(soundfile.read(flac, dtype="int16")[0], expected)
    assert row["ended_with_eos"] == (record.finish_reason == "stop")


@pytest.mark.slow
def test_an_evaluation_worker_keeps_one_engine(checkpoint: Path) -> None:
    def engines() -> int:
        return sum(thread.name == "sheen-engine" for thread in threading.enumerate())

    before = engines()
    worker = SpeakWorker(str(checkpoint), "cpu", [], {}, 0, 0.2, slots=1)
    for key in range(2):
        prompt = {"key": key, "id": str(key), "text": "One.", "speaker": VOICE}
        worker(pa.Table.from_pylist([prompt], schema=PROMPT_SCHEMA))
        assert engines() == before + 1


def test_samples_come_chunk_by_chunk_and_the_finish_reason_at_the_end(
    engine: Engine, voice: Voice
) -> None:
    with synthesize(engine, voice, "Four. Two one. Seven.", SHORT) as speech:
        samples = [span.samples for span in speech]
        assert speech.finish_reason == "length"
        assert next(speech, None) is None
    assert all(part.dtype == np.float32 and len(part) for part in samples)
    # Two chunks, as the first sentence stands alone and the others are packed, and a pause.
    assert np.concatenate(samples).size >= 2 * 4 * 2048


def test_a_text_without_a_word_is_a_moment_of_silence(engine: Engine, voice: Voice) -> None:
    speech = synthesize(engine, voice, "... !", SHORT)
    samples = samples_of(speech)
    assert len(samples) == 0.2 * speech.sample_rate
    assert not samples.any()
    assert speech.finish_reason == "stop"


def test_a_pause_is_exactly_as_long_as_the_text_says(engine: Engine, voice: Voice) -> None:
    def spoken(text: str) -> NDArray[np.float32]:
        return samples_of(synthesize(engine, voice, text, SHORT))

    text = "[pause:200ms]Four [pause:{}] two. [PAUSE:0.25s] [pause:0.25s]"
    half, long = spoken(text.format("0.5s")), spoken(text.format("1.5s"))
    assert silences(half) == [4_800, 12_000, 12_000]
    assert silences(long) == [4_800, 36_000, 12_000]
    np.testing.assert_array_equal(half[np.flatnonzero(half)], long[np.flatnonzero(long)])
    assert not spoken("[pause:0.123s]").any()
    assert len(spoken("[pause:0.123s]")) == 2_952
    assert len(spoken("[pause:0s]")) == len(spoken("...")) == 4_800


def test_a_pause_of_an_hour_is_refused(engine: Engine, voice: Voice) -> None:
    with pytest.raises(RequestError, match=r"\[pause:3600s\]: .* 3600 s; at most 60 s") as refusal:
        synthesize(engine, voice, "Four. [pause:3600s] Two.", SHORT)
    assert refusal.value.field == "input"


def test_synthesis_may_be_called_where_an_event_loop_runs(engine: Engine, voice: Voice) -> None:
    async def notebook() -> int:
        [result] = synthesize_all(engine, voice, [("Four.", SHORT)])
        assert isinstance(result, Synthesized)
        spoken = samples_of(synthesize(engine, voice, "Four.", SHORT))
        np.testing.assert_allclose(result.samples, spoken, atol=1e-6)
        return len(spoken)

    assert asyncio.run(notebook()) > 0


def test_closing_a_synthesis_cancels_what_is_not_spoken_yet(engine: Engine, voice: Voice) -> None:
    speech = synthesize(engine, voice, "Four two. " * 50, SHORT)
    assert len(next(speech).samples)
    speech.close()
    assert next(speech, None) is None
    assert speech.finish_reason == "cancelled"
    # Nothing of it is left at the engine: the next text is spoken at once.
    assert list(synthesize(engine, voice, "One.", SHORT))
    assert engine.metrics()["cancelled"] >= 1


@pytest.mark.slow
def test_many_texts_keep_their_order_and_one_that_cannot_be_spoken_fails_alone(
    engine: Engine, voice: Voice
) -> None:
    texts = [f"{'one two ' * (number % 5)}four." for number in range(12)]
    params = [SynthesisParams(None, Sampling(seed=number), 0.4) for number in range(12)]
    asked = list(zip(texts, params, strict=True))
    asked[7] = " \n", params[7]
    results = synthesize_all(engine, voice, asked)
    assert isinstance(results[7], RequestError)
    assert results[7].field == "input"
    for number in (0, 4, 11):
        expected = samples_of(synthesize(engine, voice, *asked[number]))
        result = results[number]
        assert isinstance(result, Synthesized)
        assert result.text == texts[number]
        np.testing.assert_allclose(result.samples, expected, atol=1e-6)
    assert synthesize_all(engine, voice, []) == []


def test_an_unknown_voice_is_refused_before_anything_is_generated(
    engine: Engine, voice: Voice
) -> None:
    with pytest.raises(RequestError, match="has one voice") as refusal:
        synthesize(engine, voice, "Four.", SynthesisParams("nobody"))
    assert refusal.value.field == "voice"
    assert engine.metrics()["tokens"] == 0


def test_a_failure_of_the_engine_is_raised_where_the_samples_are_read(
    engine: Engine, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise RuntimeError("the codec broke")

    monkeypatch.setattr(voice.codec, "decode", broken)
    with pytest.raises(RuntimeError, match="the codec broke"):
        list(synthesize(engine, voice, "Four.", SHORT))
    with pytest.raises(RuntimeError, match="the codec broke"):
        synthesize_all(engine, voice, [("Four.", SHORT), ("Two.", SHORT)])
